"""What may be read, and what is said about it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from relay.errors import ConfigError
from relay.ingest.source import parse_source

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("text", "shown", "protocols", "demuxer"),
    [
        ("rtsp://cam/main", "rtsp://cam/main", "rtsp,rtp,udp,tcp,tls", "rtsp"),
        ("RTSP://cam:8554/main", "rtsp://cam:8554/main", "rtsp,rtp,udp,tcp,tls", "rtsp"),
        ("rtsps://[fd00::1]/x", "rtsps://[fd00::1]/x", "rtsp,rtp,udp,tcp,tls", "rtsp"),
        ("http://cam/video.mjpg", "http://cam/video.mjpg", "http,https,tcp,tls", "mpjpeg"),
        ("device:/dev/video0", "device /dev/video0", "none", "video4linux2"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="V4L2")
def test_each_kind_of_source_has_its_protocols_and_its_demuxer(
    text: str, shown: str, protocols: str, demuxer: str
) -> None:
    source = parse_source(text)
    assert (source.shown, source.demuxer) == (shown, demuxer)
    assert source.options["protocol_whitelist"] == protocols
    assert not source.has_credentials


@pytest.mark.parametrize(
    ("name", "demuxer"), [("film.mp4", "mov"), ("a.MKV", "matroska"), ("b.mjpg", "mjpeg")]
)
def test_a_file_is_read_by_the_ending_of_its_name(tmp_path: Path, name: str, demuxer: str) -> None:
    path = tmp_path / name
    path.touch()
    for source in (parse_source(f"file:{path}"), parse_source(str(path), kind="file")):
        assert (source.demuxer, source.shown) == (demuxer, name)
        assert source.address == f"file:{path}"
        assert source.options["protocol_whitelist"] == "file"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "film.mp4",
        "/dev/video0",
        "ftp://cam/x",
        "concat:a.mp4|b.mp4",
        "rtmp://cam/x",
        "tcp://cam:99",
        "http://",
        "http://cam:99999/",
        "http://cam/\nx",
        "file:/nowhere/film.mp4",
        "file:/etc/passwd",
        "rtsp://" + 5000 * "x",
    ],
)
def test_nothing_else_is_read(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_source(text)


def test_a_name_that_looks_like_a_url_is_a_file_where_a_file_is_meant() -> None:
    with pytest.raises(ConfigError, match="no file"):
        parse_source("http://cam/film.mp4", kind="file")


@pytest.mark.parametrize(
    "text",
    [
        f"rtsp://user:{SECRET}@cam/main",
        f"rtsp://{SECRET}@cam/main",
        f"http://cam/video?user=a&pwd={SECRET}",
        f"http://cam/video#{SECRET}",
        f"rtsp://cam/user=admin&password={SECRET}&channel=1",
        f"https://user:{SECRET}%40@cam:8443/x",
    ],
)
def test_what_is_shown_of_a_source_has_no_credentials(text: str) -> None:
    source = parse_source(text)
    assert source.has_credentials
    assert SECRET not in source.shown
    assert SECRET not in repr(source)
    assert "cam" in source.shown
    assert source.address == text


@pytest.mark.parametrize("text", [f"ftp://u:{SECRET}@cam", f"rtsp://u:{SECRET}@cam:x/"])
def test_no_error_shows_credentials(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_source(text)
    assert SECRET not in str(error.value)


def test_devices_are_read_on_linux_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="Linux only"):
        parse_source("device:/dev/video0")


def test_an_error_of_tls_says_what_to_look_at() -> None:
    reason = "Input/output error"
    assert "--insecure-tls" in parse_source("https://cam/").explain(reason)
    assert parse_source("https://cam/", insecure_tls=True).explain(reason) == reason
    assert parse_source("http://cam/").explain(reason) == reason


def test_a_source_that_was_given_up_sends_nothing() -> None:
    assert parse_source("http://cam/").explain("Immediate exit requested") == "it sends nothing"


def test_certificates_are_checked_unless_told_otherwise() -> None:
    assert parse_source("rtsps://cam/x").options["tls_verify"] == "1"
    assert "tls_verify" not in parse_source("rtsps://cam/x", insecure_tls=True).options
    assert "tls_verify" not in parse_source("rtsp://cam/x").options
