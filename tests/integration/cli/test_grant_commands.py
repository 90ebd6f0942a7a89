"""The commands that say who may watch what, as they are typed."""

from __future__ import annotations

import pytest

from tests.integration.accounts import Accounts
from tests.integration.in_process import call_relay


@pytest.fixture
def accounts(postgres_url: str) -> Accounts:
    accounts = Accounts(postgres_url)
    accounts.sessions(["ann", "bob"])
    return accounts


def relay(accounts: Accounts, *arguments: str) -> tuple[int, str, str]:
    return call_relay(*arguments, database_url=accounts.url)


def complaint(accounts: Accounts, *arguments: str) -> str:
    code, out, err = relay(accounts, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err


def granted(accounts: Accounts) -> list[tuple[str, str]]:
    return accounts.execute("select user_id, stream_id from relay.grants order by 1, 2")


def test_a_grant_is_given_by_id_or_address_listed_and_taken_back(accounts: Accounts) -> None:
    assert relay(accounts, "grants") == (0, "there are no grants\n", "")
    assert relay(accounts, "grant", "bob", "porch") == (0, "bob may now watch porch\n", "")
    code, out, _ = relay(accounts, "grant", "Bob@Example.org", "porch")
    assert (code, out) == (0, "bob may already watch porch\n")
    relay(accounts, "grant", "bob@example.org", "*")
    relay(accounts, "grant", "ann", "yard")
    assert granted(accounts) == [("ann", "yard"), ("bob", "*"), ("bob", "porch")]

    for arguments, expected in (
        ((), [["ann", "yard"], ["bob", "*"], ["bob", "porch"]]),
        (("--user", "bob@example.org"), [["bob", "*"], ["bob", "porch"]]),
        (("--stream", "yard"), [["ann", "yard"]]),
        (("--user", "ann", "--stream", "porch"), [["there are no grants"]]),
    ):
        code, out, err = relay(accounts, "grants", *arguments)
        assert (code, err) == (0, "")
        assert [line.split("\t")[:2] for line in out.splitlines()] == expected

    assert relay(accounts, "revoke", "bob@example.org", "*") == (
        0,
        "bob may no longer watch *\n",
        "",
    )
    assert granted(accounts) == [("ann", "yard"), ("bob", "porch")]


def test_a_user_who_is_not_there_gets_no_grant(accounts: Accounts) -> None:
    for name in ("carl", "carl@example.org", "", "bob%", "b\udcffb"):
        assert "there is no user" in complaint(accounts, "grant", name, "porch")
    assert granted(accounts) == []


def test_an_address_of_several_users_is_no_answer_and_an_id_is(accounts: Accounts) -> None:
    accounts.execute("update \"user\" set email = 'BOB@example.org' where id = 'ann'")
    assert "there are 2 users" in complaint(accounts, "grant", "bob@example.org", "porch")
    relay(accounts, "grant", "bob", "porch")
    assert granted(accounts) == [("bob", "porch")]


def test_what_is_no_stream_id_is_refused(accounts: Accounts) -> None:
    for stream_id in ("a b", "", "x" * 129, "**", "a\n"):
        assert "A-Z a-z 0-9" in complaint(accounts, "grant", "bob", stream_id)
    assert granted(accounts) == []


def test_a_grant_may_be_for_a_prefix(accounts: Accounts) -> None:
    assert relay(accounts, "grant", "bob", "tenant-a:*") == (
        0,
        "bob may now watch tenant-a:*\n",
        "",
    )
    code, out, err = relay(accounts, "grant", "bob", "door*")
    assert (code, out) == (0, "bob may now watch door*\n")
    assert "warning: 'door*' also covers ids such as 'door2'" in err
    assert relay(accounts, "grants", "--stream", "tenant-a:*")[1].startswith("bob\ttenant-a:*\t")
    assert relay(accounts, "revoke", "bob", "door*")[0] == 0
    assert granted(accounts) == [("bob", "tenant-a:*")]


@pytest.mark.parametrize("wrong", ["*-door", "a*b", "a**", "a *", "", "tenant/*", "a*\n"])
def test_what_is_no_prefix_is_refused(accounts: Accounts, wrong: str) -> None:
    for arguments in (
        ("grant", "bob", wrong),
        ("revoke", "bob", wrong),
        ("token", "service", "detector", "--consume", "porch", "--consume", wrong),
    ):
        assert "a prefix that ends in '*'" in complaint(accounts, *arguments)
    assert granted(accounts) == []
    assert relay(accounts, "token", "list")[1] == "there are no service tokens\n"


def test_a_grant_that_is_not_there_cannot_be_taken_back(accounts: Accounts) -> None:
    assert "has no grant for porch" in complaint(accounts, "revoke", "bob", "porch")


def test_the_grants_of_a_user_who_is_gone_can_be_taken_back(accounts: Accounts) -> None:
    relay(accounts, "grant", "bob", "porch")
    accounts.execute("delete from \"user\" where id = 'bob'")
    assert relay(accounts, "grants", "--user", "bob")[0] == 0
    assert relay(accounts, "revoke", "bob", "porch")[0] == 0
    assert granted(accounts) == []


def test_service_tokens_are_listed_without_the_token_and_revoked(accounts: Accounts) -> None:
    assert relay(accounts, "token", "list") == (0, "there are no service tokens\n", "")
    _, token, _ = relay(
        accounts,
        "token",
        "service",
        "detector",
        "--consume",
        "yard",
        "--consume",
        "porch",
        "--alerts",
    )
    relay(accounts, "token", "service", "ops", "--operate")
    code, out, err = relay(accounts, "token", "list")
    assert (code, err) == (0, "")
    assert [line.split("\t")[:4] for line in out.splitlines()] == [
        ["detector", "consume=porch,yard", "alerts=yes", "operate=no"],
        ["ops", "consume=-", "alerts=no", "operate=yes"],
    ]
    assert token.strip() not in out
    code, out, _ = relay(accounts, "token", "revoke", "detector")
    assert (code, out) == (0, "revoked the token of detector\n")
    assert "there is no service named 'detector'" in complaint(
        accounts, "token", "revoke", "detector"
    )
    assert relay(accounts, "token", "list")[1].count("\n") == 1
