// What the client makes of listeners that act at once, of clocks that step and of answers that are no goodbye.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { openLink } from './link.js';
import { HASTY, makeClient, newStreamId, openStage, relay, tokens, until, WebSocketServer } from './stage.js';
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

test('what is no token is told also where a session is renewed, which goes on', async (context) => {
  const given = [tokens.user, { token: 'in an object' }];
  const client = open(context, { ...HASTY, token: async () => given.shift() });
  await client.connect();
  const problem = new Promise((resolve) => client.on('problem', resolve));
  client.renew();
  assert.equal((await problem).code, 'NO_TOKEN');
  assert.equal(client.state, 'ready');
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

/** Resolves when the client waits for its next connection, however short that wait is. */
function waiting(client) {
  return new Promise((resolve) => client.on('state', ({ state }) => { if (state === 'waiting') resolve(); }));
}

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
  const lost = waiting(client);
  told.get('offline')();
  await lost;
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
  const lost = waiting(client);
  link.break('silence');
  await lost;
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

/** A relay in the hands of the test: it takes any `auth`, and answers all else as it is told to. */
async function play(context, answer) {
  const played = new WebSocketServer({ host: '127.0.0.1', port: 0 });
  context.after(() => played.close());
  await new Promise((resolve) => played.on('listening', resolve));
  const asked = [];
  played.on('connection', (socket) => socket.on('message', (text) => {
    const message = JSON.parse(text);
    const say = (more) => socket.send(JSON.stringify({ timestamp: 1, ...more }));
    const accept = (more) => say({ type: 'success', id: message.id, epoch: 1, ...more });
    const refuse = (code) => say({ type: 'error', id: message.id, code, message: '', retryAfter: 30 });
    asked.push(message);
    if (message.type === 'auth') accept();
    else answer(message, { accept, refuse, say });
  }));
  const url = `ws://127.0.0.1:${played.address().port}`;
  return { asked, client: open(context, { url, encoding: 'json' }) };
}

const storedAlert = (alertId) => ({ type: 'alert', streamId: 's', alertId, message: '', severity: 'low' });

/** What the relay sends for `alerts-since`, of the alerts that are stored. */
function replay(stored, { after, last }, { accept, say }) {
  const page = after === undefined ? stored.slice(-last) : stored.filter((alertId) => alertId > after);
  for (const alertId of page) say(storedAlert(alertId));
  accept({ more: false });
}

test('what is subscribed and published by who hears that the client is ready is asked for once', async (context) => {
  const { asked, client } = await play(context, (message, to) => {
    if (message.type === 'alerts-since') replay([], message, to);
    else to.accept({ streamId: 'made up' });
  });
  client.on('session', () => client.publish());
  client.on('state', ({ state }) => {
    if (state === 'ready') client.subscribe('s', { onAlert: () => {} });
  });
  await client.connect();
  await client.alert({ streamId: 's', message: 'all before this was answered' });
  await until(() => client._feeds.get('s')._held === null);
  const types = asked.map(({ type }) => type).sort();
  assert.deepEqual(types, ['alert', 'alerts-since', 'alerts-since', 'auth', 'register', 'subscribe']);
});

for (const asked of [1, 2]) {
  test(`who publishes what is being caught up with, question ${asked}, hears each alert once`, async (context) => {
    const stored = [1, 2, 3];
    let say = null;
    const { asked: all, client } = await play(context, (message, to) => {
      ({ say } = to);
      const work = () => (message.type === 'alerts-since' ? replay(stored, message, to) : to.accept({ streamId: 's' }));
      setTimeout(work, 40);
    });
    const heard = [];
    const onAlert = ({ alertId }) => heard.push(alertId);
    client.subscribe('s', { history: 2, onAlert });
    await client.connect();
    await until(() => all.filter(({ type }) => type === 'alerts-since').length === asked);
    client.publish({ streamId: 's', onAlert });
    stored.push(4);
    await until(() => client.publication.registered);
    await client.alert({ streamId: 's', message: 'all before this was answered' });
    say(storedAlert(5));
    await until(() => heard.at(-1) === 5);
    assert.deepEqual(heard, asked === 1 ? [3, 4, 5] : [2, 3, 4, 5]);
  });
}

test('an alert that comes before it is known which was the newest is heard', async (context) => {
  const stored = [1, 2];
  let refused = false;
  const { client } = await play(context, (message, to) => {
    if (message.type !== 'alerts-since') {
      to.accept();
      stored.push(3);
      to.say(storedAlert(3));
    } else if (refused) replay(stored, message, to);
    else {
      refused = true;
      to.refuse('STORE_UNAVAILABLE');
    }
  });
  const heard = [];
  client.subscribe('s', { onAlert: ({ alertId }) => heard.push(alertId) });
  await client.connect();
  await until(() => client._feeds.get('s').last === 3);
  assert.deepEqual(heard, [3]);
});

test('earlier alerts are given again, and none of those that come meanwhile is missed', async (context) => {
  const stored = [1, 2, 3, 4];
  const { asked, client } = await play(context, (message, to) => {
    if (message.type !== 'alerts-since') {
      to.accept();
      return;
    }
    if (message.last === 2) { // three are stored, and not sent to who is subscribed: so they are newer than the page
      stored.push(5, 6, 7);
      replay(stored, message, to);
      for (const alertId of [5, 6, 7]) to.say(storedAlert(alertId));
    } else replay(stored, message, to);
  });
  const heard = [];
  const subscription = client.subscribe('s', { onAlert: ({ alertId }) => heard.push(alertId) });
  const before = subscription.earlierAlerts(3); // asked for behind what is to be caught up with
  await client.connect();
  assert.deepEqual((await before).map(({ alertId, replayed, type }) => [alertId, replayed, type]), [2, 3, 4].map((id) => [id, true, undefined]));
  assert.deepEqual(heard, []);
  assert.deepEqual(await subscription.earlierAlerts(2), []); // the last two are new to `onAlert`
  await until(() => heard.at(-1) === 7);
  assert.deepEqual(heard, [5, 6, 7]);
  assert.equal(asked.filter(({ type }) => type === 'alerts-since').length, 6);
  const never = subscription.earlierAlerts(9);
  subscription.unsubscribe();
  assert.deepEqual(await never, []);
  assert.deepEqual(await subscription.earlierAlerts(9), []);
});

test('a subscription made anew gets no history of the one before', async (context) => {
  const { asked, client } = await play(context, (message, to) => {
    const work = () => (message.type === 'alerts-since' ? replay([1, 2, 3], message, to) : to.accept());
    setTimeout(work, 20);
  });
  const heard = [];
  const onAlert = ({ alertId }) => heard.push(alertId);
  await client.connect();
  client.subscribe('s', { history: 3, onAlert }).unsubscribe();
  client.subscribe('s', { history: 1, onAlert });
  await client.alert({ streamId: 's', message: 'all before this was answered' });
  await client.alert({ streamId: 's', message: 'and what was asked for then' });
  assert.deepEqual(heard, [3]);
  assert.equal(asked.filter(({ type }) => type === 'alerts-since').length, 3);
});

for (const way of ['subscribe', 'register']) {
  test(`no alert is missed before a ${way} that has to be sent again`, async (context) => {
    const stored = [1];
    let refused = false;
    const { client } = await play(context, (message, to) => {
      if (message.type === 'alerts-since') replay(stored, message, to);
      else if (message.type === way && !refused) {
        refused = true;
        to.refuse('TOO_MANY_CONNECTIONS');
        setTimeout(() => stored.push(2), 15);
      } else to.accept({ streamId: 's' });
    });
    const heard = [];
    const onAlert = ({ alertId }) => heard.push(alertId);
    if (way === 'subscribe') client.subscribe('s', { onAlert });
    else client.publish({ streamId: 's', onAlert });
    await client.connect();
    await until(() => stored.length === 2);
    await until(() => heard.length > 0);
    assert.deepEqual(heard, [2]);
  });
}

test('what cannot be encoded is refused, and holds nothing else up', async (context) => {
  const client = open(context);
  const streamId = newStreamId();
  const wrong = client.alert({ streamId, message: 'x', metadata: { share: NaN } });
  let refused = null;
  client.publish({ streamId, metadata: { share: NaN }, onError: (error) => { refused = error; } });
  const statuses = [];
  client.subscribe(streamId, { onStatus: ({ status }) => statuses.push(status) });
  await client.connect();
  await assert.rejects(wrong, { code: 'INVALID_MESSAGE', message: /finite/ });
  await until(() => statuses.length > 0);
  assert.equal(refused.code, 'INVALID_MESSAGE');
  client.publish({ streamId });
  await client.alert({ streamId, message: 'what can' });
});

test('a closed client hands out no frame that waited', async (context) => {
  const [phone, viewer] = [open(context), open(context)];
  const publication = phone.publish({ streamId: newStreamId() });
  await Promise.all([phone.connect(), viewer.connect()]);
  await until(() => publication.registered);
  const seen = [];
  let go = null;
  const held = new Promise((resolve) => { go = resolve; });
  const subscription = viewer.subscribe(publication.streamId, {
    policy: 'lossless',
    onFrame: ({ seq }) => {
      seen.push(seq);
      return held;
    },
  });
  await until(() => publication.consumers > 0);
  for (let turn = 0; turn < 3; turn += 1) publication.sendFrame(new Uint8Array(9));
  await until(() => subscription._frames.length === 2);
  viewer.close();
  go();
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.deepEqual(seen, [1]);
});

test('a subscription whose new terms are refused is gone on the relay, too', async (context) => {
  const [phone, viewer] = [open(context), open(context)];
  const publication = phone.publish({ streamId: newStreamId() });
  await Promise.all([phone.connect(), viewer.connect()]);
  await until(() => publication.registered);
  let refused = null;
  const onError = (error) => { refused = error; };
  const subscription = viewer.subscribe(publication.streamId, { onFrame: () => {}, onError });
  await until(() => publication.consumers === 1);
  subscription.update({ maxFps: 5000 });
  await until(() => refused);
  assert.equal(refused.code, 'INVALID_MESSAGE');
  assert.equal(subscription.active, false);
  await until(() => publication.consumers === 0, 'nobody to watch');
});

test('who shows frames again is given the latest, also where it was the last one shown', async (context) => {
  const [phone, viewer] = [open(context), open(context)];
  const publication = phone.publish({ streamId: newStreamId() });
  await Promise.all([phone.connect(), viewer.connect()]);
  await until(() => publication.registered);
  const seen = [];
  const show = (where) => ({ seq }) => { seen.push([where, seq]); };
  const subscription = viewer.subscribe(publication.streamId, { onFrame: show('before') });
  await until(() => publication.consumers === 1);
  publication.sendFrame(new Uint8Array(9));
  await until(() => seen.length === 1);
  subscription.update({ onFrame: null });
  await viewer.alert({ streamId: publication.streamId, message: 'all before this was answered' });
  subscription.update({ onFrame: show('after') });
  await until(() => seen.length === 2);
  assert.deepEqual(seen, [['before', 1], ['after', 1]]);
});

test('after an hour asleep any sign of life is asked for at once', async (context) => {
  const link = await openLink(relay);
  context.after(() => link.close());
  const client = open(context, { url: link.url, patience: 300, silence: 60_000 });
  await client.connect();
  link.break('silence');
  const lived = client._link;
  for (const name of ['_heardAt', '_answeredAt', '_tickedAt']) lived[name] -= 3_600_000;
  await until(() => lived._signs.answered !== null || lived.ended);
  assert.ok(lived._signs.heard, 'only an answer is waited for, which may take twice as long');
});

test('what a viewer acknowledges does not count as frames under way', async (context) => {
  const client = open(context, { maxBuffered: 10_000 });
  const publication = client.publish({ streamId: newStreamId() });
  await client.connect();
  await until(() => publication.registered);
  for (let turn = 0; turn < 300; turn += 1) client._link.send({ type: 'ack', streamId: 's'.repeat(64), seq: turn });
  await client.alert({ streamId: publication.streamId, message: 'all before this went through' });
  const frame = new Uint8Array(100);
  assert.deepEqual([publication.sendFrame(frame), publication.sendFrame(frame)], [true, true]);
});

test('what is given as undefined in an alert is as if it was not given', async (context) => {
  const client = open(context);
  const streamId = newStreamId();
  const heard = [];
  client.publish({ streamId, onAlert: (alert) => heard.push(alert) });
  await client.connect();
  const nothing = { severity: undefined, timestamp: undefined, metadata: undefined, alertKey: undefined };
  await client.alert({ streamId, message: 'x', ...nothing });
  await until(() => heard.length > 0);
  assert.equal(heard[0].severity, 'medium');
});
