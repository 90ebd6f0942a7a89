"""Scenarios: what is read, and the words for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.cli.load.scenario import EXAMPLES
from relay.load.scenario.groups import FrameSource, Network, PhoneGroup, PhoneLayer
from relay.load.scenario.parsing import load_scenario, parse_scenario
from relay.load.scenario.schema import ScenarioError

STAGE = "[[stages]]\nduration = '1s'\n[stages.change.a]\n"
RADIO = "[phones.a]\nnetwork = {bandwidth = '1Mbit/s'}\n"
TUNNEL = (
    "[[stages]]\nduration = '1s'\nname = 'tunnel'\n"
    "[stages.change.a]\nnetwork = {bandwidth = '0bit/s'}"
)
LAYERS = "[phones.a]\nlayers = [{id = 'l', size = 9}, {id = 'm', size = 99}]\n"
VIEWERS = "[viewers.v]\nwatch = 'a'\n"
FIVE = [f"{{id = 'l{number}', size = 9}}" for number in range(5)]
NO_WIRE = "a has no network.bandwidth during tunnel, so it has no wire time"


def parse(source: str) -> object:
    return parse_scenario(source, "mine.toml", Path())


def test_durations_sizes_and_bandwidths_are_read_with_their_units() -> None:
    scenario = parse_scenario(
        """
        duration = "1.5min"
        grace = "500ms"
        [phones.front]
        frames = "16KiB"
        network = { bandwidth = "1Mbit/s", delay = "40 ms" }
        arrival = { rate = "30/min" }
        """,
        "mine.toml",
        Path(),
    )
    front = scenario.phones["front"]
    assert isinstance(front, PhoneGroup)
    assert (scenario.length, scenario.grace) == (90.0, 0.5)
    assert front.frames == FrameSource(size=16384)
    assert front.network == Network(bandwidth=1e6, delay=0.04)
    assert front.arrival.rate == 0.5
    assert scenario.target.start


def test_layers_and_deltas_are_read_with_their_sizes() -> None:
    scenario = parse_scenario(
        """
        [phones.a]
        keyframe_every = 50
        layers = [
            { id = "l", width = 320, size = "8KiB", delta_size = "1KiB" },
            { id = "h", size = "64KiB", delta_size = "9KiB" },
        ]
        [viewers.v]
        watch = "a"
        layer = "h"
        max_width = 640
        """,
        "mine.toml",
        Path(),
    )
    phones, viewers = scenario.phones["a"], scenario.viewers["v"]
    assert phones.layers == (
        PhoneLayer("l", 8192, 320, 1024),
        PhoneLayer("h", 65536, None, 9216),
    )
    assert (phones.keyframe_every, viewers.layer, viewers.max_width) == (50, "h", 640)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "[phones.a]\nbackground = true",
            "mine.toml: workers: must be 2 or more, since a group is in the background",
        ),
        ("[phones.a]\n[tokens]\nusers = 3\nsessions = 2", "tokens: sessions must not be fewer"),
        ("[viewers.v]\nwatch = false\nlayer = 'm'", "viewers.v.layer: needs watch"),
        ("[hostiles.h]\nkind = 'silent'\nevery = '1s'", "hostiles.h: every is for pings, "),
        ("[hostiles.h]\nkind = 'slient'", "hostiles.h.kind: expected one of silent, garbage"),
        ("[phones.front]\ncuont = 3", "front.cuont: there is no such key; did you mean count?"),
        ("[phone.front]", "phone: there is no such key; did you mean phones?"),
        ("[phones.front]\ncount = -1", "phones.front.count: expected a whole number, 0 to 100000"),
        ("[phones.front]\ncount = true", "phones.front.count: expected a whole number"),
        ("[phones.front]\nframes = '16 kilo'", "phones.front.frames: expected a size such as"),
        ("[phones.front]\nframes = '1GiB'", "expected a size such as 16KiB, up to 12MiB, or a"),
        ("[phones.a]\nframes = {size = '1KiB', most = '13MiB'}", "most: expected a size such as"),
        ("[phones.front]\nframes = {size = '1KiB', video = 'x'}", "use one of size, video and"),
        ("[phones.front]\nnetwork = {bandwidth = '1Mb'}", "bandwidth: expected a bandwidth such"),
        ("[phones.front]\narrival = 'soon'", "arrival: expected \"at once\" or a table"),
        ("[phones.front]\narrival = {over = '1s', rate = '1/s'}", "use one of over, rate, poisson"),
        ("[phones.Front]", "phones.Front: a name consists of lowercase letters"),
        ("[viewers.v]\nwatch = 'a'", "viewers.v.watch: there is no group of phones named 'a'"),
        ("[viewers.v]", "viewers.v.watch: is missing: expected the name of a group of phones"),
        ("[phones.a]\n[viewers.a]\nwatch = 'a'", "two groups are named a"),
        ("duration = 10\n[phones.a]", "duration: expected a duration such as"),
        ("duration = '0s'\n[phones.a]", "duration: expected a duration such as"),
        ("check = ['frame_aeg.p99 < 1s']\n[phones.a]", "check[0]: there is no figure or group"),
        ("[target]\nurl = 'ws://x'\nstart = true\n[phones.a]", "use one of start = true and url"),
        ("stages = [{duration = '1s', cut = ['b']}]\n[phones.a]", "there is no group 'b'"),
        ("[[stages]]\n[phones.a]", "stages[0].duration: is missing"),
        (f"{STAGE}fpss = 3\n[phones.a]", "fpss: cannot be changed; did you mean fps?"),
        (f"{STAGE}fps = 'x'\n[phones.a]", "fps: expected a number"),
        ("duration = '1s'", "it has no actors"),
        ("phones = 3", "phones: expected tables by name"),
        ("seed = 1e400\n[phones.a]", "seed: expected a whole number"),
        ("not toml", "is not TOML"),
        (f"seed = {'9' * 5000}\n[phones.a]", "a number that is too long"),
        (f"x = {'[' * 5000}", "too deep a nesting"),
        (f"[phones.a]\nfps = {'9' * 400}", "phones.a.fps: expected a number from 0 to 1000"),
        (f"[phones.a]\nframes = '{'9' * 400}MiB'", "phones.a.frames: expected a size"),
        (f"[phones.a]\nframes = {'9' * 400}", "phones.a.frames: expected a size"),
        (f"duration = '{'9' * 400}s'\n[phones.a]", "duration: expected a duration"),
        (f"[services.s]\nwatch = 'a'\nrate = '{'9' * 400}/s'\n[phones.a]", "expected a rate"),
        ('name = "a\\u001b[31m"\n[phones.a]', "name: expected a name, not 'a\\x1b[31m'"),
        ("tokens.command = []\n[phones.a]", "tokens.command: expected a list: a program"),
        ("[phones.generator]", "phones.generator: is the name of a figure: choose another name"),
        ("[phones.alerts]", "phones.alerts: is the name of a figure: choose another name"),
        ("check = ['a < 3']\n[phones.a]", "check[0]: name a figure of a, as in a.frame_age.p99"),
        ("check = ['a.frame_age.p50 < 2 x wire']\n[phones.a]", "a has no network.bandwidth"),
        ("[phones.a]\nnetwork = {queue = '4MiB'}", "a.network: queue needs bandwidth"),
        ("[phones.a]\nnetwork = {upload_queue = '4MiB'}", "a.network: upload_queue needs upload"),
        ("[phones.a]\nnetwork = {bandwidth = '1Mbit/s', queue = '4 Mb'}", "queue: expected a size"),
        ("[phones.a]\nnetwork = {queu = '4MiB'}", "network.queu: there is no such key; did"),
        (f"{STAGE}network = {{queu = 3}}\n[phones.a]", "stages[0].change.a.network.queu: there is"),
        (f"check = ['frame_age.p50 < 1s during tunel']\n{RADIO}{TUNNEL}", "did you mean tunnel?"),
        (f"check = ['a.frame_age.p50 < 2 x wire during tunnel']\n{RADIO}{TUNNEL}", NO_WIRE),
        ("[phones.a]\n[viewers.v]\nwatch = 'a'\nmax_fps = -1", "max_fps: expected a number above"),
        (f"{LAYERS}[viewers.v]\nwatch = 'a'\nlayer = 'k'", "v.layer: there is no layer 'k'"),
        (f"check = ['v.layer.k > 1%']\n{LAYERS}{VIEWERS}", "check[0]: there is no layer 'k'"),
        (f"check = ['layer.mm > 1%']\n{LAYERS}{VIEWERS}", "no layer 'mm'; did you mean m?"),
        (f"check = ['a.layer.m > 1%']\n{LAYERS}{VIEWERS}", "a shows no pictures, so it has no"),
        (f"check = ['layer.m > 1%']\n[phones.a]\n{VIEWERS}", "no layer 'm'; known are 320, 640"),
        ("[phones.layer]", "phones.layer: is the name of a figure: choose another name"),
        (f"{LAYERS}[viewers.v]\nwatch = 'a'\nmax_width = 0", "max_width: expected a whole number"),
        (f"{LAYERS}[viewers.v]\nwatch = 'a'\nmax_widht = 9", "did you mean max_width?"),
        ("[phones.a]\n[viewers.v]\nwatch = 'a'\nlayer = '32'", "'32'; did you mean 320?"),
        (f"{LAYERS}frames = '16KiB'", "phones.a: use one of frames and layers"),
        (f"{LAYERS}keyframe_every = 9", "keyframe_every needs delta_size in each layer"),
        ("[phones.a]\nkeyframe_every = 9", "keyframe_every needs delta_size in frames"),
        ("[phones.a]\nkeyframe_evry = 9", "did you mean keyframe_every?"),
        ("[phones.a]\nframes = {size = 9, delta_size = 3}", "delta_size needs keyframe_every"),
        ("[phones.a]\nframes = {video = 'x', delta_size = 3}", "delta_size need size"),
        ("[phones.a]\nframes = {size = 3, most = 4, delta_size = 3}", "use most without spread"),
        ("[phones.a]\nlayers = 3", "phones.a.layers: expected a list of tables, not 3"),
        ("[phones.a]\nlayers = [3]", "phones.a.layers[0]: expected a table, not 3"),
        ("[phones.a]\nlayers = [{id = 'l'}]", "phones.a.layers[0].size: is missing"),
        ("[phones.a]\nlayers = [{id = 'l', siz = 9}]", "layers[0].siz: there is no such key; did"),
        ("[phones.a]\nlayers = [{id = 'no spaces', size = 9}]", "layers[0].id: expected 1 to 16"),
        ("[phones.a]\nlayers = [{id = 'l', size = 9}, {id = 'l', size = 9}]", "different ids"),
        ("[phones.a]\nlayers = [{id = 'l', size = 9}, {id = 'm', size = 8}]", "with the smallest"),
        ("[phones.a]\nlayers = [{id='l', size=9, width=2}, {id='m', size=9, width=1}]", "smallest"),
        (f"[phones.a]\nlayers = [{', '.join(FIVE)}]", "layers must be 4 at most"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_file_key_and_what_was_expected(source: str, words: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse(source)
    assert str(caught.value).startswith("mine.toml: ")
    assert words in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="cannot be read: No such file"):
        load_scenario(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ScenarioError, match="is not UTF-8"):
        load_scenario(tmp_path / "bad.toml")


@pytest.mark.parametrize("path", sorted(Path(str(EXAMPLES)).glob("*.toml")), ids=lambda p: p.stem)
def test_each_example_is_right_and_says_in_its_first_line_what_it_is(path: Path) -> None:
    scenario = load_scenario(path)
    assert path.read_text().startswith("# ")
    assert scenario.name == path.stem
    assert scenario.checks


def test_all_examples_are_there() -> None:
    names = {path.stem for path in Path(str(EXAMPLES)).glob("*.toml")}
    assert names == {
        *("smoke", "morning-rush", "stadium", "doorbells", "bad-radio", "slow-viewers"),
        *("soak", "hostile", "thin-links", "moving-train", "layers", "three-nodes"),
        *("storm", "fairness"),
        *("fleet-morning", "viral", "pockets", "commuters"),
    }
