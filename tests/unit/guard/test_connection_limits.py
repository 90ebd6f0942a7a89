from __future__ import annotations

from random import Random

import pytest
from attrs import define, field

from relay.guard.connection_limits import Caps, ConnectionLimits
from relay.metrics import Limit

CAPS = Caps(connections=6, per_address=4, per_user=2, unauthenticated=5)


@define(eq=False)
class Connection:
    name: str = "?"
    ended: list[Limit] = field(factory=list)

    def crowded_out(self, limit: Limit) -> None:
        self.ended.append(limit)


def enter(limits: ConnectionLimits, *addresses: str) -> list[Connection]:
    connections = [Connection(address) for address in addresses]
    for connection in connections:
        limits.enter(connection, connection.name)
    return connections


def test_the_address_with_most_unauthenticated_loses_its_oldest() -> None:
    limits = ConnectionLimits(CAPS)
    connections = enter(limits, "honest", "many", "many", "many", "other")
    assert limits.unauthenticated == 5
    enter(limits, "late")
    assert [connection.ended for connection in connections] == [
        [],
        [Limit.UNAUTHENTICATED],
        [],
        [],
        [],
    ]
    enter(limits, "later")
    assert connections[2].ended
    assert limits.unauthenticated == 5


def test_among_equals_the_oldest_loses() -> None:
    limits = ConnectionLimits(CAPS)
    first, *others = enter(limits, "a", "b", "c", "d", "e", "f")
    assert first.ended
    assert not any(connection.ended for connection in others)


def test_an_authenticated_connection_is_not_counted_as_unauthenticated() -> None:
    limits = ConnectionLimits(CAPS)
    connections = enter(limits, *"aaaaa")
    for connection in connections:
        assert limits.authenticated(connection, None)
    enter(limits, *"aaaaa")
    assert not any(connection.ended for connection in connections)


def test_a_proxy_s_connections_count_for_the_clients_behind_it() -> None:
    limits = ConnectionLimits(CAPS)
    connections = enter(limits, *["proxy"] * 3)
    for number, connection in enumerate(connections):
        limits.move(connection, f"client {number}")
    many = enter(limits, "many", "many", "many")
    assert many[0].ended
    limits.move(many[0], "elsewhere")
    assert limits.unauthenticated == 5


def test_connections_are_capped_in_total_and_per_address() -> None:
    limits = ConnectionLimits(CAPS)
    connections = [Connection() for _ in range(10)]
    told = [limits.admit(connection, "a") for connection in connections[:5]]
    assert told == [None] * 4 + [Limit.CONNECTIONS_OF_ADDRESS]
    told = [limits.admit(connection, "b") for connection in connections[5:8]]
    assert told == [None, None, Limit.CONNECTIONS]
    limits.leave(connections[0])
    assert limits.admit(connections[8], "a") is None


def admitted(limits: ConnectionLimits, *addresses: str) -> list[Connection]:
    connections = enter(limits, *addresses)
    assert all(limits.admit(connection, connection.name) is None for connection in connections)
    return connections


def test_an_unauthenticated_connection_makes_room_for_a_new_one_of_its_address() -> None:
    limits = ConnectionLimits(CAPS)
    *known, oldest, newest = admitted(limits, *"aaaa")
    assert all(limits.authenticated(connection, None) for connection in known)
    (other,) = admitted(limits, "b")
    late = admitted(limits, "a")
    assert oldest.ended == [Limit.CONNECTIONS_OF_ADDRESS]
    assert not newest.ended
    assert not other.ended
    assert all(limits.authenticated(connection, None) for connection in [newest, *late])
    (refused,) = enter(limits, "a")
    assert limits.admit(refused, "a") is Limit.CONNECTIONS_OF_ADDRESS


def test_in_all_the_address_with_most_that_are_not_authenticated_makes_room() -> None:
    limits = ConnectionLimits(CAPS)
    known = admitted(limits, *"aaa")
    assert all(limits.authenticated(connection, None) for connection in known)
    single, oldest, newest = admitted(limits, *"bcc")
    admitted(limits, "d")
    assert oldest.ended == [Limit.CONNECTIONS]
    assert not any(connection.ended for connection in [*known, single, newest])
    assert limits.unauthenticated == 4, "it is counted until it has gone"
    limits.leave(oldest)
    assert len(limits._admitted) == CAPS.connections


def test_the_newest_connection_of_a_user_wins() -> None:
    limits = ConnectionLimits(CAPS)
    first, second, third, other = (Connection() for _ in range(4))
    assert limits.authenticated(first, "ann")
    assert limits.authenticated(second, "ann")
    assert limits.authenticated(other, "bob")
    assert limits.authenticated(third, "ann")
    assert first.ended == [Limit.CONNECTIONS_OF_USER]
    limits.leave(first)
    assert not second.ended
    assert not other.ended


def test_the_oldest_connection_of_a_user_wins_if_so_set() -> None:
    limits = ConnectionLimits(Caps(6, 4, 1, 5, "oldest-wins"))
    first, second, third = Connection(), Connection(), Connection()
    assert limits.authenticated(first, "ann")
    assert not limits.authenticated(second, "ann")
    assert not first.ended
    limits.leave(second)
    limits.leave(first)
    assert limits.authenticated(third, "ann")


def test_services_are_not_counted_as_users() -> None:
    limits = ConnectionLimits(Caps(6, 4, 1, 5, "oldest-wins"))
    assert all(limits.authenticated(Connection(), None) for _ in range(10))


def test_without_caps_nobody_is_refused() -> None:
    limits = ConnectionLimits()
    connections = enter(limits, *["a"] * 100)
    assert not any(limits.admit(connection, "a") for connection in connections)
    assert all(limits.authenticated(connection, "ann") for connection in connections)
    assert not any(connection.ended for connection in connections)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_kept_of_connections_that_have_left(seed: int) -> None:
    random, limits = Random(seed), ConnectionLimits(CAPS)
    inside: list[Connection] = []
    done: set[tuple[Connection, int]] = set()
    authenticated: set[Connection] = set()
    for _ in range(2000):
        name = random.choice("abcd")
        if not inside or random.random() < 0.4:
            inside += enter(limits, name)
            continue
        connection = random.choice(inside)
        deed = random.randrange(4)
        if (connection, deed) in done and deed < 2:
            continue  # once in a life
        done.add((connection, deed))
        if deed == 0:
            limits.admit(connection, name)
        elif deed == 1:
            limits.authenticated(connection, random.choice(["ann", "bob", None]))
            authenticated.add(connection)
        elif deed == 2:
            limits.move(connection, name)
        else:
            inside.remove(connection)
            limits.leave(connection)
        assert limits.unauthenticated <= CAPS.unauthenticated
        assert len(limits._admitted) <= CAPS.connections
        assert max(limits._by_address.values(), default=0) <= CAPS.per_address
        assert (
            limits._admitted_unauthenticated._addresses.keys()
            <= limits._admitted.keys() - authenticated
        )
        unauthenticated = limits._unauthenticated
        counts = {
            name: len(connections) for name, connections in unauthenticated._connections.items()
        }
        assert unauthenticated._most == max(counts.values(), default=0)
    for connection in inside:
        limits.leave(connection)
    unauthenticated = limits._unauthenticated
    assert not unauthenticated._addresses
    assert not unauthenticated._connections
    assert not unauthenticated._by_number
    assert not limits._admitted
    assert not limits._admitted_unauthenticated._addresses
    assert not limits._admitted_unauthenticated._by_number
    assert not limits._by_address
    assert not limits._by_user
    assert not limits._users
