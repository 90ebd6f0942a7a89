"""Whether two runs differ by more than their noise. No I/O.

The seconds of two runs of one scenario belong together: in the same second, the same is due. Pairs
of neighbouring seconds form blocks, because disturbances last for several seconds. Two questions
are asked of the blocks:

- How large is the change? Blocks are drawn again and again with replacement; what is then measured
  has the spread of the noise (H. R. Kuensch, "The jackknife and the bootstrap for general
  stationary observations", 1989). The interval has the width of Student's t, since blocks are few.
- Is there a change at all? If not, it makes no difference which run a block is of. The two halves
  of each block are swapped at random; what was measured must be rare among the results (R. A.
  Fisher's randomization test). This holds for any distribution, also one with rare, long stalls,
  about which a bootstrap errs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from random import Random
from statistics import stdev
from typing import Literal

from attrs import frozen

from relay.load.measures.histogram import HdrHistogram

MIN_COMPARED_SECONDS = 10
"""Seconds with measurements in both runs, below which nothing is said."""
MAX_BLOCKS = 60
DRAWS = 400
MIN_KNOWN_DRAWS = 0.95 * DRAWS
SWAPS = 2000
MAX_FALSE_ALARMS = 0.05
"""How often equal runs may be called different, in any of the figures that are compared."""

Verdict = Literal["worse", "better", "not worse", "cannot tell"]
Rows = Sequence[int]
"""Numbers of halves of blocks, which may repeat: first those before, then those after."""
Measure = Callable[[Rows], float]
"""What is measured in these halves together."""


@frozen
class Judgement:
    """A change, the interval in which it is with 95% confidence, and what follows."""

    change: float | None
    """As a logarithm, or as a difference; None if it could not be measured, like the next two."""
    low: float | None
    high: float | None
    verdict: Verdict


UNKNOWN = Judgement(None, None, None, "cannot tell")


@frozen
class PairedBlocks:
    """What was measured in the blocks of two runs."""

    measure: Measure
    number: int
    """Number of blocks."""
    is_ratio: bool = True
    """Whether a change is the logarithm of a ratio, not a difference."""

    def judge(self, limit: float, *, figures: int = 1) -> Judgement:
        """Judge one of so many figures. A change up to `limit` does not matter; more is worse.

        A change is called one if it is surely beyond the limit, and rare among the results of
        swaps for all figures together (Bonferroni).
        """
        number, random = self.number, Random(self.number)  # noqa: S311 (the same runs, same answer)
        whole = range(number)
        change = self._change(whole, range(number, 2 * number))
        drawn = []
        for _ in range(DRAWS):
            rows = random.choices(whole, k=number)
            drawn.append(self._change(rows, [number + each for each in rows]))
        known = [each for each in drawn if each is not None]
        if change is None or len(known) < MIN_KNOWN_DRAWS or number < 2:
            return UNKNOWN
        # A draw of n blocks varies less than n blocks do, by (n - 1) / n.
        error = stdev(known) * math.sqrt(number / (number - 1))
        width = error * student_t(0.05, number - 1)
        low, high = change - width, change + width
        verdict: Verdict = "not worse" if high <= limit else "cannot tell"
        is_beyond = low > limit or high < -limit
        if is_beyond and self._is_rare(change, MAX_FALSE_ALARMS / figures, random):
            verdict = "worse" if low > limit else "better"
        return Judgement(change, low, high, verdict)

    def _is_rare(self, change: float, false_alarms: float, random: Random) -> bool:
        """Whether at most this part of the swaps, and of what was measured, changes as much."""
        number = self.number
        as_large = 1
        for _ in range(SWAPS):
            swapped = [random.random() < 0.5 for _ in range(number)]
            before = [each + number * is_swapped for each, is_swapped in enumerate(swapped)]
            after = [each + number * (not is_swapped) for each, is_swapped in enumerate(swapped)]
            other = self._change(before, after)
            as_large += other is None or abs(other) >= abs(change) - 1e-12
            if as_large > false_alarms * (SWAPS + 1):
                return False
        return True

    def _change(self, before: Rows, after: Rows) -> float | None:
        old, new = self.measure(before), self.measure(after)
        if not self.is_ratio:
            return new - old
        return math.log(new / old) if old > 0 and new > 0 else None


def block_ranges(seconds: int) -> list[range]:
    """Divide seconds into blocks of nearly the same length, which grows as its cube root."""
    length = max(round(seconds ** (1 / 3)) - 1, math.ceil(seconds / MAX_BLOCKS), 1)
    number = max(1, seconds // length)
    ends = [seconds * each // number for each in range(number + 1)]
    return [range(ends[each], ends[each + 1]) for each in range(number)]


def paired_percentiles(
    before: Sequence[HdrHistogram], after: Sequence[HdrHistogram], percent: float
) -> PairedBlocks:
    """A percentile of times, given by second. Both runs have as many seconds, none is empty."""
    ranges = block_ranges(len(before))
    halves = [
        dict(_merged(run[each] for each in block)) for run in (before, after) for block in ranges
    ]
    values = sorted({value for half in halves for value in half})
    up_to = [_running_totals(half, values) for half in halves]

    def percentile(rows: Rows) -> float:
        chosen = [up_to[each] for each in rows]
        wanted = max(1, math.ceil(sum(totals[-1] for totals in chosen) * percent / 100))
        low, high = 0, len(values) - 1
        while low < high:
            middle = (low + high) // 2
            if sum(totals[middle] for totals in chosen) >= wanted:
                high = middle
            else:
                low = middle + 1
        return max(values[low], 1)

    return PairedBlocks(percentile, len(ranges))


def paired_quotients(
    before: Sequence[tuple[float, float]],
    after: Sequence[tuple[float, float]],
    *,
    is_ratio: bool,
) -> PairedBlocks:
    """A sum divided by another, such as what was missed by what was sent. Both are given by
    second, for as many seconds of both runs."""
    ranges = block_ranges(len(before))
    halves = [
        tuple(sum(run[each][part] for each in block) for part in (0, 1))
        for run in (before, after)
        for block in ranges
    ]

    def quotient(rows: Rows) -> float:
        whole = sum(halves[each][1] for each in rows)
        return sum(halves[each][0] for each in rows) / whole if whole else 0.0

    return PairedBlocks(quotient, len(ranges), is_ratio)


def _merged(histograms: Iterable[HdrHistogram]) -> HdrHistogram:
    merged = HdrHistogram()
    for each in histograms:
        merged.add(each)
    return merged


def _running_totals(counts: Mapping[int, int], values: Sequence[int]) -> list[int]:
    """How many are at most as large as each value."""
    return list(accumulate(counts.get(value, 0) for value in values))


@lru_cache
def student_t(outside: float, freedom: int) -> float:
    """The t beyond which, on both sides, lies this part of Student's distribution."""
    low, high = 0.0, 1.0
    while _outside(high, freedom) > outside:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _outside(middle, freedom) > outside else (low, middle)
    return high


def _outside(t: float, freedom: int) -> float:
    """The two-sided tail, in the closed form of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for number in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (number - 1) / number
    inside = (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total
    return 1 - inside
