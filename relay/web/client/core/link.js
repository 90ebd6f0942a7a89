// One WebSocket, from its address to what its end means; and errors, which all modules have.
import { encodeMessagePack, joinBytes, readMessage } from './codec.js';

export const SUBPROTOCOLS = ['relay.v1.msgpack', 'relay.v1.json'];
export const RETRY = 2_000; // ms, if the relay gives no other time
const STEP = 100; // ms a clock may drift before it counts as changed
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

export const errorOf = ({ code, message, retryAfter, streamId }) =>
  new RelayError(code, message, { retryAfter, streamId });
const disconnected = () => new RelayError('DISCONNECTED', 'The connection was lost');
export const closedByUs = () => new RelayError('CLOSED', 'The client was closed');
export const noString = (token) =>
  new RelayError('NO_TOKEN', `The token must be a string, not ${typeof token}`);

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

export function report(error) {
  if (typeof globalThis.reportError === 'function') globalThis.reportError(error);
  else setTimeout(() => { throw error; });
}

/** One WebSocket, from opening to its end, which is reported once. */
export class Link {
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

export function addressOf(url, path) {
  const parts = /^(ws|http)(s?):\/\/([^/?#\s]+)(\/[^?#\s]*)?$/.exec(url ?? '');
  if (!parts) throw new TypeError('url: expected wss://HOST (or ws, https, http) without a token');
  const [, , secure, host, rest = '/'] = parts;
  return `ws${secure}://${host}${rest.endsWith('/') ? rest.slice(0, -1) + path : rest}`;
}

/** Names a stream, so that a relay of several processes can put the connection where it is. */
export function withStream(url, streamId) {
  if (streamId === undefined || url.includes('?')) return url;
  return `${url}?stream=${encodeURIComponent(streamId)}`;
}

const LOCAL_HOST = /^(localhost|.*\.(local|localhost|lan|home\.arpa|internal)|[^.:]+|(127|10|192\.168|169\.254|172\.(1[6-9]|2\d|3[01])|100\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7]))\.[\d.]+|\[(::1|f[cd]|fe[89ab]).*\])$/i;

/** What may keep a connection from being opened that the browser, or the system, says nothing about. */
export function hintAbout(url, attempts) {
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
