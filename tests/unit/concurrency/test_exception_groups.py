"""Errors are told without the nurseries that they came through."""

from __future__ import annotations

from relay.concurrency.exception_groups import leaves


def test_the_errors_of_nested_groups_come_in_their_order() -> None:
    one, two, three = ValueError(1), KeyError(2), OSError(3)
    inner = ExceptionGroup("inner", [ExceptionGroup("innermost", [two]), three])
    assert list(leaves(ExceptionGroup("outer", [one, inner]))) == [one, two, three]
