"""Files with the key of a coordinator or an agent."""

from __future__ import annotations

import os
from pathlib import Path

from relay.errors import ConfigError
from relay.transport.pinned_key import BadCertificate, PinnedKey, make_pinned_key, read_pinned_key

MAX_KEY_BYTES = 1 << 16
KEY_NAME = "relay load"
"""In the certificate, which nobody reads."""


def open_key(path: Path) -> PinnedKey:
    """Read a key, or make one if there is no such file; `ConfigError`."""
    return read_key(path) if os.path.lexists(path) else make_key(path)


def make_key(path: Path) -> PinnedKey:
    """Make a key, in a new file that only this user may read; `ConfigError`."""
    key = make_pinned_key(KEY_NAME)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "wb") as writing:
            writing.write(key.with_private_key())
    except OSError as error:
        raise ConfigError(f"cannot write the key {path}: {error.strerror}") from None
    return key


def read_key(path: Path) -> PinnedKey:
    """Read a key; `ConfigError`."""
    try:
        with path.open("rb") as file:
            others_may_read = os.fstat(file.fileno()).st_mode & 0o077
            pem = file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror}") from None
    if others_may_read:
        raise ConfigError(f"others may read the key {path}: chmod 600 {path}")
    try:
        return read_pinned_key(pem)
    except BadCertificate:
        raise ConfigError(f"{path} is no key of `relay load keys`") from None
