"""What stands between clients and relay: nginx and Caddy as the docs set them, and a forwarder."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from tests.integration.relay_process import PATIENCE, PROJECT

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
CADDY = shutil.which("caddy")
OPERATIONS = PROJECT / "docs" / "operations.md"
WRITES = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def documented(begin: str, language: str = "nginx") -> str:
    """The one block of a proxy's settings on the page that has this in its first line."""
    page = OPERATIONS.read_text("utf-8")
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (found,) = (block for block in blocks if begin in block.partition("\n")[0])
    return str(found)


def stream_module() -> str | None:
    """The line that loads nginx's stream module, empty if it is built in; None without it."""
    if NGINX is None:
        return None
    built = subprocess.run([NGINX, "-V"], capture_output=True, text=True, check=True).stderr
    if re.search(r"--with-stream(?!\S)", built):
        return ""
    if (folder := re.search(r"--modules-path=(\S+)", built)) is None:
        return None
    module = Path(folder[1]) / "ngx_stream_module.so"
    return f"load_module {module};\n" if module.exists() else None


def free_port() -> int:
    """A free port that the system gives to no outgoing connection meanwhile."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def nginx(settings: str, here: Mapping[str, str], *, main: str = "", port: int) -> Iterator[None]:
    """Run nginx with settings of the page; `here` says what is elsewhere on this machine."""
    assert NGINX is not None
    settings = _moved(settings, here)
    with TemporaryDirectory(prefix="relay-test-") as folder:
        Path(folder).chmod(0o755)
        places = "".join(f"{name}_temp_path {folder}/{name};\n" for name in WRITES)
        if not settings.lstrip("# \n").startswith("stream") and "\nstream" not in settings:
            settings = f"http {{\naccess_log off;\n{places}{settings}}}\n"
        file = Path(folder) / "nginx.conf"
        file.write_text(
            f"{main}daemon off;\nmaster_process off;\npid {folder}/pid;\n"
            f"events {{ worker_connections 1024; }}\n{settings}"
        )
        command = [NGINX, "-p", folder, "-c", str(file), "-e", "stderr"]
        with _running(command, folder, port):
            yield


@contextmanager
def caddy(settings: str, here: Mapping[str, str], *, port: int) -> Iterator[None]:
    """Run Caddy with settings of the page; `here` says what is elsewhere on this machine."""
    assert CADDY is not None
    with TemporaryDirectory(prefix="relay-test-") as folder:
        file = Path(folder) / "Caddyfile"
        # Nothing for others on this machine, and nothing that asks an authority for certificates.
        file.write_text("{\nadmin off\nauto_https off\n}\n" + _moved(settings, here))
        with _running([CADDY, "run", "--config", str(file)], folder, port):
            yield


def _moved(settings: str, here: Mapping[str, str]) -> str:
    for there, instead in here.items():
        assert there in settings, there
        settings = settings.replace(there, instead)
    return settings


@contextmanager
def _running(command: Sequence[str], folder: str, port: int) -> Iterator[None]:
    """Run a proxy, from when it listens; what it keeps goes into the folder."""
    errors = Path(folder) / "errors"
    environment = {**os.environ, "HOME": folder, "XDG_DATA_HOME": folder, "XDG_CONFIG_HOME": folder}
    with (
        errors.open("wb") as sink,
        subprocess.Popen(command, env=environment, stderr=sink) as process,
    ):
        try:
            _wait_for(port, process, errors)
            yield
        finally:
            process.terminate()


def _wait_for(port: int, process: subprocess.Popen[bytes], errors: Path) -> None:
    for _ in range(round(PATIENCE / 0.05)):
        with socket.socket() as probe:
            probe.settimeout(0.05)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(f"the proxy did not start: {errors.read_text()}")


@asynccontextmanager
async def forwarder(behind: int, version: int) -> AsyncIterator[int]:
    """A proxy that only passes bytes on, behind a PROXY header; yields its port."""

    async def serve(client: trio.SocketStream) -> None:
        source, target = client.socket.getpeername(), client.socket.getsockname()
        async with client, await trio.open_tcp_stream("127.0.0.1", behind) as server:
            await server.send_all(proxy_header(version, source, target))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pass_on, client, server, nursery.cancel_scope)
                nursery.start_soon(_pass_on, server, client, nursery.cancel_scope)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def proxy_header(version: int, source: tuple[str, int], target: tuple[str, int]) -> bytes:
    if version == 1:
        return f"PROXY TCP4 {source[0]} {target[0]} {source[1]} {target[1]}\r\n".encode()
    addresses = b"".join(
        (
            *(socket.inet_aton(each[0]) for each in (source, target)),
            *(each[1].to_bytes(2, "big") for each in (source, target)),
        )
    )
    block = b"\r\n\r\n\x00\r\nQUIT\n" + b"\x21\x11" + len(addresses).to_bytes(2, "big")
    return block + addresses


async def _pass_on(
    source: trio.SocketStream, target: trio.SocketStream, done: trio.CancelScope
) -> None:
    try:
        async for data in source:
            await target.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    done.cancel()
