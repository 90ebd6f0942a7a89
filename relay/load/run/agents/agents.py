"""Opens agents for a coordinator, and collects what they are sent in place of files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import trio
from attrs import field, frozen

from relay.errors import RelayError
from relay.load.actors.frames.payloads import read_video
from relay.load.actors.sent_files import SentFiles
from relay.load.measures.stats import plain
from relay.load.run.agents.clocks import ClockFilter
from relay.load.run.agents.handshake import AgentAddress, AgentRefused, dial_agent
from relay.load.run.agents.permit import MAX_PROCESSES
from relay.load.run.generator import Generator
from relay.load.run.wire import BadMessage, Greeting, MessagePipe
from relay.load.scenario.scenario import Scenario
from relay.load.scenario.schedule import Timeline
from relay.transport.pinned_key import PinnedKey

GREETING_TIMEOUT = 10.0
MAX_SENT_BYTES = 48 << 20
"""Of files of a scenario; a message is a little longer."""


class UnsendableFile(RelayError):
    """A file of a scenario cannot be sent to agents."""


@frozen
class AgentOptions:
    """The agents of a run, and the key that shows them who their coordinator is."""

    addresses: tuple[AgentAddress, ...]
    key: PinnedKey = field(repr=False)


@asynccontextmanager
async def open_agent(address: AgentAddress, key: PinnedKey) -> AsyncIterator[Generator]:
    """Connect to an agent; it ends what it does when the block ends. `AgentRefused`."""
    stream = await dial_agent(address, key)
    try:
        pipe = MessagePipe(stream, stream)
        greeting = await _greeting(address.name, pipe)
        yield Generator(
            address.name,
            pipe,
            processes=greeting.processes,
            machine=plain(greeting.machine),
            clock=ClockFilter(),
        )
    finally:
        await trio.aclose_forcefully(stream)


async def _greeting(name: str, pipe: MessagePipe) -> Greeting:
    try:
        with trio.fail_after(GREETING_TIMEOUT):
            greeting = await pipe.statement(max_bytes=1 << 16)
    except (trio.TooSlowError, BadMessage) as problem:
        raise AgentRefused(f"the agent {name} does not greet: {problem}") from None
    if not isinstance(greeting, Greeting):
        raise AgentRefused(f"the agent {name} does not know this coordinator")
    if greeting.refusal is not None:
        raise AgentRefused(f"the agent {name} takes no run: {plain(greeting.refusal)}")
    if greeting.version != version("relay"):
        raise AgentRefused(
            f"the agent {name} has relay {plain(greeting.version)}, this is {version('relay')}:"
            " install the same relay on all machines"
        )
    if not 1 <= greeting.processes <= MAX_PROCESSES:
        raise AgentRefused(f"the agent {name} has {greeting.processes} processes")
    return greeting


async def read_files(scenario: Scenario) -> SentFiles:
    """Read all files that the actors of a scenario need; `RelayError`."""
    return await trio.to_thread.run_sync(_read_files, scenario, abandon_on_cancel=True)


def _read_files(scenario: Scenario) -> SentFiles:
    sources = [group.frames for group in scenario.phones.values()]
    recordings = {each.recording for each in sources if each.recording is not None}
    videos = {each.video for each in sources if each.video is not None}
    timeline = Timeline(scenario)
    choices = [choice for name in scenario.groups for choice in timeline.links(name)]
    links = {each.recording for each in choices if each.recording is not None}
    budget = _Budget()
    script = scenario.script
    return SentFiles(
        recordings={name: budget.read(scenario.path(name)) for name in sorted(recordings)},
        links={name: budget.read(scenario.path(name)) for name in sorted(links)},
        videos={name: budget.count(read_video(scenario.path(name))) for name in sorted(videos)},
        script=None if script is None else budget.read(scenario.path(script)),
    )


class _Budget:
    """Bytes that may still be read."""

    def __init__(self) -> None:
        self._rest = MAX_SENT_BYTES

    def read(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                content = file.read(self._rest + 1)
        except OSError as error:
            raise UnsendableFile(f"cannot read {path}: {error.strerror}") from None
        self._spend([content])
        return content

    def count(self, pictures: list[bytes]) -> list[bytes]:
        self._spend(pictures)
        return pictures

    def _spend(self, parts: Iterable[bytes]) -> None:
        self._rest -= sum(map(len, parts))
        if self._rest < 0:
            raise UnsendableFile(
                f"agents are sent {MAX_SENT_BYTES >> 20} MiB of recordings, videos and scripts at"
                " most: use shorter ones"
            )
