"""Links over time: their files, and what they are to a client."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.load.actors.network.group_networks import FROZEN, GroupNetworks, check_links
from relay.load.actors.sent_files import NotSent, SentFiles
from relay.load.report.words.links import link_in_words, link_lines
from relay.load.scenario.link_trace import (
    BadLink,
    LinkHead,
    LinkStep,
    link_names,
    parse_link,
    read_named_link,
    write_link,
)
from relay.load.scenario.parsing import parse_scenario
from relay.load.scenario.schedule import Timeline
from relay.load.scenario.schema import ScenarioError

HEAD = LinkHead(length=10.0, source="measured")
STEPS = [LinkStep(0.0, 8e6, 1e6, 0.06), LinkStep(4.0, 0.0, 0.0, 0.06), LinkStep(5.0, 2e6, 1e6)]
CONTENT = write_link(HEAD, STEPS)


def networks(source: str, folder: Path, files: SentFiles | None = None) -> GroupNetworks:
    made = GroupNetworks(Timeline(parse_scenario(source, "mine.toml", folder)), files)
    made.open()
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.link").write_bytes(CONTENT)
    return tmp_path


def test_a_recorded_link_shapes_both_directions_over_time_in_a_loop(folder: Path) -> None:
    made = networks('[phones.p]\nlink = { recording = "train.link", together = true }\n', folder)
    first, until = made.at("p", 0, 0.0)
    assert (first.bandwidth, first.upload, first.delay, until) == (8e6, 1e6, 0.03, 4.0)
    hole, until = made.at("p", 7, 4.5)
    assert (hole.bandwidth, hole.upload, until) == (0.0, 0.0, 5.0)
    assert made.at("p", 0, 9.0) == (made.at("p", 0, 5.0)[0], 10.0)
    assert made.at("p", 0, 24.5) == (hole, 25.0)
    assert not made.is_perfect("p")
    assert made.is_narrow("p")


def test_each_client_is_at_a_place_of_its_own_which_the_seed_chooses(folder: Path) -> None:
    source = '[phones.p]\ncount = 40\nlink = { recording = "train.link" }\n'
    made, again = (networks(source, folder) for _ in range(2))
    at = [made.at("p", number, 1.0) for number in range(40)]
    assert at == [again.at("p", number, 1.0) for number in range(40)]
    in_a_hole = sum(network.bandwidth == 0 for network, _ in at)
    assert 0 < in_a_hole < 20
    assert all(until > 1.0 for _, until in at)


def test_a_scenario_may_have_another_round_trip_and_other_queues(folder: Path) -> None:
    made = networks(
        '[phones.p]\nlink = { recording = "train.link", together = true,'
        ' round_trip = "200ms", queue = "64KiB" }\n',
        folder,
    )
    network, _ = made.at("p", 0, 0.0)
    assert (network.delay, network.queue) == (0.1, 65536)
    assert network.upload_queue == 256 << 10


def test_a_link_and_a_network_replace_each_other_in_stages(folder: Path) -> None:
    made = networks(
        """
        [phones.p]
        link = "slow-4g"
        [[stages]]
        duration = "10s"
        [[stages]]
        duration = "10s"
        [stages.change.p]
        network = { upload = "9Mbit/s" }
        [[stages]]
        duration = "10s"
        [stages.change.p]
        link = "variable"
        """,
        folder,
    )
    assert made.at("p", 0, 5.0)[0].upload == 750e3
    assert made.at("p", 0, 9.999)[1] == 10.0
    network, until = made.at("p", 0, 15.0)
    assert (network.upload, network.bandwidth, until) == (9e6, None, 20.0)
    assert made.at("p", 0, 25.0)[0].upload in {1e6, 2.5e6, 0.6e6}


def test_an_app_that_freezes_lets_nothing_pass(folder: Path) -> None:
    made = networks(
        '[viewers.v]\nwatch = "p"\npauses = { every = "10s", lasts = "4s",'
        ' connection = "freezes" }\n[phones.p]\n',
        folder,
    )
    at, frozen = 0.0, 0.0
    while at < 100:
        network, until = made.at("v", 3, at)
        assert until > at
        frozen += (min(until, 100.0) - at) * (network == FROZEN)
        at = until
    assert frozen == pytest.approx(40, abs=4)
    assert made.is_narrow("v")


def test_a_process_that_may_open_no_file_uses_what_was_sent(tmp_path: Path) -> None:
    source = '[phones.p]\nlink = { recording = "train.link" }\n'
    made = networks(source, tmp_path, SentFiles(links={"train.link": CONTENT}))
    assert made.is_narrow("p")
    with pytest.raises(NotSent, match=r"the link train\.link was not sent"):
        networks(source, tmp_path, SentFiles())


@pytest.mark.parametrize("name", link_names())
def test_a_named_link_can_be_read_and_says_where_its_numbers_come_from(name: str) -> None:
    trace = read_named_link(name)
    assert len(trace.head.source) > 40
    assert all(step.round_trip for step in trace.steps)
    assert sum((step.down or 0) > 0 for step in trace.steps) > 0
    assert "round trip" in link_in_words(trace)
    assert any(line.startswith(name) for line in link_lines())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            'link = "lte-driv"',
            "phones.p.link: there is no link named 'lte-driv'; did you mean lte-drive?",
        ),
        ("link = 3", "phones.p.link: expected the name of a link, or a table with recording"),
        ("link = {}", "phones.p.link: use one of name and recording"),
        ('link = {recordin = "x"}', "recordin: there is no such key; did you mean recording?"),
        ('link = "slow-4g"\nnetwork = {delay = "1s"}', "phones.p: use one of network and link"),
        ('pauses = {every = "5s", lasts = "5s"}', "lasts must be shorter than every"),
        ('pauses = {every = "5s"}', "pauses.lasts: is missing: expected a duration"),
        (
            'pauses = {every = "5s", lasts = "1s", connection = "sleeps"}',
            'connection: expected "closes", "freezes" or "stays"',
        ),
        ("arrival = {curve = [1, 2]}", "curve needs over"),
        ('arrival = {over = "1s", curve = [0, 0]}', "curve must have numbers from 0"),
        ('arrival = {over = "1s", curve = [-1, 2]}', "curve must have numbers from 0"),
    ],
)
def test_a_mistake_is_named_with_its_place(source: str, words: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        parse_scenario(f"[phones.p]\n{source}\n", "mine.toml", Path())
    assert words in str(raised.value)


def test_a_misspelt_link_of_a_stage_is_named_with_its_stage() -> None:
    source = '[phones.p]\n[[stages]]\nduration = "1s"\n[stages.change.p]\nlink = "slow4g"\n'
    with pytest.raises(ScenarioError, match=r"stages\[0\]\.change\.p\.link.* mean slow-4g"):
        parse_scenario(source, "mine.toml", Path())


def test_viewers_have_nothing_that_stops_while_they_stay_connected() -> None:
    stays = 'pauses = {every = "5s", lasts = "1s", connection = "stays"}'
    source = f'[phones.p]\n{stays}\n[viewers.v]\nwatch = "p"\n{stays}\n'
    with pytest.raises(ScenarioError, match=r'viewers\.v: connection = "stays" is for phones'):
        parse_scenario(source, "mine.toml", Path())


def test_a_recording_that_is_not_there_is_said_before_the_run(tmp_path: Path) -> None:
    source = '[phones.p]\nlink = { recording = "gone.link" }\n'
    scenario = parse_scenario(source, "mine.toml", tmp_path)
    with pytest.raises(ScenarioError, match=r"mine\.toml: p\.link: cannot read .*gone\.link"):
        check_links(scenario, "mine.toml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a recorded link"),
        (b"\xff\x00", "is not a recorded link"),
        (b'{"format":"relay-trace-1"}\n', "was not made by `relay load record --link`"),
        (write_link(HEAD, []), "has no step at 0 s"),
        (write_link(HEAD, [LinkStep(1.0)]), "has no step at 0 s"),
        (write_link(HEAD, [LinkStep(0.0), LinkStep(0.0)]), "out of order"),
        (write_link(HEAD, [LinkStep(0.0), LinkStep(10.0)]), "out of order"),
        (write_link(HEAD, [LinkStep(0.0, -1.0)]), "out of range"),
        (write_link(HEAD, [LinkStep(0.0, 1e300)]), "out of range"),
        (write_link(HEAD, [LinkStep(0.0, 1.0, 1.0, 1e9)]), "out of range"),
        (write_link(LinkHead(length=0.0), STEPS[:1]), "a length of 0.0 s"),
        (write_link(LinkHead(length=1e-300), STEPS[:1]), "a length of 1e-300 s"),
        (write_link(LinkHead(length=1.0, queue=0), STEPS[:1]), "a queue of 0 bytes"),
        (b'{"format":"relay-link-1","length":NaN}\n{"at":0}\n', "is not a recorded link"),
        (b"[" * 100_000, "is not a recorded link"),
    ],
)
def test_what_is_no_link_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(BadLink) as raised:
        parse_link(content, "x.link")
    assert words in str(raised.value)
