"""`relay load find` without a relay: runs whose ends the test decides."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import attrs
import msgspec
import pytest
import trio
from attrs import define, field
from rich.console import Console

from relay.load import finder
from relay.load.finder import Finder, FindOptions, exit_code, find_limit, open_finder
from relay.load.measures.analysis.limits import FindResult
from relay.load.measures.builtin_checks import CLIENTS_ADMITTED
from relay.load.measures.checks import CheckResult
from relay.load.measures.generator_usage import GeneratorSecond
from relay.load.measures.results import Outcome, second_of
from relay.load.report.find_page import find_page
from relay.load.report.outputs import FindLines, OutputFiles
from relay.load.report.words.find import find_lines, print_find
from relay.load.run.run_state import RunState
from relay.load.runner import ScenarioChoice
from relay.load.scenario.parsing import parse_scenario
from relay.load.scenario.scenario import Scenario
from relay.load.scenario.schema import ScenarioError

CHECK = "frame_age.p99 < 200ms"
SOURCE = f"""
name = "crowd"
duration = "10s"
check = ["{CHECK}"]
[phones.p]
[viewers.v]
watch = "p"
count = 10
"""
SEVERAL = """
name = "crowd"
duration = "10s"
check = ["frame_age.p99 < 200ms"]
[phones.p]
[viewers.a]
watch = "p"
[viewers.b]
watch = "p"
[viewers.c]
watch = "p"
[viewers.d]
watch = "p"
count = 7
"""
End = Outcome | Literal["away", "silent", "not begun"]
"""How a run ends: "away" if nobody was at the target, "silent" if its database answered nothing,
"not begun" if its load never was."""
Ends = Callable[[int], End]


@define(eq=False)
class PlayedRun:
    """In place of a coordinator: it takes the time of the scenario, and ends as it is told."""

    ends: Ends
    busy: float
    scenario: Scenario
    state: RunState = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.state = RunState(self.scenario)

    async def run(self) -> None:
        await trio.sleep(self.scenario.length)
        state, count = self.state, sum(each.count for each in self.scenario.viewers.values())
        end = self.ends(count)
        state.has_begun = end != "not begun"
        state.outcome = {"away": "failed", "silent": "failed", "not begun": "could not run"}.get(
            end, end
        )  # type: ignore[assignment] # one of them
        state.failure = "the relay did not start" if state.outcome == "could not run" else None
        lines = [check.line for check in self.scenario.checks]
        kept = state.outcome == "kept"
        state.checks = [CheckResult(line, kept=kept, measured=f"{count} ms") for line in lines]
        state.unverified = float(end == "silent")
        if end in {"away", "silent"}:
            state.checks.append(CheckResult(CLIENTS_ADMITTED, kept=False, measured="none of 9"))
            state.run_stats.group("v").error("cannot connect: refused", 9)
        own = GeneratorSecond(busy=self.busy)
        state.seconds = [
            second_of(at, recent={}, own=own, usage={}, before={}, last_at=at - 1)
            for at in range(1, 6)
        ]
        state.run_stats.group("v").time("frame_age").record(count / 1000)


async def find(
    ends: Ends, tmp_path: Path, *, busy: float = 0.1, source: str = SOURCE, **options: object
) -> tuple[Finder, FindResult, str]:
    path = tmp_path / "crowd.toml"
    path.write_text(source)
    console = Console(file=io.StringIO(), width=120, markup=False, highlight=False)
    wanted = FindOptions(raised="viewers", **options)  # type: ignore[arg-type] # of the test
    made = open_finder(ScenarioChoice(path=path), wanted, console)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finder, "Coordinator", lambda scenario, *_: PlayedRun(ends, busy, scenario))
        await made.run()
    result = made.result()
    print_find(console, result, made.raised, made.runs)
    assert isinstance(console.file, io.StringIO)
    return made, result, console.file.getvalue()


def up_to(limit: int) -> Ends:
    return lambda count: "kept" if count <= limit else "failed"


async def test_it_finds_the_limit_repeats_it_and_says_so(
    autojump_clock: object, tmp_path: Path
) -> None:
    made, result, output = await find(up_to(100), tmp_path)
    assert (result.limit, result.above) == (100, 110)
    assert sum(run.level == 100 for run in made.runs) == 3
    assert result.spread is not None
    assert (result.spread.check, result.spread.measured) == (CHECK, ["100 ms"] * 3)
    assert "limit: 100 viewers; 110 is too much" in output
    assert f"kept in 3 of 3 runs, {CHECK}: 100 ms, 100 ms, 100 ms" in output
    assert f"110 failed {CHECK} (110 ms)" in output
    assert "what gave way first: not known" in output
    assert "run 1: 10 viewers: kept" in output
    assert exit_code(result, None) == exit_code(result, 100) == 0
    assert exit_code(result, 101) == 1


async def test_a_generator_that_gives_way_is_named_and_has_an_exit_code_of_its_own(
    autojump_clock: object, tmp_path: Path
) -> None:
    _, result, output = await find(up_to(100), tmp_path, busy=0.95)
    assert result.cause is not None
    assert result.cause.is_generator
    assert "limit: at least 100 viewers; the generator cannot make as much as 110" in output
    assert "what gave way first: the generator, not the relay" in output
    assert exit_code(result, None) == exit_code(result, 200) == 5
    assert exit_code(result, 50) == 0


async def test_where_nothing_fails_it_ends_at_the_most_that_it_may_try(
    autojump_clock: object, tmp_path: Path
) -> None:
    _, result, output = await find(lambda _: "kept", tmp_path, most=40.0)
    assert (result.limit, result.above, result.cause) == (40, None, None)
    assert "limit: at least 40 viewers, the most that was tried (--to)" in output
    assert exit_code(result, None) == 0


async def test_where_nothing_keeps_it_says_so(autojump_clock: object, tmp_path: Path) -> None:
    _, result, output = await find(lambda _: "failed", tmp_path)
    assert "no limit: not even 1 viewer kept the checks" in output
    assert exit_code(result, None) == 1


async def test_it_begins_no_run_that_would_end_after_its_time(
    autojump_clock: object, tmp_path: Path
) -> None:
    begun = trio.current_time()
    made, result, output = await find(up_to(100), tmp_path, max_seconds=50.0)
    assert trio.current_time() - begun <= 50
    assert len(made.runs) == 4
    assert result.stopped is not None
    assert "the search ended early: the 50 s of --max-time are over" in output
    assert result.limit == 80


async def test_its_steps_are_bounded(autojump_clock: object, tmp_path: Path) -> None:
    _, result, output = await find(up_to(100), tmp_path, steps=3)
    assert "it made all 3 runs of --steps" in output
    assert result.limit == 40


async def test_a_run_that_is_interrupted_ends_the_search_with_what_is_known(
    autojump_clock: object, tmp_path: Path
) -> None:
    made, result, output = await find(
        lambda count: "interrupted" if count > 30 else "kept", tmp_path
    )
    assert [run.level for run in made.runs] == [10, 20]
    assert (result.limit, result.interrupted) == (20, True)
    assert "interrupted: this is what is known so far" in output
    assert exit_code(result, None) == 130


async def test_a_first_run_that_cannot_be_made_ends_it(
    autojump_clock: object, tmp_path: Path
) -> None:
    _, result, output = await find(lambda _: "could not run", tmp_path)
    assert output.endswith("could not run: the relay did not start\n")
    assert exit_code(result, None) == 3


async def test_a_later_run_that_cannot_be_made_is_too_much_for_it(
    autojump_clock: object, tmp_path: Path
) -> None:
    _, result, output = await find(
        lambda count: "could not run" if count > 50 else "kept", tmp_path
    )
    assert result.limit is not None
    assert 40 <= result.limit <= 50
    assert "failed could not run: the relay did not start" in output


async def test_a_later_run_whose_load_never_began_says_nothing_of_it_and_ends_the_search(
    autojump_clock: object, tmp_path: Path
) -> None:
    made, result, output = await find(lambda count: "not begun" if count > 50 else "kept", tmp_path)
    assert [run.level for run in made.runs] == [10, 20, 40]
    assert (result.limit, result.above) == (40, None)
    assert "limit: at least 40 viewers, and more was not tried" in output
    assert "the search ended early: run 4 says nothing: the relay did not start" in output
    assert exit_code(result, 10) == 3


async def test_a_relay_that_a_load_has_ended_is_no_limit_for_the_runs_after_it(
    autojump_clock: object, tmp_path: Path
) -> None:
    gone = False

    def ends(count: int) -> End:
        nonlocal gone
        was_gone, gone = gone, gone or count > 50
        return "away" if was_gone else "failed" if gone else "kept"

    made, result, output = await find(ends, tmp_path)
    assert [run.level for run in made.runs] == [10, 20, 40, 80]
    assert (result.limit, result.above) == (40, 80)
    assert "limit: 40 viewers; 80 is too much" in output
    assert "run 5 says nothing: no client was admitted: cannot connect: refused" in output
    assert exit_code(result, None) == 3


async def test_a_target_that_is_away_from_the_start_ends_the_search_at_once(
    autojump_clock: object, tmp_path: Path
) -> None:
    made, result, output = await find(lambda _: "away", tmp_path)
    assert made.runs == []
    assert output.endswith("could not run: no client was admitted: cannot connect: refused\n")
    assert exit_code(result, None) == 3


async def test_a_database_that_answered_nobody_is_named_where_no_client_was_admitted(
    autojump_clock: object, tmp_path: Path
) -> None:
    made, _, output = await find(lambda _: "silent", tmp_path)
    assert made.runs == []
    assert "no client was admitted: cannot connect: refused; the relay got no answer" in output


async def test_what_is_repeated_is_the_same_load_however_counts_are_rounded(
    autojump_clock: object, tmp_path: Path
) -> None:
    made, result, output = await find(up_to(16), tmp_path, source=SEVERAL)
    assert (result.limit, result.above) == (16, 18)
    assert "kept in 3 of 3 runs" in output
    assert len(made.runs) < 10
    assert result.is_complete


async def test_the_load_that_is_asked_for_is_tried_if_it_is_in_the_last_gap(
    autojump_clock: object, tmp_path: Path
) -> None:
    made, result, _ = await find(up_to(107), tmp_path, at_least=105.0)
    assert (result.limit, result.above, exit_code(result, 105)) == (105, 110, 0)
    made, result, _ = await find(up_to(103), tmp_path, at_least=105.0)
    assert (result.limit, result.above, exit_code(result, 105)) == (100, 105, 1)
    assert sum(run.level == 105 for run in made.runs) == 1


async def test_where_it_ended_early_it_does_not_say_that_all_was_tried(
    autojump_clock: object, tmp_path: Path
) -> None:
    _, _, output = await find(lambda _: "kept", tmp_path, steps=2)
    assert "limit: at least 20 viewers, and more was not tried" in output
    _, _, output = await find(lambda _: "failed", tmp_path, steps=2)
    assert "no limit so far: 5 viewers did not keep the checks, and less was not tried" in output


async def test_a_check_that_asks_for_much_is_named_where_less_load_cannot_keep_it(
    autojump_clock: object, tmp_path: Path
) -> None:
    _, _, output = await find(lambda _: "failed", tmp_path, until=["received >= 1000", CHECK])
    assert "received >= 1000: less load has less of it. Begin with more (--from)" in output
    _, _, output = await find(lambda _: "failed", tmp_path)
    assert "less load has less of it" not in output


async def test_ctrl_c_between_two_runs_ends_it_with_what_is_known(
    autojump_clock: object, tmp_path: Path
) -> None:
    def ends(count: int) -> End:
        if count == 20:
            signal.raise_signal(signal.SIGINT)
        return "kept"

    made, result, output = await find(ends, tmp_path)
    assert [run.level for run in made.runs] == [10, 20]
    assert (result.limit, result.interrupted) == (20, True)
    assert "interrupted: this is what is known so far" in output
    assert exit_code(result, None) == 130


async def test_an_interruption_of_the_first_run_leaves_nothing_to_be_known(
    autojump_clock: object, tmp_path: Path
) -> None:
    _, result, output = await find(lambda _: "interrupted", tmp_path)
    assert output.endswith("interrupted before the first run had ended\n")
    assert exit_code(result, None) == 130


def test_on_github_no_text_of_a_run_is_a_command_and_a_limit_that_is_too_low_is_annotated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def played(scenario: Scenario, *_: object) -> PlayedRun:
        made = PlayedRun(up_to(12), 0.1, scenario)
        made.scenario = parse_scenario(SOURCE.replace('"10s"', '"1ms"'), "crowd.toml", tmp_path)
        made.scenario = attrs.evolve(made.scenario, viewers=scenario.viewers)
        return made

    path = tmp_path / "crowd.toml"
    path.write_text(SOURCE)
    monkeypatch.setattr(finder, "Coordinator", played)
    monkeypatch.setattr(finder, "REST", 0)
    options = FindOptions(raised="viewers", at_least=14, repeats=1)
    code = find_limit(ScenarioChoice(path=path), options, OutputFiles(), on_github=True)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert code == 1
    assert first.startswith("::stop-commands::")
    assert last.startswith(f"::error file={path},title=relay load::limit: 12 viewers; 13 is too")
    assert last.endswith("what gave way first: not known (--at-least 14)")


async def test_its_files_have_each_run_and_what_was_found(
    autojump_clock: object, tmp_path: Path
) -> None:
    made, result, _ = await find(up_to(30), tmp_path)
    with FindLines(tmp_path / "found.json") as lines:
        for run in made.runs:
            lines.run(run)
        lines.found(result)
    read = [json.loads(line) for line in (tmp_path / "found.json").read_text().splitlines()]
    assert [each["type"] for each in read] == [*["run"] * len(made.runs), "found"]
    assert read[0]["level"] == 10
    assert read[0]["generator_busy"] == pytest.approx(0.1)
    assert read[-1]["limit"] == result.limit
    assert msgspec.json.decode(msgspec.json.encode(result), type=FindResult) == result
    page = find_page(result, made.raised, made.runs)
    assert page.count("<svg") >= 2
    assert page.count("<circle") > 2
    assert "http" not in page
    for line in find_lines(result, made.raised, made.runs):
        assert line.strip().split(";")[0].split("<")[0] in page


async def test_what_is_wrong_is_said_before_the_first_run(tmp_path: Path) -> None:
    for options, words in (
        ({"until": ["frame_aeg.p99 < 1s"]}, "--until: there is no figure or group 'frame_aeg'; "),
        ({"start": 1000.0, "most": 20.0}, "--from: 1000 is not between 1 and 20 (--to)"),
        ({"at_least": 50.0, "most": 20.0}, "--at-least: 50 is more than the 20 that are tried"),
        ({"max_seconds": 5.0}, "--max-time: a run of crowd takes 10 s, longer than that"),
    ):
        with pytest.raises(ScenarioError) as raised:
            await find(up_to(1), tmp_path, **options)
        assert words in str(raised.value)


async def test_one_worker_is_not_enough_for_a_group_in_the_background(tmp_path: Path) -> None:
    path = tmp_path / "crowd.toml"
    path.write_text(f"workers = 2\n{SOURCE}background = true\n")
    console = Console(file=io.StringIO())
    open_finder(ScenarioChoice(path=path, workers=2), FindOptions(raised="viewers"), console)
    with pytest.raises(ScenarioError, match="--workers: must be 2 or more, since a group is in"):
        open_finder(ScenarioChoice(path=path, workers=1), FindOptions(raised="viewers"), console)


async def test_a_scenario_without_checks_needs_until(tmp_path: Path) -> None:
    path = tmp_path / "crowd.toml"
    path.write_text(SOURCE.replace("check =", "# check ="))
    choice, console = ScenarioChoice(path=path), Console(file=io.StringIO())
    with pytest.raises(ScenarioError, match="it has no check: say what must be kept with --until"):
        open_finder(choice, FindOptions(raised="viewers"), console)
    made = open_finder(choice, FindOptions(raised="viewers", until=[CHECK]), console)
    assert [check.line for check in made.scenario.checks] == [CHECK]
