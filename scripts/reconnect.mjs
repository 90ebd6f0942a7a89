// How the JavaScript client comes back; for scripts/figures.py, which says where the relay is.
// What it measures with is what its tests cut links with.
import { openLink } from '../tests/node/client/link.js';
import { HASTY, makeClient, Notes, openStage, relay, until } from '../tests/node/client/stage.js';

const [cuts, randomCuts] = process.argv.slice(2).map(Number);
const AT_ONCE = 10;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const between = (least, most) => least + Math.random() * (most - least);
const share = (values, part) => values[Math.min(values.length - 1, Math.floor(part * values.length))];

/** ms from the network being back to the next new frame, with the client's defaults. */
async function timeReturns(stage, number) {
  const link = await openLink(relay);
  const client = makeClient({ url: link.url });
  let frames = 0;
  client.subscribe(stage.streamId, { onFrame: () => { frames += 1; } });
  await client.connect();
  const times = [];
  while (times.length < number) {
    const before = frames;
    await until(() => frames > before + 2);
    await pause(5100); // a connection that lasted: pauses begin small again
    link.away = true;
    link.break('reset');
    await pause(between(0, 3000));
    link.away = false;
    const back = performance.now();
    const then = frames;
    await until(() => frames > then);
    times.push(performance.now() - back);
  }
  client.close();
  link.close();
  return times;
}

/** Cuts one viewer's link at random until that was done so often; returns what became of it. */
async function cutAtRandom(stage, number) {
  const plan = (index) => (index >= number ? null : {
    way: Math.random() < 0.5 ? 'up' : 'down',
    at: Math.ceil(between(1, 4000)),
    how: ['reset', 'end', 'silence', 'deaf'][Math.floor(Math.random() * 4)],
  });
  const link = await openLink(relay, plan);
  const client = makeClient({ ...HASTY, url: link.url });
  const wrong = [];
  const notes = new Notes();
  const checked = (note) => (event) => { try { note(event); } catch (error) { wrong.push(error.message); } };
  client.subscribe(stage.streamId, { onFrame: checked(notes.onFrame), onAlert: checked(notes.onAlert) });
  client.connect();
  while (link.connections <= number) await pause(20);
  const seen = notes.alerts.length;
  await until(() => notes.alerts.length > seen + 5);
  client.close();
  link.close();
  return { wrong, frames: notes.frames, missed: notes.missed, alerts: notes.alerts.length };
}

const stage = await openStage({ period: 20 });
const each = Math.ceil(cuts / AT_ONCE);
const times = (await Promise.all(Array.from({ length: AT_ONCE }, () => timeReturns(stage, each)))).flat();
times.sort((one, other) => one - other);
const [half, most] = [0.5, 0.99].map((part) => Math.round(share(times, part)));
console.log(`${times.length} returns of a network that was away for up to 3 s: first new frame after`
  + ` ${half} ms (p50), ${most} ms (p99)`);

const seconds = performance.now();
const outcomes = await Promise.all(
  Array.from({ length: AT_ONCE }, () => cutAtRandom(stage, Math.ceil(randomCuts / AT_ONCE))),
);
const sum = (of) => outcomes.reduce((total, outcome) => total + of(outcome), 0);
console.log(`${Math.ceil(randomCuts / AT_ONCE) * AT_ONCE} random cuts in ${Math.round((performance.now() - seconds) / 1000)} s:`
  + ` ${sum(({ alerts }) => alerts)} alerts and ${sum(({ frames }) => frames)} frames seen;`
  + ` lost, doubled or out of order: ${sum(({ wrong }) => wrong.length)};`
  + ` frames that passed while the link was cut or full: ${sum(({ missed }) => missed)}`);
for (const { wrong } of outcomes) for (const text of wrong) console.log(text);
await stage.close();
