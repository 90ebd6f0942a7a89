"""Opens the room: the renderer, by the settings and by what is installed."""

from __future__ import annotations

import structlog

from relay.metrics import Metrics
from relay.renditions.renderer import Renderer
from relay.renditions.worker import worker_command
from relay.renditions.worker_process import find_library_folders
from relay.settings.settings import Settings

log = structlog.get_logger()


def make_renderer(settings: Settings, metrics: Metrics) -> Renderer:
    """The renderer, to be supervised; one that is not available where renditions are off."""
    folders = find_library_folders() if settings.renditions == "auto" else []
    if settings.renditions == "auto" and not folders:
        log.info("renditions are off: simplejpeg is not installed (relay[renditions])")
    command = worker_command(folders) if folders else None
    return Renderer(metrics, command, settings.rendition_cores)
