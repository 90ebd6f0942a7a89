from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from relay.workers.placement import LOAD_SLACK, MAX_LOAD_FACTOR, Placement

WORKERS = (11, 12, 13)
HINTS = st.one_of(st.none(), st.sampled_from([f"s{n}" for n in range(8)]))


def place(placement: Placement, hint: str | None, workers: tuple[int, ...] = WORKERS) -> int:
    worker = placement.choose(hint, workers)
    placement.add(hint, worker)
    return worker


def test_connections_without_a_hint_are_spread_evenly() -> None:
    placement = Placement()
    assert Counter(place(placement, None) for _ in range(30)) == dict.fromkeys(WORKERS, 10)


def test_a_stream_stays_on_one_worker() -> None:
    placement = Placement()
    for _ in range(100):
        place(placement, None)
    assert len({place(placement, "door") for _ in range(LOAD_SLACK)}) == 1


def test_new_streams_go_to_different_workers() -> None:
    placement = Placement()
    assert {place(placement, f"stream {n}") for n in range(3)} == set(WORKERS)


def test_two_large_streams_share_two_workers_without_a_crossing() -> None:
    placement = Placement()
    streams = ("left", "right")
    of = {stream: {place(placement, stream, (1, 2))} for stream in streams}
    for _ in range(60):
        for stream in streams:
            of[stream].add(place(placement, stream, (1, 2)))
    assert of["left"] | of["right"] == {1, 2}
    assert all(len(workers) == 1 for workers in of.values())


def test_a_stream_that_is_too_large_for_one_worker_is_spread() -> None:
    placement = Placement()
    loads = Counter(place(placement, "everybody's") for _ in range(900))
    assert set(loads) == set(WORKERS)
    assert max(loads.values()) <= MAX_LOAD_FACTOR * 300 + LOAD_SLACK


def test_a_worker_gets_no_more_than_its_share_for_a_stream() -> None:
    placement = Placement(share=10)
    assert Counter(place(placement, "door") for _ in range(30)) == dict.fromkeys(WORKERS, 10)


def test_a_stream_that_nobody_has_any_more_is_forgotten() -> None:
    placement = Placement()
    worker = place(placement, "door")
    placement.remove("door", worker)
    assert placement == Placement() or not placement.loads
    assert place(placement, None) == min(WORKERS)
    assert place(placement, "door") != min(WORKERS)


@given(st.lists(HINTS, max_size=200))
def test_no_worker_has_much_more_than_its_part(hints: list[str | None]) -> None:
    placement = Placement()
    for number, hint in enumerate(hints):
        worker = place(placement, hint)
        mean = number / len(WORKERS)
        assert placement.loads[worker] - 1 <= max(MAX_LOAD_FACTOR * mean, mean + LOAD_SLACK)


@given(st.lists(HINTS, max_size=100), st.sampled_from(WORKERS))
def test_a_worker_that_goes_moves_only_its_own_streams(hints: list[str | None], gone: int) -> None:
    """A stream whose connections are all on one worker stays there when another goes."""
    placement = Placement()
    given: list[tuple[str | None, int]] = [(hint, place(placement, hint)) for hint in hints]
    homes: dict[str, set[int]] = {}
    for hint, worker in given:
        if hint is not None:
            homes.setdefault(hint, set()).add(worker)
    for hint, worker in given:
        if worker == gone:
            placement.remove(hint, worker)
    left = tuple(worker for worker in WORKERS if worker != gone)
    mean = sum(placement.loads[each] for each in left) / len(left)
    bound = max(MAX_LOAD_FACTOR * mean, mean + LOAD_SLACK)
    for hint, workers in homes.items():
        here = workers - {gone}
        if len(here) == 1 and placement.loads[min(here)] < bound:
            assert placement.choose(hint, left) in here


@given(st.lists(HINTS, max_size=60))
def test_what_was_added_and_removed_leaves_nothing(hints: list[str | None]) -> None:
    placement = Placement()
    for hint, worker in [(hint, place(placement, hint)) for hint in hints]:
        placement.remove(hint, worker)
    assert not placement.loads
    assert [place(placement, f"s{n}") for n in range(3)] == list(WORKERS)
