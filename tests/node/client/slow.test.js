// A message that takes longer than any silence the client allows, and writes into a socket that is gone.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { openLink } from './link.js';
import { makeClient, newStreamId, relay, until, WebSocket } from './stage.js';

/** Silence is noticed in 0.6 s at most; a picture takes 2 s. */
const SHORT = { silence: 300, patience: 300, openTimeout: 5000, backoff: { first: 10, most: 100 } };
const RATE = 150_000;
const picture = Uint8Array.from({ length: 2 * RATE }, (_, index) => (index * 7919) >> 3);

function open(context, options) {
  const client = makeClient(options);
  context.after(() => client.close());
  return client;
}

async function slowLink(context, rates) {
  const link = await openLink(relay, () => null, rates);
  context.after(() => link.close());
  return link;
}

for (const encoding of ['json', 'auto']) {
  test(`a frame arrives that takes longer to come than silence may last (${encoding})`, async (context) => {
    const link = await slowLink(context, { down: RATE });
    const [phone, viewer] = [open(context), open(context, { ...SHORT, encoding, url: link.url })];
    const publication = phone.publish({ streamId: newStreamId() });
    await Promise.all([phone.connect(), viewer.connect()]);
    await until(() => publication.registered);
    const [frames, alerts] = [[], []];
    viewer.subscribe(publication.streamId, {
      onFrame: ({ data, metadata }) => { frames.push([Buffer.compare(data, picture), metadata]); },
      onAlert: ({ message }) => alerts.push([message, frames.length]),
    });
    await until(() => publication.consumers === 1);
    const metadata = { text: 'für 😀 '.repeat(1000) };
    publication.sendFrame(picture, { metadata });
    await until(() => link.bytes.down > 20_000);
    await phone.alert({ streamId: publication.streamId, message: 'meanwhile' });
    await until(() => frames.length === 1 && alerts.length === 1);
    assert.deepEqual(frames, [[0, metadata]]);
    assert.equal(link.connections, 1);
  });

  test(`a frame arrives that takes longer to leave than silence may last (${encoding})`, async (context) => {
    const link = await slowLink(context, { up: RATE });
    const [viewer, phone] = [open(context), open(context, { ...SHORT, encoding, url: link.url })];
    const publication = phone.publish({ streamId: newStreamId() });
    await Promise.all([phone.connect(), viewer.connect()]);
    await until(() => publication.registered);
    const frames = [];
    viewer.subscribe(publication.streamId, { onFrame: ({ data }) => { frames.push(Buffer.compare(data, picture)); } });
    await until(() => publication.consumers === 1);
    publication.sendFrame(picture);
    await until(() => frames.length === 1);
    assert.deepEqual(frames, [0]);
    assert.equal(link.connections, 1);
  });
}

test('an answer is waited for behind the frames that are in flight', async (context) => {
  const link = await slowLink(context, { down: 120_000 });
  const [phone, viewer] = [open(context), open(context, { ...SHORT, silence: 200, patience: 200, url: link.url })];
  const publication = phone.publish({ streamId: newStreamId() });
  await Promise.all([phone.connect(), viewer.connect()]);
  await until(() => publication.registered);
  let frames = 0;
  viewer.subscribe(publication.streamId, { window: 12, policy: 'lossless', onFrame: () => { frames += 1; } });
  await until(() => publication.consumers === 1);
  while (publication.sent < 18) { // a busy machine does not take them all at once
    publication.sendFrame(picture.subarray(0, 20_000));
    await new Promise((resume) => { setTimeout(resume, 5); });
  }
  await until(() => frames === publication.sent);
  assert.equal(link.connections, 1);
});

test('a link that dies in the middle of a long frame is noticed, in both directions', async (context) => {
  for (const way of ['up', 'down']) {
    const link = await slowLink(context, { [way]: RATE });
    const slow = open(context, { ...SHORT, url: link.url });
    const other = open(context);
    const [phone, viewer] = way === 'up' ? [slow, other] : [other, slow];
    const publication = phone.publish({ streamId: newStreamId() });
    await Promise.all([phone.connect(), viewer.connect()]);
    await until(() => publication.registered);
    viewer.subscribe(publication.streamId, { onFrame: () => {} });
    await until(() => publication.consumers === 1);
    publication.sendFrame(picture);
    await until(() => link.bytes[way] > RATE / 2);
    let lost = false;
    slow.on('state', ({ state }) => { lost ||= state === 'waiting'; });
    link.break('silence');
    const time = performance.now();
    await until(() => lost);
    assert.ok(performance.now() - time < 10 * (SHORT.silence + SHORT.patience));
  }
});

/** A WebSocket whose writes throw once it is told that it is gone, though it says that it is open. */
function zombie() {
  const gone = new Set();
  class Zombie extends WebSocket {
    send(...values) {
      if (gone.has(this)) throw new Error('Unable to send: unknown WebSocket id 7');
      super.send(...values);
    }

    close() {
      if (gone.has(this)) throw new Error('unknown WebSocket id 7');
      super.close();
    }

    terminate() { this.close(); }
  }
  Zombie.kill = ({ _link: { _socket: socket } }) => {
    socket.onclose = null; // nobody is told
    WebSocket.prototype.terminate.call(socket);
    Object.defineProperty(socket, 'readyState', { value: 1 });
    gone.add(socket);
  };
  return Zombie;
}

test('what is written into a socket that is gone is sent again on the next connection', async (context) => {
  const Zombie = zombie();
  const client = open(context, { ...SHORT, WebSocket: Zombie });
  const states = [];
  client.on('state', ({ state, error }) => states.push([state, error?.code]));
  const streamId = newStreamId();
  await client.connect();
  Zombie.kill(client);
  const publication = client.publish({ streamId });
  const seen = [];
  client.subscribe(streamId, { onFrame: ({ data }) => seen.push(data[0]), onAlert: ({ message }) => seen.push(message) });
  const streams = [];
  client.watchStreams((known) => streams.push(known.length));
  const stored = client.alert({ streamId, message: 'not lost' });
  await until(() => publication.registered && streams.length > 0);
  assert.ok((await stored).alertId > 0);
  await until(() => seen.includes('not lost') && publication.consumers === 1);
  assert.deepEqual(states.slice(0, 3).map(([state]) => state), ['connecting', 'ready', 'waiting']);
  assert.equal(states[2][1], 'DISCONNECTED');

  Zombie.kill(client);
  assert.equal(publication.sendFrame(Uint8Array.of(1), { keyframe: true }), false);
  assert.equal(publication.skipped, 1);
  await until(() => client.state === 'waiting');
  await until(() => publication.registered);
  assert.equal(publication.sendFrame(Uint8Array.of(2), { keyframe: false }), false, 'a delta without its keyframe');
  assert.equal(publication.sendFrame(Uint8Array.of(3), { keyframe: true }), true);
  await until(() => seen.at(-1) === 3);
});

for (const what of ['unsubscribe', 'update', 'renew', 'acknowledge', 'ping', 'authenticate']) {
  test(`a write that throws is a dead link: ${what}`, async (context) => {
    const Zombie = zombie();
    const client = open(context, { ...SHORT, WebSocket: Zombie });
    const streamId = newStreamId();
    const publication = client.publish({ streamId });
    const subscription = client.subscribe(streamId, { onFrame: () => {} });
    await client.connect();
    await until(() => publication.registered && publication.consumers === 1);
    let lost = 0;
    client.on('state', ({ state }) => { lost += state === 'waiting'; });
    const link = client._link;
    Zombie.kill(client);
    if (what === 'unsubscribe') subscription.unsubscribe();
    if (what === 'update') subscription.update({ maxFps: 5 });
    if (what === 'renew') client.renew();
    if (what === 'acknowledge') subscription._acknowledge(1, link, 1, 0);
    if (what === 'ping') link.probe();
    if (what === 'authenticate') link._authenticate('t');
    await until(() => lost === 1 && client.state === 'ready');
    await until(() => publication.registered && publication.consumers === (what === 'unsubscribe' ? 0 : 1));
  });
}

test('a connection that cannot be opened says what may be in its way', async (context) => {
  class Blocked {
    readyState = 0;

    constructor() { setTimeout(() => this.onclose?.({ code: 1006, reason: '' })); }

    close() {}
  }
  const cases = [
    ['app.example.org', 'ws://192.168.1.7:3000', /192\.168\.1\.7 is in a local network.*Allow this site/],
    ['app.example.org', 'wss://relay.local', /relay\.local is in a local network/],
    ['app.example.org', 'ws://[fe80::1]:3000', /\[fe80::1\] is in a local network/],
    ['app.example.org', 'wss://relay.example.org', /certificate.*Content-Security-Policy.*local network/],
    ['192.168.1.9', 'ws://192.168.1.7:3000', /^The connection was lost$/],
    ['relay.example.org', 'wss://relay.example.org', /^The connection was lost$/],
    [undefined, 'ws://192.168.1.7:3000', /^The connection was lost$/],
  ];
  context.after(() => delete globalThis.location);
  for (const [page, url, expected] of cases) {
    if (page) globalThis.location = { hostname: page };
    else delete globalThis.location;
    const client = open(context, { ...SHORT, url, WebSocket: Blocked });
    const said = [];
    client.on('state', ({ state, error }) => { if (state === 'waiting') said.push(error.message); });
    client.connect().catch(() => {});
    await until(() => said.length === 3);
    client.close();
    assert.match(said[2], expected);
  }
});
