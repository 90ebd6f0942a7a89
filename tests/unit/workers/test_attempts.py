"""Attempts to authenticate at several workers, which their parent counts. All in memory."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
from attrs import define, field
from structlog.testing import capture_logs

from relay.guard.client_address import ClientAddress
from relay.guard.failed_auths import KNOWN_GOOD_SECONDS, AuthKeys, AuthVerdicts, FailedAuths
from relay.guard.machine_auths import MAX_ADDRESSES_TO_NAME, SUCCESS_INTERVAL, MachineAuths
from relay.guard.rates import RateLimiter
from relay.workers.attempts import TELL_INTERVAL, AttemptsOfMachine
from relay.workers.messages import Attempted, Bans, KnownTokens, LogBan

pytestmark = pytest.mark.mock_clock

HERE, THERE = ClientAddress.parse("192.0.2.1"), ClientAddress.parse("198.51.100.1")
LIMIT, BAN_TIME = 10, 100.0


@define(eq=False)
class Worker:
    """A worker without its process: what it sends arrives at once."""

    machine: Machine
    orders: list[Any] = field(factory=list)
    sent: list[Attempted] = field(factory=list)
    logged: list[str] = field(factory=list)
    auths: MachineAuths = field(init=False)
    failures: FailedAuths = field(init=False)

    def __attrs_post_init__(self) -> None:
        secret = self.machine.attempts.secret
        self.auths = MachineAuths(AuthVerdicts(BAN_TIME, secret), self._send)
        self.failures = FailedAuths(*limits(), BAN_TIME, elsewhere=self.auths)

    def _send(self, keys: AuthKeys, good: bool) -> None:
        attempted = Attempted(keys.address, keys.token, good)
        self.sent.append(attempted)
        self.machine.attempts.note(cast("Any", self), attempted)

    def tell(self, order: Any) -> None:
        self.orders.append(order)
        match order:
            case Bans(keys):
                self.auths.note_banned(keys)
            case KnownTokens(keys):
                self.auths.note_known(keys)
            case LogBan(key):
                self.logged.append(key)
                self.auths.log_ban(key)

    def guess(self, times: int, address: ClientAddress = HERE) -> None:
        for number in range(times):
            self.failures.failed(address, f"guess {id(self)} {number} {trio.current_time()}")

    def refuses(self, token: str, address: ClientAddress = HERE) -> bool:
        return self.failures.wait(address, token) is not None


def limits() -> tuple[RateLimiter, RateLimiter]:
    return RateLimiter(f"{LIMIT}/minute"), RateLimiter("3/minute")


@define(eq=False)
class Machine:
    """A parent without processes."""

    workers: list[Any] = field(factory=list)
    attempts: AttemptsOfMachine = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.attempts = AttemptsOfMachine(FailedAuths(*limits(), BAN_TIME), self.workers)

    def start_worker(self) -> Worker:
        worker = Worker(self)
        self.workers.append(worker)
        self.attempts.welcome(cast("Any", worker))
        return worker


@pytest.fixture
async def machine(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> Machine:
    machine = Machine()
    nursery.start_soon(machine.attempts.keep_telling)
    return machine


async def told() -> None:
    """Wait until the workers have been told of tokens."""
    await trio.sleep(2 * TELL_INTERVAL)


async def test_failures_at_several_workers_count_together_and_ban_at_all(machine: Machine) -> None:
    first, second = machine.start_worker(), machine.start_worker()
    first.guess(LIMIT // 2)
    second.guess(LIMIT // 2 - 1)
    assert not first.refuses("a new token")
    second.guess(1)
    for worker in (first, second):
        assert worker.failures.wait(HERE, "a new token") == pytest.approx(BAN_TIME)
        assert not worker.refuses("a new token", THERE)
    await trio.sleep(BAN_TIME)
    assert not first.refuses("a new token")
    assert not second.refuses("a new token")


async def test_the_worker_at_which_an_address_is_banned_logs_it_alone(
    machine: Machine,
) -> None:
    first, second = machine.start_worker(), machine.start_worker()
    with capture_logs() as logs:
        first.guess(LIMIT - 1)
        second.guess(1)
    assert (len(first.logged), len(second.logged)) == (0, 1)
    assert [(each["event"], each["address"]) for each in logs] == [("address banned", HERE.text)]


async def test_a_token_that_was_good_at_one_worker_is_let_in_at_the_other(
    machine: Machine,
) -> None:
    first, second = machine.start_worker(), machine.start_worker()
    first.failures.succeeded(THERE, "good")
    await told()
    second.guess(LIMIT)
    assert second.refuses("a new token")
    assert not second.refuses("good")


async def test_a_success_lifts_the_ban_and_the_count_of_its_address_at_all_workers(
    machine: Machine,
) -> None:
    first, second = machine.start_worker(), machine.start_worker()
    first.failures.succeeded(HERE, "good")
    await told()
    first.guess(LIMIT)
    assert second.refuses("a new token")
    second.failures.succeeded(HERE, "good")
    assert not first.refuses("a new token")
    assert not second.refuses("a new token")
    first.guess(LIMIT - 1)
    second.failures.succeeded(HERE, "another")
    first.guess(LIMIT - 1)
    assert not first.refuses("a new token")


async def test_a_token_is_banned_at_all_workers_and_is_known_at_none_once_it_fails(
    machine: Machine,
) -> None:
    first, second = machine.start_worker(), machine.start_worker()
    first.failures.succeeded(HERE, "expired")
    await told()
    second.failures.failed(THERE, "expired")
    await told()
    first.guess(LIMIT)
    assert first.refuses("expired")
    for worker in (first, second):
        worker.failures.failed(THERE, "expired")
    assert first.refuses("expired", THERE)
    assert second.refuses("expired", THERE)


async def test_a_worker_that_starts_later_knows_what_the_others_know(machine: Machine) -> None:
    first = machine.start_worker()
    first.failures.succeeded(THERE, "good")
    first.guess(LIMIT)
    await trio.sleep(BAN_TIME / 4)
    late = machine.start_worker()
    assert late.failures.wait(HERE, "a new token") == pytest.approx(BAN_TIME * 3 / 4)
    assert not late.refuses("good")
    await trio.sleep(KNOWN_GOOD_SECONDS - BAN_TIME / 2)
    late.guess(LIMIT)
    assert not late.refuses("good")
    await trio.sleep(BAN_TIME / 4)
    assert late.refuses("good")  # its day is over here, too


async def test_a_token_that_is_good_again_and_again_is_told_now_and_then(machine: Machine) -> None:
    first, second = machine.start_worker(), machine.start_worker()
    for _ in range(1000):
        first.failures.succeeded(HERE, "good")
    assert len(first.sent) == 1
    for _ in range(20):
        await trio.sleep(SUCCESS_INTERVAL)
        first.failures.succeeded(HERE, "good")
    assert len(first.sent) == 21
    assert [order for order in second.orders if order != KnownTokens({}) and order != Bans({})] == [
        KnownTokens({first.sent[0].token: KNOWN_GOOD_SECONDS})
    ]
    first.guess(LIMIT)
    first.failures.succeeded(HERE, "good")
    assert not second.refuses("a new token")


async def test_many_new_tokens_are_told_together(machine: Machine) -> None:
    first, second = machine.start_worker(), machine.start_worker()
    second.orders.clear()
    for number in range(1000):
        first.failures.succeeded(HERE, f"token {number}")
    await told()
    assert len(second.orders) <= 2
    assert len(second.failures.verdicts.known_good) == 1000


async def test_a_worker_remembers_few_addresses_to_name_them(machine: Machine) -> None:
    first = machine.start_worker()
    for number in range(MAX_ADDRESSES_TO_NAME + 100):
        first.guess(1, ClientAddress.parse(f"10.0.{number >> 8}.{number & 255}"))
    assert len(first.auths._addresses) == MAX_ADDRESSES_TO_NAME


async def test_neither_tokens_nor_addresses_are_in_what_is_said(machine: Machine) -> None:
    first, second = machine.start_worker(), machine.start_worker()
    first.failures.succeeded(HERE, "a-secret-token")
    first.guess(LIMIT)
    await told()
    said = repr((first.sent, first.orders, second.orders))
    assert "a-secret" not in said
    assert "guess" not in said
    assert HERE.text not in said
    assert machine.attempts.secret.hex() not in repr(first.auths)


async def test_a_token_that_looks_like_an_address_does_not_ban_it(machine: Machine) -> None:
    first = machine.start_worker()
    for _ in range(LIMIT):
        first.failures.failed(THERE, HERE.text)
    assert not first.refuses("a new token")
