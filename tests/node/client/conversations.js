// The two conversations that a link may cut anywhere: a viewer's and a phone's.
import assert from 'node:assert/strict';

import { openLink } from './link.js';
import { HASTY, makeClient, newStreamId, Notes, relay, rollCamera, tokens, until } from './stage.js';

/** Until it is cut: a connection may end earlier, where a busy machine is late. */
const cutOnce = (plan) => () => (plan.done ? null : plan);

/** A viewer whose connection is cut has every alert once, and goes on with new frames. */
export async function view(stage, plan) {
  const link = await openLink(relay, cutOnce(plan));
  const client = makeClient({ ...HASTY, url: link.url, encoding: plan.encoding ?? 'auto' });
  const failures = [];
  const notes = new Notes();
  const checked = (note) => (event) => {
    try {
      note(event);
    } catch (error) {
      failures.push(error);
    }
  };
  client.subscribe(stage.streamId, { onFrame: checked(notes.onFrame), onAlert: checked(notes.onAlert) });
  client.connect();
  try {
    await until(() => link.cuts === 1 && link.connections > 1, 'the cut, and another connection');
    const before = { frames: notes.frames, alerts: notes.alerts.length };
    await until(
      () => failures.length || (notes.frames > before.frames + 2 && notes.alerts.length > before.alerts + 1),
      'frames and alerts after the cut',
    );
    assert.deepEqual(failures, []);
    assert.equal(client.state, 'ready');
    return notes;
  } finally {
    client.close();
    link.close();
  }
}

/** A phone whose connection is cut has its alerts stored once each, and goes on sending. */
export async function stream(viewer, plan) {
  const streamId = newStreamId();
  const link = await openLink(relay, cutOnce(plan));
  const client = makeClient({ ...HASTY, url: link.url, encoding: plan.encoding ?? 'auto' });
  const failures = [];
  const notes = new Notes();
  const alerted = [];
  let subscribed = false;
  const seen = viewer.subscribe(streamId, {
    onFrame: (frame) => { try { notes.onFrame(frame); } catch (error) { failures.push(error); } },
    onAlert: ({ message }) => alerted.push(message),
    onStatus: () => { subscribed = true; },
  });
  const stop = rollCamera(client.publish({ streamId }));
  client.connect();
  try {
    await until(() => subscribed && (client.publication.registered || link.cuts), 'a first registration');
    const first = ['a', 'b', 'c'].map((message) => client.alert({ streamId, message }));
    await until(() => link.cuts === 1, 'the cut');
    const before = notes.frames;
    const last = client.alert({ streamId, message: 'd' });
    await Promise.all([...first, last]);
    await until(() => failures.length || notes.frames > before + 2, 'frames after the cut');
    await until(() => new Set(alerted).size === 4, 'all alerts at the viewer');
    assert.deepEqual(failures, []);
    assert.deepEqual([...alerted].sort(), ['a', 'b', 'c', 'd']);
  } finally {
    stop();
    client.close();
    seen.unsubscribe();
    link.close();
  }
}

/** Runs work on each item, so many at a time. */
export async function inParallel(items, width, work) {
  const left = [...items];
  await Promise.all(Array.from({ length: width }, async () => {
    while (left.length) await work(left.shift());
  }));
}

export { tokens };
