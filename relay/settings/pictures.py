"""Types and checks of the settings about what is kept with alerts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from relay.errors import ConfigError
from relay.model.access.identity import ANY_STREAM, prefixes_of
from relay.model.alerts.alert_picture import WantedPictures, WhatIsWanted
from relay.protocol.messages import STREAM_ID_PATTERN, STREAM_PREFIX_PATTERN

if TYPE_CHECKING:
    from relay.settings.settings import Settings

_BUCKET_URL = r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._-]+){1,8}/?"
_STREAMS = "a list of streams such as front-door, yard-* (all that begin so) or * (all)"

StreamNames = Annotated[tuple[str, ...], Meta(title="STREAM,…", description=_STREAMS)]
KeepStills = Literal["off", "asked", "all"]
ClipSeconds = Annotated[
    float,
    Meta(ge=0, le=60, title="SECONDS", description="a number of seconds from 0 to 60"),
]
ClipRate = Annotated[
    float,
    Meta(
        gt=0,
        le=60,
        title="FPS",
        description="a number of pictures a second above 0 and up to 60",
    ),
]


def check_streams(_settings: object, attribute: object, streams: tuple[str, ...]) -> None:
    """`ConfigError` for what is neither the id of a stream, nor a prefix, nor all."""
    for each in streams:
        if each != ANY_STREAM and not (
            re.match(STREAM_ID_PATTERN, each) or re.match(STREAM_PREFIX_PATTERN, each)
        ):
            name = getattr(attribute, "name", "")
            raise ConfigError(f"{name}: expected {_STREAMS}, not {each!r}")


def check_bucket_url(_settings: object, attribute: object, url: str | None) -> None:
    """Accept the URL of a bucket, with what names of objects begin with behind it. It may be http://,
    for a network of one's own."""
    if url is not None and not re.fullmatch(_BUCKET_URL, url):
        name = getattr(attribute, "name", "")
        raise ConfigError(
            f"{name}: expected a URL such as https://s3.eu-central-1.amazonaws.com/bucket, without"
            " a password"
        )


def covers(streams: tuple[str, ...], stream_id: str) -> bool:
    """Whether a list of streams has this one."""
    if ANY_STREAM in streams or stream_id in streams:
        return True
    return stream_id.startswith(prefixes_of(streams))


def wanted_by(settings: Settings) -> WhatIsWanted:
    """What is to be kept with an alert, by the settings."""
    stills, streams = settings.alert_stills, settings.clip_streams

    def wanted(stream_id: str, *, asked: bool) -> WantedPictures:
        still = stills == "all" or (stills == "asked" and asked)
        return WantedPictures(still=still, clip=covers(streams, stream_id))

    return wanted
