"""What the workers of a machine have counted, together."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from prometheus_client import parser

from relay.concurrency.supervisor import Supervisor
from relay.protocol.reports import StatsReport
from relay.web.exposition import Exposition
from relay.web.machine import (
    TOTALS,
    Machine,
    MachineAnswers,
    ProcessTotals,
    WorkerAnswer,
    retire,
    total,
)
from tests.unit.memory import MemoryRelay
from tests.unit.web.test_reports import reports_of

pytestmark = pytest.mark.mock_clock


async def no_figures() -> bytes:
    return b'{"streams":[]}'


def machine_of(relay: MemoryRelay, answers: MachineAnswers | None = None) -> Machine:
    """A machine whose workers answer so; without answers there is only this one."""
    supervisor = Supervisor({"audit": relay.audit})

    async def ask(what: str, _content: bytes = b"", /) -> MachineAnswers:
        assert what == TOTALS
        own = WorkerAnswer(1, machine.totals())
        return MachineAnswers([own], {"ready": 1}) if answers is None else answers

    machine = Machine(
        reports_of(relay, supervisor=supervisor),
        Exposition(relay.metrics, relay.hub, supervisor, relay.audit, relay.unread),
        figures=no_figures,
        revoke=lambda _change: 0,
        end=lambda _number: False,
        ask=ask,
    )
    return machine


def samples(encoded: bytes) -> dict[tuple[str, ...], float]:
    """The values by name and labels."""
    return {
        (sample.name, *map("=".join, sorted(sample.labels.items()))): sample.value
        for family in parser.text_string_to_metric_families(encoded.decode())
        for sample in family.samples
    }


async def busy(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    for _ in range(3):
        await phone.send({"type": "video-frame", "data": "AAAA"})
        await viewer.receive_type("video-frame")


async def test_one_worker_alone_says_what_one_process_does(relay: MemoryRelay) -> None:
    await busy(relay)
    machine = machine_of(relay)
    found = samples((await machine.metrics(""))[0])
    exposition = Exposition(
        relay.metrics,
        relay.hub,
        Supervisor({"audit": relay.audit}),
        relay.audit,
        relay.unread,
    )
    wanted = samples(exposition.encode("")[0])
    shared = {name for name in wanted if not name[0].startswith(("process_", "relay_service_s"))}
    assert {name: found[name] for name in shared} == {name: wanted[name] for name in shared}
    assert found["relay_workers", "state=ready"] == 1
    assert found["relay_service_state", "service=audit", "state=starting", "worker=1"] == 1
    assert await machine.stats() == reports_of(relay).stats()


async def test_counts_of_workers_add_up(relay: MemoryRelay) -> None:
    await busy(relay)
    content = machine_of(relay).totals()
    answers = MachineAnswers([WorkerAnswer(1, content), WorkerAnswer(2, content)], {"ready": 2})
    machine = machine_of(relay, answers)
    found = samples((await machine.metrics(""))[0])
    assert found["relay_frames_accepted_total",] == 6
    assert found["relay_connections",] == 4
    assert found["relay_frame_age_seconds_bucket", "le=+Inf"] == 6
    assert {"worker=1", "worker=2"} <= {label for name in found for label in name[1:]}
    stats = await machine.stats()
    assert stats.frames_accepted == 6
    assert stats.streams.streaming == 2
    assert stats.frames_to_consumers.written == 6
    assert stats.profile == "default"


async def test_of_who_is_late_only_what_never_falls_counts(relay: MemoryRelay) -> None:
    await busy(relay)
    content = machine_of(relay).totals()
    answers = MachineAnswers([WorkerAnswer(1, content), WorkerAnswer(2, content, late=True)], {})
    stats = await machine_of(relay, answers).stats()
    assert stats.frames_accepted == 6
    assert stats.connections == 2
    assert stats.streams.streaming == 1


async def test_of_two_in_one_slot_only_the_first_says_what_is_about_its_process(
    relay: MemoryRelay,
) -> None:
    content = machine_of(relay).totals()
    answers = MachineAnswers([WorkerAnswer(1, content), WorkerAnswer(1, content)], {})
    found = samples((await machine_of(relay, answers).metrics(""))[0])
    assert found["relay_service_state", "service=audit", "state=starting", "worker=1"] == 1


def with_waiting(content: bytes, waiting: int) -> bytes:
    """The same totals with frames that wait for consumers."""
    totals = msgspec.msgpack.decode(content, type=ProcessTotals)
    frames = totals.stats.frames_to_consumers
    frames = msgspec.structs.replace(frames, accepted=frames.accepted + waiting, waiting=waiting)
    stats: StatsReport = msgspec.structs.replace(totals.stats, frames_to_consumers=frames)
    return msgspec.msgpack.encode(ProcessTotals(stats, totals.metrics))


async def test_what_a_worker_had_counted_stays_and_its_frames_that_waited_have_left(
    relay: MemoryRelay,
) -> None:
    await busy(relay)
    content = machine_of(relay).totals()
    ended = retire(retire(None, with_waiting(content, 2)), content)
    found = total(MachineAnswers([WorkerAnswer(1, content)], {}, ended))
    frames = found.stats.frames_to_consumers
    assert found.stats.frames_accepted == 9
    assert found.stats.connections == 2
    assert frames.accepted == frames.written + sum(frames.dropped.values()) + frames.waiting
    assert frames.dropped["left"] == 2
    dropped: dict[Any, float] = {
        sample.labels["reason"]: sample.value
        for metric in found.metrics
        if metric.name == "relay_frames_dropped"
        for sample in metric.samples
    }
    assert dropped["left"] == 2
