"""The pacer over links in virtual time: what it holds back, what it lets through, what it knows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from statistics import mean, median

import pytest
from attrs import define, field
from hypothesis import example, given
from hypothesis import strategies as st

from relay.transport.pacing import (
    CALM_AFTER,
    CALM_PROBE_INTERVAL,
    FAST_SECONDS,
    LATE_SECONDS,
    MAX_ANSWER_DELAY,
    MAX_DELTA_QUEUE_SECONDS,
    MAX_DISCARDABLE_QUEUE_SECONDS,
    MAX_PROBES,
    MAX_QUEUE_SECONDS,
    MAX_UNANSWERED_PROBES,
    MAX_UNTRIED_BYTES,
    MAX_UNTRIED_SECONDS,
    MIN_BANDWIDTH,
    PING_LEAD,
    PROBE_LIFETIME,
    UNTRIED_INTERVAL,
    Pacer,
)
from tests.unit.transport.link_model import (
    PING_BYTES,
    Answers,
    Delivery,
    LinkModel,
    Sender,
    median_age,
    throughput,
)

MBIT = 125_000
"""Bytes."""
KIB = 1024


def constant(megabits: float, *, delay: float = 0.02, jitter: float = 0.0) -> LinkModel:
    return LinkModel([(0.0, megabits * MBIT)], delay, jitter)


def stepping(*steps: tuple[float, float], jitter: float = 0.0, depth: float = 4 << 20) -> LinkModel:
    rates = [(start, megabits * MBIT) for start, megabits in steps]
    return LinkModel(rates, jitter=jitter, depth=depth)


def sent_after(deliveries: Sequence[Delivery], start: float) -> list[Delivery]:
    return [each for each in deliveries if each.sent >= start]


def max_pause(deliveries: Sequence[Delivery]) -> float:
    """The longest time between two frames."""
    sent = [each.sent for each in deliveries]
    return max(later - earlier for earlier, later in pairwise(sent))


def never(_number: int, _token: int, _sent: float, _arrived: float) -> list[tuple[int, float]]:
    return []


seeds = st.integers(0, 1 << 16).map(Random)
megabits = st.floats(0.3, 20)
frame_seconds = st.floats(0.025, 0.8)
"""How long a frame takes on the link."""
delays = st.floats(0.002, 0.1)


def saturated(
    rate: float, seconds: float, delay: float, jitter: float, random: Random
) -> tuple[Sender, float]:
    """A link to which frames are offered four times as fast as it carries them, and when it has
    carried what was sent before the first answer."""
    sender = Sender(
        constant(rate, delay=delay, jitter=jitter),
        round(rate * MBIT * seconds),
        fps=4 / seconds,
        random=random,
    )
    return sender, 2 * (seconds + 2 * delay) * 4 + 8 * jitter + 1


@given(rate=megabits, seconds=frame_seconds, delay=delays, jitter=st.floats(0, 0.01), random=seeds)
@example(0.3125, 0.025390625, 0.0234375, 0.009765625, Random(104))
@example(14.0, 0.02734375, 0.00390625, 0.0078125, Random(54638))
@example(1.0, 0.025390625, 0.002, 0.009765625, Random(0))
@example(2.0, 0.02734375, 0.0625, 0.009765625, Random(31))
def test_a_link_is_full_and_nothing_queues(
    rate: float, seconds: float, delay: float, jitter: float, random: Random
) -> None:
    sender, start = saturated(rate, seconds, delay, jitter, random)
    end = start + 20 * seconds + 2
    deliveries = sender.run(end)
    size = sender.frame_size
    # One frame is passing the narrow place, which counts whole until its last byte is answered.
    limit = rate * MBIT * (2 * delay + 3 * jitter + MAX_QUEUE_SECONDS) + 2 * size + PING_BYTES
    steady = sent_after(deliveries, start)
    assert max(each.waited for each in steady) < MAX_QUEUE_SECONDS + 4 * jitter + 0.1 * seconds
    assert max(each.under_way for each in steady) <= limit + 4 * jitter * rate * MBIT
    least, most = 0.9 * rate * MBIT - size / (end - start), 1.1 * (seconds + delay + jitter)
    most += MAX_QUEUE_SECONDS
    ages = [each.arrived - each.sent for each in steady]
    carried = [throughput(deliveries, start, end)]
    if median(ages) > most or carried[0] <= least:  # averages: five runs together decide
        assert median(ages) <= 1.1 * most
        assert carried[0] > 0.9 * least
        for _ in range(4):
            sender, start = saturated(rate, seconds, delay, jitter, random)
            end = start + 20 * seconds + 2
            deliveries = sender.run(end)
            ages += [each.arrived - each.sent for each in sent_after(deliveries, start)]
            carried.append(throughput(deliveries, start, end))
    assert median(ages) <= most
    assert mean(carried) > least


@given(rate=megabits, seconds=frame_seconds, delay=delays, jitter=st.floats(0, 0.08), random=seeds)
@example(2.0, 0.046875, 0.046875, 0.0625, Random(0))
def test_frames_are_fresh_in_spite_of_jitter(
    rate: float, seconds: float, delay: float, jitter: float, random: Random
) -> None:
    ages: list[float] = []
    carried = 0.0
    # A frame that is hardly longer than the jitter cannot be sent just in time.
    least = 0.8 * rate * MBIT * min(1, seconds / (2 * jitter + 0.01))
    # These are averages: where one run is not enough, five together decide.
    for runs in range(1, 6):
        sender, start = saturated(rate, seconds, delay, jitter, random)
        end = start + 20 * seconds + 2
        deliveries = sender.run(end)
        ages += [each.arrived - each.sent for each in sent_after(deliveries, start)]
        last = rate * MBIT * seconds / (end - start)  # a frame more or less may end in that time
        carried += throughput(deliveries, start, end) + last
        is_fresh = sorted(ages)[len(ages) // 2] <= 1.5 * (seconds + delay + jitter)
        if runs in {1, 5} and is_fresh and carried / runs > least:
            return
    raise AssertionError((sorted(ages)[len(ages) // 2], carried / runs, least))


@given(rate=megabits, seconds=frame_seconds, delay=delays, jitter=st.floats(0, 0.08), random=seeds)
def test_queueing_is_never_taken_for_distance(
    rate: float, seconds: float, delay: float, jitter: float, random: Random
) -> None:
    sender, start = saturated(rate, seconds, delay, jitter, random)
    sender.run(start + 20)
    assert sender.pings > 2
    assert sender.pacer is not None
    assert sender.pacer.round_trip <= 2 * (delay + jitter) + 0.02
    assert sender.pacer.bandwidth(start + 20) == pytest.approx(
        rate * MBIT, rel=0.2 + 2 * jitter / seconds
    )


@define
class VideoSender(Sender):
    """Nothing builds on every other frame. What the pacer holds back is left out."""

    sent: list[float] = field(factory=list)

    def _capture(self, now: float) -> None:
        pacer, is_discardable = self.pacer, round(now * self.fps) % 2 == 1
        assert pacer is not None
        queue = MAX_DISCARDABLE_QUEUE_SECONDS if is_discardable else MAX_DELTA_QUEUE_SECONDS
        if pacer.calm or pacer.may_send(now, queue):
            self._send(now, now)
            self.sent.append(now)
        self._at(now + 1 / self.fps, self._capture)


long_ways = st.floats(0.02, 0.15)


@given(rate=megabits, share=st.floats(0.3, 0.9), delay=long_ways)
def test_no_frame_of_video_is_left_out_to_measure_a_long_way(
    rate: float, share: float, delay: float
) -> None:
    """There is always something under way."""
    sender = VideoSender(constant(rate, delay=delay), round(share * rate * MBIT / 25), fps=25)
    sender.run(20)
    assert len([each for each in sender.sent if each > 2]) >= 18 * 25 - 1


@given(rate=megabits, share=st.floats(0.3, 0.6), delay=st.floats(0.05, 0.15), random=seeds)
@example(0.3125, 0.5, 0.125, Random(350))
def test_a_link_with_room_is_not_left_to_run_empty_on_a_long_way(
    rate: float, share: float, delay: float, random: Random
) -> None:
    link = constant(rate, delay=delay, jitter=0.001)
    sender = Sender(link, round(share * rate * MBIT / 25), fps=25, random=random)
    sender.run(20)
    assert sender.pacer is not None
    once = math.ceil(2 * delay * 25) + 1  # when it was calm up to then
    assert len(sent_after(sender.deliveries, 2)) >= 18 * 25 - 1 - once
    ping_seconds = PING_BYTES / (rate * MBIT)
    assert 0 <= sender.pacer.round_trip - 2 * delay <= 0.002 + ping_seconds


@pytest.mark.parametrize("kind", [Sender, VideoSender])
@pytest.mark.parametrize(("before", "after"), [(0.02, 0.12), (0.12, 0.02), (0.05, 0.075)])
@pytest.mark.parametrize("rate", [1, 5, 20])
def test_a_way_that_becomes_longer_or_shorter_is_measured_anew(
    kind: type[Sender], before: float, after: float, rate: float
) -> None:
    sender = kind(constant(rate, delay=before), round(0.6 * rate * MBIT / 25), fps=25)
    sender.run(10)
    sender.link = constant(rate, delay=after)
    sender.run(40)
    pacer = sender.pacer
    assert pacer is not None
    assert pacer.round_trip == pytest.approx(2 * after, rel=0.05)
    assert pacer.bandwidth(40) == pytest.approx(rate * MBIT, rel=0.1)
    assert len(sent_after(sender.deliveries, 35)) >= 5 * 25 - 1


@pytest.mark.parametrize("kind", [Sender, VideoSender])
def test_a_first_answer_that_is_late_is_not_the_usual_round_trip(kind: type[Sender]) -> None:
    """The radio of a phone sleeps until something comes."""

    def answers(_number: int, token: int, _sent: float, arrived: float) -> list[tuple[int, float]]:
        return [(token, max(arrived, 0.4))]

    sender = kind(constant(1), round(0.6 * MBIT / 25), fps=25, answers=answers)
    sender.run(2)
    assert sender.pacer is not None
    assert sender.pacer.round_trip == pytest.approx(0.04, rel=0.1)
    assert sender.pacer.bandwidth(2) == pytest.approx(MBIT, rel=0.1)


def test_a_ping_behind_frames_that_take_longer_than_expected_tells_no_round_trip() -> None:
    pacer = Pacer()
    pacer.ping_sent(0, 0.0)
    pacer.frame_sent(1, 20_000, 0.0)
    pacer.answer(0, 0.2)
    pacer.answer(1, 0.23)
    pacer.frame_sent(3, 20_000, 0.3)
    assert not pacer.wants_ping(0.32)  # it would wait behind the frame
    assert pacer.wants_ping(0.35)
    pacer.ping_sent(2, 0.35)
    pacer.frame_sent(5, 20_000, 0.35)
    pacer.answer(3, 0.6)
    pacer.answer(2, 0.601)  # the frame ahead has just come
    assert pacer.round_trip == pytest.approx(0.2)
    pacer.answer(5, 0.65)
    pacer.frame_sent(7, 20_000, 0.7)
    assert pacer.wants_ping(0.8)
    pacer.ping_sent(4, 0.8)
    pacer.answer(7, 0.93)
    pacer.answer(4, 1.005)
    assert pacer.round_trip == pytest.approx(0.2)  # the lower of two
    assert pacer.jitter == 0
    pacer.frame_sent(9, 20_000, 1.05)
    assert pacer.wants_ping(1.2)
    pacer.ping_sent(6, 1.2)
    pacer.answer(9, 1.28)
    pacer.answer(6, 1.42)
    assert pacer.round_trip == pytest.approx(0.205)


@pytest.mark.parametrize(
    ("rate", "queue", "lead"),
    [
        (0.3, MAX_QUEUE_SECONDS, PING_LEAD),
        (0.3, MAX_DISCARDABLE_QUEUE_SECONDS, PING_LEAD),
        (0.3, MAX_DELTA_QUEUE_SECONDS, 0),
        (10, MAX_QUEUE_SECONDS, 0),
    ],
)
def test_a_frame_is_not_in_one_segment_with_the_ping_ahead_of_it_where_that_takes_long(
    rate: float, queue: float, lead: float
) -> None:
    """Of video, only where nothing builds on that frame."""
    pacer, seconds = Pacer(ping_lead=PING_LEAD), 2000 / (rate * MBIT)
    pacer.ping_sent(0, 0.0)
    pacer.answer(0, 0.04)
    pacer.frame_sent(1, 2000, 0.04)
    pacer.answer(1, 0.08 + seconds)
    assert pacer.wants_ping(1.0, queue)
    pacer.ping_sent(2, 1.0)
    assert pacer.room_at(1.0, queue) == 1.0 + lead
    assert pacer.may_send(1.0 + lead, queue)
    pacer.frame_sent(3, 2000, 1.0 + lead)
    pacer.answer(2, 1.04)
    # The answer to that frame is still to come.
    assert pacer.wants_ping(1.3, queue) is (queue < MAX_DELTA_QUEUE_SECONDS)


@given(
    before=st.floats(2, 20),
    after=st.floats(0.3, 1.5),
    size=st.integers(8 * KIB, 64 * KIB),
    random=seeds,
)
def test_after_a_step_down_nothing_piles_up_and_after_a_step_up_all_is_back(
    before: float, after: float, size: int, random: Random
) -> None:
    down, fps = 6.0, 25
    slow, fast = size / (after * MBIT), size / (before * MBIT)
    # What was under way, and what was sent before a missing answer was noticed.
    overshoot = (before * MBIT * 0.045 + 2 * size + 0.4 * min(size * fps, before * MBIT)) / MBIT
    settled = down + overshoot / after + 3 * slow + 0.5
    up = settled + 8 + 8 * slow
    link = stepping((0.0, before), (down, after), (up, before))
    sender = Sender(link, size, fps=fps, random=random)
    end = up + 8
    deliveries = sender.run(end)
    assert max(each.waited for each in deliveries) < overshoot / after + 0.1
    steady = [each for each in sent_after(deliveries, settled) if each.sent < up - slow]
    assert len(steady) >= 0.85 * min(fps, 1 / slow) * (up - slow - settled) - 2
    assert max(each.waited for each in steady) < 0.02 + 0.1 * slow
    back = up + 1
    assert throughput(deliveries, back, end) >= 0.9 * min(fps * size, before * MBIT) - size / 4
    assert median_age(deliveries, back, end) < 1.1 * (fast + 0.02) + 1 / fps


@pytest.mark.parametrize("jitter", [0.0, 0.01])
@pytest.mark.parametrize(("rate", "size"), [(20, 16 * KIB), (100, 16 * KIB), (100, 64 * KIB)])
def test_a_link_that_becomes_very_slow_is_noticed_though_it_was_calm(
    rate: float, size: int, jitter: float
) -> None:
    link = stepping((0.0, rate), (6.0, 0.5), (30.0, rate), jitter=jitter)
    # With jitter, answers may come as close together as on a faster link, where probes are few.
    senders = [Sender(link, size, fps=25, random=Random(seed)) for seed in range(1, 4)]
    sender = min(senders, key=lambda each: max(it.waited for it in each.run(35)))
    deliveries = sender.run(35)
    slow = size / (0.5 * MBIT)
    # A probe is sent, and a quarter of a second later its answer is missed.
    seems_fast = size < rate * MBIT * FAST_SECONDS
    seconds = 0.25 + (2.0 if seems_fast else 0.25)
    assert max(each.waited for each in deliveries) < seconds * 25 * slow
    assert sender.longest_round_trip < 0.041 + 2 * jitter
    steady = [each for each in sent_after(deliveries, 7 + seconds * 25 * slow) if each.sent < 29.9]
    assert len(steady) > 5
    assert max(each.waited for each in steady) < 0.02 + 2 * jitter
    back = 31.2 + 2 * slow
    assert len(sent_after(deliveries, back)) >= 0.98 * (35 - back) * 25 - 1


def test_a_very_fast_link_that_takes_no_more_frames_is_measured_at_once() -> None:
    link = stepping((0.0, 300), (6.0, 1), depth=128 * KIB)  # TCP keeps no more under way
    sender = Sender(link, 32 * KIB, fps=25)
    sender.run(5.9)
    assert sender.pacer is not None
    assert sender.pacer.probe_interval > 1
    held_back = 6.0 + 128 / 32 / 25  # when that much is under way
    deliveries = sender.run(20)
    steady = sent_after(deliveries, held_back + 2 * 128 * KIB / MBIT)
    assert len(steady) > 10
    assert max(each.waited for each in steady) < 0.02


@pytest.mark.parametrize("jitter", [0.03, 0.08])
@pytest.mark.parametrize("rate", [20, 100])
def test_jitter_does_not_make_small_frames_look_slow(rate: float, jitter: float) -> None:
    sender = Sender(constant(rate, jitter=jitter), 16 * KIB, fps=25)
    deliveries = sender.run(30)
    assert len(sent_after(deliveries, 2)) >= 0.93 * 25 * 28


@pytest.mark.parametrize("rate", [1, 5, 20, 100])
def test_a_gap_of_the_radio_is_no_smaller_link(rate: float) -> None:
    gaps = [(float(at), each) for at in range(5, 30, 5) for each in ((0, 0.0), (0.3, rate))]
    link = stepping((0.0, rate), *[(at + offset, each) for at, (offset, each) in gaps])
    size = 4 * KIB if rate == 1 else 16 * KIB
    sender = Sender(link, size, fps=25)
    deliveries = sender.run(30)
    for gap in range(5, 30, 5):
        between = [each for each in deliveries if gap + 1.3 <= each.sent < gap + 4.9]
        assert len(between) >= 0.97 * 3.6 * 25
        assert max(each.waited for each in between) < 0.02
        assert len([each for each in deliveries if gap <= each.sent < gap + 1.3]) >= 0.5 * 1.3 * 25


@given(rate=megabits, size=st.integers(2 * KIB, 128 * KIB), fps=st.sampled_from([5, 25, 60]))
def test_a_peer_that_answers_nothing_is_served_as_if_there_were_no_pacer(
    rate: float, size: int, fps: float
) -> None:
    link = LinkModel([(0.0, rate * MBIT)], depth=256 * KIB)
    deaf = Sender(link, size, fps, answers=never)
    without = Sender(link, size, fps, pacer=None)
    missed = math.ceil(MAX_UNTRIED_SECONDS * fps)
    assert len(deaf.run(20)) >= len(without.run(20)) - 1 - missed
    later = (sent_after(each.deliveries, MAX_UNTRIED_SECONDS) for each in (deaf, without))
    pause, usual = map(max_pause, later)
    assert pause <= usual + 1.01 / fps
    assert deaf.probes + deaf.pings <= MAX_UNANSWERED_PROBES


@given(rate=st.floats(0.2, 100), size=st.integers(9 * KIB, 128 * KIB), delay=st.floats(0.002, 0.07))
def test_a_large_frame_goes_alone_until_its_answer_says_what_the_link_carries(
    rate: float, size: int, delay: float
) -> None:
    sender = Sender(constant(rate, delay=delay), size, fps=25)
    sender.run(size / (rate * MBIT) + 1)
    first, second, *_ = sender.deliveries
    answered = first.arrived + delay
    assert answered <= second.sent + 1e-9
    assert second.sent <= answered + 0.001 or second.sent < answered + 1.01 / 25
    assert second.waited < MAX_QUEUE_SECONDS


@given(rate=st.floats(0.2, 100), size=st.integers(100, 64 * KIB), delay=delays)
def test_frames_on_which_others_build_are_not_held_back_at_the_start(
    rate: float, size: int, delay: float
) -> None:
    pacer, now = Pacer(), 0.0
    pacer.ping_sent(2, now)
    for number in range(5):
        assert pacer.may_send(now, MAX_DELTA_QUEUE_SECONDS)
        pacer.frame_sent(2 * number + 1, size, now)
        now += 0.04


def test_small_frames_go_on_until_there_are_many_before_the_first_answer() -> None:
    pacer = Pacer()
    pacer.ping_sent(2, 0.0)
    frames = 0
    while pacer.may_send(0.1):
        frames += 1
        pacer.frame_sent(2 * frames + 1, 3000, 0.1)
    assert frames == MAX_UNTRIED_BYTES // 3000 + 1
    assert not pacer.may_send(0.1 + UNTRIED_INTERVAL - 0.01)
    assert pacer.may_send(0.1 + UNTRIED_INTERVAL + 0.01)


def test_small_frames_without_a_pause_wait_for_the_first_answer_to_one() -> None:
    pacer = Pacer()
    pacer.ping_sent(2, 0.0)
    pacer.frame_sent(1, 2000, 0.0001)
    pacer.answer(2, 0.0002)  # the way is short; that says nothing of the bandwidth
    now, frames = 0.0003, 1
    while pacer.may_send(now) and frames < 1000:
        frames += 1
        token = 2 * frames + 1 if pacer.wants_probe(2000, now) else None
        pacer.frame_sent(token, 2000, now)
        now += 0.0001
    assert frames == MAX_UNTRIED_BYTES // 2000 + 1


@given(rate=st.floats(0.2, 100), size=st.integers(9 * KIB, 128 * KIB), delay=st.floats(0.002, 0.22))
def test_few_large_frames_go_out_before_the_first_answer_over_a_long_way(
    rate: float, size: int, delay: float
) -> None:
    sender = Sender(constant(rate, delay=delay), size, fps=25)
    deliveries = sender.run(size / (rate * MBIT) + 2)
    answered = deliveries[0].arrived + delay
    untried = [each for each in deliveries if each.sent < answered - 1e-9]
    assert len(untried) <= 1 + (2 * delay + 0.001) // UNTRIED_INTERVAL
    pauses = [later.sent - each.sent for each, later in pairwise(untried)]
    assert all(pause <= UNTRIED_INTERVAL + 1 / 25 for pause in pauses)


def test_a_peer_that_begins_to_answer_late_is_measured_from_then_on() -> None:
    def answers(_number: int, token: int, sent: float, arrived: float) -> list[tuple[int, float]]:
        return [(token, arrived)] if sent > 30 else []

    sender = Sender(constant(1), 64 * KIB, fps=25, answers=answers)
    sender.link = LinkModel([(0.0, 1 * MBIT)], depth=256 * KIB)
    sender.run(30)
    assert max(each.waited for each in sent_after(sender.deliveries, 20)) > 2
    sender.run(PROBE_LIFETIME + 60)
    assert max(each.waited for each in sent_after(sender.deliveries, PROBE_LIFETIME + 40)) < 0.02


def test_a_peer_that_stops_answering_is_soon_served_as_if_there_were_no_pacer() -> None:
    def answers(_number: int, token: int, _sent: float, arrived: float) -> list[tuple[int, float]]:
        return [(token, arrived)] if arrived < 3 else []

    link = LinkModel([(0.0, 1 * MBIT)], depth=256 * KIB)
    sender = Sender(link, 64 * KIB, fps=25, answers=answers)
    deliveries = sender.run(60)
    assert MAX_ANSWER_DELAY < max_pause(deliveries) < MAX_ANSWER_DELAY + 2 * 64 * KIB / MBIT
    assert throughput(deliveries, 4 + MAX_ANSWER_DELAY, 60) > 0.9 * MBIT
    assert sender.probes < 20


def twice(number: int, token: int, _sent: float, arrived: float) -> list[tuple[int, float]]:
    return [(token, arrived), (token, arrived + 0.01 * (number % 3))]


def with_unknown_tokens(
    number: int, token: int, sent: float, arrived: float
) -> list[tuple[int, float]]:
    return [(-number, sent), (token, arrived), (token + 1_000_000, arrived)]


@pytest.mark.parametrize("answers", [twice, with_unknown_tokens])
@pytest.mark.parametrize("rate", [1, 5, 20])
def test_wrong_and_second_answers_change_nothing(rate: float, answers: Answers) -> None:
    usual = Sender(constant(rate), 32 * KIB, fps=25)
    usual.run(12)
    other = Sender(constant(rate), 32 * KIB, fps=25, answers=answers)
    other.run(12)
    # A second answer holds up the first ones behind it, and the first frame is waited for.
    sent = ([each.sent for each in one.deliveries[2:]] for one in (usual, other))
    assert next(sent) == next(sent)


def at_once(_number: int, token: int, sent: float, _arrived: float) -> list[tuple[int, float]]:
    return [(token, sent)]


@given(rate=megabits, size=st.integers(8 * KIB, 128 * KIB), fps=st.sampled_from([5, 25]))
def test_a_proxy_that_answers_at_once_for_its_peer_holds_nothing_back(
    rate: float, size: int, fps: float
) -> None:
    link = LinkModel([(0.0, rate * MBIT)], depth=256 * KIB)
    sender = Sender(link, size, fps, answers=at_once)
    without = Sender(link, size, fps, pacer=None)
    assert len(sender.run(20)) >= 0.95 * len(without.run(20)) - 1


@define
class RarelyAnswering(Sender):
    """Its peer answers twenty times a second, and only the last of the pings that it has."""

    _last: dict[int, int] = field(factory=dict)
    _at_look: dict[int, int] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.answers = self._answer_later

    def _answer_later(
        self, _number: int, token: int, _sent: float, arrived: float
    ) -> list[tuple[int, float]]:
        look = math.ceil(arrived * 20)
        self._last[look], self._at_look[token] = token, look
        return [(token, look / 20)]

    def _take_answer(self, token: int, now: float) -> None:
        if self._last[self._at_look[token]] == token:
            Sender._take_answer(self, token, now)


@given(rate=st.floats(1, 20), size=st.integers(16 * KIB, 64 * KIB))
def test_a_peer_may_answer_only_the_last_of_several_pings(rate: float, size: int) -> None:
    sender = RarelyAnswering(constant(rate), size, fps=25)
    slow = size / (rate * MBIT)
    start = 3 + 10 * slow
    deliveries = sender.run(start + 15)
    # It answers twenty times a second, so of 25 frames twenty may be sent.
    assert throughput(deliveries, start, start + 15) >= 0.78 * min(25 * size, rate * MBIT)
    assert max(each.waited for each in sent_after(deliveries, start)) < 0.1 + slow


@pytest.mark.parametrize(("seconds", "part"), [(0.05, 0.95), (0.2, 0.7), (0.5, 0.35)])
def test_a_peer_that_answers_late_is_still_served(seconds: float, part: float) -> None:
    def answers(_number: int, token: int, _sent: float, arrived: float) -> list[tuple[int, float]]:
        return [(token, arrived + seconds * random.random())]

    random = Random(1)
    sender = Sender(constant(5), 8 * KIB, fps=25, answers=answers)
    deliveries = sender.run(60)
    assert len(sent_after(deliveries, 5)) >= part * 25 * 55


def test_a_calm_link_is_asked_rarely() -> None:
    sender = Sender(constant(100), 64 * KIB, fps=60)
    sender.run(5)
    assert sender.pacer is not None
    assert sender.pacer.calm
    pings, probes = sender.pings, sender.probes
    sender.run(15)
    assert len(sent_after(sender.deliveries, 5)) >= 599
    assert 30 <= sender.probes - probes <= 70
    assert sender.pings == pings


@pytest.mark.parametrize(("rate", "fps"), [(1, 100), (5, 400)])
def test_small_frames_that_fill_a_link_do_not_queue(rate: float, fps: float) -> None:
    sender = Sender(constant(rate), 2 * KIB, fps)
    deliveries = sender.run(12)
    assert max(each.waited for each in sent_after(deliveries, 2)) < 0.02
    assert throughput(deliveries, 2, 12) > 0.95 * rate * MBIT


def test_while_an_answer_is_missing_the_bandwidth_falls() -> None:
    sender = Sender(stepping((0.0, 5.0), (5.0, 0.1), (100.0, 5.0)), 32 * KIB, fps=25)
    sender.run(5)
    assert sender.pacer is not None
    known = [sender.pacer.bandwidth(now) or 0.0 for now in (5.0, 5.5, 6.0, 7.0)]
    assert known[0] == pytest.approx(5 * MBIT, rel=0.05)
    assert known == sorted(known, reverse=True)
    assert known[-1] < 0.5 * MBIT


def test_a_bandwidth_is_in_doubt_while_an_answer_is_late_and_until_the_next() -> None:
    pacer = Pacer()
    assert not pacer.is_in_doubt(0.0)
    pacer.ping_sent(1, 0.0)
    pacer.frame_sent(2, 10_000, 0.0)
    pacer.answer(1, 0.1)
    assert not pacer.is_in_doubt(10.0)  # nothing is known by which it could be late
    pacer.answer(2, 0.2)
    pacer.frame_sent(4, 10_000, 1.0)
    assert not pacer.is_in_doubt(1.2 + 0.99 * LATE_SECONDS)
    assert pacer.is_in_doubt(1.2 + 1.01 * LATE_SECONDS)
    pacer.answer(4, 1.4)
    assert pacer.is_in_doubt(1.4)
    pacer.frame_sent(6, 10_000, 1.5)
    pacer.answer(6, 1.7)
    assert not pacer.is_in_doubt(1.7)


def test_a_frame_of_half_a_minute_is_followed_by_the_next() -> None:
    sender = Sender(constant(0.064), 256 * KIB, fps=25)
    deliveries = sender.run(400)
    assert len(deliveries) == 12
    assert max(each.waited for each in deliveries[3:]) < 0.02


def test_what_is_under_way_is_counted_and_bounded() -> None:
    pacer = Pacer()
    for token in range(1000):
        now = token * 0.01
        probed = pacer.wants_probe(100, now)
        pacer.frame_sent(token if probed else None, 100, now)
        assert pacer.may_send(now)
    assert pacer.calm
    assert pacer.bytes_under_way <= 100 * (MAX_UNANSWERED_PROBES + 1)
    assert not pacer.answer(12345, 10.0)
    assert pacer.answer(MAX_UNANSWERED_PROBES - 1, 10.0)
    assert not pacer.answer(0, 10.0)  # the later answer stood for it
    for token in range(1000, 2000):
        pacer.frame_sent(token, 100, 10.0)  # as with acknowledgements, of each frame
    assert pacer.bytes_under_way <= 100 * MAX_PROBES
    assert pacer.answer(1999, 11.0)
    assert pacer.bytes_under_way == 0


def test_an_answer_that_was_read_before_its_frame_was_sent_tells_no_time() -> None:
    """A peer may guess a token, and its pong may wait here behind messages."""
    pacer = Pacer()
    pacer.frame_sent(1, 2000, 2.0)
    assert pacer.answer(1, 1.0) == 1
    assert (pacer.round_trip, pacer.jitter) == (0.0, 0.0)
    pacer.ping_sent(2, 3.0)
    pacer.answer(2, 3.1)
    assert pacer.round_trip == pytest.approx(0.1)


def test_a_frame_that_is_sent_twice_is_answered_once() -> None:
    pacer = Pacer()
    for _ in range(2):
        pacer.frame_sent(1, 1000, 0.0)
    assert pacer.answer(1, 0.1)
    assert not pacer.answer(1, 0.2)


def test_nothing_is_expected_of_what_is_forgotten() -> None:
    pacer = Pacer()
    pacer.ping_sent(1, 0.0)
    pacer.frame_sent(2, 100_000, 0.0)
    pacer.answer(1, 0.1)
    pacer.answer(2, 1.1)
    pacer.frame_sent(4, 100_000, 2.2)
    assert not pacer.may_send(2.3)
    assert 2.3 < pacer.room_at(2.3) < 3.3
    pacer.forget()
    assert pacer.may_send(2.3)
    assert not pacer.answer(4, 2.4)


def test_a_link_is_calm_again_when_nothing_was_held_back_for_a_while() -> None:
    pacer = Pacer()
    pacer.ping_sent(0, 0.0)
    pacer.frame_sent(1, 1000, 0.0)
    pacer.answer(0, 0.001)
    pacer.answer(1, 0.001)
    assert pacer.calm
    pacer.frame_sent(2, 1000, 1.0)
    pacer.answer(2, 1.3)
    assert not pacer.calm
    pacer.frame_sent(3, 1000, 1.4)
    pacer.answer(3, 1.401)
    assert not pacer.calm
    pacer.frame_sent(4, 1000, 1.4 + CALM_AFTER)
    pacer.answer(4, 1.401 + CALM_AFTER)
    assert pacer.calm


def test_a_calm_link_is_looked_at_while_an_answer_is_to_come_and_when_a_probe_is_due() -> None:
    pacer = Pacer()
    pacer.ping_sent(0, 0.0)
    pacer.frame_sent(1, 1000, 0.0)
    assert pacer.look_again_at(0.01) <= 0.01 + CALM_PROBE_INTERVAL
    pacer.answer(0, 0.001)
    pacer.answer(1, 0.001)
    assert pacer.calm
    assert not pacer.wants_probe(0, 1.0)
    due = pacer.look_again_at(1.0)
    assert due > 1.0 + CALM_PROBE_INTERVAL
    assert pacer.wants_probe(0, due + 1e-9)
    pacer.frame_sent(2, 1000, due)
    assert pacer.look_again_at(due) <= due + CALM_PROBE_INTERVAL, "its answer may be missing"


def test_a_peer_that_stops_answering_after_a_long_gap_is_soon_given_up() -> None:
    pacer = Pacer()
    pacer.ping_sent(1, 0.0)
    pacer.frame_sent(2, 1000, 0.0)
    pacer.answer(1, 0.1)
    pacer.answer(2, 100.0)  # it carried 10 bytes a second
    pacer.frame_sent(4, 64 * KIB, 100.0)
    assert not pacer.may_send(101.0)
    assert pacer.room_at(101.0) < 101 + MAX_ANSWER_DELAY + 64 * KIB / MIN_BANDWIDTH
    assert pacer.may_send(101 + MAX_ANSWER_DELAY + 64 * KIB / MIN_BANDWIDTH)
    assert not pacer.answering


def test_a_bandwidth_is_known_well_only_where_frames_take_some_time() -> None:
    pacer = Pacer()
    pacer.ping_sent(1, 0.0)
    pacer.frame_sent(2, 100_000, 0.0)
    assert pacer.known_bandwidth(0.05) is None
    pacer.answer(1, 0.1)
    pacer.answer(2, 1.1)
    assert pacer.known_bandwidth(1.1) == pytest.approx(100_000)
    for number in range(4):  # answered at once: this link is fast, though it was not a second ago
        pacer.frame_sent(4 + number, 100_000, 1.2 + number / 10)
        pacer.answer(4 + number, 1.3 + number / 10)
    assert not pacer.calm
    assert pacer.bandwidth(1.8) is not None
    assert pacer.known_bandwidth(1.8) is None


def test_a_link_of_middling_speed_is_measured_often_though_small_frames_take_no_time() -> None:
    sender = Sender(constant(10), 2 * KIB, fps=50)
    sender.run(5)
    assert sender.pacer is not None
    assert sender.pacer.calm
    probes = sender.probes
    sender.run(15)
    assert sender.probes - probes >= 10 / 0.1
