"""The HTML report of a run: one file with SVG plots, no scripts, no external resources."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from relay.load.measures.results import GroupResult, RunResult, Second
from relay.load.report.plots import COLOURS, Series, histogram, plot
from relay.load.report.words.comparison import CHANGE_COLUMNS, change_rows, notes
from relay.load.report.words.generator import (
    GENERATOR_COLUMNS,
    about_generator,
    about_machine,
    doubt,
    generator_rows,
)
from relay.load.report.words.layers import layers_in_words
from relay.load.report.words.missed import missed_lines
from relay.load.report.words.stages import stage_tables
from relay.load.units import MIB, seconds_in_words

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1f24; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem }
table { border-collapse: collapse; width: 100% } td, th { padding: .25rem .6rem; text-align: right;
  border-bottom: 1px solid #d8dee4; font-variant-numeric: tabular-nums }
td:first-child, th:first-child { text-align: left }
.kept { color: #116329 } .failed { color: #b3261e; font-weight: 600 }
svg { width: 100%; height: auto } svg text { font: 11px system-ui, sans-serif; fill: currentColor }
.grid { stroke: #d8dee4 } figure { margin: 0 } figcaption { color: #57606a }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117 }
  td, th { border-color: #30363d } .grid { stroke: #30363d } .kept { color: #56d364 }
  .failed { color: #ff7b72 } figcaption { color: #8b949e } }
"""


def page(result: RunResult, seconds: Sequence[Second]) -> str:
    """Make the whole page."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(result.started))
    verdict = {
        "kept": "All checks passed.",
        "failed": "A check failed.",
        "could not run": f"The scenario could not be run: {result.failure}",
        "interrupted": "The run was interrupted; these are the figures so far.",
    }[result.outcome]
    if result.aborted_by is not None:
        verdict += f" It ended early: {result.aborted_by}"
    kind = "kept" if result.outcome == "kept" else "failed"
    parts = [
        f"<h1>{escape(result.scenario)}</h1>",
        f'<p class="{kind}">{escape(verdict)}</p>',
        f"<p>{escape(when)}, {escape(result.about)}</p>",
        *_generator(result),
        _checks(result),
        *_comparison(result),
        *_plots(result, seconds),
        *_layers(result.groups),
        "<h2>Groups</h2>",
        _groups(result.groups),
        *_events(result),
        *_targets(result),
        *_stages(result),
        *_ledger(result),
        *_errors(result.groups),
    ]
    title = escape(f"{result.scenario}: {result.outcome}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _checks(result: RunResult) -> str:
    rows = [
        (
            escape(check.line),
            escape(check.measured),
            _verdict(kept=check.kept),
        )
        for check in result.checks
    ]
    return "<h2>Checks</h2>" + html_table(("check", "measured", ""), rows)


def _generator(result: RunResult) -> Iterable[str]:
    if (words := doubt(result)) is not None:
        yield f'<p class="failed">{escape(words)}</p>'
    if result.generator is not None:
        yield f"<p>{escape(about_generator(result.generator))}</p>"
    if (words := about_machine(result)) is not None:
        yield f"<p>{escape(words)}</p>"
    if result.generators:
        yield "<h2>Generators</h2>"
        rows = [tuple(map(escape, row)) for row in generator_rows(result.generators)]
        yield html_table(("", *GENERATOR_COLUMNS), rows)


def _comparison(result: RunResult) -> Iterable[str]:
    if result.comparison is not None:
        yield f"<h2>Compared with {escape(result.comparison.baseline)}</h2>"
        rows = [tuple(map(escape, row)) for row in change_rows(result.comparison)]
        yield html_table(("", *CHANGE_COLUMNS), rows)
        yield "".join(f"<p>{escape(line)}</p>" for line in notes(result.comparison))


def _stages(result: RunResult) -> Iterable[str]:
    for number, (columns, rows) in enumerate(stage_tables(result)):
        if number == 0:
            yield "<h2>Stages</h2>"
        heading = [column.replace("\n", " ") for column in columns]
        yield html_table(heading, [tuple(map(escape, row)) for row in rows])


def _verdict(*, kept: bool) -> str:
    word = "kept" if kept else "failed"
    return f'<span class="{word}">{word}</span>'


def _plots(result: RunResult, seconds: Sequence[Second]) -> Iterable[str]:
    if not seconds:
        return
    at = [second.at for second in seconds]
    marks = result.stages if len(result.stages) > 1 else {}

    def figure(title: str, unit: str, lines: Sequence[Series]) -> str:
        return f"<h2>{escape(title)}</h2><figure>{plot(at, lines, unit, marks)}</figure>"

    yield figure(
        "Frames per second",
        "",
        [
            Series("sent", [second.sent for second in seconds]),
            Series("received", [second.received for second in seconds]),
            Series("missed", [second.missed for second in seconds]),
        ],
    )
    if layers := _most_shown(seconds):
        yield figure(
            "Pictures shown per second, by layer",
            "",
            [Series(name, [each.layers.get(name, 0) for each in seconds]) for name in layers],
        )
        switches = [Series("switches", [each.switches for each in seconds])]
        yield figure("Switches between layers, of all viewers", "", switches)
    ages = [Series(name, _age(seconds, name)) for name in ("p50", "p90", "p99", "max")]
    yield figure("Frame age, from the intended send time", "ms", ages)
    if encoded := result.total.histograms.get("frame_age"):
        yield f"<h2>Frame age, all frames</h2><figure>{histogram(encoded)}</figure>"
    yield figure("Connections", "", [Series("connected", [each.connected for each in seconds])])
    if any(each.cpu is not None for each in seconds):
        cpu = [None if each.cpu is None else each.cpu * 100 for each in seconds]
        yield figure("The relay's CPU", "% of a core", [Series("CPU", cpu)])
        memory = [None if each.memory is None else each.memory / MIB for each in seconds]
        yield figure("The relay's memory", "MiB", [Series("resident", memory)])
    late = [Series("p99", [each.lateness * 1000 for each in seconds])]
    yield figure("Lateness of the generator itself", "ms", late)
    busy = [Series("busy", [each.generator.busy * 100 for each in seconds])]
    yield figure("How busy the generator was", "% of the time", busy)
    if result.generators:
        names = list(result.generators)[: len(COLOURS)]
        each_one = [Series(name, _busy(seconds, name)) for name in names]
        yield figure("How busy each generator was", "% of the time", each_one)
    pauses = [Series("longest", [each.generator.gc_pause * 1000 for each in seconds])]
    yield figure("Garbage collection of the generator", "ms", pauses)


def _busy(seconds: Sequence[Second], name: str) -> list[float | None]:
    own = [each.generators.get(name) for each in seconds]
    return [None if each is None else each.busy * 100 for each in own]


def _most_shown(seconds: Sequence[Second]) -> list[str]:
    """The layers of which the most pictures were shown, as many as a plot has lines for."""
    shown: Counter[str] = Counter()
    for second in seconds:
        shown.update(second.layers)
    return [name for name, _ in shown.most_common(len(COLOURS))]


def _age(seconds: Sequence[Second], name: str) -> list[float | None]:
    return [second.age[name] * 1000 if second.age else None for second in seconds]


def _groups(groups: Mapping[str, GroupResult]) -> str:
    rows = []
    for name, group in groups.items():
        for time_name, values in group.times.items():
            cells = [
                seconds_in_words(values[each]) for each in ("p50", "p90", "p99", "p999", "max")
            ]
            rows.append((escape(name), escape(time_name), f"{values['count']:.0f}", *cells))
    times = html_table(("group", "time", "count", "p50", "p90", "p99", "p99.9", "max"), rows)
    counts = [
        (escape(name), escape(count), f"{number}")
        for name, group in groups.items()
        for count, number in sorted(group.counts.items())
    ]
    return times + "<h2>Counts</h2>" + html_table(("group", "name", "count"), counts)


def _layers(groups: Mapping[str, GroupResult]) -> Iterable[str]:
    rows = [
        (
            escape(name),
            *(
                f"{group.rates[each]:.3g}"
                for each in ("pictures_per_second", "switches_per_minute")
            ),
            escape(layers),
        )
        for name, group in groups.items()
        if group.rates and (layers := layers_in_words(group.counts))
    ]
    if rows:
        yield "<h2>Layers</h2>"
        yield html_table(("group", "pictures per second", "switches per minute", "layers"), rows)


def _events(result: RunResult) -> Iterable[str]:
    """What was done to targets, what failed beside the run, and who missed frames."""
    lines = (*result.events, *missed_lines(result))
    if lines:
        yield "<h2>Events</h2>" + "".join(f"<p>{escape(words)}</p>" for words in lines)


def _targets(result: RunResult) -> Iterable[str]:
    if not result.targets:
        return
    yield "<h2>Targets</h2>"
    yield html_table(
        ("target", "CPU", "memory"),
        [
            (
                escape(name),
                "" if each.cpu is None else f"{each.cpu:.2f} s",
                "" if each.memory is None else f"{each.memory / MIB:.0f} MiB",
            )
            for name, each in result.targets.items()
        ],
    )
    rows = [
        (escape(name), escape(whose), escape(count), f"{number}")
        for name, each in result.targets.items()
        for whose, counts in (("relay", each.counted or {}), ("clients", each.clients.counts))
        for count, number in counts.items()
    ]
    yield html_table(("target", "counted by", "name", "count"), rows)


def _ledger(result: RunResult) -> Iterable[str]:
    if result.ledger:
        yield "<h2>The relay's ledger</h2>"
        yield html_table(
            ("", "target", "relay", "clients", ""),
            [
                (
                    escape(each.what),
                    escape(each.target),
                    f"{each.relay}",
                    each.clients,
                    "agrees" if each.agrees else "WRONG",
                )
                for each in result.ledger
            ],
        )


def _errors(groups: Mapping[str, GroupResult]) -> Iterable[str]:
    rows = [
        (escape(name), escape(words), f"{number}")
        for name, group in groups.items()
        for words, number in group.errors.items()
    ]
    if rows:
        yield "<h2>Errors</h2>" + html_table(("group", "error", "count"), rows)


def html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{each}</th>" for each in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
