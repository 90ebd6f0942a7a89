"""Phones and viewers of a relay as users of Locust. docs/load-testing.md says how to run it.

Locust knows no WebSockets and no streams, so this speaks relay's JSON with `websocket-client`,
which comes with Locust. Each frame that a phone sends and each that a viewer receives is a request
to Locust; the response time of a received one is its age since it was sent.
"""

import base64
import itertools
import json
import os
import time

import websocket
from locust import User, constant_pacing, task

PHONES = 2
FPS = 10
FRAME_BYTES = 16 * 1024
TIMEOUT = 10
"""Seconds that an answer, or the next frame, may take."""


def now_ms() -> float:
    return time.time() * 1000


class RelayError(Exception):
    """What the relay answers in place of a success."""


class RelayUser(User):
    """A connection that is authenticated. `--host` is the relay, as in ws://localhost:3000."""

    abstract = True
    socket: websocket.WebSocket | None = None

    def on_start(self) -> None:
        url = f"{self.host}/streams/subscribe"
        with self.environment.events.request.measure("WS", "connect"):
            self.socket = websocket.create_connection(
                url,
                timeout=TIMEOUT,
                skip_utf8_validation=True,  # it is done in Python, and takes longer than all else
            )
        self.ask("auth", token=os.environ["RELAY_TOKEN"])

    def on_stop(self) -> None:
        if self.socket is not None:  # the relay may have been away
            self.socket.close(timeout=1)

    def ask(self, kind: str, **fields: object) -> None:
        """Send a request and wait for its answer."""
        with self.environment.events.request.measure("WS", kind):
            self.socket.send(json.dumps({"type": kind, "id": kind, **fields}))
            while (answer := json.loads(self.socket.recv())).get("id") != kind:
                pass
            if answer["type"] == "error":
                raise RelayError(answer["code"])

    def record(self, name: str, milliseconds: float, size: int) -> None:
        self.environment.events.request.fire(
            request_type="WS",
            name=name,
            response_time=milliseconds,
            response_length=size,
            exception=None,
            context={},
        )


class Phone(RelayUser):
    fixed_count = PHONES
    wait_time = constant_pacing(1 / FPS)
    numbers = itertools.count()

    def on_start(self) -> None:
        super().on_start()
        self.frame = base64.b64encode(os.urandom(FRAME_BYTES)).decode()
        self.ask("register", streamId=f"locust-{next(self.numbers) % PHONES}")

    @task
    def send_frame(self) -> None:
        begun = now_ms()
        frame = {"type": "video-frame", "data": self.frame, "timestamp": int(begun)}
        self.socket.send(json.dumps(frame))
        self.record("send a frame", now_ms() - begun, FRAME_BYTES)


class Viewer(RelayUser):
    numbers = itertools.count()

    def on_start(self) -> None:
        super().on_start()
        stream = f"locust-{next(self.numbers) % PHONES}"
        self.ask("subscribe", streamId=stream, consumes=["video-frame"])

    @task
    def receive(self) -> None:
        text = self.socket.recv()
        message = json.loads(text)
        if message["type"] == "video-frame":
            self.record("age of a frame", now_ms() - message["timestamp"], len(text))
        elif message["type"] == "error":
            raise RelayError(message["code"])
