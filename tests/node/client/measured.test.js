// A phone behind a slow link to a real relay, which tells it what has come.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { openLink } from './link.js';
import { makeClient, newStreamId, relay, until } from './stage.js';
import { sizeOf } from './virtual.js';

for (const encoding of ['json', 'auto']) {
  test(`pictures of a phone fit its link (${encoding})`, async (context) => {
    const rate = 250_000;
    const link = await openLink(relay, () => null, { up: rate });
    const [phone, viewer] = [makeClient({ url: link.url, encoding }), makeClient()];
    context.after(() => [phone, viewer, link].forEach((each) => each.close()));
    const publication = phone.publish({ streamId: newStreamId() });
    await Promise.all([phone.connect(), viewer.connect()]);
    await until(() => publication.registered);
    const widths = [];
    viewer.subscribe(publication.streamId, { onFrame: ({ metadata }) => { widths.push(metadata.width); } });
    await until(() => publication.consumers === 1);
    const timer = setInterval(() => {
      const plan = publication.next({ fps: 15, width: 1280 });
      if (plan !== null) publication.sendFrame(new Uint8Array(Math.round(sizeOf(plan))), { ...plan, metadata: plan });
    }, 5);
    context.after(() => clearInterval(timer));
    await until(() => widths.length > 30 && publication.bandwidth > rate / 2 && publication.bandwidth < 2 * rate);
    assert.ok(widths.at(-1) < 1280, `${widths}`);
  });
}
