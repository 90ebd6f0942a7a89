/** Types of relay-client.js, which says how the client behaves. Times are ms, sizes bytes. */

/** Where a client stands; relay-client.js draws what leads from one to another. */
export type ClientState = 'idle' | 'connecting' | 'ready' | 'waiting' | 'paused' | 'closed';

/** What a stream does: registered, frames flowing, gone. */
export type StreamStatus = 'online' | 'streaming' | 'offline';

export type Severity = 'low' | 'medium' | 'high' | 'critical';

export type Metadata = Record<string, unknown>;

/** Codes of the relay's errors, and four of the client's own. Later relays may have more. */
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
  | 'TOO_SLOW'
  | 'IDLE_TIMEOUT'
  | 'MESSAGE_TOO_BIG'
  | 'STORE_UNAVAILABLE'
  | 'INTERNAL_ERROR'
  /** The token callback had none: nobody is signed in. */
  | 'NO_TOKEN'
  /** The connection was lost, or could not be made. */
  | 'DISCONNECTED'
  /** `close()` was called. */
  | 'CLOSED'
  /** Something came that is no message, or no frame. */
  | 'UNREADABLE'
  | (string & {});

export class RelayError extends Error {
  readonly name: 'RelayError';
  readonly code: ErrorCode;
  /** The relay asks not to come back, or ask again, before so many ms. */
  readonly retryAfter?: number;
  readonly streamId?: string;
  /** Of the WebSocket, where one was seen. */
  readonly closeCode?: number;
  constructor(code: ErrorCode, message: string, more?: { retryAfter?: number; streamId?: string; closeCode?: number });
}

/** Why a token is asked for. */
export interface TokenRequest {
  /**
   * - `connect`: for a new connection; the token that is stored will do.
   * - `expiring`: the session ends soon: refresh it. The connection goes on meanwhile.
   * - `expired`: the session is over: refresh it.
   * - `refused`: the relay does not take `refused`; only another token is of use.
   */
  reason: 'connect' | 'expiring' | 'expired' | 'refused';
  /** When the session ends, with `expiring`; ms since 1970. */
  expiresAt?: number;
  /** The token that was refused, with `refused`. */
  refused?: string;
}

/**
 * Gets the token. Where it returns nothing, nobody is signed in and the client closes with
 * NO_TOKEN. Where it throws, as when a refresh finds no network, it is asked again later.
 */
export type TokenSource =
  | string
  | ((request: TokenRequest) => string | null | undefined | Promise<string | null | undefined>);

/** What the client needs of a WebSocket class: the global one, or that of `ws`. */
export type WebSocketClass = new (url: string, protocols?: string[]) => object;

export interface ClientOptions {
  /** `wss://HOST`, or ws, https, http; for development also with a port. */
  url: string;
  token: TokenSource;
  /** The endpoint, where `url` has no path; `/streams/subscribe` by default. Both take every message. */
  path?: '/streams/subscribe' | '/streams/register' | (string & {});
  /** `auto` speaks MessagePack, and JSON where that does not come through. */
  encoding?: 'auto' | 'msgpack' | 'json';
  /** For Node before 22: that of the package `ws`. */
  WebSocket?: WebSocketClass;
  /** After so long without a byte the relay is asked for a sign of life; 10,000 by default. */
  silence?: number;
  /** How long that sign may take before the connection counts as lost; 10,000 by default. */
  patience?: number;
  /** From opening a WebSocket to being authenticated; 10,000 by default. */
  openTimeout?: number;
  /** How long the token callback may take; 30,000 by default. */
  tokenTimeout?: number;
  /** Pauses between attempts double from `first` (300) to `most` (15,000). */
  backoff?: { first?: number; most?: number };
  /** Frames are skipped while more than this is under way to the relay; 256 KiB by default. */
  maxBuffered?: number;
}

/** Of a service's token, which has no user and no end, all three are missing. */
export interface Session {
  userId?: string;
  sessionId?: string;
  /** ms since 1970. */
  expiresAt?: number;
}

export interface StateChange {
  state: ClientState;
  previous: ClientState;
  /** Why, with `waiting` and `closed`. */
  error: RelayError | Error | null;
  /** When the next attempt is due, with `waiting`; ms since 1970. */
  retryAt: number | null;
}

export interface Notice {
  type: 'notice';
  code: 'SESSION_EXPIRING' | 'SERVER_RESTARTING' | (string & {});
  expiresAt?: number;
  retryAfter?: number;
  timestamp: number;
}

export interface ClientEvents {
  state: (change: StateChange) => void;
  /** Authenticated, or the session was renewed. */
  session: (session: Session) => void;
  /** Something was refused that nobody waits for, such as a frame. */
  problem: (error: RelayError) => void;
  notice: (notice: Notice) => void;
}

export interface Frame {
  streamId: string;
  /** Which life of the stream `seq` counts in. */
  epoch: number;
  /** Grows by one with each frame that the relay accepted. */
  seq: number;
  /** How many were skipped, or missed, since the frame before this one. */
  missed: number;
  /** The producer's clock. */
  timestamp: number;
  /** The relay's clock: `client.relayNow() - receivedAt` is the age. */
  receivedAt: number;
  keyframe?: boolean;
  metadata?: Metadata;
  /** A view into the message that came: copy it to change it or to pass its buffer on. */
  data: Uint8Array<ArrayBuffer>;
}

export interface Alert {
  /** Grows in the order of acceptance. */
  alertId: number;
  streamId: string;
  severity: Severity;
  message: string;
  metadata?: Metadata;
  timestamp: number;
  /** Whether it was stored before, and comes now because it was missed or asked for. */
  replayed: boolean;
}

export interface StreamEntry {
  streamId: string;
  status: StreamStatus;
  metadata?: Metadata;
}

export interface Terms {
  /** `latest` (default): whoever is slow skips to the newest. `lossless`: all, in order. */
  policy?: 'latest' | 'lossless';
  /** Thins the stream evenly; up to 1000. */
  maxFps?: number | null;
  /**
   * So many frames may be under way unacknowledged: 4 by default, with `lossless` 32. A frame is
   * acknowledged once `onFrame` is done with it. `null` is without, and for `latest` only.
   */
  window?: number | null;
}

export interface SubscribeOptions extends Terms {
  /** Gets each frame, one after the other: the next comes when a returned promise is settled. */
  onFrame?: (frame: Frame) => unknown;
  /** Gets each alert once, in order, also those that came while the connection was away. */
  onAlert?: (alert: Alert) => void;
  onStatus?: (status: StreamEntry & { epoch: number }) => void;
  /** The subscription was refused and is gone. Without it, that is a `problem`. */
  onError?: (error: RelayError) => void;
  /** Begin with so many of the alerts before; 0 by default. */
  history?: number;
}

export interface Subscription {
  readonly streamId: string;
  readonly status: StreamStatus;
  /** 0 while there is nothing to see. */
  readonly epoch: number;
  readonly metadata: Metadata | undefined;
  /** Whether it lasts, or waits for the connection to last on. */
  readonly active: boolean;
  /** Changes the terms. Without `onFrame` (`null`) frames stop, and alerts go on; with it they begin. */
  update(terms: Terms & { onFrame?: ((frame: Frame) => unknown) | null }): void;
  unsubscribe(): void;
}

export interface PublishOptions {
  /** Without it the relay makes one up. */
  streamId?: string;
  /** Reaches subscribers: mime type, size, device. */
  metadata?: Metadata;
  onRegistered?: (streamId: string) => void;
  /** The number of viewers changed: with none stop the camera, with some start it. */
  onDemand?: (consumers: number) => void;
  onAlert?: (alert: Alert) => void;
  onStatus?: (status: { streamId: string; status: StreamStatus; consumers: number; epoch: number }) => void;
  /** The stream was refused, as when its id is taken. Without it, that is a `problem`. */
  onError?: (error: RelayError) => void;
  history?: number;
}

export interface FrameOptions {
  /** When it was taken; now by default. */
  timestamp?: number;
  /** With delta frames only: whether this one stands by itself. */
  keyframe?: boolean;
  metadata?: Metadata;
}

export interface Publication {
  /** Known once registered. */
  readonly streamId: string | undefined;
  /** Whether frames can be sent now. */
  readonly registered: boolean;
  readonly consumers: number;
  readonly active: boolean;
  /** Frames, so far. */
  readonly sent: number;
  readonly skipped: number;
  /**
   * Sends a frame, bytes or base64, or skips it while those before are under way. Returns whether
   * it was sent. Frames are never queued.
   */
  sendFrame(data: Uint8Array | ArrayBuffer | string, options?: FrameOptions): boolean;
  /** Ends the stream. The connection is made anew, since a stream lasts as long as its own. */
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
  /** The same key again is the same alert; made up by default. */
  alertKey?: string;
}

export class RelayClient {
  constructor(options: ClientOptions);
  readonly state: ClientState;
  readonly session: Session | null;
  /** When the next attempt is due, while `waiting`; ms since 1970. */
  readonly retryAt: number | null;
  readonly publication: Publication | null;
  /** Of the living connection. */
  readonly encoding: 'msgpack' | 'json' | null;
  /** The quickest answer of this connection, ms. */
  readonly roundTrip: number | null;
  /** The relay's clock, ms since 1970. */
  relayNow(): number;
  /** Returns how to stop listening. */
  on<Name extends keyof ClientEvents>(name: Name, listener: ClientEvents[Name]): () => void;
  /** Begins; kept with the first session, broken with a `RelayError` if the client closes first. */
  connect(): Promise<Session>;
  /** Gives the connection up until `resume()`: for an app in the background. */
  pause(): void;
  resume(): void;
  /** While `waiting`: tries at once. */
  retryNow(): void;
  /** Asks for a token, as with SESSION_EXPIRING, and renews the session; while `waiting`, tries at once. */
  renew(): void;
  /** For good. Alerts that still wait are rejected. */
  close(): void;
  /** Lasts over reconnects, until `unsubscribe()`. One at a time for each stream. */
  subscribe(streamId: string, options?: SubscribeOptions): Subscription;
  /** Lasts over reconnects, until `stop()`. One at a time. */
  publish(options?: PublishOptions): Publication;
  /** All live streams that may be seen, now and after each change. Returns how to stop that. */
  watchStreams(listener: (streams: StreamEntry[]) => void): () => void;
  /** Kept once the alert is stored, however often the connection is lost meanwhile. */
  alert(alert: NewAlert): Promise<{ alertId: number; streamId: string }>;
}

export interface Verdict {
  /** Whether to come back. */
  again: boolean;
  /** With which token; see `TokenRequest`. */
  token: 'connect' | 'expired' | 'refused';
  /** And not before so many ms. */
  after: number;
}

/** What an ending means: its Close, as far as it was seen, and the last `error` or `notice`. */
export function judgeEnding(
  code: number | undefined,
  reason: string | undefined,
  word: { code: string; retryAfter?: number } | null,
): Verdict;

export function encodeMessagePack(value: unknown): Uint8Array;
export function decodeMessagePack(bytes: Uint8Array): unknown;
export function encodeBase64(bytes: Uint8Array): string;
export function decodeBase64(text: string): Uint8Array;
