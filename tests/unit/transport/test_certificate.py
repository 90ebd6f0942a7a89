"""The certificate, loaded again: whatever became of its files, the relay goes on."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from relay.errors import ConfigError
from relay.transport.certificate import Certificate


def swap(certificate: Certificate) -> None:
    chain, key = certificate.chain.read_bytes(), certificate.key.read_bytes()
    certificate.chain.write_bytes(key)
    certificate.key.write_bytes(chain)


def replace(certificate: Certificate, make: Callable[[Path], object]) -> None:
    certificate.chain.unlink()
    make(certificate.chain)


SPOILED: dict[str, Callable[[Certificate], object]] = {
    "chain is gone": lambda each: each.chain.unlink(),
    "key is gone": lambda each: each.key.unlink(),
    "a directory": lambda each: replace(each, Path.mkdir),
    "a named pipe": lambda each: replace(each, os.mkfifo),
    "a link to nothing": lambda each: replace(each, lambda path: path.symlink_to("nowhere")),
    "empty": lambda each: each.chain.write_bytes(b""),
    "bytes": lambda each: each.chain.write_bytes(bytes(range(256))),
    "half": lambda each: each.chain.write_bytes(each.chain.read_bytes()[:300]),
    "no DER": lambda each: each.chain.write_text(
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    ),
    "swapped": swap,
}


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    issued = trustme.CA().issue_cert("localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(issued.cert_chain_pems[0].bytes())
    key.write_bytes(issued.private_key_pem.bytes())
    return Certificate(chain, key)


@pytest.mark.parametrize("how", SPOILED)
def test_files_that_are_no_good_leave_the_old_certificate(
    certificate: Certificate, how: str
) -> None:
    before = certificate.context
    SPOILED[how](certificate)
    certificate.reload()
    assert certificate.context is before
    with pytest.raises(ConfigError, match="pem"):
        Certificate(certificate.chain, certificate.key)


def test_files_that_vanish_while_they_are_read_leave_the_old_certificate(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, load = certificate.context, ssl.SSLContext.load_cert_chain

    def vanish(*arguments: Any, **options: Any) -> None:
        certificate.chain.unlink()
        load(*arguments, **options)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", vanish)
    certificate.reload()
    assert certificate.context is before


def test_files_behind_a_locked_folder_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, Python before 3.14 raises an error when asked whether a file exists."""

    def stat(path: Path, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(ConfigError, match=r"key\.pem cannot be read"):
        Certificate(tmp_path / "key.pem", tmp_path / "key.pem")
