"""What participants of the demo count, and how it is shown."""

from __future__ import annotations

import io
import time
from itertools import count

import pytest
import trio
import trio.testing
from rich.console import Console

from relay.client import Alert, Frame, Status
from relay.demo.display import Display
from relay.demo.stats import ParticipantStats, Reading, Throughput


def frame(seq: int, received_at: int = 0) -> Frame:
    return Frame("demo", seq, 0, received_at, "")


async def test_missed_frames_are_the_gaps_in_seq_after_the_first_frame() -> None:
    figures = ParticipantStats("viewer")
    for seq in (40, 41, 45, 46, 50):
        figures.count_event(frame(seq))
    assert (figures.frames_in, figures.missed) == (5, 6)
    figures.count_event(frame(0))  # a new epoch
    figures.count_event(frame(2))
    assert figures.missed == 7


async def test_rates_count_from_the_first_frame(autojump_clock: trio.testing.MockClock) -> None:
    figures = ParticipantStats("viewer")
    figures.meter.received = 999
    for seq in range(51):
        figures.meter.received += 1000
        figures.count_event(frame(seq))
        assert figures.first
        rate = Throughput.between(figures.first, figures.read())
        await trio.sleep(0.04)
    assert rate.fps == pytest.approx(25)
    assert rate.megabits == pytest.approx(0.2)


async def test_alerts_are_counted_and_what_is_neither_is_not() -> None:
    figures = ParticipantStats("viewer")
    figures.count_event(Alert(1, "demo", "low", "", 0))
    figures.count_event(Status("demo", 1, "online", 0))
    assert (figures.alerts_in, figures.frames_in, figures.first) == (1, 0, None)


async def test_the_age_of_a_frame_is_the_time_since_the_relay_had_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 10_000 * 1_000_000)
    figures = ParticipantStats("viewer")
    assert figures.age(0.5) is None
    for seq in range(100):
        figures.count_event(frame(seq, received_at=10_000 - seq - 1))
    assert (figures.age(0.5), figures.age(0.99), figures.age(1)) == (50, 99, 100)


def test_rates_are_what_passed_between_two_readings() -> None:
    assert Throughput.between(Reading(1, 10, 1000), Reading(3, 60, 251_000)) == Throughput(25, 1)
    assert Throughput.between(Reading(1, 10, 1000), Reading(1, 10, 1000)) == Throughput(0, 0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def show(console: Console, seconds: float) -> Display:
    """A phone that has sent 25 frames a second over 1 Mbit/s, and a service."""
    start = trio.current_time()
    phone = ParticipantStats("phone")
    phone.first = phone.read()
    display = Display(console, "a title", [phone, ParticipantStats("service", alerts_out=3)])
    with trio.move_on_after(seconds + 0.01):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(display.run)
            for number in count():
                await trio.sleep_until(start + 0.02 + number * 0.04)
                phone.frames_out += 1
                phone.meter.sent += 5000
    return display


async def test_without_a_terminal_there_is_a_plain_line_every_two_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    output = io.StringIO()
    await show(Console(file=output), 5)
    first, second = output.getvalue().splitlines()
    assert first.startswith("  2 s  phone: 25.0 fps, 0 missed, 1.00 Mbit/s | service: 3 out")
    assert second.startswith("  4 s  phone: 25.0 fps, 0 missed, 1.00 Mbit/s")


async def test_the_summary_holds_the_whole_run_as_it_was_at_its_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    output = io.StringIO()
    display = await show(Console(file=output, width=100), 9)
    await trio.sleep(100)
    printed = len(output.getvalue())
    display.summarize()
    lines = [line.split() for line in output.getvalue()[printed:].splitlines()]
    assert ["a", "title", "9", "s"] in lines
    assert ["phone", "225", "0", "25.0", "1.00"] in lines
    assert ["service", "3"] in lines


async def test_on_a_terminal_a_table_is_drawn_over_and_over_and_fits_into_80_columns(
    autojump_clock: trio.testing.MockClock,
) -> None:
    output = Terminal()
    await show(Console(file=output, force_terminal=True, width=80), 5)
    screens = output.getvalue().split("a title")
    assert len(screens) > 10
    assert all("phone" in screen and "service" in screen for screen in screens[1:])
    assert " 25.0 " in screens[-1]
