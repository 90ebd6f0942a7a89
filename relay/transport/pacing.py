"""Paces the frames of one connection by what its link carries. No I/O, no tasks.

A probe is sent behind a frame: a ping with a token. Its answer says that the peer has the frame and
all that went before. A ping ahead of a frame, that waits behind nothing, measures the round trip.
Where the peer says itself what it has, as a relay does to a phone, that answers in place of pongs.

The model is a link with one narrow place, first in, first out, with a queue of any depth in front
of it. A frame keeps the narrow place busy for

    answer - max(answer before, sent + usual round trip)

seconds, and the bandwidth is the sum of bytes by the sum of these seconds. From it follows when
each answer is due, and so when the narrow place will be free. The next frame may be sent a round
trip before that: it arrives as the narrow place becomes free, so the link is full and nothing
queues.

The rules around the model, and why they are there:

- Until the first answer to a frame nothing is known of the link, and a large picture may take it
  seconds: the next one waits for that answer. Small ones, and those that others build on, need not.
  A peer that has answered nothing yet may be far away, and gets another one now and then.
- Nothing is held back for long before a peer has answered anything, nor when an answer is overdue
  by far: a peer that answers no ping is served as if there were no pacer. It gets few probes, and
  few are remembered: the oldest is given up after a while, so that the peer is asked again now and
  then.
- The usual round trip is the median, not the shortest, which would make small frames look slow
  where there is jitter. It is measured while nothing is under way. Over a long way something always
  is: there it is measured when the narrow place should be idle as the ping comes, and was, as the
  answer before came some time ago. Otherwise queueing would be taken for distance. A link that is
  never idle is left to run empty now and then, but not of frames that build on one another.
- A ping leaves a little earlier than the frame behind it. In one segment of TCP it would come when
  that has passed the narrow place, which may take as long as the way. A frame that others build on
  is not held back for that, since the next one may come with it, and have no room to wait.
- An answer that is early by far says that the way is shorter than it was measured: it became so, or
  the radio of the peer slept before its first answer. Then all that was measured is forgotten.
  Otherwise frames would seem to take no time, and a queue could not be seen.
- An answer that is late by far replaces all that was known, and is doubtful itself: the next one
  decides. So a gap in the radio is no smaller link; and a rate that is too high, by which all
  answers are late, does not last while frames pile up.
- While the oldest answer is overdue, nothing is sent: the link may have become slower.
- Where frames build on one another, to leave one out costs all up to the next keyframe. They may
  queue for a while, as they do behind each keyframe.
- A link is calm when frames take next to no time on it, answers are on time, and nothing had to be
  held back lately; but not by a single long round trip, which alone may make it seem so. Then
  probes are few, since an answer costs more than a frame, and the pacer need not be asked or told
  of frames without a probe.

A peer that answers at once, or before a frame has arrived, seems to have a fast link, and is served
as if there were no pacer. Answers with unknown tokens, and second ones, are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from attrs import define, field

from relay.metrics import LinkHistograms

MAX_QUEUE_SECONDS = 0.005
"""Time that a frame may wait at the narrow place."""
MAX_DELTA_QUEUE_SECONDS = 0.5
"""The same where frames build on one another: what follows a large keyframe may not be left out."""
MAX_DISCARDABLE_QUEUE_SECONDS = 0.05
"""The same there of frames on which none builds. They are the first to be left out, but half of the
pictures behind each keyframe are worth more than to be in time."""
MAX_OVERDUE = 0.015
"""Seconds by which the oldest answer may be overdue, besides jitter, while frames are sent."""
MAX_UNTRIED_BYTES = 8 * 1024
"""Bytes of frames that may be under way when another is sent before the first answer to a frame."""
UNTRIED_INTERVAL, MAX_UNTRIED_SECONDS = 0.15, 0.45
"""Seconds after which that is sent though the peer has answered nothing at all, since the way may
be long; and for how long what is large waits so."""
LATE_SECONDS = 0.125
"""An answer that is later than this says that the link has changed, or had a gap."""

SAMPLE_LIFETIME = 0.6
"""Seconds for which a sample counts, while there are more than `MIN_SAMPLES`."""
MIN_SAMPLES, MAX_SAMPLES = 3, 24
MIN_SAMPLE_BYTES = 512
"""What smaller frames count as: their answers are late for many reasons, and they hardly queue."""
MIN_BUSY_SECONDS = 0.0005
"""Of one sample, on average. It bounds the bandwidth of links that are too fast to measure."""

MAX_ROUND_TRIPS, ROUND_TRIP_LIFETIME = 20, 10.0
"""How many are remembered, and for how many seconds, while there are more than `MIN_SAMPLES`."""
MIN_PING_PAUSE = 0.25
"""Seconds between two pings ahead of a frame."""
MIN_IDLE_SECONDS = 0.01
"""Time, beside jitter, for which the narrow place is idle ahead of a ping that tells the round trip
while frames are under way."""
PING_LEAD, SEGMENT_BYTES = 0.005, 1460
"""Seconds between a ping and the frame behind it, where a segment of TCP takes long on the link:
both in one would come when all of it has passed."""
MAX_ROUND_TRIP_AGE = 5.0
"""Seconds after which the link is left to run empty to measure the round trip."""
CALM_SECONDS = 0.02
"""The longest time that a frame takes on a calm link, and the longest delay of an answer."""
FAST_SECONDS = 0.002
"""Of frames on a link that is calm also when one is held back: they come in bursts."""
CALM_AFTER = 1.0
"""Seconds without delay after which a link is calm again."""
PROBE_SECONDS = 0.01
"""Time between two probes, or of what goes between them on the link."""
CALM_PROBE_INTERVAL, MIN_CALM_PROBE_INTERVAL, CALM_PROBE_BYTES = 0.25, 0.05, 128 * 1024
"""On a calm link a probe is sent after 0.25 s; after 0.05 s, if so many bytes would take that long:
such a link may soon be too slow."""
MAX_CALM_PROBE_INTERVAL = 2.0
"""The same where each frame took less than `FAST_SECONDS`: there an answer costs more than it
tells. When such a link becomes slower, frames soon have to wait for it, and these are probed as
others."""
EARLY, MAX_EARLY_SECONDS = 0.8, 0.1
"""The part of these intervals after which a frame that is chosen for a probe gets one, at most so
many seconds before the interval is over."""

MAX_PROBES, MAX_UNANSWERED_PROBES = 64, 8
"""Probes under way, and without an answer so far: with more, frames go without a probe."""
PROBE_LIFETIME = 60.0
"""Seconds after which a probe may be given up for a new one."""
MAX_ANSWER_DELAY, MIN_BANDWIDTH = 15.0, 4096
"""Seconds by which an answer may be overdue, and the bytes a second of the slowest link, before the
peer is served as one that does not answer."""


def _early(interval: float) -> float:
    """After how much of the interval a frame gets a probe."""
    return max(EARLY * interval, interval - MAX_EARLY_SECONDS)


@define(eq=False)
class _Probe:
    size: int
    """Bytes of frames that it stands for; 0 for a ping ahead of a frame."""
    sent_at: float
    """When the first of these were sent."""
    due: float
    """When the answer should come."""
    counted: bool
    """Whether all that is sent after it is counted."""
    accepted_at: float | None = None
    """When the last frame of these was accepted, if that is known."""


@define(eq=False)
class _Samples:
    """How long bytes kept the narrow place busy."""

    size: int = 0
    seconds: float = 0.0
    recent: list[tuple[float, int, float]] = field(factory=list)
    """When each was taken, its bytes and its seconds. Few, and none for a viewer that gets nothing:
    an empty deque takes ten times the memory."""

    def add(self, now: float, size: int, seconds: float) -> None:
        self.recent.append((now, size, seconds))
        self.size += size
        self.seconds += seconds
        if len(self.recent) > MAX_SAMPLES:
            self._remove_oldest()
        self.expire(now)

    def expire(self, now: float) -> None:
        samples = self.recent
        while len(samples) > MIN_SAMPLES and now - samples[0][0] > SAMPLE_LIFETIME:
            self._remove_oldest()

    @property
    def longest(self) -> float:
        """The seconds of the one that took the longest."""
        return max((seconds for _, _, seconds in self.recent), default=0.0)

    def clear(self) -> None:
        self.recent.clear()
        self.size, self.seconds = 0, 0.0

    def _remove_oldest(self) -> None:
        _, size, seconds = self.recent.pop(0)
        self.size -= size
        self.seconds -= seconds


@define(eq=False)
class Pacer:
    """Tells when to send the next frame, and what the link is like.

    All times are seconds of one clock.
    """

    _lag: Callable[[], float] = lambda: 0.0
    """By how many seconds an answer that is read now may have come earlier."""
    _ping_lead: float = 0.0
    """For how many seconds a frame waits behind a ping ahead of it, where segments take long."""
    round_trip: float = 0.0
    """The usual one: the median of the last."""
    jitter: float = 0.0
    """By how much the usual round trip is longer than the shortest."""
    answering: bool = False
    """Whether the peer answers, as far as is known."""
    calm: bool = False
    """Whether frames can be sent without asking or telling: the link is fast, or the peer does not
    answer. A frame with a probe is always told."""
    probe_interval: float = MAX_CALM_PROBE_INTERVAL
    """Seconds between two probes while the link is calm; others are asked for each frame."""
    _histograms: LinkHistograms | None = None
    """Where to count what answers say, if anywhere."""
    _probes: dict[int, _Probe] = field(factory=dict)
    """Those under way by their tokens, in the order in which they were sent."""
    _probed_bytes: int = 0
    """Bytes of these."""
    _pending_bytes: int = 0
    """Bytes behind the last probe, sent without a gap: the next probe stands for them, too."""
    _pending_since: float = 0.0
    _last_due: float = -math.inf
    """When the narrow place will be free, by when an answer would arrive."""
    _answered_at: float = -math.inf
    _samples: _Samples = field(factory=_Samples)
    _doubtful: bool = False
    """Whether the only sample is of an answer that was late by far."""
    _round_trips: list[tuple[float, float]] = field(factory=list)
    _pinged_at: float = -math.inf
    """When a ping ahead of a frame was last sent."""
    _emptied_at: float = -math.inf
    """When the last one was sent while nothing was under way."""
    _probed_at: float = -math.inf
    _strained_at: float = -math.inf
    """When a frame last took long, was held back, or its answer was late."""
    _all_counted: bool = True
    """Whether nothing can be under way that was sent while the link was calm."""

    @property
    def has_round_trip(self) -> bool:
        """Whether the round trip has been measured."""
        return bool(self._round_trips)

    @property
    def bytes_under_way(self) -> int:
        """Bytes of frames that have not been answered, as far as they are counted."""
        return self._probed_bytes + self._pending_bytes

    def bandwidth(self, now: float) -> float | None:
        """Bytes a second that the link carries; None while that is not known."""
        samples = self._samples
        samples.expire(now)
        if not samples.recent:
            return None
        size, seconds = samples.size, max(samples.seconds, MIN_BUSY_SECONDS * len(samples.recent))
        first = None
        if self._probes:  # on a calm link there are none
            first = next((each for each in self._probes.values() if each.size), None)
        if first is not None:
            busy = now - self._lag() - self._busy_since(first)
            if busy * size > seconds * first.size:  # it has taken longer already
                size += first.size
                seconds += busy
        return size / seconds

    def known_bandwidth(self, now: float) -> float | None:
        """The same where it is measured well: frames are not small, take some time on the link, and
        their answers were not late by far."""
        bandwidth, samples = self.bandwidth(now), self._samples
        small = samples.size <= 2 * MIN_SAMPLE_BYTES * len(samples.recent)
        return None if small or self.calm or self._is_fast or self._doubtful else bandwidth

    def is_in_doubt(self, now: float) -> bool:
        """Whether the last answer was late by far, or the next one is already: then the link has
        changed, or had a gap."""
        if self._doubtful or not self._samples.recent or not self._probes:
            return self._doubtful
        first = next(iter(self._probes.values()))
        return now - self._lag() > first.due + LATE_SECONDS

    def may_send(self, now: float, queue: float = MAX_QUEUE_SECONDS) -> bool:
        """Whether to send a frame now that may wait so many seconds at the narrow place."""
        if self.room_at(now, queue) > now:
            if not self._is_fast:
                self._strain(now)
            return False
        if self.answering and self._probes and now >= self._given_up_at:
            self.answering, self.calm = False, True
        return True

    def room_at(self, now: float, queue: float = MAX_QUEUE_SECONDS) -> float:
        """When to send the next frame if no answer comes before; `now` if at once."""
        if not self._probes:
            return now
        is_patient = queue <= MAX_DISCARDABLE_QUEUE_SECONDS
        if is_patient and not self._samples.recent and self.bytes_under_way > MAX_UNTRIED_BYTES:
            return max(now, self._untried_until)
        if is_patient and now < self._pinged_at + self._ping_lead and self.parts_pings(now):
            return self._pinged_at + self._ping_lead
        if not self.answering:
            return now
        return max(now, min(self._free_at(now, queue), self._given_up_at))

    def _free_at(self, now: float, queue: float) -> float:
        """When the link is free enough for such a frame; infinite if it waits for an answer."""
        is_patient = queue <= MAX_DISCARDABLE_QUEUE_SECONDS
        if self._is_overdue(now - queue):
            return math.inf
        if is_patient and not self._round_trips and not next(iter(self._probes.values())).size:
            # A ping goes alone while the round trip is unknown: the answer to more tells less.
            return math.inf
        if not self._samples.recent:
            return now  # for all that is known, the link is fast
        if queue <= MAX_QUEUE_SECONDS and self._must_run_empty(now):
            return math.inf
        return self._last_due - self.round_trip - queue

    @property
    def expects_answer(self) -> bool:
        """Whether the peer is going to answer a probe that is under way."""
        return self.answering and bool(self._probes)

    @property
    def answers_until(self) -> float:
        """Until when the peer may well take to answer a probe that is under way; -inf if no answer
        is expected."""
        return self._given_up_at if self.expects_answer else -math.inf

    @property
    def _given_up_at(self) -> float:
        """When the peer is served as one that does not answer, unless it does."""
        first = next(iter(self._probes.values()))
        latest = first.sent_at + self.round_trip + first.size / MIN_BANDWIDTH
        return MAX_ANSWER_DELAY + (min(first.due, latest) if self._samples.recent else latest)

    @property
    def _untried_until(self) -> float:
        """Until when to wait for the first answer to a frame."""
        if self.answering:
            return self._given_up_at
        first, last = next(iter(self._probes.values())), next(reversed(self._probes.values()))
        return min(last.sent_at + UNTRIED_INTERVAL, first.sent_at + MAX_UNTRIED_SECONDS)

    def _is_overdue(self, now: float) -> bool:
        """Whether the oldest answer should have come."""
        if not self._probes:
            return False
        first = next(iter(self._probes.values()))
        return now - self._lag() > first.due + MAX_OVERDUE + 2 * self.jitter

    def _must_run_empty(self, now: float) -> bool:
        """Whether to wait for all answers, to measure the round trip."""
        if not self._all_counted:
            return False  # something else may be under way
        measured_at = self._round_trips[-1][0] if self._round_trips else -math.inf
        return now - max(measured_at, self._emptied_at) > MAX_ROUND_TRIP_AGE

    def wants_ping(self, now: float, queue: float = MAX_QUEUE_SECONDS) -> bool:
        """Whether to write a ping ahead of the next frame, which may wait so many seconds: it is
        likely to wait behind nothing."""
        if self.calm or not self._all_counted:
            return False
        is_due = now >= self._pinged_at + MIN_PING_PAUSE
        if not self._probes:
            return now >= self._last_due and (is_due or self._must_run_empty(now))
        leaves_earlier = queue <= MAX_DISCARDABLE_QUEUE_SECONDS or not self.parts_pings(now)
        return is_due and leaves_earlier and self._may_ping_beside(now)

    def _may_ping_beside(self, now: float) -> bool:
        """Whether a ping may tell the round trip though frames are under way: they should be
        through the narrow place before it, or it is time to try."""
        known = self._samples.recent and self._round_trips
        if not known or self._pending_bytes or self._is_full:
            return False
        free_at = self._last_due - self.round_trip
        return now >= free_at + self._min_idle or self._must_run_empty(now)

    def _tells_round_trip(self, ping: _Probe, size: int, now: float) -> bool:
        """Whether a ping that is answered now, together with so many bytes behind it, waited behind
        nothing. Of several pings the peer may answer only the last."""
        if self._answered_at <= ping.sent_at:
            return bool(self._samples.recent) or not size
        return not size and now >= self._answered_at + self._min_idle

    @property
    def _min_idle(self) -> float:
        """For how long the narrow place has to be idle ahead of a ping beside frames."""
        return MIN_IDLE_SECONDS + self.jitter

    def parts_pings(self, now: float) -> bool:
        """Whether a frame waits behind a ping ahead of it: in one segment with it the ping would
        seem to have a longer way."""
        return self._ping_lead > 0 and self._seconds(SEGMENT_BYTES, now) > MAX_QUEUE_SECONDS

    def wants_probe(self, size: int, now: float, *, waited: bool = False) -> bool:
        """Whether to write a probe behind a frame of this size; `waited`: the link did not take the
        frame when it was offered, and may have become slower."""
        if self.calm and now < self._probed_at + EARLY * MIN_CALM_PROBE_INTERVAL:
            return False
        if self._is_full:
            return now - next(iter(self._probes.values())).sent_at > PROBE_LIFETIME
        if not self.answering:
            return True
        elapsed = now - self._probed_at
        if not self.calm:
            size += self._pending_bytes
            return elapsed >= PROBE_SECONDS or self._seconds(size, now) >= PROBE_SECONDS
        interval = self.probe_interval
        return elapsed >= _early(min(interval, CALM_PROBE_INTERVAL) if waited else interval)

    def ping_sent(self, token: int, now: float) -> None:
        """Note that a ping was written ahead of a frame. Call this when one was wanted."""
        self._pinged_at = now
        if not self._probes:
            self._emptied_at = now
        self._add_probe(token, _Probe(0, now, now + self.round_trip, counted=True))

    def frame_sent(
        self, token: int | None, size: int, now: float, accepted_at: float | None = None
    ) -> None:
        """Note that a frame was written, with a probe behind it or with None."""
        # Before the first answer to a frame nothing tells that the ones before are through.
        through = self._samples.recent and self._last_due <= now + self.round_trip
        if self.calm or not self._pending_bytes or through:
            self._pending_bytes, self._pending_since = 0, now
        self._pending_bytes += size
        self.notices_delay(now)
        self._last_due = max(now + self.round_trip, self._last_due) + self._seconds(size, now)
        if token is not None and token not in self._probes:
            size, since, counted = self._pending_bytes, self._pending_since, not self.calm
            self._add_probe(token, _Probe(size, since, self._last_due, counted, accepted_at))
            self._probed_bytes += self._pending_bytes
            self._pending_bytes = 0
            self._probed_at = now
        if not self.answering:
            self._last_due = now
            self.calm = self._is_full

    def answer(self, token: int, now: float) -> int:
        """Note an answer: the peer has what was sent with this token, and all before it.

        Returns how many probes this answers.
        """
        if token not in self._probes:
            return 0
        answered, size = [], 0
        while token in self._probes:
            probe = self._probes.pop(next(iter(self._probes)))
            answered.append(probe)
            size += probe.size
        seconds = max(0.0, now - probe.sent_at)  # tokens can be guessed, and answered ahead
        now = max(now - self._lag(), probe.sent_at, self._answered_at)
        late = now - probe.due if self._samples.recent else 0.0
        self.answering = True
        is_early = seconds < self.round_trip - 2 * self.jitter - CALM_SECONDS
        if is_early:
            self._round_trips.clear()
            self._note_round_trip(now, seconds)
        elif not answered[0].size and self._tells_round_trip(answered[0], size, now):
            self._measure_round_trip(now, now - answered[0].sent_at - self._seconds(size, now))
        self._all_counted = probe.counted
        if size:
            self._probed_bytes -= size
            self._measure_bandwidth(answered, now, late)
            self._observe_delivery(answered, now)
        self._answered_at = now
        self._forecast(now)
        slow = size and self._seconds(size // len(answered), now) > CALM_SECONDS
        if slow or is_early or late > CALM_SECONDS + 2 * self.jitter:
            self._strain(now)
        else:
            self.calm = now - self._strained_at > CALM_AFTER and self._is_known_well
        if self.calm:
            self.probe_interval = self._choose_interval()
        return len(answered)

    def forget(self) -> None:
        """Expect no answers to what was sent so far."""
        self._probes.clear()
        self._probed_bytes = self._pending_bytes = 0
        self._last_due, self._all_counted = -math.inf, False

    def notices_delay(self, now: float) -> bool:
        """Whether an answer is missing on a link that was calm up to now; then it is no more."""
        missing = self.calm and self.answering and self._is_overdue(now)
        if missing:
            self._strain(now)
        return missing

    def _choose_interval(self) -> float:
        """Seconds between two probes on a calm link, as the last answers say."""
        samples = self._samples
        if samples.seconds * CALM_PROBE_BYTES > samples.size * MIN_CALM_PROBE_INTERVAL:
            return MIN_CALM_PROBE_INTERVAL  # also where frames are small
        if samples.longest > FAST_SECONDS:
            return CALM_PROBE_INTERVAL
        return MAX_CALM_PROBE_INTERVAL

    def look_again_at(self, now: float, *, shared: bool = False) -> float:
        """When to look at a calm link again: soon, while an answer is to come, since it may be
        missing; else when the next probe is due. Of a shared link another source may send a probe
        meanwhile."""
        interval = self.probe_interval
        soon = now + _early(min(interval, CALM_PROBE_INTERVAL))
        if shared or self._probes or not self.answering:
            return soon
        return max(soon, self._probed_at + _early(interval))

    @property
    def _is_fast(self) -> bool:
        """Whether frames take so little time that holding one back says nothing of the link."""
        samples = self._samples
        return samples.seconds <= FAST_SECONDS * len(samples.recent)

    @property
    def _is_known_well(self) -> bool:
        """Whether frames cannot only seem to take no time, as where the first answer was late, or
        less than they do, as where jitter is in a single sample."""
        trips = len(self._round_trips)
        enough = trips >= MIN_SAMPLES or (trips > 0 and self.round_trip <= CALM_SECONDS)
        sampled = len(self._samples.recent) >= (1 if self._is_fast else MIN_SAMPLES)
        return enough and sampled

    @property
    def _is_full(self) -> bool:
        return len(self._probes) >= (MAX_PROBES if self.answering else MAX_UNANSWERED_PROBES)

    def _add_probe(self, token: int, probe: _Probe) -> None:
        if self._is_full:
            oldest = self._probes.pop(next(iter(self._probes)))
            self._probed_bytes -= oldest.size
        self._probes[token] = probe

    def _strain(self, now: float) -> None:
        if self.calm:
            self.calm = self._all_counted = False
        self._strained_at = now

    def _measure_round_trip(self, now: float, seconds: float) -> None:
        seconds = max(0.0, seconds)
        if self._histograms is not None:
            self._histograms.round_trip.observe(seconds)
        self._note_round_trip(now, seconds)

    def _note_round_trip(self, now: float, seconds: float) -> None:
        trips = self._round_trips
        trips.append((now, seconds))
        while len(trips) > MAX_ROUND_TRIPS or (
            len(trips) > MIN_SAMPLES and now - trips[0][0] > ROUND_TRIP_LIFETIME
        ):
            trips.pop(0)
        sorted_trips = sorted(each for _, each in trips)
        # The lower median: of a few with jitter the other one is late.
        self.round_trip = sorted_trips[(len(sorted_trips) - 1) // 2]
        self.jitter = self.round_trip - sorted_trips[0]

    def _measure_bandwidth(self, answered: list[_Probe], now: float, late: float) -> None:
        """Take a sample of what was answered at once.

        The narrow place may have been idle between two frames. It was busy since the one from which
        on the bytes came the fastest.
        """
        size = best_size = 0
        best_seconds = 1.0
        for probe in reversed(answered):
            size += probe.size
            seconds = max(now - self._busy_since(probe), 0.0)
            if size * best_seconds > best_size * seconds or not best_size:
                best_size, best_seconds = size, seconds
        very_late = late > LATE_SECONDS
        if very_late or self._doubtful:
            self._samples.clear()
        self._doubtful = very_late
        self._samples.add(now, max(best_size, MIN_SAMPLE_BYTES), best_seconds)

    def _observe_delivery(self, answered: list[_Probe], now: float) -> None:
        if self._histograms is not None:
            for probe in answered:
                if probe.accepted_at is not None:
                    self._histograms.frame_delivery.observe(max(0.0, now - probe.accepted_at))

    def _busy_since(self, probe: _Probe) -> float:
        """Since when the narrow place is busy with this one, the first that is not answered."""
        return max(self._answered_at, probe.sent_at + self.round_trip)

    def _forecast(self, now: float) -> None:
        """Say anew when the answers under way are due."""
        if not (self._probes or self._pending_bytes):  # as on a calm link
            self._last_due = now
            return
        due, seconds_a_byte = now, self._seconds(1, now)
        for probe in self._probes.values():
            due = max(due, probe.sent_at + self.round_trip) + probe.size * seconds_a_byte
            probe.due = due
        if self._pending_bytes:
            due = max(due, self._pending_since + self.round_trip)
            due += self._pending_bytes * seconds_a_byte
        self._last_due = due

    def _seconds(self, size: int, now: float) -> float:
        """How long so many bytes keep the narrow place busy, as far as is known."""
        bandwidth = self.bandwidth(now) if size else None
        return size / bandwidth if bandwidth else 0.0
