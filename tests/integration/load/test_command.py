"""`relay load` as people run it: processes, exit codes, what it prints and leaves behind."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import trio

from relay.load.measures.results import read_result
from tests.integration.accounts import Accounts
from tests.integration.load_command import (
    SHORT,
    UNCHECKED,
    against,
    assert_nothing_is_left,
    call,
    finish,
    start,
    until_line,
    write,
)
from tests.integration.relay_process import RelayProcess, start_relay
from tests.integration.web_server import open_web_server, says

FILE_OPTIONS = ("--report", "--json", "--csv", "--junit")


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    """One that bans nobody for tokens that are wrong."""
    with start_relay("--profile", "load", database_url=database_url) as relay:
        yield relay


def test_a_scenario_runs_against_a_relay_of_its_own_and_leaves_nothing(
    folder: Path, tmp_path: Path
) -> None:
    report, lines = tmp_path / "r.html", tmp_path / "r.json"
    rows, junit = tmp_path / "r.csv", tmp_path / "r.xml"
    files = ("--report", report, "--json", lines, "--csv", rows, "--junit", junit)
    code, output, errors = finish(start(folder, write(tmp_path, SHORT), *map(str, files)))
    assert (code, errors) == (0, ""), output
    assert "all checks passed" in output
    assert "ok   the relay's ledger agrees" in output
    result, seconds = read_result(lines)
    assert result.outcome == "kept"
    sent = result.groups["doors"].counts["sent"]
    assert result.groups["fast"].counts["received"] >= sent
    assert result.groups["fast"].times["frame_age"]["p99"] < 5
    assert [json.loads(line)["type"] for line in lines.read_text().splitlines()] == [
        *["second"] * len(seconds),
        "result",
    ]
    with rows.open(newline="") as file:
        received = [int(row["received"]) for row in csv.DictReader(file) if row["group"] == "fast"]
    assert len(received) == len(seconds)
    assert sum(received) == result.groups["fast"].counts["received"]
    (suite,) = ET.parse(junit).getroot()
    assert (suite.get("name"), suite.get("failures")) == ("short", "0")
    page = report.read_text()
    assert page.count("<svg") >= 6
    assert not re.search(r"(src|href)=|url\(|<script|@import", page)
    assert_nothing_is_left(folder)


@pytest.mark.slow
def test_two_workers_share_the_actors_and_one_book(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    lines = tmp_path / "r.json"
    scenario = against(relay, accounts, tmp_path)
    code, output, errors = finish(start(folder, scenario, "--workers", "2", "--json", str(lines)))
    assert (code, errors) == (0, ""), output
    result, _ = read_result(lines)
    assert result.workers == 2
    groups = result.groups
    assert groups["fast"].counts["connect.done"] == 3
    received = groups["fast"].counts["received"] + groups["plain"].counts["received"]
    assert groups["doors"].counts["sent"] * 2 - 8 <= received
    assert result.total.counts.get("lost", 0) == 0


@pytest.mark.slow
def test_two_runs_of_a_scenario_agree_and_can_be_compared(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    scenario = against(relay, accounts, tmp_path)
    files = [tmp_path / name for name in ("a.json", "b.json")]
    for file in files:
        code, output, errors = finish(start(folder, scenario, "--json", str(file)))
        assert (code, errors) == (0, ""), output
    first, second = (read_result(file)[0] for file in files)
    for name, group in first.groups.items():
        # What is due is the same. When each connection stands is not.
        late = max(12, 8 * group.counts.get("connect.done", 0))
        again = second.groups[name].counts
        for count in ("sent", "received", "alerts.accepted"):
            assert abs(group.counts.get(count, 0) - again.get(count, 0)) <= late
    code, output, errors = finish(start(folder, "compare", *map(str, files)))
    assert (code, errors) == (0, "")
    assert "fast frame_age p99" in output


@pytest.mark.slow
def test_what_a_script_prints_is_for_people_and_does_not_disturb_the_run(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    (tmp_path / "actors.py").write_text(
        "async def talker(actor):\n    print('hello from a script')\nACTORS = {'talker': talker}\n"
    )
    scenario = against(relay, accounts, tmp_path, f'script = "actors.py"\n{SHORT}')
    code, output, errors = finish(start(folder, scenario))
    assert (code, errors) == (0, "hello from a script\n"), output


def test_a_failed_check_is_exit_code_1(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    source = SHORT.replace("frame_age.p99 < 5s", "frame_age.p99 < 1us")
    scenario = against(relay, accounts, tmp_path, source)
    code, output, _ = finish(start(folder, scenario, GITHUB_ACTIONS="true"))
    assert code == 1
    assert "FAIL frame_age.p99 < 1us" in output
    (line,) = re.findall(r"^::error file=.*$", output, re.MULTILINE)
    number = 1 + source.splitlines().index(next(x for x in source.splitlines() if "1us" in x))
    assert line.startswith(
        f"::error file={scenario},line={number},title=short%3A a check failed::frame_age.p99 < 1us "
    )


def test_a_scenario_that_is_wrong_is_annotated_where_it_is_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    scenario = write(tmp_path, "duration = 1")
    _, output, _ = call(folder, scenario, "--github", GITHUB_ACTIONS="")
    assert output.startswith(f"::error file={scenario},title=relay load::{scenario}: duration: ")
    _, output, _ = call(folder, scenario, GITHUB_ACTIONS="")
    assert output == ""


@pytest.mark.slow
def test_a_generator_that_is_late_fails_the_run_whatever_the_relay_did(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    scenario = against(relay, accounts, tmp_path, UNCHECKED.replace('"5s"', '"1us"'))
    code, output, _ = finish(start(folder, scenario))
    assert code == 1
    assert re.search("FAIL lateness.p99 < 0.001ms", output)
    assert output.count("FAIL") == 1


@pytest.mark.slow
def test_a_run_ends_early_when_a_check_cannot_be_kept(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    source = SHORT.replace("frame_age.p99 < 5s", "frame_age.p99 < 1us").replace('"1s"', '"60s"', 1)
    scenario = against(relay, accounts, tmp_path, source.replace("60s", "60s", 1))
    code, output, _ = finish(start(folder, scenario, "--abort-on-fail"))
    assert code == 1
    assert "ended early: frame_age.p99 < 1us" in output


def test_a_wrong_scenario_is_one_line_and_exit_code_2(folder: Path, tmp_path: Path) -> None:
    scenario = write(tmp_path, SHORT.replace("count = 3", "cuont = 3"))
    code, output, errors = call(folder, scenario)
    assert (code, output) == (2, "")
    assert errors == (
        f"relay: {scenario}: viewers.fast.cuont: there is no such key; did you mean count?\n"
    )
    assert_nothing_is_left(folder)


@pytest.mark.parametrize("url", ["ws://example.com", "ws://10.0.0.1:3000", "ws://0.0.0.0:1"])
def test_a_target_that_is_not_this_machine_is_refused(
    url: str, folder: Path, tmp_path: Path
) -> None:
    scenario = write(tmp_path, f'{SHORT}[target]\nurl = "{url}"\n')
    code, _, errors = call(folder, scenario)
    assert code == 2
    assert f"{scenario}: target.url: " in errors
    assert "is not this machine; a load test can do harm, so this needs --target-is-mine" in errors


@pytest.mark.slow
def test_a_target_that_is_away_is_in_the_figures_with_its_reason(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("token\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    target = f'[target]\nurl = "ws://127.0.0.1:{port}"\n[tokens]\nfile = "tokens"\n'
    code, output, _ = finish(start(folder, write(tmp_path, SHORT + target)))
    assert code == 1
    assert re.search(rf"cannot connect to 127.0.0.1:{port}: .*Connection refused", output)


def test_a_target_without_tokens_could_not_be_run(folder: Path, tmp_path: Path) -> None:
    target = '[target]\nurl = "ws://127.0.0.1:1"\n'
    code, output, _ = call(folder, write(tmp_path, SHORT + target))
    assert code == 3
    assert "could not run: there are no tokens" in output


@pytest.mark.slow
def test_a_relay_that_does_not_start_could_not_be_run(folder: Path, tmp_path: Path) -> None:
    target = '[target]\nstart = true\nsettings = ["--auth-timeout", "never"]\n'
    code, output, _ = finish(start(folder, write(tmp_path, SHORT + target)))
    assert code == 3
    assert "could not run: the relay did not start: relay: auth_timeout: expected" in output
    assert_nothing_is_left(folder)


def test_a_command_that_is_misspelt_is_told_the_nearest(folder: Path) -> None:
    for words in (("comapre", "a.json", "b.json"), ("fnid", "smoke", "--raise", "viewers")):
        code, _, errors = call(folder, *words)
        assert code == 2
        nearest = {"comapre": "compare", "fnid": "find"}[words[0]]
        assert errors == (
            f"relay: there is no command, no file and no example named {words[0]!r};"
            f" did you mean {nearest}?\n"
        )


def test_a_scenario_that_is_neither_file_nor_example_is_told_the_nearest(folder: Path) -> None:
    code, output, errors = call(folder, "smok")
    assert (code, output) == (2, "")
    assert errors == "relay: there is no file and no example named 'smok'; did you mean smoke?\n"


@pytest.mark.slow
def test_a_reader_who_leaves_early_does_not_cost_the_report(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    lines = tmp_path / "r.json"
    process = start(folder, against(relay, accounts, tmp_path), "--json", str(lines))
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    code, _, errors = finish(process)
    assert (code, errors) == (3, "relay: cannot write the output: Broken pipe\n")
    assert read_result(lines)[0].outcome == "kept"


def test_no_token_is_printed_or_written(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    scenario = against(relay, accounts, tmp_path)
    bad = "wrong-token-of-nobody"
    (tmp_path / "tokens").write_text(bad)
    lines, report = tmp_path / "r.json", tmp_path / "r.html"
    code, output, errors = finish(
        start(folder, scenario, "--json", str(lines), "--report", str(report))
    )
    assert code == 1
    assert "AUTH_FAILED: Invalid or expired token" in output
    assert "closed with 1008" not in output  # the reason is heard also with the Close
    service = (tmp_path / "service").read_text().strip()
    for text in (output, errors, lines.read_text(), report.read_text()):
        assert bad not in text
        assert service not in text


@pytest.mark.parametrize(
    "moment",
    [*(pytest.param(each, marks=pytest.mark.slow) for each in ("starting", "running")), "  1 s"],
)
def test_ctrl_c_ends_it_with_the_results_so_far_and_leaves_nothing(
    moment: str, folder: Path, tmp_path: Path
) -> None:
    process = start(folder, write(tmp_path, SHORT.replace('"1s"', '"60s"', 1)))
    assert process.stdout is not None
    seen = ""
    while moment not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    process.send_signal(signal.SIGINT)
    code, output, errors = finish(process)
    assert (code, errors) == (130, "")
    assert "interrupted: these are the figures so far" in output
    if moment == "  1 s":
        assert re.search(r"doors +\d+", output)
        assert "FAIL lost" not in output
    assert_nothing_is_left(folder)


@pytest.mark.slow
def test_ctrl_c_twice_is_interrupted_too_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    process = start(folder, write(tmp_path, SHORT.replace('"1s"', '"60s"', 1)))
    until_line(process, "  1 s")
    process.send_signal(signal.SIGINT)
    threading.Event().wait(0.05)  # two at once are one
    process.send_signal(signal.SIGINT)
    code, output, errors = finish(process)
    assert (code, errors) == (130, "")
    assert "interrupted: these are the figures so far" in output
    assert_nothing_is_left(folder)


@pytest.mark.parametrize("option", FILE_OPTIONS)
def test_a_file_that_cannot_be_written_is_told_before_the_run(
    option: str, folder: Path, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good", tmp_path / "no such folder" / "r"
    link = tmp_path / "link"  # to where nothing is yet
    link.symlink_to(good)
    other = "--json" if option == "--report" else "--report"
    scenario = write(tmp_path, SHORT)
    code, output, errors = call(folder, scenario, option, str(bad), other, str(link))
    assert (code, output) == (3, "")
    assert errors == f"relay: cannot write {bad}: No such file or directory\n"
    assert not good.exists()
    assert link.is_symlink()


@pytest.mark.slow
def test_lines_can_go_into_a_pipe(
    relay: RelayProcess, accounts: Accounts, folder: Path, tmp_path: Path
) -> None:
    pipe = tmp_path / "lines"
    os.mkfifo(pipe)
    process = start(folder, against(relay, accounts, tmp_path), "--json", str(pipe))
    with pipe.open("rb") as reader:
        lines = reader.read().splitlines()
    code, _, errors = finish(process)
    assert (code, errors) == (0, "")
    assert [json.loads(line)["type"] for line in lines][-1] == "result"


@pytest.mark.slow
async def test_a_target_whose_stats_are_none_of_a_relay_could_not_be_run(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("token\n")
    async with open_web_server(says({"frames_accepted": "many"})) as server:
        target = f'[target]\nurl = "ws://127.0.0.1:{server.port}"\nledger = true\n'
        scenario = write(tmp_path, SHORT + target + '[tokens]\nfile = "tokens"\n')
        code, output, _ = await trio.to_thread.run_sync(finish, start(folder, scenario))
    assert code == 3
    assert "could not run: cannot read the relay's /stats: Expected `int`, got `str`" in output


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_report_is_said_after_the_results(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("platform: there is no /dev/full")
    scenario = against(relay, accounts, tmp_path)
    files = [word for option in FILE_OPTIONS for word in (option, str(full))]
    code, output, errors = finish(start(folder, scenario, *files))
    assert code == 3
    assert "all checks passed" in output
    assert errors.count(f"relay: cannot write {full}: ") == len(FILE_OPTIONS)


def test_the_examples_are_listed_and_printed(folder: Path) -> None:
    code, output, _ = call(folder, "examples")
    assert code == 0
    assert re.search(r"^smoke +Does it work at all", output, re.MULTILINE)
    code, output, _ = call(folder, "examples", "smoke")
    assert output.startswith("# Does it work at all")
    code, _, errors = call(folder, "examples", "smoek")
    assert (code, errors) == (
        2,
        "relay: there is no example named 'smoek'; did you mean smoke?\n",
    )
