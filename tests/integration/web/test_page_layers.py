"""Pages that send pictures in several sizes, and pages that show the one that suits them."""

from __future__ import annotations

import re
from itertools import groupby

import pytest
from playwright.sync_api import Browser, expect

from tests.integration.accounts import Accounts
from tests.integration.browser import Visitor, visit
from tests.integration.peers import new_stream_id
from tests.integration.relay_process import RelayProcess

JPEG = "JPEG pictures"
SLOW = 60_000
"""Bytes a second, of which JPEG pictures 640 pixels wide would take too many."""
LARGE, SMALL = re.compile("^640 . 360$"), re.compile("^320 . 180$")
"""The sizes of the film, as the page shows them."""


def slow_down(visitor: Visitor) -> None:
    """Throttle the page from now on."""
    network = visitor.context.new_cdp_session(visitor.page)
    network.send("Network.enable")
    slow = {"latency": 20, "downloadThroughput": SLOW, "uploadThroughput": SLOW}
    network.send("Network.emulateNetworkConditions", {"offline": False, **slow})


def broadcast(phone: Visitor, token: str, stream_id: str, encoding: str = JPEG) -> None:
    phone.enter(token)
    phone.go("Broadcast")
    choice = phone.page.get_by_label("Encoding")
    expect(choice.locator("option")).not_to_have_count(1)
    choice.select_option(encoding)
    phone.broadcast(stream_id, fps=10)


@pytest.mark.slow
def test_each_viewer_gets_the_pictures_that_its_link_carries(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with (
        visit(browser, relay) as phone,
        visit(browser, relay) as fast,
        visit(browser, relay) as slow,
    ):
        broadcast(phone, token, stream_id)
        for viewer in (fast, slow):
            viewer.watch_as(token, stream_id)
        for viewer in (fast, slow):
            viewer.expect_text(LARGE)
        slow_down(slow)
        slow.expect_text(SMALL)
        slow.expect_moving_picture()
        quality = slow.page.get_by_label("Quality")
        expect(quality.locator("option:checked")).to_have_text("Automatic (320)")
        phone.expect_text(re.compile("^320 and 640 pixels, "))
        fast.expect_text(LARGE)


@pytest.mark.slow
def test_a_viewer_may_choose_among_the_sizes_of_a_stream(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        broadcast(phone, token, stream_id)
        viewer.watch_as(token, stream_id)
        quality = viewer.page.get_by_label("Quality")
        options = quality.locator("option")
        expect(options).to_have_text([re.compile("^Automatic"), "640 pixels", "320 pixels"])
        quality.select_option("640 pixels")
        viewer.expect_text(LARGE)
        expect(options.first).to_have_text("Automatic")
        quality.select_option("320 pixels")
        viewer.expect_text(SMALL)
        phone.expect_text(re.compile("^320 pixels, .*: viewers need no more.$"))


MISSING = """(menu) => {
  const widths = [...menu.options].map((option) => {
    const one = menu.cloneNode(false);
    one.append(option.cloneNode(true));
    one.style.cssText = 'position: absolute; visibility: hidden; width: max-content';
    menu.after(one);
    const { width } = one.getBoundingClientRect();
    one.remove();
    return width;
  });
  return Math.max(...widths) - menu.getBoundingClientRect().width;
}"""
"""How many pixels wider a menu would have to be to show each of its choices whole."""


def test_on_a_phone_no_choice_is_cut(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    small = {"width": 390, "height": 844}
    with visit(browser, relay) as phone, visit(browser, relay, viewport=small) as viewer:
        broadcast(phone, token, stream_id)
        viewer.watch_as(token, stream_id)
        expect(viewer.page.get_by_label("Quality").locator("option")).not_to_have_count(1)
        viewer.expect_moving_picture()
        for name in ("Quality", "Delivery", "Frames per second"):
            assert viewer.page.get_by_label(name).evaluate(MISSING) <= 0, name


RECORD = """async () => {
  const { RelayClient } = await import('/relay-client.js');
  const publish = RelayClient.prototype.publish;
  window.sent = [];
  RelayClient.prototype.publish = function (options) {
    const publication = publish.call(this, options);
    const send = publication.sendFrame.bind(publication);
    publication.sendFrame = (data, about) => {
      const isSent = send(data, about);
      if (isSent) window.sent.push([about.timestamp, about.layer, about.keyframe]);
      return isSent;
    };
    return publication;
  };
}"""
"""Keeps what frames were sent."""


@pytest.mark.slow
def test_the_layers_of_a_video_have_the_same_keyframes(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with (
        visit(browser, relay) as phone,
        visit(browser, relay) as large,
        visit(browser, relay) as small,
    ):
        phone.page.evaluate(RECORD)
        broadcast(phone, token, stream_id, "VP8")
        small.watch_as(token, stream_id)
        small.page.get_by_label("Quality").select_option("320 pixels")
        large.watch_as(token, stream_id)
        large.page.get_by_label("Quality").select_option("640 pixels")
        large.expect_text(LARGE)
        phone.expect_text(re.compile("^320 and 640 pixels, "))
        large.expect_moving_picture()
        small.expect_text(SMALL)
        small.expect_moving_picture()
        sent = phone.page.evaluate("window.sent")
    pictures = [list(frames) for _, frames in groupby(sent, lambda frame: frame[0])]
    timestamps = [frames[0][0] for frames in pictures]
    assert timestamps == sorted(set(timestamps))
    assert {tuple(layer for _, layer, _ in frames) for frames in pictures} >= {("320", "640")}
    for frames in pictures:
        assert len({keyframe for _, _, keyframe in frames}) == 1
    assert any(not keyframe for _, _, keyframe in sent)


def test_a_tile_gets_pictures_of_its_size(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    # A user without other streams: of many tiles, this one might be out of sight.
    token, stream_id = accounts.session("tim"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        broadcast(phone, token, stream_id)
        viewer.enter(token)
        tile = viewer.page.locator(f"[data-stream={stream_id}] canvas")
        expect(tile).to_have_attribute("width", "320")
        phone.expect_text(re.compile("^320 pixels, .*: viewers need no more.$"))
        viewer.page.set_viewport_size({"width": 560, "height": 700})
        expect(tile).to_have_attribute("width", "640")


@pytest.mark.slow
def test_a_phone_that_is_turned_sends_pictures_of_its_new_width(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        broadcast(phone, token, stream_id)
        viewer.watch_as(token, stream_id)
        options = viewer.page.get_by_label("Quality").locator("option")
        expect(options).to_have_text([re.compile("Automatic"), "640 pixels", "320 pixels"])
        phone.page.evaluate(
            """() => {
              const video = document.querySelector('video');
              Object.defineProperty(video, 'videoWidth', { value: 360 });
              Object.defineProperty(video, 'videoHeight', { value: 640 });
              video.dispatchEvent(new Event('resize'));
            }"""
        )
        expect(options).to_have_text(["Automatic (360)", "360 pixels"])
        viewer.expect_text(re.compile("^360 . 640$"))


def test_video_layers_take_together_what_the_connection_carries(
    browser: Browser, relay: RelayProcess
) -> None:
    layers = [{"id": each, "width": int(each)} for each in ("320", "640", "1280")]
    with visit(browser, relay) as visitor:
        planned = visitor.page.evaluate(
            """async (layers) => {
              const { LayerRates } = await import('/page/rates.js');
              const rates = new LayerRates();
              const plan = (mbit, time) => rates.plan({
                bandwidth: mbit * 1e6 / 8, layers, isFixed: false, fps: 25, time,
              }).pictures.map(({ layer, width, bitrate }) => [layer, width, bitrate / 1e6]);
              return [plan(10, 0), plan(2.5, 100), plan(1, 200), plan(10, 300), plan(10, 2400)];
            }""",
            layers,
        )
    small, middle = ["320", 320, 0.25], ["640", 640, 0.8]
    assert planned == [
        [small, middle, ["1280", 1280, 2.5]],
        [small, middle, ["1280", 1280, 0.95]],
        [small, ["640", 640, 0.55]],
        [small, middle],  # until there has been room for a while
        [small, middle, ["1280", 1280, 2.5]],
    ]
