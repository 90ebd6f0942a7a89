"""Links with deep queues: the examples of `relay load` notice when frames wait in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.cli.load.scenario import EXAMPLES
from relay.load.actors.network.endpoint import Endpoint
from tests.integration.accounts import Accounts
from tests.integration.load_command import assert_nothing_is_left, finish, start, write
from tests.integration.peers import new_stream_id
from tests.integration.relay_process import RelayProcess, start_relay
from tests.load_play import play_toml


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay("--profile", "load", database_url=database_url) as relay:
        yield relay


SOURCE = """
check = ["fresh.frame_age.p50 < 3 x wire during later"]
[phones.p]
fps = 20
frames = "32KiB"
[viewers.fresh]
watch = "p"
network = { bandwidth = "1Mbit/s", queue = "1MiB", delay = "20ms" }
[viewers.waiting]
watch = "p"
policy = "lossless"
network = { bandwidth = "1Mbit/s", queue = "1MiB", delay = "20ms" }
[[stages]]
name = "first"
duration = "2s"
[[stages]]
name = "later"
duration = "3s"
"""


async def test_frames_stay_fresh_where_the_relay_paces_them_and_age_where_it_fills_the_queue(
    relay: RelayProcess, accounts: Accounts
) -> None:
    url = relay.url.replace("http", "ws", 1)
    endpoint = Endpoint(url, (accounts.session("ann"),))
    run_stats, _ = await play_toml(SOURCE, endpoint, run=new_stream_id()[-8:])
    later = run_stats.stages["later"]
    fresh, waiting = (
        later.group(name).time("frame_age").statistic("p50") for name in ("fresh", "waiting")
    )
    assert fresh is not None
    assert waiting is not None
    assert fresh < 1.2  # 282 ms with its delay
    assert waiting > 1.6  # what came in 2 s waits in front of it
    assert run_stats.group("waiting").counts["received"] >= 8
    assert run_stats.total().counts["closes"] == 0


UPLOAD = """
duration = "3s"
grace = "3s"
[phones.p]
fps = 5
frames = "16KiB"
network = { upload = "0.5Mbit/s", upload_queue = "1MiB", delay = "100ms" }
[viewers.v]
watch = "p"
"""


@pytest.mark.slow
async def test_ages_count_from_the_capture_and_include_the_queue_of_the_phone(
    relay: RelayProcess, accounts: Accounts
) -> None:
    url = relay.url.replace("http", "ws", 1)
    endpoint = Endpoint(url, (accounts.session("ann"),))
    run_stats, _ = await play_toml(UPLOAD, endpoint, run=new_stream_id()[-8:])
    ages = run_stats.group("v").time("frame_age")
    youngest, oldest = ages.statistic("min"), ages.statistic("max")
    assert youngest is not None
    assert oldest is not None
    assert youngest >= 0.36  # 262 ms on the wire and the delay
    assert oldest - youngest > 0.5  # each frame finds 62 ms more in the queue than the one before
    assert run_stats.group("p").counts["sent"] >= 9  # of 15, where this machine is busy


@pytest.mark.slow
@pytest.mark.parametrize("queues", [False, True])
@pytest.mark.parametrize("example", ["thin-links", "moving-train"])
def test_an_example_fails_for_a_relay_that_queues_and_for_no_other(
    example: str, queues: bool, tmp_path: Path, folder: Path
) -> None:
    source = (EXAMPLES / f"{example}.toml").read_text()
    source = source.replace("check = [", 'lateness = "5s" # other tests run\ncheck = [', 1)
    if queues:  # `lossless` leaves out nothing, whatever waits
        source = re.sub(r"(\nnetwork = .* queue = .*)", r'\npolicy = "lossless"\1', source)
        source = re.sub(r'(\[stages\.change\..*\])\npolicy = "lossless"', r"\1", source)
    code, output, errors = finish(start(folder, write(tmp_path, source)))
    assert (code in {0, 1}, errors) == (True, ""), output
    pattern = r"^(ok  |FAIL) (?:half|one|three|train)\.frame_age\."
    ages = re.findall(pattern, output, re.MULTILINE)
    kept = [verdict for verdict in ages if verdict == "ok  "]
    assert_nothing_is_left(folder)
    assert len(ages) >= 5
    if queues:
        assert len(kept) <= 1, output
    else:
        assert len(kept) == len(ages), output
