"""What `metadata` may hold, and that no shape of it is costly."""

from __future__ import annotations

import json
import struct
import time
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol.codec import JSON_CODEC, MSGPACK_CODEC, Codec, InvalidMessage
from relay.protocol.encoding import MSGPACK
from relay.protocol.messages import Alert, Register, VideoFrame
from relay.protocol.metadata import MAX_VALUES, check_msgpack, decode_metadata

SIZE = 65_000
KINDS = pytest.mark.parametrize("kind", ["alert", "register", "video-frame"])
FIELDS: dict[str, dict[str, Any]] = {
    "alert": {"streamId": "s", "severity": "low", "message": "m"},
    "register": {"streamId": "s"},
    "video-frame": {"data": b""},
}


def array(count: int) -> bytes:
    return b"\xdc" + struct.pack("!H", count)


def colliding_keys(count: int) -> bytes:
    """MessagePack's arrays, which become tuples, whose hashes are the same."""
    mask, first, second, start = (
        (1 << 64) - 1,
        11400714785074694791,
        14029467366897019727,
        2870177450012600261,
    )
    keys: list[tuple[int, int]] = []
    number, inverse = 0, pow(second, -1, 1 << 64)
    while len(keys) < count:
        number += 1
        mixed = (start + number * second) & mask
        mixed = ((mixed << 31 | mixed >> 33) & mask) * first & mask
        other = (12345678901234567 - mixed) * inverse & mask
        if other < (1 << 61) - 1:
            keys.append((number, other))
    assert len({hash(key) for key in keys}) == 1
    entries = b"".join(msgspec.msgpack.encode(key) + b"\x00" for key in keys)
    return b"\x81\xa1a\xde" + struct.pack("!H", count) + entries


IN_MSGPACK = {
    "empty arrays": b"\x81\xa1a" + array(SIZE) + b"\x90" * SIZE,
    "empty maps": b"\x81\xa1a" + array(SIZE) + b"\x80" * SIZE,
    "zeros": b"\x81\xa1a" + array(SIZE) + b"\x00" * SIZE,
    "empty texts": b"\x81\xa1a" + array(SIZE) + b"\xa0" * SIZE,
    "arrays in arrays": b"\x81\xa1a" + array(2000) + (b"\x91" * 29 + b"\x90") * 2000,
    "depth": b"\x81\xa1a" + b"\x91" * SIZE + b"\x90",
    "colliding keys": colliding_keys(3000),
    "cut off": b"\x81\xa1a" + array(SIZE) + b"\x90" * 60_000,
}


def filled(unit: str) -> str:
    return '{"a":[' + ",".join([unit] * (SIZE // (len(unit) + 1))) + "]}"


IN_JSON = {
    **{unit: filled(unit) for unit in ("[]", "{}", "0", "null", '""', "1e9", '{"":0}')},
    "arrays in arrays": filled("[" * 25 + "]" * 25),
    "depth": '{"a":' + "[" * 32_000 + "]" * 32_000 + "}",
    "objects in objects": '{"a":' * 10_000 + "0" + "}" * 10_000,
    "the same key": "{" + ",".join(['"a":0'] * 9000) + "}",
    "keys": "{" + ",".join(f'"{key:x}":0' for key in range(6500)) + "}",
    "one number": '{"a":' + "9" * SIZE + "}",
    "large numbers": filled("9" * 4000),
}


def message(codec: Codec, kind: str, metadata: bytes) -> bytes:
    fields = {"type": kind, **FIELDS[kind]}
    if codec.binary:
        packed: bytes = msgpack.packb({**fields, "metadata": 0})
        return packed[:-1] + metadata
    if "data" in fields:
        fields["data"] = ""
    return json.dumps(fields).encode()[:-1] + b', "metadata": ' + metadata + b"}"


@KINDS
@pytest.mark.parametrize("shape", [*IN_JSON, *IN_MSGPACK])
def test_no_shape_is_costly(kind: str, shape: str) -> None:
    for codec, shapes in ((JSON_CODEC, IN_JSON), (MSGPACK_CODEC, IN_MSGPACK)):
        if shape not in shapes:
            continue
        content = shapes[shape]
        payload = message(codec, kind, content if isinstance(content, bytes) else content.encode())
        times = []
        for _ in range(5):
            begun = time.process_time()
            with pytest.raises(InvalidMessage):
                codec.decode(payload)
            times.append(time.process_time() - begun)
        assert min(times) < 0.01  # seconds; they took up to 0.3


@KINDS
@pytest.mark.parametrize("number", ["1e300", "1.7e308", "2.2250738585072011e-308", "4.9e-324"])
def test_no_number_is_costly(kind: str, number: str) -> None:
    content = ('{"a":[' + ",".join([number] * (MAX_VALUES - 1)) + "]}")[: SIZE + 500]
    if len(content) > SIZE:
        content = content[: content.rindex(",", 0, SIZE)] + "]}"
    payload = message(JSON_CODEC, kind, content.encode())
    times = []
    for _ in range(5):
        begun = time.process_time()
        decoded = JSON_CODEC.decode(payload)
        times.append(time.process_time() - begun)
    assert min(times) < 0.01  # seconds; they took up to 0.05
    if not isinstance(decoded, VideoFrame):
        assert isinstance(decoded, Alert | Register)
        assert isinstance(decoded.metadata, dict)
        assert set(decoded.metadata["a"]) == {float(number)}
        return
    begun = time.process_time()
    assert set(JSON_CODEC.read(decoded.metadata)["a"]) == {float(number)}
    assert time.process_time() - begun < 0.02


@KINDS
@pytest.mark.parametrize("codec", [JSON_CODEC, MSGPACK_CODEC], ids=["json", "msgpack"])
@pytest.mark.parametrize("over", [0, 1])
def test_metadata_has_at_most_so_many_values(codec: Codec, kind: str, over: int) -> None:
    values: dict[str, list[Any]] = {"numbers": [7.5] * (MAX_VALUES - 4 + over), "a": [[]]}
    assert sum(map(len, values.values())) + len(values) + 1 == MAX_VALUES + over
    content = msgpack.packb(values) if codec.binary else json.dumps(values).encode()
    payload = message(codec, kind, content)
    if over:
        with pytest.raises(InvalidMessage, match="More than 4096 values") as caught:
            codec.decode(payload)
        assert "$.metadata" in caught.value.message
    else:
        decoded = codec.decode(payload)
        assert not isinstance(decoded, Alert | Register) or decoded.metadata == values


@KINDS
def test_what_stands_in_texts_counts_as_one_value(kind: str) -> None:
    texts = {"a": "," * 20_000, "b": '{"c": [1, 2]}, ' * 1000, "d": '\\",[' * 3000}
    payload = message(JSON_CODEC, kind, json.dumps(texts).encode())
    decoded = JSON_CODEC.decode(payload)
    assert not isinstance(decoded, Alert | Register) or decoded.metadata == texts


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300)
)
TREES = st.dictionaries(
    st.text("ab\u00e9", max_size=40),
    st.recursive(
        SCALARS,
        lambda inside: (
            st.lists(inside, max_size=20) | st.dictionaries(st.text("xy", max_size=3), inside)
        ),
    ),
)


@given(TREES)
def test_the_end_of_any_value_is_found(tree: dict[str, Any]) -> None:
    content = msgpack.packb(tree)
    assert check_msgpack(content + b"rest", 0, 10_000) == len(content)
    assert decode_metadata(msgspec.Raw(content), MSGPACK) == msgpack.unpackb(content)
