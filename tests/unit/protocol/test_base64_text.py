"""Base64 as phones write it."""

from __future__ import annotations

import base64
import json
import random
import string
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol.codec import JSON_CODEC, InvalidMessage
from relay.protocol.messages import MalformedFrame, VideoFrame

SIZES = [0, 1, 2, 3, 100, 380, 390, 2000, 100_000]
ENDLESS = 16 * 1024 * 1024


def decoded(data: str, **fields: object) -> VideoFrame:
    text = json.dumps({"type": "video-frame", "data": data, **fields})
    frame = JSON_CODEC.decode(text.encode())
    assert isinstance(frame, VideoFrame)
    return frame


def passed_on(data: str, **fields: object) -> str:
    """What viewers get; the data must be base64 for all of them."""
    frame = decoded(data, **fields)
    assert not isinstance(frame, MalformedFrame)
    text: str = json.loads(bytes(frame.data))
    assert base64.b64decode(text, validate=True) == JSON_CODEC.unpack(frame.data)
    return text


def is_refused(data: str) -> bool:
    return isinstance(decoded(data), MalformedFrame)


def spellings(clean: str) -> dict[str, str]:
    """How the same bytes are written in the field."""
    lines = {
        width: [clean[i : i + width] for i in range(0, len(clean), width)] for width in (64, 76)
    }
    url = clean.translate(str.maketrans("+/", "-_"))
    return {
        "Android, Base64.DEFAULT": "".join(line + "\n" for line in lines[76]),
        "MIME": "\r\n".join(lines[76]),
        "PEM": "\n".join(lines[64]),
        "indented": "\n    ".join(lines[76]),
        "a data URL": "data:image/jpeg;base64," + clean,
        "a data URL with parameters": 'DATA:image/jpeg;name="a b";Base64,' + clean,
        "a data URL without a type": "data:;base64," + clean,
        "an escaped data URL": "data:image/png;base64,"
        + clean.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D"),
        "base64url": url,
        "base64url without padding": url.rstrip("="),
        "base64url in lines": "\n".join(url[i : i + 76] for i in range(0, len(url), 76)),
        "without padding": clean.rstrip("="),
        "with blanks around it": f" \t{clean}\n ",
        "all at once": "data:image/jpeg;base64,\r\n" + "\r\n".join(lines[76]).rstrip("="),
    }


@pytest.mark.parametrize("size", SIZES)
def test_every_spelling_is_passed_on_clean(size: int) -> None:
    picture = random.Random(size).randbytes(size)
    clean = base64.b64encode(picture).decode()
    assert passed_on(clean) == clean
    for name, spelled in spellings(clean).items():
        assert passed_on(spelled) == clean, name


@given(st.binary(max_size=1500), st.data())
def test_any_bytes_arrive_however_they_are_spelled(picture: bytes, data: st.DataObject) -> None:
    clean = base64.b64encode(picture).decode()
    spelled = data.draw(st.sampled_from(list(spellings(clean).values())))
    assert passed_on(spelled) == clean


@pytest.mark.parametrize("size", [400_001, 1_000_000])
@pytest.mark.parametrize(
    ("plain", "escaped"), [("A", "A"), ("/", "\\/"), ("+", "\\u002B"), ("=", "\\u003d")]
)
def test_every_spelling_of_a_large_picture_is_passed_on_clean(
    size: int, plain: str, escaped: str
) -> None:
    clean = base64.b64encode(random.Random(size).randbytes(size)).decode()
    for name, spelled in spellings(clean).items():
        text = json.dumps(spelled).replace(plain, escaped)
        message = f'{{"type": "video-frame", "data" : {text}, "timestamp": 5}}'
        frame = JSON_CODEC.decode(message.encode())
        assert isinstance(frame, VideoFrame)
        assert frame.timestamp == 5
        assert json.loads(bytes(frame.data)) == clean, name


def test_letters_are_found_wherever_they_stand_in_a_large_picture() -> None:
    for at in range(0, 60_000, 6000):
        picture = bytes(at) + b"\xfb\xef\xff" + bytes(60_000 - at)
        clean = base64.b64encode(picture).decode()
        assert "++//" in clean
        assert passed_on(base64.urlsafe_b64encode(picture).decode()) == clean
        assert passed_on(clean[:at] + "\n" + clean[at:]) == clean


@pytest.mark.parametrize("escape", ["/", "=", "+", "9"])
def test_escapes_of_json_are_undone(escape: str) -> None:
    clean = base64.b64encode(b"\xff\xfb\xef\xf7" * 2000 + b"a").decode()
    for escaped in (f"\\u{ord(escape):04x}", f"\\u{ord(escape):04X}", "\\/"):
        plain = "/" if escaped == "\\/" else escape
        text = json.dumps({"type": "video-frame", "data": clean}).replace(plain, escaped)
        frame = JSON_CODEC.decode(text.replace(f"video{escaped}frame", "video-frame").encode())
        assert isinstance(frame, VideoFrame)
        assert not isinstance(frame, MalformedFrame)
        assert json.loads(bytes(frame.data)) == clean


def test_what_also_stands_elsewhere_in_the_message_is_not_mistaken_for_the_data() -> None:
    url = base64.urlsafe_b64encode(b"\xff" * 3000).decode()
    clean = base64.b64encode(b"\xff" * 3000).decode()
    text = json.dumps({"metadata": {"data": clean}, "type": "video-frame", "data": url})
    frame = JSON_CODEC.decode(text.encode())
    assert isinstance(frame, VideoFrame)
    assert json.loads(bytes(frame.data)) == clean
    assert passed_on(clean, metadata={"data": url}, streamId="a-b_c") == clean


@pytest.mark.parametrize(
    "data",
    [
        "not base64!",
        "A",
        "AAAAA",
        "AA=A",
        "AA==AAAA",
        "AAAA===",
        "====",
        "=",
        "AA AA",
        "data:image/svg+xml,<svg/>",
        "data:image/png;base64",
        "data:image/png," + "A" * 8,
        "data:" + "x" * 1000 + ";base64,AAAA",
        "blob:https://app.example/17",
        "file:///tmp/a.jpg",
        "\x00AAA",
        "ÿØÿà",
        "AAA😀",
        "/9j/%2BAA",
        "!" + "A" * 10_003,
        "A" * 10_000 + "=AAA",
        "A" * 10_001 + "=" + "A" * 10_002,
        "A" * 10_001 + " " + "A" * 10_002,
        "A" * 10_000 + "%2BA" + "A" * 10_000,
    ],
)
def test_what_cannot_be_understood_is_passed_on_as_it_came_and_known_for_that(data: str) -> None:
    frame = decoded(data)
    assert isinstance(frame, MalformedFrame)
    assert json.loads(bytes(frame.data)) == data


@given(st.text(string.printable, max_size=40))
def test_what_is_passed_on_is_always_base64_or_known_not_to_be(data: str) -> None:
    if not is_refused(data):
        passed_on(data)


@pytest.mark.parametrize(
    "unit", ["\n", " ", "\n ", " \n", "%2B", "\t", "-", "=", "A\n", "/", "😀", "data:", ";base64,"]
)
def test_no_picture_takes_long_to_clean(unit: str) -> None:
    data = unit * (ENDLESS // len(json.dumps(unit)) - 10)
    text = json.dumps({"type": "video-frame", "data": data}).encode()
    begun = time.process_time()
    with suppress(InvalidMessage):
        JSON_CODEC.decode(text)
    assert time.process_time() - begun < 1  # seconds
