"""compose.yaml and kubernetes.yaml by their schemas, and relay as compose.yaml starts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import trio

from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import PROJECT, run_relay, start_relay
from tests.unit.packaging.test_manifests import services

FOLDER = PROJECT / "scripts" / "packaging"


@pytest.fixture(scope="module")
def tools() -> Path:
    """The programs of .venv-package."""
    script = PROJECT / "scripts" / "environment.py"
    subprocess.run([sys.executable, "-I", script, "package"], check=True)
    return PROJECT / ".venv-package" / "bin"


def validate(command: list[str | Path], text: str, folder: Path) -> tuple[int, str]:
    """The exit code and the output of a validator of this text."""
    file = folder / "file.yaml"
    file.write_text(text)
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(
        [*command, file], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "command", "wrong"),
    [
        (
            "compose.yaml",
            ("check-jsonschema", "--builtin-schema", "vendor.compose-spec"),
            ("cap_drop:", "cap_dropped:"),
        ),
        (
            "kubernetes.yaml",
            ("kubernetes-validate", "--strict"),
            ("readOnlyRootFilesystem:", "readOnlyRoot:"),
        ),
    ],
)
def test_the_file_is_as_its_schema_wants_it(
    tools: Path, tmp_path: Path, name: str, command: tuple[str, ...], wrong: tuple[str, str]
) -> None:
    text = (FOLDER / name).read_text("utf-8")
    program: list[str | Path] = [tools / command[0], *command[1:]]
    code, said = validate(program, text, tmp_path)
    assert code == 0, said
    code, said = validate(program, text.replace(*wrong), tmp_path)
    assert code != 0
    assert wrong[1].rstrip(":") in said


async def test_relay_starts_as_compose_starts_it(
    empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same tables, with the same commands and variables, and another PostgreSQL."""
    database, migrate, relay = (services()[name] for name in ("postgres", "migrate", "relay"))
    (tables,) = [each.split(":")[0] for each in database["volumes"] if each.startswith(".")]
    with psycopg.connect(empty_postgres_url) as connection:
        connection.execute((FOLDER / tables).read_bytes())
    for name, value in relay["environment"].items():
        monkeypatch.setenv(name, value)
    done = run_relay(*migrate["command"], database_url=empty_postgres_url)
    assert done.returncode == 0, done.stderr
    again = run_relay(*migrate["command"], database_url=empty_postgres_url)
    assert again.returncode == 0, again.stderr

    with start_relay(database_url=empty_postgres_url) as served:
        monkeypatch.setenv("RELAY_BIND", f"127.0.0.1:{served.port}")
        _, program, *arguments = relay["healthcheck"]["test"]
        assert shutil.which(program)
        script = str(FOLDER / "health.py")
        words = [script if each == "/opt/relay/health.py" else each for each in arguments]
        await trio.run_process([program, *words])
        session = ("token", "session", "--user", "ann@example.org", "--force")
        token = run_relay(*session, database_url=empty_postgres_url)
        assert token.returncode == 0, token.stderr
        async with login(served, token.stdout.strip()) as phone:
            await phone.register(new_stream_id())
