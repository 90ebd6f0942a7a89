"""Ask the relay in this container whether it is well; exits with 1 if not.

    python3 health.py            it is alive (/health)
    python3 health.py /ready     it can admit clients

It asks where RELAY_BIND says that relay listens, with TLS if RELAY_TLS_CERTIFICATE or RELAY_DEV_TLS
is set, and as a proxy if RELAY_PROXY_PROTOCOL and RELAY_TRUSTED_PROXIES want that. Only Python
itself is needed, and 50 ms of it.
"""

import os
import socket
import ssl
import sys
from http.client import HTTPConnection, HTTPException

TIMEOUT = 4.0
"""Seconds; less than what the image allows."""
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (compared)
REFUSALS = {403: "allow_networks or deny_networks", 429: "connection_rate"}
"""With these, relay refuses an address. It lives, but does not say whether it is ready."""


def main() -> int:
    path = sys.argv[1] if len(sys.argv) > 1 else "/health"
    try:
        status = ask(os.environ.get("RELAY_BIND") or "localhost:3000", path)
    except (OSError, HTTPException, ValueError) as error:
        print(f"relay does not answer: {error}", file=sys.stderr)
        return 1
    if status == 200 or (path == "/health" and status in REFUSALS):
        return 0
    why = f": its setting {REFUSALS[status]} refuses this address" if status in REFUSALS else ""
    print(f"{path} is {status}{why}", file=sys.stderr)
    return 1


def ask(bind: str, path: str) -> int:
    """The status of this path at HOST:PORT."""
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    host = EVERYWHERE.get(host, host)
    connection = HTTPConnection(host, int(port), timeout=TIMEOUT)
    connection.sock = connect(host, int(port))
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def connect(host: str, port: int) -> socket.socket:
    connected = socket.create_connection((host, port), TIMEOUT)
    if owes_proxy_header(connected.getpeername()[0]):
        connected.sendall(b"PROXY UNKNOWN\r\n")
    if not is_set("RELAY_DEV_TLS") and not os.environ.get("RELAY_TLS_CERTIFICATE"):
        return connected
    trusting = ssl.create_default_context()
    trusting.check_hostname = False  # whoever listens in this container is relay
    trusting.verify_mode = ssl.CERT_NONE
    return trusting.wrap_socket(connected)


def owes_proxy_header(address: str) -> bool:
    """Whether relay expects a PROXY protocol header from here, where its own address is seen."""
    if not is_set("RELAY_PROXY_PROTOCOL"):
        return False
    import ipaddress  # noqa: PLC0415 (most need none)

    proxies = os.environ.get("RELAY_TRUSTED_PROXIES", "").split(",")
    networks = [ipaddress.ip_network(each.strip()) for each in proxies if each.strip()]
    return any(ipaddress.ip_address(address) in network for network in networks)


def is_set(switch: str) -> bool:
    return os.environ.get(switch, "").lower() in {"1", "true", "yes", "on"}


if __name__ == "__main__":
    sys.exit(main())
