"""Whom a load test trusts at a target with TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from relay.load.actors.network.endpoint import TlsVerification
from relay.load.run.targets.target import find_tls_verification
from relay.load.scenario.parsing import parse_scenario
from relay.load.scenario.schema import ScenarioError

SCENARIO = "[phones.p]\n[target]\nurl = 'wss://relay.test'\n[tls]\n"


def tls_verification(tls: str, folder: Path) -> TlsVerification:
    return find_tls_verification(parse_scenario(SCENARIO + tls, "test.toml", folder))


def test_the_file_is_looked_for_beside_the_scenario_and_names_are_checked(tmp_path: Path) -> None:
    authority = trustme.CA().cert_pem.bytes().decode()
    (tmp_path / "ca.pem").write_text(f"für Tests\n{authority}")
    found = tls_verification("ca = 'ca.pem'", tmp_path)
    assert found == TlsVerification(authority)
    context = found.context()
    assert any("trustme" in str(each) for each in context.get_ca_certs())
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert tls_verification("", tmp_path).context().check_hostname


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "tls.ca: cannot read .*No such file"), ("nothing", "tls.ca: .* holds no certificate")],
)
def test_a_file_without_certificates_is_told_before_anything_starts(
    tmp_path: Path, content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    with pytest.raises(ScenarioError, match=words):
        tls_verification("ca = 'ca.pem'", tmp_path)


def test_whoever_answers_is_trusted_only_where_the_scenario_says_so(tmp_path: Path) -> None:
    assert tls_verification("insecure = true", tmp_path).context().verify_mode is ssl.CERT_NONE
    with pytest.raises(ScenarioError, match="use one of ca and insecure"):
        tls_verification("insecure = true\nca = 'ca.pem'", tmp_path)
