// The connections and subscriptions that the players of a page share.
import { ViewerClient } from '../core/client.js';

const connections = new Map(); // by the token source, then by the URL of the relay
const given = new WeakMap(); // by a client of the application

/** A connection, from the first player that joins it until the last one has left. */
class Connection {
  constructor(client, onUnused) {
    this.client = client;
    this._onUnused = onUnused;
    this._streams = new Map(); // SharedStream by id
    this._players = 0;
  }

  join() {
    this._players += 1;
    return this;
  }

  leave() {
    this._players -= 1;
    // A player that is moved leaves and comes back at once.
    setTimeout(() => { if (this._players === 0) this._onUnused(); });
  }

  /** Watches a stream; returns its `SharedStream`. See there what a viewer is. */
  watch(streamId, viewer) {
    if (!this._streams.has(streamId)) {
      const stream = new SharedStream(this.client, streamId, () => {
        if (this._streams.get(streamId) === stream) this._streams.delete(streamId);
      });
      this._streams.set(streamId, stream);
    }
    const stream = this._streams.get(streamId);
    stream.add(viewer);
    return stream;
  }
}

/** Joins the connection to a relay that all players with the same token source share. */
export function joinConnection(url, getToken) {
  if (!connections.has(getToken)) connections.set(getToken, new Map());
  const byUrl = connections.get(getToken);
  const known = byUrl.get(url);
  if (known !== undefined && known.client.state !== 'closed') return known.join();
  const client = new ViewerClient({ url, token: getToken });
  const connection = new Connection(client, () => {
    client.close();
    if (byUrl.get(url) !== connection) return;
    byUrl.delete(url);
    if (byUrl.size === 0 && connections.get(getToken) === byUrl) connections.delete(getToken);
  });
  byUrl.set(url, connection);
  client.connect().catch(() => {}); // reported by `state`
  return connection.join();
}

/** Joins the connection of a client that the application made, and closes itself. */
export function joinClient(client) {
  if (!given.has(client)) given.set(client, new Connection(client, () => {}));
  return given.get(client).join();
}

/**
 * The subscription of all players of one stream. A viewer has `terms` (null while it needs no
 * pictures), `history` (how many earlier alerts it wants; null for no alerts at all), `onFrame`
 * (with the frame and the metadata of the stream), `onAlert`, `onStatus` and `onError`.
 */
class SharedStream {
  constructor(client, streamId, onUnused) {
    this._client = client;
    this._streamId = streamId;
    this._onUnused = onUnused;
    this._viewers = new Set();
    this._subscription = null;
    this._terms = null; // of the subscription, as text
    this._hasAlerts = false;
    this._latest = null; // the newest frame if it stands for itself, for players that come late
    this._late = new Map(); // the alerts that came meanwhile, by viewers whose earlier alerts are asked for
  }

  get metadata() {
    return this._subscription?.metadata;
  }

  add(viewer) {
    this._viewers.add(viewer);
    const needsAlerts = viewer.history !== null && !this._hasAlerts;
    if (this._subscription === null || needsAlerts) {
      this._subscribe();
      return;
    }
    const { status, epoch, metadata } = this._subscription;
    if (epoch) viewer.onStatus({ status, epoch, metadata });
    if (viewer.history > 0) this._catchUp(viewer);
    this.change(viewer);
  }

  remove(viewer) {
    if (!this._viewers.delete(viewer)) return;
    this._late.delete(viewer);
    if (this._viewers.size > 0) {
      this.change();
      return;
    }
    this._subscription?.unsubscribe();
    this._subscription = null;
    this._onUnused();
  }

  /** The terms of a viewer have changed; `fresh` is one that needs a picture to begin with. */
  change(fresh = null) {
    if (this._subscription === null) return;
    const options = this._options();
    const terms = JSON.stringify({ ...options, onFrame: options.onFrame !== null });
    const begins = fresh?.terms != null;
    if (terms !== this._terms || begins) {
      this._terms = terms;
      this._subscription.update(options); // with it, the latest keyframe comes again
    }
    if (options.onFrame === null) this._latest = null;
    else if (begins && this._latest !== null) fresh.onFrame(this._latest, this.metadata);
  }

  _subscribe() {
    this._subscription?.unsubscribe();
    const { history } = this._wishes();
    this._hasAlerts = history !== null;
    const options = this._options();
    this._terms = JSON.stringify({ ...options, onFrame: options.onFrame !== null });
    try {
      this._subscription = this._client.subscribe(this._streamId, {
        ...options,
        ...(this._hasAlerts ? { onAlert: (alert) => this._alert(alert), history } : {}),
        onStatus: (status) => {
          if (status.status === 'offline') this._latest = null;
          this._tell('onStatus', status);
        },
        onError: (error) => this._fail(error),
      });
    } catch (error) { // the client was closed, or the application watches the stream itself
      this._fail(error);
    }
  }

  /** The stream cannot be watched: whoever tries again gets another subscription. */
  _fail(error) {
    this._subscription = null;
    this._onUnused();
    this._tell('onError', error);
  }

  _tell(name, value) {
    for (const viewer of [...this._viewers]) viewer[name](value);
  }

  _alert(alert) {
    for (const viewer of [...this._viewers]) {
      if (this._late.has(viewer)) this._late.get(viewer).set(alert.alertId, alert);
      else if (viewer.history !== null) viewer.onAlert(alert);
    }
  }

  /** Gives a viewer that comes late the earlier alerts, and then those that came meanwhile; each once. */
  async _catchUp(viewer) {
    const meanwhile = new Map();
    this._late.set(viewer, meanwhile);
    const earlier = await this._subscription.earlierAlerts(viewer.history);
    if (this._late.get(viewer) !== meanwhile) return; // it has left
    this._late.delete(viewer);
    const known = new Set(earlier.map(({ alertId }) => alertId));
    for (const alert of [...earlier, ...[...meanwhile.values()].filter(({ alertId }) => !known.has(alertId))]) {
      if (this._viewers.has(viewer)) viewer.onAlert(alert);
    }
  }

  _take = (frame) => {
    this._latest = frame.keyframe === false ? null : frame;
    return Promise.all([...this._viewers].filter(({ terms }) => terms !== null).map((viewer) => viewer.onFrame(frame, this.metadata)));
  };

  _wishes() {
    const viewers = [...this._viewers];
    const histories = viewers.map(({ history }) => history).filter((each) => each !== null);
    return {
      terms: viewers.map(({ terms }) => terms).filter((each) => each !== null),
      history: histories.length > 0 ? Math.max(...histories) : null,
    };
  }

  /** What suits all viewers: the most that one of them wants. */
  _options() {
    const { terms } = this._wishes();
    const most = (name) => (terms.some((each) => each[name] == null) ? null : Math.max(...terms.map((each) => each[name])));
    const [first] = terms;
    const sameLayer = terms.every(({ layer }) => layer === first.layer);
    return {
      onFrame: first === undefined ? null : this._take,
      policy: terms.some(({ policy }) => policy === 'lossless') ? 'lossless' : 'latest',
      maxFps: first === undefined ? null : most('maxFps'),
      maxWidth: first === undefined ? null : most('maxWidth'),
      layer: first !== undefined && sameLayer ? first.layer : null,
    };
  }
}
