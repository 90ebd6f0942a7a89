// What the client makes of listeners that act at once, of clocks that step and of answers that are no goodbye.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { openLink } from './link.js';
import { HASTY, makeClient, newStreamId, openStage, relay, until, WebSocketServer } from './stage.js';
import { RelayError } from '../../../relay/web/client/relay-client.js';

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

test('one listener for the own stream and for watching it hears each alert once, until neither is left', async (context) => {
  const client = open(context);
  const streamId = newStreamId();
  const heard = [];
  const onAlert = ({ message }) => heard.push(message);
  client.publish({ streamId, onAlert });
  await client.connect();
  await until(() => client.publication.registered);
  const subscription = client.subscribe(streamId, { onAlert });
  await client.alert({ streamId, message: 'to both' });
  await until(() => heard.length > 0);
  subscription.unsubscribe();
  await client.alert({ streamId, message: 'to the publication' });
  await until(() => heard.at(-1) === 'to the publication');
  assert.deepEqual(heard, ['to both', 'to the publication']);
  client.publication.stop();
  assert.equal(client._feeds.size, 0);
});

test('a keyframe that waits for the application gives way to no delta', async (context) => {
  const [phone, viewer] = [open(context), open(context)];
  const publication = phone.publish({ streamId: newStreamId() });
  await Promise.all([phone.connect(), viewer.connect()]);
  await until(() => publication.registered);
  const seen = [];
  let go = null;
  const held = new Promise((resolve) => { go = resolve; });
  const subscription = viewer.subscribe(publication.streamId, {
    window: null,
    onFrame: ({ seq }) => {
      seen.push(seq);
      return held;
    },
  });
  await until(() => publication.consumers > 0);
  const send = (keyframe) => publication.sendFrame(new Uint8Array(9), { keyframe });
  send(true);
  send(true);
  send(false); // builds on the one before, which waits
  await until(() => subscription._broken);
  go();
  await until(() => seen.length === 2);
  send(false); // builds on what was skipped
  send(true);
  send(false);
  await until(() => seen.at(-1) === 6);
  assert.deepEqual(seen, [1, 2, 5, 6]);
});

test('where no WebSocket can be opened, that is said as any error is', async (context) => {
  class Forbidden {
    constructor() { throw new DOMException('An insecure connection may not be made', 'SecurityError'); }
  }
  const client = open(context, { WebSocket: Forbidden });
  await assert.rejects(client.connect(), (error) => {
    assert.ok(error instanceof RelayError);
    assert.equal(error.code, 'DISCONNECTED');
    assert.match(error.message, /insecure connection/);
    assert.equal(error.cause.name, 'SecurityError');
    return true;
  });
});

test('a stream that was taken over while it is registered is not fought for', async (context) => {
  const played = new WebSocketServer({ host: '127.0.0.1', port: 0 });
  context.after(() => played.close());
  await new Promise((resolve) => played.on('listening', resolve));
  played.on('connection', (socket) => socket.on('message', (text) => {
    const { id, type } = JSON.parse(text);
    if (type === 'auth') socket.send(JSON.stringify({ type: 'success', id, message: '', timestamp: 1 }));
    if (type !== 'register') return;
    const word = JSON.stringify({ type: 'error', id, code: 'SUPERSEDED', message: 'a newer one has it' });
    socket.send(word, () => socket.terminate()); // the Close is lost
  }));
  const client = open(context, { ...HASTY, url: `ws://127.0.0.1:${played.address().port}`, encoding: 'json' });
  let last = null;
  client.on('state', ({ state, error }) => { last = [state, error?.code]; });
  client.publish({ streamId: newStreamId() });
  await client.connect();
  await until(() => last[0] !== 'ready');
  assert.deepEqual(last, ['closed', 'SUPERSEDED']);
});

test('a connection that is gone is given up soon where the browser says that the network is', async (context) => {
  const told = new Map();
  globalThis.addEventListener = (name, listener) => told.set(name, listener);
  context.after(() => delete globalThis.addEventListener);
  const link = await openLink(relay);
  context.after(() => link.close());
  const client = open(context, { ...HASTY, url: link.url, patience: 3_600_000 });
  await client.connect();
  told.get('offline')();
  await until(() => client._link._signs.heard === null, 'the sign of life');
  assert.equal(client.state, 'ready');
  link.break('silence');
  await until(() => client._link._signs.heard !== null, 'the silence to be noticed');
  told.get('offline')();
  await until(() => client.state === 'waiting');
});

/** Makes the link look at its clock only so often, as browsers do in hidden tabs. */
function throttle(context, period) {
  const { setTimeout: real } = globalThis;
  context.after(() => { globalThis.setTimeout = real; });
  globalThis.setTimeout = (work, delay, ...rest) => real(work, delay === HASTY.silence / 4 ? period : delay, ...rest);
}

test('a connection that is gone is given up also in a hidden tab, where every look comes late', async (context) => {
  const link = await openLink(relay);
  context.after(() => link.close());
  const client = open(context, { ...HASTY, url: link.url });
  await client.connect();
  throttle(context, 6 * HASTY.patience);
  link.break('silence');
  await until(() => client.state === 'waiting');
});

test('an answer that came while the device slept is read before it counts as late', async (context) => {
  const played = new WebSocketServer({ host: '127.0.0.1', port: 0 });
  context.after(() => played.close());
  await new Promise((resolve) => played.on('listening', resolve));
  const { setTimeout: real } = globalThis;
  played.on('connection', (socket) => socket.on('message', (text) => {
    const { id } = JSON.parse(text);
    real(() => socket.send(JSON.stringify({ type: 'success', id, message: '', timestamp: 1 })), 600);
  }));
  throttle(context, 400);
  const url = `ws://127.0.0.1:${played.address().port}`;
  const client = open(context, { ...HASTY, url, openTimeout: 300, encoding: 'json' });
  const states = [];
  client.on('state', ({ state }) => states.push(state));
  await client.connect();
  assert.deepEqual(states, ['connecting', 'ready']);
});

test('a connection that was being opened when the network came back is not waited for long', async (context) => {
  const told = new Map();
  globalThis.addEventListener = (name, listener) => told.set(name, listener);
  context.after(() => delete globalThis.addEventListener);
  const link = await openLink(relay, (number) => (number === 0 ? { way: 'up', at: 1, how: 'silence' } : null));
  context.after(() => link.close());
  const client = open(context, { ...HASTY, url: link.url, openTimeout: 3_600_000, patience: 200 });
  client.connect();
  await until(() => link.cuts === 1);
  told.get('online')();
  await until(() => client.state === 'ready');
  assert.equal(link.connections, 2);
});

test('who was unsubscribed by another listener does not hear the alert any more', async (context) => {
  const client = open(context);
  const streamId = newStreamId();
  const heard = [];
  client.publish({ streamId, onAlert: () => { heard.push('publication'); subscription.unsubscribe(); } });
  const subscription = client.subscribe(streamId, { onAlert: () => heard.push('subscription') });
  await client.connect();
  await until(() => client.publication.registered);
  await client.alert({ streamId, message: 'one' });
  await until(() => heard.length > 0);
  assert.deepEqual(heard, ['publication']);
});

test('what update cannot change is said at once', (context) => {
  const subscription = open(context).subscribe(newStreamId(), { onFrame: () => {} });
  assert.throws(() => subscription.update({ onAlert: () => {} }), /onAlert cannot be changed/);
});
