"""Draw docs/images/rooms.svg, the rooms of `relay/` in their layers, from the code's own imports.

    .venv/bin/python scripts/rooms.py            # writes the picture
    .venv/bin/python scripts/rooms.py --check    # exit status 1 when the picture is out of date

The layers are those of the import-linter contract in pyproject.toml. An arrow goes from a room to
one that it imports, unless other arrows lead there already.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from attrs import define, frozen

PROJECT = Path(__file__).resolve().parents[1]
PICTURE = PROJECT / "docs" / "images" / "rooms.svg"

BOX_WIDTH, BOX_HEIGHT, BEND_WIDTH = 112, 30, 16
GAP, ROW_HEIGHT, MARGIN, PORT = 22, 76, 24, 9
SWEEPS = 24
COLOURS = ("#1d5c9c", "#a33b20", "#2f7d4f", "#7a4fa0", "#8a6500", "#9c2c5f", "#3f6a73", "#555555")

Edge = tuple[str, str]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    options = parser.parse_args()
    layers = read_layers(PROJECT / "pyproject.toml", PROJECT / "relay")
    picture = draw(layers, without_implied(read_imports(PROJECT / "relay", layers)))
    if options.check:
        if not PICTURE.exists() or PICTURE.read_text("utf-8") != picture:
            print("docs/images/rooms.svg is out of date: run scripts/rooms.py")
            return 1
        return 0
    PICTURE.write_text(picture, "utf-8")
    print(f"wrote docs/images/{PICTURE.name}")
    return 0


# -- what the code says


def read_layers(pyproject: Path, package: Path) -> list[list[str]]:
    """The rooms of each layer from the top down, without those that are not there yet."""
    contracts = tomllib.loads(pyproject.read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (contract,) = (each for each in contracts if each.get("containers") == [package.name])
    rows = [re.findall(r"\w+", layer) for layer in contract["layers"]]
    there = {path.stem for path in package.iterdir()}
    present = ([room for room in row if room in there] for row in rows)
    return [row for row in present if row]


def read_imports(package: Path, layers: Iterable[Iterable[str]]) -> set[Edge]:
    """Which room imports which, also for types only or inside a function."""
    rooms = {room for row in layers for room in row}
    found = set()
    for path in sorted(package.rglob("*.py")):
        room = Path(path.relative_to(package).parts[0]).stem
        for module in imported_modules(ast.parse(path.read_text("utf-8"))):
            root, _, rest = module.partition(".")
            other = rest.partition(".")[0]
            if root == package.name and {room, other} <= rooms and room != other:
                found.add((room, other))
    return found


def imported_modules(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{module}.{alias.name}" for alias in names)


def without_implied(edges: set[Edge]) -> set[Edge]:
    """The edges whose ends no other path connects: the transitive reduction."""

    def reachable(start: str, leaving_out: Edge) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            room = waiting.pop()
            following = {b for a, b in edges if a == room and (a, b) != leaving_out} - seen
            seen |= following
            waiting += following
        return seen

    return {edge for edge in edges if edge[1] not in reachable(edge[0], edge)}


# -- the drawing: layers as rows, and a bend in each row that an arrow passes


@frozen
class Bend:
    """Where an arrow passes a row between those of its ends."""

    edge: Edge
    row: int


Item = str | Bend


@define(eq=False)
class Layout:
    """The items of each row from left to right, and the middle of each."""

    rows: list[list[Item]]
    paths: dict[Edge, list[Item]]
    x: dict[Item, float]

    def neighbours(self, *, above: bool) -> dict[Item, list[Item]]:
        found: dict[Item, list[Item]] = {item: [] for row in self.rows for item in row}
        for path in self.paths.values():
            for upper, lower in pairwise(path):
                if above:
                    found[lower].append(upper)
                else:
                    found[upper].append(lower)
        return found


def draw(layers: Sequence[Sequence[str]], edges: set[Edge]) -> str:
    layout = arrange(layers, edges)
    row_of = {item: number for number, row in enumerate(layout.rows) for item in row}
    width = round(max(layout.x.values()) + BOX_WIDTH / 2 + MARGIN)
    height = (len(layers) - 1) * ROW_HEIGHT + BOX_HEIGHT + 2 * MARGIN
    colour = {room: COLOURS[n % len(COLOURS)] for n, room in enumerate(flat(layers))}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"',
        '  font-family="ui-sans-serif, system-ui, sans-serif" font-size="14">',
        "<title>The rooms of relay: each imports only from layers below its own</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number in range(0, len(layers), 2):
        top = MARGIN + number * ROW_HEIGHT - (ROW_HEIGHT - BOX_HEIGHT) / 2
        parts.append(f'<rect y="{top:g}" width="{width}" height="{ROW_HEIGHT}" fill="#f4f5f7"/>')
    ports = spread(layout)
    for edge, path in sorted(layout.paths.items()):
        points = []
        for place, item in enumerate(path):
            top = MARGIN + row_of[item] * ROW_HEIGHT
            x = layout.x[item]
            if place == 0:
                points.append((x + ports[edge, "out"], top + BOX_HEIGHT))
            elif place == len(path) - 1:
                points.append((x + ports[edge, "in"], top - 2))
            else:
                points += [(x, top), (x, top + BOX_HEIGHT)]
        parts += arrow(points, colour[edge[0]])
    for number, row in enumerate(layers):
        top = MARGIN + number * ROW_HEIGHT
        for room in row:
            left = layout.x[room] - BOX_WIDTH / 2
            parts.append(
                f'<rect x="{left:.0f}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5"'
                f' fill="#ffffff" stroke="{colour[room]}" stroke-width="1.5"/>'
            )
            parts.append(
                f'<text x="{layout.x[room]:.0f}" y="{top + 20}" text-anchor="middle"'
                f' fill="#1b1f24">{room}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])


def flat(layers: Iterable[Iterable[str]]) -> Iterator[str]:
    return (room for row in layers for room in row)


def arrow(points: Sequence[tuple[float, float]], colour: str) -> Iterator[str]:
    (x, y), *rest = points
    steps = [f"M{x:.0f} {y:.0f}"]
    for to_x, to_y in rest:
        if round(to_x) == round(x):
            steps.append(f"V{to_y:.0f}")
        else:
            middle = (y + to_y) / 2
            steps.append(f"C{x:.0f} {middle:.0f} {to_x:.0f} {middle:.0f} {to_x:.0f} {to_y:.0f}")
        x, y = to_x, to_y
    yield f'<path d="{" ".join(steps)}" fill="none" stroke="{colour}" stroke-opacity="0.75"/>'
    yield f'<path d="M{x - 3.5:.1f} {y - 6:.0f}h7l-3.5 7z" fill="{colour}"/>'


def arrange(layers: Sequence[Sequence[str]], edges: set[Edge]) -> Layout:
    """Order each row so that few arrows cross, and put items near what they are connected to."""
    row_of = {room: number for number, row in enumerate(layers) for room in row}
    rows: list[list[Item]] = [list(row) for row in layers]
    paths: dict[Edge, list[Item]] = {}
    for edge in sorted(edges):
        first, last = row_of[edge[0]], row_of[edge[1]]
        bends = [Bend(edge, row) for row in range(first + 1, last)]
        for bend in bends:
            rows[bend.row].append(bend)
        paths[edge] = [edge[0], *bends, edge[1]]
    layout = Layout(rows, paths, {})
    for row in rows:
        place(layout, row, dict.fromkeys(row, 0.0))
    for sweep in range(SWEEPS):
        above = sweep % 2 == 0
        neighbours = layout.neighbours(above=above)
        for row in rows if above else reversed(rows):
            wanted = {
                item: fmean(layout.x[other] for other in neighbours[item])
                if neighbours[item]
                else layout.x[item]
                for item in row
            }
            if sweep < SWEEPS - 8:  # then the order stays, and places are made even
                row.sort(key=wanted.__getitem__)
            place(layout, row, wanted)
    left = min(layout.x[room] for room in flat(layers)) - BOX_WIDTH / 2 - MARGIN
    left = min(left, min(layout.x.values()) - MARGIN)
    layout.x = {item: round(x - left, 3) for item, x in layout.x.items()}
    return layout


def place(layout: Layout, row: Sequence[Item], wanted: Mapping[Item, float]) -> None:
    """Give each item of a row the place nearest to where it wants to be, in this order.

    Items that would overlap are joined to a block, which goes where its items want on average.
    """
    offsets = [0.0]
    for before, after in pairwise(row):
        offsets.append(offsets[-1] + (width_of(before) + width_of(after)) / 2 + GAP)
    blocks: list[list[float]] = []
    for item, offset in zip(row, offsets, strict=True):
        blocks.append([wanted[item] - offset])
        while len(blocks) > 1 and fmean(blocks[-2]) > fmean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    starts = [fmean(block) for block in blocks for _ in block]
    for item, offset, start in zip(row, offsets, starts, strict=True):
        layout.x[item] = start + offset


def width_of(item: Item) -> int:
    return BEND_WIDTH if isinstance(item, Bend) else BOX_WIDTH


def spread(layout: Layout) -> dict[tuple[Edge, str], float]:
    """How far from the middle of its room each arrow begins and ends."""
    found: dict[tuple[Edge, str], float] = {}
    for side, end, next_to in (("out", 0, 1), ("in", -1, -2)):
        rooms: dict[Item, list[Edge]] = {}
        for edge, path in layout.paths.items():
            rooms.setdefault(path[end], []).append(edge)
        for edges in rooms.values():
            edges.sort(key=lambda edge: (layout.x[layout.paths[edge][next_to]], edge))
            for number, edge in enumerate(edges):
                found[edge, side] = (number - (len(edges) - 1) / 2) * PORT
    return found


if __name__ == "__main__":
    sys.exit(main())
