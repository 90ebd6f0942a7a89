"""What is kept with an alert: the picture of that moment, and those around it."""

from __future__ import annotations

from typing import Literal, Protocol

from attrs import frozen

PictureKind = Literal["still", "clip"]
PictureState = Literal["pending", "kept", "failed"]
"""As alerts say it."""
MAX_PENDING_SECONDS = 180
"""After which a picture that is still to be kept counts as failed: whoever was at it is gone."""
MICROSECONDS_A_DAY = 86_400 * 1_000_000
ENDINGS: dict[PictureKind, str] = {"still": "jpg", "clip": "mjpeg"}


@frozen
class WantedPictures:
    """What is to be kept with an alert."""

    still: bool = False
    clip: bool = False

    def __bool__(self) -> bool:
        return self.still or self.clip


class WhatIsWanted(Protocol):
    """Says what is to be kept with an alert of a stream, whose sender has asked for the picture or
    not."""

    def __call__(self, stream_id: str, *, asked: bool) -> WantedPictures: ...


def keep_nothing(stream_id: str, *, asked: bool) -> WantedPictures:  # noqa: ARG001
    """A `WhatIsWanted` by which no pictures are kept."""
    return WantedPictures()


@frozen
class PictureName:
    """The name of a file, or an object: of an alert, and never of its stream."""

    alert_id: int
    kind: PictureKind

    @property
    def folder(self) -> str:
        """One a day, as a number: ids of alerts are microseconds since the Unix epoch."""
        return str(self.alert_id // MICROSECONDS_A_DAY)

    @property
    def file(self) -> str:
        return f"{self.alert_id}.{ENDINGS[self.kind]}"


@frozen
class AlertPicture:
    """A picture, or a clip, of an alert that somebody may see."""

    name: PictureName
    state: PictureState
    owner_id: str
    """Of the stream."""
    place: str | None
    """Where it was written: see `PictureStorage.place`; None while it is not kept."""
    bytes: int


@frozen
class RemovablePicture:
    """What is kept with an alert and is to be removed, or was."""

    alert_id: int
    place: str | None
    still: bool
    """Whether there is one."""
    clip: bool

    @property
    def names(self) -> list[PictureName]:
        """Of what there is to remove."""
        still, clip = PictureName(self.alert_id, "still"), PictureName(self.alert_id, "clip")
        return [*([still] if self.still else ()), *([clip] if self.clip else ())]
