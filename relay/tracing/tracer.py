"""What the parts that handle alerts know of tracing.

They begin spans, and note what became of things. What that does is the tracer's business: without
one, nothing is done. Nothing here waits, and nothing loads OpenTelemetry.
"""

from __future__ import annotations

from enum import Enum
from types import TracebackType
from typing import Protocol, Self

from attrs import frozen

from relay.model.trace_context import TraceContext


class TracedStep(Enum):
    """What a span is about, by the name of the span."""

    ACCEPT = "accept alert"
    """From the receipt of an alert until it is stored or refused."""
    STORE = "store alert"
    """The transaction that stores it, with those that came at the same time."""
    DISPATCH = "dispatch alert"
    """Giving it to the connections of one process that consume it."""
    POST = "post alert"
    """One attempt to deliver it to a target."""
    READ = "read alerts"
    """A request for earlier alerts."""


class Span(Protocol):
    """One step, from the moment when it was begun until its block ends."""

    @property
    def context(self) -> TraceContext | None:
        """What to hand to those who continue; None if there is nothing to continue."""

    def note(self, name: str, value: str | int) -> object:
        """Note something about the step: no contents, and nothing that came without a check."""

    def fail(self, why: str) -> object:
        """Note that the step has failed. `why` quotes nothing that others sent."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Tracer(Protocol):
    """Begins spans."""

    def begin(self, step: TracedStep, caller: TraceContext | None) -> Span:
        """The first step of relay: in the trace of the caller, or in a new one."""

    def follow(self, step: TracedStep, before: TraceContext | None) -> Span:
        """A step after one that was recorded; if none was, this one is not either."""


@frozen
class Unrecorded:
    """A span that is not recorded, and passes the context on. A `Span`."""

    context: TraceContext | None = None

    def note(self, name: str, value: str | int) -> None:
        pass

    def fail(self, why: str) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


NO_SPAN = Unrecorded()


@frozen
class NoTracer:
    """Tracing is off: nothing is recorded, stored or passed on. A `Tracer`."""

    def begin(self, step: TracedStep, caller: TraceContext | None) -> Span:  # noqa: ARG002 (a protocol)
        return NO_SPAN

    def follow(self, step: TracedStep, before: TraceContext | None) -> Span:  # noqa: ARG002 (a protocol)
        return NO_SPAN


NO_TRACER = NoTracer()
