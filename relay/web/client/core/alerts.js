// Alerts across reconnects: those of a stream, each once and in order, and one's own, until they are stored.
import { call, PASSING, RelayError, RETRY } from './link.js';

const MOST_ALERTS_WAITING = 1000;

/**
 * The alerts of one stream, each once and in order, across reconnects.
 *
 * After `subscribe` it sends `alerts-since` with the last alert seen. It holds all alerts until the
 * last page, since live alerts may come before that page and again in it.
 */
export class AlertFeed {
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

/** Alerts that the application sends: each again after each reconnect, until the relay has stored it. */
export class AlertOutbox {
  constructor() {
    this._waiting = new Set(); // { message, resolve, reject, link }, where `link` is the one it was sent on
  }

  /** Keeps an alert, with a key that prevents duplicates. The promise resolves when it is stored. */
  add(alert) {
    if (this._waiting.size >= MOST_ALERTS_WAITING) {
      return Promise.reject(new RelayError('RATE_LIMITED', 'Too many alerts are waiting to be sent'));
    }
    const { timestamp = Date.now(), severity = 'medium' } = alert;
    const alertKey = alert.alertKey ?? newKey();
    const message = { ...alert, type: 'alert', timestamp, severity, alertKey };
    return new Promise((resolve, reject) => {
      this._waiting.add({ message, resolve, reject, link: null });
    });
  }

  /** Sends alerts not yet sent on this connection. Those of the published stream wait for its registration. */
  send(link, publication) {
    const { streamId, registered } = publication ?? { registered: true };
    for (const waiting of [...this._waiting]) {
      if (waiting.link === link || (!registered && waiting.message.streamId === streamId)) continue;
      waiting.link = link;
      this._send(link, waiting);
    }
  }

  end(error) {
    for (const { reject } of this._waiting) reject(error);
    this._waiting.clear();
  }

  _send(link, waiting) {
    const done = () => this._waiting.delete(waiting);
    link.ask(waiting.message, ({ alertId, streamId }) => {
      if (done()) waiting.resolve({ alertId, streamId });
    }, (error) => {
      if (link.ended) return; // sent again on the next connection
      if (PASSING.has(error.code)) link.later(error.retryAfter ?? RETRY, () => this._send(link, waiting));
      else if (done()) waiting.reject(error);
    });
  }
}

function newKey() {
  const part = () => Math.random().toString(36).slice(2, 12);
  return `${Date.now().toString(36)}-${part()}${part()}`;
}
