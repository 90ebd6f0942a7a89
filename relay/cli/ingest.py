"""`relay ingest`: play a camera, a device or a file into a relay."""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay.cli.grouped_help import GroupedCommand
from relay.cli.operation.top import read_token
from relay.errors import ConfigError
from relay.protocol.messages import STREAM_ID_PATTERN, STREAM_ID_RULE
from relay.settings.loading import SOURCE_VARIABLE

if TYPE_CHECKING:
    from relay.client import TokenRequest, TokenSource
    from relay.ingest.source import IngestSource, SourceKind

PRODUCER_SCOPE = "--produce STREAM --for USER"
MAX_SMALLER_LAYERS, NARROWEST, WIDEST = 3, 16, 7680
JPEG_OPTIONS = ("quality", "max_width", "fps", "layers")


def _stream_id(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    if not re.match(STREAM_ID_PATTERN, text):
        raise click.BadParameter(f"expected {STREAM_ID_RULE}, not {text!r}")
    return text


def _widths(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    """Parse `--layers 320,640`."""
    if text is None:
        return None
    parts = text.split(",")
    widths = sorted({int(each) for each in parts if re.fullmatch("[0-9]{1,5}", each.strip())})
    in_range = all(NARROWEST <= each <= WIDEST for each in widths)
    if not (len(widths) == len(parts) <= MAX_SMALLER_LAYERS and in_range):
        raise click.BadParameter(
            f"expected up to {MAX_SMALLER_LAYERS} widths from {NARROWEST} to {WIDEST}, such as"
            f" 320,640; not {text!r}"
        )
    return tuple(widths)


@click.command(cls=GroupedCommand)
@click.argument("source", required=False)
@click.option(
    "--stream", "stream_id", required=True, metavar="ID", callback=_stream_id,
    help="The stream to publish.",
)  # fmt: skip
@click.option(
    "--url", default="ws://localhost:3000", show_default=True, metavar="URL", help="The relay."
)
@click.option(
    "--token-file", type=click.Path(path_type=Path), metavar="FILE",
    help="Read the token from this file instead of RELAY_TOKEN.",
)  # fmt: skip
@click.option(
    "--source-file", type=click.Path(path_type=Path), metavar="FILE",
    help="Read SOURCE from this file instead of the command line.",
)  # fmt: skip
@click.option("--file", "kind", flag_value="file", help="SOURCE is a video file.")
@click.option("--device", "kind", flag_value="device", help="SOURCE is a V4L2 device.")
@click.option(
    "--codec", type=click.Choice(["jpeg", "h264", "copy"]), default="jpeg", show_default=True,
    help="Send JPEG pictures, as large as the link carries; or the source's H.264 as it is; or its"
    " H.264 or JPEG as it is.",
)  # fmt: skip
@click.option(
    "--quality", type=click.IntRange(1, 100), metavar="N",
    help="Best quality of JPEG pictures; without it, the camera's own where the link carries it.",
)  # fmt: skip
@click.option(
    "--max-width", type=click.IntRange(NARROWEST, WIDEST), metavar="PIXELS",
    help="Largest width of JPEG pictures.",
)  # fmt: skip
@click.option(
    "--fps", type=click.FloatRange(0.1, 60), metavar="N",
    help="JPEG pictures a second, at most.  [default: 15]",
)  # fmt: skip
@click.option(
    "--layers", metavar="WIDTHS", callback=_widths,
    help="Smaller JPEG pictures for viewers on slow links, such as 320,640.",
)  # fmt: skip
@click.option("--loop", is_flag=True, help="Begin a file again when it has ended.")
@click.option(
    "--insecure-tls", is_flag=True,
    help="Do not check the certificate of a camera at rtsps:// or https://.",
)  # fmt: skip
def ingest(**options: Any) -> None:
    """Play a camera, a device or a file into a relay.

    SOURCE is a URL (rtsp://, rtsps://, or http:// and https:// for MJPEG), file:PATH or
    device:PATH. It is read only while somebody watches. Ctrl-C ends it.

    Other users of this machine can see arguments: give a URL with a password in RELAY_SOURCE or
    --source-file, and the token in RELAY_TOKEN or --token-file.

    \b
    Example:
      export RELAY_TOKEN=$(relay token service cam-1 --produce cam-1 --for ana@example.org)
      relay ingest http://camera.local/video.mjpg --stream cam-1
      RELAY_SOURCE=rtsp://user:secret@camera.local/main relay ingest --stream cam-1 --codec h264
      relay ingest file:film.mp4 --loop --stream cam-1 --layers 320,640
    """
    import trio

    from relay.ingest.ingest import Ingest, IngestOptions
    from relay.ingest.reader_process import check_installed

    source = _source(
        options["source"], options["source_file"], options["kind"], options["insecure_tls"]
    )
    codec, fps = options["codec"], options["fps"]
    if codec != "jpeg":
        given = [name for name in JPEG_OPTIONS if options[name] is not None]
        if given:
            raise ConfigError(f"--{given[0].replace('_', '-')} is for --codec jpeg only")
    if options["loop"] and source.kind != "file":
        raise ConfigError("--loop is for files only")
    check_installed()
    chosen = IngestOptions(
        source,
        options["stream_id"],
        codec,
        quality=None if options["quality"] is None else options["quality"] / 100,
        max_width=options["max_width"],
        fps=15.0 if fps is None else fps,
        layers=_smaller(options["layers"], options["max_width"]),
        loop=options["loop"],
    )
    token = _token(options["token_file"])
    trio.run(partial(Ingest(chosen, _say).run, options["url"], token))


def _smaller(widths: tuple[int, ...] | None, most: int | None) -> tuple[int, ...]:
    if widths and most is not None and widths[-1] >= most:
        raise ConfigError("--layers: each width should be smaller than --max-width")
    return widths or ()


def _source(
    text: str | None, file: Path | None, kind: SourceKind | None, insecure_tls: bool
) -> IngestSource:
    from relay.ingest.source import MAX_SOURCE_LENGTH, parse_source

    is_argument = text is not None
    if file is not None:
        if is_argument:
            raise ConfigError("give SOURCE or --source-file, not both")
        try:
            with file.open(encoding="utf-8") as opened:
                text = opened.read(MAX_SOURCE_LENGTH + 2).strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
            raise ConfigError(f"cannot read --source-file {file}: {reason}") from None
    elif text is None:
        text = os.environ.get(SOURCE_VARIABLE, "").strip()
    if not text:
        raise ConfigError(f"give a source: SOURCE, {SOURCE_VARIABLE} or --source-file")
    source = parse_source(text, kind=kind, insecure_tls=insecure_tls)
    if is_argument and source.has_credentials:
        _say(
            "warning: other users of this machine can see what the URL of the source contains:"
            f" give it in {SOURCE_VARIABLE} or --source-file"
        )
    return source


def _token(file: Path | None) -> TokenSource:
    """The token; that of a file is read again before each connection."""
    token = read_token(file, PRODUCER_SCOPE)
    if file is None:
        return token

    async def read(_request: TokenRequest) -> str:
        return read_token(file, PRODUCER_SCOPE)

    return read


def _say(line: str) -> None:
    print(f"relay: {line}", file=sys.stderr, flush=True)  # noqa: T201 (its only output)
