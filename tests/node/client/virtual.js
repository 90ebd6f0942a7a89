// A relay behind a link of a given rate, delay and jitter, in virtual time, and a camera in front of it.
import { decodeMessagePack, encodeMessagePack, RelayClient } from '../../../relay/web/client/relay-client.js';

const START = 1_700_000_000_000;

/** All of these, or where SHARE is set the first and the last. */
export const some = (values) => (process.env.SHARE ? [values[0], values.at(-1)] : values);

/** Random numbers from 0 to 1, the same ones each time. */
export function makeRandom(seed) {
  let state = seed * 2654435761 + 1;
  return () => {
    state = (Math.imul(state ^ (state >>> 15), 2246822519) + 0x9e3779b9) >>> 0;
    return ((state ^ (state >>> 13)) >>> 0) / 2 ** 32;
  };
}

/** Virtual time for the client: nothing happens but in `run`. */
export function stopTime(context) {
  const { timers } = context.mock;
  timers.enable({ apis: ['setTimeout', 'Date'], now: START });
  const { now } = performance; // not mocked by the context, which would keep each call
  performance.now = () => Date.now() - START;
  context.after(() => { performance.now = now; });
  return {
    get now() { return Date.now() - START; },
    /** Lets so many ms pass; calls `each` after every one. */
    async run(duration, each = () => {}) {
      for (let passed = 0; passed < duration; passed += 1) {
        timers.tick(1);
        await new Promise(setImmediate); // for promises
        each();
      }
    },
  };
}

/**
 * A relay with one viewer. Its link up has a narrow place, first in, first out, that carries
 * `rate(ms)` bytes a second, with a queue of any depth; then it takes `delay(ms)` ms and up to `jitter`
 * more in each direction, in order. `answer(frames, say)` is called when a frame has come: a relay
 * that says nothing of `window` gives null. `needed` are the layers that the viewer needs: a relay
 * that knows of no layers gives null.
 */
export function makeRelay(time, {
  rate, delay = () => 20, jitter = 0, seed = 1, answer = (frames, say) => say(frames), onReceive = () => {},
  needed = null,
}) {
  const random = makeRandom(seed);
  const relay = { frames: [], acks: [], underWay: 0, socket: null };
  const state = { freeAt: 0, upAt: 0, downAt: 0 };
  const travel = (from, last) => Math.ceil(Math.max(last, from + delay(time.now) + jitter * random()));

  /** When the narrow place has let so many bytes through. */
  function finish(size) {
    let at = Math.max(time.now, state.freeAt);
    for (let rest = size; rest > 0;) {
      const step = Math.floor(at + 1) - at; // the rate is that of the ms
      const passes = (rate(Math.floor(at)) / 1000) * step;
      at += passes >= rest ? step * (rest / passes) : step;
      rest -= passes;
    }
    state.freeAt = at;
    return at;
  }

  function say(message) {
    state.downAt = travel(time.now, state.downAt);
    const bytes = encodeMessagePack({ timestamp: Date.now(), ...message });
    const { socket } = relay;
    setTimeout(() => socket.onmessage?.({ data: bytes }), state.downAt - time.now);
  }

  function receive(message, size) {
    const { type, id, streamId, timestamp, layer } = message;
    onReceive(message, say);
    if (type === 'video-frame') {
      relay.underWay -= size;
      relay.frames.push({ at: time.now, age: Date.now() - timestamp, size, timestamp, layer, ...message.metadata });
      answer?.(relay.frames.length - relay.before, (frames) => say({ type: 'received', streamId: 's', frames }));
    } else if (type === 'ack') relay.acks.push({ at: time.now, ...message });
    else if (type === 'register') {
      relay.before = relay.frames.length;
      relay.registered = message;
      const layers = needed && message.layers?.map((each) => each.id);
      say({ type: 'success', id, code: 'REGISTERED', streamId, epoch: 1, ...(answer && { window: message.window }), ...(layers && { layers }) });
      relay.need(layers ? needed : null);
    } else if (type === 'unsubscribe') say({ type: 'error', id, code: 'INVALID_MESSAGE', message: '' });
    else say({ type: 'success', id, epoch: 1 });
  }

  relay.say = say;
  relay.need = (layers, consumers = 1) => {
    say({ type: 'status', streamId: 's', epoch: 1, status: 'online', consumers, ...(layers && { layers }) });
  };
  relay.WebSocket = class WebSocket {
    protocol = 'relay.v1.msgpack';
    readyState = 0;

    constructor() {
      relay.socket = this;
      setTimeout(() => {
        this.readyState = 1;
        this.onopen();
      });
    }

    send(bytes) {
      const message = decodeMessagePack(bytes.slice());
      if (message.type === 'video-frame') relay.underWay += bytes.length;
      state.upAt = travel(finish(bytes.length), state.upAt);
      setTimeout(() => { if (relay.socket === this) receive(message, bytes.length); }, state.upAt - time.now);
    }

    close() { this.readyState = 3; }

    /** The connection ends, and with it what is under way. */
    lose() {
      relay.underWay = 0;
      this.close();
      this.onclose?.({ code: 1006 });
    }
  };
  return relay;
}

/** A client that publishes to this relay, once it has a viewer. */
export async function publish(context, time, relay, options = {}, stream = {}) {
  const client = new RelayClient({
    url: 'ws://relay', token: 't', WebSocket: relay.WebSocket, backoff: { first: 10, most: 10 }, ...options,
  });
  context.after(() => client.close());
  const publication = client.publish({ streamId: 's', ...stream });
  client.connect();
  while (publication.consumers === 0) await time.run(1);
  return publication;
}

/** Bytes of a film's pictures (1280 by 720) by quality, in JPEG: what an encoder does with them. */
const BYTES = [[0.3, 61_600], [0.4, 72_300], [0.5, 82_200], [0.6, 92_800], [0.68, 105_000], [0.76, 121_000], [0.8, 135_000]];

/** The size of a picture: these are other than what the client begins to expect. */
export function sizeOf({ width = 1280, quality }) {
  const above = Math.max(1, BYTES.findIndex(([each]) => each >= quality));
  const [[low, least], [high, most]] = BYTES.slice(above - 1, above + 1);
  return (least + ((quality - low) / (high - low)) * (most - least)) * (width / 1280) ** 1.5;
}

/**
 * A camera for `run`: pictures at this rate at most, as planned, each ready `encoding` ms after it
 * was taken, and up to a tenth larger or smaller than the one before.
 */
export function film(time, publication, {
  wanted = { fps: 15, width: 1280 }, scene = () => 1, encoding = 10, seed = 1,
} = {}) {
  const random = makeRandom(seed);
  let nextAt = time.now;
  let busy = false;
  return () => {
    if (busy || time.now < nextAt) return;
    const plan = publication.next(wanted);
    if (plan === null) return;
    nextAt = Math.max(nextAt + 1000 / wanted.fps, time.now);
    busy = true;
    const noise = scene(time.now) * (0.9 + 0.2 * random());
    setTimeout(() => {
      busy = false;
      for (const { layer, ...picture } of plan.pictures) {
        const data = new Uint8Array(Math.round(sizeOf(picture) * noise));
        publication.sendFrame(data, { timestamp: plan.timestamp, layer, metadata: picture });
      }
    }, encoding);
  };
}

export const median = (values) => values.toSorted((one, other) => one - other)[values.length >> 1];
