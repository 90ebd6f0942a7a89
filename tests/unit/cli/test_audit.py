"""`relay audit --what` with a word that no event has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.cli import main
from relay.cli.operation import audit
from relay.cli.operation.audit import AUDITED

DOCS = Path(__file__).parents[3] / "docs"


def test_a_kind_that_does_not_exist_is_answered_with_those_that_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "with_database", lambda _read: [])
    assert main.main(["audit", "--what", "authh"]) == 2
    said = capsys.readouterr().err
    assert "'authh'" in said
    assert all(kind in said for kind in AUDITED)
    assert main.main(["audit", "--what", "auth"]) == 0
    assert "no audit events found" in capsys.readouterr().err


def test_the_documentation_has_the_same_kinds() -> None:
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    _, _, below = text.partition("\n## Audit\n")
    rows = re.findall(r"^\| (`[^|]*`) \|", below.partition("\n## ")[0], re.MULTILINE)
    assert {kind for row in rows for kind in re.findall(r"`([^`]+)`", row)} == set(AUDITED)
