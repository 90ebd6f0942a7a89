// What the client makes of listeners that act at once, of clocks that step and of answers that are no goodbye.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { openLink } from './link.js';
import { HASTY, makeClient, newStreamId, openStage, relay, until } from './stage.js';

function open(context, options) {
  const client = makeClient(options);
  context.after(() => client.close());
  return client;
}

test('whoever hears of the session may close, or pause, the client at once', async (context) => {
  const closing = open(context);
  closing.on('session', () => closing.close());
  await assert.rejects(closing.connect(), { code: 'CLOSED' });
  const pausing = open(context);
  pausing.on('session', () => pausing.pause());
  pausing.connect();
  await until(() => pausing.state === 'paused');
  await new Promise((resolve) => setTimeout(resolve, 50)); // for what is thrown meanwhile
  assert.deepEqual([closing.state, pausing.state], ['closed', 'paused']);
});

test('what is no token is told at once to whoever wrote the callback', async (context) => {
  const client = open(context, { ...HASTY, token: async () => ({ token: 'in an object' }) });
  await assert.rejects(client.connect(), { code: 'NO_TOKEN', message: /string.*object/ });
  assert.equal(client.state, 'closed');
});

test('the refusal of a request is not why the connection is lost after it', async (context) => {
  const link = await openLink(relay);
  context.after(() => link.close());
  const client = open(context, { ...HASTY, url: link.url });
  await client.connect();
  const why = new Promise((resolve) => {
    client.on('state', ({ state, error }) => { if (state === 'waiting') resolve(error); });
  });
  const wrong = { streamId: newStreamId(), message: 'x', severity: 'none' };
  await assert.rejects(client.alert(wrong), { code: 'INVALID_MESSAGE' });
  link.break('reset');
  assert.equal((await why).code, 'DISCONNECTED');
});

test("the relay's clock is known again after ours has stepped", async (context) => {
  const client = open(context, HASTY);
  await client.connect();
  client._link.rtt = 0; // no answer will be quicker than those before
  const ours = Date.now;
  context.after(() => { Date.now = ours; });
  Date.now = () => ours() + 3_600_000;
  await until(() => Math.abs(client.relayNow() - ours()) < 5000, 'the clock of the relay');
});

test('a subscription made anew gets no frame of the one before', async (context) => {
  const stage = await openStage({ period: 1 });
  context.after(() => stage.close());
  const viewer = open(context);
  const epochs = new Set();
  const watch = () => {
    let frames = 0;
    const onFrame = ({ epoch }) => {
      epochs.add(epoch);
      frames += 1;
    };
    return { subscription: viewer.subscribe(stage.streamId, { onFrame, window: null }), frames: () => frames };
  };
  await viewer.connect();
  for (let turn = 0; turn < 30; turn += 1) {
    const { subscription, frames } = watch();
    await until(() => frames() > 2);
    subscription.unsubscribe();
  }
  assert.equal(epochs.size, 1, `${[...epochs]}`);
});

test('other terms bring no frame again that waits for the application', async (context) => {
  const streamId = newStreamId();
  const [phone, viewer] = [open(context), open(context)];
  const publication = phone.publish({ streamId });
  const seen = [];
  let go = null;
  const held = new Promise((resolve) => { go = resolve; });
  const subscription = viewer.subscribe(streamId, {
    policy: 'lossless',
    onFrame: ({ seq }) => {
      seen.push(seq);
      return held;
    },
  });
  await Promise.all([phone.connect(), viewer.connect()]);
  await until(() => publication.registered && publication.consumers > 0);
  for (let turn = 0; turn < 3; turn += 1) publication.sendFrame(new Uint8Array(9));
  await until(() => subscription._frames.length === 2);
  subscription.update({ maxFps: 1000 });
  await viewer.alert({ streamId, message: 'all before this has come' });
  await new Promise((resolve) => setTimeout(resolve, 30));
  go();
  publication.sendFrame(new Uint8Array(9));
  await until(() => seen.at(-1) === 4);
  assert.deepEqual(seen, [1, 2, 3, 4]);
});

test('what a refused stream listened to is forgotten with it', async (context) => {
  const [phone, other] = [open(context), open(context)];
  await Promise.all([phone.connect(), other.connect()]);
  let refused = null;
  phone.publish({ streamId: 'no id', onAlert: () => {}, onError: (error) => { refused = error; } });
  await until(() => refused);
  assert.equal(phone._feeds.size, 0);
});

test('a second who watches the streams is told none before they are known', async (context) => {
  const phone = open(context);
  phone.publish({ streamId: newStreamId() });
  await phone.connect();
  await until(() => phone.publication.registered);
  const viewer = open(context);
  const told = [];
  viewer.watchStreams(() => {});
  viewer.watchStreams((streams) => told.push(streams.length));
  await viewer.connect();
  await until(() => told.length > 0 && told.at(-1) > 0);
  assert.ok(!told.includes(0));
});
