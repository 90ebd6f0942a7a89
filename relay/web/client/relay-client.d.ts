/** Types of relay-client.js, which describes how the client behaves. Times are in ms, sizes in bytes. */

/** The state of a client; relay-client.js shows the transitions. */
export type ClientState = 'idle' | 'connecting' | 'ready' | 'waiting' | 'paused' | 'closed';

/** The state of a stream: registered, sending frames, or gone. */
export type StreamStatus = 'online' | 'streaming' | 'offline';

export type Severity = 'low' | 'medium' | 'high' | 'critical';

export type Metadata = Record<string, unknown>;

/** Error codes of the relay, and four of the client. Newer relays may have more. */
export type ErrorCode =
  | 'AUTH_REQUIRED'
  | 'AUTH_FAILED'
  | 'AUTH_TIMEOUT'
  | 'AUTH_UNAVAILABLE'
  | 'SESSION_EXPIRED'
  | 'SESSION_REVOKED'
  | 'UNAUTHORIZED'
  | 'NOT_REGISTERED'
  | 'INVALID_MESSAGE'
  | 'UNKNOWN_MESSAGE_TYPE'
  | 'RATE_LIMITED'
  | 'TOO_MANY_CONNECTIONS'
  | 'SUPERSEDED'
  | 'ENDED_BY_OPERATOR'
  | 'TOO_SLOW'
  | 'IDLE_TIMEOUT'
  | 'MESSAGE_TOO_BIG'
  | 'STORE_UNAVAILABLE'
  | 'INTERNAL_ERROR'
  /** The token callback returned none: nobody is signed in. */
  | 'NO_TOKEN'
  /** The connection was lost, or could not be opened. */
  | 'DISCONNECTED'
  /** `close()` was called. */
  | 'CLOSED'
  /** A message or a frame could not be read. */
  | 'UNREADABLE'
  | (string & {});

export class RelayError extends Error {
  readonly name: 'RelayError';
  readonly code: ErrorCode;
  /** Time to wait before the next attempt, ms. */
  readonly retryAfter?: number;
  readonly streamId?: string;
  /** The close code of the WebSocket, if one was received. */
  readonly closeCode?: number;
  constructor(code: ErrorCode, message: string, more?: { retryAfter?: number; streamId?: string; closeCode?: number });
}

/** Why the client asks for a token. */
export interface TokenRequest {
  /**
   * - `connect`: for a new connection; a stored token will do.
   * - `expiring`: the session ends soon: refresh it. The connection stays open meanwhile.
   * - `expired`: the session has ended: refresh it.
   * - `refused`: the relay rejected the token in `refused`: return another one.
   */
  reason: 'connect' | 'expiring' | 'expired' | 'refused';
  /** When the session ends, with `expiring`; ms since 1970. */
  expiresAt?: number;
  /** The token that was refused, with `refused`. */
  refused?: string;
}

/**
 * Returns the token. If it returns nothing, nobody is signed in, and the client closes with
 * NO_TOKEN. If it throws, for instance without a network, the client asks again later.
 */
export type TokenSource =
  | string
  | ((request: TokenRequest) => string | null | undefined | Promise<string | null | undefined>);

/** A WebSocket class: the global one, or that of `ws`. */
export type WebSocketClass = new (url: string, protocols?: string[]) => object;

export interface ClientOptions {
  /** `wss://HOST` (or ws, https, http), with a port if needed; `wss://HOST/PATH/` where relay is under a path. */
  url: string;
  token: TokenSource;
  /** The endpoint if `url` has no path, or one that ends with a slash; `/streams/subscribe` by default. Both accept all messages. */
  path?: '/streams/subscribe' | '/streams/register' | (string & {});
  /** `auto` uses MessagePack, and JSON if MessagePack does not get through. */
  encoding?: 'auto' | 'msgpack' | 'json';
  /** Needed before Node 22: the class of the package `ws`. */
  WebSocket?: WebSocketClass;
  /** Checks the connection after this long without data; 10,000 by default. */
  silence?: number;
  /** How long the reply to that check may take; 10,000 by default. */
  patience?: number;
  /** Time from opening a WebSocket until authenticated; 10,000 by default. */
  openTimeout?: number;
  /** How long the token callback may take; 30,000 by default. */
  tokenTimeout?: number;
  /** Pauses between attempts double from `first` (300) to `most` (15,000). */
  backoff?: { first?: number; most?: number };
  /**
   * Skips frames while more bytes than this are in transit to the relay; 256 KiB by default. Counts
   * only while the link is not measured: see `Publication.bandwidth`.
   */
  maxBuffered?: number;
}

/** All three are missing with a service token, which has no user and does not expire. */
export interface Session {
  userId?: string;
  sessionId?: string;
  /** ms since 1970. */
  expiresAt?: number;
}

export interface StateChange {
  state: ClientState;
  previous: ClientState;
  /** The reason, with `waiting` and `closed`. */
  error: RelayError | Error | null;
  /** When the next attempt is due, with `waiting`; ms since 1970. */
  retryAt: number | null;
}

export interface Notice {
  type: 'notice';
  code: 'SESSION_EXPIRING' | 'SERVER_RESTARTING' | 'KEYFRAME_WANTED' | (string & {});
  /** The stream of which a keyframe is wanted. */
  streamId?: string;
  expiresAt?: number;
  retryAfter?: number;
  timestamp: number;
}

export interface ClientEvents {
  state: (change: StateChange) => void;
  /** Authenticated, or the session was renewed. */
  session: (session: Session) => void;
  /** The relay rejected a message that has no reply, such as a frame. */
  problem: (error: RelayError) => void;
  notice: (notice: Notice) => void;
}

export interface Frame {
  streamId: string;
  /** The run of the stream in which `seq` counts. */
  epoch: number;
  /** Grows by one with each frame that the relay accepted. */
  seq: number;
  /** Number of frames skipped or missed since the previous one. */
  missed: number;
  /** The producer's clock. */
  timestamp: number;
  /** The relay's clock: `client.relayNow() - receivedAt` is the age. */
  receivedAt: number;
  keyframe?: boolean;
  discardable?: boolean;
  /** Of a stream with layers: which one this is. Of a smaller picture that the relay made: its width. */
  layer?: string;
  metadata?: Metadata;
  /** A view into the received message: copy it to change it or to transfer its buffer. */
  data: Uint8Array<ArrayBuffer>;
}

export type PictureState = 'pending' | 'kept' | 'failed';

export interface Alert {
  /** Grows in the order of acceptance. */
  alertId: number;
  streamId: string;
  severity: Severity;
  message: string;
  metadata?: Metadata;
  timestamp: number;
  /** What becomes of the picture of that moment, if one was to be kept: `GET /alerts/ID/still.jpg`. */
  still?: PictureState;
  /** The same of a clip: `GET /alerts/ID/clip.mjpeg`. */
  clip?: PictureState;
  /** True if it is sent from storage, because it was missed or requested. */
  replayed: boolean;
}

export interface StreamEntry {
  streamId: string;
  status: StreamStatus;
  metadata?: Metadata;
}

export interface Terms {
  /** `latest` (default): a slow viewer skips to the newest frame. `lossless`: every frame, in order. */
  policy?: 'latest' | 'lossless';
  /** Thins the stream evenly; up to 1000. */
  maxFps?: number | null;
  /**
   * Maximum number of unacknowledged frames: 4 by default, 32 with `lossless`. A frame is
   * acknowledged when `onFrame` has finished with it, or together with the next frame if they come
   * within 20 ms. `null` means no limit, for `latest` only.
   */
  window?: number | null;
  /**
   * The widest picture that is of use, in pixels: of a tile, its width times `devicePixelRatio`. The
   * relay sends no layer that is wider, if there is one that is not. `null` means no limit.
   */
  maxWidth?: number | null;
  /** This layer of the stream; while it does not come, the nearest smaller one. `null`: the largest that the link carries. */
  layer?: string | null;
}

export interface SubscribeOptions extends Terms {
  /** Called with one frame at a time; if it returns a promise, the next frame waits for it. */
  onFrame?: (frame: Frame) => unknown;
  /** Called with each alert once, in order, including those raised while disconnected. */
  onAlert?: (alert: Alert) => void;
  onStatus?: (status: StreamEntry & { epoch: number }) => void;
  /** Called if the subscription is rejected and removed. Without it, `problem` is emitted. */
  onError?: (error: RelayError) => void;
  /** Number of earlier alerts to begin with; 0 by default. */
  history?: number;
}

export interface Subscription {
  readonly streamId: string;
  readonly status: StreamStatus;
  /** 0 while there are no frames to expect. */
  readonly epoch: number;
  readonly metadata: Metadata | undefined;
  /** True until it is unsubscribed or rejected, also while disconnected. */
  readonly active: boolean;
  /** Changes the terms. `onFrame: null` stops frames but not alerts; a function starts frames. */
  update(terms: Terms & { onFrame?: ((frame: Frame) => unknown) | null }): void;
  /** The last alerts, up to the last one that `onAlert` got, the oldest first. Waits for a connection; empty without `onAlert`. */
  earlierAlerts(count: number): Promise<Alert[]>;
  unsubscribe(): void;
}

/** A size in which a stream's pictures are sent. */
export interface Layer {
  /** 1 to 16 characters of `A-Z a-z 0-9 - . _`. */
  id: string;
  /** Pixels. */
  width?: number;
}

export interface PublishOptions {
  /** Without it, the relay chooses one. */
  streamId?: string;
  /** Sizes in which each picture can be sent: 1 to 4, the smallest first. Each viewer gets the largest that its link carries. */
  layers?: readonly Layer[];
  /** Sent to subscribers: MIME type, size, device. */
  metadata?: Metadata;
  onRegistered?: (streamId: string) => void;
  /**
   * Called when the number of viewers changes: stop the camera at 0, start it above. Also when other
   * layers are needed than before; see `Publication.layers`.
   */
  onDemand?: (consumers: number, layers: readonly string[]) => void;
  /** Called when a viewer waits for a keyframe: make one soon. See `Publication.needsKeyframe`. */
  onKeyframeWanted?: () => void;
  onAlert?: (alert: Alert) => void;
  onStatus?: (status: {
    streamId: string;
    status: StreamStatus;
    consumers: number;
    epoch: number;
    layers?: readonly string[];
  }) => void;
  /** Called if the stream is rejected, for instance because its id is taken. Without it, `problem` is emitted. */
  onError?: (error: RelayError) => void;
  /** Number of earlier alerts to begin with; 0 by default. */
  history?: number;
}

export interface FrameOptions {
  /** Time of capture; now by default. */
  timestamp?: number;
  /** For codecs with delta frames: whether this frame can be decoded alone. */
  keyframe?: boolean;
  /** Of a delta frame: whether no other frame builds on it. Slow viewers lose these first. */
  discardable?: boolean;
  /** Of a stream with layers: which one this is; the largest by default. Frames of one picture have the same `timestamp`. */
  layer?: string | undefined;
  metadata?: Metadata;
}

/** A picture to encode, as one layer of a plan. */
export interface PlannedPicture {
  /** Missing for a stream without layers. */
  readonly layer?: string | undefined;
  readonly width: number;
  /** Of the JPEG encoder, 0.3 to 0.8. */
  readonly quality: number;
}

/**
 * A picture to take. `width` and `quality` are those of its largest layer. Pass the timestamp of the
 * plan to `sendFrame` with the picture, so that the client learns its size.
 */
export interface PicturePlan<Picture = PlannedPicture> {
  readonly width: number;
  readonly quality: number;
  /** Time of the plan, ms since 1970. */
  readonly timestamp: number;
  /** One for each layer to send, the smallest first: send them in this order. A single one without layers. */
  readonly pictures: readonly Picture[];
}

export interface Publication {
  /** Known once registered. */
  readonly streamId: string | undefined;
  /** Whether frames can be sent now. */
  readonly registered: boolean;
  readonly consumers: number;
  /** Pictures a second that are wanted while nobody watches: `next` plans them. `null`: none. */
  readonly standby: number | null;
  /** Whether somebody watches, or `standby` wants pictures. */
  readonly isWanted: boolean;
  /** The ids of the layers that somebody needs now, the smallest first: encode only these. Empty without layers. */
  readonly layers: readonly string[];
  readonly active: boolean;
  /** Number of frames sent. */
  readonly sent: number;
  readonly skipped: number;
  /** Whether a frame would be sent now, and not skipped. */
  readonly hasRoom: boolean;
  /**
   * For codecs with delta frames: whether the next frame should be a keyframe, because it is the
   * first of a connection, a frame on which others build was skipped, the relay asked for one, or
   * somebody needs a layer of which nothing was sent.
   * Until then, delta frames may be skipped.
   */
  readonly needsKeyframe: boolean;
  /** Bytes a second that the connection to the relay carries; null while unknown, and with older relays. */
  readonly bandwidth: number | null;
  /**
   * Plans the next picture so that it arrives in time: width and quality follow what the connection
   * carries, up to the width given and to so many pictures a second (15 by default). For a stream
   * with layers it plans those that somebody needs; layers have their own width. Without any width,
   * only the quality is planned. Returns null if no picture should be taken now, because nobody
   * watches or there is no room; then ask again soon, for instance after 15 ms.
   */
  next(wanted: { fps?: number; width: number }): PicturePlan | null;
  next(wanted?: { fps?: number }): (Omit<PicturePlan<Partial<PlannedPicture> & { quality: number }>, 'width'> & { width?: number }) | null;
  /**
   * Sends a frame (bytes or base64), or skips it while earlier frames are in transit. Returns
   * whether it was sent. Frames are never queued, except those on which others build: with
   * `keyframe` and not `discardable`, up to half a second, so plan before you encode. Of one picture
   * all layers are sent, or none. To a relay that knows no layers only the largest is sent. Throws for
   * a layer that was not published.
   */
  sendFrame(data: Uint8Array | ArrayBuffer | string, options?: FrameOptions): boolean;
  /** Ends the stream by reconnecting, since a stream lasts as long as its connection. */
  stop(): void;
}

export interface NewAlert {
  streamId: string;
  message: string;
  /** `medium` by default. */
  severity?: Severity;
  metadata?: Metadata;
  /** Now by default. */
  timestamp?: number;
  /** Keeps the picture of that moment with the alert. */
  frame?: boolean;
  /** Identifies the alert: an alert with the same key is a duplicate. Random by default. */
  alertKey?: string;
  /** With `tracestate`, of W3C Trace Context: the span that the relay's trace continues. */
  traceparent?: string;
  tracestate?: string;
}

export class RelayClient {
  constructor(options: ClientOptions);
  readonly state: ClientState;
  readonly session: Session | null;
  /** When the next attempt is due, while `waiting`; ms since 1970. */
  readonly retryAt: number | null;
  readonly publication: Publication | null;
  /** The encoding of the current connection. */
  readonly encoding: 'msgpack' | 'json' | null;
  /** The fastest reply on this connection, ms. */
  readonly roundTrip: number | null;
  /** The relay's clock, ms since 1970. */
  relayNow(): number;
  /** Returns a function that removes the listener. */
  on<Name extends keyof ClientEvents>(name: Name, listener: ClientEvents[Name]): () => void;
  /** Connects. Resolves with the first session; rejects with a `RelayError` if the client closes first. */
  connect(): Promise<Session>;
  /** Closes the connection until `resume()`, for an app in the background. */
  pause(): void;
  resume(): void;
  /** While `waiting`: reconnects at once. */
  retryNow(): void;
  /** Asks for a token, as on SESSION_EXPIRING, and renews the session; while `waiting`, reconnects at once. */
  renew(): void;
  /** Closes the client for good, and rejects alerts that are not stored yet. */
  close(): void;
  /** Subscribes until `unsubscribe()`, across reconnects. One subscription per stream. */
  subscribe(streamId: string, options?: SubscribeOptions): Subscription;
  /** Publishes a stream until `stop()`, across reconnects. One stream per client. */
  publish(options?: PublishOptions): Publication;
  /** Calls `listener` with all live streams the user may watch, now and after each change. Returns a function that stops it. */
  watchStreams(listener: (streams: StreamEntry[]) => void): () => void;
  /** Resolves when the alert is stored, across reconnects. */
  alert(alert: NewAlert): Promise<{ alertId: number; streamId: string }>;
}

export interface Verdict {
  /** Whether to reconnect. */
  again: boolean;
  /** Which token to ask for; see `TokenRequest`. */
  token: 'connect' | 'expired' | 'refused';
  /** Minimum wait, ms. */
  after: number;
}

/** Decides what an ending means, from its Close, if it was received, and the last `error` or `notice`. */
export function judgeEnding(
  code: number | undefined,
  reason: string | undefined,
  word: { code: string; retryAfter?: number } | null,
): Verdict;

export function encodeMessagePack(value: unknown): Uint8Array;
export function decodeMessagePack(bytes: Uint8Array): unknown;
export function encodeBase64(bytes: Uint8Array): string;
export function decodeBase64(text: string): Uint8Array;
