// What a client watches: streams, and the list of those that are live.
import { asBytes } from './codec.js';
import { call, now, PASSING, RelayError, report, RETRY } from './link.js';

export const WINDOW = 4;
const LOSSLESS_WINDOW = 32;
const MOST_WIDTH = 65_535; // pixels
const ACK_DELAY = 20; // ms: frames that come closer together are acknowledged in pairs

/** A subscription to one stream; created by `client.subscribe`. */
export class Subscription {
  constructor(client, streamId, options) {
    this.streamId = streamId;
    this.status = 'offline';
    this.epoch = 0;
    this.metadata = undefined;
    this.active = true;
    this._client = client;
    this._options = options;
    this._terms = termsOf(options);
    this._entered = null; // the connection on which the relay has confirmed it
    this._seq = 0;
    this._frames = [];
    this._broken = false;
    this._busy = false;
    this._arrivedAt = -Infinity; // when the last frame came
    this._heldAck = null; // of a frame that is acknowledged with the next one, or soon
    if (options.onAlert) client._feed(this, options.onAlert, options.history);
  }

  /** Changes the terms: policy, maxFps, window, maxWidth, layer; and whether there are frames, by `onFrame`. */
  update(options) {
    if (options.onAlert !== undefined) throw new TypeError('onAlert cannot be changed: unsubscribe and subscribe again');
    const before = this._options.onFrame;
    this._options = { ...this._options, ...options };
    // The relay starts with the latest frame, since the application may have kept none.
    if (!before && this._options.onFrame) this._seq = 0;
    this._terms = termsOf(this._options);
    this._sendHeldAck();
    const link = this._client._link;
    if (this.active && link?.inUse) this._subscribe(link);
  }

  /** The last alerts, up to the last one that `onAlert` got, oldest first; waits for a connection. */
  earlierAlerts(count) {
    const feed = this._options.onAlert && this.active ? this._client._feeds.get(this.streamId) : undefined;
    return new Promise((resolve) => {
      if (feed === undefined) resolve([]);
      else feed.recall(count, resolve);
    });
  }

  unsubscribe() {
    if (!this.active) return;
    this._sendHeldAck();
    this._stop();
    const link = this._client._link;
    if (link?.inUse) this._leave(link);
  }

  _leave(link) {
    link.ask({ type: 'unsubscribe', streamId: this.streamId }, () => {}, () => {});
  }

  _finish() {
    this.active = false;
    this._frames = [];
  }

  _stop() {
    this._finish();
    this._client._subscriptions.delete(this.streamId);
    this._client._unfeed(this);
  }

  _start(link) {
    this._frames = [];
    this._enter(link);
  }

  /** Subscribes without missing an alert. */
  _enter(link) {
    const feed = this._options.onAlert && this._client._feeds.get(this.streamId);
    if (feed && !this._client._fedByPublication(this.streamId)) {
      feed.resume(link, () => this._subscribe(link));
    } else {
      this._subscribe(link);
    }
  }

  _subscribe(link) {
    const { onFrame, onAlert, onError } = this._options;
    const consumes = [...(onFrame ? ['video-frame'] : []), ...(onAlert ? ['alert'] : [])];
    const request = { type: 'subscribe', streamId: this.streamId, consumes, ...this._terms };
    link.ask(request, ({ epoch, metadata }) => {
      this._entered = link;
      this._learn({ epoch, metadata });
    }, (error) => {
      if (link.ended || !this.active) return;
      if (PASSING.has(error.code)) {
        link.later(error.retryAfter ?? RETRY, () => this.active && this._enter(link));
        return;
      }
      if (this._entered === link) this._leave(link); // the terms changed; the relay has the old ones
      this._stop();
      if (onError) call(onError, error);
      else this._client._emit('problem', error);
    });
  }

  _learn({ epoch, metadata, status }) {
    if (epoch !== this.epoch) {
      this._sendHeldAck();
      this.epoch = epoch;
      this._seq = 0;
      this._frames = [];
    }
    if (metadata !== undefined) this.metadata = metadata;
    if (status === undefined || !this.active) return;
    this.status = status;
    call(this._options.onStatus, { streamId: this.streamId, status, epoch, metadata: this.metadata });
  }

  _take(message, link) {
    const { seq, keyframe, discardable } = message;
    if (this._entered !== link) return; // from an earlier subscription
    const time = now();
    const ackBy = time - this._arrivedAt < ACK_DELAY ? time + ACK_DELAY : time;
    this._arrivedAt = time;
    // After a reconnect the latest frame comes again, and decoders need a keyframe again.
    const newest = this._frames[this._frames.length - 1]?.message.seq ?? this._seq;
    if (seq === newest || (seq < newest && keyframe !== true)) {
      this._acknowledge(seq, link, this.epoch, ackBy);
      return;
    }
    const full = this._terms.policy === 'latest' && this._frames.length >= (this._terms.window ?? 1);
    if (keyframe === false && (full || this._broken)) {
      if (discardable !== true) this._broken = true; // delta frames after a skipped frame cannot be decoded
      this._acknowledge(seq, link, this.epoch, ackBy);
      return;
    }
    this._broken = false;
    if (full) this._frames = [];
    this._frames.push({ message, link, epoch: this.epoch, ackBy });
    this._deliver();
  }

  /** Passes frames to the application one by one, and acknowledges those that it has finished. */
  _deliver() {
    while (!this._busy && this._frames.length > 0) {
      const { message, link, epoch, ackBy } = this._frames.shift();
      const done = () => this._acknowledge(message.seq, link, epoch, ackBy);
      const frame = this._read(message, epoch);
      const pending = frame && call(this._options.onFrame, frame);
      if (typeof pending?.then !== 'function') {
        done();
        continue;
      }
      this._busy = true;
      pending.then(undefined, report).then(() => {
        this._busy = false;
        done();
        this._deliver();
      });
    }
  }

  _read({ type: _, data, ...fields }, epoch) {
    const missed = this._seq && fields.seq > this._seq ? fields.seq - this._seq - 1 : 0;
    this._seq = Math.max(this._seq, fields.seq);
    try {
      return { ...fields, epoch, missed, data: asBytes(data) };
    } catch (error) { // the fault of the producer: in JSON the relay passes frames on unchecked
      this._client._emit('problem', new RelayError('UNREADABLE', `A frame cannot be read: ${error.message}`, fields));
      return null;
    }
  }

  /** Acknowledges a frame at `ackBy`, or with the next frame if that is earlier: an `ack` covers all before. */
  _acknowledge(seq, link, epoch, ackBy) {
    if (!this.active || !this._terms.window) return;
    const ack = { seq, link, epoch };
    const held = this._heldAck;
    if (held !== null && held.epoch !== epoch) this._sendHeldAck();
    this._heldAck = null;
    const rest = ackBy - now();
    if (held !== null || rest <= 0 || this._terms.window === 1) {
      this._sendAck(ack);
      return;
    }
    this._heldAck = ack;
    link.later(rest, () => { if (this._heldAck === ack) this._sendHeldAck(); });
  }

  _sendHeldAck() {
    const ack = this._heldAck;
    this._heldAck = null;
    if (ack !== null) this._sendAck(ack);
  }

  _sendAck({ seq, link, epoch }) {
    link.send({ type: 'ack', streamId: this.streamId, seq, ...(epoch ? { epoch } : {}) });
  }
}

function termsOf({ policy = 'latest', maxFps, window, maxWidth, layer }) {
  const usual = policy === 'latest' ? WINDOW : LOSSLESS_WINDOW;
  const size = window === undefined || (window === null && policy !== 'latest') ? usual : window;
  return {
    policy,
    ...(maxFps ? { maxFps } : {}),
    ...(size ? { window: size } : {}),
    // That of an element times `devicePixelRatio` may be a fraction, or 0 while it is hidden.
    ...(maxWidth == null ? {} : { maxWidth: Math.min(MOST_WIDTH, Math.max(1, Math.ceil(maxWidth))) }),
    ...(layer ? { layer } : {}),
  };
}

/** All live streams that the user may watch, on whichever connection there is. */
export class StreamList {
  constructor() {
    this._streams = new Map(); // by id
    this._listeners = new Set();
    this._known = false; // whether the relay has sent a part of the list on this connection
    this._complete = false; // and the rest of it
  }

  /** Calls `listener` with all streams, now and after each change. Returns a function that removes it. */
  watch(listener, link) {
    const first = this._listeners.size === 0;
    this._listeners.add(listener);
    if (!first && this._complete) call(listener, [...this._streams.values()]);
    else if (first && link?.inUse) this._ask(link);
    return () => this._listeners.delete(listener);
  }

  /** Asks for the list on a new connection, if somebody wants it. */
  restore(link) {
    if (this._listeners.size > 0) this._ask(link);
  }

  learn({ streamId, status, metadata }) {
    if (!this._known) return; // the list that is asked for has it
    if (status === 'offline') this._streams.delete(streamId);
    else {
      const known = metadata ?? this._streams.get(streamId)?.metadata;
      this._streams.set(streamId, { streamId, status, metadata: known });
    }
    if (this._complete) this._tell();
  }

  _ask(link) {
    this._known = this._complete = false;
    const ask = (after) => link.ask({ type: 'streams', ...after && { after } }, ({ streams, more }) => {
      if (!this._known) this._streams = new Map();
      this._known = true;
      // What came as a status meanwhile lacks the metadata, which the page has.
      for (const each of streams) this._streams.set(each.streamId, each);
      if (more === true && streams.length > 0) return ask(streams.at(-1).streamId);
      this._complete = true;
      this._tell();
    }, (error) => {
      if (!link.ended) link.later(error.retryAfter ?? RETRY, () => ask(after));
    });
    ask();
  }

  _tell() {
    for (const listener of [...this._listeners]) call(listener, [...this._streams.values()]);
  }
}
