"""Who missed frames, when and why, in words. No I/O."""

from __future__ import annotations

from collections.abc import Iterator

from relay.load.measures.results import GroupResult, RunResult

MAX_NAMED_STAGES = 3


def missed_lines(result: RunResult) -> Iterator[str]:
    """A line for each group that missed frames."""
    for name, group in result.groups.items():
        missed = group.counts.get("missed", 0)
        if missed:
            yield f"{name}: {missed} frames missed{_who(group)}: {_why(group)}{_when(name, result)}"


def _who(group: GroupResult) -> str:
    """By how many: a watch is one stream that a viewer watches on one connection."""
    watches, missing = (group.counts.get(each, 0) for each in ("watches", "watches.missed"))
    return f", in {missing} of {watches} watches" if missing else ""


def _why(group: GroupResult) -> str:
    missed = group.counts.get("missed", 0)
    skipped = min(missed, group.counts.get("skipped", 0))
    causes = (
        (skipped, "skipped by the relay for newer ones or for maxFps"),
        (missed - skipped, "before the first frame of a connection, or after its last"),
    )
    return ", ".join(f"{number} {words}" for number, words in causes if number)


def _when(name: str, result: RunResult) -> str:
    """In which stages, as far as it was seen while they lasted."""
    seen = [
        (of_group.counts.get("missed", 0), stage)
        for stage, each in result.by_stage.items()
        if (of_group := each.groups.get(name)) is not None
    ]
    most = sorted((each for each in seen if each[0]), reverse=True)[:MAX_NAMED_STAGES]
    return "".join(f"; {number} during {stage}" for number, stage in most)
