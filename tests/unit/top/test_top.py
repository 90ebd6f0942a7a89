"""What `relay top` makes of the answers of a relay, and of what only claims to be one."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from relay.cli import main
from relay.protocol.reports import FiguresReport, ReadyReport, StatsReport
from relay.top.answers import NotARelay, read
from relay.top.screen import screen
from relay.top.snapshots import Snapshot, SnapshotDelta
from tests.unit.relay_answers import CONSUMER, LINK, READY, STATS, STREAM


def look(
    at: float,
    *streams: dict[str, Any],
    stats: dict[str, Any] | None = None,
    ready: dict[str, Any] | None = None,
    **figures: Any,
) -> Snapshot:
    return Snapshot(
        at,
        read(json.dumps(STATS | (stats or {})).encode(), StatsReport, "/stats"),
        read(json.dumps(READY | (ready or {})).encode(), ReadyReport, "/ready"),
        read(json.dumps({"streams": streams, **figures}).encode(), FiguresReport, "/figures"),
    )


def shown(
    delta: SnapshotDelta | None, trouble: str | None = None, *, width: int = 100, height: int = 40
) -> str:
    console = Console(
        file=io.StringIO(),
        width=width,
        height=height,
        force_terminal=True,
        markup=False,
        highlight=False,
        emoji=False,
    )
    lines = console.render_lines(screen("http://localhost:3000", delta, trouble, console))
    return "\n".join("".join(part.text for part in line).rstrip() for line in lines)


EDGE = {"node": "a", "viewers": 2, "frames": 3, "written": 3, "dropped": {}, "waiting": 0}
NODE, OTHER, THIRD = "5f2c9d0e8a7b1634", "a000000000000001", "b000000000000002"


def test_the_node_of_a_stream_is_shown_where_there_are_several() -> None:
    streams = [
        {**STREAM, "streamId": "local", "node": NODE},
        {**STREAM, "streamId": "sent", "node": NODE, "edges": [EDGE, EDGE | {"node": THIRD}]},
        {**STREAM, "streamId": "carried", "node": NODE, "carriedFrom": OTHER, "received": 7},
    ]
    snapshot = look(0, *streams, nodes=[{"node": NODE}])
    lines = {line.split()[0]: line for line in shown(SnapshotDelta(snapshot)).splitlines() if line}
    assert lines["stream"].endswith("node")
    assert lines["local"].endswith("here")
    assert lines["sent"].endswith("to 2")
    assert lines["carried"].endswith("from a0000000")
    assert "nodes" not in lines  # there is nothing to say
    assert "node" not in shown(SnapshotDelta(look(0, *streams))).partition("stream ")[2]


def test_a_stream_has_a_line_and_rates_of_its_own_for_each_node() -> None:
    nodes = [
        {"node": NODE, "cannotReach": [{"node": THIRD, "why": "refused\x1b"}]},
        {"node": OTHER},
    ]
    viewer = STREAM["consumers"][0] | {"connection": 17, "link": {"roundTripSeconds": 0.01}}

    def at(second: float, here: int, there: int) -> Snapshot:
        return look(
            second,
            {**STREAM, "node": NODE, "frames": here, "consumers": [viewer]},
            {**STREAM, "node": OTHER, "frames": there, "carriedFrom": NODE, "consumers": [viewer]},
            nodes=nodes,
            silent=[THIRD],
        )

    delta = SnapshotDelta(at(10, 130, 80), at(0, 30, 30))
    assert {line.place: line.fps for line in delta.streams()} == {
        "5f2c9d0e": 10,
        "a0000000 from 5f2c9d0e": 5,
    }
    assert sorted(line.name for line in delta.viewers()) == ["5f2c9d0e/17", "a0000000/17"]
    text = shown(delta, width=200)
    assert "2 answer, b0000000 is silent, 5f2c9d0e cannot reach b0000000: refused" in text
    assert "\x1b" not in text


def test_rates_are_what_happened_between_two_looks() -> None:
    later = {
        "frames_accepted": 1060,
        "connections_accepted": 42,
        "frames_to_consumers": {
            **STATS["frames_to_consumers"],
            "written": 3080,
            "dropped": {"superseded": 94, "left": 7, "too_late": 2},
        },
        "frame_age": {"0.001": 100, "0.01": 98, "inf": 2},
    }
    grown = {**CONSUMER, "written": 150, "dropped": {"superseded": 11, "left": 1}}
    now = look(12.0, {**STREAM, "frames": 560, "consumers": [grown, CONSUMER]}, stats=later)
    delta = SnapshotDelta(now, look(10.0, STREAM))
    assert delta.frames_in == 30
    assert delta.frames_out == 90
    assert delta.arrivals == 1
    assert delta.alerts == 0
    assert delta.drops() == {"superseded": 2, "left": 0, "too_late": 1}
    half, most = delta.ages() or (0, 0)
    assert half == pytest.approx(0.001 + 0.009 * 50 / 98)
    assert most == pytest.approx(0.01 + 0.01 * 0.5)
    (stream,) = delta.streams()
    assert (stream.fps, stream.viewers, stream.written, stream.dropped, stream.waiting) == (
        *(30, 2, 30, 1),
        2,
    )


def test_without_an_earlier_look_there_are_no_rates() -> None:
    delta = SnapshotDelta(look(1.0, STREAM))
    assert delta.frames_in is delta.frames_out is delta.arrivals is None
    assert delta.ages() is None
    assert delta.streams()[0].fps is None
    assert "-/s in, -/s out, 3 waiting" in shown(delta)


@pytest.mark.parametrize(
    "delta",
    [
        SnapshotDelta(look(2.0, stats={"frames_accepted": 5}), look(1.0)),  # it was started again
        SnapshotDelta(look(1.0), look(1.0)),
    ],
)
def test_a_rate_that_cannot_be_told_is_none(delta: SnapshotDelta) -> None:
    assert delta.frames_in is None


def test_a_stream_that_began_anew_has_no_rate_yet() -> None:
    reborn = {**STREAM, "epoch": 2, "frames": 700}
    (stream,) = SnapshotDelta(look(2.0, reborn), look(1.0, STREAM)).streams()
    assert stream.fps is None


def test_viewers_that_left_make_no_rate_below_nothing() -> None:
    alone = {**STREAM, "frames": 530, "consumers": [CONSUMER]}
    (stream,) = SnapshotDelta(look(2.0, alone), look(1.0, STREAM)).streams()
    assert (stream.fps, stream.written, stream.dropped) == (30, None, None)


def test_the_screen_says_what_is_well_and_what_is_not() -> None:
    text = shown(SnapshotDelta(look(2.0, STREAM), look(1.0, STREAM)))
    for words in (
        "relay at http://localhost:3000   ready",
        "12 open, 10 authenticated, 2 unauthenticated, 0/s new",
        "3 live, 2 of them streaming, 9 subscriptions",
        "superseded 0/s, left 0/s",
        "no frame was written",
        "4 stored, 0/s, 8 delivered",
        "client closed 28",
        "messages 3",
        "database ok, verification running, audit failed",
        "front-door",
        "q or Ctrl-C quits",
    ):
        assert words in text
    assert "auth failed" not in text  # of which there was none


def test_trouble_stands_at_the_top_over_what_was_known_last() -> None:
    text = shown(SnapshotDelta(look(1.0, STREAM)), "nobody answers there")
    first, *_ = text.splitlines()
    assert first == "relay at http://localhost:3000   nobody answers there; retrying"
    assert "front-door" in text
    assert shown(None, "nobody answers there").splitlines()[0] == first
    draining = SnapshotDelta(look(1.0, ready={"ready": False, "draining": True}))
    assert "draining" in shown(draining)
    assert "not ready" in shown(SnapshotDelta(look(1.0, ready={"ready": False})))


@pytest.mark.parametrize(("width", "height"), [(100, 30), (60, 16), (40, 24), (20, 5), (300, 80)])
def test_it_fits_the_terminal_or_says_how_many_streams_it_leaves_out(
    width: int, height: int
) -> None:
    streams = [{**STREAM, "streamId": f"stream-{n}"} for n in range(200)]
    text = shown(
        SnapshotDelta(look(2.0, *streams), look(1.0, *streams)), width=width, height=height
    )
    assert all(len(line) <= width for line in text.splitlines())
    listed = text.count("stream-")
    if width >= 60 and height >= 16:
        assert len(text.splitlines()) <= height
        assert f"and {200 - listed} more" in text


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_the_name_of_a_stream_is_shown_on_narrow_terminals_too(width: int) -> None:
    text = shown(SnapshotDelta(look(2.0, STREAM), look(1.0, STREAM)), width=width)
    assert "front-door" in text


def watched(*viewers: tuple[int, dict[str, Any] | None], stream_id: str = "door") -> dict[str, Any]:
    """A stream with these connections as consumers, and their links."""
    consumers = [
        {**CONSUMER, "connection": number, "layer": "m", "link": link} for number, link in viewers
    ]
    return {**STREAM, "streamId": stream_id, "consumers": consumers}


CALM = {"roundTripSeconds": 0.002, "calm": True}


def lines_of_viewers(text: str) -> list[list[str]]:
    """The words of each line of the table of viewers."""
    return [line.split() for line in text.splitlines() if line.startswith("#")]


def test_the_links_of_viewers_are_shown_the_slowest_first() -> None:
    fast, slow = LINK | {"bytesPerSecond": 250_000}, LINK | {"bytesPerSecond": 1_000}
    stream = watched((1, CALM), (2, {"bytesUnderWay": 0}), (3, fast), (4, slow), (5, None))
    assert lines_of_viewers(shown(SnapshotDelta(look(1.0, stream)))) == [
        ["#4", "door", "8", "kbit/s", "41", "ms", "15.7", "KiB", "1", "m"],
        ["#3", "door", "2", "Mbit/s", "41", "ms", "15.7", "KiB", "1", "m"],
        ["#2", "door", "-", "-", "0", "KiB", "1", "m"],
        ["#1", "door", "enough", "2", "ms", "-", "1", "m"],
    ]


def test_a_viewer_of_several_streams_has_one_line() -> None:
    streams = watched((7, LINK), stream_id="door"), watched((7, LINK), stream_id="hall")
    ((*words, waiting, _),) = lines_of_viewers(shown(SnapshotDelta(look(1.0, *streams))))
    assert words[:3] == ["#7", "2", "streams"]
    assert waiting == "2"


def test_where_no_link_is_measured_there_is_no_table_of_viewers() -> None:
    """Nor in what an older relay answers, which says nothing of links."""
    for stream in (STREAM, watched((1, None))):
        assert "bandwidth" not in shown(SnapshotDelta(look(1.0, stream)))


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (30, ["viewer", "stream"]),
        (40, ["viewer", "stream", "bandwidth"]),
        (60, ["viewer", "stream", "bandwidth", "round", "trip"]),
        (70, ["viewer", "stream", "bandwidth", "round", "trip", "under", "way"]),
    ],
)
def test_on_narrow_terminals_fewer_columns_of_viewers_are_shown(
    width: int, columns: list[str]
) -> None:
    text = shown(SnapshotDelta(look(1.0, watched((7, LINK)))), width=width)
    (head,) = (line.split() for line in text.splitlines() if line.startswith("viewer "))
    assert head == columns
    assert "door" in text.partition("viewer ")[2]


@pytest.mark.parametrize(("width", "height"), [(100, 30), (60, 24), (300, 80)])
def test_many_streams_and_viewers_share_the_terminal(width: int, height: int) -> None:
    streams = [watched((2 * n, LINK), (2 * n + 1, CALM), stream_id=f"s-{n}") for n in range(200)]
    text = shown(SnapshotDelta(look(1.0, *streams)), width=width, height=height)
    assert len(text.splitlines()) <= height
    viewers = len(lines_of_viewers(text))
    listed = sum(line.startswith("s-") for line in text.splitlines())
    assert f"and {200 - listed} more\n" in text
    assert f"and {400 - viewers} more viewers" in text
    assert abs(listed - viewers) <= 2


def test_where_there_is_no_room_for_viewers_streams_have_it_all() -> None:
    streams = [watched((n, LINK), stream_id=f"s-{n}") for n in range(200)]
    text = shown(SnapshotDelta(look(1.0, *streams)), width=100, height=19)
    assert "bandwidth" not in text
    assert sum(line.startswith("s-") for line in text.splitlines()) == 5


def test_a_snapshot_that_fills_no_screen_has_the_slowest_viewers() -> None:
    streams = [watched((n, LINK | {"bytesPerSecond": n}), stream_id=f"s-{n}") for n in range(200)]
    console = Console(file=io.StringIO(), width=100)
    delta = SnapshotDelta(look(1.0, *streams))
    console.print(screen("http://localhost:3000", delta, None, console, live=False))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    numbers = [line[0] for line in lines_of_viewers(text)]
    assert numbers == [f"#{n}" for n in range(19)]
    assert "and 181 more viewers" in text


HOSTILE = [
    "\x1b]0;owned\x07\x1b[2J\x1b[31m",
    "[bold red]x[/]",
    ":smile:",
    "a\r\nb\x00\x9b31m",
    "\u202egnp.exe",
    "x" * 1000,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_gets_at_the_terminal(name: str) -> None:
    delta = SnapshotDelta(
        look(
            2.0,
            {**watched((1, LINK)), "streamId": name, "status": name},
            stats={
                "endings": {name: 1},
                "limits_hit": {name: 1},
                "profile": name,
                "frames_to_consumers": {**STATS["frames_to_consumers"], "dropped": {name: 1}},
            },
            ready={"database": name, "services": {name: name}},
        )
    )
    text = shown(delta, trouble=name)
    assert all(each.isprintable() or each == "\n" for each in text)
    if name == "[bold red]x[/]":
        assert name in text


@given(st.text(max_size=1000))
def test_whatever_a_stream_is_called_its_line_is_printable(name: str) -> None:
    text = shown(SnapshotDelta(look(2.0, watched((1, LINK), stream_id=name))))
    assert all(each.isprintable() or each == "\n" for each in text)


GARBAGE = [
    b"",
    b"<html>",
    b"[]",
    b"null",
    b"{}",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"streams": 7}',
    b'{"streams": [{"streamId": "x"}]}',
    json.dumps({"streams": [{**STREAM, "frames": -1}]}).encode(),
    json.dumps({"streams": [{**STREAM, "frames": 10**400}]}).encode(),
    json.dumps({"streams": [{**STREAM, "frames": 1.5}]}).encode(),
    json.dumps({"streams": [{**STREAM, "streamId": "x" * 1001}]}).encode(),
    json.dumps({"streams": [watched((1, {"roundTripSeconds": -1}))]}).encode(),
    json.dumps({"streams": [watched((1, {"roundTripSeconds": 1e300}))]}).encode(),
    json.dumps({"streams": [watched((1, {"bytesPerSecond": "x"}))]}).encode(),
]


@pytest.mark.parametrize("body", GARBAGE)
def test_what_is_no_answer_of_a_relay_is_told_from_one(body: bytes) -> None:
    with pytest.raises(NotARelay, match="the server at /figures is not a relay"):
        read(body, FiguresReport, "/figures")


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_none(body: bytes) -> None:
    for kind in (FiguresReport, StatsReport, ReadyReport):
        try:
            read(body, kind, "/x")
        except NotARelay:
            continue


def test_ages_by_bounds_that_are_no_numbers_break_nothing() -> None:
    odd = {"frame_age": {"nan": 1, "-1": 1, "x": 1, "1e400": 1, "0.5": 1}}
    assert (
        SnapshotDelta(look(2.0, stats=odd), look(1.0, stats={"frame_age": {}})).ages() is not None
    )


@pytest.mark.parametrize(
    ("arguments", "variable", "words"),
    [
        ([], None, "set a token with RELAY_TOKEN or --token-file"),
        ([], "  ", "set a token with"),
        ([], "two tokens", "RELAY_TOKEN does not contain exactly one token"),
        ([], "sécret", "RELAY_TOKEN does not contain exactly one"),
        ([], "s" * 8193, "RELAY_TOKEN does not contain exactly one"),
        (["--token-file", "/nowhere/token"], None, "/nowhere/token: No such file"),
        (["http://relay.example.org"], "x", "http:// is allowed for this machine only"),
        (["https://relay.example.org/?token=x"], "x", "expected the URL of a relay"),
        (["https://u:p@relay.example.org"], "x", "ends up in logs"),
        (["localhost:3000"], "x", "expected a URL that begins with https:// or http://"),
        (["http://"], "x", "expected a URL such as https://"),
        (["--interval", "0.1"], "x", "--interval"),
        (["--token", "x"], None, "--token"),
    ],
)
def test_misuse_is_one_line(
    arguments: list[str],
    variable: str | None,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable is not None:
        monkeypatch.setenv("RELAY_TOKEN", variable)
    assert main.main(["top", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err
    assert "sécret" not in err
    assert "two tokens" not in err
