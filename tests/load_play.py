"""A load test within the test's own process, as far as its book."""

from __future__ import annotations

from pathlib import Path

import trio

from relay.load.engine import Parts, Share, play, prepare
from relay.load.figures import Book, Wire
from relay.load.scenario import parse_scenario
from relay.load.schedule import Timeline
from relay.load.settle import settle
from relay.load.stage import Address, Raised, Sent, Stage, Window


async def play_toml(source: str, url: str, *, settled: bool = True) -> Book:
    """Play a scenario against what is at `url`; the book as it is at the end."""
    scenario = parse_scenario(source, "test.toml", Path())
    wires = {
        name: Wire(group.network.bandwidth, group.network.delay)
        for name, group in scenario.groups.items()
    }
    book = Book(wires)
    windows: list[Window] = []
    sent: list[Sent] = []
    raised: list[Raised] = []

    async def keep(parts: Parts) -> None:
        for name, part in parts.groups.items():
            book.group(name).add_part(part)
        windows.extend(parts.windows)
        sent.extend(parts.sent)
        raised.extend(parts.raised)

    stage = Stage(Timeline(scenario), Address(url, ("a-token",)), "abcd1234")
    actors = await prepare(stage, Share())
    stage.epoch = trio.current_time()
    await play(stage, Share(), actors, keep)
    if settled:
        settle(book, windows, sent, raised, end=scenario.length, grace=scenario.grace)
    return book
