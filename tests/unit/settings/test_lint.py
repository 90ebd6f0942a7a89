"""Problems with the settings, warnings about them, and which parts of secrets are shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.cli import main
from relay.errors import ConfigError
from relay.logs.printable import printable
from relay.settings.lint import lint
from relay.settings.loading import Configuration, examine, load
from relay.settings.report import as_values, describe, without_password
from relay.settings.settings import SETTINGS, Settings

PASSWORD = "5ecret-passw0rd"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "relay.toml"


def problems(
    text: str = "",
    *,
    file: Path | None = None,
    environment: dict[str, str] | None = None,
    flags: dict[str, str | None] | None = None,
) -> list[str]:
    if file is not None:
        file.write_text(text)
    _, found = examine(
        flags, config_file=str(file) if file else None, environment=environment or {}
    )
    return [each.message for each in found]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_all_problems_are_told_each_with_its_place(file: Path) -> None:
    found = problems(
        'bind = "3000"\n\ndata_dri = "/srv"\n  "log_level" = "loud"\nping_interval = 300\n',
        file=file,
        environment={"RELAY_DATABASE_POOL": "many", "RELAY_BNID": "x", "RELAY_audit": "true"},
        flags={"log_format": "xml"},
    )
    assert [re.split(", not | \\(120\\); ", message)[0] for message in found] == [
        "bind: expected HOST:PORT, such as localhost:3000",
        f"unknown setting data_dri in {file}:3; did you mean data_dir?",
        "log_level: expected 'debug', 'info', 'warning' or 'error'",
        "unknown setting RELAY_BNID in the environment; did you mean RELAY_BIND?",
        "database_pool: expected a whole number from 1 to 100",
        "unknown setting RELAY_audit in the environment; did you mean RELAY_AUDIT?",
        "log_format: expected 'auto', 'console' or 'json'",
        "ping_interval (300) must be shorter than idle_timeout",
    ]
    assert found[0].endswith(f"'3000' ({file}:1)")
    assert found[2].endswith(f"'loud' ({file}:4)")
    assert found[6].endswith("'xml' (--log-format)")


def test_who_starts_relay_hears_of_the_first_problem_and_that_there_are_more() -> None:
    environment = {"RELAY_BIND": "3000", "RELAY_BNID": "x"}
    with pytest.raises(ConfigError, match=r"^bind: .*`relay config check` shows all 2 problems$"):
        load(environment=environment)


def test_a_key_that_is_misspelt_is_not_reported_as_missing_too(file: Path) -> None:
    token = 'jwt_issuer = "https://id.example.org"\njwt_audience = "relay"\n'
    (only,) = problems(f"{token}jwt_jwks_ulr = 'https://id.example.org/jwks'", file=file)
    assert "did you mean jwt_jwks_url?" in only
    (only,) = problems(f"{token}jwt_jwks_url = 'id.example.org'", file=file)
    assert only.startswith("jwt_jwks_url: expected a URL")


def test_several_things_that_do_not_go_together_are_all_told(file: Path) -> None:
    found = problems(
        "tls_key = 'key.pem'\nproxy_protocol = true\nrequire_origin = true\n"
        "listen_url = 'postgresql://db/x'\njwt_secret = 'x'\nintrospection_client_id = 'relay'",
        file=file,
    )
    assert [message.split()[0] for message in found] == [
        *("jwt_secret", "jwt_secret", "jwt_secret:", "introspection", "proxy_protocol"),
        *("require_origin", "tls_certificate", "listen_url"),
    ]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[relay]\nbind = 'h:1'", "at the top level of the file, not in a table"),
        ("relay.bind = 'h:1'", "at the top level of the file, not in a table"),
        ("data-dir = '/srv'", "did you mean data_dir?"),
        ("BIND = 'h:1'", "did you mean bind?"),
        ("qqqqqq = 1", "`relay config show` lists all settings"),
        ('"\\u001b[31m" = 1', "`relay config show` lists all settings"),
    ],
)
def test_what_is_no_setting_brings_a_hint(text: str, hint: str, file: Path) -> None:
    (only,) = problems(text, file=file)
    assert hint in only


def test_a_line_is_named_only_where_it_is_plain_which_one_it_is(file: Path) -> None:
    (only,) = problems('data_dir = """\nbind = 1\n"""\nbind = "3000"', file=file)
    assert only.endswith(f"({file})")


def test_a_file_that_cannot_be_read_does_not_hide_what_else_is_wrong(tmp_path: Path) -> None:
    environment = {"RELAY_CONFIG": str(tmp_path / "nowhere.toml"), "RELAY_BNID": "x"}
    first, second = problems(environment=environment)
    assert first.startswith("cannot read the settings file ")
    assert second.startswith("unknown setting RELAY_BNID")


def test_the_token_of_top_is_no_setting() -> None:
    assert problems(environment={"RELAY_TOKEN": PASSWORD}) == []
    assert "did you mean RELAY_TOKEN?" in problems(environment={"RELAY_TOKN": "x"})[0]


@pytest.mark.parametrize(
    ("given", "warning"),
    [
        ({"max_connections_per_user": "20000"}, "max_connections is 10000"),
        (
            {"max_connections_per_address": "20", "max_connections": "10"},
            "has no effect: max_connections is 10",
        ),
        (
            {"max_message_size": "2048", "receive_buffer": "1024"},
            "larger than receive_buffer (1024)",
        ),
        ({"frame_rate": "2/second", "message_rate": "60/minute"}, "frames count as messages"),
        ({"hsts_max_age": "60"}, "hsts_max_age has no effect without tls_certificate"),
        ({"cluster_tls": "off"}, "cluster_tls has no effect without cluster_bind"),
        ({"audit": "false", "audit_days": "7"}, "while audit is off"),
        ({"introspection_cache": "7"}, "without introspection_url"),
        ({"database_url": "postgresql://db/x", "data_dir": "/srv"}, "data_dir is for relay's own"),
        ({"database_url": "postgresql://db/x", "postgres_bin": "/srv"}, "postgres_bin is for"),
        ({"dev_tls": "true", "tls_certificate": "/c", "tls_key": "/k"}, "dev_tls has no effect"),
        ({"profile": "load", "bind": "0.0.0.0:3000"}, "lets other machines connect"),
        ({"allow_networks": "10.1.0.0/16", "deny_networks": "::/0,10.0.0.0/8"}, "covers all of it"),
    ],
)
def test_what_makes_no_sense_is_accepted_with_a_warning(
    given: dict[str, str], warning: str
) -> None:
    (only,) = lint(load(dict(given), environment={}))
    assert warning in only


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"max_connections": "10"},
        {"message_rate": "1/second"},
        {"profile": "load"},
        {"audit": "false"},
        {"database_url": "postgresql://db/x", "data_dir": "/srv", "dev_tls": "true"},
        {"allow_networks": "10.0.0.0/8", "deny_networks": "10.1.0.0/16,::/0"},
    ],
)
def test_what_makes_sense_brings_no_warning(given: dict[str, str]) -> None:
    assert list(lint(load(dict(given), environment={}))) == []


def test_check_lists_all_problems_and_ends_with_2(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text('bind = "3000"\n"\\u001b[31mred" = 1')
    code, out, err = run(capsys, "config", "check", "--config", str(file))
    assert (code, out) == (2, "")
    assert [line.split()[:2] for line in err.splitlines()] == [
        ["relay:", "bind:"],
        ["relay:", "unknown"],
    ]
    assert "\x1b" not in err
    code, out, err = run(capsys, "config", "check", "--json", "--config", str(file))
    assert (code, err) == (2, "")
    told = json.loads(out)
    assert told["ok"] is False
    assert told["problems"][0] == {
        "message": f"bind: expected HOST:PORT, such as localhost:3000, not '3000' ({file}:1)",
        "source": f"{file}:1",
        "settings": ["bind"],
    }


def test_check_finds_addresses_of_databases_that_cannot_be_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_DATABASE_URL", f"postgresql://relay:{PASSWORD}@db/app?nonsense=1")
    url = f"postgresql://relay:{PASSWORD}@[db/app"
    code, _, told = run(capsys, "config", "check", "--listen-url", url)
    first, second = told.splitlines()
    assert code == 2
    assert re.match(r"relay: database_url: .* cannot be read: .*\(RELAY_DATABASE_URL\)$", first)
    assert re.match(r"relay: listen_url: .* cannot be read: .*\(--listen-url\)$", second)
    assert PASSWORD not in told


def test_a_file_that_nests_without_end_is_one_line(file: Path) -> None:
    (problem,) = problems(f"bind = {'[' * 5000}", file=file)
    assert "cannot read the settings file" in problem


def test_check_prints_warnings_and_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("config", "check", "--no-audit", "--audit-days", "7")
    code, out, err = run(capsys, *arguments)
    assert code == 0
    assert out == "the settings are valid, with warnings\n"
    assert err == "relay: warning: audit_days has no effect while audit is off\n"
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    assert json.loads(out) == {
        "ok": True,
        "problems": [],
        "warnings": [err.removeprefix("relay: warning: ").rstrip("\n")],
    }
    assert run(capsys, "config", "check") == (0, "the settings are valid\n", "")


def test_show_tells_programs_where_each_setting_comes_from(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("database_pool = 9")
    monkeypatch.setenv("RELAY_AUTH_SECRET", PASSWORD)
    code, out, _ = run(capsys, "config", "show", "--json", "--config", str(file), "--bind", "h:1")
    assert code == 0
    shown = json.loads(out)
    assert shown.keys() == SETTINGS.keys()
    assert shown["bind"] == {"value": "h:1", "secret": False, "from": "option", "source": "--bind"}
    assert shown["database_pool"]["from"] == "file"
    assert shown["database_pool"]["source"] == f"{file}:1"
    assert shown["auth_secret"]["value"] == "***"
    assert shown["auth_secret"]["from"] == "environment"
    assert shown["idle_timeout"]["from"] == "default"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://relay:p@db:5432/app", "postgresql://relay:***@db:5432/app"),
        ("postgres://relay@db/app?sslmode=require", "postgres://relay@db/app?sslmode=require"),
        ("postgresql://u:p@[::1]/app", "postgresql://u:***@[::1]/app"),
        (
            "postgresql://u:p@/app?host=/run/x&port=5&password=p&sslpassword=p",
            "postgresql://u:***@/app?host=/run/x&port=5&password=***&sslpassword=***",
        ),
        ("postgresql://relay:pa/ss@db/app", None),
        ("postgresql://relay:pa?ss@db/app", None),
        ("postgresql://relay:pa#ss@db/app", None),
        ("postgresql://relay:pa@ss@db/app", None),
        ("postgresql://relay:secret", None),
        ("host=db password=secret", None),
        ("postgresql://db/app?options=a#b", None),
    ],
)
def test_an_address_is_shown_without_its_password_or_not_at_all(
    url: str, shown: str | None
) -> None:
    assert without_password(url) == shown
    loaded = load({"database_url": url}, environment={})
    line = next(line for line in describe(loaded) if "database_url" in line)
    assert (shown or "is hidden") in line


@given(st.text(min_size=1), st.sampled_from(["postgresql://u:{}@db/app", "postgresql://{}@db/app"]))
def test_no_password_however_it_is_written_is_shown(text: str, shape: str) -> None:
    secret = f"QQ{text}QQ"
    url = shape.format(f"u:{secret}" if shape.count(":") == 1 else secret)
    shown = without_password(url)
    assert shown is None or "QQ" not in shown
    settings = Settings(database_url=url)
    assert "QQ" not in json.dumps(as_values(Configuration(settings, {})))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("front-door", "front-door"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("a\r\nb\t", "a\\r\\nb\\t"),
        ("abc\u202edef", "abc\\u202edef"),
        ("\ud800", "\\ud800"),
        ("käse 🎥", "käse 🎥"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_what_does_not_print_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
