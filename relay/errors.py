"""The errors that cross rooms. Floor 0: imports nothing of relay."""


class RelayError(Exception):
    """Something relay can explain to the person who sees it."""


class ConfigError(RelayError):
    """A setting, file or address is wrong: one line on stderr, exit code 2."""


class StoreUnavailable(RelayError):
    """Postgres, or another that knows, cannot be asked now; the same question may succeed later."""


class StoppedAtOnce(RelayError):
    """A second signal came while relay was draining."""

    def __str__(self) -> str:
        return "stopped at once, without waiting for connections to end"
