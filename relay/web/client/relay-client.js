/**
 * A client of the relay for browsers, React Native and Node (18 or later): one connection that
 * comes back by itself, with what was subscribed, published and sent. No dependencies, no build.
 *
 *     const client = new RelayClient({ url: 'wss://relay.example.org', token: () => readToken() });
 *     client.subscribe('front-door', { onFrame: show, onAlert: tell });
 *     await client.connect();
 *
 * The states, and all that leads from one to another (`TRANSITIONS` below, which is enforced):
 *
 *     idle        connect() was not called yet
 *     connecting  asks for a token, opens a WebSocket, sends `auth` and waits for the answer
 *     ready       authenticated; what was subscribed and published is asked for again
 *     waiting     the connection was lost or refused; the next attempt has its time (`retryAt`)
 *     paused      pause() was called: no connection, nothing forgotten
 *     closed      for good: close() was called, or the relay said that coming back is of no use
 *
 *     idle ──connect()──▶ connecting ──AUTHENTICATED──▶ ready
 *                          ▲      │ lost, refused         │ lost, closed by the relay
 *                          │      ▼                       ▼
 *                          └── waiting ◀──────────────────┘
 *     connecting, ready, waiting ──pause()──▶ paused ──resume()──▶ connecting
 *     any ──close(), or an ending without return──▶ closed
 *
 * How a connection ended decides what comes next (`judgeEnding`): close codes from 4500 and errors
 * in the protocol are final; a refused token needs another one; everything else is worth another
 * attempt, after a pause that grows, is drawn at random, and is never shorter than `retryAfter`.
 * The `error` that comes before a Close says the same as its code, for those who never see codes.
 *
 * The token is asked for whenever it is needed: before each attempt, and on SESSION_EXPIRING, when
 * the session is renewed on the living connection. It goes into the `auth` message and nowhere
 * else, and is kept only as long as a refusal of it may have to be recognized.
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
const WINDOW = 4;
const LOSSLESS_WINDOW = 32;
const MOST_ALERTS_WAITING = 1000;
const STEADY = 5_000; // ms that a connection has to last for the pauses to begin small again
const RETRY = 2_000; // ms, where the relay names no other time
const STEP = 100; // ms by which a clock may wander off before it counts as set
const DOUBT = 2_000; // ms for a sign of life after the browser said that its network changed
const GOODBYE = 2_000; // ms for the Close that follows a final `error`
const NOWHERE = 'relay-client:nothing'; // a stream nobody subscribes to
const PASSING = new Set(['STORE_UNAVAILABLE', 'RATE_LIMITED', 'AUTH_UNAVAILABLE', 'TOO_MANY_CONNECTIONS']);

const now = () => globalThis.performance?.now() ?? Date.now();

/** What went wrong: `code` is one of the protocol's, or NO_TOKEN, DISCONNECTED, CLOSED, UNREADABLE. */
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
  new RelayError('NO_TOKEN', `A token is a string, and this one is of type ${typeof token}`);
const closedByUs = () => new RelayError('CLOSED', 'The client was closed');

/**
 * What to do after an ending: `{ again, token, after }`. `code` and `reason` are those of the
 * Close, as far as they were seen; `word` the `error` or `notice` that was the last thing heard.
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
 * Calls a listener of the application. What it throws disturbs nothing here, and is reported as any
 * error that nobody catches: Node ends the process then, unless it listens to `uncaughtException`.
 */
function call(listener, ...values) {
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

/** One WebSocket from its opening to its end, which is told once. */
class Link {
  constructor(socket, token, settings, told) {
    this.ready = false;
    this.inUse = false; // once all is asked for again: what is new after that asks for itself
    this.ended = false;
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
    this._signs = { heard: null, answered: null }; // of life: those that are waited for
    this._openUntil = now() + settings.openTimeout;
    this._overslept = false;
    this._buffered = 0;
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => this._authenticate(token);
    socket.onmessage = (event) => this._receive(event.data);
    socket.onclose = (event) => this._end(event?.code, event?.reason);
    socket.onerror = () => {}; // `close` follows; without this, Node's `ws` would throw
    this._period = Math.max(5, Math.min(1000, settings.silence / 4, settings.patience / 4));
    this._tick();
  }

  get binary() {
    return this._socket.protocol === SUBPROTOCOLS[0];
  }

  get buffered() {
    return this._socket.bufferedAmount ?? 0;
  }

  send(message) {
    if (this.ended || this._socket.readyState !== 1) return false;
    const encoded = this.binary ? encodeMessagePack(message) : JSON.stringify(message);
    this.bytesSent += encoded.length;
    this._socket.send(encoded);
    return true;
  }

  /** Sends a request; one of the two is called with the answer, before any later message is read. */
  ask(message, onSuccess, onError) {
    const id = ++this._lastId;
    if (this.ended) {
      onError(disconnected());
      return;
    }
    this._questions.set(id, { onSuccess, onError, at: now(), auth: message.type === 'auth' });
    try {
      this.send({ ...message, id }); // where that cannot be any more, the end is near, and answers
    } catch (cause) { // it has in it what no encoding has, and must not hold up what comes after it
      const error = new RelayError('INVALID_MESSAGE', `It cannot be encoded: ${cause.message}`, { cause });
      this._questions.delete(id);
      this.later(0, () => onError(error));
    }
  }

  /** Asks for any answer at all: to leave a stream that was never entered is cheap for the relay. */
  ping(onAnswer = () => {}) {
    this.ask({ type: 'unsubscribe', streamId: NOWHERE }, onAnswer, onAnswer);
  }

  /** Looks whether anybody is still there; the connection ends if nothing is heard in so many ms. */
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

  /** Ends the connection from here. A polite end lets the relay know at once. */
  leave(error, { politely = false } = {}) {
    const socket = this._socket;
    this._end(undefined, undefined, error);
    try {
      if (!politely && typeof socket.terminate === 'function') socket.terminate();
      else socket.close(1000);
    } catch {
      // It was not open yet, or not any more.
    }
  }

  _authenticate(token) {
    this.ask({ type: 'auth', token }, (reply) => {
      this.ready = true;
      this._told.ready(reply);
    }, () => {}); // what follows is a Close
  }

  _receive(data) {
    if (this.ended) return;
    this._alive();
    let message;
    try {
      message = typeof data === 'string' ? JSON.parse(data) : decodeMessagePack(bytesOf(data));
      if (message === null || typeof message.type !== 'string') throw new Error('no message');
    } catch (error) {
      this.leave(new RelayError('UNREADABLE', `The relay sent what is no message: ${error.message}`));
      return;
    }
    const question = message.id === undefined ? undefined : this._questions.get(message.id);
    const said = message.type === 'error' || message.type === 'notice';
    // The refusal of a request is no goodbye, but for `auth` and a stream that was taken over.
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

  _alive() {
    this._heardAt = now();
    this._signs.heard = null;
  }

  /** Asks for a sign of life; the connection ends if it does not come in time. */
  _demand(sign, patience, again = false) {
    const until = now() + patience;
    if (!this.ready || this._signs[sign]?.until <= until) return;
    this._signs[sign] = { patience, until, again };
    this.ping();
  }

  /** The relay's clock, as the quickest answer had it. */
  _measure(timestamp, rtt) {
    if (rtt > this.rtt || typeof timestamp !== 'number') return;
    this.rtt = rtt;
    this._told.clock(timestamp + rtt / 2 - Date.now());
  }

  /** Our own clock was set: what is known of the relay's has to be found out anew. */
  _noticeStep() {
    const ahead = Date.now() - now();
    if (Math.abs(ahead - this._ahead) > STEP) {
      this.rtt = Infinity;
      this._ahead = ahead;
      if (this.ready) this.ping();
    }
  }

  /**
   * We come late: what was sent to us meanwhile is yet to be read, so what is waited for gets its
   * time once more. Only once: in a hidden tab each tick may be late.
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
    if (this.buffered < this._buffered) { // what was sent is under way
      this._answeredAt = time;
      this._alive();
    }
    this._buffered = this.buffered;
    if (!this.ready && time > this._openUntil) {
      this.leave(new RelayError('DISCONNECTED', 'The relay did not answer in time'));
    } else if (Object.values(this._signs).some((sign) => time > sign?.until)) {
      this.leave(new RelayError('DISCONNECTED', 'Nothing is heard from the relay'));
    } else {
      // Much may be heard where nothing gets through to the relay.
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
    for (const { onError } of questions) onError(disconnected());
    this._told.end({ code, reason, word: this._word, error, lasted: now() - this._openedAt });
  }
}

/**
 * The alerts of one stream, each once and in order, whatever became of the connection meanwhile.
 *
 * After `subscribe` comes `alerts-since` with the last alert that was seen. Until its last page
 * all alerts are held, since live ones may come before it, and again in it.
 */
class AlertFeed {
  constructor(client, streamId) {
    this.streamId = streamId;
    this.last = null; // the last alert seen; null before the first answer
    this.listeners = new Map(); // by the subscription or publication that they are of
    this.history = 0;
    this._client = client;
    this._link = null; // on which it was resumed last
    this._held = null;
    this._newest = 0;
    this._offered = 0;
  }

  /** Goes on from where it was, around the request that makes alerts come. */
  resume(link, subscribe) {
    if (this._link === link && this.last === null) { // where to begin is being asked already
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

  /** Nobody listens any more: what is still to be answered is nobody's. */
  end() {
    this._held = null;
  }

  offer(alert) {
    this._newest = alert.alertId;
    this._offered += 1;
    if (this._held !== null) this._held.set(alert.alertId, alert);
    else this._pass(alert, false);
  }

  /** Before there was any alert: what is the newest now marks where to begin. */
  _begin(link) {
    const held = this._held;
    this._newest = 0;
    const request = { type: 'alerts-since', streamId: this.streamId, last: Math.max(1, this.history) };
    link.ask(request, () => {
      if (this._isOver(held)) return;
      this.last = this._newest;
      // The page is of one alert where no history is wanted. What is more, or the same again, came
      // live: this question had to be asked again.
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
      // Replayed alerts come last before their reply, so the newest is how far they went.
      const position = Math.max(after, this._newest);
      this._release(more ? position : Infinity);
      if (this._held !== held) return; // a listener changed its mind
      if (more) this._catchUp(link, position);
      else this._held = null;
    }, (error) => {
      if (this._held !== held) return;
      if (error.code === 'INVALID_MESSAGE' && known) {
        this._catchUp(link, after, false); // the last one seen is no longer kept
      } else {
        this._retry(link, error, () => this._catchUp(link, after, known));
      }
    });
  }

  /** Whether these alerts were held for a question that another one has taken the place of. */
  _isOver(held) {
    if (this._held === held) return false;
    const heir = this._client._feeds.get(this.streamId);
    if (heir !== this) heir?._forget();
    return true;
  }

  /** What came until now was the answer to the feed before, which is gone. */
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

/** One stream that is watched; made by `client.subscribe`. */
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
    this._entered = null; // the connection on which the relay has it
    this._seq = 0;
    this._frames = [];
    this._broken = false;
    this._busy = false;
    if (options.onAlert) client._feed(this, options.onAlert, options.history);
  }

  /** Changes the terms: policy, maxFps, window; and whether there are frames, by `onFrame`. */
  update(options) {
    if (options.onAlert !== undefined) throw new TypeError('onAlert cannot be changed: subscribe anew');
    const before = this._options.onFrame;
    this._options = { ...this._options, ...options };
    // The relay begins with the latest frame, and whoever shows frames again may have kept nothing.
    if (!before && this._options.onFrame) this._seq = 0;
    this._terms = termsOf(this._options);
    const link = this._client._link;
    if (this.active && link?.inUse) this._subscribe(link);
  }

  unsubscribe() {
    if (!this.active) return;
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

  /** Subscribes so that no alert is missed before. */
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
      if (this._entered === link) this._leave(link); // of other terms; it has the ones before
      this._stop();
      if (onError) call(onError, error);
      else this._client._emit('problem', error);
    });
  }

  _learn({ epoch, metadata, status }) {
    if (epoch !== this.epoch) {
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
    const { seq, keyframe } = message;
    if (!this.epoch) return; // of a subscription before this one, which has not begun
    // After a reconnect the latest frame comes again. Decoders want a keyframe again, too.
    const newest = this._frames[this._frames.length - 1]?.message.seq ?? this._seq;
    if (seq === newest || (seq < newest && keyframe !== true)) {
      this._acknowledge(seq, link);
      return;
    }
    const full = this._terms.policy === 'latest' && this._frames.length >= (this._terms.window ?? 1);
    if (keyframe === false && (full || this._broken)) {
      this._broken = true; // what builds on a frame that was skipped is of no use
      this._acknowledge(seq, link);
      return;
    }
    this._broken = false;
    if (full) this._frames = [];
    this._frames.push({ message, link, epoch: this.epoch });
    this._deliver();
  }

  /** Hands frames to the application one after the other, and acknowledges what it is done with. */
  _deliver() {
    while (!this._busy && this._frames.length > 0) {
      const { message, link, epoch } = this._frames.shift();
      const done = () => this._acknowledge(message.seq, link, epoch);
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
    } catch (error) { // the producer's fault: in JSON the relay passes on what it was given
      this._client._emit('problem', new RelayError('UNREADABLE', `A frame is ${error.message}`, fields));
      return null;
    }
  }

  _acknowledge(seq, link, epoch = this.epoch) {
    if (this.active && this._terms.window) {
      link.send({ type: 'ack', streamId: this.streamId, seq, ...(epoch ? { epoch } : {}) });
    }
  }
}

function termsOf({ policy = 'latest', maxFps, window }) {
  const usual = policy === 'latest' ? WINDOW : LOSSLESS_WINDOW;
  const size = window === undefined || (window === null && policy !== 'latest') ? usual : window;
  return { policy, ...(maxFps ? { maxFps } : {}), ...(size ? { window: size } : {}) };
}

/** The stream that this client produces; made by `client.publish`. */
class Publication {
  constructor(client, options) {
    this.streamId = options.streamId;
    this.registered = false;
    this.consumers = 0;
    this.sent = 0;
    this.skipped = 0;
    this.active = true;
    this._client = client;
    this._options = options;
    this._broken = true; // what builds on a frame that was not sent is of no use
    this._bytes = 0; // of frames, on this connection
    this._confirmed = 0; // of them
    this._asking = false;
    if (options.onAlert && this.streamId) client._feed(this, options.onAlert, options.history);
  }

  /**
   * Hands a frame to the network, or skips it where the one before is still under way: a frame
   * that waits is an old picture. Returns whether it was sent.
   */
  sendFrame(data, { timestamp = Date.now(), keyframe, metadata } = {}) {
    const link = this._client._link;
    if (!this.registered || !link?.ready || this._isFull(link) || (this._broken && keyframe === false)) {
      this.skipped += 1;
      this._broken = true;
      return false;
    }
    const message = { type: 'video-frame', data: link.binary ? asBytes(data) : asBase64(data), timestamp };
    if (keyframe !== undefined) message.keyframe = keyframe;
    if (metadata !== undefined) message.metadata = metadata;
    const before = link.bytesSent;
    if (!link.send(message)) return false;
    this._bytes += link.bytesSent - before;
    this._broken = false;
    this.sent += 1;
    this._confirm(link);
    return true;
  }

  /** Ends the stream: the connection is made anew, without it. */
  stop() {
    if (!this.active) return;
    this.active = false;
    this.registered = false;
    this._client._unfeed(this);
    this._client._stopPublishing(this);
  }

  /** What lies here is seen by `bufferedAmount`; what lies in buffers beyond by unanswered questions. */
  _isFull(link) {
    const { maxBuffered } = this._client._settings;
    return link.buffered > maxBuffered || (this._asking && this._bytes - this._confirmed > maxBuffered);
  }

  _confirm(link) {
    if (this._asking) return;
    this._asking = true;
    const bytes = this._bytes;
    link.ping(() => {
      this._asking = false;
      this._confirmed = bytes;
    });
  }

  _start(link) {
    this._asking = false;
    this._bytes = this._confirmed = 0;
    this._broken = true;
    this._enter(link);
  }

  /** Registers so that no alert is missed before. */
  _enter(link) {
    const feed = this._options.onAlert && this._client._feeds.get(this.streamId);
    if (feed) feed.resume(link, () => this._register(link));
    else this._register(link);
  }

  _register(link) {
    const { metadata, onAlert, onError } = this._options;
    const request = { type: 'register', produces: ['video-frame'], consumes: onAlert ? ['alert'] : [] };
    if (this.streamId !== undefined) request.streamId = this.streamId;
    if (metadata !== undefined) request.metadata = metadata;
    link.ask(request, ({ streamId }) => {
      if (!this.active) return;
      this.registered = true;
      if (this.streamId === undefined) {
        this.streamId = streamId;
        if (onAlert) {
          this._client._feed(this, onAlert);
          this._client._feeds.get(streamId).last = 0; // it is new: there was none before
        }
      }
      this._client._sendAlerts(link);
      call(this._options.onRegistered, streamId);
    }, (error) => {
      if (link.ended || !this.active) return;
      if (PASSING.has(error.code)) {
        link.later(error.retryAfter ?? RETRY, () => this.active && this._enter(link));
        return;
      }
      this.active = false;
      this._client._publication = null;
      this._client._unfeed(this);
      this._client._sendAlerts(link);
      if (onError) call(onError, error);
      else this._client._emit('problem', error);
    });
  }

  _demand({ status, consumers, epoch }) {
    const changed = consumers !== this.consumers;
    this.consumers = consumers;
    call(this._options.onStatus, { streamId: this.streamId, status, consumers, epoch });
    if (changed) call(this._options.onDemand, consumers);
  }

  _lost() {
    this.registered = false;
  }
}

/** A connection to a relay that is kept for as long as it may be. */
export class RelayClient {
  constructor(options) {
    const { backoff, url, ...rest } = options ?? {};
    const given = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== undefined));
    this._settings = { ...DEFAULTS, ...given, backoff: { ...DEFAULTS.backoff, ...backoff } };
    if (!('token' in this._settings)) throw new TypeError('RelayClient needs a token, or a function that gets one');
    this._url = addressOf(url, this._settings.path);
    this._WebSocket = this._settings.WebSocket ?? globalThis.WebSocket;
    if (typeof this._WebSocket !== 'function') {
      throw new TypeError('There is no WebSocket here: pass one, as in { WebSocket: require("ws") }');
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

  /** The relay's clock, ms since 1970, as far as answers have shown it. */
  relayNow() {
    return Date.now() + this._clockOffset;
  }

  /** Calls `listener` on each `name`: state, session, problem, notice. Returns how to stop that. */
  on(name, listener) {
    if (!this._listeners.has(name)) this._listeners.set(name, new Set());
    this._listeners.get(name).add(listener);
    return () => this._listeners.get(name).delete(listener);
  }

  /** Begins. The promise is kept with the first session, and broken only if the client is closed. */
  connect() {
    if (this._state === 'closed') return Promise.reject(closedByUs());
    if (this._opened === null) {
      this._opened = new Promise((resolve, reject) => { this._settle = { resolve, reject }; });
      this._opened.catch(() => {}); // whoever does not wait for it hears of it by `state`
    }
    if (this._state === 'idle') {
      globalThis.addEventListener?.('online', this._onOnline);
      globalThis.addEventListener?.('offline', this._onOffline);
      this._begin();
    }
    return this._opened;
  }

  /** Gives the connection up until `resume()`: for apps in the background. */
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

  /** Tries again now rather than later, as when the network is known to be back. */
  retryNow() {
    if (this._state === 'waiting') this._begin();
  }

  /** There is another token: renews the session on the living connection, or tries again with it. */
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
      throw new RelayError('INVALID_MESSAGE', `There is a subscription to ${streamId} already: update() it`);
    }
    const subscription = new Subscription(this, streamId, options);
    this._subscriptions.set(streamId, subscription);
    if (this._link?.inUse) subscription._start(this._link);
    return subscription;
  }

  publish(options = {}) {
    this._demandOpen();
    if (this._publication) throw new RelayError('INVALID_MESSAGE', 'A client publishes one stream: stop() it first');
    this._publication = new Publication(this, options);
    if (this._link?.inUse) this._publication._start(this._link);
    return this._publication;
  }

  /** Calls `listener` with all live streams that may be seen, now and after each change. */
  watchStreams(listener) {
    this._demandOpen();
    this._observing ??= { streams: new Map(), listeners: new Set() };
    const observing = this._observing;
    const first = observing.listeners.size === 0;
    observing.listeners.add(listener);
    if (!first && observing.known) call(listener, [...observing.streams.values()]);
    else if (first && this._link?.inUse) this._observe(this._link);
    return () => observing.listeners.delete(listener);
  }

  /**
   * Sends an alert, again after each loss of the connection, until the relay has stored it. The
   * `alertKey` sees to it that nobody gets it twice.
   */
  alert(alert) {
    if (this._state === 'closed') return Promise.reject(closedByUs());
    if (this._alerts.size >= MOST_ALERTS_WAITING) {
      return Promise.reject(new RelayError('RATE_LIMITED', 'Too many alerts wait for the relay'));
    }
    const { timestamp = Date.now(), severity = 'medium' } = alert;
    const alertKey = alert.alertKey ?? newKey();
    const message = { ...alert, type: 'alert', timestamp, severity, alertKey };
    return new Promise((resolve, reject) => {
      this._alerts.add({ message, resolve, reject, link: null });
      if (this._link?.inUse) this._sendAlerts(this._link);
    });
  }

  // -- From here on: for this module alone

  _demandOpen() {
    if (this._state === 'closed') throw closedByUs();
  }

  _emit(name, ...values) {
    for (const listener of [...(this._listeners.get(name) ?? [])]) call(listener, ...values);
  }

  _enter(state, { error = null } = {}) {
    const previous = this._state;
    if (!TRANSITIONS[previous].includes(state)) throw new Error(`No way from ${previous} to ${state}`);
    this._state = state;
    if (state !== 'waiting') this._retryAt = null;
    this._emit('state', { state, previous, error, retryAt: this._retryAt });
  }

  async _begin() {
    const attempt = {};
    this._attempt = attempt;
    clearTimeout(this._timer);
    this._enter('connecting');
    if (this._attempt !== attempt) return; // a listener changed its mind
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
      const late = () => reject(new RelayError('DISCONNECTED', 'The token did not come in time'));
      const timer = setTimeout(late, tokenTimeout);
      const refused = why.reason === 'refused' ? { refused: this._refusedToken } : {};
      Promise.resolve().then(() => token({ ...why, ...refused })).then(resolve, reject)
        .finally(() => clearTimeout(timer));
    });
  }

  _open(attempt, token) {
    const { encoding } = this._settings;
    // A proxy may stumble over subprotocols: without luck, each third attempt goes without.
    const plain = encoding === 'json' || (encoding === 'auto' && this._unopened % 3 === 2);
    let socket;
    try {
      socket = plain ? new this._WebSocket(this._url) : new this._WebSocket(this._url, SUBPROTOCOLS);
    } catch (cause) { // a page on https may not open ws:, say
      this._finish(new RelayError('DISCONNECTED', `No WebSocket can be opened: ${cause.message}`, { cause }));
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
    if (link.ended) return; // a listener changed its mind
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
      case 'notice':
        this._emit('notice', message);
        if (message.code === 'SESSION_EXPIRING') this._renew(this._link, message.expiresAt);
        break;
      case 'error':
        this._emit('problem', errorOf(message));
        break;
      default: // from a later version of the relay
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
    for (const listener of [...observing.listeners]) call(listener, [...observing.streams.values()]);
  }

  _observe(link) {
    const observing = this._observing;
    observing.known = false;
    link.ask({ type: 'streams' }, ({ streams }) => {
      observing.known = true;
      observing.streams = new Map(streams.map((each) => [each.streamId, each]));
      for (const listener of [...observing.listeners]) call(listener, [...observing.streams.values()]);
    }, (error) => {
      if (!link.ended) link.later(error.retryAfter ?? RETRY, () => this._observe(link));
    });
  }

  /** Renews the session on the living connection; where that fails, the relay ends it in time. */
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

  /** Sends what this connection was not given yet. Alerts of a stream wait for its registration. */
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
      if (link.ended) return; // it is sent again on the next connection
      if (PASSING.has(error.code)) link.later(error.retryAfter ?? RETRY, () => this._sendAlert(link, waiting));
      else if (done()) waiting.reject(error);
    });
  }

  _onEnd({ code, reason, word, error, lasted }) {
    if (this._state === 'ready' && lasted > STEADY) this._failures = 0;
    this._link = null;
    this._publication?._lost();
    const verdict = judgeEnding(code, reason, word);
    const said = word?.type === 'error' ? errorOf(word) : null;
    const problem = said ?? error ?? new RelayError('DISCONNECTED', reason || 'The connection was lost');
    problem.closeCode ??= code;
    if (!verdict.again) {
      this._finish(problem);
      return;
    }
    if (verdict.token !== 'connect') this._reason = verdict.token; // until there is a session, that is why
    if (verdict.token === 'refused') this._refusedToken = this._lastToken;
    this._lastToken = null;
    this._wait(verdict.after, problem);
  }

  _wait(after, error) {
    const { first, most } = this._settings.backoff;
    const pause = Math.min(most, first * 2 ** this._failures);
    // The first attempt follows soon; later ones keep at least half of their pause.
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

  /** The network is another, says the browser: look whether the connection still lives. */
  _lookSoon() {
    this._link?.probe(Math.min(this._settings.patience, DOUBT));
  }

  /** The network is back, says the browser: look, but not before the relay's `retryAfter`. */
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
    // The protocol has no word for it; the relay ends a stream with its connection.
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
  if (!parts) throw new TypeError('url: expected wss://HOST, or ws, http, https; and no token in it');
  const [, , secure, host, rest = '/'] = parts;
  return `ws${secure}://${host}${rest === '/' ? path : rest}`;
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

const asBytes = (data) => (typeof data === 'string' ? decodeBase64(data) : bytesOf(data));
const asBase64 = (data) => (typeof data === 'string' ? data : encodeBase64(bytesOf(data)));

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

// -- MessagePack: what the protocol uses of it. No extension types; keys are strings.

const MOST_NESTED = 100;
const PLAIN = { enumerable: true, configurable: true, writable: true };

/** Encodes null, booleans, finite numbers, strings, bytes, arrays and objects; `undefined` is left out. */
export function encodeMessagePack(value) {
  const writer = new Writer();
  writer.value(value, 0);
  return writer.bytes.subarray(0, writer.size);
}

/** Decodes one value. Bytes are views into `bytes`, not copies. Throws on anything else and on a rest. */
export function decodeMessagePack(bytes) {
  const reader = new Reader(bytes);
  const value = reader.value(0);
  if (reader.at !== bytes.length) throw new RangeError('something follows the message');
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

  /** Room for so many more bytes; returns where they begin. */
  _take(count) {
    const at = this.size;
    if (at + count > this.bytes.length) this._grow(Math.max(2 * this.bytes.length, at + count));
    this.size += count;
    return at;
  }

  _byte(byte) {
    const at = this._take(1); // first: it may make `bytes` anew
    this.bytes[at] = byte;
  }

  _put(bytes) {
    const at = this._take(bytes.length);
    this.bytes.set(bytes, at);
  }

  /** A head of one byte and a number of 1, 2 or 4 bytes. */
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
    if (depth > MOST_NESTED) throw new RangeError('nests too deep');
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
    } else throw new TypeError(`a ${typeof value} cannot be sent`);
  }

  _number(value) {
    if (!Number.isFinite(value)) throw new RangeError('a number that is not finite cannot be sent');
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
    if (code >= 0xd800 && code <= 0xdfff) code = 0xfffd; // half of a pair
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
    if (at + count > this._bytes.length) throw new RangeError('the message is cut off');
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
    if (depth > MOST_NESTED) throw new RangeError('nests too deep');
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
      default: throw new TypeError(`0x${head.toString(16)} is not used here`);
    }
  }

  _array(length, depth) {
    if (length > this._bytes.length - this.at) throw new RangeError('the message is cut off');
    const values = [];
    for (let index = 0; index < length; index += 1) values.push(this.value(depth + 1));
    return values;
  }

  _map(length, depth) {
    const object = {};
    for (let index = 0; index < length; index += 1) {
      const key = this.value(depth + 1);
      if (typeof key !== 'string') throw new TypeError('a key that is no text');
      const value = this.value(depth + 1);
      // As JSON.parse does it: an own property, whatever its name.
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
      if (code < least || code > most) throw new TypeError('text that is not UTF-8');
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
      } else throw new TypeError('text that is not UTF-8');
    }
    return text;
  }
}
