"""Database URLs as other drivers write them."""

from __future__ import annotations

from typing import Any

import pytest

from relay.errors import ConfigError
from relay.postgres.address import DatabaseAddress

URL = "postgresql://ann:5ecret@db.example.org:5433/app"


def parse(url: str) -> dict[str, Any]:
    return DatabaseAddress.parse(url, connect_timeout=3).arguments


@pytest.mark.parametrize(
    "query",
    [
        "schema=public",
        "pgbouncer=true",
        "pgbouncer=true&connection_limit=1&pool_timeout=0",
        "currentSchema=auth&prepareThreshold=0",
        "pool_max_conns=10",
        "statement_cache_size=0&prepared_statements=false",
        "uselibpqcompat=true",
        "search_path=auth",
        "",
        "&",
    ],
)
def test_parameters_of_other_drivers_are_passed_over(query: str) -> None:
    found = parse(f"{URL}?{query}")
    assert found == parse(URL)
    assert (found["user"], found["password"], found["port"]) == ("ann", "5ecret", "5433")


def test_parameters_of_postgresql_are_kept_beside_those_of_others() -> None:
    found = parse(f"{URL}?schema=public&sslmode=verify-full&application_name=a%20b&pgbouncer=true")
    assert (found["sslmode"], found["application_name"]) == ("verify-full", "a b")
    assert "schema" not in found


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("sslmode=no-verify", "require"),
        ("ssl=true", "require"),
        ("ssl=1", "require"),
        ("ssl=no-verify", "require"),
        ("ssl=verify-full&schema=public", "verify-full"),
        ("ssl=false", "disable"),
        ("sslmode=require", "require"),
    ],
)
def test_tls_is_as_other_drivers_ask_for_it(given: str, meant: str) -> None:
    assert parse(f"{URL}?{given}")["sslmode"] == meant


@pytest.mark.parametrize("query", ["colour=red", "schema=public&colour=red", "colour"])
def test_an_unknown_parameter_is_named_and_not_the_password_blamed(query: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"{URL}?{query}")
    said = str(caught.value)
    assert "colour" in said
    assert "password" not in said
    assert "red" not in said
    assert "5ecret" not in said


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:5ecret/x?ret=1",
        "postgresql://ann:5e?cret=7",
        "postgresql://ann:p@ss?5ecret=x@db/app",
        "host=db password=a 5ecret=b",
    ],
)
def test_what_may_be_a_part_of_a_password_is_never_shown(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(url)
    for part in ("5ec", "ret", "5e?", "p@ss"):
        assert part not in str(caught.value).replace("correct", "").replace("secret", "")


def test_a_known_option_of_another_driver_is_named_without_a_url() -> None:
    with pytest.raises(ConfigError, match="schema"):
        parse("host=db schema=public")


def test_the_encoding_is_always_utf8() -> None:
    assert parse(f"{URL}?client_encoding=latin1")["client_encoding"] == "utf8"
