"""Measures a relay on this machine. What it starts, it stops; all traffic stays on loopback.

    ./scripts/relay --version && .venv/bin/python scripts/figures.py [FIGURE ...]

`connections`: many that authenticate at once, and the memory of idle ones. `video`: the bytes that
the demo's video takes on the wire in either encoding. `tls`: handshakes per second. `memory`: of
viewers that do not read. `logout`: how long a connection outlives its session. `reconnect`: how
soon the JavaScript client goes on when its network is back, and what it loses over random cuts
(with Node). `page`: what the page loads, and how soon it shows a picture (with Chromium). `alerts`:
what becomes of alerts while relays are killed. `alert-latency`: how soon an alert is there, idle
and beside saturated video. `faults`: what clients see while something fails, and how soon all is
well again. These and `page` use the tools of the tests. `adapt`: how many pictures a second come
over thin links, and how old they are, in the parts that `--parts` names. `servers`: behind deep
queues, down and up, relay beside other servers and another checkout of relay; as root also with the
queue of the kernel. `layers`, `renditions` and `original`: a film over links of all speeds whose
smaller sizes the phone sends, relay makes, or nobody makes, and how like it is what viewers see.
`codec`: the same where the page broadcasts in H.264, VP9 and VP8; it needs Chromium, playwright
(relay[test]) and av (relay[ingest]), and takes about half an hour. `constant`: how often their
sizes change on links that never do. `cost`: the CPU that renditions take. All parts but `servers`
need numpy and simplejpeg, which are relay[renditions], and take about eleven minutes without
`codec`. `directory`: how fast the table of a cluster's live streams answers, and takes
claims. `hop`: what it costs a frame to cross from node to node. `workers`: what a second worker
gains, and what two relays would that share nothing. Both use the tools of the tests, and the best
round counts. All relays run without limits. What storms of connections, floods and large audiences
do, `relay load` measures: `storm`, `hostile` and `fairness` are among its examples.

The other clients are as plain as can be, so that their own work delays the answers little; what it
still takes is part of the times.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import ssl
from collections.abc import Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path

import trio
from adapt import PARTS, adapt
from crowds import memory
from directory_figures import directory
from layer_report import CODECS
from logout import logout
from reconnection import reconnect
from target import Peer, Target, running_relay, together
from thin_links import SERVERS

from relay.demo.video import default_video, play

SPARE_FILES = 200
WITH_TEST_TOOLS = {"page", "alerts", "alert-latency", "faults", "hop", "workers"}


async def connections(relay: Target, storm: int, idle: int) -> None:
    peers: list[Peer] = []
    before = relay.resident()
    asked = relay.stats()

    async def join() -> None:
        peer = await relay.connect()
        await peer.upgrade()
        peers.append(peer)

    await together(storm, join)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(peer.authenticate, relay.token)
    seconds = trio.current_time() - start
    queries = relay.stats()["verification_queries"] - asked["verification_queries"]
    print(f"{storm} connections authenticate at once: {seconds:.2f} s, {queries} queries")

    while len(peers) < idle:
        known = len(peers)
        await together(min(500, idle - known), join)
        async with trio.open_nursery() as nursery:
            for peer in peers[known:]:
                nursery.start_soon(peer.authenticate, relay.token)
    await trio.sleep(1)
    each = (relay.resident() - before) / len(peers) / 1024
    print(f"{len(peers)} idle authenticated connections: {each:.1f} KiB of memory each")
    for peer in peers:
        await peer.stream.aclose()


async def video(relay: Target, pictures: int) -> None:
    with closing(play(default_video())) as playing:
        jpegs = [picture.jpeg for picture in islice(playing, pictures)]
    viewers = {name: await relay.connect() for name in ("relay.v1.json", "relay.v1.msgpack")}
    sent = dict.fromkeys(viewers, 0)
    received = dict.fromkeys(viewers, 0)
    for name, viewer in viewers.items():
        await viewer.upgrade(name)
        await _say(viewer, name, type="auth", token=relay.token)
        await _say(viewer, name, type="subscribe", streamId="video", consumes=["video-frame"])
        await viewer.receive_until(b"SUBSCRIBED")
    for name in viewers:
        phone = await relay.connect()
        await phone.upgrade(name)
        await _say(phone, name, type="auth", token=relay.token)
        await _say(phone, name, type="register", streamId="video")
        await phone.receive_until(b"REGISTERED")
        for jpeg in jpegs:
            sent[name] += await _say(phone, name, type="video-frame", data=jpeg, timestamp=1)
            for encoding, viewer in viewers.items():
                received[encoding] += len(await viewer.receive_until(b"video-frame"))
        await phone.stream.aclose()
    size = sum(map(len, jpegs))
    print(f"{len(jpegs)} pictures of the demo's video: {size:,} bytes of JPEG")
    for name in viewers:
        # Each viewer saw every picture twice: from a phone of either encoding.
        for way, count in (("from the phone", sent[name]), ("to a viewer", received[name] // 2)):
            print(f"  {name} {way}: {count:,} bytes, {count / size:.4f} x")


async def _say(peer: Peer, subprotocol: str, **message: object) -> int:
    return await peer.say(binary=subprotocol == "relay.v1.msgpack", **message)


async def tls(relay: Target, handshakes: int) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # we know whom we started

    async def shake_hands() -> None:
        stream = await trio.open_tcp_stream(relay.host, relay.port)
        encrypted = trio.SSLStream(stream, context, server_hostname=relay.host)
        await encrypted.do_handshake()
        await trio.aclose_forcefully(encrypted)

    await together(handshakes // 10, shake_hands)  # warm
    start = trio.current_time()
    await together(handshakes, shake_hands)
    seconds = trio.current_time() - start
    print(f"{handshakes} TLS handshakes: {handshakes / seconds:.0f} a second, both ends here")


def servers(names: str) -> list[str]:
    return _chosen(names, SERVERS, "server")


def parts(names: str) -> list[str]:
    return _chosen(names, PARTS, "part")


def codecs(names: str) -> list[str]:
    return _chosen(names, CODECS, "codec")


def _chosen(names: str, known: Iterable[str], what: str) -> list[str]:
    asked = names.split(",")
    if unknown := set(asked) - set(known):
        raise argparse.ArgumentTypeError(f"no such {what}: {', '.join(sorted(unknown))}")
    return asked


def main() -> None:  # noqa: C901, PLR0912, PLR0915 (a line for each figure)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = (
        *("connections", "video", "tls", "memory"),
        *("logout", "reconnect", "page"),
        *("alerts", "alert-latency", "faults", "adapt", "directory"),
        *("hop", "workers"),
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(names)}")
    parser.add_argument("--storm", type=int, default=1000, help="that authenticate at once")
    parser.add_argument("--idle", type=int, default=2000, help="connections that idle")
    parser.add_argument("--pictures", type=int, default=250, help="of the demo's video")
    parser.add_argument("--handshakes", type=int, default=2000, help="of TLS")
    parser.add_argument("--viewers", type=int, default=1000, help="of a large audience")
    parser.add_argument("--seconds", type=float, default=15, help="that an age is measured for")
    parser.add_argument("--stalled-seconds", type=float, default=60, help="that viewers stall")
    parser.add_argument("--cuts", type=int, default=100, help="after which a return is timed")
    parser.add_argument("--random-cuts", type=int, default=1000, help="of a link, at any byte")
    parser.add_argument("--visits", type=int, default=7, help="of the page")
    parser.add_argument("--logouts", type=int, default=50)
    parser.add_argument("--others", type=int, default=500, help="connected beside who signs out")
    parser.add_argument("--rounds", type=int, default=50, help="of a relay that is killed")
    parser.add_argument("--alerts", type=int, default=500, help="whose way is timed")
    parser.add_argument("--fault-seconds", type=float, default=30, help="that a fault lasts")
    parser.add_argument("--fault", action="append", default=[], help="of those only this one")
    parser.add_argument(
        "--servers", type=servers, default=[], help=f"that adapt measures, of {', '.join(SERVERS)}"
    )
    parser.add_argument(
        "--parts",
        type=parts,
        default=[],
        help=f"of adapt: {'; '.join(f'{name}, {what}' for name, what in PARTS.items())}",
    )
    parser.add_argument(
        "--constant-seconds", type=float, default=300, help="that links do not change for"
    )
    parser.add_argument(
        "--codecs",
        type=codecs,
        default=[],
        help=f"that the part codec of adapt measures, of {', '.join(CODECS)}",
    )
    parser.add_argument(
        "--links-at-once", type=int, default=1, help="that the part codec of adapt measures"
    )
    parser.add_argument(
        "--before", type=Path, metavar="DIR", help="another checkout of relay, for adapt"
    )
    parser.add_argument("--live-streams", type=int, default=100_000, help="of a cluster")
    parser.add_argument("--hop-rounds", type=int, default=3, help="of hop and workers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the figures of adapt")
    options = parser.parse_args()
    if unknown := set(options.figures) - set(names):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    most = max(options.storm, options.idle, options.viewers) + SPARE_FILES
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(most, 1024), hard), hard))
    chosen = options.figures or names
    needy = WITH_TEST_TOOLS & set(chosen)
    if needy and importlib.util.find_spec("pytest") is None:
        parser.error(f"{', '.join(sorted(needy))}: first ./scripts/test -k nothing, for its tools")
    if "connections" in chosen:
        with running_relay() as relay:
            trio.run(connections, relay, options.storm, options.idle)
    if "video" in chosen:
        with running_relay() as relay:
            trio.run(video, relay, options.pictures)
    if "tls" in chosen:
        with running_relay("--dev-tls") as relay:
            trio.run(tls, relay, options.handshakes)
    if "memory" in chosen:
        with running_relay() as relay:
            trio.run(memory, relay, options.viewers, options.stalled_seconds)
    if "logout" in chosen:
        with running_relay() as relay:
            trio.run(logout, relay, options.logouts, options.others)
    if "reconnect" in chosen:
        with running_relay("--alert-rate", "1000000/minute") as relay:
            reconnect(relay, options.cuts, options.random_cuts)
    if needy:  # nothing else needs them
        from alert_figures import kills, latency  # noqa: PLC0415
        from faults import faults  # noqa: PLC0415
        from first_picture import page  # noqa: PLC0415
        from hop_figures import hop, workers  # noqa: PLC0415
    if "page" in chosen:
        with running_relay() as relay:
            page(relay, options.visits)
    if "alerts" in chosen:
        kills(options.rounds)
    if "alert-latency" in chosen:
        with running_relay() as relay:
            trio.run(latency, relay, options.alerts)
    if "faults" in chosen:
        faults(options.fault, options.fault_seconds)
    if "adapt" in chosen:
        adapt(
            options.seconds,
            options.parts,
            servers=options.servers,
            before=options.before,
            constant_seconds=options.constant_seconds,
            codecs=options.codecs,
            at_once=options.links_at_once,
            out=options.json,
        )
    if "directory" in chosen:
        directory(options.live_streams, options.seconds)
    if "hop" in chosen:
        trio.run(hop, options.hop_rounds, options.seconds)
    if "workers" in chosen:
        trio.run(workers, options.hop_rounds, options.seconds)


if __name__ == "__main__":
    main()
