"""The place of something in a trace, as W3C Trace Context writes it in HTTP headers.

https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
from typing import Self

from attrs import evolve, field, frozen

MAX_TRACESTATE_LENGTH = 512
"""Characters; a longer one is left out, as the specification allows."""
MAX_TRACESTATE_MEMBERS = 32
TRACEPARENT_LENGTH = 55
MAX_TRACE_CONTEXT_LENGTH = TRACEPARENT_LENGTH + 1 + MAX_TRACESTATE_LENGTH
"""Characters of one as text."""
TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
TRACESTATE_MEMBER = re.compile(
    r"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
NO_TRACE_ID, NO_SPAN_ID = "0" * 32, "0" * 16
SAMPLED = 1
"""The flag of a trace that is recorded."""


@frozen
class TraceContext:
    """A span, as whoever continues its trace knows it."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    sampled: bool
    """Whether the trace is recorded."""
    tracestate: str = field(default="", repr=False)
    """What tracing systems have noted in it: passed on, and not read."""

    @classmethod
    def parse(cls, traceparent: str | None, tracestate: str | None = None) -> Self | None:
        """The context of two headers; None unless there is a valid `traceparent`. A `tracestate`
        that is not valid is left out."""
        if not traceparent:
            return None
        found = TRACEPARENT.match(traceparent)
        if found is None or not _has_valid_end(traceparent, version := found[1]):
            return None
        trace_id, span_id = found[2], found[3]
        if version == "ff" or trace_id == NO_TRACE_ID or span_id == NO_SPAN_ID:
            return None
        sampled = bool(int(found[4], 16) & SAMPLED)
        return cls(trace_id, span_id, sampled, _tracestate(tracestate or ""))

    @classmethod
    def read(cls, text: str | None) -> Self | None:
        """The context that `text` has written; None for anything else."""
        if not text or len(text) > MAX_TRACE_CONTEXT_LENGTH:
            return None
        return cls.parse(*text.split(" ", 1))

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{SAMPLED if self.sampled else 0:02x}"

    @property
    def text(self) -> str:
        """The context as one text, to be stored."""
        return f"{self.traceparent} {self.tracestate}".rstrip()

    @property
    def headers(self) -> dict[str, str]:
        """The headers for those who are to continue the trace."""
        headers = {"traceparent": self.traceparent}
        if self.tracestate:
            headers["tracestate"] = self.tracestate
        return headers

    def unsampled(self) -> Self:
        """The same place in a trace that is not recorded here."""
        return evolve(self, sampled=False) if self.sampled else self


def _has_valid_end(traceparent: str, version: str) -> bool:
    """Version 00 has nothing behind the flags; a later one may have more fields."""
    rest = traceparent[TRACEPARENT_LENGTH:]
    return not rest or (version != "00" and rest.startswith("-"))


def _tracestate(text: str) -> str:
    """A valid `tracestate` without spaces around its members; empty for anything else."""
    if len(text) > MAX_TRACESTATE_LENGTH:
        return ""
    members = [member for each in text.split(",") if (member := each.strip(" \t"))]
    keys = {each.partition("=")[0] for each in members}
    if len(members) > MAX_TRACESTATE_MEMBERS or len(keys) < len(members):
        return ""
    return ",".join(members) if all(map(TRACESTATE_MEMBER.fullmatch, members)) else ""
