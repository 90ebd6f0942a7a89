"""Plots as SVG. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from statistics import fmean

from attrs import frozen

from relay.load.measures.stats import TimeDistribution
from relay.load.units import seconds_in_words

WIDTH, HEIGHT = 800, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 26, 24
COLOURS = ("#0969da", "#bf5a00", "#8250df", "#b3261e")
DASHES = ("", "6 3", "2 3", "9 3 2 3")
MAX_POINTS = 800
HISTOGRAM_BARS = 60


@frozen
class Series:
    name: str
    values: Sequence[float | None]
    """None where nothing was measured."""


def plot(
    at: Sequence[float], lines: Sequence[Series], unit: str, marks: Mapping[str, float]
) -> str:
    """Lines over time; `marks` are moments with a name."""
    top = nice(max((value or 0 for line in lines for value in line.values), default=0) or 1)
    end = max(at[-1], 1e-9)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(moment: float) -> float:
        return LEFT + width * moment / end

    def y(value: float) -> float:
        return TOP + height * (1 - value / top)

    parts = [*_frame(top, unit, y)]
    parts += [
        _text(x(end * part), HEIGHT - 6, f"{end * part:.0f} s", "middle") for part in (0, 0.5)
    ]
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 6, f"{end:.0f} s", "end"))
    for name, moment in marks.items():
        parts.append(f'<path class="grid" d="M{x(moment):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(_text(x(moment) + 3, TOP + 10, name, "start"))
    for number, line in enumerate(lines):
        path = _path([(x(at[i]), line.values[i]) for i in thinned(line.values)], y)
        style = f'stroke="{COLOURS[number]}" stroke-dasharray="{DASHES[number]}"'
        parts.append(
            f'<path fill="none" stroke-width="1.6" stroke-linecap="round" {style} d="{path}"/>'
        )
        legend = LEFT + 110 * number
        parts.append(f'<path stroke-width="2" {style} d="M{legend} 10h22"/>')
        parts.append(_text(legend + 28, 14, line.name, "start"))
    return _svg(parts, ", ".join(line.name for line in lines))


def histogram(encoded: str) -> str:
    """The number of frames by age, on a logarithmic axis."""
    times = TimeDistribution()
    times.add_encoded(encoded)
    buckets = times.buckets()
    if not buckets:
        return ""
    low, high = math.log10(buckets[0][0]), math.log10(buckets[-1][0])
    low, high = low - 0.05, max(high, low + 0.1) + 0.05
    bars = [0] * HISTOGRAM_BARS
    for seconds, number in buckets:
        part = (math.log10(seconds) - low) / (high - low)
        bars[min(HISTOGRAM_BARS - 1, int(part * HISTOGRAM_BARS))] += number
    top, height = nice(max(bars)), HEIGHT - TOP - BOTTOM
    width = (WIDTH - LEFT - RIGHT) / HISTOGRAM_BARS

    def y(value: float) -> float:
        return TOP + height * (1 - value / top)

    parts = [*_frame(top, "frames", y)]
    for number, count in enumerate(bars):
        if count:
            left = LEFT + number * width
            words = seconds_in_words(10 ** (low + (number + 0.5) / HISTOGRAM_BARS * (high - low)))
            parts.append(
                f'<rect fill="{COLOURS[0]}" x="{left:.1f}" y="{y(count):.1f}"'
                f' width="{width - 1:.1f}"'
                f' height="{TOP + height - y(count):.1f}"><title>{words}: {count}</title></rect>'
            )
    for part, anchor in (
        (0.0, "start"),
        (0.25, "middle"),
        (0.5, "middle"),
        (0.75, "middle"),
        (1.0, "end"),
    ):
        words = seconds_in_words(10 ** (low + part * (high - low)))
        parts.append(_text(LEFT + part * (WIDTH - LEFT - RIGHT), HEIGHT - 6, words, anchor))
    for name, percent in (("p50", 50), ("p99", 99)):
        at = (
            LEFT
            + (math.log10(times.percentile(percent)) - low) / (high - low) * width * HISTOGRAM_BARS
        )
        parts.append(
            f'<path class="grid" stroke="currentColor" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        )
        parts.append(_text(at + 3, TOP + 8, name, "start"))
    return _svg(parts, "histogram of frame ages")


@frozen
class LoadPoint:
    """What a run with a load measured."""

    load: float
    value: float
    is_good: bool


def plot_by_load(
    points: Sequence[LoadPoint], unit: str, load_unit: str, limit: float | None
) -> str:
    """Values by load: a dot for each run that was good, and a cross for each other one."""
    top = nice(max(point.value for point in points) or 1)
    end = max(point.load for point in points) * 1.05
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(load: float) -> float:
        return LEFT + width * load / end

    def y(value: float) -> float:
        return TOP + height * (1 - value / top)

    parts = [*_frame(top, unit, y)]
    parts.append(_text(LEFT, HEIGHT - 6, "0", "middle"))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 6, f"{end:.3g} {load_unit}", "end"))
    if limit is not None:
        parts.append(f'<path class="grid" d="M{x(limit):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(_text(x(limit), HEIGHT - 6, f"limit {limit:g}", "middle"))
    means = {
        load: fmean(each.value for each in points if each.load == load)
        for load in sorted({each.load for each in points})
    }
    path = _path([(x(load), value) for load, value in means.items()], y)
    parts.append(f'<path fill="none" stroke-width="1.2" stroke="{COLOURS[0]}" d="{path}"/>')
    parts += [_load_mark(x(each.load), y(each.value), each) for each in points]
    kept, failed = LoadPoint(0, 0, is_good=True), LoadPoint(0, 0, is_good=False)
    for left, example, words in ((LEFT + 6, kept, "kept"), (LEFT + 76, failed, "failed")):
        parts += [_load_mark(left, 10, example), _text(left + 10, 14, words, "start")]
    return _svg(parts, f"{unit} by {load_unit}")


def _load_mark(x: float, y: float, point: LoadPoint) -> str:
    title = f"<title>{point.load:g}: {point.value:.3g}</title>"
    if point.is_good:
        return f'<circle fill="{COLOURS[0]}" cx="{x:.1f}" cy="{y:.1f}" r="4">{title}</circle>'
    cross = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
    return f'<path fill="none" stroke-width="2" stroke="{COLOURS[3]}" d="{cross}">{title}</path>'


def thinned(values: Sequence[float | None]) -> Iterator[int]:
    """Choose the values to draw if there are too many.

    Of adjacent values the lowest and the highest are chosen, so that no peak is left out.
    """
    step = math.ceil(2 * len(values) / MAX_POINTS)
    if step <= 2:
        yield from range(len(values))
        return
    for start in range(0, len(values), step):
        part = range(start, min(start + step, len(values)))
        measured = sorted((value, i) for i in part if (value := values[i]) is not None)
        yield from sorted({measured[0][1], measured[-1][1]}) if measured else (start,)


def nice(value: float) -> float:
    """The next larger round number, for an axis."""
    power: float = 10 ** math.floor(math.log10(value))
    return next((step * power for step in (1, 2, 2.5, 5) if step * power >= value), 10 * power)


def _frame(top: float, unit: str, y: object) -> Iterator[str]:
    assert callable(y)
    for part in (0, 0.5, 1):
        level = y(top * part)
        yield f'<path class="grid" d="M{LEFT} {level:.1f}H{WIDTH - RIGHT}"/>'
        words = f"{top * part:g}"
        yield _text(LEFT - 6, level + 4, words, "end")
    yield _text(WIDTH - RIGHT, 14, unit, "end")


def _path(points: Sequence[tuple[float, float | None]], y: object) -> str:
    assert callable(y)
    words, pen = [], "M"  # h0: a value between two gaps is a dot
    for x, value in points:
        if value is None:
            pen = "M"
            continue
        words.append(f"{pen}{x:.1f} {y(value):.1f}" + ("h0" if pen == "M" else ""))
        pen = "L"
    return "".join(words)


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(parts: Sequence[str], about: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(about)}">'
        f"{''.join(parts)}</svg>"
    )
