"""The parts of `adapt` in scripts/figures.py, one after the other."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from thin_links import compare

PARTS: Mapping[str, str] = {
    "servers": "relay beside other servers over thin links",
    "layers": "a film of which the phone sends three sizes",
    "renditions": "the same, of which relay makes the smaller sizes",
    "original": "the same in one size",
    "constant": "how often sizes change on links that never do",
    "cost": "the CPU of renditions",
}
"""In the order in which they are measured."""
FILM_TOOLS = ("numpy", "simplejpeg")


def adapt(
    seconds: float,
    parts: Sequence[str],
    *,
    servers: Sequence[str],
    before: Path | None,
    constant_seconds: float,
    out: Path | None,
) -> None:
    """Measure these parts, all if none is named, and show them; all figures go to `out`, too."""
    chosen = [part for part in PARTS if part in parts or not parts]
    figures: dict[str, Any] = {}
    if "servers" in chosen:
        figures["servers"] = compare(seconds, servers, before)
    with_film = [part for part in chosen if part != "servers"]
    missing = [name for name in FILM_TOOLS if importlib.util.find_spec(name) is None]
    if with_film and missing:
        why = f"{' and '.join(missing)} would have to be installed (relay[renditions])"
        print(f"left out: {', '.join(with_film)}: {why}", flush=True)
    elif with_film:
        figures |= _screen(with_film, seconds, constant_seconds)
    if out is not None:
        out.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1))


def _screen(parts: Sequence[str], seconds: float, constant_seconds: float) -> dict[str, Any]:
    """The parts that need the film, and so numpy and simplejpeg."""
    import layer_links  # noqa: PLC0415
    import layer_report  # noqa: PLC0415

    figures: dict[str, Any] = {}
    film = layer_links.prepare_film()
    sources = [source for source in layer_report.SOURCES if source in parts]
    if sources:
        figures["matrix"] = rows = layer_links.measure_matrix(film, sources, seconds)
        layer_report.show_matrix(rows, seconds)
    if "constant" in parts:
        figures["constant"] = rows = layer_links.measure_constant(film, constant_seconds)
        layer_report.show_constant(rows, constant_seconds)
    if "cost" in parts:
        figures["cost"] = cost = layer_links.measure_cost(film, seconds)
        layer_report.show_cost(cost)
    return figures
