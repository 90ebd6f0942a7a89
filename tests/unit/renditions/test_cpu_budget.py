from __future__ import annotations

import gc
from collections import deque

from relay.renditions.cpu_budget import CpuBudget


def test_there_is_room_until_as_much_is_spent_as_the_cores_give_in_a_second() -> None:
    budget = CpuBudget(0.5)
    assert budget.has_room(10.0, "ann")
    budget.spend(10.0, 0.3, "ann")
    assert budget.has_room(10.2, "ann")
    budget.spend(10.4, 0.3, "ann")
    assert not budget.has_room(10.9, "ann")
    assert budget.has_room(11.0, "ann")
    budget.spend(11.0, 0.2, "ann")
    assert not budget.has_room(11.3, "ann")
    assert budget.has_room(11.5, "ann")


def test_without_cores_there_is_never_room() -> None:
    assert not CpuBudget(0.0).has_room(0.0, "ann")


def test_those_who_ask_have_equal_shares() -> None:
    budget = CpuBudget(0.6)
    assert budget.has_room(10.0, "bob")
    budget.spend(10.0, 0.35, "ann")
    assert not budget.has_room(10.1, "ann")
    assert budget.has_room(10.1, "bob")
    budget.spend(10.1, 0.2, "bob")
    assert budget.has_room(10.2, "bob")
    budget.spend(10.2, 0.1, "bob")
    assert not budget.has_room(10.3, "bob")


def test_who_asks_alone_has_all() -> None:
    budget = CpuBudget(0.6)
    assert budget.has_room(10.0, "bob")
    assert budget.has_room(11.5, "ann")
    budget.spend(11.5, 0.5, "ann")
    assert budget.has_room(11.6, "ann")


def test_many_streams_of_one_leave_the_other_its_pictures() -> None:
    budget, made = CpuBudget(0.5), {"ann": 0, "bob": 0}
    for step in range(500):  # ann asks for ten times as much as there is, bob for a fifth of it
        now = step * 0.01
        for owner_id in ("ann", *(["bob"] if step % 4 == 0 else [])):
            if budget.has_room(now, owner_id):
                budget.spend(now, 0.05 if owner_id == "ann" else 0.004, owner_id)
                made[owner_id] += 1
    assert made["bob"] >= 0.95 * 125
    assert made["ann"] >= 0.4 * 5 * 0.5 / 0.05


def test_owners_of_long_ago_are_forgotten_while_others_go_on() -> None:
    budget = CpuBudget(0.5)
    for step in range(5000):
        owner_id = f"user-{step}"
        assert budget.has_room(step * 0.1, owner_id)
        budget.spend(step * 0.1, 0.001 * (step % 7), owner_id)
    held = [each for each in gc.get_referents(budget) if isinstance(each, dict | deque)]
    assert len(held) == 3
    assert max(map(len, held)) < 50
