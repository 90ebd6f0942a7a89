// Watch: a grid of the streams that the user may watch, and a view of one stream.
import '../relay-player.js';
import { videoCodecOf } from '../player/screen.js';
import { makeAlertList, popUp } from './alerts.js';
import { bits, count, duration, make, makeFacts, makeField, makeSelect, say } from './dom.js';

const TILE_FPS = 5;
const MAX_TILES = 60;
const STATUS = { streaming: 'Live', online: 'Online, no picture yet', offline: 'Offline' };

/** A player of a stream, on the connection of the page. */
function makePlayer(client, streamId, attributes) {
  const player = make('relay-player', { stream: streamId, alerts: true, label: `Picture of ${streamId}`, ...attributes });
  player.client = client;
  return player;
}

/** Where the switch for notifications appears, which only users have. */
function makeNotifyPlace({ client, token }, streamId) {
  const place = make('div', { class: 'notify-place' });
  let isThere = false;
  const add = async () => {
    if (isThere || !client.session?.userId) return;
    isThere = true;
    const { makeNotify } = await import('./notify.js');
    place.append(makeNotify(token, streamId, client.session.userId));
  };
  const stop = client.on('session', add);
  add();
  return [place, stop];
}

/** Shows the grid; returns a function that leaves it. */
export function showGrid(session, content) {
  const { client } = session;
  const [notify, stopNotify] = makeNotifyPlace(session, null);
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
    list, empty, rest, notify,
  );

  function update(streams) {
    const there = new Set(streams.map(({ streamId }) => streamId));
    for (const [streamId, tile] of tiles) if (!there.has(streamId)) tile.setStatus('offline');
    for (const { streamId, status } of streams) {
      if (!tiles.has(streamId) && (tiles.size < MAX_TILES || makeRoom(there))) {
        const tile = makeTile(client, streamId);
        tiles.set(streamId, tile);
        list.append(tile.element);
      }
      tiles.get(streamId)?.setStatus(status);
    }
    empty.hidden = tiles.size > 0;
    const left = streams.filter(({ streamId }) => !tiles.has(streamId)).length;
    say(rest, left ? `${left} more live streams are not shown. Open them by id.` : '');
  }

  /** Removes the oldest tile of a stream that is gone; returns whether there was one. */
  function makeRoom(there) {
    const gone = [...tiles.keys()].find((streamId) => !there.has(streamId));
    if (gone === undefined) return false;
    tiles.get(gone).element.remove();
    tiles.delete(gone);
    return true;
  }

  const stopWatching = client.watchStreams(update);
  const timer = setInterval(() => { for (const tile of tiles.values()) tile.refresh(); }, 500);
  return () => {
    clearInterval(timer);
    stopNotify();
    stopWatching();
  };
}

function makeTile(client, streamId) {
  const player = makePlayer(client, streamId, { 'max-fps': TILE_FPS });
  player.addEventListener('alert', ({ detail }) => popUp(detail));
  const chip = make('span', { class: 'chip' });
  const figures = make('span', { class: 'figures' });
  const element = make('li', { 'data-stream': streamId }, make('a', { class: 'tile', href: `#watch/${encodeURIComponent(streamId)}` },
    player, make('div', { class: 'text' }, make('span', { class: 'name' }, streamId), chip, figures)));
  return {
    element,
    setStatus(status) {
      chip.dataset.status = status;
      say(chip, status === 'streaming' ? 'Live' : status === 'online' ? 'Online' : 'Offline');
    },
    refresh() {
      const { fps, age } = player.figures;
      say(figures, player.state === 'live' ? `${count(fps)} fps · ${duration(age)} old` : '');
    },
  };
}

/** Shows one stream; returns a function that leaves the view. */
export function showStream(session, content, streamId) {
  const { client, token } = session;
  const [notify, stopNotify] = makeNotifyPlace(session, streamId);
  const player = makePlayer(client, streamId, { controls: true });
  const chip = make('span', { class: 'chip' });
  const [facts, set] = makeFacts(['Frame rate', 'Age', 'Missed', 'Size', 'Bit rate']);
  const alerts = makeAlertList(streamId, token);
  const wrong = make('p', { class: 'wrong', role: 'alert', hidden: true });
  const policy = makeSelect([['latest', 'Latest frame'], ['lossless', 'Every frame, in order']], 'latest',
    (value) => player.setAttribute('policy', value));
  const fps = makeSelect([['', 'All'], ['30', 'At most 30'], ['10', 'At most 10'], ['5', 'At most 5'], ['1', 'At most 1']], '',
    (value) => player.setAttribute('max-fps', value));
  content.append(
    make('div', { class: 'head' },
      make('a', { href: '#watch', class: 'back' }, '← All streams'), make('h1', { tabindex: -1 }, streamId), chip),
    wrong,
    make('div', { class: 'large' },
      make('div', {}, player, facts,
        make('div', { class: 'card fields' }, makeField('Delivery', policy), makeField('Frames per second', fps))),
      make('div', { class: 'beside' }, alerts.element, notify)),
  );
  player.addEventListener('alert', ({ detail }) => {
    alerts.add(detail);
    popUp(detail);
  });
  player.addEventListener('statechange', ({ detail: { state, error } }) => {
    wrong.hidden = state !== 'refused';
    if (state === 'refused') wrong.textContent = error.message;
  });
  alerts.loadEarlier();
  const refresh = () => {
    const { status, figures } = player;
    const isLive = player.state === 'live';
    chip.dataset.status = status;
    say(chip, STATUS[status]);
    fps.disabled = videoCodecOf(player.metadata) !== null;
    set['Frame rate'](isLive ? `${count(figures.fps)} fps` : '–');
    set.Age(isLive ? duration(figures.age) : '–');
    set.Missed(count(figures.missed));
    set.Size(figures.width === null ? '–' : `${figures.width} × ${figures.height}`);
    set['Bit rate'](isLive ? bits(figures.bitrate) : '–');
  };
  refresh();
  const timer = setInterval(refresh, 500);
  const leaveByKey = (event) => {
    const [control] = event.composedPath(); // inside of the player, too
    if (event.key === 'Escape' && control.tagName !== 'SELECT' && !document.fullscreenElement) location.hash = '#watch';
  };
  addEventListener('keydown', leaveByKey);
  return () => {
    clearInterval(timer);
    stopNotify();
    removeEventListener('keydown', leaveByKey);
  };
}
