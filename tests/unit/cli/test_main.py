from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import click
import pytest
import structlog
import trio

from relay import app
from relay.cli import main
from relay.errors import ConfigError, StoppedAtOnce, StoreUnavailable
from relay.settings.groups import GROUPS
from relay.settings.settings import SETTINGS, Settings, flag


def paths(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of each command below a group, and of the group itself."""
    yield path
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from paths(command, (*path, name))
        else:
            yield (*path, name)


def command_at(path: tuple[str, ...]) -> click.Command:
    command: click.Command | None = main.relay
    for name in path:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), name)
    assert command is not None
    return command


COMMANDS = list(paths(main.relay))
GROUPS_OF_COMMANDS = [path for path in COMMANDS if isinstance(command_at(path), click.Group)]
LEAVES = [path for path in COMMANDS if path not in GROUPS_OF_COMMANDS]


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    yield
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    root.level, root.handlers[:] = before


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def raise_in_serve(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    async def serve(_settings: Settings, *, task_status: object) -> None:
        raise error

    monkeypatch.setattr(app, "serve", serve)


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_the_help_of_each_command_has_an_example(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *command, "--help")
    assert code == 0
    assert "Example:\n    " in out
    assert f"relay {' '.join(command)}" in out.split("Example:")[1]
    assert err == ""


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_help_of_serve_lists_each_setting_once_below_its_group(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    _, out, _ = run(capsys, "serve", "--help")
    listed: dict[str, list[str]] = {}
    for line in out.splitlines():
        if heading := re.fullmatch(r"(\S.*):", line):
            options = listed.setdefault(heading[1], [])
        elif option := re.match(r"  --(\S+)", line):
            options.append(option[1].replace("-", "_"))
    assert listed.pop("Options") == ["config"]
    assert listed == {title: list(names) for title, names in GROUPS.items()}
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(SETTINGS)
    assert max(map(len, out.splitlines())) <= int(columns)


@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize("group", GROUPS_OF_COMMANDS, ids=" ".join)
def test_the_help_of_a_group_teaches_and_lists_each_command_once(
    group: tuple[str, ...],
    columns: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    _, out, _ = run(capsys, *group, "--help")
    path = " ".join(["relay", *group])
    assert re.search(rf"^  \S.*: +{path} \S", out, re.MULTILINE), "it shows no first step"
    described = out.split("\nOptions:\n")[1].split("\n\n", 1)[1]
    listed = re.findall(r"^  (\S+)  ", described, re.MULTILINE)
    command = command_at(group)
    assert isinstance(command, click.Group)
    assert sorted(listed) == sorted(command.list_commands(click.Context(command)))
    assert max(map(len, out.splitlines())) <= int(columns)


def test_serve_has_a_flag_for_each_setting(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "serve", "--help")
    assert [name for name in SETTINGS if f"  {flag(name)} " not in out] == []


def test_relay_alone_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)
    assert code == 2
    assert out == ""
    assert "Usage: relay" in err


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert out.startswith("relay 0.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--bnid", "h:1"], "'--bind'"),
        (["serve", "--bind", "3000"], "bind: expected HOST:PORT"),
        (["serve", "--config", "/nowhere/relay.toml"], "/nowhere/relay.toml: No such file"),
        (["serve", "--log-level", "loud"], "not 'loud' (--log-level)"),
        (["serve", "--database-url", "db"], "(--database-url)"),
        (["sevre"], "No such command 'sevre'"),
        (["token", "session"], "see `relay token session --help`"),
        (["token", "session", "--user", "a@b.example", "--ttl", "1 week"], "90s, 30m, 12h or 7d"),
        (["token", "session", "--user", "a@b.example", "--ttl", "99999999d"], "90s, 30m, 12h"),
        (["demo", "--video", "/nowhere/film.mp4"], "/nowhere/film.mp4"),
        (["demo", "--seconds", "0"], "--seconds"),
        (["demo", "--seconds", "x"], "'x' is not a number"),
        (["audit", "--limit", "x"], "'x' is not a whole number"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("relay: ")
    assert err.count("\n") == 1
    assert words in err


def test_an_unknown_variable_is_misuse_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_BNID", "h:1")
    code, _, err = run(capsys, "config", "check")
    assert code == 2
    assert err == (
        "relay: unknown setting RELAY_BNID in the environment; did you mean RELAY_BIND?\n"
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("port 3000 is taken"), "relay: port 3000 is taken\n"),
        (StoreUnavailable("timed out"), "relay: cannot reach the database: timed out\n"),
        (ConfigError("several\n  lines"), "relay: several lines\n"),
        (StoppedAtOnce(), f"relay: {StoppedAtOnce()}\n"),
    ],
)
def test_what_relay_can_explain_is_one_line_whatever_nursery_it_came_through(
    error: Exception,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raise_in_serve(monkeypatch, ExceptionGroup("", [ExceptionGroup("", [error])]))
    assert run(capsys, "serve") == (2, "", line)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    raise_in_serve(
        monkeypatch, ExceptionGroup("", [ConfigError("explained"), KeyError("a bug beside it")])
    )
    with pytest.RaisesGroup(pytest.RaisesGroup(ConfigError, KeyError)):
        main.main(["serve"])


def test_an_interrupt_is_no_error_to_explain(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_in_serve(monkeypatch, KeyboardInterrupt())
    code, out, err = run(capsys, "serve")
    assert (code, out.strip(), err.strip()) == (130, "", "")


@pytest.mark.parametrize(
    ("bind", "hinted"),
    [("localhost:0", True), ("127.0.0.1:0", True), ("0.0.0.0:0", False), ("[::]:0", False)],
)
def test_serve_says_where_it_listens_and_what_phones_need(
    bind: str,
    hinted: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def serve(settings: Settings, *, task_status: trio.TaskStatus[list[str]]) -> None:
        assert settings.bind == bind
        task_status.started(["http://127.0.0.1:3000", "http://[::1]:3000"])

    monkeypatch.setattr(app, "serve", serve)
    code, out, err = run(capsys, "serve", "--bind", bind)
    assert code == 0
    assert out == (
        "relay listening on http://127.0.0.1:3000\nrelay listening on http://[::1]:3000\n"
    )
    assert ("--bind 0.0.0.0:3000" in err) == hinted


def test_show_names_the_source_of_each_setting_and_hides_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_DATABASE_URL", "postgresql://relay:5ecret@db/relay")
    code, out, _ = run(capsys, "config", "show", "--database-pool", "9")
    assert code == 0
    assert "database_pool = 9  # --database-pool\n" in out
    assert '# database_url = "postgresql://relay:***@db/relay"  (RELAY_DATABASE_URL)\n' in out
    assert 'bind = "localhost:3000"  # default\n' in out
    assert "5ecret" not in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("webhook", "ad"), "No such command 'ad'. Did you mean 'add'? See `relay webhook --help`"),
        (("docter",), "No such command 'docter'. Did you mean 'doctor'? See `relay --help`"),
        (("link", "make", "door"), "Missing option '--what'. Choose from: still, mjpeg; see"),
    ],
)
def test_a_mistake_is_one_sentence_or_two_with_the_way_to_the_help(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    code, _, errors = run(capsys, *words)
    assert code == 2
    assert errors.startswith(f"relay: {said}")
    assert errors.count("\n") == 1
