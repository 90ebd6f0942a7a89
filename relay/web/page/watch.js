// Watch: a grid of the streams that may be seen, and one of them large.
import { makeAlertList, popUp } from './alerts.js';
import { bits, count, duration, make, makeFacts, makeField, makeSelect, say } from './dom.js';
import { Screen } from './screen.js';

const TILE_FPS = 5;
const MOST_TILES = 60;
const STATUS = { streaming: 'Live', online: 'Ready, no picture yet', offline: 'Offline' };

/** Shows the grid; returns how to leave it. */
export function showGrid({ client }, content) {
  const tiles = new Map();
  const list = make('ul', { class: 'grid', 'aria-label': 'Streams' });
  const id = make('input', { 'aria-label': 'Stream id', placeholder: 'Stream id', autocapitalize: 'off', spellcheck: 'false', required: true });
  const open = (event) => {
    event.preventDefault();
    location.hash = `#watch/${encodeURIComponent(id.value.trim())}`;
  };
  const empty = make('div', { class: 'card empty', hidden: true }, make('h2', {}, 'No stream is live'),
    make('p', {}, 'Streams show up here as soon as they begin: yours, and those granted to you. '),
    make('p', {}, 'This device can be the first: ', make('a', { href: '#broadcast' }, 'broadcast its camera'), '.'));
  const rest = make('p', { class: 'faint', role: 'status' });
  content.append(
    make('div', { class: 'head' }, make('h1', { tabindex: -1 }, 'Streams'),
      make('form', { onsubmit: open }, id, make('button', { type: 'submit' }, 'Open'))),
    list, empty, rest,
  );
  // Pictures come only for what is in sight; alerts come for all.
  const sight = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) tiles.get(target.dataset.stream)?.look(isIntersecting);
  }, { rootMargin: '100px' });

  function update(streams) {
    const there = new Set(streams.map(({ streamId }) => streamId));
    for (const [streamId, tile] of tiles) if (!there.has(streamId)) tile.setStatus('offline');
    for (const { streamId, status } of streams) {
      if (!tiles.has(streamId) && (tiles.size < MOST_TILES || makeRoom(there))) {
        const tile = makeTile(client, streamId);
        tiles.set(streamId, tile);
        list.append(tile.element);
        sight.observe(tile.element);
      }
      tiles.get(streamId)?.setStatus(status);
    }
    empty.hidden = tiles.size > 0;
    const left = streams.filter(({ streamId }) => !tiles.has(streamId)).length;
    say(rest, left ? `${left} more streams are live: open them by their id.` : '');
  }

  /** Takes away the oldest tile of a stream that is gone, if there is one. */
  function makeRoom(there) {
    const gone = [...tiles.keys()].find((streamId) => !there.has(streamId));
    if (gone === undefined) return false;
    const tile = tiles.get(gone);
    tiles.delete(gone);
    sight.unobserve(tile.element);
    tile.leave();
    tile.element.remove();
    return true;
  }

  const stopWatching = client.watchStreams(update);
  const timer = setInterval(() => { for (const tile of tiles.values()) tile.refresh(); }, 500);
  return () => {
    clearInterval(timer);
    sight.disconnect();
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
  return {
    element,
    setStatus(status) {
      chip.dataset.status = status;
      say(chip, status === 'streaming' ? 'Live' : status === 'online' ? 'Ready' : 'Offline');
      screen.setStatus(status);
    },
    look(inSight) {
      subscription.update({ onFrame: inSight ? screen.show : null });
    },
    refresh() {
      screen.refresh();
      say(figures, screen.live ? `${count(screen.rate.perSecond)} fps · ${duration(screen.age)} old` : '');
    },
    leave() {
      subscription.unsubscribe();
    },
  };
}

/** Shows one stream large; returns how to leave it. */
export function showStream({ client, token }, content, streamId) {
  const screen = new Screen(client, streamId);
  const chip = make('span', { class: 'chip' });
  const [facts, set] = makeFacts(['Frames', 'Age', 'Missed', 'Size', 'Rate']);
  const alerts = makeAlertList(streamId, token);
  const wrong = make('p', { class: 'wrong', role: 'alert', hidden: true });
  const apply = (terms) => subscription.update(terms);
  const policy = makeSelect([['latest', 'Newest picture'], ['lossless', 'Every frame, in order']], 'latest',
    (value) => apply({ policy: value }));
  const fps = makeSelect([['', 'As sent'], ['30', 'at most 30'], ['10', 'at most 10'], ['5', 'at most 5'], ['1', 'at most 1']], '',
    (value) => apply({ maxFps: value ? Number(value) : null }));
  content.append(
    make('div', { class: 'head' },
      make('a', { href: '#watch', class: 'back' }, '← All streams'), make('h1', { tabindex: -1 }, streamId), chip),
    wrong,
    make('div', { class: 'large' },
      make('div', {}, screen.element, facts,
        make('div', { class: 'card fields' }, makeField('Policy', policy), makeField('Frames a second', fps))),
      alerts.element),
  );
  const subscription = client.subscribe(streamId, {
    onFrame: screen.show,
    onAlert: (alert) => {
      alerts.add(alert);
      popUp(alert);
    },
    onStatus: ({ status }) => {
      chip.dataset.status = status;
      say(chip, STATUS[status]);
      screen.setStatus(status);
    },
    onError: (error) => {
      wrong.textContent = error.message;
      wrong.hidden = false;
    },
  });
  alerts.loadEarlier();
  const timer = setInterval(() => {
    screen.refresh();
    set.Frames(screen.live ? `${count(screen.rate.perSecond)} fps` : '–');
    set.Age(screen.live ? duration(screen.age) : '–');
    set.Missed(count(screen.missed));
    set.Size(screen.size ?? '–');
    set.Rate(screen.live ? bits(screen.bytes.perSecond * 8) : '–');
  }, 500);
  const leaveByKey = (event) => {
    if (event.key === 'Escape' && event.target.tagName !== 'SELECT') location.hash = '#watch';
  };
  addEventListener('keydown', leaveByKey);
  return () => {
    clearInterval(timer);
    removeEventListener('keydown', leaveByKey);
    subscription.unsubscribe();
  };
}
