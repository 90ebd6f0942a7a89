"""Pages that encode and decode video: moving pictures, also for those who come late."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.integration.accounts import Accounts
from tests.integration.browser import Visitor, visit
from tests.integration.peers import new_stream_id
from tests.integration.relay_process import RelayProcess

CODECS = {"H.264": "abe", "VP9": "bea", "VP8": "cleo"}
"""And a user for each, who sees no other streams."""


JOIN = """() => {
  const player = document.querySelector('relay-player');
  const other = Object.assign(player.cloneNode(), { client: player.client });
  other.setAttribute('state', 'new');
  player.after(other);
}"""
"""Another player of the stream, which shares the subscription."""


def choose(phone: Visitor, encoding: str) -> None:
    phone.go("Broadcast")
    choice = phone.page.get_by_label("Encoding")
    if encoding != "JPEG pictures":
        expect(choice).to_be_visible()
        expect(choice.locator("option")).not_to_have_count(1)
        if encoding not in choice.locator("option").all_inner_texts():
            pytest.skip(f"this Chromium does not encode {encoding}")
    choice.select_option(encoding)


@contextmanager
def on_air(
    browser: Browser, relay: RelayProcess, token: str, stream_id: str, encoding: str
) -> Iterator[Visitor]:
    with visit(browser, relay) as phone:
        phone.enter(token)
        choose(phone, encoding)
        phone.broadcast(stream_id, fps=10)
        yield phone


@pytest.mark.parametrize(
    "encoding",
    ["VP8", *(pytest.param(each, marks=pytest.mark.slow) for each in CODECS if each != "VP8")],
)
def test_a_viewer_sees_moving_pictures_of_each_codec(
    browser: Browser, relay: RelayProcess, accounts: Accounts, encoding: str
) -> None:
    token, stream_id = accounts.session(CODECS[encoding]), new_stream_id()
    with (
        on_air(browser, relay, token, stream_id, encoding) as phone,
        visit(browser, relay) as viewer,
    ):
        viewer.watch_as(token, stream_id)
        viewer.expect_moving_picture()
        viewer.expect_text(re.compile(r"^\d+ . \d+$"))
        phone.expect_text(re.compile(r"^\d+ pixels, [\d.]+ pictures a second, .*\.$"))
        expect(viewer.page.get_by_label("Frames per second")).to_be_disabled()
        viewer.go("Watch")  # where tiles show the whole video
        expect(viewer.page.locator(f"[data-stream={stream_id}]")).to_be_visible()
        viewer.expect_moving_picture()


@pytest.mark.slow
def test_a_viewer_that_comes_late_need_not_wait_for_the_next_keyframe_of_the_camera(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    """The camera makes one every ten minutes here."""
    token, stream_id = accounts.session("ann"), new_stream_id()

    def make_keyframes_rare(route: Route) -> None:
        response = route.fetch()
        text = response.text()
        assert "KEYFRAME_INTERVAL = 5000;" in text
        rare = text.replace("KEYFRAME_INTERVAL = 5000;", "KEYFRAME_INTERVAL = 600_000;")
        route.fulfill(response=response, body=rare)

    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        phone.page.route("**/page/encoder.js", make_keyframes_rare)
        phone.page.reload()
        phone.enter(token)
        choose(phone, "VP8")
        phone.broadcast(stream_id, fps=10)
        viewer.watch_as(token, stream_id)
        viewer.expect_moving_picture()
        with visit(browser, relay) as late:
            late.watch_as(token, stream_id)
            late.expect_moving_picture()
        viewer.page.evaluate(JOIN)
        expect(viewer.page.locator("relay-player").last).to_have_attribute("state", "live")
        viewer.expect_moving_picture()  # of the first one, too


@pytest.mark.slow
def test_a_browser_that_cannot_decode_says_so(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with (
        on_air(browser, relay, token, stream_id, "VP8"),
        visit(browser, relay) as viewer,
    ):
        viewer.page.evaluate("() => { delete window.VideoDecoder; }")
        viewer.watch_as(token, stream_id)
        viewer.expect_text("This browser cannot show VP8 video")


@pytest.mark.slow
def test_a_decoder_that_fails_begins_again_with_a_keyframe(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with (
        on_air(browser, relay, token, stream_id, "VP8"),
        visit(browser, relay) as viewer,
    ):
        viewer.page.evaluate(
            """() => {
              const decode = VideoDecoder.prototype.decode;
              let frames = 0;
              VideoDecoder.prototype.decode = function (chunk) {
                frames += 1;
                if (frames === 5) throw new DOMException('broken', 'EncodingError');
                window.decoded = frames;
                return decode.call(this, chunk);
              };
            }"""
        )
        viewer.watch_as(token, stream_id)
        viewer.page.wait_for_function("() => window.decoded > 10")
        viewer.expect_moving_picture()


@pytest.mark.slow
def test_a_camera_whose_encoder_fails_goes_on_with_another_one(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        phone.page.evaluate(
            """() => {
              VideoEncoder.prototype.encode = () => {
                throw new DOMException('no encoder', 'EncodingError');
              };
            }"""
        )
        phone.enter(token)
        phone.broadcast(stream_id, fps=10)
        viewer.watch_as(token, stream_id)
        viewer.expect_moving_picture()
        expect(phone.page.get_by_label("Encoding")).to_have_value("jpeg")
