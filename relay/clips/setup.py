"""Puts together what keeps the pictures of alerts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Protocol, Self

import trio
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


@frozen(eq=False, repr=False)
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
        storage: PictureStorage,
        is_alone: bool,
    ) -> Self:
        """What the settings ask for; `is_alone`: there are no other nodes. Streams have rings from
        now on."""
        usage = PictureUsage(settings.picture_bytes_per_user, settings.picture_bytes)
        retention = PictureRetention(
            table, storage, usage, metrics, settings.picture_days, activity
        )
        recorder = ClipRecorder(
            *(hub, table, storage, usage, metrics, wanted_by(settings)),
            limits=ClipLimits(
                *(settings.clip_before, settings.clip_after, settings.clip_fps),
                settings.clip_buffer,
                standby=settings.clip_standby,
            ),
            is_alone=is_alone,
            on_full=retention.wake,
        )
        hub.make_ring, hub.on_alert = recorder.make_ring, recorder.note
        return cls(recorder, storage, {"clips": recorder, "picture-retention": retention})


@asynccontextmanager
async def open_storage(settings: Settings) -> AsyncIterator[PictureStorage]:
    """Where the settings want stills and clips kept; `ConfigError`."""
    if settings.picture_s3 is None:
        yield FolderStorage(settings.picture_folder)
        return
    from relay.clips.s3 import S3Credentials, S3Storage, make_signer  # noqa: PLC0415 (an extra)
    from relay.outgoing.object_client import open_object_client  # noqa: PLC0415

    credentials = S3Credentials.read(settings.picture_s3_credentials)
    sign = await trio.to_thread.run_sync(make_signer, credentials, settings.picture_s3_region)
    encrypted = settings.picture_s3.startswith("https://")
    async with open_object_client(settings.webhook_networks, encrypted=encrypted) as client:
        yield S3Storage(settings.picture_s3.rstrip("/"), client, sign)
