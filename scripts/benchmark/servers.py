"""The servers that are measured: how each is started, and what has to be there for it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from attrs import field, frozen
from meter import Meter
from workloads import Base, Result, Start

PROJECT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).parent / "peers"
NODE_MODULES = Path(sys.prefix) / "node" / "node_modules"  # scripts/bench puts it there
PATIENCE = 30.0
LIMITS = [
    *("--message-rate", "1000000000/second", "--frame-rate", "1000000000/second"),
    *("--byte-rate", "100000000000/second", "--connection-rate", "1000000/second"),
    *("--max-connections-per-user", "10000", "--max-connections-per-address", "10000"),
    *("--max-streams-per-user", "1000"),
]
"""Counted like the default ones, and never reached."""

NGINX = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr error;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{behind};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "Upgrade";
            proxy_read_timeout 600s;
        }}
    }}
}}
"""


@frozen
class Server:
    """One that is measured."""

    name: str
    command: Sequence[str] = ()
    """To which a port is added. Empty for relay, which has more to it."""
    binary: bool = True
    options: Sequence[str] = ("--profile", "load")
    """Of relay."""
    checkout: Path = PROJECT
    """Where relay is, with a `.venv` of its own."""
    missing: str | None = None
    """What would have to be installed."""

    @property
    def is_relay(self) -> bool:
        return not self.command

    @property
    def python(self) -> str:
        """What runs relay."""
        return str(self.checkout / ".venv" / "bin" / "python")

    @property
    def relay(self) -> list[str]:
        """relay's command line."""
        return [self.python, "-P", "-m", "relay"]


@frozen
class Running:
    """A server that listens."""

    port: int
    pid: int
    token: str = field(default="none", repr=False)


def servers(before: Path | None = None) -> dict[str, Server]:
    """All that there are, by name, relay first; `before` is a checkout to compare it with."""
    bun = next(iter(NODE_MODULES.glob("@oven/bun-*/bin/bun")), None) or shutil.which("bun")
    node = shutil.which("node") if (NODE_MODULES / "ws").exists() else None
    python = sys.executable
    listed = [
        Server("relay"),
        Server("relay-json", binary=False),
        Server("relay-limits", options=LIMITS),
        Server(
            "bun",
            [str(bun), str(PEERS / "bun_publish.js")],
            missing=None if bun else "bun: needs npm, or bun on PATH",
        ),
        Server(
            "ws",
            [str(node), str(PEERS / "node_ws.js")],
            missing=None if node else "ws: needs node and npm",
        ),
        *(
            Server(name, [python, str(PEERS / script)])
            for name, script in (
                ("websockets", "websockets_broadcast.py"),
                ("picows", "picows_send.py"),
                ("trio-websocket", "trio_websocket_send.py"),
                ("floor", "floor.py"),
            )
        ),
        Server("floor-pings", [python, str(PEERS / "floor.py"), "--pings"]),
    ]
    if before is not None:
        earlier = before / ".venv" / "bin" / "python"
        missing = None if earlier.exists() else f"relay-before: no {earlier}; run its scripts/test"
        listed[1:1] = [
            Server("relay-before", checkout=before, missing=missing),
            Server("relay-before-json", binary=False, checkout=before, missing=missing),
        ]
    return {server.name: server for server in listed}


BUILD = """import platform, sysconfig
asked = sysconfig.get_config_var("CONFIG_ARGS") or ""
known = {"--enable-optimizations": "profile-guided", "--with-lto": "LTO"}
told = [name for option, name in known.items() if option in asked]
shared = sysconfig.get_config_var("Py_ENABLE_SHARED")
print(platform.python_implementation(), platform.python_version() + ",",
    ", ".join(told) or "not an optimised build", *(["(shared libpython)"] if shared else []))"""


def python_build(python: str) -> str:
    """The version of a Python, and how it was built, which makes 10 to 20%."""
    told = subprocess.run([python, "-Ic", BUILD], capture_output=True, text=True, check=True)
    return told.stdout.strip()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def running(server: Server, cpu: int | None) -> Iterator[Running]:
    """Start a server, bound to a CPU where that can be, and stop it at the end."""
    if not server.is_relay:
        port = free_port()
        with process([*server.command, str(port)], cpu) as pid:
            yield Running(port, pid)
        return
    with _data_folder() as folder:
        port, data = free_port(), ["--data-dir", folder]
        command = [*server.relay, "serve", "--bind", f"127.0.0.1:{port}", *data]
        with process([*command, *server.options, "--log-level", "error"], cpu) as pid:
            token = subprocess.run(
                [*server.relay, "token", "session", "--user", "bench@example.com", *data],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            yield Running(port, pid, token)


def base(server: Server, workload: Base, cpu: int | None) -> Result:
    """Start a server, and see how large it is when nobody is connected."""
    with running(server, cpu) as target:
        time.sleep(workload.seconds)
        meter, result = Meter(target.pid), Result(frames=1)
        meter.read(result)
        return result


def start(server: Server, workload: Start, cpu: int | None) -> Result:
    """Start a server a few times; `ages` has the seconds that it took."""
    result = Result(frames=workload.times)
    with ExitStack() as stack:
        if server.is_relay:
            database = stack.enter_context(_database_of(server))
        for number in range(workload.times + 1):
            command = [*server.command, str(free_port())]
            if server.is_relay:
                bind = ["--bind", f"127.0.0.1:{free_port()}", "--log-level", "error"]
                command = [*server.relay, "serve", *bind, *database, *server.options]
            began = time.monotonic()
            with process(command, cpu) as pid:
                if number:  # the first one may have to compile
                    result.ages.append(time.monotonic() - began)
                    Meter.since_start(pid).read(result)
    result.seconds = sum(result.ages)
    return result


@contextmanager
def _database_of(server: Server) -> Iterator[list[str]]:
    """The options that lead a relay to the PostgreSQL of another one."""
    with _data_folder() as data:
        command = [*server.relay, "serve", "--bind", f"127.0.0.1:{free_port()}"]
        with process([*command, "--data-dir", data, "--log-level", "error"], None):
            yield ["--database-url", Path(data, "url").read_text()]


@contextmanager
def _data_folder() -> Iterator[str]:
    """A new folder for relay's data."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        Path(folder).chmod(0o711)  # as root, Postgres runs as another user and must get through
        yield str(Path(folder, "data"))


@contextmanager
def nginx(behind: int) -> Iterator[int]:
    """nginx in front of a port, as its documentation proxies WebSockets; yields its own port."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        Path(folder).chmod(0o711)
        port, settings = free_port(), Path(folder, "nginx.conf")
        settings.write_text(NGINX.format(folder=folder, port=port, behind=behind))
        command = ["nginx", "-c", str(settings), "-p", folder]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as proxy:
            try:
                wait_for(port)
                yield port
            finally:
                proxy.terminate()


@contextmanager
def process(command: Sequence[str], cpu: int | None) -> Iterator[int]:
    """A server that says when it listens."""
    environment = {**os.environ, "NODE_PATH": str(NODE_MODULES)}
    # What the first start has compiled is there for the next ones.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as started,
    ):
        try:
            if cpu is not None:
                psutil.Process(started.pid).cpu_affinity([cpu])
            assert started.stdout is not None
            if re.search("listening", started.stdout.readline()) is None:
                errors.seek(0)
                raise SystemExit(f"{command[0]} did not start:\n{errors.read().decode()}")
            yield started.pid
        finally:
            started.send_signal(signal.SIGTERM)
            try:
                started.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                started.kill()


def wait_for(port: int) -> None:
    for _ in range(300):
        with socket.socket() as probe:
            probe.settimeout(PATIENCE / 300)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(PATIENCE / 300)
    raise SystemExit(f"nothing listens on port {port}")
