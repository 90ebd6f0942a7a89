"""What layer_links.py has seen, as figures and as tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Literal, get_args

import msgspec
from attrs import frozen
from rich.console import Console
from rich.table import Table

Source = Literal["layers", "renditions", "original"]
"""Where smaller pictures come from, all of them JPEG: the phone, the relay, or nowhere."""
SOURCES: tuple[Source, ...] = get_args(Source)
Codec = Literal["H.264", "VP9", "VP8"]
"""In which the page sends layers, by its own names."""
CODECS: tuple[Codec, ...] = get_args(Codec)

AIMS = {
    (1.0, "layers"): "≥ 12/s, ≤ 110 ms, SSIM ≥ .65",
    (1.0, "renditions"): "≥ 11/s, ≤ 140 ms, SSIM ≥ .64",
    (0.3, "layers"): "≥ 4/s, ≤ 350 ms",
    (0.3, "renditions"): "≥ 4/s, ≤ 350 ms",
    (20.0, "layers"): "≥ 24/s, SSIM within .02",
    (20.0, "renditions"): "≥ 24/s, SSIM within .04",
    (1.0, "codec"): "≥ 24/s, ≤ 150 ms, SSIM ≥ .80",
    (0.3, "codec"): "≥ 15/s, ≤ 350 ms",
}
"""By Mbit/s. Those of the SSIM are of another film; `within` means: of `original` beside it."""
MIN_PAGE_RATE = 24.0
"""Pictures a second that the page has to send for a row to count."""
SMALLER_PICTURES = {"layers": "the phone's", "renditions": "the relay's", "original": "none"}
MAX_SWITCHES = 4
"""That are aimed at, on a link whose rate never changes, in 300 s."""
FRESH_SECONDS = 0.5
MAX_COST = 0.08
"""The part of a core that the renditions of one stream are to take at most."""


@frozen
class PictureLink:
    """The link of a viewer."""

    mbits: tuple[float, ...]
    """Its rate, or that of each third of the time, in Mbit/s."""
    deep: bool
    """Whether a deep queue is in front of it."""

    @property
    def name(self) -> str:
        rates = ", ".join(f"{mbit:g}" for mbit in self.mbits)
        return f"{rates} Mbit/s, {'deep' if self.deep else 'direct'}"


@frozen
class Seen:
    """A picture that came to a viewer."""

    at: float
    """By Trio's clock."""
    number: int
    age: float
    """Seconds since it was taken."""
    layer: str
    size: int
    """Bytes of the message."""


class LayerPart(msgspec.Struct):
    """Figures of the whole time, or of a third of it."""

    pictures_per_second: float
    age_p50_ms: float | None
    """None where no picture came."""
    age_p99_ms: float | None


class Page(msgspec.Struct):
    """What the page made of its camera beside the measurement, on the same machine."""

    pictures_per_second: float
    """That came over a perfect link."""
    different_per_second: float
    """Of these, without those that show the same picture of the camera as the one before."""
    busy: float
    """The part of the machine's time that was used."""
    own: float
    """The part that the measurement used itself, with Chromium."""

    @property
    def is_fast(self) -> bool:
        return self.pictures_per_second >= MIN_PAGE_RATE


class LayerRow(msgspec.Struct):
    """One link."""

    source: Source | Codec
    link: str
    mbits: Sequence[float]
    whole: LayerPart
    thirds: Sequence[LayerPart]
    kbits_per_second: float
    fresh_after: float | None
    """Seconds from subscribing until a picture came that was no older than `FRESH_SECONDS`."""
    ssim: float | None
    """None where it was not reckoned."""
    switches: int
    """How often a picture came in another layer than the one before."""
    shares: dict[str, float]
    """The part of the pictures that came in each layer."""
    ended: str | None = None
    """What went wrong."""
    page: Page | None = None
    """Where the page sent the pictures."""


class Spent(msgspec.Struct):
    """Cores that were in use, and pictures a second of which the relay made smaller ones."""

    relay: float
    worker: float
    made: float


class Cost(msgspec.Struct):
    """What renditions cost."""

    without: Spent
    with_slow_viewer: Spent
    afterwards: Spent

    @property
    def cores(self) -> float:
        """What a stream takes with a slow viewer more than without."""
        before, after = self.without, self.with_slow_viewer
        return after.relay + after.worker - before.relay - before.worker


def row_of(
    source: Source | Codec,
    link: PictureLink,
    seen: Sequence[Seen],
    *,
    subscribed: float,
    started: float,
    seconds: float,
    ssim: float | None,
    ended: str | None,
) -> LayerRow:
    """The figures of what came from `started` on, for so many seconds."""
    counted = [each for each in seen if started <= each.at < started + seconds]
    third = seconds / 3
    thirds = [
        _part(counted, started + third * number, started + third * (number + 1))
        for number in range(3)
    ]
    layers = [each.layer for each in counted]
    fresh = (each.at - subscribed for each in seen if each.age <= FRESH_SECONDS)
    return LayerRow(
        source,
        link.name,
        link.mbits,
        _part(counted, started, started + seconds),
        thirds,
        kbits_per_second=sum(each.size for each in counted) * 8 / 1000 / seconds,
        fresh_after=next(fresh, None),
        ssim=ssim,
        switches=sum(before != after for before, after in pairwise(layers)),
        shares={each: layers.count(each) / len(layers) for each in sorted(set(layers))},
        ended=ended,
    )


def _part(seen: Sequence[Seen], start: float, end: float) -> LayerPart:
    ages = sorted(each.age * 1000 for each in seen if start <= each.at < end)
    rate = len(ages) / (end - start)
    if not ages:
        return LayerPart(rate, None, None)
    return LayerPart(rate, median(ages), ages[min(len(ages) - 1, int(0.99 * len(ages)))])


def show_matrix(rows: Sequence[LayerRow], seconds: float) -> None:
    """A table with the sources of a link one below the other."""
    table = _table(f"a film over links, {seconds:g} s (in brackets: of each third)")
    table.add_column("SSIM", justify="right")
    table.add_column("aim", no_wrap=True)
    links = list(dict.fromkeys(row.link for row in rows))
    for row in sorted(rows, key=lambda row: links.index(row.link)):
        ssim = "" if row.ssim is None else f"{row.ssim:.3f}"
        table.add_row(*_cells(row), ssim, _aim_of(row))
        _add_ending(table, row)
    _print(table)
    for row in rows:
        if row.page is not None:
            print(f"{row.source}, {row.link}: {_describe(row.page)}")


def _aim_of(row: LayerRow) -> str:
    if len(row.mbits) > 1:
        return ""
    return AIMS.get((row.mbits[0], "codec" if row.source in CODECS else row.source), "")


def _describe(page: Page) -> str:
    slow = "" if page.is_fast else f"not to be counted, below {MIN_PAGE_RATE:g}/s: "
    return (
        f"{slow}the page sent {page.pictures_per_second:.1f}/s, {page.different_per_second:.1f} of"
        f" them different; the machine was {page.busy:.0%} busy, {page.own:.0%} with this"
    )


def show_constant(rows: Sequence[LayerRow], seconds: float) -> None:
    aim = f"at most {MAX_SWITCHES * seconds / 300:.2g} changes of layer are aimed at"
    table = _table(f"links whose rate never changes, {seconds:g} s: {aim}")
    for row in rows:
        table.add_row(*_cells(row))
        _add_ending(table, row)
    _print(table)


def show_cost(cost: Cost) -> None:
    table = Table(title="the CPU of renditions, % of a core", title_justify="left")
    for heading in ("", "relay", "worker", "pictures made a second"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, spent in (
        ("a fast viewer", cost.without),
        ("and a slow one", cost.with_slow_viewer),
        ("the slow one left", cost.afterwards),
    ):
        figures = f"{spent.relay:.1%}", f"{spent.worker:.1%}", f"{spent.made:.1f}"
        table.add_row(name, *figures)
    table.add_row("a slow one takes", f"{cost.cores:.1%}", "", f"aim: ≤ {MAX_COST:.0%}")
    _print(table)


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("link", no_wrap=True)
    table.add_column("smaller pictures", no_wrap=True)
    for heading in ("pictures/s", "age p50 ms", "p99", "kbit/s", "fresh after", "switches"):
        table.add_column(heading, justify="right")
    table.add_column("layers")
    return table


def _cells(row: LayerRow) -> list[str]:
    whole = row.whole
    rate, age = f"{whole.pictures_per_second:.1f}", _ms(whole.age_p50_ms)
    if len(row.mbits) > 1:
        rate += f" ({', '.join(f'{each.pictures_per_second:.1f}' for each in row.thirds)})"
        age += f" ({', '.join(_ms(each.age_p50_ms) for each in row.thirds)})"
    shares = ", ".join(f"{layer} {share:.0%}" for layer, share in row.shares.items())
    return [
        row.link,
        SMALLER_PICTURES.get(row.source, f"the page's, {row.source}"),
        rate,
        age,
        _ms(whole.age_p99_ms),
        f"{row.kbits_per_second:,.0f}",
        "never" if row.fresh_after is None else f"{row.fresh_after:.1f} s",
        str(row.switches),
        shares,
    ]


def _add_ending(table: Table, row: LayerRow) -> None:
    if row.ended is not None:
        table.add_row("", "", f"went wrong: {row.ended}")


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 190).print(table)


def _ms(milliseconds: float | None) -> str:
    return "none" if milliseconds is None else f"{milliseconds:,.0f}"
