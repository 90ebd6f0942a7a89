"""How much of a film viewers see over links of all speeds, where the page broadcasts it in a video
codec; for scripts/figures.py.

The page is the real one, in Chromium, whose camera shows the film of numbered_film.py. The viewers
are as plain as those of layer_links.py, and write down what comes; codec_screen.py looks at it
afterwards. Beside them one with a perfect link watches the smallest layer: what comes there is what
the page sent, and tells when the camera showed which picture.

Chromium shares the machine with all the rest, so few links are measured at a time. How busy the
machine was, and what Chromium made of it, stands beside the figures.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import psutil
import trio
from attrs import define, field
from codec_screen import Arrival, Screen, read_clock
from film import Scene
from layer_links import LINKS, WARM_SECONDS, change_rates, check_ledger, console, open_link
from layer_report import CODECS, Codec, LayerRow, Page, PictureLink, row_of
from numbered_film import write_film
from playwright.sync_api import Browser, sync_playwright
from rich.progress import track
from target import Target, running_relay
from thin_links import Server, plain_client

from relay.client.errors import Closed, DialFailed

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
)
FRAME_RATE = "25"
SMALLEST = 320
"""Pixels: the width that the viewer with a perfect link asks for."""
PATIENCE_MS = 20_000
"""For the page."""


class CodedFrame(msgspec.Struct):
    """What is read of a message to a viewer."""

    type: str
    seq: int = 0
    timestamp: float = 0.0
    layer: str = ""
    keyframe: bool | None = None
    discardable: bool | None = None
    data: bytes = b""


@define(eq=False)
class FrameRecorder:
    """A viewer, and the frames that came to it."""

    arrivals: list[Arrival] = field(factory=list)
    subscribed_at: float = 0.0
    ended: str | None = None
    _seq: int = 0

    async def watch(
        self,
        port: int,
        server: Server,
        stream: str,
        *,
        max_width: int | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        terms = {} if max_width is None else {"maxWidth": max_width}
        try:
            async with plain_client(port, server) as client:
                self.subscribed_at = time.time()
                asked = {"streamId": stream, "consumes": ["video-frame"], **terms}
                await client.ask(type="subscribe", **asked)
                task_status.started()
                while True:
                    await client.socket.read(self._look)
        except (Closed, DialFailed) as failure:
            self.ended = str(failure)

    def _look(self, message: memoryview) -> None:
        frame = msgspec.msgpack.decode(message, type=CodedFrame)
        if frame.type != "video-frame":
            return
        if frame.seq <= self._seq:
            self.ended = f"frame {frame.seq} came after {self._seq}"
        self._seq = frame.seq
        taken_at = frame.timestamp / 1000
        self.arrivals.append(Arrival(time.time(), taken_at, frame.layer, len(message), frame.data))


@define(eq=False)
class Show:
    """The viewers of one broadcast, behind links of their own, for a time."""

    server: Server
    stream: str
    links: Sequence[PictureLink]
    seconds: float
    viewers: dict[PictureLink, FrameRecorder] = field(factory=dict)
    local: FrameRecorder = field(factory=FrameRecorder)
    """With a perfect link."""
    starts_at: float = 0.0
    busy: float = 0.0
    """The part of the machine's time that was used, from then on."""
    own: float = 0.0
    """The part of it that this measurement used: Chromium, relay, links and viewers."""

    async def run(self, target: Target) -> None:
        """Raises SystemExit if the relay has not accounted for all frames."""
        async with trio.open_nursery() as nursery:
            watch_smallest = partial(self.local.watch, max_width=SMALLEST)
            await nursery.start(watch_smallest, self.server.port, self.server, self.stream)
            rates = {}
            began = trio.current_time()
            for link in self.links:
                rates[link], port = await open_link(nursery, self.server, link)
                viewer = self.viewers[link] = FrameRecorder()
                await nursery.start(viewer.watch, port, self.server, self.stream)
            await trio.sleep_until(began + WARM_SECONDS)
            self.starts_at = time.time()
            psutil.cpu_percent()
            before = _cpu_seconds()
            await change_rates(rates, began + WARM_SECONDS, self.seconds)
            self.busy = psutil.cpu_percent() / 100
            self.own = (_cpu_seconds() - before) / self.seconds / (psutil.cpu_count() or 1)
            await check_ledger(target)
            nursery.cancel_scope.cancel()


def _cpu_seconds() -> float:
    """Of this process and all that it has started."""
    process, total = psutil.Process(), 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


@contextmanager
def run_chromium(film: Path) -> Iterator[Browser]:
    """A browser whose camera shows the film."""
    executable = shutil.which("chromium")
    if executable is None:
        raise SystemExit("codec needs Chromium on the PATH")
    with sync_playwright() as driver:
        flags = [*FLAGS, f"--use-file-for-fake-video-capture={film}"]
        browser = driver.chromium.launch(executable_path=executable, args=flags)
        yield browser
        browser.close()


@contextmanager
def broadcast(browser: Browser, target: Target, codec: Codec, stream: str) -> Iterator[list[str]]:
    """The page broadcasts to this stream; yields what it complains of, which is known at the end.

    Raises SystemExit if Chromium does not encode this.
    """
    complaints: list[str] = []
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.on(
        "console",
        lambda told: complaints.append(told.text) if told.type in {"warning", "error"} else None,
    )
    page.goto(f"http://{target.host}:{target.port}")
    page.get_by_label("Token", exact=True).fill(target.token)
    page.get_by_role("button", name="Connect").click()
    page.get_by_role("link", name="Broadcast", exact=True).click()
    page.get_by_label("Stream id").fill(stream)
    page.get_by_label("Frames per second").select_option(FRAME_RATE)
    encoding = page.get_by_label("Encoding")
    encoding.locator("option").nth(1).wait_for(state="attached")
    if codec not in encoding.locator("option").all_inner_texts():
        raise SystemExit(f"this Chromium does not encode {codec}")
    encoding.select_option(codec)
    page.get_by_role("button", name="Start broadcasting").click()
    page.get_by_text("Paused, because nobody is watching").wait_for()
    yield complaints
    page.wait_for_timeout(50)  # until now nobody has read what came from there
    context.close()


def measure_codecs(
    codecs: Sequence[Codec], seconds: float, *, links: Sequence[PictureLink] = LINKS, at_once: int
) -> list[LayerRow]:
    """All links with each codec, so many of them at the same time."""
    rows = []
    scene = Scene()
    with tempfile.TemporaryDirectory(prefix="relay-figures-") as folder:
        film = Path(folder, "film.y4m")
        write_film(film, scene)
        with run_chromium(film) as browser:
            for codec in codecs or CODECS:
                for start in range(0, len(links), at_once):
                    some = links[start : start + at_once]
                    rows += _measure(browser, scene, codec, some, seconds)
    return rows


def _measure(
    browser: Browser, scene: Scene, codec: Codec, links: Sequence[PictureLink], seconds: float
) -> list[LayerRow]:
    names = "; ".join(link.name for link in links)
    console.print(f"{codec}, {names}: {WARM_SECONDS + seconds:g} s")
    with running_relay() as target:
        show = Show(Server(target.port, target.token), "film", links, seconds)
        with broadcast(browser, target, codec, show.stream) as complaints:
            trio.run(show.run, target)
    for complaint in complaints:
        console.print(f"the page says: {complaint}")
    return look(show, scene, codec)


def look(show: Show, scene: Scene, codec: Codec) -> list[LayerRow]:
    """The figures of what came to the viewers."""
    started, ended = show.starts_at, show.starts_at + show.seconds
    clock = read_clock(codec, show.local.arrivals)
    page = _look_at_page(show, Screen(codec, scene, clock, ()))
    instants = clock.numbers(started, ended)
    rows = []
    for link, viewer in track(
        show.viewers.items(), f"{codec}: SSIM", console=console, transient=True
    ):
        screen = Screen(codec, scene, clock, instants)
        likeness = screen.watch(viewer.arrivals)
        if screen.unreadable:
            console.print(f"{link.name}: {screen.unreadable} frames without a whole picture")
        row = row_of(
            codec,
            link,
            screen.seen,
            subscribed=viewer.subscribed_at,
            started=started,
            seconds=show.seconds,
            ssim=likeness,
            ended=viewer.ended,
        )
        row.page = page
        rows.append(row)
    return rows


def _look_at_page(show: Show, screen: Screen) -> Page:
    """What the page sent, by what came over the perfect link."""
    started, ended = show.starts_at, show.starts_at + show.seconds
    screen.watch(show.local.arrivals)
    sent = [each for each in screen.seen if started <= each.at < ended]
    different = len({each.number for each in sent})
    return Page(len(sent) / show.seconds, different / show.seconds, show.busy, show.own)
