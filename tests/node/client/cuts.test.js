// The client on a link that dies at every step of the conversation.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { inParallel, stream, view } from './conversations.js';
import { openLink } from './link.js';
import { HASTY, makeClient, Notes, openStage, relay, until } from './stage.js';

/** Bytes of a whole conversation, and how far apart the cuts are: STEP=1 tries each byte. */
const SPAN = { up: 1400, down: 3600 };
const STEP = Number(process.env.STEP ?? 61);
const HOW = ['reset', 'end', 'silence', 'deaf'];
const AT_ONCE = 8;
/** Of one link, one after the other. */
const CUTS = process.env.SHARE ? 9 : 25;

let stage;
let viewer;
before(async () => {
  stage = await openStage();
  viewer = makeClient();
  await viewer.connect();
});
after(async () => {
  viewer?.close();
  await stage?.close();
});

function* plans() {
  let turn = 0;
  for (const way of ['up', 'down']) {
    for (let at = 0; at < SPAN[way]; at += STEP) {
      for (const how of STEP === 1 ? HOW : [HOW[turn % HOW.length]]) {
        yield { way, at: Math.max(1, at), how, encoding: turn % 3 ? 'auto' : 'json' };
      }
      turn += 1;
    }
  }
}

async function tryAll(conversation) {
  const failed = [];
  await inParallel(plans(), AT_ONCE, async (plan) => {
    try {
      await conversation(plan);
    } catch (error) {
      failed.push(`${JSON.stringify(plan)}: ${error.stack}`);
    }
  });
  assert.equal(failed.join('\n'), '');
}

test('a viewer cut anywhere has each alert once and goes on with new frames', () =>
  tryAll((plan) => view(stage, plan)));

test('a phone cut anywhere has each alert stored once and goes on sending', () =>
  tryAll((plan) => stream(viewer, plan)));

test('a viewer on a link that is cut again and again misses no alert', async () => {
  let connection = 0;
  const link = await openLink(relay, () => {
    connection += 1;
    return connection > CUTS ? null : { way: connection % 2 ? 'down' : 'up', at: 900 + 97 * connection, how: HOW[connection % 3] };
  });
  const client = makeClient({ ...HASTY, url: link.url });
  const notes = new Notes();
  const failures = [];
  const checked = (note) => (event) => { try { note(event); } catch (error) { failures.push(error); } };
  client.subscribe(stage.streamId, { onFrame: checked(notes.onFrame), onAlert: checked(notes.onAlert) });
  await client.connect();
  await until(() => failures.length || connection > CUTS, 'all cuts');
  const seen = notes.alerts.length;
  await until(() => failures.length || notes.alerts.length > seen + 3, 'more alerts');
  client.close();
  link.close();
  assert.deepEqual(failures, []);
});
