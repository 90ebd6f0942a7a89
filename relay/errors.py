"""The errors that cross rooms. Floor 0: imports nothing of relay."""

from attrs import frozen


class RelayError(Exception):
    """Something relay can explain to the person who sees it."""


class ConfigError(RelayError):
    """A setting, file or address is wrong: one line on stderr, exit code 2."""


@frozen
class Clash:
    """Settings that are right by themselves and do not go together."""

    message: str
    settings: tuple[str, ...]


class StoreUnavailable(RelayError):
    """Postgres, or another that knows, cannot be asked now; the same question may succeed later."""


class StoreForbids(RelayError):
    """The database role may not do what it is asked, until somebody grants it."""


class StoppedAtOnce(RelayError):
    """A second signal came while relay was draining."""

    def __str__(self) -> str:
        return "stopped at once, without waiting for connections to end"
