"""The picture of the rooms says what the imports say: see scripts/rooms.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "rooms.py"
CONTRACT = """
[[tool.importlinter.contracts]]
type = "forbidden"
[[tool.importlinter.contracts]]
type = "layers"
containers = ["relay.left"]
layers = ["work", "more"]
[[tool.importlinter.contracts]]
type = "layers"
containers = ["relay"]
layers = ["top", "(later)", "left : right", "errors"]
"""


@pytest.fixture
def rooms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rooms", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rooms"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(CONTRACT)
    folder = tmp_path / "relay"
    files = {
        "top/start.py": "from relay.left.work import f\n\ndef g():\n    import relay.errors\n",
        "left/work.py": "import trio\nfrom relay import errors, right\nimport relay.left.more\n",
        "right/__init__.py": "from relay.errors import Wrong\nfrom other.left import f\n",
        "errors.py": "",
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def test_layers_are_read_from_the_contract(rooms: ModuleType, package: Path) -> None:
    layers = rooms.read_layers(package.parent / "pyproject.toml", package)
    assert layers == [["top"], ["left", "right"], ["errors"]]


def test_each_import_between_rooms_is_found(rooms: ModuleType, package: Path) -> None:
    layers = rooms.read_layers(package.parent / "pyproject.toml", package)
    assert rooms.read_imports(package, layers) == {
        ("top", "left"),
        ("top", "errors"),
        ("left", "errors"),
        ("left", "right"),
        ("right", "errors"),
    }


def test_an_import_that_others_imply_has_no_arrow(rooms: ModuleType) -> None:
    edges = {("a", "b"), ("b", "c"), ("a", "c"), ("b", "d"), ("a", "d"), ("c", "d")}
    assert rooms.without_implied(edges) == {("a", "b"), ("b", "c"), ("c", "d")}


def test_boxes_of_a_layer_do_not_overlap(rooms: ModuleType) -> None:
    layers = [["a", "b", "c"], ["d"], ["e", "f"]]
    edges = {("a", "d"), ("b", "d"), ("c", "d"), ("a", "f"), ("c", "e"), ("d", "f")}
    picture = ET.fromstring(rooms.draw(layers, edges))
    boxes = [
        (int(box.attrib["y"]), int(box.attrib["x"]))
        for box in picture.iter("{http://www.w3.org/2000/svg}rect")
        if box.attrib.get("rx")
    ]
    assert len(boxes) == 6
    for y, x in boxes:
        near = [other for line, other in boxes if line == y and abs(other - x) > 0]
        assert all(abs(other - x) > rooms.BOX_WIDTH for other in near)


def test_the_picture_does_not_depend_on_the_order_of_imports(rooms: ModuleType) -> None:
    edges = [("a", "c"), ("b", "c"), ("a", "d"), ("b", "d"), ("c", "d")]
    layers = [["a", "b"], ["c"], ["d"]]
    assert rooms.draw(layers, set(edges)) == rooms.draw(layers, {*edges[2:], *edges[:2]})
