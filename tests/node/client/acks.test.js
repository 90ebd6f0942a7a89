// Which frames a viewer takes and when it acknowledges them, in virtual time: in pairs where they come close together,
// and never late.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { makeRelay, stopTime } from './virtual.js';
import { RelayClient } from '../../../relay/web/client/relay-client.js';

const DELAY = 20; // of the link up

/** A viewer of the stream `s`, whose frames the test sends. */
async function watch(context, options = {}) {
  const time = stopTime(context);
  const relay = makeRelay(time, { rate: () => 1e9, delay: () => DELAY });
  const client = new RelayClient({ url: 'ws://relay', token: 't', WebSocket: relay.WebSocket });
  context.after(() => client.close());
  const came = [];
  const subscription = client.subscribe('s', { onFrame: ({ seq }) => { came.push([seq, time.now]); }, ...options });
  client.connect();
  while (subscription.epoch === 0) await time.run(1);
  const send = (seq, keyframe) => relay.say({ type: 'video-frame', streamId: 's', seq, keyframe, data: new Uint8Array(1) });
  return { time, relay, subscription, came, send };
}

const seqs = ({ acks }) => acks.map(({ seq }) => seq);

test('frames that come close together are acknowledged in pairs, and each within 20 ms', async (context) => {
  const { time, relay, came, send } = await watch(context);
  for (let seq = 1; seq <= 102; seq += 1) {
    send(seq);
    await time.run(seq % 10 === 0 ? 15 : 4);
  }
  await time.run(100);
  assert.equal(came.length, 102);
  assert.ok(relay.acks.length < 60, `${relay.acks.length}`);
  for (const [seq, at] of came) {
    const ack = relay.acks.find((each) => each.seq >= seq);
    assert.ok(ack.at - at <= 20 + DELAY + 2, `frame ${seq} after ${ack.at - at} ms`);
  }
  assert.equal(seqs(relay).at(-1), 102);
});

test('frames with time between them are acknowledged at once', async (context) => {
  const { time, relay, came, send } = await watch(context);
  for (let seq = 1; seq <= 10; seq += 1) {
    send(seq);
    await time.run(33);
  }
  await time.run(100);
  assert.deepEqual(seqs(relay), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  for (const [index, { at }] of relay.acks.entries()) assert.ok(at - came[index][1] <= DELAY + 2);
});

test('with a window of 1 each frame is acknowledged at once', async (context) => {
  const { time, relay, send } = await watch(context, { window: 1 });
  for (let seq = 1; seq <= 10; seq += 1) {
    send(seq);
    await time.run(2);
  }
  await time.run(60);
  assert.deepEqual(seqs(relay), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
});

for (const [what, act] of [
  ['it unsubscribes', ({ subscription }) => subscription.unsubscribe()],
  ['its window becomes 1', ({ subscription }) => subscription.update({ window: 1 })],
]) {
  test(`a frame that waits to be acknowledged is so at once when ${what}`, async (context) => {
    const stage = await watch(context);
    const { time, relay, send } = stage;
    send(1);
    await time.run(1);
    send(2);
    await time.run(DELAY);
    act(stage);
    await time.run(DELAY + 2);
    assert.deepEqual(seqs(relay), [1, 2]);
  });
}

const startEpoch = (relay) => relay.say({ type: 'status', streamId: 's', epoch: 2, status: 'streaming' });
const numbers = ({ acks }) => acks.map(({ seq, epoch }) => [seq, epoch]);

test('a frame that waits to be acknowledged is so at once when another epoch begins', async (context) => {
  const { time, relay, came, send } = await watch(context);
  send(1);
  send(2);
  startEpoch(relay);
  await time.run(100);
  send(1);
  await time.run(100);
  assert.deepEqual(numbers(relay), [[1, 1], [2, 1], [1, 2]]);
  assert.ok(relay.acks[1].at - came[1][1] <= DELAY + 2);
});

test('a frame of the epoch before that is done late takes the place of no other acknowledgement', async (context) => {
  const done = [];
  const onFrame = () => new Promise((resolve) => { done.push(resolve); });
  const { time, relay, send } = await watch(context, { onFrame, window: 2 });
  send(1, true);
  await time.run(100);
  startEpoch(relay);
  for (const seq of [1, 2]) send(seq, true);
  send(3, false); // there is no room for it
  await time.run(DELAY + 1);
  done[0]();
  await time.run(100);
  assert.deepEqual(numbers(relay), [[3, 2], [1, 1]]);
});

test('a frame whose application takes longer is acknowledged when it is done, and only then', async (context) => {
  const done = [];
  const { time, relay, send } = await watch(context, { onFrame: () => new Promise((resolve) => { done.push(resolve); }) });
  send(1);
  send(2);
  await time.run(200);
  assert.deepEqual(seqs(relay), []);
  done[0]();
  await time.run(200);
  assert.deepEqual(seqs(relay), [1]);
  done[1]();
  await time.run(DELAY + 2);
  assert.deepEqual(seqs(relay), [1, 2]);
});

test('frames of an earlier subscription are not taken for those of a later one', async (context) => {
  const { time, relay, subscription, came, send } = await watch(context);
  const client = subscription._client;
  subscription.unsubscribe();
  const frames = [];
  const again = client.subscribe('s', { onFrame: ({ seq }) => { frames.push(seq); } });
  relay.say({ type: 'status', streamId: 's', epoch: 1, status: 'streaming' }); // as for a list of streams
  send(1);
  await time.run(1.5 * DELAY); // before the relay confirms the later one
  assert.deepEqual([came, frames, again.status], [[], [], 'streaming']);
  await time.run(DELAY);
  send(2);
  await time.run(2 * DELAY);
  assert.deepEqual([came, frames], [[], [2]]);
});
