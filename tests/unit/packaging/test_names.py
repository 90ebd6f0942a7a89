"""Nothing installs `relay` or `relay-client` by name: in the registries these are of strangers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]
INSTALLERS = {
    "apt", "apt-get", "brew", "bun", "bunx", "deno", "npm", "npx", "pip", "pip3", "pipx", "pnpm",
    "uv", "uvx", "yarn",
}  # fmt: skip
SOURCES = {"--from", "--spec", "-m", "--with-editable"}
"""After these, a bare name is that of a program in what was named."""
OURS = re.compile(r"(?:npm:)?relay(?:-client)?(?:\[[\w,-]*\])?(?:[@=<>~!].*)?")
CONTAINERS = {"docker", "podman", "nerdctl"}
PULLING = {"pull", "run", "create"}
PROGRAM = re.compile(rf"\b(?:{'|'.join(sorted(INSTALLERS | CONTAINERS))})\b.*\brelay\b")
MADE = {"node_modules", ".next", ".expo"}
"""In the examples, once somebody has tried them."""
FOLDERS = ("docs", "relay", "scripts", "tests/node")
TEXTS = [
    path
    for path in (
        *(PROJECT / name for name in ("README.md", "CHANGELOG.md", "constraints.txt", ".ci/run")),
        *(path for folder in FOLDERS for path in (PROJECT / folder).rglob("*")),
    )
    if path.is_file() and path.suffix not in {".png", ".svg", ".pyc"} and not MADE & {*path.parts}
]


def commands(text: str) -> list[list[str]]:
    """The words of what looks like a command, in a text of any kind."""
    lines = [line for line in text.replace("\\\n", " ").split("\n") if PROGRAM.search(line)]
    parts = re.split(r"[\n;|&`]|\$\(|\s#\s", "\n".join(lines))
    return [[word.strip("'\"(),.:") for word in part.split()] for part in parts]


def installs_ours(text: str) -> list[str]:
    """Commands that would fetch `relay` from a registry."""
    return [" ".join(words) for words in commands(text) if _fetches(words)]


def _fetches(words: list[str]) -> bool:
    for at, word in enumerate(words):
        rest = words[at + 1 :]
        if not any(OURS.fullmatch(each) for each in rest):
            continue
        name = word.rpartition("/")[2]
        if name in CONTAINERS and PULLING & set(rest):
            return True
        if name in INSTALLERS and not any(each.split("=")[0] in SOURCES for each in rest):
            return _subcommand(name, rest)
    return False


def _subcommand(name: str, rest: list[str]) -> bool:
    """Whether this installs something, rather than asks or runs a script of a package."""
    return name in {"uvx", "bunx", "npx"} or bool(
        {"install", "i", "add", "run", "runpip", "download", "wheel", "upgrade", "exec", "x", "ci"}
        & set(rest[:3])
    )


@pytest.mark.parametrize(
    "command",
    [
        "pip install relay",
        "With `pip install 'relay[renditions]'` relay can",
        "python3 -m pip install -U 'relay[a,b]==1.0'",
        "/opt/relay/bin/pip install relay>=2",
        "pipx install relay",
        "pipx run relay serve",
        "uvx relay demo",
        "uv tool install relay",
        "uv add relay",
        "npm install relay-client",
        "npm i -D relay-client@latest",
        "npx relay-client",
        "bun add relay-client",
        "cd app && yarn add relay-client",
        "podman run --rm relay serve",
        "docker pull relay",
    ],
)
def test_this_test_notices(command: str) -> None:
    assert installs_ours(f"before\n{command}\n") != []


@pytest.mark.parametrize(
    "command",
    [
        "pip install -c constraints.txt '.[embedded,renditions]'",
        "pipx install ./dist/relay-0.1.0-py3-none-any.whl",
        "uvx --from ./dist/relay-0.1.0-py3-none-any.whl relay --version",
        "npm install ./path/to/relay/web/client",
        "npm install ./dist/relay-client-0.1.0.tgz",
        "podman run --rm localhost/relay:0.1.0 serve",
        "install relay with its extra 'embedded'",
        "relay serve",
    ],
)
def test_this_test_lets_paths_pass(command: str) -> None:
    assert installs_ours(f"before\n{command}\n") == []


def test_nothing_installs_relay_by_name() -> None:
    found = {str(path): installs_ours(path.read_text("utf-8")) for path in TEXTS}
    assert {path: commands for path, commands in found.items() if commands} == {}
    assert any(path.endswith("docs/installing.md") for path in found)


def test_no_list_of_requirements_names_relay() -> None:
    for path in (PROJECT / "constraints.txt", *(PROJECT / "scripts").rglob("*requirements.txt")):
        assert not re.search(r"^relay(-client)?\b", path.read_text("utf-8"), re.MULTILINE), path
    for path in (path for path in TEXTS if path.name == "package.json"):
        package = json.loads(path.read_text("utf-8"))
        named = {**package.get("dependencies", {}), **package.get("devDependencies", {})}
        assert all(
            version.startswith("file:") for name, version in named.items() if OURS.fullmatch(name)
        ), path
