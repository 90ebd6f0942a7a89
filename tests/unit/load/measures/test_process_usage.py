"""What processes and machines use, for those who ask which of them is full."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest
import trio
from attrs import define

from relay.load.actors.network.endpoint import Endpoint
from relay.load.measures import process_usage
from relay.load.measures.process_usage import (
    CoreTime,
    ProcessUsage,
    read_core_time,
    read_process_usage,
)
from relay.load.measures.results import second_of
from relay.load.run.coordinator import Coordinator, RunOptions
from relay.load.run.targets.target import Target
from relay.load.run.targets.target_reports import MetricsReading, TargetReports, read_metrics
from relay.load.run.targets.targets import Targets
from relay.load.scenario.parsing import parse_scenario
from relay.outgoing.http_client import HttpClient
from relay.process import cpu_wait
from relay.process.cpu_wait import read_cpu_wait

WORKERS = """\
process_cpu_seconds_total{{worker="0"}} {0}
process_cpu_seconds_total{{worker="1"}} {1}
process_cpu_wait_seconds_total{{worker="0"}} {4}
process_cpu_wait_seconds_total{{worker="1"}} 7.0
process_resident_memory_bytes{{worker="0"}} 1e+07
relay_verification_seconds_bucket{{le="0.1",worker="0"}} 5.0
relay_verification_seconds_sum{{worker="0"}} {2}
relay_verification_seconds_count{{worker="0"}} {3}
relay_verification_seconds_sum{{worker="1"}} 0.0
relay_verification_seconds_count{{worker="1"}} 0.0
"""


def usage(first: float, second: float, waited: float = 0) -> ProcessUsage:
    found = read_metrics(WORKERS.format(first, second, 0, 0, waited)).usage
    assert found is not None
    return found


def test_the_busiest_of_several_processes_is_found_beside_the_sum() -> None:
    second = second_of(
        3.0,
        recent={},
        usage={"": usage(11.8, 20.2)},
        before={"": usage(10.0, 20.0)},
        last_at=1.0,
        machine=0.6,
    )
    assert second.cpu == pytest.approx(1.0)
    assert second.busiest == pytest.approx(0.9)
    assert second.machine == 0.6


def test_a_process_that_is_new_has_used_nothing_yet() -> None:
    before = ProcessUsage(1.0, 1, {"a": 1.0})
    after = ProcessUsage(9.0, 1, {"a": 1.5, "b": 7.5})
    share = after.busiest_since(before, 1.0)
    assert share is not None
    assert share.used == 0.5
    alone = ProcessUsage(3.0, 1).busiest_since(ProcessUsage(1.0, 1), 1.0)
    assert alone is not None
    assert (alone.used, alone.waited) == (2.0, None)


def test_of_several_processes_the_one_that_wanted_the_most_is_found() -> None:
    """It may have used less than another, if others had its core."""
    second = second_of(
        2.0,
        recent={},
        usage={"": usage(1.2, 1.4, waited=0.7)},
        before={"": usage(1.0, 1.0)},
        last_at=1.0,
    )
    assert second.busiest == pytest.approx(0.2)
    assert second.waited == pytest.approx(0.7)


def test_of_a_process_of_this_machine_it_is_known_how_long_it_waited_if_the_system_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = read_process_usage(os.getpid())
    assert found is not None
    known = read_cpu_wait()
    assert set(found.waited) == (set() if known is None else {""})
    assert known is None or found.waited[""] <= known + 1
    for text in ("", "0 0 0\n", "12\n", "many few\n", None):
        file = tmp_path / "schedstat"
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        monkeypatch.setattr(cpu_wait, "Path", lambda _name: file)  # noqa: B023 (called at once)
        assert read_cpu_wait() is None
    found = read_process_usage(os.getpid())
    assert found is not None
    assert found.waited == {}


def test_what_was_read_at_times_of_its_own_is_a_part_of_the_time_between_these() -> None:
    """A relay that is slow to answer is read less often than each second, and no busier for it."""
    first, second = (MetricsReading(usage=usage(cpu, 0.0)) for cpu in (1.0, 1.9))
    before, after = first.at(10.0).usage, second.at(11.5).usage
    assert before is not None
    assert after is not None
    share = after.busiest_since(before, 1.0)
    assert share is not None
    assert share.used == pytest.approx(0.6)
    assert before.busiest_since(before, 1.0) is None  # nothing new in this second
    for used, busiest in ((after, pytest.approx(0.6)), (before, None)):
        made = second_of(2.0, recent={}, usage={"": used}, before={"": before}, last_at=1.0)
        assert made.busiest == busiest


def test_the_time_to_verify_a_token_is_the_mean_since_the_first_reading() -> None:
    first, last = (read_metrics(WORKERS.format(1, 1, *each, 0)) for each in ((1.0, 10), (3.0, 30)))
    assert last.verification_since(first) == pytest.approx(0.1)
    assert first.verification_since(first) is None
    assert MetricsReading().verification_since(MetricsReading()) is None


@define(eq=False)
class SpokenMetrics:
    """An HTTP client that gets these metrics."""

    verified: int
    seconds: float
    begun: int

    async def get(self, _url: str, *, max_bytes: int) -> bytes:
        assert max_bytes > 0
        await trio.lowlevel.checkpoint()
        return (
            f"relay_verification_seconds_sum {self.seconds}\n"
            f"relay_verification_seconds_count {self.verified}\n"
            f"relay_verifications_total {self.begun}\n"
        ).encode()


async def test_what_a_relay_had_counted_before_the_first_client_is_no_part_of_the_run() -> None:
    """Most clients authenticate in the first moment: what is read later begins too late."""
    scenario = parse_scenario("[target]\nurl = 'ws://a'\n[phones.p]", "mine.toml", Path())
    coordinator = Coordinator(scenario, RunOptions(), "", "mine.toml")
    said = SpokenMetrics(verified=1000, seconds=1.0, begun=1003)
    reports = TargetReports("ws://a", "", cast(HttpClient, said))
    targets = Targets({"": Target("", "ws://a", reports)})
    await coordinator._prepare(targets, Endpoint("ws://a", ("t",)))
    said.verified, said.seconds, said.begun = 1010, 6.0, 1043
    await targets.read_once()
    assert targets.verification() == pytest.approx(0.5)
    assert targets.unverified() == 0.75


def test_cores_are_busy_for_a_part_of_the_time() -> None:
    assert CoreTime(30, 100).part_since(CoreTime(10, 60)) == 0.5
    assert CoreTime(30, 100).part_since(CoreTime(30, 100)) is None
    found = read_core_time()
    assert found is None or 0 < found.busy < found.total


def test_where_the_system_does_not_say_how_busy_its_cores_are_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(process_usage, "Path", lambda _name: tmp_path / "no such file")
    assert read_core_time() is None
