"""The least that frames take from process to process; for scripts/hop_figures.py.

    python scripts/bare_sockets.py receive 0 SIZE RATE SECONDS [ENGINE PORT]
    python scripts/bare_sockets.py send PORT SIZE RATE SECONDS [ENGINE PORT]
    python scripts/bare_sockets.py engine COMMAND ...

Over two bare sockets of Trio, or through an engine: `redis` (or Valkey) or `nats`, with clients
that look at nothing of what they read. Each prints the microseconds of CPU that a frame took it;
the receiver says first that it is ready, and at which port. The engine runs until its input ends,
and then prints the seconds of CPU that it took.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import trio

SUBSCRIBE = {"redis": b"SUBSCRIBE frames\r\n", "nats": b"CONNECT {}\r\nSUB frames 1\r\nPING\r\n"}
SUBSCRIBED = {"redis": b":1\r\n", "nats": b"PONG\r\n"}


def published(engine: str | None, data: bytes) -> bytes:
    """A frame as the engine is told it."""
    if engine == "redis":
        head = b"*3\r\n$7\r\nPUBLISH\r\n$6\r\nframes\r\n$%d\r\n" % len(data)
        return head + data + b"\r\n"
    if engine == "nats":
        return b"PUB frames %d\r\n" % len(data) + data + b"\r\n"
    return data


async def send(port: int, numbers: list[float], engine: str | None) -> None:
    size, rate, seconds = numbers
    async with (
        await trio.open_tcp_stream("127.0.0.1", port) as stream,
        trio.open_nursery() as tasks,
    ):
        if engine is not None:
            tasks.start_soon(_discard, stream)
        if engine == "nats":
            await stream.send_all(b'CONNECT {"verbose":false}\r\n')
        data, due, sent = published(engine, bytes(int(size))), trio.current_time(), 0
        end, began = due + seconds, time.process_time()
        while due < end:
            await trio.sleep_until(due)
            due += 1 / rate
            await stream.send_all(data)
            sent += 1
        print((time.process_time() - began) / sent * 1e6)
        tasks.cancel_scope.cancel()


async def receive(numbers: list[float], engine: str | None, port: int) -> None:
    size, _, seconds = numbers
    if engine is None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        print(listener.socket.getsockname()[1], flush=True)
        stream = await listener.accept()
    else:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(SUBSCRIBE[engine])
        said = b""
        while not said.endswith(SUBSCRIBED[engine]):
            said += await stream.receive_some()
        print(port, flush=True)
    buffer, total = memoryview(bytearray(256 * 1024)), 0
    began = time.process_time()
    with trio.move_on_after(seconds + 2):
        while count := await stream.socket.recv_into(buffer):
            total += count
    print((time.process_time() - began) / (total / size) * 1e6)


async def _discard(stream: trio.SocketStream) -> None:
    while await stream.receive_some():
        pass


def run_engine(command: list[str]) -> None:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as engine:
        try:
            sys.stdin.read()
        finally:
            engine.terminate()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(used.ru_utime + used.ru_stime)


def main(arguments: list[str]) -> None:
    role = arguments[0]
    if role == "engine":
        run_engine(arguments[1:])
        return
    port, numbers = int(arguments[1]), list(map(float, arguments[2:5]))
    engine = arguments[5] if len(arguments) > 5 else None
    if role == "send":
        trio.run(send, port, numbers, engine)
    else:
        trio.run(receive, numbers, engine, port)


if __name__ == "__main__":
    main(sys.argv[1:])
