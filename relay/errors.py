"""Errors that several rooms raise or catch. Imports nothing of relay."""


class RelayError(Exception):
    """An error whose message is meant for the person who runs relay."""


class ConfigError(RelayError):
    """A setting, a file or an argument is wrong: one line on stderr, exit code 2."""


class StoreUnavailable(RelayError):
    """The database, or another service relay depends on, does not answer; a retry may succeed."""


class StoreForbids(StoreUnavailable):
    """The database role lacks a privilege; a retry fails until it is granted."""


class StoreLacks(StoreUnavailable):
    """The database is not as relay needs it: a table or a column is not there; a retry fails until
    it is."""


class StoreRejects(RelayError):
    """The database cannot store or return one of the values that it was asked about; a retry fails,
    too, and the same statement with other values does not."""


class AlertsFull(RelayError):
    """There is no room for an alert: too many bytes of alerts are stored. There is later, when
    earlier ones are removed."""


class StoppedAtOnce(RelayError):
    """A second signal arrived while relay was draining."""

    def __str__(self) -> str:
        return "stopped at once, without waiting for connections to close"
