// What a phone sends over links of all kinds, in virtual time: fresh pictures, as good as the link allows.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { film, makeRelay, median, publish, some, stopTime } from './virtual.js';
import { Ladder, Uplink } from '../../../relay/web/client/relay-client.js';

const MBIT = 125_000; // bytes
const DELAY = 20;

async function open(context, { options, ...link }) {
  const time = stopTime(context);
  const relay = makeRelay(time, { delay: () => DELAY, ...link });
  return { time, relay, publication: await publish(context, time, relay, options) };
}

const between = (frames, from, to) => frames.filter(({ at }) => at >= from && at < to);
const ages = (frames) => frames.map(({ age }) => age);

for (const rate of some([0.5, 1, 5])) {
  for (const jitter of some([0, 10, 30])) {
    test(`frames of one size fill ${rate} Mbit/s with jitter of ${jitter} ms and do not queue`, async (context) => {
      const { time, relay, publication } = await open(context, { rate: () => rate * MBIT, jitter });
      const size = 12_000;
      let most = 0;
      await time.run(20_000, () => {
        if (time.now % 5 === 0) publication.sendFrame(new Uint8Array(size));
        if (time.now > 8000) most = Math.max(most, relay.underWay);
      });
      const frames = between(relay.frames, 8000, 20_000);
      const alone = (1000 * size) / (rate * MBIT) + DELAY + jitter / 2;
      const bound = jitter <= 10 ? 1.1 * alone + 5 : 2.5 * alone;
      assert.ok(median(ages(frames)) <= bound, `a frame is ${median(ages(frames))} ms old, alone ${alone}`);
      const full = (rate * MBIT * 12) / size;
      assert.ok(frames.length > 0.8 * full, `${frames.length} frames of ${full}`);
      const held = (rate * MBIT * 2 * (DELAY + jitter)) / 1000;
      assert.ok(most <= held + 2 * size + 500, `${most} bytes under way on a link that holds ${held}`);
    });
  }
}

for (const [rate, leastFps, mostAge] of some([[0.5, 7, 250], [1, 14, 150], [5, 18, 110], [20, 18, 100]])) {
  test(`pictures over ${rate} Mbit/s are fresh, and as many as may be`, async (context) => {
    const { time, relay, publication } = await open(context, { rate: () => rate * MBIT });
    await time.run(10_000, film(time, publication, { wanted: { fps: 25, width: 1280 } }));
    const frames = between(relay.frames, 2000, 10_000);
    assert.ok(frames.length >= 8 * leastFps, `${frames.length / 8} pictures a second`);
    assert.ok(median(ages(frames)) <= mostAge, `${median(ages(frames))} ms old`);
    assert.ok(Math.max(...ages(frames)) <= 1.5 * mostAge, `${Math.max(...ages(frames))} ms old`);
  });
}

test('pictures are the best where the link carries them, and keep their size where it does not change', async (context) => {
  const { time, relay, publication } = await open(context, { rate: () => 40 * MBIT, jitter: 10 });
  await time.run(10_000, film(time, publication));
  const [{ width, quality }] = relay.frames.slice(-1);
  assert.deepEqual([width, quality], [1280, 0.8]);
  const kinds = between(relay.frames, 5000, 10_000).map((each) => each.width);
  assert.deepEqual([...new Set(kinds)], [1280]);
});

for (const jitter of [0, 10]) {
  for (const seed of some([1, 2, 3])) {
    test(`after a link was slow the pictures come back to the top (jitter ${jitter}, ${seed})`, async (context) => {
      const [drop, recovery, end] = [5000, 15_000, 20_000];
      const rate = (at) => (at >= drop && at < recovery ? 0.5 : 25) * MBIT;
      const { time, relay, publication } = await open(context, { rate, jitter, seed });
      const roll = film(time, publication, { seed });
      await time.run(drop, roll);
      let underWay = 0; // also what is sent before the drop can be noticed
      await time.run(1000 / 15, () => {
        roll();
        underWay = Math.max(underWay, relay.underWay);
      });
      await time.run(end - time.now, roll);

      const first = relay.frames.find(({ at, width }) => at > drop && width === 320);
      const cleared = drop + (1000 * underWay) / (0.5 * MBIT) + DELAY;
      assert.ok(first.at < cleared + 300, `the first small picture came at ${first.at}, others had until ${cleared}`);
      const slow = between(relay.frames, first.at + 1000, recovery);
      assert.ok(median(ages(slow)) < 250 + jitter, `${median(ages(slow))} ms old`);

      const { steps } = new Ladder(1280);
      const climb = 200 * Math.ceil(Math.log(1 / steps.at(-1).share) / Math.log(1.5));
      const back = relay.frames.find(({ at, width, quality }) => at > recovery && width === 1280 && quality === 0.8);
      assert.ok(back?.at <= recovery + 1500 + climb, `back at the top at ${back?.at}`);
      const after = between(relay.frames, back.at, end).filter(({ width }) => width === 1280);
      assert.ok(after.length > 0.9 * between(relay.frames, back.at, end).length, 'it did not stay there');
    });
  }
}

for (const rate of some([0.7, 1, 2, 3, 5, 9])) {
  test(`pictures do not change over a link of ${rate} Mbit/s that does not`, async (context) => {
    const { time, relay, publication } = await open(context, { rate: () => rate * MBIT, jitter: 10 });
    await time.run(25_000, film(time, publication));
    const frames = between(relay.frames, 5000, 25_000).map(({ width, quality }) => `${width} ${quality}`);
    const changes = frames.filter((each, index) => index > 0 && each !== frames[index - 1]);
    assert.ok(changes.length <= 4, `${changes}`);
  });
}

test('a link that becomes longer is filled again', async (context) => {
  const rate = 2 * MBIT;
  const delay = (at) => (at < 5000 ? 20 : 120);
  const { time, relay, publication } = await open(context, { rate: () => rate, delay });
  const size = 10_000;
  await time.run(40_000, () => publication.sendFrame(new Uint8Array(size)));
  const frames = between(relay.frames, 30_000, 40_000);
  assert.ok(frames.length * size > 0.8 * 10 * rate, `${frames.length}`);
  assert.ok(median(ages(frames)) < 120 + 1.5 * (1000 * size) / rate);
});

test('after an answer that is late the next picture is the least, and the one after as before', async (context) => {
  let came = 0;
  const answer = (frames, say) => {
    came = frames;
    if (frames === 60) setTimeout(() => say(60), 110);
    else if (frames > 60 && frames < 63) setTimeout(() => say(frames), 110);
    else say(frames);
  };
  const { time, relay, publication } = await open(context, { rate: () => 5 * MBIT, answer });
  await time.run(8000, film(time, publication, { wanted: { fps: 10, width: 1280 } }));
  assert.ok(came > 65);
  const widths = relay.frames.map(({ width, quality }) => `${width} ${quality}`);
  assert.notEqual(widths[58], '320 0.3');
  assert.ok(widths.slice(60, 64).includes('320 0.3'), `${widths.slice(55, 70)}`);
  assert.ok(!widths.slice(66).includes('320 0.3'), `${widths.slice(55, 75)}`);
});

test('a gap of 0.3 s is no slower link', async (context) => {
  const gap = (at) => at >= 5000 && at < 5300;
  const { time, relay, publication } = await open(context, { rate: (at) => (gap(at) ? 0 : 5 * MBIT) });
  await time.run(8000, film(time, publication));
  const before = median(between(relay.frames, 3000, 5000).map(({ size }) => size));
  const after = between(relay.frames, 5800, 8000);
  assert.ok(median(after.map(({ size }) => size)) > 0.9 * before);
  assert.ok(Math.max(...ages(after)) < 120);
});

test('a scene that needs twice as many bytes makes no pictures older', async (context) => {
  const scene = (at) => (at > 4000 && at < 8000 ? 2 : 1);
  const { time, relay, publication } = await open(context, { rate: () => 3 * MBIT });
  await time.run(12_000, film(time, publication, { scene }));
  for (const from of [3000, 5000, 10_000]) {
    assert.ok(median(ages(between(relay.frames, from, from + 1000))) < 120);
  }
  const width = (from) => median(between(relay.frames, from, from + 1000).map((each) => each.width));
  assert.ok(width(3000) > width(6000));
  const size = (from) => median(between(relay.frames, from, from + 1000).map((each) => each.size));
  assert.ok(Math.abs(size(11_000) / size(3000) - 1) < 0.15, `${size(11_000)} after ${size(3000)} bytes`);
});

test('without a width only the quality is planned, which is the least where nothing helps', async (context) => {
  const { time, relay, publication } = await open(context, { rate: () => MBIT / 2 });
  await time.run(8000, film(time, publication, { wanted: { fps: 15 } }));
  assert.ok(between(relay.frames, 5000, 8000).every(({ quality, width }) => quality === 0.3 && width === undefined));
});

const plans = (frames) => frames.map(({ at, width, quality }) => [at, width, quality]);

test('answers that come twice, late, in any order, or of frames never sent change nothing', async (context) => {
  const seen = [];
  for (const answer of [
    (frames, say) => say(frames),
    (frames, say) => {
      for (const number of [frames + 1000, frames - 3, -1, frames, frames, frames - 1]) say(number);
    },
  ]) {
    const { time, relay, publication } = await open(context, { rate: () => 2 * MBIT, answer });
    await time.run(5000, film(time, publication));
    seen.push(plans(relay.frames));
    publication._client.close();
    context.mock.reset();
  }
  assert.ok(seen[0].length > 50);
  assert.deepEqual(seen[1], seen[0]);
});

test('a relay that answers for several frames at once is measured as well', async (context) => {
  let come = 0;
  const answer = (frames, say) => {
    if (come === 0) {
      setTimeout(() => {
        say(come);
        come = 0;
      }, 30);
    }
    come = frames;
  };
  const { time, relay, publication } = await open(context, { rate: () => 2 * MBIT, answer });
  await time.run(10_000, () => publication.sendFrame(new Uint8Array(5000)));
  assert.ok(Math.abs(publication.bandwidth / (2 * MBIT) - 1) < 0.25, `${publication.bandwidth}`);
  assert.ok(median(ages(between(relay.frames, 5000, 10_000))) < 150);
});

for (const [kind, answer] of [['does not know of it', null], ['never answers', () => {}]]) {
  test(`a relay that ${kind} is sent frames as ever, and pictures of the middle`, async (context) => {
    const { time, relay, publication } = await open(context, { rate: () => 4 * MBIT, answer });
    let most = 0;
    await time.run(10_000, film(time, publication));
    const frames = between(relay.frames, 3000, 10_000);
    assert.ok(frames.length > 7 * 12, `${frames.length}`);
    assert.ok(frames.every(({ width, quality }) => width === 640 && quality === 0.61));
    assert.equal(publication.bandwidth, null);
    await time.run(5000, () => {
      publication.sendFrame(new Uint8Array(20_000));
      most = Math.max(most, relay.underWay);
    });
    assert.ok(most > 240_000 && most < 300_000, `${most} bytes under way`);
    assert.equal(publication.hasRoom, false);
  });
}

test('a relay that stops answering is sent frames as ever after a while', async (context) => {
  const answer = (frames, say) => { if (frames < 50) say(frames); };
  const { time, relay, publication } = await open(context, { rate: () => 4 * MBIT, answer });
  await time.run(60_000, film(time, publication));
  assert.ok(relay.frames.length > 200, `${relay.frames.length}`);
  assert.equal(publication.bandwidth, null);
});

test('a new connection is measured anew, and its frames are counted from none', async (context) => {
  const { time, relay, publication } = await open(context, { rate: () => 2 * MBIT });
  const roll = film(time, publication);
  await time.run(4000, roll);
  const { bandwidth } = publication;
  relay.socket.lose();
  assert.equal(publication.bandwidth, null);
  assert.equal(publication.hasRoom, false);
  assert.equal(publication.next(), null);
  await time.run(4000, roll);
  assert.ok(Math.abs(publication.bandwidth / bandwidth - 1) < 0.2);
  assert.ok(relay.frames.length - relay.before > 30);
});

test('no picture is planned while nobody watches', async (context) => {
  const { time, relay, publication } = await open(context, { rate: () => 2 * MBIT });
  assert.notEqual(publication.next(), null);
  relay.say({ type: 'status', streamId: 's', epoch: 1, status: 'online', consumers: 0 });
  await time.run(100);
  assert.equal(publication.next(), null);
  assert.equal(publication.hasRoom, true);
});

test('a picture is planned now and then where that is wanted while nobody watches', async (context) => {
  const { time, relay, publication } = await open(context, { rate: () => 2 * MBIT });
  relay.say({ type: 'status', streamId: 's', epoch: 1, status: 'online', consumers: 0, standby: 1 });
  await time.run(100);
  let planned = 0;
  for (let turn = 0; turn < 40; turn += 1) {
    if (publication.next() !== null) planned += 1;
    await time.run(100);
  }
  assert.ok(planned >= 3 && planned <= 5, `${planned} in 4 s`);
  relay.say({ type: 'status', streamId: 's', epoch: 1, status: 'online', consumers: 0 });
  await time.run(100);
  assert.equal(publication.isWanted, false);
  await time.run(2000);
  assert.equal(publication.next(), null);
});

test('the bandwidth falls at once while a frame takes longer than it should', () => {
  const uplink = new Uplink();
  uplink.frameSent(10_000, 0);
  uplink.answer(1, 100);
  assert.equal(uplink.bandwidth(100), 100_000);
  uplink.frameSent(10_000, 100);
  assert.equal(uplink.bandwidth(150), 100_000);
  assert.ok(Math.abs(uplink.bandwidth(1100) - 20_000 / 1.1) < 1);
  assert.equal(uplink.hasRoom(1100), false);
});

/** An uplink that has sent frames of 10 kB, each answered within 100 ms. */
function measured(number) {
  const uplink = new Uplink();
  for (let turn = 0; turn < number; turn += 1) {
    uplink.frameSent(10_000, 100 * turn);
    uplink.answer(turn + 1, 100 * (turn + 1));
  }
  return uplink;
}

test('an answer that is late by far counts until the next, and alone', () => {
  const uplink = measured(5);
  uplink.frameSent(10_000, 500);
  uplink.answer(6, 1500);
  assert.equal(uplink.bandwidth(1500), 10_000);
  uplink.frameSent(10_000, 1500);
  uplink.answer(7, 1600);
  assert.equal(uplink.bandwidth(1600), 100_000);
});

test('what is old does not count', () => {
  const uplink = measured(5);
  for (let turn = 0; turn < 10; turn += 1) {
    uplink.frameSent(10_000, 500 + 200 * turn);
    uplink.answer(6 + turn, 700 + 200 * turn);
  }
  assert.equal(uplink.bandwidth(2500), 50_000);
});

test('frames that are answered at once do not count the time between them', () => {
  const uplink = new Uplink();
  uplink.frameSent(10_000, 0);
  uplink.frameSent(10_000, 1000);
  uplink.answer(2, 1100);
  assert.equal(uplink.bandwidth(1100), 100_000);
});

test('a ladder is climbed after 0.2 s with room to spare, by half the bytes more at most', () => {
  const ladder = new Ladder(1280);
  const size = ({ share }) => 100_000 * share;
  const choose = (budget, at) => {
    const step = ladder.choose(budget, at);
    ladder.learn(step, size(step));
    return size(step);
  };
  choose(100_000, 0);
  const low = choose(10_000, 10);
  assert.ok(low <= 10_000);
  assert.equal(choose(1.1 * low, 1000), low);
  assert.equal(choose(1.1 * low, 2000), low);
  assert.equal(choose(100_000 * 1.3, 3000), low);
  assert.equal(choose(100_000 * 1.3, 3199), low);
  const higher = choose(100_000 * 1.3, 3200);
  assert.ok(higher > 1.2 * low && higher <= 1.5 * low);
  assert.equal(choose(100_000 * 1.3, 3399), higher);
});

test('what a step takes beside the last is learned, and what those beyond it take', () => {
  const ladder = new Ladder(1280);
  const [top] = ladder.steps;
  ladder.learn(ladder.choose(null, 0), 30_000);
  const before = ladder.choose(30_000, 0);
  const other = ladder.choose(25_000, 1);
  assert.notEqual(other, before);
  ladder.learn(other, 40_000); // this encoder makes it larger
  const least = ladder.choose(25_000, 2);
  assert.ok(least.share < 0.65 * other.share, 'a step is taken for as small as it was');
  assert.equal(ladder.steps[0], top);
});

test('a ladder goes down in steps of a tenth to a third of bytes, and never above what was asked for', () => {
  for (const width of [undefined, 1920, 1280, 1000, 640, 320, 160]) {
    const { steps } = new Ladder(width);
    for (const [index, step] of steps.entries()) {
      assert.ok(step.quality <= 0.8 && step.quality >= 0.3);
      assert.ok(width === undefined ? step.width === undefined : step.width <= width);
      if (index === 0) continue;
      const part = step.share / steps[index - 1].share;
      assert.ok(part > 0.5 && part <= 0.9, `${part} at ${index} of ${width}`);
    }
    assert.deepEqual([steps[0].width, steps[0].quality, steps.at(-1).quality], [width, 0.8, 0.3]);
  }
});
