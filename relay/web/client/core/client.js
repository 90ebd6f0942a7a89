/**
 * The client without publishing, which is all that viewers load; see relay-client.js.
 *
 * States and transitions (enforced by `TRANSITIONS` below):
 *
 *     idle        connect() has not been called
 *     connecting  gets a token, opens a WebSocket, sends `auth` and waits for the reply
 *     ready       authenticated; subscriptions and the publication are restored
 *     waiting     the connection was lost or refused; the next attempt is at `retryAt`
 *     paused      pause() was called: no connection, but subscriptions are kept
 *     closed      final: close() was called, or the relay said not to reconnect
 *
 *     idle ──connect()──▶ connecting ──AUTHENTICATED──▶ ready
 *                          ▲      │ lost, refused         │ lost, closed by the relay
 *                          │      ▼                       ▼
 *                          └── waiting ◀──────────────────┘
 *     connecting, ready, waiting ──pause()──▶ paused ──resume()──▶ connecting
 *     any ──close(), or a final ending──▶ closed
 *
 * The way a connection ended decides what comes next (`judgeEnding`). Close codes from 4500 and
 * protocol errors are final. A refused token needs another one. Anything else is retried after a
 * random pause that grows and is never shorter than `retryAfter`. The `error` before a Close has the
 * same meaning as its code, for clients that cannot see close codes.
 *
 * The client asks for the token before each attempt, and on SESSION_EXPIRING to renew the session
 * on the open connection. It sends the token in the `auth` message only, and keeps it only as long
 * as it may have to recognize that it was refused.
 */

const TRANSITIONS = {
  idle: ['connecting', 'closed'],
  connecting: ['ready', 'waiting', 'paused', 'closed'],
  ready: ['waiting', 'paused', 'closed'],
  waiting: ['connecting', 'paused', 'closed'],
  paused: ['connecting', 'closed'],
  closed: [],
};

const SUBPROTOCOLS = ['relay.v1.msgpack', 'relay.v1.json'];
const DEFAULTS = {
  path: '/streams/subscribe',
  encoding: 'auto',
  silence: 10_000,
  patience: 10_000,
  openTimeout: 10_000,
  tokenTimeout: 30_000,
  backoff: { first: 300, most: 15_000 },
  maxBuffered: 256 * 1024,
};
export const WINDOW = 4;
const LOSSLESS_WINDOW = 32;
const MOST_WIDTH = 65_535; // pixels
const ACK_DELAY = 20; // ms: frames that come closer together are acknowledged in pairs
const MOST_ALERTS_WAITING = 1000;
const STEADY = 5_000; // ms a connection must last before the backoff starts over
export const RETRY = 2_000; // ms, if the relay gives no other time
const STEP = 100; // ms a clock may drift before it counts as changed
const DOUBT = 2_000; // ms to wait for an answer after the browser reported a network change
const GOODBYE = 2_000; // ms to wait for the Close after a final `error`
const MOST_IN_FLIGHT = { messages: 16, bytes: 4 << 20 }; // on their way here when something is asked
const NOWHERE = 'relay-client:nothing'; // a stream that no client subscribes to
export const PASSING = new Set(['STORE_UNAVAILABLE', 'RATE_LIMITED', 'AUTH_UNAVAILABLE', 'TOO_MANY_CONNECTIONS']);

export const now = () => globalThis.performance?.now() ?? Date.now();

/** An error. `code` is one of the protocol, or NO_TOKEN, DISCONNECTED, CLOSED or UNREADABLE. */
export class RelayError extends Error {
  constructor(code, message, { retryAfter, streamId, closeCode, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'RelayError';
    this.code = code;
    this.retryAfter = retryAfter;
    this.streamId = streamId;
    this.closeCode = closeCode;
  }
}

const errorOf = ({ code, message, retryAfter, streamId }) =>
  new RelayError(code, message, { retryAfter, streamId });
const disconnected = () => new RelayError('DISCONNECTED', 'The connection was lost');
const noString = (token) =>
  new RelayError('NO_TOKEN', `The token must be a string, not ${typeof token}`);
const closedByUs = () => new RelayError('CLOSED', 'The client was closed');

/**
 * Decides what to do after an ending: `{ again, token, after }`. `code` and `reason` are those of
 * the Close, if it was seen; `word` is the last message, if that was an `error` or a `notice`.
 */
export function judgeEnding(code, reason, word) {
  const said = word?.code;
  const unseen = code === undefined || code === 1005 || code === 1006;
  const after = word?.retryAfter ?? 0;
  const stop = { again: false, token: 'connect', after };
  const again = { again: true, token: 'connect', after };
  if (code >= 4500 && code <= 4999) return stop;
  if (said === 'SESSION_REVOKED' || said === 'SUPERSEDED') return stop;
  const refused = said === 'AUTH_FAILED' && (unseen || code === 1008);
  if (refused || (code === 1008 && /^authentication failed$/i.test(reason ?? ''))) {
    return { ...again, token: 'refused' };
  }
  if (code === 4001 || (unseen && said === 'SESSION_EXPIRED')) return { ...again, token: 'expired' };
  if ([1002, 1003, 1007, 1008, 1009, 1010].includes(code)) return stop;
  if (unseen && said === 'MESSAGE_TOO_BIG' && !after) return stop;
  return again;
}

const isFinalWord = ({ type, code }) =>
  type === 'error' && ['SESSION_REVOKED', 'SESSION_EXPIRED', 'SUPERSEDED', 'AUTH_FAILED'].includes(code);

/**
 * Calls a listener of the application. An error that it throws does not affect the client and is
 * reported as uncaught: Node then exits, unless the process handles `uncaughtException`.
 */
export function call(listener, ...values) {
  try {
    return listener?.(...values);
  } catch (error) {
    report(error);
    return undefined;
  }
}

function report(error) {
  if (typeof globalThis.reportError === 'function') globalThis.reportError(error);
  else setTimeout(() => { throw error; });
}

/** One WebSocket, from opening to its end, which is reported once. */
class Link {
  constructor(socket, token, settings, told) {
    this.ready = false;
    this.inUse = false; // true once subscriptions are restored; new ones then send their own request
    this.ended = false;
    this._broken = false; // true once a write has failed
    this.bytesSent = 0;
    this.rtt = Infinity;
    this._socket = socket;
    this._settings = settings;
    this._told = told; // { ready, message, end }
    this._questions = new Map();
    this._lastId = 0;
    this._word = null;
    this._timers = new Set();
    this._openedAt = this._heardAt = this._answeredAt = this._tickedAt = now();
    this._ahead = Date.now() - now();
    this._signs = { heard: null, answered: null }; // times of the answers that are awaited
    this._openUntil = now() + settings.openTimeout;
    this._overslept = false;
    this._buffered = 0;
    this._parts = new Map(); // of long messages that are not complete, by stream
    this._received = 0; // bytes
    this._largest = 0; // bytes of the largest message
    this.opened = false;
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => this._authenticate(token);
    socket.onmessage = (event) => this._receive(event.data);
    socket.onclose = (event) => this._end(event?.code, event?.reason);
    socket.onerror = () => {}; // `close` follows; without a listener, Node's `ws` would throw
    this._period = Math.max(5, Math.min(1000, settings.silence / 4, settings.patience / 4));
    this._tick();
  }

  get binary() {
    return this._socket.protocol === SUBPROTOCOLS[0];
  }

  get buffered() {
    return this._socket.bufferedAmount ?? 0;
  }

  /** Sends a message; false if the link is gone. Throws only if the message cannot be encoded. */
  send(message) {
    if (this.ended || this._broken || this._socket.readyState !== 1) return false;
    const encoded = this.binary ? encodeMessagePack(message) : JSON.stringify(message);
    try {
      this._socket.send(encoded);
    } catch (cause) { // React Native throws for a socket that is gone although it says that it is open
      this._broken = true;
      const error = new RelayError('DISCONNECTED', `The connection was lost: ${cause?.message ?? cause}`, { cause });
      this.later(0, () => this.leave(error)); // the caller may be in the middle of something
      return false;
    }
    this.bytesSent += encoded.length;
    return true;
  }

  /** Sends a request; calls one of the two with the reply, before it reads a later message. */
  ask(message, onSuccess, onError) {
    const id = ++this._lastId;
    if (this.ended) {
      onError(disconnected());
      return;
    }
    this._questions.set(id, { onSuccess, onError, at: now(), auth: message.type === 'auth' });
    try {
      this.send({ ...message, id }); // if this fails to be sent, the end of the link answers
    } catch (cause) { // the message cannot be encoded; later ones must still be sent
      const error = new RelayError('INVALID_MESSAGE', `It cannot be encoded: ${cause.message}`, { cause });
      this._questions.delete(id);
      this.later(0, () => onError(error));
    }
  }

  /** Asks for any reply: leaving a stream that was never joined is cheap for the relay. */
  ping(onAnswer = () => {}) {
    this.ask({ type: 'unsubscribe', streamId: NOWHERE }, onAnswer, onAnswer);
  }

  /** Checks the connection; ends it if nothing is received within so many ms. */
  probe(patience = this._settings.patience) {
    if (!this.ready) this._openUntil = Math.min(this._openUntil, now() + patience);
    this._demand('heard', patience);
  }

  later(delay, work) {
    const timer = setTimeout(() => {
      this._timers.delete(timer);
      work();
    }, delay);
    this._timers.add(timer);
  }

  /** Ends the connection. A polite end tells the relay at once. */
  leave(error, { politely = false } = {}) {
    const socket = this._socket;
    this._end(undefined, undefined, error);
    try {
      if (!politely && typeof socket.terminate === 'function') socket.terminate();
      else socket.close(1000);
    } catch {
      // it is not open yet, or no longer
    }
  }

  _authenticate(token) {
    this.opened = true;
    const { silence, patience } = this._settings;
    // Half a message is silence to a script: see `part` and `progress` in the protocol.
    const progressInterval = Math.min(3_600_000, Math.max(1, Math.floor(Math.min(silence, patience) / 4)));
    this.ask({ type: 'auth', token, parts: true, progressInterval }, (reply) => {
      this.ready = true;
      this._told.ready(reply);
    }, () => {}); // a Close follows
  }

  _receive(data) {
    if (this.ended) return;
    this._alive();
    this._received += data.length ?? data.byteLength;
    let message;
    try {
      message = readMessage(data);
      this._awaitBehind((data.length ?? data.byteLength) * (message.type === 'part' ? message.count : 1));
      if (message.type === 'part') message = this._join(message);
    } catch (error) {
      this.leave(new RelayError('UNREADABLE', `The relay sent an invalid message: ${error.message}`));
      return;
    }
    if (message === null) return; // more parts follow
    if (message.type === 'progress' || message.type === 'received') { // what we are sending arrives
      this._answeredAt = this._heardAt;
      this._signs.answered = null;
      if (message.type === 'progress') return;
    }
    const question = message.id === undefined ? undefined : this._questions.get(message.id);
    const said = message.type === 'error' || message.type === 'notice';
    // An error reply does not end the connection, except to `auth` or for a stream that was taken over.
    const answers = question !== undefined && !question.auth && !isFinalWord(message);
    this._word = said && !answers ? message : null;
    if (isFinalWord(message)) this.later(GOODBYE, () => this.leave());
    if (question === undefined) {
      this._told.message(message);
      return;
    }
    this._questions.delete(message.id);
    this._answeredAt = this._heardAt;
    this._signs.answered = null;
    this._measure(message.timestamp, this._heardAt - question.at);
    if (message.type === 'success') question.onSuccess(message);
    else question.onError(errorOf(message));
  }

  /** Keeps a part of a long message; returns the message if that was the last one, or null. */
  _join({ streamId, index, count, data }) {
    const parts = index === 1 ? [] : this._parts.get(streamId);
    if (parts === undefined || parts.push(data) !== index) {
      this._parts.delete(streamId); // of a message that was given up
      return null;
    }
    this._parts.set(streamId, parts);
    if (index < count) return null;
    this._parts.delete(streamId);
    return readMessage(typeof data === 'string' ? parts.join('') : joinBytes(parts));
  }

  /** An answer that is awaited may be behind what was on its way here before it, on a slow link for long. */
  _awaitBehind(size) {
    this._largest = Math.max(this._largest, size);
    const sign = this._signs.answered;
    if (sign === null) return;
    const ahead = Math.min(MOST_IN_FLIGHT.messages * this._largest, MOST_IN_FLIGHT.bytes);
    if (this._received < sign.received + ahead) sign.until = Math.max(sign.until, now() + sign.patience);
  }

  _alive() {
    this._heardAt = now();
    this._signs.heard = null;
  }

  /** Asks for a reply; the connection ends if none comes in time. */
  _demand(sign, patience, again = false) {
    const until = now() + patience;
    if (!this.ready || this._signs[sign]?.until <= until) return;
    this._signs[sign] = { patience, until, again, received: this._received };
    this.ping();
  }

  /** The clock of the relay, according to the quickest reply. */
  _measure(timestamp, rtt) {
    if (rtt > this.rtt || typeof timestamp !== 'number') return;
    this.rtt = rtt;
    this._told.clock(timestamp + rtt / 2 - Date.now());
  }

  /** The local clock was changed: the offset to the relay's clock has to be measured again. */
  _noticeStep() {
    const ahead = Date.now() - now();
    if (Math.abs(ahead - this._ahead) > STEP) {
      this.rtt = Infinity;
      this._ahead = ahead;
      if (this.ready) this.ping();
    }
  }

  /**
   * This tick is late: messages may be waiting to be read, so what is awaited gets its time again.
   * Only once: in a hidden tab each tick may be late.
   */
  _oversleep() {
    if (!this.ready && !this._overslept) {
      this._overslept = true;
      this._openUntil = now() + this._settings.openTimeout;
    }
    for (const [name, sign] of Object.entries(this._signs)) {
      if (sign === null || sign.again) continue;
      this._signs[name] = null;
      this._demand(name, sign.patience, true);
    }
  }

  _tick() {
    const time = now();
    const slept = time - this._tickedAt > 4 * this._period;
    this._tickedAt = time;
    this._noticeStep();
    if (slept) this._oversleep();
    const { silence, patience } = this._settings;
    if (this.buffered < this._buffered) { // data is being sent
      this._answeredAt = time;
      this._alive();
    }
    this._buffered = this.buffered;
    if (!this.ready && time > this._openUntil) {
      this.leave(new RelayError('DISCONNECTED', 'The relay did not answer in time'));
    } else if (Object.values(this._signs).some((sign) => time > sign?.until)) {
      this.leave(new RelayError('DISCONNECTED', 'The relay has been silent for too long'));
    } else {
      // Messages may arrive although nothing reaches the relay.
      if (time - this._answeredAt > 3 * silence) this._demand('answered', 2 * patience);
      if (time - this._heardAt > silence) this.probe();
    }
    if (!this.ended) this.later(this._period, () => this._tick());
  }

  _end(code, reason, error) {
    if (this.ended) return;
    this.ended = true;
    this.ready = false;
    for (const timer of this._timers) clearTimeout(timer);
    const socket = this._socket;
    socket.onopen = socket.onmessage = socket.onclose = null;
    const questions = [...this._questions.values()];
    this._questions.clear();
    this._parts.clear();
    for (const { onError } of questions) onError(disconnected());
    this._told.end({ code, reason, word: this._word, error, lasted: now() - this._openedAt, opened: this.opened });
  }
}

/**
 * The alerts of one stream, each once and in order, across reconnects.
 *
 * After `subscribe` it sends `alerts-since` with the last alert seen. It holds all alerts until the
 * last page, since live alerts may come before that page and again in it.
 */
class AlertFeed {
  constructor(client, streamId) {
    this.streamId = streamId;
    this.last = null; // the last alert seen; null before the first answer
    this.listeners = new Map(); // by their subscription or publication
    this.history = 0;
    this._client = client;
    this._link = null; // the link on which it was last resumed
    this._held = null;
    this._newest = 0;
    this._offered = 0;
    this._recalls = []; // who wants earlier alerts again
  }

  /** Resumes after the last alert seen; `subscribe` sends the request that starts alerts. */
  resume(link, subscribe) {
    if (this._link === link && this.last === null) { // the starting point is already being asked for
      subscribe();
      return;
    }
    this._link = link;
    this._held = new Map();
    this._offered = 0;
    if (this.last !== null) {
      subscribe();
      this._catchUp(link, this.last);
      return;
    }
    this._begin(link);
    subscribe();
  }

  /** The last listener is gone: pending replies are ignored. */
  end() {
    this._held = null;
    for (const { done } of this._recalls.splice(0)) done([]);
  }

  offer(alert) {
    this._newest = alert.alertId;
    this._offered += 1;
    if (this._held !== null) this._held.set(alert.alertId, alert);
    else this._pass(alert, false);
  }

  /** Gives the last alerts to `done`, in order, up to the last one seen. */
  recall(count, done) {
    this._recalls.push({ count, done });
    this._recallNext();
  }

  /** Asks for them once it has caught up: before, nobody can tell what the alerts that come are for. */
  _recallNext() {
    const link = this._link;
    const [due] = this._recalls;
    if (due === undefined || this._held !== null || !link || link.ended) return;
    this._held = new Map();
    this._recall(link, due);
  }

  _recall(link, due) {
    const held = this._held;
    link.ask({ type: 'alerts-since', streamId: this.streamId, last: due.count }, () => {
      if (this._isOver(held)) return;
      this._recalls.shift();
      const seen = inOrder(held).filter(({ alertId }) => alertId <= this.last);
      this._catchUp(link, this.last); // between what is newer and that, others may be missing
      due.done(seen.map(({ type: _, ...alert }) => ({ ...alert, replayed: true })));
    }, (error) => {
      if (this._held !== held || link.ended) return;
      if (!PASSING.has(error.code)) {
        this._recalls.shift();
        due.done([]);
      }
      this._retry(link, error, () => this._recall(link, due));
    });
  }

  /** Starts without a last alert: the newest one marks the starting point. */
  _begin(link) {
    const held = this._held;
    this._newest = 0;
    const request = { type: 'alerts-since', streamId: this.streamId, last: Math.max(1, this.history) };
    link.ask(request, () => {
      if (this._isOver(held)) return;
      this.last = this._newest;
      // Without history, the page has one alert. More, or the same one again, came live because this
      // request was sent again.
      const due = this.history || this._offered > 1 ? inOrder(held) : [];
      held.clear();
      this._catchUp(link, this.last);
      for (const alert of due) this._deliver(alert, true);
    }, (error) => this._retry(link, error, () => this._begin(link)));
  }

  _catchUp(link, after, known = true) {
    const held = this._held;
    this._newest = after;
    const where = known ? { after } : { last: 500 };
    link.ask({ type: 'alerts-since', streamId: this.streamId, ...where }, ({ more }) => {
      if (this._isOver(held)) return;
      // Replayed alerts come right before their reply, so the newest is the last of the page.
      const position = Math.max(after, this._newest);
      this._release(more ? position : Infinity);
      if (this._held !== held) return; // a listener unsubscribed or closed
      if (more) this._catchUp(link, position);
      else {
        this._held = null;
        this._recallNext();
      }
    }, (error) => {
      if (this._held !== held) return;
      if (error.code === 'INVALID_MESSAGE' && known) {
        this._catchUp(link, after, false); // the last alert seen has been deleted
      } else {
        this._retry(link, error, () => this._catchUp(link, after, known));
      }
    });
  }

  /** Whether these alerts were held for a request that a newer one has replaced. */
  _isOver(held) {
    if (this._held === held) return false;
    const heir = this._client._feeds.get(this.streamId);
    if (heir !== this) heir?._forget();
    return true;
  }

  /** Ignores what came until now: it was the reply to an earlier feed. */
  _forget() {
    if (this.last !== null) return;
    this._held?.clear();
    this._offered = 0;
  }

  _retry(link, error, work) {
    const held = this._held;
    if (link.ended || held === null) return;
    if (PASSING.has(error.code)) {
      link.later(error.retryAfter ?? RETRY, () => {
        if (this._held === held) work();
      });
      return;
    }
    this.last ??= 0;
    this._release(Infinity);
    this._held = null;
    this._client._emit('problem', error);
    this._recallNext();
  }

  _release(position) {
    const held = this._held;
    for (const alert of inOrder(held)) {
      if (alert.alertId > position) break;
      held.delete(alert.alertId);
      this._pass(alert, true);
    }
  }

  _pass(alert, replayed) {
    if (alert.alertId <= this.last) return;
    this.last = alert.alertId;
    this._deliver(alert, replayed);
  }

  _deliver({ type: _, ...alert }, replayed) {
    const told = new Set();
    for (const [owner, listener] of [...this.listeners]) {
      if (told.has(listener) || !this.listeners.has(owner)) continue;
      told.add(listener);
      call(listener, { ...alert, replayed });
    }
  }
}

const inOrder = (alerts) => [...alerts.values()].sort((one, other) => one.alertId - other.alertId);

/** A subscription to one stream; created by `client.subscribe`. */
class Subscription {
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
    if (!this.epoch) return; // from an earlier subscription
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

/** A connection to a relay that reconnects until it is closed; `RelayClient` can also publish. */
export class ViewerClient {
  constructor(options) {
    const { backoff, url, ...rest } = options ?? {};
    const given = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== undefined));
    this._settings = { ...DEFAULTS, ...given, backoff: { ...DEFAULTS.backoff, ...backoff } };
    if (!('token' in this._settings)) throw new TypeError('RelayClient needs a token, or a function that returns one');
    this._url = addressOf(url, this._settings.path);
    this._WebSocket = this._settings.WebSocket ?? globalThis.WebSocket;
    if (typeof this._WebSocket !== 'function') {
      throw new TypeError('WebSocket is not defined: on Node 20, use `node --experimental-websocket`, or pass a class, as in { WebSocket }');
    }
    this._state = 'idle';
    this._listeners = new Map();
    this._subscriptions = new Map();
    this._feeds = new Map();
    this._publication = null;
    this._observing = null;
    this._alerts = new Set();
    this._session = null;
    this._clockOffset = 0;
    this._link = null;
    this._attempt = null;
    this._failures = 0;
    this._unopened = 0;
    this._retryAt = null;
    this._reason = 'connect';
    this._lastToken = null;
    this._refusedToken = null;
    this._opened = null;
    this._onOnline = () => this._wake();
    this._onOffline = () => this._lookSoon();
  }

  get state() { return this._state; }
  get session() { return this._session; }
  get retryAt() { return this._retryAt; }
  get publication() { return this._publication; }
  get encoding() { return this._link?.ready ? (this._link.binary ? 'msgpack' : 'json') : null; }
  get roundTrip() { return this._link?.ready && Number.isFinite(this._link.rtt) ? this._link.rtt : null; }

  /** The relay's clock in ms since 1970, estimated from replies. */
  relayNow() {
    return Date.now() + this._clockOffset;
  }

  /** Calls `listener` on each `name`: state, session, problem or notice. Returns a function that removes it. */
  on(name, listener) {
    if (!this._listeners.has(name)) this._listeners.set(name, new Set());
    this._listeners.get(name).add(listener);
    return () => this._listeners.get(name).delete(listener);
  }

  /** Connects. The promise resolves with the first session, and rejects only if the client closes. */
  connect() {
    if (this._state === 'closed') return Promise.reject(closedByUs());
    if (this._opened === null) {
      this._opened = new Promise((resolve, reject) => { this._settle = { resolve, reject }; });
      this._opened.catch(() => {}); // the error is also reported by `state`
    }
    if (this._state === 'idle') {
      globalThis.addEventListener?.('online', this._onOnline);
      globalThis.addEventListener?.('offline', this._onOffline);
      this._begin();
    }
    return this._opened;
  }

  /** Closes the connection until `resume()`, for apps in the background. */
  pause() {
    if (!['connecting', 'ready', 'waiting'].includes(this._state)) return;
    this._drop();
    this._enter('paused');
  }

  resume() {
    if (this._state !== 'paused') return;
    this._failures = 0;
    this._begin();
  }

  /** Reconnects now instead of later, for instance when the network is back. */
  retryNow() {
    if (this._state === 'waiting') this._begin();
  }

  /** Asks for a new token, and renews the session or reconnects with it. */
  renew() {
    if (this._link?.ready) this._renew(this._link, this._session?.expiresAt);
    else this.retryNow();
  }

  close() {
    if (this._state !== 'closed') this._finish(closedByUs(), { politely: true });
  }

  subscribe(streamId, options = {}) {
    this._demandOpen();
    if (this._subscriptions.has(streamId)) {
      throw new RelayError('INVALID_MESSAGE', `Already subscribed to ${streamId}: use update()`);
    }
    const subscription = new Subscription(this, streamId, options);
    this._subscriptions.set(streamId, subscription);
    if (this._link?.inUse) subscription._start(this._link);
    return subscription;
  }

  /** Calls `listener` with all live streams the user may watch, now and after each change. */
  watchStreams(listener) {
    this._demandOpen();
    this._observing ??= { streams: new Map(), listeners: new Set() };
    const observing = this._observing;
    const first = observing.listeners.size === 0;
    observing.listeners.add(listener);
    if (!first && observing.complete) call(listener, [...observing.streams.values()]);
    else if (first && this._link?.inUse) this._observe(this._link);
    return () => observing.listeners.delete(listener);
  }

  /**
   * Sends an alert, again after each reconnect, until the relay has stored it. The `alertKey`
   * prevents duplicates.
   */
  alert(alert) {
    if (this._state === 'closed') return Promise.reject(closedByUs());
    if (this._alerts.size >= MOST_ALERTS_WAITING) {
      return Promise.reject(new RelayError('RATE_LIMITED', 'Too many alerts are waiting to be sent'));
    }
    const { timestamp = Date.now(), severity = 'medium' } = alert;
    const alertKey = alert.alertKey ?? newKey();
    const message = { ...alert, type: 'alert', timestamp, severity, alertKey };
    return new Promise((resolve, reject) => {
      this._alerts.add({ message, resolve, reject, link: null });
      if (this._link?.inUse) this._sendAlerts(this._link);
    });
  }

  // -- Private to this module

  _demandOpen() {
    if (this._state === 'closed') throw closedByUs();
  }

  _emit(name, ...values) {
    for (const listener of [...(this._listeners.get(name) ?? [])]) call(listener, ...values);
  }

  _enter(state, { error = null } = {}) {
    const previous = this._state;
    if (!TRANSITIONS[previous].includes(state)) throw new Error(`Invalid transition from ${previous} to ${state}`);
    this._state = state;
    if (state !== 'waiting') this._retryAt = null;
    this._emit('state', { state, previous, error, retryAt: this._retryAt });
  }

  async _begin() {
    const attempt = {};
    this._attempt = attempt;
    clearTimeout(this._timer);
    this._enter('connecting');
    if (this._attempt !== attempt) return; // a listener unsubscribed or closed
    let token;
    try {
      token = await this._askForToken({ reason: this._reason });
    } catch (error) {
      if (this._attempt === attempt) this._wait(0, error);
      return;
    }
    if (this._attempt !== attempt) return;
    if (!token) {
      this._finish(new RelayError('NO_TOKEN', 'There is no token to authenticate with'));
    } else if (typeof token !== 'string') {
      this._finish(noString(token));
    } else if (token === this._refusedToken) {
      this._finish(new RelayError('AUTH_FAILED', 'The relay refused the token, and there is no other'));
    } else {
      this._open(attempt, token);
    }
  }

  _askForToken(why) {
    const { token, tokenTimeout } = this._settings;
    if (typeof token !== 'function') return Promise.resolve(token);
    return new Promise((resolve, reject) => {
      const late = () => reject(new RelayError('DISCONNECTED', 'Getting the token took too long'));
      const timer = setTimeout(late, tokenTimeout);
      const refused = why.reason === 'refused' ? { refused: this._refusedToken } : {};
      Promise.resolve().then(() => token({ ...why, ...refused })).then(resolve, reject)
        .finally(() => clearTimeout(timer));
    });
  }

  /** Names a stream, so that a relay of several processes can put the connection where it is. */
  _urlOfStream() {
    const [watched] = this._subscriptions.keys();
    const streamId = this._publication?.streamId ?? watched;
    if (streamId === undefined || this._url.includes('?')) return this._url;
    return `${this._url}?stream=${encodeURIComponent(streamId)}`;
  }

  _open(attempt, token) {
    const { encoding } = this._settings;
    // Some proxies fail on subprotocols: every third attempt after failures goes without.
    const plain = encoding === 'json' || (encoding === 'auto' && this._unopened % 3 === 2);
    const url = this._urlOfStream();
    let socket;
    try {
      socket = plain ? new this._WebSocket(url) : new this._WebSocket(url, SUBPROTOCOLS);
    } catch (cause) { // for instance ws: on an https page
      this._finish(new RelayError('DISCONNECTED', `Cannot open a WebSocket: ${cause.message}`, { cause }));
      return;
    }
    this._unopened += 1;
    this._lastToken = token;
    const mine = (told) => (value) => { if (this._attempt === attempt) told(value); };
    this._link = new Link(socket, token, this._settings, {
      ready: mine((session) => this._onReady(session)),
      message: mine((message) => this._onMessage(message)),
      clock: mine((offset) => { this._clockOffset = offset; }),
      end: mine((ending) => this._onEnd(ending)),
    });
  }

  _onReady(reply) {
    this._unopened = 0;
    this._reason = 'connect';
    this._refusedToken = null;
    this._failures = Math.min(this._failures, 2);
    const link = this._link;
    this._learnSession(reply);
    if (link.ended) return; // a listener unsubscribed or closed
    this._enter('ready');
    if (link.ended) return;
    this._settle?.resolve(this._session);
    link.inUse = true;
    this._publication?._start(link);
    if (this._observing?.listeners.size) this._observe(link);
    for (const subscription of this._subscriptions.values()) subscription._start(link);
    this._sendAlerts(link);
  }

  _learnSession({ userId, sessionId, expiresAt }) {
    this._session = { userId, sessionId, expiresAt };
    this._emit('session', this._session);
  }

  _onMessage(message) {
    switch (message.type) {
      case 'video-frame':
        this._subscriptions.get(message.streamId)?._take(message, this._link);
        break;
      case 'alert':
        this._feeds.get(message.streamId)?.offer(message);
        break;
      case 'status':
        this._onStatus(message);
        break;
      case 'received':
        if (this._publication?.streamId === message.streamId) {
          this._publication._uplink?.answer(message.frames, now());
        }
        break;
      case 'notice':
        this._emit('notice', message);
        if (message.code === 'SESSION_EXPIRING') this._renew(this._link, message.expiresAt);
        if (message.code === 'KEYFRAME_WANTED' && this._publication?.streamId === message.streamId) {
          this._publication._wantKeyframe();
        }
        break;
      case 'error':
        this._emit('problem', errorOf(message));
        break;
      default: // from a newer relay
    }
  }

  _onStatus(message) {
    const { streamId, consumers } = message;
    if (consumers !== undefined) {
      if (this._publication?.streamId === streamId) this._publication._demand(message);
      return;
    }
    this._subscriptions.get(streamId)?._learn(message);
    const observing = this._observing;
    if (!observing?.known) return;
    if (message.status === 'offline') observing.streams.delete(streamId);
    else {
      const metadata = message.metadata ?? observing.streams.get(streamId)?.metadata;
      observing.streams.set(streamId, { streamId, status: message.status, metadata });
    }
    if (!observing.complete) return;
    for (const listener of [...observing.listeners]) call(listener, [...observing.streams.values()]);
  }

  _observe(link) {
    const observing = this._observing;
    observing.known = observing.complete = false;
    const ask = (after) => link.ask({ type: 'streams', ...after && { after } }, ({ streams, more }) => {
      if (!observing.known) observing.streams = new Map();
      observing.known = true;
      // What came as a status meanwhile lacks the metadata, which the page has.
      for (const each of streams) observing.streams.set(each.streamId, each);
      if (more === true && streams.length > 0) return ask(streams.at(-1).streamId);
      observing.complete = true;
      for (const listener of [...observing.listeners]) call(listener, [...observing.streams.values()]);
    }, (error) => {
      if (!link.ended) link.later(error.retryAfter ?? RETRY, () => ask(after));
    });
    ask();
  }

  /** Renews the session on the open connection; if that fails, the relay closes it in time. */
  async _renew(link, expiresAt) {
    const again = (error) => {
      if (!link.ended) link.later(error?.retryAfter ?? RETRY, () => this._renew(link, expiresAt));
    };
    let token;
    try {
      token = await this._askForToken({ reason: 'expiring', expiresAt });
    } catch {
      again();
      return;
    }
    if (!token || link.ended) return;
    if (typeof token !== 'string') {
      this._emit('problem', noString(token));
      return;
    }
    this._lastToken = token;
    link.ask({ type: 'auth', token }, (reply) => this._learnSession(reply), (error) => {
      if (PASSING.has(error.code)) again(error);
      else if (!link.ended) this._emit('problem', error);
    });
  }

  /** Sends alerts not yet sent on this connection. Those of the published stream wait for its registration. */
  _sendAlerts(link) {
    const { streamId, registered } = this._publication ?? { registered: true };
    for (const waiting of [...this._alerts]) {
      if (waiting.link === link || (!registered && waiting.message.streamId === streamId)) continue;
      waiting.link = link;
      this._sendAlert(link, waiting);
    }
  }

  _sendAlert(link, waiting) {
    const done = () => this._alerts.delete(waiting);
    link.ask(waiting.message, ({ alertId, streamId }) => {
      if (done()) waiting.resolve({ alertId, streamId });
    }, (error) => {
      if (link.ended) return; // sent again on the next connection
      if (PASSING.has(error.code)) link.later(error.retryAfter ?? RETRY, () => this._sendAlert(link, waiting));
      else if (done()) waiting.reject(error);
    });
  }

  _onEnd({ code, reason, word, error, lasted, opened }) {
    if (this._state === 'ready' && lasted > STEADY) this._failures = 0;
    this._link = null;
    this._publication?._lost();
    const verdict = judgeEnding(code, reason, word);
    const said = word?.type === 'error' ? errorOf(word) : null;
    const problem = said ?? error ?? new RelayError('DISCONNECTED', reason || 'The connection was lost');
    problem.closeCode ??= code;
    if (!opened) problem.message += hintAbout(this._url, this._unopened);
    if (!verdict.again) {
      this._finish(problem);
      return;
    }
    if (verdict.token !== 'connect') this._reason = verdict.token; // the reason until there is a session
    if (verdict.token === 'refused') this._refusedToken = this._lastToken;
    this._lastToken = null;
    this._wait(verdict.after, problem);
  }

  _wait(after, error) {
    const { first, most } = this._settings.backoff;
    const pause = Math.min(most, first * 2 ** this._failures);
    // The first attempt follows soon; later ones wait at least half of their pause.
    const drawn = this._failures === 0 ? pause * Math.random() : pause * (0.5 + Math.random() / 2);
    this._failures = Math.min(this._failures + 1, 30);
    const delay = after + drawn;
    this._attempt = null;
    this._retryAt = Date.now() + delay;
    this._retryNoSooner = now() + after;
    clearTimeout(this._timer);
    this._timer = setTimeout(() => this._begin(), delay);
    this._enter('waiting', { error });
  }

  /** The browser reports another network: check the connection. */
  _lookSoon() {
    this._link?.probe(Math.min(this._settings.patience, DOUBT));
  }

  /** The browser is online again: reconnect, but not before the relay's `retryAfter`. */
  _wake() {
    this._lookSoon();
    if (this._state !== 'waiting') return;
    const rest = this._retryNoSooner - now();
    clearTimeout(this._timer);
    this._timer = setTimeout(() => this._begin(), Math.max(0, rest) + 100 * Math.random());
  }

  _drop({ politely = true } = {}) {
    clearTimeout(this._timer);
    this._attempt = null;
    const link = this._link;
    this._link = null;
    this._publication?._lost();
    link?.leave(undefined, { politely });
  }

  _finish(error, { politely = false } = {}) {
    this._drop({ politely });
    this._session = this._lastToken = this._refusedToken = null;
    globalThis.removeEventListener?.('online', this._onOnline);
    globalThis.removeEventListener?.('offline', this._onOffline);
    for (const { reject } of this._alerts) reject(error);
    this._alerts.clear();
    for (const subscription of this._subscriptions.values()) subscription._finish();
    if (this._publication) this._publication.active = false;
    this._settle?.reject(error);
    this._enter('closed', { error });
  }

  _stopPublishing(publication) {
    if (this._publication !== publication) return;
    this._publication = null;
    if (this._state !== 'ready') return;
    // The protocol has no message for this; a stream ends with its connection.
    this._drop();
    this._failures = 0;
    this._wait(0, null);
  }

  _feed(owner, listener, history = 0) {
    const { streamId } = owner;
    if (!this._feeds.has(streamId)) this._feeds.set(streamId, new AlertFeed(this, streamId));
    const feed = this._feeds.get(streamId);
    feed.history = Math.max(feed.history, history);
    feed.listeners.set(owner, listener);
  }

  _unfeed(owner) {
    const feed = this._feeds.get(owner.streamId);
    feed?.listeners.delete(owner);
    if (feed?.listeners.size !== 0) return;
    this._feeds.delete(owner.streamId);
    feed.end();
  }

  _fedByPublication(streamId) {
    return this._publication?.streamId === streamId && Boolean(this._publication._options.onAlert);
  }
}

function addressOf(url, path) {
  const parts = /^(ws|http)(s?):\/\/([^/?#\s]+)(\/[^?#\s]*)?$/.exec(url ?? '');
  if (!parts) throw new TypeError('url: expected wss://HOST (or ws, https, http) without a token');
  const [, , secure, host, rest = '/'] = parts;
  return `ws${secure}://${host}${rest.endsWith('/') ? rest.slice(0, -1) + path : rest}`;
}

const LOCAL_HOST = /^(localhost|.*\.(local|localhost|lan|home\.arpa|internal)|[^.:]+|(127|10|192\.168|169\.254|172\.(1[6-9]|2\d|3[01])|100\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7]))\.[\d.]+|\[(::1|f[cd]|fe[89ab]).*\])$/i;

/** What may keep a connection from being opened that the browser, or the system, says nothing about. */
function hintAbout(url, attempts) {
  const [, host] = /^wss?:\/\/(\[[^\]]*\]|[^/:]*)/.exec(url);
  const local = LOCAL_HOST.test(host);
  if (globalThis.navigator?.product === 'ReactNative') {
    return local ? `. ${host} is in a local network: does the app have the permission for it, and for ws:// if that is used?` : '';
  }
  const page = globalThis.location?.hostname;
  if (!page || page === host || LOCAL_HOST.test(page)) return '';
  if (local) {
    return `. ${host} is in a local network: the browser may be keeping this page from it. Allow this site to access the local network`;
  }
  if (attempts < 2) return '';
  return `. If ${host} can be reached otherwise, the browser may be blocking it: its certificate, this page's Content-Security-Policy, `
    + "relay's allow_origins and, if it is in a local network, whether this site may access that";
}

function newKey() {
  const part = () => Math.random().toString(36).slice(2, 12);
  return `${Date.now().toString(36)}-${part()}${part()}`;
}

// -- Bytes and text. React Native lacks TextDecoder and, in places, atob.

const BASE64 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
const BASE64_VALUES = new Uint8Array(128).fill(64);
for (let index = 0; index < 64; index += 1) BASE64_VALUES[BASE64.charCodeAt(index)] = index;

function bytesOf(data) {
  if (data instanceof ArrayBuffer) return new Uint8Array(data);
  if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  throw new TypeError('neither text nor bytes');
}

function joinBytes(parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** Reads a message of the relay; throws if it is none. */
function readMessage(data) {
  const message = typeof data === 'string' ? JSON.parse(data) : decodeMessagePack(bytesOf(data));
  if (message === null || typeof message.type !== 'string') throw new Error('it has no type');
  return message;
}

export const asBytes = (data) => (typeof data === 'string' ? decodeBase64(data) : bytesOf(data));
export const asBase64 = (data) => (typeof data === 'string' ? data : encodeBase64(bytesOf(data)));

export function encodeBase64(bytes) {
  const parts = [];
  for (let start = 0; start < bytes.length; start += 6144) {
    const codes = [];
    const end = Math.min(start + 6144, bytes.length);
    for (let at = start; at < end; at += 3) {
      const bits = (bytes[at] << 16) | ((bytes[at + 1] ?? 0) << 8) | (bytes[at + 2] ?? 0);
      codes.push(
        BASE64.charCodeAt(bits >> 18),
        BASE64.charCodeAt((bits >> 12) & 63),
        at + 1 < bytes.length ? BASE64.charCodeAt((bits >> 6) & 63) : 61,
        at + 2 < bytes.length ? BASE64.charCodeAt(bits & 63) : 61,
      );
    }
    parts.push(String.fromCharCode.apply(null, codes));
  }
  return parts.join('');
}

export function decodeBase64(text) {
  const rest = text.endsWith('==') ? 2 : text.endsWith('=') ? 1 : 0;
  if (text.length % 4 !== 0) throw new TypeError('not base64');
  const bytes = new Uint8Array((text.length / 4) * 3 - rest);
  const valueAt = (at) => {
    const code = text.charCodeAt(at);
    const value = code < 128 ? BASE64_VALUES[code] : 64;
    if (value === 64 && !(code === 61 && at >= text.length - rest)) throw new TypeError('not base64');
    return value & 63;
  };
  for (let at = 0, to = 0; at < text.length; at += 4) {
    const bits = (valueAt(at) << 18) | (valueAt(at + 1) << 12) | (valueAt(at + 2) << 6) | valueAt(at + 3);
    bytes[to++] = bits >> 16;
    if (to < bytes.length) bytes[to++] = bits >> 8;
    if (to < bytes.length) bytes[to++] = bits;
  }
  return bytes;
}

// -- MessagePack, as far as the protocol uses it: no extension types, string keys only.

const MOST_NESTED = 100;
const PLAIN = { enumerable: true, configurable: true, writable: true };

/** Encodes null, booleans, finite numbers, strings, bytes, arrays and objects; omits `undefined`. */
export function encodeMessagePack(value) {
  const writer = new Writer();
  writer.value(value, 0);
  return writer.bytes.subarray(0, writer.size);
}

/** Decodes one value. Bytes are views into `bytes`, not copies. Throws on other types and on trailing bytes. */
export function decodeMessagePack(bytes) {
  const reader = new Reader(bytes);
  const value = reader.value(0);
  if (reader.at !== bytes.length) throw new RangeError('trailing bytes after the message');
  return value;
}

class Writer {
  constructor() {
    this.size = 0;
    this._grow(256);
  }

  _grow(room) {
    const bytes = new Uint8Array(room);
    if (this.bytes) bytes.set(this.bytes.subarray(0, this.size));
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer);
  }

  /** Reserves so many bytes; returns their offset. */
  _take(count) {
    const at = this.size;
    if (at + count > this.bytes.length) this._grow(Math.max(2 * this.bytes.length, at + count));
    this.size += count;
    return at;
  }

  _byte(byte) {
    const at = this._take(1); // first: it may replace `bytes`
    this.bytes[at] = byte;
  }

  _put(bytes) {
    const at = this._take(bytes.length);
    this.bytes.set(bytes, at);
  }

  /** Writes a type byte and a number of 1, 2 or 4 bytes. */
  _head(head, width, number) {
    const at = this._take(1 + width);
    this.bytes[at] = head;
    if (width === 1) this.bytes[at + 1] = number;
    else if (width === 2) this.view.setUint16(at + 1, number);
    else this.view.setUint32(at + 1, number);
  }

  _length(length, short, most, heads) {
    if (length <= most) this._byte(short | length);
    else if (length < 0x100 && heads[0]) this._head(heads[0], 1, length);
    else if (length < 0x10000) this._head(heads[1], 2, length);
    else this._head(heads[2], 4, length);
  }

  value(value, depth) {
    if (depth > MOST_NESTED) throw new RangeError('nested too deeply');
    if (value === null || value === undefined) this._byte(0xc0);
    else if (value === true || value === false) this._byte(value ? 0xc3 : 0xc2);
    else if (typeof value === 'number') this._number(value);
    else if (typeof value === 'string') this._text(value);
    else if (Array.isArray(value)) {
      this._length(value.length, 0x90, 15, [0, 0xdc, 0xdd]);
      for (const each of value) this.value(each, depth + 1);
    } else if (value instanceof ArrayBuffer || ArrayBuffer.isView(value)) {
      const bytes = bytesOf(value);
      this._length(bytes.length, 0, -1, [0xc4, 0xc5, 0xc6]);
      this._put(bytes);
    } else if (typeof value === 'object') {
      const entries = Object.entries(value).filter(([, each]) => each !== undefined);
      this._length(entries.length, 0x80, 15, [0, 0xde, 0xdf]);
      for (const [key, each] of entries) {
        this._text(key);
        this.value(each, depth + 1);
      }
    } else throw new TypeError(`cannot encode a ${typeof value}`);
  }

  _number(value) {
    if (!Number.isFinite(value)) throw new RangeError('cannot encode a number that is not finite');
    if (!Number.isSafeInteger(value)) {
      const at = this._take(9);
      this.bytes[at] = 0xcb;
      this.view.setFloat64(at + 1, value);
    } else if (value >= 0 && value < 0x80) this._byte(value);
    else if (value < 0 && value >= -0x20) this._byte(value & 0xff);
    else if (value > 0xffffffff || value < -0x80000000) {
      const at = this._take(9);
      this.bytes[at] = value < 0 ? 0xd3 : 0xcf;
      this.view.setUint32(at + 1, Math.floor(value / 0x100000000));
      this.view.setUint32(at + 5, value >>> 0);
    } else if (value >= 0) {
      if (value < 0x100) this._head(0xcc, 1, value);
      else if (value < 0x10000) this._head(0xcd, 2, value);
      else this._head(0xce, 4, value);
    } else if (value >= -0x80) this._head(0xd0, 1, value & 0xff);
    else if (value >= -0x8000) this._head(0xd1, 2, value & 0xffff);
    else this._head(0xd2, 4, value >>> 0);
  }

  _text(text) {
    const codes = utf8Of(text);
    this._length(codes.length, 0xa0, 31, [0xd9, 0xda, 0xdb]);
    this._put(codes);
  }
}

function utf8Of(text) {
  const codes = [];
  for (const character of text) {
    let code = character.codePointAt(0);
    if (code >= 0xd800 && code <= 0xdfff) code = 0xfffd; // a lone surrogate
    if (code < 0x80) codes.push(code);
    else if (code < 0x800) codes.push(0xc0 | (code >> 6), 0x80 | (code & 63));
    else if (code < 0x10000) codes.push(0xe0 | (code >> 12), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63));
    else {
      codes.push(0xf0 | (code >> 18), 0x80 | ((code >> 12) & 63), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63));
    }
  }
  return codes;
}

class Reader {
  constructor(bytes) {
    this.at = 0;
    this._bytes = bytes;
    this._view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  _skip(count) {
    const at = this.at;
    if (at + count > this._bytes.length) throw new RangeError('the message is incomplete');
    this.at += count;
    return at;
  }

  _uint(width) {
    const at = this._skip(width);
    if (width === 1) return this._bytes[at];
    if (width === 2) return this._view.getUint16(at);
    if (width === 4) return this._view.getUint32(at);
    return this._view.getUint32(at) * 0x100000000 + this._view.getUint32(at + 4);
  }

  value(depth) {
    if (depth > MOST_NESTED) throw new RangeError('nested too deeply');
    const head = this._uint(1);
    if (head < 0x80) return head;
    if (head < 0x90) return this._map(head & 15, depth);
    if (head < 0xa0) return this._array(head & 15, depth);
    if (head < 0xc0) return this._text(head & 31);
    if (head >= 0xe0) return head - 0x100;
    switch (head) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: case 0xc5: case 0xc6: {
        const length = this._uint(1 << (head - 0xc4));
        const at = this._skip(length);
        return this._bytes.subarray(at, at + length);
      }
      case 0xca: return this._view.getFloat32(this._skip(4));
      case 0xcb: return this._view.getFloat64(this._skip(8));
      case 0xcc: case 0xcd: case 0xce: case 0xcf: return this._uint(1 << (head - 0xcc));
      case 0xd0: return this._view.getInt8(this._skip(1));
      case 0xd1: return this._view.getInt16(this._skip(2));
      case 0xd2: return this._view.getInt32(this._skip(4));
      case 0xd3: {
        const at = this._skip(8);
        return this._view.getInt32(at) * 0x100000000 + this._view.getUint32(at + 4);
      }
      case 0xd9: case 0xda: case 0xdb: return this._text(this._uint(1 << (head - 0xd9)));
      case 0xdc: case 0xdd: return this._array(this._uint(2 << (head - 0xdc)), depth);
      case 0xde: case 0xdf: return this._map(this._uint(2 << (head - 0xde)), depth);
      default: throw new TypeError(`unsupported type 0x${head.toString(16)}`);
    }
  }

  _array(length, depth) {
    if (length > this._bytes.length - this.at) throw new RangeError('the message is incomplete');
    const values = [];
    for (let index = 0; index < length; index += 1) values.push(this.value(depth + 1));
    return values;
  }

  _map(length, depth) {
    const object = {};
    for (let index = 0; index < length; index += 1) {
      const key = this.value(depth + 1);
      if (typeof key !== 'string') throw new TypeError('a key is not a string');
      const value = this.value(depth + 1);
      // like JSON.parse: an own property, whatever its name
      if (key === '__proto__') Object.defineProperty(object, key, { value, ...PLAIN });
      else object[key] = value;
    }
    return object;
  }

  _text(length) {
    const bytes = this._bytes;
    let at = this._skip(length);
    const end = this.at;
    let text = '';
    const next = (least, most) => {
      const code = at < end ? bytes[at] : 0;
      if (code < least || code > most) throw new TypeError('text is not UTF-8');
      at += 1;
      return code & 63;
    };
    while (at < end) {
      const code = bytes[at++];
      if (code < 0x80) text += String.fromCharCode(code);
      else if (code >= 0xc2 && code < 0xe0) text += String.fromCharCode(((code & 31) << 6) | next(0x80, 0xbf));
      else if (code >= 0xe0 && code < 0xf0) {
        const high = next(code === 0xe0 ? 0xa0 : 0x80, code === 0xed ? 0x9f : 0xbf);
        text += String.fromCharCode(((code & 15) << 12) | (high << 6) | next(0x80, 0xbf));
      } else if (code >= 0xf0 && code < 0xf5) {
        const high = next(code === 0xf0 ? 0x90 : 0x80, code === 0xf4 ? 0x8f : 0xbf);
        const middle = next(0x80, 0xbf);
        text += String.fromCodePoint(((code & 7) << 18) | (high << 12) | (middle << 6) | next(0x80, 0xbf));
      } else throw new TypeError('text is not UTF-8');
    }
    return text;
  }
}
