"""Puts together what keeps the pictures of alerts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self

from attrs import frozen

from relay.clips.folder import FolderStorage
from relay.clips.recorder import ClipLimits, ClipRecorder, PictureRecords
from relay.clips.retention import PictureRetention, RemovablePictures
from relay.clips.storage import PictureStorage
from relay.clips.usage import PictureUsage
from relay.concurrency.activity import Activity
from relay.concurrency.supervisor import SupervisedTask
from relay.hub.hub import Hub
from relay.metrics import Metrics
from relay.settings.pictures import wanted_by
from relay.settings.settings import Settings


class PictureTable(PictureRecords, RemovablePictures, Protocol):
    """The table of what is kept with alerts."""


@frozen
class ClipParts:
    """What keeps the pictures of alerts, and its tasks."""

    recorder: ClipRecorder
    storage: PictureStorage
    tasks: Mapping[str, SupervisedTask]
    """To be supervised, by name."""

    @classmethod
    def build(
        cls,
        settings: Settings,
        hub: Hub,
        table: PictureTable,
        metrics: Metrics,
        activity: Activity,
        *,
        is_alone: bool,
    ) -> Self:
        """What the settings ask for; `is_alone`: there are no other nodes. Streams have rings from
        now on."""
        storage = FolderStorage(settings.picture_folder)
        usage = PictureUsage(settings.picture_bytes_per_user, settings.picture_bytes)
        retention = PictureRetention(
            table, storage, usage, metrics, settings.picture_days, activity
        )
        recorder = ClipRecorder(
            *(hub, table, storage, usage, metrics, wanted_by(settings)),
            limits=ClipLimits(
                settings.clip_before, settings.clip_after, settings.clip_fps, settings.clip_buffer
            ),
            is_alone=is_alone,
            on_full=retention.wake,
        )
        hub.make_ring, hub.on_alert = recorder.make_ring, recorder.note
        return cls(recorder, storage, {"clips": recorder, "picture-retention": retention})
