// What a player's screen gives the decoder of video: a keyframe, and then all that builds on it, in order.
import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';

import { Screen } from '../../../relay/web/client/player/screen.js';

const VIDEO = { codec: 'vp8' };

let decoded;
beforeEach(() => {
  decoded = [];
  globalThis.EncodedVideoChunk = class {
    constructor(init) { Object.assign(this, init); }
  };
  globalThis.VideoDecoder = class {
    state = 'configured';
    decodeQueueSize = 0;
    configure() {}
    decode({ timestamp }) { decoded.push(timestamp / 1000); }
    close() { this.state = 'closed'; }
  };
});

const makeScreen = (told = {}) => new Screen({ width: 16, height: 9 }, { onPicture() {}, onProblem() {}, onKeyframeWanted() {}, ...told });
const frame = (seq, keyframe = false, more = {}) => ({ seq, keyframe, epoch: 1, missed: 0, data: new Uint8Array(1), receivedAt: seq, ...more });

test('what comes while the decoder loads is decoded behind it, in order', async () => {
  const screen = makeScreen();
  await Promise.all([screen.show(frame(1, true), VIDEO), screen.show(frame(2), VIDEO), screen.show(frame(3), VIDEO)]);
  assert.deepEqual(decoded, [1, 2, 3]);
});

test('the keyframe that comes again is shown to who had only what builds on it', async () => {
  const screen = makeScreen();
  await screen.show(frame(8), VIDEO); // of the subscription that another player had
  await screen.show(frame(9), VIDEO);
  await screen.show(frame(5, true), VIDEO);
  assert.deepEqual(decoded, [5]);
  await screen.show(frame(5, true), VIDEO);
  await screen.show(frame(10, true), VIDEO);
  await screen.show(frame(11), VIDEO);
  assert.deepEqual(decoded, [5, 10, 11]);
});

test('another layer or epoch begins with its keyframe', async () => {
  const screen = makeScreen();
  await screen.show(frame(1, true), VIDEO);
  await screen.show(frame(2, false, { layer: 'big' }), VIDEO);
  await screen.show(frame(3, true, { layer: 'big' }), VIDEO);
  await screen.show(frame(1, true, { epoch: 2 }), VIDEO);
  assert.deepEqual(decoded, [1, 3, 1]);
});

test('nothing of what waited is decoded after a stop', async () => {
  const screen = makeScreen();
  const shown = [screen.show(frame(1, true), VIDEO), screen.show(frame(2), VIDEO)];
  screen.stop();
  await Promise.all(shown);
  assert.deepEqual(decoded, []);
  await screen.show(frame(1, true), VIDEO);
  assert.deepEqual(decoded, [1]);
});
