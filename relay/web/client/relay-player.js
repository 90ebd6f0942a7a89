/**
 * <relay-player stream="front-door">: a stream of a relay in any page. No dependencies, no build.
 *
 *     <script type="module">
 *       import { RelayPlayer } from 'https://relay.example.org/relay-player.js';
 *       RelayPlayer.getToken = async () => readToken(); // of the user who is signed in
 *     </script>
 *     <relay-player stream="front-door" controls alerts></relay-player>
 *
 * The token comes from a function, `getToken`, of the player or of all players, and never stands in
 * the document. Players with the same function and the same relay share one connection.
 *
 * A player that is not seen (scrolled away, in a hidden tab) gets no pictures. It asks for pictures as
 * large as it is, and leaves nothing behind when it is removed.
 *
 * States: `idle` (no stream or no token source), `connecting`, `waiting` (for the stream), `live`,
 * `stale` (no new pictures), `paused`, `ended`, `unreadable` (pictures that this browser cannot show)
 * and `refused` (no token, a refused one, or one that may not watch). The attribute `state` has it.
 */
import './core/alerts.js'; // like those below it: named here, so that browsers ask for all modules at once
import './core/client.js';
import './core/codec.js';
import './core/link.js';
import './core/subscription.js';
import { joinClient, joinConnection } from './player/sharing.js';
import { Screen, videoCodecOf } from './player/screen.js';

const MAX_LIVE_AGE = 5000; // ms without a picture until it is no longer shown as live
const LOOK_INTERVAL = 500; // ms
const EARLY_LOADING = '100px'; // around what is seen
const RENDITION_WIDTHS = [320, 640]; // in which the relay offers pictures that come in one size
const TOLERANCE = 1.15; // by which a picture may be narrower than the player on the screen
const WIDTH_STEP = 160; // pixels, while the sizes of the stream are not known
const MAX_LAYERS = 4; // that a stream may have
const ATTRIBUTES = ['stream', 'relay', 'quality', 'max-fps', 'policy', 'alerts', 'controls', 'paused', 'label'];
const TEXTS = {
  idle: 'No stream',
  connecting: 'Connecting…',
  waiting: 'Waiting for the stream…',
  live: 'Live',
  stale: 'No new pictures',
  paused: 'Paused',
  ended: 'The stream has ended',
  unreadable: 'The browser cannot show these frames',
  refused: 'This stream cannot be watched',
};
const REFUSALS = {
  NO_TOKEN: 'Sign in to watch this stream',
  AUTH_FAILED: 'The token is invalid or has expired',
  SESSION_REVOKED: 'The session has ended',
};

const CSS = `
:host { display: flex; flex-direction: column; position: relative; overflow: hidden; background: var(--relay-player-background, #0b1116); color: #d5dde3; font: .9rem/1.4 system-ui, -apple-system, "Segoe UI", sans-serif; }
:host([hidden]) { display: none; }
.screen { position: relative; flex: 1 1 auto; min-height: 0; aspect-ratio: 16 / 9; overflow: hidden; }
canvas { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; display: block; }
.screen:has(.note:not(:empty)) canvas { opacity: .35; }
.note { position: absolute; inset: 0; display: grid; place-items: center; padding: 1rem; text-align: center; }
.controls { display: flex; align-items: center; gap: .5rem; padding: .35rem .5rem; background: #10181e; }
button, select { font: inherit; color: inherit; background: #1d2831; border: 1px solid #44525e; border-radius: .4rem; min-height: 2.25rem; padding: .2rem .7rem; }
button { min-width: 2.75rem; cursor: pointer; }
button { white-space: nowrap; flex: none; }
select { flex: 0 1 auto; min-width: 0; margin-left: auto; padding: .2rem .35rem; text-overflow: ellipsis; }
:focus-visible { outline: 2px solid #4fd1c0; outline-offset: 1px; }
[hidden] { display: none !important; }
:host(:fullscreen) { width: 100%; height: 100%; }
:host(:fullscreen) .screen { aspect-ratio: auto; }
`;
const CLOSED = { message: 'the connection was closed' };
let sheet = null; // shared by all players; a <style> element would need a weaker Content-Security-Policy

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(key.slice(2), value);
    else if (value !== false) element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children);
  return element;
}

const say = (element, text) => { if (element.textContent !== text) element.textContent = text; };

/** The sizes that a broadcaster names in the metadata of its stream, the smallest first. */
function layersOf(metadata) {
  const layers = Array.isArray(metadata?.layers) ? metadata.layers.slice(0, MAX_LAYERS) : [];
  const good = layers.filter((each) => typeof each?.id === 'string' && Number.isInteger(each.width) && each.width > 0);
  return good.sort((one, other) => one.width - other.width);
}

/** Where the relay is from which this file came. Vite would put a file here. */
const HOME = new URL(/* @vite-ignore */ '.', import.meta.url).href;

const present = new Set(); // players in the document
let common = null; // the token source of all

function sourceOf(value) {
  if (value != null && typeof value !== 'function') throw new TypeError('getToken: expected a function that returns the token');
  return value ?? null;
}

const Base = globalThis.HTMLElement ?? class {}; // servers may import this, too

export class RelayPlayer extends Base {
  static observedAttributes = ATTRIBUTES;

  /** The token source of all players that have none of their own. */
  static get getToken() { return common; }
  static set getToken(value) {
    common = sourceOf(value);
    for (const player of present) if (player._getToken === null && player._client === null) player._start();
  }

  constructor() {
    super();
    this._getToken = this._client = null;
    this._connection = null; // that it has joined
    this._shared = null; // the stream that it watches
    this._viewer = null; // what it is there
    this._isHere = false; // in the document
    this._isSeen = false;
    this._isDue = false; // whether changes will be looked at
    this._status = 'offline'; // of the stream
    this._wasOnline = false;
    this._metadata = undefined;
    this._problem = null; // with pictures
    this._beganAt = -Infinity; // when it last asked for pictures
    this._error = null; // of the connection
    this._failure = null; // why the stream cannot be watched
    this._age = null; // of the last picture when it was drawn, in ms
    this._state = 'idle';
    this._message = '';
    this._offered = null; // qualities in the menu
    this._picked = null; // the quality that somebody chose there
    this._build();
    this._sight = new IntersectionObserver((entries) => {
      this._isSeen = entries.at(-1).isIntersecting;
      this._lookSoon();
    }, { rootMargin: EARLY_LOADING });
    this._size = new ResizeObserver(() => this._lookSoon());
    this._onVisibility = () => this._lookSoon();
  }

  // -- What pages use

  /** A function that gives the token, `({ reason, refused }) => token`, or a promise of it. */
  get getToken() { return this._getToken; }
  set getToken(value) {
    this._getToken = sourceOf(value);
    this._start();
  }

  /** A `RelayClient` of the page, in place of a connection of the players' own. */
  get client() { return this._client; }
  set client(value) {
    this._client = value ?? null;
    this._start();
  }

  get state() { return this._state; }
  /** What is shown of the state, as text. */
  get message() { return this._message; }
  /** The `RelayError` behind `connecting` or `refused`, or null. */
  get error() { return this._error; }
  get metadata() { return this._metadata; }
  /** The status of the stream: online, streaming or offline. */
  get status() { return this._status; }
  /** Of the pictures: `{ fps, age, missed, width, height, bitrate }`; age in ms, bitrate in bits a second. */
  get figures() {
    const { rate, bytes, missed, width, height } = this._screen;
    return { fps: rate.perSecond, age: this._age, missed, width, height, bitrate: 8 * bytes.perSecond };
  }

  get stream() { return this.getAttribute('stream') ?? ''; }
  set stream(value) { this.setAttribute('stream', value); }
  get quality() { return this.getAttribute('quality') ?? 'auto'; }
  set quality(value) { this.setAttribute('quality', value); }
  get paused() { return this.hasAttribute('paused'); }
  set paused(value) { this.toggleAttribute('paused', Boolean(value)); }

  play() { this.paused = false; }
  pause() { this.paused = true; }

  /** Connects again after `refused`, for instance with another user. */
  reconnect() { this._start(); }

  // -- Called by the browser

  connectedCallback() {
    for (const name of ['getToken', 'client', 'stream', 'quality', 'paused']) this._upgrade(name);
    this._isHere = true;
    present.add(this);
    this._sight.observe(this);
    this._size.observe(this);
    document.addEventListener('visibilitychange', this._onVisibility);
    this._timer = setInterval(() => this._look(), LOOK_INTERVAL);
    this._start();
  }

  /** Leaves nothing behind. */
  disconnectedCallback() {
    this._isHere = this._isSeen = false;
    present.delete(this);
    this._sight.disconnect();
    this._size.disconnect();
    document.removeEventListener('visibilitychange', this._onVisibility);
    clearInterval(this._timer);
    this._leave();
    this._enter('idle');
  }

  /** Moved within the document (`moveBefore`): nothing is lost. */
  connectedMoveCallback() {}

  attributeChangedCallback(name, before, after) {
    if (before === after) return;
    if (['stream', 'relay', 'alerts'].includes(name)) this._start();
    else this._lookSoon();
  }

  // -- Private to this module

  _build() {
    if (sheet === null) {
      sheet = new CSSStyleSheet();
      sheet.replaceSync(CSS);
    }
    this._canvas = make('canvas', { width: 16, height: 9, role: 'img', part: 'picture' });
    this._note = make('div', { class: 'note', part: 'note' });
    this._toggle = make('button', { type: 'button', 'aria-keyshortcuts': 'k', onclick: () => { this.paused = !this.paused; } });
    this._automatic = make('option', { value: 'auto' }, 'Automatic');
    this._menu = make('select', { 'aria-label': 'Quality', onchange: () => { this.quality = this._picked = this._menu.value; } }, this._automatic);
    this._full = make('button', { type: 'button', 'aria-keyshortcuts': 'f', onclick: () => this._toggleFullscreen() }, 'Full screen');
    this._full.hidden = !document.fullscreenEnabled;
    this._controls = make('div', { class: 'controls', part: 'controls', role: 'group', 'aria-label': 'Player', hidden: true },
      this._toggle, this._menu, this._full);
    const root = this.attachShadow({ mode: 'open' });
    root.adoptedStyleSheets = [sheet];
    root.append(make('div', { class: 'screen', part: 'screen' }, this._canvas, this._note), this._controls);
    root.addEventListener('keydown', (event) => this._press(event));
    this._screen = new Screen(this._canvas, {
      onPicture: () => this._onPicture(),
      onProblem: (text) => {
        this._problem = text;
        this._look();
      },
      onKeyframeWanted: () => this._shared?.change(this._viewer),
    });
  }

  /** A property that was set before this class was defined. */
  _upgrade(name) {
    if (!Object.hasOwn(this, name)) return;
    const value = this[name];
    delete this[name];
    this[name] = value;
  }

  _press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === 'SELECT') return;
    if (event.key === 'k') this.paused = !this.paused;
    else if (event.key === 'f') this._toggleFullscreen();
  }

  _toggleFullscreen() {
    if (document.fullscreenElement === this) document.exitFullscreen();
    else this.requestFullscreen?.().catch(() => {});
  }

  /** Begins anew, once the script that runs has set what it sets. */
  _start() {
    this._leave();
    this._lookSoon();
  }

  _lookSoon() {
    if (this._isDue || !this._isHere) return;
    this._isDue = true;
    queueMicrotask(() => {
      this._isDue = false;
      if (!this._isHere) return;
      this._watch();
      this._look();
    });
  }

  /** Joins the connection and the stream, unless it has, and asks for what it needs now. */
  _watch() {
    const source = this._getToken ?? common;
    if (!this.stream || (this._client === null && source === null)) return;
    if (this._connection === null) {
      try {
        const url = new URL(this.getAttribute('relay') ?? HOME, document.baseURI).href;
        this._connection = this._client ? joinClient(this._client) : joinConnection(url.endsWith('/') ? url : `${url}/`, source);
      } catch (error) {
        this._fail(error);
        return;
      }
      this._ignore = this._connection.client.on('state', ({ error }) => {
        this._error = error;
        this._look();
      });
      this._join();
    } else if (this._viewer !== null) {
      const terms = this._terms();
      if (JSON.stringify(terms) === JSON.stringify(this._viewer.terms)) return;
      const begins = this._viewer.terms === null;
      this._viewer.terms = terms;
      if (begins) this._beganAt = performance.now();
      if (terms === null) this._screen.stop();
      this._shared.change(begins ? this._viewer : null);
    }
  }

  _join() {
    const alerts = this.getAttribute('alerts');
    const viewer = {
      terms: this._terms(),
      history: alerts === null ? null : Math.min(1000, Math.max(0, Number.parseInt(alerts, 10) || 0)),
      onFrame: (frame, metadata) => (this._viewer === viewer ? this._screen.show(frame, metadata) : undefined),
      onAlert: (alert) => this._tell('alert', alert),
      onStatus: (status) => { if (this._viewer === viewer) this._learn(status); },
      onError: (error) => { if (this._viewer === viewer) this._fail(error); },
    };
    this._viewer = viewer;
    this._shared = this._connection.watch(this.stream, viewer);
  }

  _leave() {
    this._ignore?.();
    if (this._viewer !== null) this._shared?.remove(this._viewer);
    this._connection?.leave();
    this._ignore = this._viewer = this._shared = this._connection = null;
    this._status = 'offline';
    this._wasOnline = false;
    this._metadata = undefined;
    this._error = this._failure = this._problem = null;
    this._screen.clear();
  }

  _fail(error) {
    this._failure = error;
    this._viewer = this._shared = null;
    this._look();
  }

  _learn({ status, metadata }) {
    this._status = status;
    this._wasOnline ||= status !== 'offline';
    const isNew = JSON.stringify(metadata) !== JSON.stringify(this._metadata);
    this._metadata = metadata;
    if (isNew) {
      this._problem = null;
      this._offer();
      this._tell('metadatachange', metadata);
    }
    this._lookSoon();
    this._look();
  }

  /** The terms of its subscription; null while it needs no pictures. */
  _terms() {
    if (this.paused || !this._isSeen || document.visibilityState === 'hidden') return null;
    const video = videoCodecOf(this._metadata) !== null;
    const maxFps = Number(this.getAttribute('max-fps'));
    return {
      policy: this.getAttribute('policy') === 'lossless' ? 'lossless' : 'latest',
      maxFps: maxFps > 0 && !video ? maxFps : null, // of a thinned video only the keyframes could be shown
      ...this._termsOfQuality(),
    };
  }

  _termsOfQuality() {
    const layers = layersOf(this._metadata);
    const wanted = this.quality;
    if (layers.some(({ id }) => id === wanted)) return { layer: wanted, maxWidth: null };
    const pixels = this._canvas.clientWidth * (globalThis.devicePixelRatio || 1);
    const own = this._enough(pixels, layers);
    const most = Number.parseInt(wanted, 10);
    return { layer: null, maxWidth: most > 0 ? Math.min(most, own ?? Infinity) : own };
  }

  /** The width of pictures that are as wide as the player, or a little less; null for the widest. */
  _enough(pixels, layers) {
    if (pixels === 0) return null;
    if (this._metadata === undefined) return WIDTH_STEP * Math.ceil((pixels * 1.5) / WIDTH_STEP);
    const widths = layers.length > 0 ? layers.map(({ width }) => width) : RENDITION_WIDTHS;
    return widths.find((width) => width * TOLERANCE >= pixels) ?? null;
  }

  /** Offers the sizes that the stream has. A choice among them that it no longer has becomes automatic. */
  _offer() {
    const layers = layersOf(this._metadata).reverse().map(({ id, width }) => [id, `${width} pixels`]);
    // Of pictures without layers, the relay makes smaller ones.
    const widths = videoCodecOf(this._metadata) === null ? [...RENDITION_WIDTHS].reverse() : [];
    const options = layers.length > 0 ? layers : widths.map((width) => [String(width), `At most ${width} pixels`]);
    if (String(options) === this._offered) return;
    this._offered = String(options);
    this._menu.replaceChildren(this._automatic, ...options.map(([value, text]) => make('option', { value }, text)));
    const isGone = !options.some(([value]) => value === this.quality);
    if (isGone && this.quality === this._picked) this.quality = 'auto'; // the page's own choice stays
  }

  _onPicture() {
    this._problem = null;
    this._error = null;
    const { width, height } = this._screen;
    this._age = Math.max(0, this._connection.client.relayNow() - this._screen.receivedAt);
    if (this._state !== 'live') this._look();
    if (width === this._toldWidth && height === this._toldHeight) return;
    [this._toldWidth, this._toldHeight] = [width, height];
    this._tell('picturesize', { width, height });
  }

  // -- The state

  _look() {
    if (!this._isHere) return;
    const [state, message] = this._judge();
    const isLive = state === 'live';
    this._showMenu(isLive ? this._screen.width : null);
    this._controls.hidden = !this.hasAttribute('controls');
    say(this._toggle, this.paused ? 'Play' : 'Pause');
    say(this._full, document.fullscreenElement === this ? 'Leave full screen' : 'Full screen');
    // Many players without controls would all talk at once.
    if (this._controls.hidden) this._note.removeAttribute('role');
    else if (!this._note.role) this._note.setAttribute('role', 'status');
    say(this._note, isLive ? '' : message);
    const label = `${this.getAttribute('label') ?? `Picture of ${this.stream}`}: ${message}`;
    if (this._canvas.getAttribute('aria-label') !== label) this._canvas.setAttribute('aria-label', label);
    this._enter(state, message);
  }

  /** The state, and what to say about it. */
  _judge() {
    if (this._failure) return this._refused(this._failure);
    const client = this._connection?.client;
    if (client === undefined) return ['idle', this.stream ? 'No token: the page sets getToken' : TEXTS.idle];
    if (client.state === 'closed') return this._refused(this._error ?? CLOSED);
    if (client.state !== 'ready') return ['connecting', this._error ? `${TEXTS.connecting} (${this._error.message})` : TEXTS.connecting];
    if (this._status === 'offline') return this._wasOnline ? ['ended', TEXTS.ended] : ['waiting', TEXTS.waiting];
    if (this._problem) return ['unreadable', this._problem];
    if (this._viewer?.terms === null) return ['paused', TEXTS.paused];
    const [{ drawnAt }, oldest] = [this._screen, performance.now() - MAX_LIVE_AGE];
    if (drawnAt > Math.max(oldest, this._beganAt)) return ['live', TEXTS.live];
    if (drawnAt === -Infinity || this._beganAt > oldest) return ['waiting', 'Waiting for a picture…'];
    return ['stale', TEXTS.stale];
  }

  _refused(error) {
    this._error = error;
    return ['refused', REFUSALS[error.code] ?? `${TEXTS.refused}: ${error.message}`];
  }

  _enter(state, message = TEXTS[state]) {
    if (state === this._state && message === this._message) return;
    const previous = this._state;
    this._state = state;
    this._message = message;
    this.setAttribute('state', state);
    this._tell('statechange', { state, previous, message, error: this._error });
  }

  _showMenu(width) {
    const chosen = [...this._menu.options].some(({ value }) => value === this.quality) ? this.quality : 'auto';
    if (this._menu.value !== chosen) this._menu.value = chosen;
    say(this._automatic, chosen === 'auto' && width !== null ? `Automatic (${width})` : 'Automatic');
  }

  _tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

if (globalThis.customElements && !customElements.get('relay-player')) customElements.define('relay-player', RelayPlayer);
