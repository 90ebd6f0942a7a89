// A phone that sends each picture in several sizes, in virtual time, and what viewers may ask for.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { film, makeRelay, median, publish, sizeOf, some, stopTime } from './virtual.js';
import { LayerPlanner, RelayError } from '../../../relay/web/client/relay-client.js';

const MBIT = 125_000; // bytes
const LAYERS = [{ id: 'l', width: 320 }, { id: 'm', width: 640 }, { id: 'h', width: 1280 }];
const ALL = ['l', 'm', 'h'];

async function open(context, { rate = () => 20 * MBIT, needed = ALL, stream = {}, ...link } = {}) {
  const time = stopTime(context);
  const relay = makeRelay(time, { rate, needed, ...link });
  const publication = await publish(context, time, relay, {}, { layers: LAYERS, ...stream });
  return { time, relay, publication };
}

const between = (frames, from, to) => frames.filter(({ at }) => at >= from && at < to);
const idsOf = (plan) => plan?.pictures.map(({ layer }) => layer);

/** The frames of each picture. */
function picturesOf(frames) {
  const pictures = new Map();
  for (const frame of frames) pictures.set(frame.timestamp, [...(pictures.get(frame.timestamp) ?? []), frame]);
  return [...pictures.values()];
}

test('the relay is told of the layers, and frames of one picture come together, the smallest first', async (context) => {
  const { time, relay, publication } = await open(context, { rate: () => 60 * MBIT });
  await time.run(8000, film(time, publication));
  assert.deepEqual(relay.registered.layers, LAYERS);
  const pictures = picturesOf(between(relay.frames, 4000, 7900)).slice(1, -1); // the first and the last may be cut
  assert.ok(pictures.length > 3.5 * 14, `${pictures.length}`);
  for (const frames of pictures) {
    assert.deepEqual(frames.map(({ layer }) => layer), ALL);
    assert.deepEqual(frames.map(({ width }) => width), [320, 640, 1280]);
    assert.deepEqual(frames.map(({ quality }) => quality), [0.69, 0.69, 0.8]);
  }
});

for (const [rate, ids, leastFps, mostAge] of [
  [0.3, ['l'], 4, 300], [1, ['l'], 12, 130], [2, ['l'], 13, 130], [6, ['l', 'm'], 14, 130], [20, ALL, 14, 130],
]) {
  for (const jitter of [0, 10]) {
    test(`over ${rate} Mbit/s with jitter of ${jitter} ms pictures are fresh, and have the layers that it carries`, async (context) => {
      const { time, relay, publication } = await open(context, { rate: () => rate * MBIT, jitter });
      await time.run(15_000, film(time, publication));
      const frames = between(relay.frames, 3000, 15_000);
      const pictures = picturesOf(frames);
      assert.ok(pictures.length >= 12 * leastFps, `${pictures.length / 12} pictures a second`);
      const ages = pictures.map((each) => each.at(-1).age);
      assert.ok(median(ages) <= mostAge + 2 * jitter, `${median(ages)} ms old`);
      const usual = pictures.filter((each) => String(each.map(({ layer }) => layer)) === String(ids));
      assert.ok(usual.length > 0.9 * pictures.length, `${usual.length} of ${pictures.length} have ${ids}`);
      const carried = frames.reduce((total, { size }) => total + size, 0) / 12;
      assert.ok(carried > 0.5 * rate * MBIT || rate === 20, 'small pictures are not the way out');
    });
  }
}

for (const [rate, seed] of some([[1, 1], [2, 1], [3, 1], [5, 1], [7, 1], [9, 1], [12, 1], [16, 1], [12, 5]])) {
  test(`layers do not come and go over a link of ${rate} Mbit/s that does not change (${seed})`, async (context) => {
    const { time, relay, publication } = await open(context, { rate: () => rate * MBIT, jitter: 10, seed });
    await time.run(30_000, film(time, publication, { seed }));
    const pictures = picturesOf(between(relay.frames, 6000, 29_900)).slice(1, -1); // the first and the last may be cut
    const kinds = pictures.map((each) => String(each.map(({ layer }) => layer)));
    const changes = kinds.filter((each, index) => index > 0 && each !== kinds[index - 1]);
    assert.ok(changes.length <= 4, `${changes.length} changes: ${[...new Set(kinds)].join(' | ')}`);
  });
}

test('the large layer is left out on a link that is slow for a while, and comes back', async (context) => {
  const rate = (at) => (at >= 6000 && at < 14_000 ? 0.7 : 30) * MBIT;
  const { time, relay, publication } = await open(context, { rate });
  await time.run(22_000, film(time, publication));
  const layers = (from, to) => [...new Set(between(relay.frames, from, to).map(({ layer }) => layer))].sort();
  assert.deepEqual(layers(4000, 6000), ['h', 'l', 'm']);
  assert.deepEqual(layers(10_000, 14_000), ['l']);
  assert.deepEqual(layers(18_000, 22_000), ['h', 'l', 'm']);
  assert.ok(median(between(relay.frames, 10_000, 14_000).map(({ age }) => age)) < 200);
});

test('only layers that somebody needs are planned, and unknown ones are ignored', async (context) => {
  const demands = [];
  const stream = { onDemand: (consumers, layers) => demands.push([consumers, ...layers]) };
  const { time, relay, publication } = await open(context, { needed: ['l', 'x'], stream });
  await time.run(3000, film(time, publication));
  assert.deepEqual(idsOf(publication.next()), ['l']);
  relay.need(['h', 'm']);
  await time.run(3000, film(time, publication));
  await time.run(200);
  assert.deepEqual(publication.layers, ['m', 'h']);
  assert.deepEqual(idsOf(publication.next()), ['m', 'h']);
  relay.need([]);
  await time.run(100);
  assert.deepEqual([publication.layers, publication.next()], [[], null]);
  relay.need(['l'], 2);
  await time.run(100);
  assert.deepEqual(idsOf(publication.next()), ['l']);
  relay.need([], 0);
  await time.run(100);
  assert.equal(publication.next(), null);
  assert.deepEqual(demands, [[1, 'l'], [1, 'm', 'h'], [1], [2, 'l'], [0]]);
});

test('a layer that is needed alone takes all that the link carries', async (context) => {
  const { time, relay, publication } = await open(context, { rate: () => 3 * MBIT, needed: ['h'] });
  await time.run(8000, film(time, publication));
  const frames = between(relay.frames, 3000, 8000);
  assert.deepEqual([...new Set(frames.map(({ layer }) => layer))], ['h']);
  assert.ok(frames.length > 5 * 13 && frames.every(({ width }) => width < 1280));
});

test('the only layer never stops for a list that lacks it', async (context) => {
  const { publication } = await open(context, { needed: [], stream: { layers: LAYERS.slice(2) } });
  assert.deepEqual(idsOf(publication.next()), ['h']);
});

test('a relay that knows no layers gets the largest alone, as a frame without one', async (context) => {
  const { time, relay, publication } = await open(context, { needed: null });
  await time.run(3000, film(time, publication));
  assert.ok(relay.frames.length > 20);
  assert.ok(relay.frames.every(({ layer }) => layer === undefined));
  assert.deepEqual(publication.layers, ['h']);
  await time.run(100);
  assert.equal(publication.sendFrame(new Uint8Array(5), { layer: 'l', timestamp: 5 }), false);
  assert.equal(publication.sendFrame(new Uint8Array(5), { layer: 'h', timestamp: 5 }), true);
});

test('what is needed is learned anew on each connection', async (context) => {
  const { time, relay, publication } = await open(context, { needed: ['m'] });
  relay.need(['l']);
  await time.run(100);
  assert.deepEqual(publication.layers, ['l']);
  relay.socket.lose();
  await time.run(300);
  assert.deepEqual(publication.layers, ['m']);
});

test('of one picture all layers are sent or none', async (context) => {
  const { time, relay, publication } = await open(context, { rate: () => MBIT });
  const send = (timestamp, layer, keyframe) => publication.sendFrame(new Uint8Array(9000), { timestamp, layer, keyframe });
  assert.deepEqual([send(1, 'l'), send(1, 'm'), send(1, 'h')], [true, true, true]);
  for (let turn = 2; publication.hasRoom; turn += 1) assert.ok(send(turn, 'l'));
  assert.equal(send(100, 'l'), false);
  await time.run(3000);
  assert.equal(send(100, 'm'), false);
  assert.deepEqual([send(101, 'm', true), send(101, 'h', true)], [true, true]);
  await time.run(3000);
  assert.deepEqual([send(102, 'l', false), send(102, 'm', false), send(102, 'h', false)], [false, true, true]);
  await time.run(3000);
  assert.deepEqual(relay.frames.slice(-2).map(({ layer }) => layer), ['m', 'h']);
});

test('a keyframe is needed once for each layer that somebody needs', async (context) => {
  const { time, relay, publication } = await open(context, { needed: ['m'] });
  const send = (timestamp, layer) => publication.sendFrame(new Uint8Array(9), { timestamp, layer, keyframe: true });
  assert.equal(publication.needsKeyframe, true);
  send(1, 'm');
  assert.equal(publication.needsKeyframe, false);
  relay.need(['l', 'm']);
  await time.run(100);
  assert.equal(publication.needsKeyframe, true);
  for (const layer of ['l', 'm']) send(2, layer);
  assert.equal(publication.needsKeyframe, false);
});

test('a frame without a layer is of the largest, and one of an unknown layer is refused', async (context) => {
  const { time, relay, publication } = await open(context);
  assert.equal(publication.sendFrame(new Uint8Array(5)), true);
  await time.run(100);
  assert.equal(relay.frames[0].layer, 'h');
  assert.throws(() => publication.sendFrame(new Uint8Array(5), { layer: 'x' }), RelayError);
});

test('no layer is planned wider than the camera, nor less than 1.5 times as wide as the one below', async (context) => {
  const { time, relay, publication } = await open(context, { rate: () => 60 * MBIT });
  await time.run(6000, film(time, publication, { wanted: { fps: 15, width: 800 } }));
  const [last] = picturesOf(between(relay.frames, 5000, 5900)).slice(-1);
  assert.deepEqual(last.map(({ layer, width }) => [layer, width]), [['l', 320], ['m', 640]]);
});

test('layers without a width have the one that is asked for, or only a quality', () => {
  const planner = new LayerPlanner();
  const layers = [{ id: 'a', width: undefined }, { id: 'b', width: undefined }];
  planner.plan(layers, null, 0);
  planner.learn('a', 1000);
  planner.learn('b', 5000);
  const ids = (budget, at) => [...planner.plan(layers, budget, at).keys()];
  assert.deepEqual(ids(20_000, 1), ['a', 'b']);
  assert.deepEqual(ids(100, 2), ['a']);
});

/** Sends a picture of a planner, of a scene that takes so many bytes. */
function send(planner, layers, budget, at, scene = 1) {
  for (const [id, { width, quality }] of planner.plan(layers, budget, at)) planner.learn(id, scene * sizeOf({ width, quality }));
}

test('a layer that is not sent is expected to grow with the scene', () => {
  const planner = new LayerPlanner();
  for (let turn = 0; turn < 40; turn += 1) send(planner, LAYERS, 1e6, 100 * turn);
  for (let turn = 40; turn < 80; turn += 1) send(planner, LAYERS.slice(0, 2), 1e6, 100 * turn, 4);
  const others = 4 * (sizeOf({ width: 320, quality: 0.69 }) + sizeOf({ width: 640, quality: 0.69 }));
  assert.ok(!planner.plan(LAYERS, others + 1.3 * sizeOf({ width: 1280, quality: 0.8 }), 8000).has('h'));
});

test('a layer that was never sent is expected to take what others do', () => {
  const planner = new LayerPlanner();
  for (let turn = 0; turn < 10; turn += 1) send(planner, LAYERS.slice(0, 1), 15_000, 100 * turn);
  assert.deepEqual([...planner.plan(LAYERS, 15_000, 1000).keys()], ['l']);
});

test('a layer that was left out comes back with room to spare', () => {
  const planner = new LayerPlanner();
  const layers = [{ id: 'tiny', width: 100 }, { id: 'large', width: 1280 }];
  send(planner, layers, 1e6, 0);
  let budget = 1e6;
  while (planner.plan(layers, budget, 0).has('large')) budget *= 0.99;
  const leftOutAt = budget;
  while (!planner.plan(layers, budget, 60_000).has('large')) budget *= 1.01;
  assert.ok(budget > 1.15 * leftOutAt, `${budget} after ${leftOutAt}`);
});

const SHARE = sizeOf({ width: 1280, quality: 0.8 }) / 100;
const [FULL, TWO_FIT, ONE_FITS] = [400 * SHARE, 45 * SHARE, 10 * SHARE]; // what a picture may take: that of all layers, or fewer

/**
 * Sends 15 pictures a second. Of each part: until when it lasts in seconds, what a picture may take,
 * and the layers that are needed. Returns a function: what was sent between two times.
 */
function filmLayers(parts) {
  const planner = new LayerPlanner();
  const sent = [];
  for (const [until, budget, needed] of parts) {
    for (let at; (at = sent.length / 15) < until;) {
      const plan = planner.plan(LAYERS.filter(({ id }) => needed.includes(id)), budget, 1000 * at);
      sent.push({ at, layers: [...plan.keys()].join('') });
      for (const [id, step] of plan) planner.learn(id, sizeOf(step));
    }
  }
  return (from, to) => [...new Set(between(sent, from, to).map(({ layers }) => layers))];
}

test('a layer goes on in its pause when the one above is left out', () => {
  const sent = filmLayers([[1, FULL, 'lmh'], [2, TWO_FIT, 'lmh'], [3, ONE_FITS, 'lmh'], [4.5, FULL, 'lmh'], [6, TWO_FIT, 'lmh']]);
  assert.deepEqual(sent(3, 4), ['l']);
  assert.deepEqual(sent(4.2, 4.5), ['lmh']); // the pause of m lasts until 5
  assert.deepEqual(sent(4.6, 6), ['lm']);
});

test('a layer goes on in its pause when others are needed beside it', () => {
  const sent = filmLayers([[1, FULL, 'lmh'], [2, ONE_FITS, 'lmh'], [3.5, FULL, 'h'], [6, FULL, 'lmh']]);
  assert.deepEqual(sent(2, 3.5), ['h']);
  assert.deepEqual(sent(3.5, 6), ['lmh']);
});

test('a layer that nobody needs does not last', () => {
  const sent = filmLayers([[1, FULL, 'lmh'], [71, FULL, 'l'], [72, FULL, 'lmh'], [72.5, ONE_FITS, 'lmh'], [80, FULL, 'lmh']]);
  assert.deepEqual(sent(71, 72), ['lmh']);
  assert.deepEqual(sent(72.1, 75), ['l']);
  assert.deepEqual(sent(76, 80), ['lmh']);
});

test('a layer that does not last is left out for longer and longer', () => {
  const rounds = Array.from({ length: 24 }, (_, round) => [[5 * round + 4, FULL, 'lmh'], [5 * round + 5, ONE_FITS, 'lmh']]);
  const sent = filmLayers(rounds.flat());
  const parts = Array.from({ length: 24 }, (_, round) => sent(5 * round, 5 * round + 4).includes('lmh'));
  const absences = parts.join(' ').split('true').map((each) => each.split('false').length - 1);
  assert.ok(parts.filter(Boolean).length <= 7, `${parts}`);
  assert.ok(Math.max(...absences) >= 6, `${absences}`);
});

test('subscriptions say what they can show', async (context) => {
  const asked = [];
  const onReceive = (message) => { if (message.type === 'subscribe') asked.push([message.maxWidth, message.layer]); };
  const { time, relay, publication } = await open(context, { onReceive });
  const frames = [];
  const subscription = publication._client.subscribe('door', { maxWidth: 319.2, onFrame: ({ layer }) => frames.push(layer) });
  for (const terms of [{ maxWidth: 0 }, { maxWidth: 1e6 }, { maxWidth: null, layer: 'm' }, { layer: null }]) subscription.update(terms);
  await time.run(200);
  assert.deepEqual(asked, [[320, undefined], [1, undefined], [65_535, undefined], [undefined, 'm'], [undefined, undefined]]);
  relay.say({ type: 'video-frame', streamId: 'door', seq: 1, timestamp: 1, receivedAt: 1, layer: 'm', data: new Uint8Array(3) });
  await time.run(100);
  assert.deepEqual(frames, ['m']);
});
