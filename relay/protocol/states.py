"""The states of a connection, and what leads from one to the next, as a table.

docs/protocol.md draws the same; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """The state of a connection."""

    CONNECTING = "Connecting"
    """TLS, a proxy's header, the request: nothing is known of the peer but its address."""
    OPEN = "Open"
    """A WebSocket whose peer has not authenticated."""
    AUTHENTICATED = "Authenticated"
    PRODUCING = "Producing"
    """Authenticated, and the producer of a stream."""
    ENDED = "Ended"


class Step(StrEnum):
    """What leads to another state."""

    UPGRADE = "upgrade"
    """A request for a WebSocket was accepted."""
    AUTHENTICATE = "auth"
    """The peer's token was verified; later ones renew the session."""
    REGISTER = "register"
    """The peer became the producer of a stream."""
    END = "end"
    """The goodbye is out, and the bytes have ended."""


TRANSITIONS: Mapping[State, Mapping[Step, State]] = {
    State.CONNECTING: {Step.UPGRADE: State.OPEN, Step.END: State.ENDED},
    State.OPEN: {Step.AUTHENTICATE: State.AUTHENTICATED, Step.END: State.ENDED},
    State.AUTHENTICATED: {
        Step.AUTHENTICATE: State.AUTHENTICATED,
        Step.REGISTER: State.PRODUCING,
        Step.END: State.ENDED,
    },
    State.PRODUCING: {
        Step.AUTHENTICATE: State.PRODUCING,
        Step.REGISTER: State.PRODUCING,
        Step.END: State.ENDED,
    },
    State.ENDED: {},
}


class IllegalStep(Exception):
    """A step that the state does not have: a bug of ours, since peers are refused beforehand."""


def after(state: State, step: Step) -> State:
    """The state that a step leads to; `IllegalStep` when it leads nowhere from here."""
    try:
        return TRANSITIONS[state][step]
    except KeyError:
        raise IllegalStep(f"no {step.value} while {state.value}") from None
