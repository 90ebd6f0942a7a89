"""What a node is, and its keys."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from relay.cluster.links import identity
from relay.cluster.links.identity import NodeIdentity, has_signed, make_identity
from relay.cluster.links.proof import Preface
from relay.transport import pinned_key
from relay.transport.pinned_key import BadCertificate


def test_each_start_makes_another_node() -> None:
    one, other = make_identity("here"), make_identity("here")
    assert one.node_id != other.node_id
    assert one.certificate_pem != other.certificate_pem
    assert Preface.parse(Preface(one.node_id, other.node_id).encode()).target == one.node_id


def test_a_signature_is_good_for_its_data_and_its_node_only() -> None:
    one, other = make_identity("here"), make_identity("here")
    signature = one.sign(b"data")
    assert len(signature) == identity.SIGNATURE_BYTES
    assert has_signed(one.certificate_pem, signature, b"data")
    assert not has_signed(one.certificate_pem, signature, b"date")
    assert not has_signed(other.certificate_pem, signature, b"data")
    assert not has_signed(one.certificate_pem, b"", b"data")


@pytest.mark.parametrize("text", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_what_is_no_certificate_proves_nothing(text: str) -> None:
    node = make_identity("here")
    assert not has_signed(text, node.sign(b"data"), b"data")
    for context in (node.server_context, node.client_context):
        with pytest.raises(BadCertificate):
            context(text)


def test_the_private_key_is_not_shown() -> None:
    node = make_identity("here")
    assert "PRIVATE" not in repr(node)
    assert "key" not in repr(node).replace(node.certificate_pem, "")
    assert "PRIVATE" not in node.certificate_pem


def test_a_certificate_does_not_depend_on_the_clock() -> None:
    made = x509.load_pem_x509_certificate(make_identity("here").certificate_pem.encode())
    assert made.not_valid_before_utc.year == 2000
    assert made.not_valid_after_utc.year == 9999


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Shake hands in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs, ours = client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (theirs, ours):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    theirs.write(b"x")
    assert ours.read(1) == b"x"


def both_ways(one: NodeIdentity, other: NodeIdentity) -> None:
    handshake(one.server_context(other.certificate_pem), other.client_context(one.certificate_pem))


def test_the_key_gets_into_tls_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was made")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    both_ways(make_identity("here"), make_identity("there"))


def test_where_a_pipe_is_no_file_the_key_is_in_one_for_a_moment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    @contextmanager
    def nowhere(_data: bytes) -> Iterator[str]:
        yield str(tmp_path / "nowhere")

    seen: list[tuple[int, int]] = []
    load = ssl.SSLContext.load_cert_chain

    def look(context: ssl.SSLContext, *paths: Any) -> None:
        path = Path(paths[0])
        if path.exists():
            seen.append((path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777))
        load(context, *paths)

    monkeypatch.setattr(pinned_key, "_through_pipe", nowhere)
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", look)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    both_ways(make_identity("here"), make_identity("there"))
    assert seen == [(0o600, 0o700)] * 2
    assert not list(tmp_path.iterdir())
