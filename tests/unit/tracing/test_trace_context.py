"""What is no valid context of a trace is ignored, and nothing else goes into a header."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model.trace_context import MAX_TRACE_CONTEXT_LENGTH, TraceContext

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE_ID}-{SPAN_ID}-01"


def test_a_traceparent_is_read_and_written() -> None:
    context = TraceContext.parse(VALID, "rojo=00f067aa0ba902b7, congo=t61rcWkgMzE")
    assert context == TraceContext(
        TRACE_ID, SPAN_ID, sampled=True, tracestate="rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
    )
    assert context.headers == {
        "traceparent": VALID,
        "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
    }
    assert TraceContext.read(context.text) == context
    assert context.unsampled().traceparent == f"{VALID[:-1]}0"


@pytest.mark.parametrize(
    "traceparent",
    [
        *("", " ", VALID.upper(), f" {VALID}", f"{VALID} ", f"{VALID}\r\nx: y", f"{VALID}-more"),
        *(f"ff{VALID[2:]}", VALID[:-1], VALID.replace("-", "_"), "0" * 1_000_000),
        *(f"00-{'0' * 32}-{SPAN_ID}-01", f"00-{TRACE_ID}-{'0' * 16}-01", f"01{VALID[2:]}x"),
        f"00-{TRACE_ID}-{SPAN_ID}-0\u0661",
    ],
)
def test_anything_else_is_none(traceparent: str) -> None:
    assert TraceContext.parse(traceparent, "a=b") is None


def test_a_later_version_may_have_more_fields() -> None:
    context = TraceContext.parse(f"cc-{TRACE_ID}-{SPAN_ID}-03-what-comes")
    assert context is not None
    assert context.traceparent == VALID


@pytest.mark.parametrize(
    "tracestate",
    [
        *("a", "=b", "A=b", "a=", "a=b\r\nx: y", "a=é", "a=b=c", "a=b,a=c", "a=\x00"),
        *(",".join(f"k{n}=v" for n in range(33)), f"a={'x' * 511}", "x" * 1_000_000),
    ],
)
def test_a_tracestate_that_is_not_valid_is_left_out(tracestate: str) -> None:
    context = TraceContext.parse(VALID, tracestate)
    assert context is not None
    assert context.headers == {"traceparent": VALID}


@given(st.text(max_size=80), st.text(alphabet="ab=,@ \t\r\n\x00é", max_size=600))
def test_what_is_written_fits_a_header_and_a_row(traceparent: str, tracestate: str) -> None:
    for first in (traceparent, VALID):
        context = TraceContext.parse(first, tracestate)
        if context is None:
            continue
        assert all(
            value.isascii() and value.isprintable() and value == value.strip()
            for value in context.headers.values()
        )
        assert len(context.text) <= MAX_TRACE_CONTEXT_LENGTH
        assert TraceContext.read(context.text) == context


@pytest.mark.parametrize("text", [None, "", " ", "a b", "x" * 1_000_000, f" {VALID}"])
def test_what_others_have_stored_is_read_with_care(text: str | None) -> None:
    assert TraceContext.read(text) is None
