"""What the packages say about themselves is one thing, wherever it is said."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import relay
from relay.web.assets import CLIENT_FILES

PROJECT = Path(__file__).parents[3]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))
PROJECT_TABLE = PYPROJECT["project"]
CLIENT = json.loads((PROJECT / "relay/web/client/package.json").read_text("utf-8"))
INSTALLING = (PROJECT / "docs" / "installing.md").read_text("utf-8")


def test_the_javascript_client_has_the_version_of_relay() -> None:
    assert CLIENT["version"] == relay.__version__
    named = set(re.findall(r"(?:relay|client)[-:](\d+\.\d+\.\d+)", INSTALLING))
    assert named == {relay.__version__}


def test_the_javascript_package_has_the_files_that_relay_serves() -> None:
    assert set(CLIENT["files"]) == {name.removeprefix("/") for name in CLIENT_FILES}
    assert CLIENT["exports"]["."] == {
        "types": "./relay-client.d.ts",
        "default": "./relay-client.js",
    }
    assert CLIENT["sideEffects"] == ["./relay-player.js"]  # which defines an element
    assert "dependencies" not in CLIENT


def test_nothing_can_be_published_before_the_owner_has_decided() -> None:
    """Change this test with the fields that docs/installing.md lists."""
    assert "Private :: Do Not Upload" in PROJECT_TABLE["classifiers"]
    assert "license" not in PROJECT_TABLE
    assert CLIENT["private"] is True
    containerfile = (PROJECT / "scripts/packaging/Containerfile").read_text("utf-8")
    assert 'org.opencontainers.image.licenses=""' in containerfile
    assert 'org.opencontainers.image.source=""' in containerfile
    assert (CLIENT["license"], CLIENT["repository"]["url"]) == ("", "")
    assert CLIENT["publishConfig"]["provenance"] is True


def test_the_packages_are_built_with_the_back_end_that_the_project_names() -> None:
    tools = (PROJECT / "scripts/packaging/requirements.txt").read_text("utf-8").splitlines()
    assert set(PYPROJECT["build-system"]["requires"]) <= set(tools)


def test_the_page_lists_the_extras_there_are() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", INSTALLING, re.MULTILINE)
    extras = PROJECT_TABLE["optional-dependencies"]
    assert set(listed) == set(extras)
    assert set(extras["load"]) == {*extras["embedded"], *extras["renditions"]}
