// Watch: a grid of the streams that the user may watch, and a view of one stream.
import { makeAlertList, popUp } from './alerts.js';
import { videoCodecOf } from './decoder.js';
import { bits, count, duration, make, makeFacts, makeField, makeSelect, say } from './dom.js';
import { layersOf } from './layers.js';
import { Screen } from './screen.js';

const TILE_FPS = 5;
const TILE_WIDTH_STEP = 160; // pixels: a tile that is resized a little still gets the same
const RENDITION_WIDTHS = [640, 320]; // that the relay makes of JPEG pictures
const MAX_TILES = 60;
const STATUS = { streaming: 'Live', online: 'Online, no picture yet', offline: 'Offline' };

/** Shows the grid; returns a function that leaves it. */
export function showGrid({ client }, content) {
  const tiles = new Map();
  const list = make('ul', { class: 'grid', 'aria-label': 'Streams' });
  const id = make('input', { 'aria-label': 'Stream id', placeholder: 'Stream id', autocapitalize: 'off', spellcheck: 'false', required: true });
  const open = (event) => {
    event.preventDefault();
    location.hash = `#watch/${encodeURIComponent(id.value.trim())}`;
  };
  const empty = make('div', { class: 'card empty', hidden: true }, make('h2', {}, 'No live streams'),
    make('p', {}, 'Your streams, and those that others share with you, appear here when they start.'),
    make('p', {}, 'To start one, ', make('a', { href: '#broadcast' }, 'broadcast the camera of this device'), '.'));
  const rest = make('p', { class: 'faint', role: 'status' });
  content.append(
    make('div', { class: 'head' }, make('h1', { tabindex: -1 }, 'Streams'),
      make('form', { onsubmit: open }, id, make('button', { type: 'submit' }, 'Open'))),
    list, empty, rest,
  );
  // Only visible tiles get pictures; all get alerts.
  const sight = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) tiles.get(target.dataset.stream)?.look(isIntersecting);
  }, { rootMargin: '100px' });
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) tiles.get(target.dataset.stream)?.fit();
  });

  function update(streams) {
    const there = new Set(streams.map(({ streamId }) => streamId));
    for (const [streamId, tile] of tiles) if (!there.has(streamId)) tile.setStatus('offline');
    for (const { streamId, status, metadata } of streams) {
      if (!tiles.has(streamId) && (tiles.size < MAX_TILES || makeRoom(there))) {
        const tile = makeTile(client, streamId);
        tiles.set(streamId, tile);
        list.append(tile.element);
        sight.observe(tile.element);
        sizes.observe(tile.element);
      }
      tiles.get(streamId)?.setStatus(status);
      tiles.get(streamId)?.describe(metadata);
    }
    empty.hidden = tiles.size > 0;
    const left = streams.filter(({ streamId }) => !tiles.has(streamId)).length;
    say(rest, left ? `${left} more live streams are not shown. Open them by id.` : '');
  }

  /** Removes the oldest tile of a stream that is gone; returns whether there was one. */
  function makeRoom(there) {
    const gone = [...tiles.keys()].find((streamId) => !there.has(streamId));
    if (gone === undefined) return false;
    const tile = tiles.get(gone);
    tiles.delete(gone);
    sight.unobserve(tile.element);
    sizes.unobserve(tile.element);
    tile.leave();
    tile.element.remove();
    return true;
  }

  const stopWatching = client.watchStreams(update);
  const timer = setInterval(() => { for (const tile of tiles.values()) tile.refresh(); }, 500);
  return () => {
    clearInterval(timer);
    sight.disconnect();
    sizes.disconnect();
    stopWatching();
    for (const tile of tiles.values()) tile.leave();
  };
}

function makeTile(client, streamId) {
  const screen = new Screen(client, streamId);
  const chip = make('span', { class: 'chip' });
  const figures = make('span', { class: 'figures' });
  const element = make('li', { 'data-stream': streamId }, make('a', { class: 'tile', href: `#watch/${encodeURIComponent(streamId)}` },
    screen.element, make('div', { class: 'text' }, make('span', { class: 'name' }, streamId), chip, figures)));
  const subscription = client.subscribe(streamId, { onAlert: popUp, maxFps: TILE_FPS });
  screen.follow(subscription);
  let maxFps = TILE_FPS;
  let [inSight, maxWidth] = [false, null];
  const pixels = () => TILE_WIDTH_STEP * Math.max(1, Math.ceil(screen.element.clientWidth * devicePixelRatio / TILE_WIDTH_STEP));
  return {
    element,
    /** Of a video that is thinned, only the keyframes could be shown. */
    describe(metadata) {
      const wanted = videoCodecOf(metadata) === null ? TILE_FPS : null;
      if (wanted !== maxFps) subscription.update({ maxFps: maxFps = wanted });
    },
    setStatus(status) {
      chip.dataset.status = status;
      say(chip, status === 'streaming' ? 'Live' : status === 'online' ? 'Online' : 'Offline');
      screen.setStatus(status);
    },
    look(isInSight) {
      [inSight, maxWidth] = [isInSight, pixels()];
      subscription.update({ onFrame: inSight ? screen.show : null, maxWidth });
      screen.stop();
    },
    /** Asks for pictures of the size that the tile has now. */
    fit() {
      if (inSight && pixels() !== maxWidth) subscription.update({ maxWidth: maxWidth = pixels() });
    },
    refresh() {
      screen.refresh();
      say(figures, screen.live ? `${count(screen.rate.perSecond)} fps · ${duration(screen.age)} old` : '');
    },
    leave() {
      subscription.unsubscribe();
      screen.stop();
    },
  };
}

/** A menu of the widths in which a stream comes. `onChange` gets the terms of a subscription for one. */
class QualityMenu {
  constructor(onChange) {
    this._onChange = onChange;
    this._automatic = make('option', { value: termsFor() }, 'Automatic');
    this.element = make('select', { onchange: () => onChange(JSON.parse(this.element.value)) }, this._automatic);
  }

  /** Offers what the stream has. A choice that it no longer has becomes automatic. */
  offer(metadata) {
    const layers = layersOf(metadata).reverse().map(({ id, width }) => [termsFor({ layer: id }), `${width} pixels`]);
    // Of pictures without layers, the relay makes smaller ones.
    const widths = videoCodecOf(metadata) === null ? RENDITION_WIDTHS : [];
    const limits = widths.map((width) => [termsFor({ maxWidth: width }), `At most ${width} pixels`]);
    const options = layers.length > 0 ? layers : limits;
    const offered = String(options);
    if (offered === this._offered) return;
    this._offered = offered;
    const before = this.element.value;
    this.element.replaceChildren(this._automatic, ...options.map(([value, text]) => make('option', { value }, text)));
    const kept = options.some(([value]) => value === before);
    this.element.value = kept ? before : this._automatic.value;
    if (this.element.value !== before) this._onChange(JSON.parse(this.element.value));
  }

  /** Shows how wide the pictures are that come now, if any do. */
  show(width) {
    const isAutomatic = this.element.value === this._automatic.value;
    say(this._automatic, isAutomatic && width !== null ? `Automatic (${width})` : 'Automatic');
  }
}

const termsFor = ({ layer = null, maxWidth = null } = {}) => JSON.stringify({ layer, maxWidth });

/** Shows one stream; returns a function that leaves the view. */
export function showStream({ client, token }, content, streamId) {
  const screen = new Screen(client, streamId);
  const chip = make('span', { class: 'chip' });
  const [facts, set] = makeFacts(['Frame rate', 'Age', 'Missed', 'Size', 'Bit rate']);
  const alerts = makeAlertList(streamId, token);
  const wrong = make('p', { class: 'wrong', role: 'alert', hidden: true });
  const apply = (terms) => subscription.update(terms);
  const policy = makeSelect([['latest', 'Latest frame'], ['lossless', 'Every frame, in order']], 'latest',
    (value) => apply({ policy: value }));
  const fps = makeSelect([['', 'All'], ['30', 'At most 30'], ['10', 'At most 10'], ['5', 'At most 5'], ['1', 'At most 1']], '',
    (value) => apply({ maxFps: value ? Number(value) : null }));
  const quality = new QualityMenu(apply);
  content.append(
    make('div', { class: 'head' },
      make('a', { href: '#watch', class: 'back' }, '← All streams'), make('h1', { tabindex: -1 }, streamId), chip),
    wrong,
    make('div', { class: 'large' },
      make('div', {}, screen.element, facts,
        make('div', { class: 'card fields' }, makeField('Quality', quality.element), makeField('Delivery', policy),
          makeField('Frames per second', fps))),
      alerts.element),
  );
  const subscription = client.subscribe(streamId, {
    onFrame: screen.show,
    onAlert: (alert) => {
      alerts.add(alert);
      popUp(alert);
    },
    onStatus: ({ status, metadata }) => {
      fps.disabled = videoCodecOf(metadata) !== null;
      quality.offer(metadata);
      chip.dataset.status = status;
      say(chip, STATUS[status]);
      screen.setStatus(status);
    },
    onError: (error) => {
      wrong.textContent = error.message;
      wrong.hidden = false;
    },
  });
  screen.follow(subscription);
  alerts.loadEarlier();
  const timer = setInterval(() => {
    screen.refresh();
    set['Frame rate'](screen.live ? `${count(screen.rate.perSecond)} fps` : '–');
    set.Age(screen.live ? duration(screen.age) : '–');
    set.Missed(count(screen.missed));
    set.Size(screen.size ?? '–');
    quality.show(screen.live ? screen.width : null);
    set['Bit rate'](screen.live ? bits(screen.bytes.perSecond * 8) : '–');
  }, 500);
  const leaveByKey = (event) => {
    if (event.key === 'Escape' && event.target.tagName !== 'SELECT') location.hash = '#watch';
  };
  addEventListener('keydown', leaveByKey);
  return () => {
    clearInterval(timer);
    removeEventListener('keydown', leaveByKey);
    subscription.unsubscribe();
    screen.stop();
  };
}
