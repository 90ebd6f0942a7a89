// Phones, viewers and services on a real relay, made of the client under test.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';

import { RelayClient } from '../../../relay/web/client/relay-client.js';

// Node's own way to the packages of NODE_PATH, which `import` does not look at.
export const WebSocket = createRequire(import.meta.url)('ws');
export const { WebSocketServer } = WebSocket;
export const relay = new URL(process.env.RELAY_URL ?? 'http://127.0.0.1:1');
export const tokens = JSON.parse(process.env.RELAY_TOKENS ?? '{}');
const PATIENCE = 30_000;
/** For links that die in tests: much as the defaults, in little of the time. */
export const HASTY = {
  silence: 200, patience: 200, openTimeout: 1000, backoff: { first: 10, most: 100 },
};

export function makeClient(options = {}) {
  const url = relay.href.replace('http', 'ws');
  return new RelayClient({ url, token: tokens.user, WebSocket, ...options });
}

let streams = 0;
export const newStreamId = () => `js-${process.pid}-${Date.now().toString(36)}-${streams += 1}`;

/** Waits for what a peer can see, and says what was not seen. */
export function until(condition, what = String(condition)) {
  const start = performance.now();
  return new Promise((resolve, reject) => {
    const look = () => {
      let seen;
      try {
        seen = condition();
      } catch (error) {
        reject(error);
        return;
      }
      if (seen) resolve(seen);
      else if (performance.now() - start > PATIENCE) reject(new Error(`never came: ${what}`));
      else setTimeout(look, 2);
    };
    look();
  });
}

/** Sends a numbered frame every so often until it is stopped; takes the place of a camera. */
export function rollCamera(publication, period = 5) {
  let number = 0;
  const timer = setInterval(() => {
    const data = new Uint8Array(64);
    new DataView(data.buffer).setUint32(0, number += 1);
    publication.sendFrame(data);
  }, period);
  return () => clearInterval(timer);
}

/** A viewer's notes: each frame and alert is checked to come in order, and not twice. */
export class Notes {
  frames = 0;
  missed = 0;
  alerts = [];
  _epoch = 0;
  _seq = 0;

  onFrame = ({ epoch, seq, missed, data }) => {
    assert.ok(data instanceof Uint8Array);
    if (epoch !== this._epoch) [this._epoch, this._seq] = [epoch, 0];
    assert.ok(seq > this._seq, `frame ${seq} after ${this._seq}`);
    if (this._seq) assert.equal(missed, seq - this._seq - 1);
    this._seq = seq;
    this.missed += missed;
    this.frames += 1;
  };

  onAlert = ({ alertId, message }) => {
    const before = this.alerts.at(-1);
    if (before) {
      assert.ok(alertId > before.alertId, `alert ${alertId} after ${before.alertId}`);
      assert.equal(Number(message), Number(before.message) + 1, 'an alert is missing, or twice');
    }
    this.alerts.push({ alertId, message });
  };
}

/** A stream that never stops, with numbered alerts; beside the links that die. */
export async function openStage({ period = 5 } = {}) {
  const streamId = newStreamId();
  const phone = makeClient();
  const service = makeClient({ token: tokens.service });
  await Promise.all([phone.connect(), service.connect()]);
  const stop = rollCamera(phone.publish({ streamId }), period);
  await until(() => phone.publication.registered, 'the registration');
  let going = true;
  let number = 0;
  const alerting = (async () => {
    while (going) {
      number += 1;
      await service.alert({ streamId, message: String(number) });
      await new Promise((resolve) => setTimeout(resolve, period));
    }
  })();
  return {
    streamId,
    service,
    async close() {
      going = false;
      stop();
      await alerting;
      phone.close();
      service.close();
    },
  };
}
