"""An error about a field with few values says which they are."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from relay.protocol.allowed_values import MAX_REPEATED_CHARACTERS, with_allowed_values
from relay.protocol.codec import JSON_CODEC, MSGPACK_CODEC, Codec, InvalidMessage

Fruit = Literal["pear", "apple"]


class Bowl(msgspec.Struct, rename="camel"):
    best_fruit: Fruit | None = None
    others: Annotated[list[Fruit | Literal["fig"]], Meta(max_length=5)] = []
    by_name: dict[str, Fruit] = {}
    inner: Bowl | None = None
    size: Literal[3, 5] = 3
    only: Literal["this"] = "this"


def problem_with(bowl: object) -> str:
    with pytest.raises(msgspec.ValidationError) as raised:
        msgspec.convert(bowl, Bowl)
    return with_allowed_values(str(raised.value), Bowl)


@pytest.mark.parametrize(
    ("bowl", "told"),
    [
        ({"bestFruit": "fig"}, "Expected one of `pear`, `apple`, got 'fig' - at `$.bestFruit`"),
        ({"others": ["fig", "nut"]}, "Expected one of `pear`, `apple`, `fig`, got 'nut'"),
        ({"byName": {"x": "nut"}}, "Expected one of `pear`, `apple`, got 'nut'"),
        ({"inner": {"inner": {"bestFruit": ""}}}, "Expected one of `pear`, `apple`, got ''"),
        ({"size": 4}, "Expected one of `3`, `5`, got 4 - at `$.size`"),
        ({"only": "that"}, "Expected `this`, got 'that' - at `$.only`"),
    ],
)
def test_the_values_are_listed_in_the_order_of_their_declaration(bowl: object, told: str) -> None:
    assert problem_with(bowl).startswith(told)


def test_other_problems_stay_as_they_are() -> None:
    assert problem_with({"bestFruit": 3}) == "Expected `str | null`, got `int` - at `$.bestFruit`"


@pytest.mark.parametrize("value", ["fig' - at `$.size`", "\n", "`" * 50])
def test_a_value_may_look_like_anything(value: str) -> None:
    told = problem_with({"bestFruit": value})
    assert told.startswith("Expected one of `pear`, `apple`, got ")
    assert told.endswith(" - at `$.bestFruit`")


def test_a_long_value_is_not_repeated_in_full() -> None:
    assert len(problem_with({"bestFruit": "x" * 10_000})) < 100 + MAX_REPEATED_CHARACTERS


@pytest.mark.parametrize("codec", [JSON_CODEC, MSGPACK_CODEC])
def test_a_message_with_another_value_is_answered_with_those_of_its_field(codec: Codec) -> None:
    alert = {"type": "alert", "id": 7, "streamId": "porch", "severity": "loud", "message": "m"}
    encode = msgspec.msgpack.encode if codec.binary else msgspec.json.encode
    with pytest.raises(InvalidMessage) as raised:
        codec.decode(encode(alert))
    assert raised.value.message == (
        "Invalid message: Expected one of `low`, `medium`, `high`, `critical`, got 'loud'"
        " - at `$.severity`"
    )
    assert (raised.value.request_id, raised.value.stream_id) == (7, "porch")
