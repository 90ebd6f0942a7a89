/**
 * A relay client for browsers, React Native and Node (20 or later): one connection that reconnects
 * automatically and restores subscriptions, the publication and unsent alerts. No dependencies, no build.
 *
 *     const client = new RelayClient({ url: 'wss://relay.example.org', token: () => readToken() });
 *     client.subscribe('front-door', { onFrame: show, onAlert: tell });
 *     await client.connect();
 *
 * Below it: `core/client.js` has the states of a connection, and is all that viewers load, with
 * `core/link.js` (one WebSocket), `core/subscription.js`, `core/alerts.js` and `core/codec.js`;
 * `core/uplink.js` measures the link of a camera. Each is named here, so that browsers ask for all of
 * them at once, on the six connections that they open to one host.
 */
import './core/alerts.js';
import { ViewerClient } from './core/client.js';
import { asBase64, asBytes } from './core/codec.js';
import { call, now, PASSING, RelayError, RETRY } from './core/link.js';
import { WINDOW } from './core/subscription.js';
import { LayerPlanner, Uplink } from './core/uplink.js';

export { decodeBase64, decodeMessagePack, encodeBase64, encodeMessagePack } from './core/codec.js';
export { judgeEnding, RelayError } from './core/link.js';
export { Ladder, LayerPlanner, Uplink } from './core/uplink.js';

// ms that a frame may wait at the narrow place of the link: where others build on it, since to skip it costs all up
// to the next keyframe; and where frames build on one another, but none on this one.
const [MAX_DELTA_QUEUE_TIME, MAX_DISCARDABLE_QUEUE_TIME] = [500, 50];
// Periods for which a picture may keep the link busy, all layers together: it has to be free again
// when the camera has the next one.
const PERIODS_PER_PICTURE = 0.95;
const [SHORTEST_PICTURE, LONGEST_PICTURE] = [30, 80]; // ms: its bounds

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

/** The stream that a client publishes; created by `client.publish`. */
class Publication {
  constructor(client, options) {
    this.streamId = options.streamId;
    this.registered = false;
    this.consumers = 0;
    this.standby = null; // pictures a second that are wanted while nobody watches
    this._standbyDue = 0;
    this.sent = 0;
    this.skipped = 0;
    this.active = true;
    this._client = client;
    this._options = options;
    this._intact = new Set(); // layers whose last frame was sent: others send no delta frames
    this._wanted = false; // whether the relay has asked for a keyframe
    this._picture = null; // the last one, of which all layers are sent or none: { timestamp, layers, sent }
    this._knowsLayers = false; // whether the relay does
    this._needed = null; // ids of layers, as the relay said
    this._bytes = 0; // bytes of frames sent on this connection
    this._confirmed = 0; // bytes of them that the relay has received
    this._asking = false;
    this._uplink = null; // where the relay says which frames have come
    this._planner = new LayerPlanner();
    this._plannedAt = null; // the timestamp of the last plan
    if (options.onAlert && this.streamId) client._feed(this, options.onAlert, options.history);
  }

  /** Whether a frame would be sent now, and not skipped. */
  get hasRoom() {
    const link = this._client._link;
    if (!this.registered || !link?.ready) return false;
    const room = this._uplink?.hasRoom(now()) ?? null;
    if (room === null) return !this._isFull(link);
    return room && this._uplink.bytesUnderWay <= this._client._settings.maxBuffered;
  }

  /**
   * Whether the next frame should be a keyframe, where frames build on one another: nothing was sent
   * on this connection, a frame was skipped, the relay has asked for one, or somebody needs a layer
   * of which nothing was sent.
   */
  get needsKeyframe() {
    const isIntact = this._intact.size > 0 && this.layers.every((id) => this._intact.has(id));
    return !isIntact || this._wanted;
  }

  /** Bytes a second that the connection carries to the relay, or null while that is not known. */
  get bandwidth() {
    return this._uplink?.bandwidth(now()) ?? null;
  }

  /** Whether somebody watches, or a picture now and then is wanted all the same. */
  get isWanted() {
    return this.consumers > 0 || this.standby !== null;
  }

  /** The ids of the layers that somebody needs now, the smallest first; none without layers. */
  get layers() {
    const layers = this._options.layers ?? [];
    if (!this.isWanted || layers.length === 0) return [];
    // A relay that says nothing of layers gets the largest; the only layer never stops for its list.
    if (this._needed === null || layers.length === 1) return [layers.at(-1).id];
    return layers.map(({ id }) => id).filter((id) => this._needed.includes(id));
  }

  /**
   * Plans the next picture, so that it arrives soon enough for so many pictures a second: its width,
   * up to the given one, and its quality, for each layer that somebody needs. Without any width only
   * the quality is chosen. Returns null if no picture should be taken now: nobody watches, or there
   * is no room.
   */
  next({ fps = 15, width } = {}) {
    const time = now();
    if (!this.isWanted || !this.hasRoom || this._uplink?.isUntried(time)) return null;
    if (!this.consumers) {
      if (time < this._standbyDue) return null;
      this._standbyDue = time + 1000 / this.standby;
    }
    const layers = this._layersWithin(width);
    if (layers.length === 0) return null;
    const { bandwidth } = this;
    const limit = Math.min(LONGEST_PICTURE, Math.max(SHORTEST_PICTURE, PERIODS_PER_PICTURE * 1000 / fps));
    const isLate = bandwidth !== null && this._uplink.late > limit + 2 * this._uplink.jitter;
    const budget = bandwidth === null ? null : bandwidth * limit / 1000;
    const steps = isLate ? this._planner.least(layers) : this._planner.plan(layers, budget, time);
    const pictures = [...steps].map(([layer, step]) => ({
      ...(layer === undefined ? {} : { layer }),
      ...(step.width === undefined ? {} : { width: step.width }),
      quality: step.quality,
    }));
    const { layer: _, ...largest } = pictures.at(-1);
    this._plannedAt = Date.now();
    return { ...largest, timestamp: this._plannedAt, pictures };
  }

  /**
   * Sends a frame, or skips it while earlier frames are still in transit: a queued frame is an old
   * picture. Frames on which others build may queue for a while. Returns whether it was sent. Frames
   * of different layers with the same timestamp are one picture: all of them are sent, or none.
   */
  sendFrame(data, { timestamp = Date.now(), keyframe, discardable, layer, metadata } = {}) {
    const id = this._layerId(layer);
    const breaksOthers = keyframe !== false || discardable !== true;
    const queueTime = breaksOthers ? MAX_DELTA_QUEUE_TIME : MAX_DISCARDABLE_QUEUE_TIME;
    if (this._options.layers?.length && !this._knowsLayers && id !== this._options.layers.at(-1).id) {
      return this._skip();
    }
    if (!this._hasRoomFor(id, timestamp, keyframe === undefined ? 0 : queueTime)) {
      if (breaksOthers) this._intact.clear();
      return this._skip();
    }
    if (keyframe === false && !this._intact.has(id)) return this._skip();
    if (!this._write({ data, timestamp, keyframe, discardable, id, metadata })) {
      this._intact.clear();
      return this._skip();
    }
    this._intact.add(id);
    if (keyframe !== false) this._wanted = false;
    this.sent += 1;
    return true;
  }

  _write({ data, timestamp, keyframe, discardable, id, metadata }) {
    const link = this._client._link;
    const message = { type: 'video-frame', data: link.binary ? asBytes(data) : asBase64(data), timestamp };
    if (keyframe !== undefined) message.keyframe = keyframe;
    if (discardable !== undefined) message.discardable = discardable;
    if (id !== undefined && this._knowsLayers) message.layer = id;
    if (metadata !== undefined) message.metadata = metadata;
    const uplink = this._uplink;
    const time = now();
    if (!this._asking && uplink?.wantsQuestion(time)) {
      uplink.questionAsked(time);
      this._confirm(link, () => uplink.questionAnswered(now()));
    }
    const before = link.bytesSent;
    if (!link.send(message)) return false;
    const size = link.bytesSent - before;
    this._bytes += size;
    if (this._plannedAt === timestamp) this._planner.learn(id, size);
    if (this.bandwidth === null) this._confirm(link);
    uplink?.frameSent(size, time);
    return true;
  }

  /** The id of the layer that a frame belongs to; undefined for a stream without layers. */
  _layerId(layer) {
    const layers = this._options.layers ?? [];
    const found = layer === undefined ? layers.at(-1) : layers.find(({ id }) => id === layer);
    if (found === undefined && layer !== undefined) throw new RelayError('INVALID_MESSAGE', `There is no layer ${layer}`);
    return found?.id;
  }

  /** The layers to send, no wider than this. */
  _layersWithin(width) {
    const layers = this._options.layers ?? [];
    if (layers.length === 0) return [{ id: undefined, width }];
    const needed = this.layers;
    return layers.filter(({ id }) => needed.includes(id)).map((each) => (
      { id: each.id, width: Math.min(each.width ?? Infinity, width ?? Infinity) }
    )).map((each) => ({ ...each, width: Number.isFinite(each.width) ? each.width : undefined }));
  }

  /** Whether a frame can be sent: there is room, or it is of a picture of which other layers were sent. */
  _hasRoomFor(id, timestamp, queueTime) {
    const picture = this._picture;
    const continues = picture?.timestamp === timestamp && !picture.layers.has(id);
    if (!continues) this._picture = { timestamp, layers: new Set(), sent: this.hasRoom || this._mayQueue(queueTime) };
    this._picture.layers.add(id);
    return this._picture.sent;
  }

  /** Ends the stream by reconnecting without it. */
  stop() {
    if (!this.active) return;
    this.active = false;
    this.registered = false;
    this._client._unfeed(this);
    this._client._stopPublishing(this);
  }

  _skip() {
    this.skipped += 1;
    return false;
  }

  /** Whether the connection would take a frame that may queue for so long. */
  _mayQueue(queueTime) {
    const link = this._client._link;
    const time = now();
    if (!this.registered || !link?.ready || !(this._uplink?.bandwidth(time) > 0)) return false;
    const hasRoom = queueTime < MAX_DELTA_QUEUE_TIME
      ? queueTime > 0 && this._uplink.hasRoom(time, queueTime)
      : this._uplink.queueTime(time) <= queueTime;
    return hasRoom && this._uplink.bytesUnderWay <= this._client._settings.maxBuffered;
  }

  /**
   * For relays that do not say which frames have come: `bufferedAmount` counts what is queued here;
   * unanswered requests show what is queued elsewhere.
   */
  _isFull(link) {
    const { maxBuffered } = this._client._settings;
    return link.buffered > maxBuffered || (this._asking && this._bytes - this._confirmed > maxBuffered);
  }

  _confirm(link, onAnswer = () => {}) {
    if (this._asking) return;
    this._asking = true;
    const bytes = this._bytes;
    link.ping(() => {
      this._asking = false;
      this._confirmed = bytes;
      onAnswer();
    });
  }

  _start(link) {
    this._asking = false;
    this._bytes = this._confirmed = 0;
    this._intact.clear();
    this._wanted = false;
    this._picture = null;
    this._enter(link);
  }

  /** Registers without missing an alert. */
  _enter(link) {
    const feed = this._options.onAlert && this._client._feeds.get(this.streamId);
    if (feed) feed.resume(link, () => this._register(link));
    else this._register(link);
  }

  _register(link) {
    const { metadata, layers, onAlert, onError } = this._options;
    const request = {
      type: 'register', produces: ['video-frame'], consumes: onAlert ? ['alert'] : [], window: WINDOW,
    };
    if (this.streamId !== undefined) request.streamId = this.streamId;
    if (metadata !== undefined) request.metadata = metadata;
    if (layers?.length) request.layers = layers;
    link.ask(request, ({ streamId, window, layers: known }) => {
      if (!this.active) return;
      this.registered = true;
      this._knowsLayers = known !== undefined;
      if (!this._knowsLayers) this._needed = null; // an older relay than the last one
      this._uplink = window === undefined ? null : new Uplink();
      if (this.streamId === undefined) {
        this.streamId = streamId;
        if (onAlert) {
          this._client._feed(this, onAlert);
          this._client._feeds.get(streamId).last = 0; // the stream is new: it has no earlier alerts
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

  _demand({ status, consumers, epoch, layers, standby }) {
    const before = [this.consumers, ...this.layers];
    this.consumers = consumers;
    this.standby = consumers || !(standby > 0) ? null : standby;
    this._needed = this._knowsLayers ? layers ?? null : null;
    const after = [consumers, ...this.layers];
    call(this._options.onStatus, { streamId: this.streamId, status, consumers, epoch, ...(layers && { layers }) });
    if (String(before) !== String(after)) call(this._options.onDemand, consumers, this.layers);
  }

  _wantKeyframe() {
    this._wanted = true;
    call(this._options.onKeyframeWanted);
  }

  _lost() {
    this.registered = false;
    this._uplink = null;
    this._picture = null;
  }
}
