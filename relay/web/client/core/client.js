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
import { AlertFeed, AlertOutbox } from './alerts.js';
import {
  addressOf, call, closedByUs, errorOf, hintAbout, judgeEnding, Link, noString, now, PASSING, RelayError, RETRY,
  SUBPROTOCOLS, withStream,
} from './link.js';
import { StreamList, Subscription } from './subscription.js';

const TRANSITIONS = {
  idle: ['connecting', 'closed'],
  connecting: ['ready', 'waiting', 'paused', 'closed'],
  ready: ['waiting', 'paused', 'closed'],
  waiting: ['connecting', 'paused', 'closed'],
  paused: ['connecting', 'closed'],
  closed: [],
};

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
const STEADY = 5_000; // ms a connection must last before the backoff starts over
const DOUBT = 2_000; // ms to wait for an answer after the browser reported a network change

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
    this._streamList = new StreamList();
    this._outbox = new AlertOutbox();
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
    return this._streamList.watch(listener, this._link);
  }

  /**
   * Sends an alert, again after each reconnect, until the relay has stored it. The `alertKey`
   * prevents duplicates.
   */
  alert(alert) {
    if (this._state === 'closed') return Promise.reject(closedByUs());
    const stored = this._outbox.add(alert);
    if (this._link?.inUse) this._sendAlerts(this._link);
    return stored;
  }

  // -- Private to the client's modules

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

  _open(attempt, token) {
    const { encoding } = this._settings;
    // Some proxies fail on subprotocols: every third attempt after failures goes without.
    const plain = encoding === 'json' || (encoding === 'auto' && this._unopened % 3 === 2);
    const [watched] = this._subscriptions.keys();
    const url = withStream(this._url, this._publication?.streamId ?? watched);
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
    this._streamList.restore(link);
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
    this._streamList.learn(message);
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

  _sendAlerts(link) {
    this._outbox.send(link, this._publication);
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
    this._outbox.end(error);
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
