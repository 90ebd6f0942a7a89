"""How much of a film viewers see over links of all speeds: with layers from the phone, with
renditions made by the relay, and with neither; for scripts/figures.py.

The pictures are those of film.py. All links of a kind are measured at the same time, viewers of one
stream. The viewers answer pings as browsers do, acknowledge nothing, and know nothing of layers.
"""

from __future__ import annotations

import math
import urllib.request
from collections.abc import Mapping, Sequence

import msgspec
import psutil
import trio
from attrs import define, field
from film import FPS, LAYERS, PICTURES, Film, Shown, decode, look_at, make_film, ssim
from layer_report import Cost, LayerRow, PictureLink, Seen, Source, Spent, row_of
from narrow_link import Direction, Link, serve_link
from rich.console import Console
from rich.progress import track
from target import Target, running_relay
from thin_links import (
    DEEP_QUEUE_BYTES,
    MEGABIT,
    ONE_WAY_SECONDS,
    PlainClient,
    Server,
    plain_client,
)

from relay.client.errors import Closed, DialFailed

SHORT_QUEUE_BYTES = 32 * 1024
MBITS = ((0.3,), (1.0,), (3.0,), (20.0,), (5.0, 0.5, 5.0))
LINKS = tuple(PictureLink(mbits, deep=deep) for deep in (False, True) for mbits in MBITS)
CONSTANT_LINKS = tuple(link for link in LINKS if not link.deep and len(link.mbits) == 1)
WARM_SECONDS = 6.0
"""From when the film begins until the measurement does: the beginning is reported apart."""
TOP = LAYERS[-1][0]
SLOW_VIEWER_MBIT = 1.0
"""The link of the viewer that needs renditions, where their cost is measured."""
LEAVE_SECONDS = 4.0
"""From when a viewer leaves until nothing is made for it any more: the relay lingers for 2 s."""
WORKER = "renditions/worker.py"
"""In the command line of the process that makes renditions."""
MAX_LATENESS = 0.02
"""Seconds by which this process may be late on a machine that is idle enough for good figures."""
KEPT_PICTURES = 12
"""That were decoded. Viewers of the same stream look at about the same ones."""

console = Console(stderr=True, highlight=False)


class ViewedFrame(msgspec.Struct):
    """What is read of a message to a viewer."""

    type: str
    seq: int = 0
    timestamp: float = 0.0
    layer: str | None = None
    data: bytes = b""


class ProducerStatus(msgspec.Struct):
    """What is read of a message to a phone."""

    type: str
    layers: list[str] | None = None
    consumers: int = 0


@define(eq=False)
class FilmPhone:
    """A phone that plays the film."""

    pictures: dict[str, list[bytes]]
    layers: Sequence[str]
    """Those that it has, the smallest first. It registers them if there is more than one."""
    took: dict[int, float] = field(factory=dict)
    """When each picture was taken, by Trio's clock."""
    _wanted: Sequence[str] = ()

    async def play(
        self,
        port: int,
        server: Server,
        stream: str,
        began: float,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Take picture n at `began` + n / `FPS`."""
        async with plain_client(port, server) as client, trio.open_nursery() as nursery:
            widths = {layer: width for layer, width, _ in LAYERS}
            several = len(self.layers) > 1
            known = [{"id": each, "width": widths[each]} for each in self.layers]
            told = {"layers": known} if several else {}
            self._wanted = () if several else self.layers
            await client.ask(type="register", streamId=stream, **told)
            nursery.start_soon(self._read, client)
            task_status.started()
            number = 0
            while True:
                number = max(number + 1, math.floor((trio.current_time() - began) * FPS))
                await trio.sleep_until(began + number / FPS)
                await self._send(client, number)

    async def _send(self, client: PlainClient, number: int) -> None:
        self.took[number] = trio.current_time()
        for layer in self.layers:
            if layer in self._wanted:
                message = {"type": "video-frame", "timestamp": number + 1}
                if len(self.layers) > 1:
                    message["layer"] = layer
                message["data"] = self.pictures[layer][number % PICTURES]
                await client.socket.send(msgspec.msgpack.encode(message))

    async def _read(self, client: PlainClient) -> None:
        def look(message: memoryview) -> None:
            told = msgspec.msgpack.decode(message, type=ProducerStatus)
            if told.type == "error":
                raise SystemExit(f"the relay refused a frame: {bytes(message[:300])!r}")
            if told.type == "status" and len(self.layers) > 1:
                self._wanted = told.layers or ()

        while True:
            await client.socket.read(look)


@define(eq=False)
class FilmViewer:
    """A viewer behind a link, and what it has got."""

    phone: FilmPhone
    keeps_renditions: bool = True
    seen: list[Seen] = field(factory=list)
    renditions: dict[tuple[int, str], bytes] = field(factory=dict)
    """The pictures that the relay made, by number and layer."""
    subscribed_at: float = 0.0
    """By Trio's clock."""
    ended: str | None = None
    _seq: int = 0

    async def watch(
        self,
        port: int,
        server: Server,
        stream: str,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        try:
            async with plain_client(port, server) as client:
                self.subscribed_at = trio.current_time()
                await client.ask(type="subscribe", streamId=stream, consumes=["video-frame"])
                task_status.started()
                while True:
                    await client.socket.read(self._look)
        except (Closed, DialFailed) as failure:
            self.ended = str(failure)

    def _look(self, message: memoryview) -> None:
        frame = msgspec.msgpack.decode(message, type=ViewedFrame)
        if frame.type != "video-frame":
            return
        if frame.seq <= self._seq:
            self.ended = f"frame {frame.seq} came after {self._seq}"
        self._seq = frame.seq
        now, number = trio.current_time(), int(frame.timestamp) - 1
        layer = TOP if frame.layer is None else frame.layer
        age = now - self.phone.took[number]
        self.seen.append(Seen(now, number, age, layer, len(message)))
        if self.keeps_renditions and layer not in self.phone.pictures:
            self.renditions[number, layer] = frame.data


@define(eq=False)
class Screening:
    """Viewers of one phone, behind links of their own, for a time."""

    server: Server
    film: Film
    source: Source
    links: Sequence[PictureLink]
    seconds: float
    keeps_renditions: bool = True
    stream: str = "film"
    viewers: dict[PictureLink, FilmViewer] = field(factory=dict)
    phone: FilmPhone = field(init=False)
    began: float = 0.0
    """When picture 0 was due; the measurement begins `WARM_SECONDS` later."""

    def __attrs_post_init__(self) -> None:
        all_layers = [layer for layer, _, _ in LAYERS]
        layers = all_layers if self.source == "layers" else [TOP]
        self.phone = FilmPhone(self.film.pictures, layers)

    @property
    def starts_at(self) -> float:
        return self.began + WARM_SECONDS

    async def run(self, target: Target) -> None:
        """Raises SystemExit if the relay has not accounted for all frames."""
        async with trio.open_nursery() as nursery:
            direct = await nursery.start(serve_link, Link(), self.server.connect)
            rates: dict[PictureLink, Direction] = {}
            self.began = trio.current_time() + 0.2
            await nursery.start(self.phone.play, direct, self.server, self.stream, self.began)
            for link in self.links:
                rates[link], port = await open_link(nursery, self.server, link)
                viewer = self.viewers[link] = FilmViewer(self.phone, self.keeps_renditions)
                await nursery.start(viewer.watch, port, self.server, self.stream)
            await trio.sleep_until(self.starts_at)
            await change_rates(rates, self.starts_at, self.seconds)
            await check_ledger(target)
            nursery.cancel_scope.cancel()

    def warn_if_late(self) -> None:
        """Say so if the machine was too busy to measure on."""
        due = ((number, self.began + number / FPS) for number in self.phone.took)
        late = sorted(self.phone.took[number] - when for number, when in due)
        p99 = late[int(0.99 * len(late))]
        missed = max(self.phone.took) - len(late)
        if p99 > MAX_LATENESS or missed:
            console.print(
                f"this machine is too busy for good figures: of {len(late) + missed} pictures"
                f" {missed} were not even taken, and the p99 of the others was taken"
                f" {p99 * 1000:.0f} ms late"
            )

    def rows(self, likeness: Likeness | None) -> list[LayerRow]:
        means = likeness.of(self) if likeness is not None else {}
        return [
            row_of(
                self.source,
                link,
                viewer.seen,
                subscribed=viewer.subscribed_at,
                started=self.starts_at,
                seconds=self.seconds,
                ssim=means.get(link),
                ended=viewer.ended,
            )
            for link, viewer in self.viewers.items()
        ]


async def open_link(
    nursery: trio.Nursery, server: Server, link: PictureLink
) -> tuple[Direction, int]:
    """Open a link to the server; returns its thin direction, and the port of its near end."""
    queue = DEEP_QUEUE_BYTES if link.deep else SHORT_QUEUE_BYTES
    thin = Direction(link.mbits[0] * MEGABIT, queue, ONE_WAY_SECONDS)
    wide = Direction(delay=ONE_WAY_SECONDS)
    port: int = await nursery.start(serve_link, Link(thin, wide), server.connect)
    return thin, port


async def change_rates(
    links: Mapping[PictureLink, Direction], began: float, seconds: float
) -> None:
    """Give each link the rates of its thirds of the time, which began then by Trio's clock."""
    for third in range(3):
        for link, direction in links.items():
            direction.rate = link.mbits[third % len(link.mbits)] * MEGABIT
        await trio.sleep_until(began + seconds * (third + 1) / 3)


async def check_ledger(target: Target) -> None:
    """Raises SystemExit if frames are unaccounted for."""
    totals = await trio.to_thread.run_sync(target.stats)
    frames = totals["frames_to_consumers"]
    known = frames["written"] + sum(frames["dropped"].values()) + frames["waiting"]
    if frames["accepted"] != known:
        raise SystemExit(f"the relay has lost count of frames: {frames}")


@define(eq=False)
class Likeness:
    """How like the picture of each instant is what was on the screens then; reckoned afterwards."""

    film: Film
    _known: dict[tuple[int, int, str], float] = field(factory=dict)
    """Of pictures of the film itself, by the instant, the picture and its layer."""
    _decoded: dict[tuple[int, str], Shown] = field(factory=dict)

    def of(self, screening: Screening) -> dict[PictureLink, float]:
        """The means over all instants, by link."""
        viewers = screening.viewers.values()
        screens = [on_screen(viewer.seen, screening) for viewer in viewers]
        sums = [0.0] * len(screens)
        self._decoded.clear()
        instants = list(zip(*screens, strict=True))
        words = f"{screening.source}: SSIM"
        for shown in track(instants, words, console=console, transient=True):
            number = shown[0][0]
            original: list[Shown] = []  # made only if it is needed
            for index, (viewer, (_, seen)) in enumerate(zip(viewers, shown, strict=True)):
                if seen is not None:
                    sums[index] += self._compare(number, seen, viewer, original)
        counted = max(1, len(instants))
        return {link: total / counted for link, total in zip(screening.viewers, sums, strict=True)}

    def _compare(self, number: int, seen: Seen, viewer: FilmViewer, original: list[Shown]) -> float:
        of_film = seen.layer in self.film.pictures
        key = number % PICTURES, seen.number % PICTURES, seen.layer
        if of_film and key in self._known:
            return self._known[key]
        if not original:
            original.append(look_at(self.film.scene.luma(number)))
        found = ssim(original[0], self._picture(seen, viewer))
        if of_film:
            self._known[key] = found
        return found

    def _picture(self, seen: Seen, viewer: FilmViewer) -> Shown:
        key = seen.number, seen.layer
        if key not in self._decoded:
            if seen.layer in self.film.pictures:
                jpeg = self.film.pictures[seen.layer][seen.number % PICTURES]
            else:
                jpeg = viewer.renditions[key]
            while len(self._decoded) >= KEPT_PICTURES:
                del self._decoded[next(iter(self._decoded))]
            self._decoded[key] = decode(jpeg)
        return self._decoded[key]


def on_screen(seen: Sequence[Seen], screening: Screening) -> list[tuple[int, Seen | None]]:
    """The picture that is taken at each instant, and the one that is shown then."""
    first = math.ceil(WARM_SECONDS * FPS)
    shown: list[tuple[int, Seen | None]] = []
    came = iter(seen)
    latest, coming = None, next(came, None)
    for number in range(first, first + math.floor(screening.seconds * FPS)):
        instant = screening.began + number / FPS
        while coming is not None and coming.at <= instant:
            latest, coming = coming, next(came, None)
        shown.append((number, latest))
    return shown


def prepare_film() -> Film:
    """Make the film, which takes some seconds."""
    numbers = range(PICTURES)
    return make_film(track(numbers, "the film", console=console, transient=True))


def flags_of(source: Source) -> Sequence[str]:
    return ["--renditions", "off"] if source == "original" else []


def measure_matrix(film: Film, sources: Sequence[Source], seconds: float) -> list[LayerRow]:
    """All links, with each source of smaller pictures."""
    likeness, rows = Likeness(film), []
    for source in sources:
        for deep in (False, True):
            links = [link for link in LINKS if link.deep is deep]
            words = "behind deep queues" if deep else "direct"
            console.print(f"{source}, {words}: {WARM_SECONDS + seconds:g} s")
            with running_relay(*flags_of(source)) as target:
                server = Server(target.port, target.token)
                screening = Screening(server, film, source, links, seconds)
                trio.run(screening.run, target)
            screening.warn_if_late()
            rows += screening.rows(likeness)
    return rows


def measure_constant(film: Film, seconds: float) -> list[LayerRow]:
    """Links whose rate never changes, for a long time: how often does a viewer's layer change?"""
    console.print(f"constant links: {WARM_SECONDS + seconds:g} s")
    sources: Sequence[Source] = ("layers", "renditions")
    with running_relay() as target:
        server = Server(target.port, target.token)
        screenings = [
            Screening(
                *(server, film, source, CONSTANT_LINKS, seconds),
                keeps_renditions=False,
                stream=source,
            )
            for source in sources
        ]

        async def run_all() -> None:
            async with trio.open_nursery() as nursery:
                for screening in screenings:
                    nursery.start_soon(screening.run, target)

        trio.run(run_all)
    screenings[0].warn_if_late()
    return [row for screening in screenings for row in screening.rows(None)]


def measure_cost(film: Film, seconds: float) -> Cost:
    """The CPU time of the relay and its worker, without a slow viewer, with one, and after it."""
    console.print(f"the CPU of renditions: {3 * (WARM_SECONDS + seconds):g} s")
    with running_relay() as target:
        return trio.run(_measure_cost, film, target, seconds)


async def _measure_cost(film: Film, target: Target, seconds: float) -> Cost:
    server = Server(target.port, target.token)
    phone = FilmPhone(film.pictures, [TOP])
    fast, slow = (FilmViewer(phone, keeps_renditions=False) for _ in range(2))
    parts = []
    async with trio.open_nursery() as nursery:
        direct = await nursery.start(serve_link, Link(), server.connect)
        await nursery.start(phone.play, direct, server, "film", trio.current_time())
        await nursery.start(fast.watch, direct, server, "film")
        await trio.sleep(WARM_SECONDS)
        parts.append(await _spend(target, seconds))
        async with trio.open_nursery() as visit:
            thin = Direction(SLOW_VIEWER_MBIT * MEGABIT, SHORT_QUEUE_BYTES, ONE_WAY_SECONDS)
            link = Link(thin, Direction(delay=ONE_WAY_SECONDS))
            port = await visit.start(serve_link, link, server.connect)
            await visit.start(slow.watch, port, server, "film")
            await trio.sleep(WARM_SECONDS)
            parts.append(await _spend(target, seconds))
            visit.cancel_scope.cancel()
        await trio.sleep(LEAVE_SECONDS)
        parts.append(await _spend(target, seconds))
        await check_ledger(target)
        nursery.cancel_scope.cancel()
    return Cost(*parts)


async def _spend(target: Target, seconds: float) -> Spent:
    """What is spent in that time."""
    before, started = _cpu_seconds(target), trio.current_time()
    made = await trio.to_thread.run_sync(_renditions_made, target)
    await trio.sleep(seconds)
    passed = trio.current_time() - started
    after = _cpu_seconds(target)
    made = await trio.to_thread.run_sync(_renditions_made, target) - made
    relay, worker = ((late - early) / passed for late, early in zip(after, before, strict=True))
    return Spent(relay, worker, made / passed)


def _cpu_seconds(target: Target) -> tuple[float, float]:
    """Of the relay so far, and of its worker, which outlives the last picture by a minute."""
    process = psutil.Process(target.pid)
    workers = [each for each in process.children() if WORKER in " ".join(each.cmdline())]
    relay, worker = (
        sum(times.user + times.system for times in (each.cpu_times() for each in group))
        for group in ([process], workers)
    )
    return float(relay), float(worker)


def _renditions_made(target: Target) -> float:
    with urllib.request.urlopen(f"http://{target.host}:{target.port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.startswith('relay_renditions_total{outcome="made"}')]
    return float(found[0].split()[-1]) if found else 0.0
