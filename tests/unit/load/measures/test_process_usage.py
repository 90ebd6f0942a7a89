"""What processes and machines use, for those who ask which of them is full."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.load.measures import process_usage
from relay.load.measures.process_usage import CoreTime, ProcessUsage, read_core_time
from relay.load.measures.results import second_of
from relay.load.run.targets.target_reports import MetricsReading, read_metrics

WORKERS = """\
process_cpu_seconds_total{{worker="0"}} {0}
process_cpu_seconds_total{{worker="1"}} {1}
process_resident_memory_bytes{{worker="0"}} 1e+07
relay_verification_seconds_bucket{{le="0.1",worker="0"}} 5.0
relay_verification_seconds_sum{{worker="0"}} {2}
relay_verification_seconds_count{{worker="0"}} {3}
relay_verification_seconds_sum{{worker="1"}} 0.0
relay_verification_seconds_count{{worker="1"}} 0.0
"""


def usage(first: float, second: float) -> ProcessUsage:
    found = read_metrics(WORKERS.format(first, second, 0, 0)).usage
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
    assert after.busiest_since(before, 1.0) == 0.5
    assert ProcessUsage(3.0, 1).busiest_since(ProcessUsage(1.0, 1), 1.0) == 2.0


def test_what_was_read_at_times_of_its_own_is_a_part_of_the_time_between_these() -> None:
    """A relay that is slow to answer is read less often than each second, and no busier for it."""
    first, second = (MetricsReading(usage=usage(cpu, 0.0)) for cpu in (1.0, 1.9))
    before, after = first.at(10.0).usage, second.at(11.5).usage
    assert before is not None
    assert after is not None
    assert after.busiest_since(before, 1.0) == pytest.approx(0.6)
    assert before.busiest_since(before, 1.0) is None  # nothing new in this second
    for used, busiest in ((after, pytest.approx(0.6)), (before, None)):
        made = second_of(2.0, recent={}, usage={"": used}, before={"": before}, last_at=1.0)
        assert made.busiest == busiest


def test_the_time_to_verify_a_token_is_the_mean_since_the_first_reading() -> None:
    first, last = (read_metrics(WORKERS.format(1, 1, *each)) for each in ((1.0, 10), (3.0, 30)))
    assert last.verification_since(first) == pytest.approx(0.1)
    assert first.verification_since(first) is None
    assert MetricsReading().verification_since(MetricsReading()) is None


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
