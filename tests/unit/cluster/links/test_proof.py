"""The preface, and what both sides sign."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.cluster.links.proof import (
    MAX_PREFACE_BYTES,
    LinkRefused,
    Preface,
    Role,
    transcript,
)

NODE_IDS = st.from_regex(r"[0-9A-Za-z_.-]{1,64}", fullmatch=True)


@given(NODE_IDS, NODE_IDS)
def test_a_preface_is_read_as_it_was_written(target: str, dialler: str) -> None:
    line = Preface(target, dialler).encode()
    assert len(line) <= MAX_PREFACE_BYTES
    assert Preface.parse(line) == Preface(target, dialler)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_preface_or_refused(line: bytes) -> None:
    with suppress(LinkRefused):
        assert Preface.parse(line).encode() == line


@pytest.mark.parametrize(
    "line",
    [
        b"relay-node 2 a b\n",
        b"relay-node 1 a\n",
        b"relay-node 1 a b",
        b"relay-node 1 a b\r\n",
        b"relay-node 1 a b c\n",
        b"relay-node 1 a  b\n",
        b"relay-node 1 a b\n\n",
        b"GET / HTTP/1.1\r\n",
        "relay-node 1 ä b\n".encode(),
        b"relay-node 1 a %s\n" % (b"b" * 65),
    ],
)
def test_what_is_almost_a_preface_is_none(line: bytes) -> None:
    with pytest.raises(LinkRefused):
        Preface.parse(line)


def test_each_role_each_pair_of_nodes_and_each_pair_of_nonces_signs_something_else() -> None:
    nonces = (bytes(32), bytes([1]) * 32)
    roles: tuple[Role, ...] = ("dialler", "acceptor")
    prefaces = [Preface("a", "b"), Preface("b", "a"), Preface("a", "a")]
    signed = [transcript(*each) for each in itertools.product(roles, prefaces, nonces, nonces)]
    assert len(set(signed)) == len(signed)
