"""What an ingest is told to do, in numbers."""

from __future__ import annotations

import pytest

from relay.errors import ConfigError
from relay.ingest import reader_process
from relay.ingest.ingest import IngestOptions
from relay.ingest.reader import may_copy, quantizer_of
from relay.ingest.reader_process import check_installed
from relay.ingest.source import parse_source
from relay.ingest.wire import WantedPicture


def test_a_plain_install_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_process, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="extra `ingest`"):
        check_installed()


def test_a_better_quality_has_a_finer_quantizer() -> None:
    steps = [quantizer_of(each / 100) for each in range(101)]
    assert steps == sorted(steps, reverse=True)
    assert (steps[0], steps[100]) == (31, 2)


def test_layers_are_named_for_their_widths_and_the_largest_is_full() -> None:
    camera = parse_source("rtsp://cam/main")
    options = IngestOptions(camera, "cam", layers=(320, 640), max_width=1280)
    layers = [(each.id, each.width) for each in options.published_layers]
    assert layers == [("320", 320), ("640", 640), ("full", 1280)]
    assert IngestOptions(camera, "cam").published_layers == []


@pytest.mark.parametrize(
    ("wanted", "copied"),
    [
        (WantedPicture(640, 0.8, may_copy=True), True),
        (WantedPicture(1280, 0.8, may_copy=True), True),
        (WantedPicture(320, 0.8, may_copy=True), False),
        (WantedPicture(640, 0.5, may_copy=True), False),
        (WantedPicture(640, 0.8), False),
    ],
)
def test_a_picture_of_the_camera_is_sent_as_it_is_where_it_is_as_wanted(
    wanted: WantedPicture, copied: bool
) -> None:
    assert may_copy(wanted, 640) == copied
