"""Ask the relay in this container whether it is well; exits with 1 if not.

    python3 health.py            it is alive (/health)
    python3 health.py /ready     it can admit clients

It asks where RELAY_BIND says that relay listens, with TLS if RELAY_TLS_CERTIFICATE or RELAY_DEV_TLS
is set. Only Python itself is needed, and 50 ms of it.
"""

import os
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection

TIMEOUT = 4.0
"""Seconds; less than what the image allows."""
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (compared)


def main() -> int:
    path = sys.argv[1] if len(sys.argv) > 1 else "/health"
    try:
        status = ask(os.environ.get("RELAY_BIND", "localhost:3000"), path)
    except (OSError, HTTPException, ValueError) as error:
        print(f"relay does not answer: {error}", file=sys.stderr)
        return 1
    if status != 200:
        print(f"{path} is {status}", file=sys.stderr)
        return 1
    return 0


def ask(bind: str, path: str) -> int:
    """The status of this path at HOST:PORT."""
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    connection = connect(EVERYWHERE.get(host, host), int(port))
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def connect(host: str, port: int) -> HTTPConnection:
    if not has_tls():
        return HTTPConnection(host, port, timeout=TIMEOUT)
    trusting = ssl.create_default_context()
    trusting.check_hostname = False  # whoever listens in this container is relay
    trusting.verify_mode = ssl.CERT_NONE
    return HTTPSConnection(host, port, timeout=TIMEOUT, context=trusting)


def has_tls() -> bool:
    return bool(os.environ.get("RELAY_TLS_CERTIFICATE")) or os.environ.get(
        "RELAY_DEV_TLS", ""
    ).lower() in {"1", "true", "yes", "on"}


if __name__ == "__main__":
    sys.exit(main())
