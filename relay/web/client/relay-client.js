/**
 * A relay client for browsers, React Native and Node (20 or later): one connection that reconnects
 * automatically and restores subscriptions, the publication and unsent alerts. No dependencies, no build.
 *
 *     const client = new RelayClient({ url: 'wss://relay.example.org', token: () => readToken() });
 *     client.subscribe('front-door', { onFrame: show, onAlert: tell });
 *     await client.connect();
 *
 * `core/client.js` has the states of a connection, and what viewers need; `core/publishing.js` has
 * what cameras need.
 */
import { RelayError, ViewerClient } from './core/client.js';
import { Publication } from './core/publishing.js';

export { decodeBase64, decodeMessagePack, encodeBase64, encodeMessagePack, judgeEnding, RelayError } from './core/client.js';
export { Ladder, LayerPlanner, Uplink } from './core/publishing.js';

/** A connection to a relay that reconnects until it is closed. */
export class RelayClient extends ViewerClient {
  publish(options = {}) {
    this._demandOpen();
    if (this._publication) throw new RelayError('INVALID_MESSAGE', 'A client publishes one stream: stop() the current one first');
    this._publication = new Publication(this, options);
    if (this._link?.inUse) this._publication._start(this._link);
    return this._publication;
  }
}
