"""The folder in which a command was started."""

from __future__ import annotations

from pathlib import Path

from relay.errors import ConfigError


def working_directory() -> Path:
    """The current folder; `ConfigError` where it was removed or may not be read."""
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"the current folder cannot be used ({error.strerror}): change to another folder"
        ) from None
