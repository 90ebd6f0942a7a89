"""A temporary folder that PostgreSQL may enter, also as another user."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relay.errors import ConfigError


@contextmanager
def open_temporary_folder(prefix: str, *, ignore_cleanup_errors: bool = False) -> Iterator[Path]:
    """Make a folder that is removed afterwards; `ConfigError` where none can be made."""
    try:
        made = tempfile.TemporaryDirectory(
            prefix=prefix, ignore_cleanup_errors=ignore_cleanup_errors
        )
    except OSError as error:
        raise ConfigError(
            f"cannot make a temporary folder ({error.strerror}): set TMPDIR to a folder that this"
            " user may write to"
        ) from None
    with made as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder
