"""The check of where stills and clips of alerts are kept."""

from __future__ import annotations

import os
import shutil

from attrs import frozen

from relay.clips.folder import MIN_FREE_BYTES
from relay.clips.setup import open_storage
from relay.clips.storage import NotStored
from relay.doctor.checks import DoctorCheck, Finding, fail, ok, warn
from relay.doctor.machine import in_thread, nearest_folder, size_in_words
from relay.settings.settings import Settings

SETTINGS_OF_PICTURES = ("alert_stills", "clip_streams", "picture_dir", "data_dir")


@frozen
class PictureChecks:
    """The check of the folder, or of the bucket."""

    _settings: Settings

    def checks(self) -> list[DoctorCheck]:
        settings = self._settings
        if settings.alert_stills == "off" and not settings.clip_streams:
            return []
        if settings.picture_s3 is not None:
            names = ("picture_s3", "picture_s3_region", "picture_s3_credentials")
            do = "check the URL of the bucket, the credentials, and what they allow"
            return [DoctorCheck("pictures", self._bucket, (*names, "webhook_networks"), do)]
        do = "set picture_dir to a folder that relay may write to"
        return [DoctorCheck("pictures", in_thread(self._folder), SETTINGS_OF_PICTURES, do)]

    def _folder(self) -> Finding:
        folder = self._settings.picture_folder
        there = nearest_folder(folder)
        if folder.is_symlink():
            told = f"{folder} is a symbolic link, which relay does not follow"
            return fail(told, "set picture_dir to the folder itself")
        if not os.access(there, os.W_OK | os.X_OK):
            told = f"this user may not write to {there}, so no pictures of alerts are kept"
            do = "set picture_dir to a folder that relay may write to, or alert_stills to off"
            is_sure = self._settings.clip_streams or self._settings.alert_stills == "all"
            return fail(told, do) if is_sure else warn(told, do)
        free = shutil.disk_usage(there).free
        told = f"{size_in_words(free)} free for {folder}"
        if free < MIN_FREE_BYTES:
            do = f"free disk space: none is kept while less than {size_in_words(MIN_FREE_BYTES)} is"
            return warn(told, do)
        return ok(told)

    async def _bucket(self) -> Finding:
        """Whether relay can write to the bucket, and remove what it wrote."""
        async with open_storage(self._settings) as storage:
            try:
                await storage.check()
            except NotStored as problem:
                return fail(str(problem), "check the bucket, its credentials and picture_s3_region")
        return ok("the bucket takes objects, and removes them again")
