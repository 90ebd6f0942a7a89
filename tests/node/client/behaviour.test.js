// What an application sees of the client, on a real relay.
import assert from 'node:assert/strict';
import net from 'node:net';
import { test } from 'node:test';

import { openLink } from './link.js';
import { HASTY, makeClient, newStreamId, Notes, openStage, relay, rollCamera, tokens, until } from './stage.js';
import { RelayClient } from '../../../relay/web/client/relay-client.js';

/** A client that is closed with the test, whatever becomes of that. */
function open(context, options) {
  const client = makeClient(options);
  context.after(() => client.close());
  return client;
}

test('both encodings carry the same bytes, from either to either', async (context) => {
  const picture = Uint8Array.from({ length: 70_000 }, (_, index) => (index * 7) & 255);
  const base64 = Buffer.from(picture).toString('base64');
  for (const from of ['json', 'msgpack']) {
    for (const to of ['json', 'msgpack']) {
      const streamId = newStreamId();
      const [phone, viewer] = [open(context, { encoding: from }), open(context, { encoding: to })];
      const frames = [];
      viewer.subscribe(streamId, { onFrame: (frame) => { frames.push(frame); } });
      const publication = phone.publish({ streamId, metadata: { codec: 'jpeg' } });
      await Promise.all([phone.connect(), viewer.connect()]);
      assert.equal(phone.encoding, from);
      await until(() => publication.registered && publication.consumers > 0);
      for (const data of [picture, picture.buffer, base64]) {
        const before = frames.length;
        assert.ok(publication.sendFrame(data, { timestamp: 1234, metadata: { turn: 1 } }));
        await until(() => frames.length > before);
        const frame = frames.at(-1);
        assert.deepEqual(Buffer.compare(frame.data, picture), 0);
        assert.deepEqual([frame.timestamp, frame.metadata, frame.streamId], [1234, { turn: 1 }, streamId]);
        assert.ok(Math.abs(viewer.relayNow() - frame.receivedAt) < 5000);
      }
    }
  }
});

test('a frame is skipped, and not queued, while those before are under way', async (context) => {
  // A link that takes nothing more from the phone, while the phone believes in it.
  const server = net.createServer((near) => {
    const far = net.connect({ host: relay.hostname, port: relay.port });
    let passed = 0;
    near.on('data', (chunk) => {
      passed += chunk.length;
      far.write(chunk);
      if (passed > 100_000) near.pause();
    });
    far.pipe(near);
    for (const socket of [near, far]) socket.on('error', () => {});
    near.on('close', () => far.destroy());
    context.after(() => near.destroy());
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  context.after(() => server.close());
  const phone = open(context, { url: `ws://127.0.0.1:${server.address().port}`, maxBuffered: 100_000 });
  const publication = phone.publish({ streamId: newStreamId() });
  await phone.connect();
  await until(() => publication.registered);
  const outcomes = [];
  for (let turn = 0; turn < 100; turn += 1) {
    outcomes.push(publication.sendFrame(new Uint8Array(50_000)));
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  assert.ok(outcomes[0]);
  assert.ok(publication.sent < 10, `${publication.sent} were sent into a link that takes none`);
  assert.equal(publication.sent + publication.skipped, 100);
});

test('a delta frame is not sent after one that was skipped', async (context) => {
  const phone = open(context);
  const publication = phone.publish({ streamId: newStreamId() });
  assert.equal(publication.sendFrame(new Uint8Array(1), { keyframe: true }), false);
  await phone.connect();
  await until(() => publication.registered);
  assert.equal(publication.sendFrame(new Uint8Array(1), { keyframe: false }), false);
  assert.equal(publication.sendFrame(new Uint8Array(1), { keyframe: true }), true);
  assert.equal(publication.sendFrame(new Uint8Array(1), { keyframe: false }), true);
});

test('an application that is slow with a frame gets the newest next, one at a time', async (context) => {
  const stage = await openStage({ period: 4 });
  context.after(() => stage.close());
  const viewer = open(context);
  const notes = new Notes();
  let under = 0;
  let age = 0;
  viewer.subscribe(stage.streamId, {
    window: 1,
    onFrame: async (frame) => {
      assert.equal(under += 1, 1);
      notes.onFrame(frame);
      age = Math.max(age, viewer.relayNow() - frame.receivedAt);
      await new Promise((resolve) => setTimeout(resolve, 40));
      under -= 1;
    },
  });
  await viewer.connect();
  await until(() => notes.frames > 20);
  assert.ok(notes.missed > 3 * notes.frames, `${notes.missed} missed of a stream ten times as fast`);
  assert.ok(age < 1000, `a frame was ${age} ms old`);
});

test('a phone hears when somebody watches and when nobody does', async (context) => {
  const streamId = newStreamId();
  const [phone, viewer] = [open(context), open(context)];
  const demands = [];
  phone.publish({ streamId, onDemand: (consumers) => demands.push(consumers) });
  await Promise.all([phone.connect(), viewer.connect()]);
  await until(() => phone.publication.registered);
  const subscription = viewer.subscribe(streamId, { onFrame: () => {} });
  await until(() => demands.length === 1);
  subscription.unsubscribe();
  await until(() => demands.length === 2);
  assert.deepEqual(demands, [1, 0]);
});

test('a stream whose id the relay made keeps it over a reconnect', async (context) => {
  const link = await openLink(relay);
  context.after(() => link.close());
  const phone = open(context, { ...HASTY, url: link.url });
  const ids = [];
  const publication = phone.publish({ onRegistered: (id) => ids.push(id) });
  await phone.connect();
  await until(() => ids.length === 1);
  link.break('reset');
  await until(() => ids.length === 2);
  assert.match(ids[0], /^stream_/);
  assert.deepEqual(ids, [publication.streamId, publication.streamId]);
});

test('a paused client is gone, and comes back with the alerts that it missed', async (context) => {
  const stage = await openStage();
  context.after(() => stage.close());
  const viewer = open(context);
  const notes = new Notes();
  viewer.subscribe(stage.streamId, { onFrame: notes.onFrame, onAlert: notes.onAlert });
  await viewer.connect();
  await until(() => notes.alerts.length > 3 && notes.frames > 3);
  viewer.pause();
  assert.equal(viewer.state, 'paused');
  const [frames, alerts] = [notes.frames, notes.alerts.length];
  await stage.service.alert({ streamId: newStreamId(), message: 'elsewhere' }).catch(() => {});
  assert.deepEqual([notes.frames, notes.alerts.length], [frames, alerts]);
  viewer.resume();
  await until(() => notes.alerts.length > alerts + 10 && notes.frames > frames + 3);
});

test('the history begins a subscription, and is marked', async (context) => {
  const streamId = newStreamId();
  const phone = open(context);
  phone.publish({ streamId });
  await phone.connect();
  for (const message of ['1', '2', '3', '4']) await phone.alert({ streamId, message });
  const seen = [];
  phone.subscribe(streamId, { history: 2, onAlert: ({ message, replayed }) => seen.push([message, replayed]) });
  await until(() => seen.length === 2);
  await phone.alert({ streamId, message: '5' });
  await until(() => seen.length === 3);
  assert.deepEqual(seen.map(([message]) => message), ['3', '4', '5']);
  assert.deepEqual(seen[0][1], true);
});

test('streams that may be seen are listed, and each change is told', async (context) => {
  const streamId = newStreamId();
  const [viewer, phone] = [open(context), open(context)];
  let known = [];
  viewer.watchStreams((streams) => { known = streams; });
  const find = () => known.find((each) => each.streamId === streamId);
  await Promise.all([viewer.connect(), phone.connect()]);
  const publication = phone.publish({ streamId, metadata: { codec: 'jpeg' } });
  await until(() => find()?.status === 'online' && publication.registered);
  publication.sendFrame(new Uint8Array(3));
  await until(() => find()?.status === 'streaming');
  phone.close();
  await until(() => find() === undefined);
});

test('a list of streams that comes in pages is told as a whole', async (context) => {
  const metadata = { big: 'x'.repeat(60_000) };
  const phones = Array.from({ length: 6 }, () => open(context));
  const ids = phones.map(() => newStreamId());
  await Promise.all(phones.map((each) => each.connect()));
  const publications = phones.map((each, at) => each.publish({ streamId: ids[at], metadata }));
  await until(() => publications.every((each) => each.registered));
  const viewer = open(context);
  const told = [];
  viewer.watchStreams((streams) => told.push(streams));
  await viewer.connect();
  await until(() => told.length > 0);
  const first = new Map(told[0].map((each) => [each.streamId, each.metadata]));
  assert.deepEqual(ids.map((id) => first.get(id)?.big.length), ids.map(() => 60_000));
});

test('a newer connection that takes the stream over ends the older one for good', async (context) => {
  const streamId = newStreamId();
  const [older, newer] = [open(context), open(context)];
  older.publish({ streamId });
  await older.connect();
  await until(() => older.publication.registered);
  let why;
  older.on('state', ({ error }) => { why = error; });
  newer.publish({ streamId });
  await newer.connect();
  await until(() => older.state === 'closed');
  assert.deepEqual([why.code, why.closeCode], ['SUPERSEDED', 4502]);
});

test('what the relay refuses is told to whoever asked', async (context) => {
  const client = open(context);
  await client.connect();
  await assert.rejects(client.alert({ streamId: 'nobody:s', message: 'x' }), { code: 'UNAUTHORIZED' });
  let refused;
  client.subscribe('not an id', { onFrame: () => {}, onError: (error) => { refused = error; } });
  await until(() => refused);
  assert.equal(refused.code, 'INVALID_MESSAGE');
  assert.equal(client.state, 'ready');
});

test('a refused token is replaced once by another, and never tried twice', async (context) => {
  const asked = [];
  const good = open(context, {
    ...HASTY,
    token: (request) => {
      asked.push(request);
      return asked.length === 1 ? 'guessed' : tokens.user;
    },
  });
  await good.connect();
  assert.deepEqual(asked, [{ reason: 'connect' }, { reason: 'refused', refused: 'guessed' }]);

  let times = 0;
  const bad = open(context, { ...HASTY, token: () => { times += 1; return 'guessed again'; } });
  await assert.rejects(bad.connect(), { code: 'AUTH_FAILED' });
  assert.deepEqual([bad.state, times], ['closed', 2]);
});

test('a session is renewed on demand, on the connection that there is', async (context) => {
  const link = await openLink(relay);
  context.after(() => link.close());
  const asked = [];
  let sessions = 0;
  const client = open(context, { url: link.url, token: ({ reason }) => { asked.push(reason); return tokens.user; } });
  client.on('session', () => { sessions += 1; });
  await client.connect();
  client.renew();
  await until(() => sessions === 2);
  assert.deepEqual(asked, ['connect', 'expiring']);
  assert.equal(link.connections, 1);
});

test('why a token is asked for is not forgotten when the next attempt finds nobody', async (context) => {
  const link = await openLink(relay);
  context.after(() => link.close());
  const asked = [];
  const client = open(context, {
    ...HASTY,
    url: link.url,
    token: ({ reason }) => {
      asked.push(reason);
      link.away = asked.length === 2;
      return asked.length < 2 ? 'guessed' : tokens.user;
    },
  });
  await client.connect();
  assert.deepEqual(asked, ['connect', 'refused', 'refused']);
});

test('nobody signed in is an end, and a refresh that fails is not', async (context) => {
  await assert.rejects(open(context, { token: () => null }).connect(), { code: 'NO_TOKEN' });
  let times = 0;
  const client = open(context, {
    ...HASTY,
    token: async () => {
      times += 1;
      if (times < 3) throw new Error('no network');
      return tokens.user;
    },
  });
  await client.connect();
  assert.equal(times, 3);
  const late = open(context, { ...HASTY, tokenTimeout: 20, token: () => new Promise(() => {}) });
  late.connect();
  await until(() => late.state === 'waiting');
});

test('where nobody listens the pauses grow, and close ends them', async () => {
  const server = net.createServer((socket) => socket.destroy());
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const client = makeClient({ url: `ws://127.0.0.1:${server.address().port}`, backoff: { first: 8, most: 64 } });
  const pauses = [];
  client.on('state', ({ state, retryAt }) => { if (state === 'waiting') pauses.push(retryAt - Date.now()); });
  const opened = client.connect();
  await until(() => pauses.length > 8);
  client.close();
  server.close();
  await assert.rejects(opened, { code: 'CLOSED' });
  assert.ok(pauses.every((pause) => pause <= 65), `${pauses}`);
  assert.ok(pauses.slice(4).every((pause) => pause >= 30), `${pauses}`);
});

test('a listener that throws disturbs neither the client nor other listeners', async (context) => {
  const reported = [];
  globalThis.reportError = (error) => reported.push(error.message);
  const client = makeClient();
  context.after(() => {
    client.close();
    delete globalThis.reportError;
  });
  let heard = 0;
  client.on('state', () => { throw new Error('a bug of the application'); });
  client.on('state', () => { heard += 1; });
  await client.connect();
  assert.equal(heard, 2);
  assert.deepEqual(reported, new Array(2).fill('a bug of the application'));
});

test('an alert for the own stream waits for its registration', async (context) => {
  const [phone, other] = [open(context), open(context)];
  const streamId = newStreamId();
  await phone.connect();
  other.publish({ streamId: newStreamId() });
  const publication = phone.publish({ streamId });
  let registered = false;
  const accepted = phone.alert({ streamId, message: 'x' }).then(() => { registered = publication.registered; });
  await accepted;
  assert.ok(registered);
});

test('alerts that wait are bounded, and rejected when the client is closed', async () => {
  const client = makeClient();
  const waiting = Array.from({ length: 1000 }, () => client.alert({ streamId: 's', message: 'x' }));
  await assert.rejects(client.alert({ streamId: 's', message: 'x' }), { code: 'RATE_LIMITED' });
  client.close();
  for (const each of waiting) await assert.rejects(each, { code: 'CLOSED' });
});

test('what cannot work is refused at once', () => {
  const token = 't';
  const { WebSocket } = makeClient()._settings;
  for (const url of [undefined, 'relay.example.org', 'wss://host/?token=t', 'ftp://host', 'wss://host/#t', 'wss://']) {
    assert.throws(() => new RelayClient({ url, token, WebSocket }), TypeError, `${url}`);
  }
  assert.throws(() => new RelayClient({ url: 'wss://host', WebSocket }), /token/);
  if (!globalThis.WebSocket) assert.throws(() => new RelayClient({ url: 'wss://host', token }), /WebSocket/);
  const closed = makeClient();
  closed.close();
  for (const act of [() => closed.subscribe('s'), () => closed.publish({})]) assert.throws(act, { code: 'CLOSED' });
});

test('viewers get the layers that they ask for, and the phone sends only these', async (context) => {
  const streamId = newStreamId();
  const [phone, one, other] = [open(context), open(context), open(context)];
  await Promise.all([phone.connect(), one.connect(), other.connect()]);
  const layers = [{ id: 'l', width: 320 }, { id: 'm', width: 640 }, { id: 'h', width: 1280 }];
  const publication = phone.publish({ streamId, layers });
  const seen = { one: [], other: [] };
  const sent = new Set();
  const timer = setInterval(() => {
    const plan = publication.next({ fps: 50 });
    for (const { layer, width } of plan?.pictures ?? []) {
      sent.add(layer);
      publication.sendFrame(new Uint8Array(width), { layer, timestamp: plan.timestamp });
    }
  }, 20);
  context.after(() => clearInterval(timer));
  const tile = one.subscribe(streamId, { maxWidth: 320, onFrame: (frame) => seen.one.push(frame) });
  await until(() => seen.one.length > 5);
  assert.deepEqual([...sent], ['l']);
  other.subscribe(streamId, { layer: 'h', onFrame: (frame) => seen.other.push(frame) });
  await until(() => seen.other.at(-1)?.layer === 'h');
  assert.deepEqual(publication.layers, ['l', 'h']);
  tile.update({ maxWidth: 640 });
  await until(() => seen.one.at(-1).layer === 'm');
  const numbers = seen.one.map(({ seq }) => seq);
  assert.deepEqual(numbers, [...new Set(numbers)].sort((a, b) => a - b), 'a picture came twice');
  assert.ok(seen.one.every(({ layer, data }) => data.length <= { l: 320, m: 640 }[layer]));
});
