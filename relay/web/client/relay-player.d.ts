/** Types of relay-player.js, which describes how a player behaves. */
import type { Alert, Metadata, RelayClient, RelayError, StreamStatus, TokenSource } from './relay-client.js';

export type PlayerState =
  | 'idle'
  | 'connecting'
  | 'waiting'
  | 'live'
  | 'stale'
  | 'paused'
  | 'ended'
  | 'unreadable'
  | 'refused';

export interface StateChange {
  state: PlayerState;
  previous: PlayerState;
  /** What the player shows of it. */
  message: string;
  error: RelayError | null;
}

export interface PlayerFigures {
  fps: number;
  /** Age of the last picture when it was drawn, ms; null before the first one. */
  age: number | null;
  missed: number;
  width: number | null;
  height: number | null;
  /** Bits a second. */
  bitrate: number;
}

export interface PlayerEvents {
  statechange: CustomEvent<StateChange>;
  alert: CustomEvent<Alert>;
  metadatachange: CustomEvent<Metadata | undefined>;
  picturesize: CustomEvent<{ width: number; height: number }>;
}

export class RelayPlayer extends HTMLElement {
  /** The token source of all players that have none of their own. */
  static getToken: TokenFunction | null;
  getToken: TokenFunction | null;
  /** A client of the page, in place of a connection of the players' own. */
  client: RelayClient | null;
  stream: string;
  /** `auto`, the id of a layer, or a width in pixels. */
  quality: string;
  paused: boolean;
  readonly state: PlayerState;
  readonly message: string;
  readonly error: RelayError | null;
  readonly status: StreamStatus;
  readonly metadata: Metadata | undefined;
  readonly figures: PlayerFigures;
  play(): void;
  pause(): void;
  /** Connects again after `refused`. */
  reconnect(): void;
  addEventListener<K extends keyof PlayerEvents>(
    type: K,
    listener: (this: RelayPlayer, event: PlayerEvents[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(type: string, listener: EventListenerOrEventListenerObject, options?: boolean | AddEventListenerOptions): void;
}

export type TokenFunction = Exclude<TokenSource, string>;

declare global {
  interface HTMLElementTagNameMap {
    'relay-player': RelayPlayer;
  }
}
