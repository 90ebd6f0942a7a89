from __future__ import annotations

from relay.renditions.cpu_budget import CpuBudget


def test_there_is_room_until_as_much_is_spent_as_the_cores_give_in_a_second() -> None:
    budget = CpuBudget(0.5)
    assert budget.has_room(10.0)
    budget.spend(10.0, 0.3)
    assert budget.has_room(10.2)
    budget.spend(10.4, 0.3)
    assert not budget.has_room(10.9)
    assert budget.has_room(11.0)
    budget.spend(11.0, 0.2)
    assert not budget.has_room(11.3)
    assert budget.has_room(11.5)


def test_without_cores_there_is_never_room() -> None:
    assert not CpuBudget(0.0).has_room(0.0)
