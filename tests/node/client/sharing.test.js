// What players of one page share: a connection by token function and relay, a subscription by stream.
import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';

import { joinClient, joinConnection } from '../../../relay/web/client/player/sharing.js';

/** A client that keeps what it was asked. */
class FakeClient {
  constructor() {
    this.state = 'ready';
    this.subscriptions = [];
  }

  subscribe(streamId, options) {
    const subscription = {
      streamId, options, status: 'offline', epoch: 0, updates: [], active: true,
      update(more) {
        this.updates.push(more);
        Object.assign(this.options, more);
      },
      unsubscribe() { this.active = false; },
      earlierAlerts(count) {
        return new Promise((resolve) => { this.recall = { count, resolve }; });
      },
    };
    this.subscriptions.push(subscription);
    return subscription;
  }
}

function viewer(terms, history = null) {
  const told = [];
  return {
    terms: terms && { policy: 'latest', maxFps: null, maxWidth: null, layer: null, ...terms },
    history,
    told,
    onFrame: (frame) => told.push(['frame', frame]),
    onAlert: (alert) => told.push(['alert', alert]),
    onStatus: ({ status }) => told.push(['status', status]),
    onError: ({ code }) => told.push(['error', code]),
  };
}

let client;
let connection;
beforeEach(() => {
  client = new FakeClient();
  connection = joinClient(client);
});

const only = () => {
  assert.equal(client.subscriptions.length, 1);
  return client.subscriptions[0];
};

test('players of one stream have one subscription, which is for the most that one of them wants', () => {
  const small = viewer({ maxWidth: 320, maxFps: 5 });
  const stream = connection.watch('door', small);
  assert.equal(only().options.maxWidth, 320);
  assert.equal(only().options.maxFps, 5);
  const large = viewer({ maxWidth: 1280, policy: 'lossless' });
  assert.equal(connection.watch('door', large), stream);
  const { policy, maxWidth, maxFps } = only().options;
  assert.deepEqual({ policy, maxWidth, maxFps }, { policy: 'lossless', maxWidth: 1280, maxFps: null });
  stream.remove(large);
  assert.equal(only().options.maxWidth, 320);
  assert.equal(only().options.policy, 'latest');
});

test('a layer is asked for only while all want the same', () => {
  const one = viewer({ layer: '320' });
  const stream = connection.watch('door', one);
  assert.equal(only().options.layer, '320');
  const other = viewer({ layer: '640' });
  connection.watch('door', other);
  assert.equal(only().options.layer, null);
  other.terms = { ...other.terms, layer: '320' };
  stream.change();
  assert.equal(only().options.layer, '320');
});

test('frames are asked for only while somebody sees them', () => {
  const hidden = viewer(null);
  const stream = connection.watch('door', hidden);
  assert.equal(only().options.onFrame, null);
  hidden.terms = viewer({}).terms;
  stream.change(hidden);
  assert.equal(typeof only().options.onFrame, 'function');
  only().options.onFrame({ seq: 1 });
  assert.deepEqual(hidden.told.at(-1), ['frame', { seq: 1 }]);
  hidden.terms = null;
  stream.change();
  assert.equal(only().options.onFrame, null);
});

test('nothing is asked again while nothing changes', () => {
  const one = viewer({ maxWidth: 320 });
  const stream = connection.watch('door', one);
  stream.change();
  stream.change();
  assert.deepEqual(only().updates, []);
});

test('a player that comes late gets the newest picture at once, but no frame that builds on others', async () => {
  connection.watch('door', viewer({}));
  await only().options.onFrame({ seq: 7 });
  const late = viewer({});
  connection.watch('door', late);
  assert.deepEqual(late.told, [['frame', { seq: 7 }]]);
  await only().options.onFrame({ seq: 8, keyframe: true });
  await only().options.onFrame({ seq: 9, keyframe: false });
  const later = viewer({});
  connection.watch('door', later);
  assert.deepEqual(later.told, []);
  assert.equal(only().updates.length, 2); // each asked for the latest keyframe
});

test('a player that comes right after a keyframe gets it: the subscription has it, and takes it only once', async () => {
  connection.watch('door', viewer({}));
  await only().options.onFrame({ seq: 8, keyframe: true });
  const late = viewer({});
  connection.watch('door', late);
  assert.deepEqual(late.told, [['frame', { seq: 8, keyframe: true }]]);
});

test('what was learned of a stream is told to who comes late', () => {
  connection.watch('door', viewer(null));
  Object.assign(only(), { status: 'streaming', epoch: 3, metadata: {} });
  const late = viewer(null);
  connection.watch('door', late);
  assert.deepEqual(late.told, [['status', 'streaming']]);
});

test('alerts go to those who want them, and earlier ones are asked for once', () => {
  const quiet = viewer({});
  connection.watch('door', quiet);
  assert.equal(only().options.onAlert, undefined);
  const loud = viewer({}, 5);
  connection.watch('door', loud);
  assert.equal(client.subscriptions.length, 2); // a subscription cannot begin to have alerts
  assert.equal(client.subscriptions[0].active, false);
  const { options } = client.subscriptions[1];
  assert.equal(options.history, 5);
  options.onAlert({ alertId: 1 });
  assert.deepEqual(loud.told, [['alert', { alertId: 1 }]]);
  assert.deepEqual(quiet.told, []);
});

test('who comes late gets earlier alerts, then those that came meanwhile, and each once', async () => {
  const first = viewer({}, 0);
  connection.watch('door', first);
  const late = viewer({}, 3);
  const stream = connection.watch('door', late);
  const { recall, options } = only();
  assert.equal(recall.count, 3);
  const alerts = [1, 2, 3].map((alertId) => ({ alertId }));
  options.onAlert(alerts[1]);
  options.onAlert(alerts[2]);
  assert.deepEqual(late.told, []);
  recall.resolve(alerts.slice(0, 2));
  await Promise.resolve();
  await Promise.resolve();
  options.onAlert({ alertId: 4 });
  assert.deepEqual(late.told.map(([, { alertId }]) => alertId), [1, 2, 3, 4]);
  assert.deepEqual(first.told.map(([, { alertId }]) => alertId), [2, 3, 4]);

  const gone = viewer({}, 3);
  connection.watch('door', gone);
  const pending = only().recall;
  stream.remove(gone);
  pending.resolve(alerts);
  await Promise.resolve();
  await Promise.resolve();
  assert.deepEqual(gone.told, []);
});

test('the last one ends the subscription, and the next one begins another', () => {
  const one = viewer({});
  connection.watch('door', one).remove(one);
  assert.equal(only().active, false);
  connection.watch('door', viewer({}));
  assert.equal(client.subscriptions.length, 2);
});

test('a stream that may not be watched is told to all, and tried again by the next', () => {
  const one = viewer({});
  const two = viewer({});
  const stream = connection.watch('door', one);
  connection.watch('door', two);
  only().options.onError({ code: 'UNAUTHORIZED' });
  assert.deepEqual(one.told.at(-1), ['error', 'UNAUTHORIZED']);
  assert.deepEqual(two.told.at(-1), ['error', 'UNAUTHORIZED']);
  connection.watch('door', viewer({}));
  assert.equal(client.subscriptions.length, 2);
  stream.remove(one); // those who failed leave, and the next one shares what there is now
  stream.remove(two);
  connection.watch('door', viewer({}));
  assert.equal(client.subscriptions.length, 2);
});

test('a client that is closed refuses, and nothing throws', () => {
  client.subscribe = () => { throw Object.assign(new Error('closed'), { code: 'CLOSED' }); };
  const one = viewer({});
  connection.watch('door', one);
  assert.deepEqual(one.told, [['error', 'CLOSED']]);
});

test('one token function and one relay are one connection, which the last one closes', async () => {
  globalThis.WebSocket ??= class {};
  const never = () => new Promise(() => {});
  const other = () => new Promise(() => {});
  const first = joinConnection('http://127.0.0.1:9/', never);
  assert.equal(joinConnection('http://127.0.0.1:9/', never), first);
  const foreign = joinConnection('http://127.0.0.1:9/', other);
  const elsewhere = joinConnection('http://127.0.0.1:9/x/', never);
  assert.notEqual(foreign, first);
  assert.notEqual(elsewhere, first);
  assert.equal(elsewhere.client._url, 'ws://127.0.0.1:9/x/streams/subscribe');
  const turn = () => new Promise((resolve) => { setTimeout(resolve, 5); });
  first.leave();
  await turn();
  assert.notEqual(first.client.state, 'closed');
  first.leave();
  assert.equal(joinConnection('http://127.0.0.1:9/', never), first); // moved: it comes back at once
  await turn();
  assert.notEqual(first.client.state, 'closed');
  first.leave();
  await turn();
  assert.equal(first.client.state, 'closed');
  assert.notEqual(joinConnection('http://127.0.0.1:9/', never), first);
  for (const each of [foreign, elsewhere]) each.leave();
});
