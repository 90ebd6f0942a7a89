"""The table of states, and the picture of it in the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.protocol.states import TRANSITIONS, IllegalStep, State, Step, after

PAGE = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()
ARROW = re.compile(r"^ +(\S+) --> (\S+): (.+)$", re.MULTILINE)


def test_the_page_draws_the_states_that_there_are() -> None:
    drawn = {name for arrow in ARROW.findall(PAGE) for name in arrow[:2]} - {"[*]"}
    assert drawn == {state.value for state in State} - {State.ENDED.value}


@pytest.mark.parametrize("state", [state for state in State if state is not State.ENDED])
def test_the_page_draws_each_step_to_another_state(state: State) -> None:
    """`[*]` is the end; steps that stay are drawn with the requests that change no state."""
    drawn = {end for start, end, _ in ARROW.findall(PAGE) if start == state.value}
    table = {each.value for each in TRANSITIONS[state].values()}
    assert {"Ended" if end == "[*]" else end for end in drawn} == table


def test_every_state_can_end_and_the_last_one_leads_nowhere() -> None:
    for state in State:
        if state is not State.ENDED:
            assert after(state, Step.END) is State.ENDED
    assert TRANSITIONS[State.ENDED] == {}


@pytest.mark.parametrize(
    ("state", "step"),
    [
        (State.CONNECTING, Step.AUTHENTICATE),
        (State.OPEN, Step.REGISTER),
        (State.OPEN, Step.UPGRADE),
        (State.PRODUCING, Step.UPGRADE),
        (State.ENDED, Step.END),
    ],
)
def test_a_step_that_a_state_does_not_have_is_a_bug(state: State, step: Step) -> None:
    with pytest.raises(IllegalStep, match=f"no {step.value} while {state.value}"):
        after(state, step)
