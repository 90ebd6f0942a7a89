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
    "codec": "the same, which the page sends in layers of a video codec",
    "constant": "how often sizes change on links that never do",
    "cost": "the CPU of renditions",
}
"""In the order in which they are measured."""
FILM_TOOLS = {"numpy": "relay[renditions]", "simplejpeg": "relay[renditions]"}
CODEC_TOOLS = {**FILM_TOOLS, "av": "relay[ingest]", "playwright": "relay[test]"}
"""What is imported, and what brings it."""


def adapt(
    seconds: float,
    parts: Sequence[str],
    *,
    servers: Sequence[str],
    before: Path | None,
    constant_seconds: float,
    codecs: Sequence[str],
    at_once: int,
    out: Path | None,
) -> None:
    """Measure these parts, all if none is named, and show them; all figures go to `out`, too."""
    chosen = [part for part in PARTS if part in parts or not parts]
    figures: dict[str, Any] = {}
    if "servers" in chosen:
        figures["servers"] = compare(seconds, servers, before)
    with_film = _available(
        [part for part in chosen if part not in {"servers", "codec"}], FILM_TOOLS
    )
    if with_film:
        figures |= _screen(with_film, seconds, constant_seconds)
    if _available([part for part in chosen if part == "codec"], CODEC_TOOLS):
        figures["codec"] = _codec(codecs, seconds, at_once)
    if out is not None:
        out.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1))


def _available(parts: Sequence[str], tools: Mapping[str, str]) -> Sequence[str]:
    """These parts if the tools that they need are installed; says so if they are not."""
    missing = [name for name in tools if importlib.util.find_spec(name) is None]
    if not missing or not parts:
        return parts
    why = " and ".join(f"{name} ({tools[name]})" for name in missing)
    print(f"left out: {', '.join(parts)}: {why} would have to be installed", flush=True)
    return []


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


def _codec(codecs: Sequence[str], seconds: float, at_once: int) -> Any:
    """The part that needs Chromium and a decoder, too."""
    import codec_links  # noqa: PLC0415
    import layer_report  # noqa: PLC0415

    chosen = [codec for codec in layer_report.CODECS if codec in codecs or not codecs]
    rows = codec_links.measure_codecs(chosen, seconds, at_once=at_once)
    layer_report.show_matrix(rows, seconds)
    return rows
