// Frames that build on one another, in virtual time: what a phone sends and skips, and what a viewer gets.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { makeRelay, publish, stopTime } from './virtual.js';
import { RelayClient } from '../../../relay/web/client/relay-client.js';

const MBIT = 125_000; // bytes
const KEY = { keyframe: true };
const DELTA = { keyframe: false };
const DISCARDABLE = { keyframe: false, discardable: true };

async function open(context, { received = [], ...link } = {}) {
  const time = stopTime(context);
  const onReceive = (message) => { if (message.type === 'video-frame') received.push(message); };
  const relay = makeRelay(time, { rate: () => MBIT, onReceive, ...link });
  const publication = await publish(context, time, relay);
  return { time, relay, received, publication };
}

test('a keyframe is needed first, after a skipped frame, and when the relay wants one', async (context) => {
  const { time, relay, publication } = await open(context);
  let asked = 0;
  publication._options.onKeyframeWanted = () => { asked += 1; };
  assert.equal(publication.needsKeyframe, true);
  publication.sendFrame(new Uint8Array(10), KEY);
  assert.equal(publication.needsKeyframe, false);
  relay.say({ type: 'notice', code: 'KEYFRAME_WANTED', streamId: 'another' });
  relay.say({ type: 'notice', code: 'KEYFRAME_WANTED', streamId: 's' });
  await time.run(100);
  assert.equal(asked, 1);
  publication.sendFrame(new Uint8Array(10), DELTA);
  assert.equal(publication.needsKeyframe, true);
  publication.sendFrame(new Uint8Array(10), KEY);
  assert.equal(publication.needsKeyframe, false);
});

test('the relay is told which frames are discardable', async (context) => {
  const { time, received, publication } = await open(context);
  for (const kind of [KEY, DISCARDABLE]) publication.sendFrame(new Uint8Array(10), kind);
  await time.run(100);
  assert.deepEqual(received.map(({ discardable }) => discardable), [undefined, true]);
});

test('behind a keyframe, deltas queue for a while, and discardable ones are skipped', async (context) => {
  const { time, publication } = await open(context);
  publication.sendFrame(new Uint8Array(5000), KEY);
  await time.run(1000); // the link is known
  assert.equal(publication.sendFrame(new Uint8Array(25_000), KEY), true); // for 0.2 s
  assert.equal(publication.hasRoom, false);
  assert.equal(publication.sendFrame(new Uint8Array(1000), DISCARDABLE), false);
  assert.equal(publication.needsKeyframe, false);
  assert.equal(publication.sendFrame(new Uint8Array(1000), DELTA), true);
  assert.equal(publication.sendFrame(new Uint8Array(50_000), DELTA), true); // for 0.4 s more
  assert.equal(publication.sendFrame(new Uint8Array(1000), DELTA), false);
  assert.equal(publication.needsKeyframe, true);
});

test('a viewer that is behind skips what is discardable, and needs no keyframe', async (context) => {
  const time = stopTime(context);
  const relay = makeRelay(time, { rate: () => 1e9 });
  const client = new RelayClient({ url: 'ws://relay', token: 't', WebSocket: relay.WebSocket });
  context.after(() => client.close());
  const seen = [];
  let go = null;
  const held = new Promise((resolve) => { go = resolve; });
  const subscription = client.subscribe('s', {
    window: 2,
    onFrame: ({ seq }) => {
      seen.push(seq);
      return held;
    },
  });
  client.connect();
  while (subscription.epoch === 0) await time.run(1);
  const kinds = [KEY, DELTA, DELTA, DISCARDABLE, DISCARDABLE];
  for (const [index, kind] of kinds.entries()) {
    relay.say({ type: 'video-frame', streamId: 's', seq: index + 1, data: new Uint8Array(1), ...kind });
  }
  await time.run(100);
  go();
  await time.run(10);
  relay.say({ type: 'video-frame', streamId: 's', seq: 6, data: new Uint8Array(1), ...DELTA });
  await time.run(100);
  assert.deepEqual(seen, [1, 2, 3, 6]);
});

test('no frame of video is skipped to measure a long way', async (context) => {
  const { time, publication } = await open(context, { delay: () => 150 });
  let [due, number, skipped] = [0, 0, 0];
  await time.run(12_000, () => { // there is always something under way
    if (time.now < due) return;
    due = time.now + 40;
    const kind = number % 2 ? DISCARDABLE : DELTA;
    const sent = publication.sendFrame(new Uint8Array(3000), number % 125 ? kind : KEY);
    if (!sent && time.now > 2000) skipped += 1;
    number += 1;
  });
  assert.equal(skipped, 0);
});
