from __future__ import annotations

from random import Random

import pytest
from attrs import define, field

from relay.guard.crowd import Caps, Crowd
from relay.metrics import Limit

CAPS = Caps(connections=6, per_address=4, per_user=2, unauthenticated=5)


@define(eq=False)
class Member:
    name: str = "?"
    ended: list[Limit] = field(factory=list)

    def crowded_out(self, limit: Limit) -> None:
        self.ended.append(limit)


def enter(crowd: Crowd, *addresses: str) -> list[Member]:
    members = [Member(address) for address in addresses]
    for member in members:
        crowd.enter(member, member.name)
    return members


def test_the_address_with_most_strangers_loses_its_oldest() -> None:
    crowd = Crowd(CAPS)
    members = enter(crowd, "honest", "many", "many", "many", "other")
    assert crowd.unauthenticated == 5
    enter(crowd, "late")
    assert [member.ended for member in members] == [[], [Limit.UNAUTHENTICATED], [], [], []]
    enter(crowd, "later")
    assert members[2].ended
    assert crowd.unauthenticated == 5


def test_among_equals_the_oldest_loses() -> None:
    crowd = Crowd(CAPS)
    first, *others = enter(crowd, "a", "b", "c", "d", "e", "f")
    assert first.ended
    assert not any(member.ended for member in others)


def test_who_is_authenticated_is_no_stranger() -> None:
    crowd = Crowd(CAPS)
    members = enter(crowd, *"aaaaa")
    for member in members:
        assert crowd.know(member, None)
    enter(crowd, *"aaaaa")
    assert not any(member.ended for member in members)


def test_a_proxy_s_connections_count_for_the_clients_behind_it() -> None:
    crowd = Crowd(CAPS)
    members = enter(crowd, *["proxy"] * 3)
    for number, member in enumerate(members):
        crowd.move(member, f"client {number}")
    many = enter(crowd, "many", "many", "many")
    assert many[0].ended
    crowd.move(many[0], "elsewhere")
    assert crowd.unauthenticated == 5


def test_there_are_so_many_connections_in_all_and_of_one_address() -> None:
    crowd = Crowd(CAPS)
    members = [Member() for _ in range(10)]
    told = [crowd.admit(member, "a") for member in members[:5]]
    assert told == [None] * 4 + [Limit.CONNECTIONS_OF_ADDRESS]
    told = [crowd.admit(member, "b") for member in members[5:8]]
    assert told == [None, None, Limit.CONNECTIONS]
    crowd.leave(members[0])
    assert crowd.admit(members[8], "a") is None


def admitted(crowd: Crowd, *addresses: str) -> list[Member]:
    members = enter(crowd, *addresses)
    assert all(crowd.admit(member, member.name) is None for member in members)
    return members


def test_who_is_not_authenticated_makes_room_for_a_newcomer_of_the_same_address() -> None:
    crowd = Crowd(CAPS)
    *known, oldest, newest = admitted(crowd, *"aaaa")
    assert all(crowd.know(member, None) for member in known)
    (other,) = admitted(crowd, "b")
    late = admitted(crowd, "a")
    assert oldest.ended == [Limit.CONNECTIONS_OF_ADDRESS]
    assert not newest.ended
    assert not other.ended
    assert all(crowd.know(member, None) for member in [newest, *late])
    (refused,) = enter(crowd, "a")
    assert crowd.admit(refused, "a") is Limit.CONNECTIONS_OF_ADDRESS


def test_in_all_the_address_with_most_that_are_not_authenticated_makes_room() -> None:
    crowd = Crowd(CAPS)
    known = admitted(crowd, *"aaa")
    assert all(crowd.know(member, None) for member in known)
    single, oldest, newest = admitted(crowd, *"bcc")
    admitted(crowd, "d")
    assert oldest.ended == [Limit.CONNECTIONS]
    assert not any(member.ended for member in [*known, single, newest])
    assert crowd.unauthenticated == 4, "it is counted until it has gone"
    crowd.leave(oldest)
    assert len(crowd._admitted) == CAPS.connections


def test_the_newest_connection_of_a_user_wins() -> None:
    crowd = Crowd(CAPS)
    first, second, third, other = (Member() for _ in range(4))
    assert crowd.know(first, "ann")
    assert crowd.know(second, "ann")
    assert crowd.know(other, "bob")
    assert crowd.know(third, "ann")
    assert first.ended == [Limit.CONNECTIONS_OF_USER]
    crowd.leave(first)
    assert not second.ended
    assert not other.ended


def test_or_the_oldest_if_it_is_so_set() -> None:
    crowd = Crowd(Caps(6, 4, 1, 5, "oldest-wins"))
    first, second, third = Member(), Member(), Member()
    assert crowd.know(first, "ann")
    assert not crowd.know(second, "ann")
    assert not first.ended
    crowd.leave(second)
    crowd.leave(first)
    assert crowd.know(third, "ann")


def test_services_are_not_counted_as_users() -> None:
    crowd = Crowd(Caps(6, 4, 1, 5, "oldest-wins"))
    assert all(crowd.know(Member(), None) for _ in range(10))


def test_without_caps_nobody_is_refused() -> None:
    crowd = Crowd()
    members = enter(crowd, *["a"] * 100)
    assert not any(crowd.admit(member, "a") for member in members)
    assert all(crowd.know(member, "ann") for member in members)
    assert not any(member.ended for member in members)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_left_of_a_crowd_that_has_gone(seed: int) -> None:
    random, crowd = Random(seed), Crowd(CAPS)
    inside: list[Member] = []
    done: set[tuple[Member, int]] = set()
    authenticated: set[Member] = set()
    for _ in range(2000):
        name = random.choice("abcd")
        if not inside or random.random() < 0.4:
            inside += enter(crowd, name)
            continue
        member = random.choice(inside)
        deed = random.randrange(4)
        if (member, deed) in done and deed < 2:
            continue  # once in a life
        done.add((member, deed))
        if deed == 0:
            crowd.admit(member, name)
        elif deed == 1:
            crowd.know(member, random.choice(["ann", "bob", None]))
            authenticated.add(member)
        elif deed == 2:
            crowd.move(member, name)
        else:
            inside.remove(member)
            crowd.leave(member)
        assert crowd.unauthenticated <= CAPS.unauthenticated
        assert len(crowd._admitted) <= CAPS.connections
        assert max(crowd._by_address.values(), default=0) <= CAPS.per_address
        assert crowd._waiting._addresses.keys() <= crowd._admitted.keys() - authenticated
        strangers = crowd._strangers
        counts = {name: len(members) for name, members in strangers._members.items()}
        assert strangers._most == max(counts.values(), default=0)
    for member in inside:
        crowd.leave(member)
    strangers = crowd._strangers
    assert not strangers._addresses
    assert not strangers._members
    assert not strangers._by_number
    assert not crowd._admitted
    assert not crowd._waiting._addresses
    assert not crowd._waiting._by_number
    assert not crowd._by_address
    assert not crowd._by_user
    assert not crowd._users
