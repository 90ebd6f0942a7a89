// Operate: statistics of the relay over HTTP, with small plots of the last minutes.
import { RELAY } from './api.js';
import { bits, count, duration, make, makeFacts, say } from './dom.js';
import { makeOperator } from './operator.js';
import { People } from './people.js';

const POLL_INTERVAL = 2000; // ms
const MAX_SAMPLES = 150; // five minutes
const MAX_ROWS = 100;
/** The columns of numbers, which are aligned on the right. */
const NUMBERS = new Set(['Count', 'Frames', 'Viewers', 'Sent', 'Dropped', 'Queued', 'Bandwidth', 'Round trip', 'Under way']);

/** Shows the statistics; returns a function that leaves the view. */
export function showOperate({ token }, content) {
  const plots = {
    frames: new Plot('Frames per second', 'in', 'out'),
    drops: new Plot('Dropped frames per second', 'superseded', 'other'),
    ages: new Plot('Frame age when sent, ms', 'p50', 'p99'),
    connections: new Plot('Connections', 'open', 'authenticated'),
  };
  const [facts, set] = makeFacts(['Connections', 'Streams live', 'Subscriptions', 'Frames in', 'Frames out', 'Alerts stored']);
  const services = make('tbody');
  const endings = make('tbody');
  const streams = make('tbody');
  const links = make('tbody');
  const note = make('p', { role: 'status', class: 'faint' });
  const people = new People(token);
  const refused = make('section', { class: 'card refused', role: 'alert', hidden: true });
  const panels = make('div', { class: 'panels' },
    ...Object.values(plots).map((plot) => plot.element),
    table('Background tasks', ['Task', 'State'], services),
    table('Closed connections', ['Reason', 'Count'], endings),
    table('Streams', ['Stream', 'Owner', 'Status', 'Frames', 'Viewers', 'Sent', 'Dropped', 'Queued', 'Producer'], streams, true),
    table('Links to viewers, the slowest first', ['Viewer', 'Who', 'Stream', 'Layer', 'Bandwidth', 'Round trip', 'Under way', 'Queued'], links, true));
  content.append(make('div', { class: 'head' }, make('h1', { tabindex: -1 }, 'Operate'), note), refused, facts, panels);
  let operator = null; // made once the token is known to be an operator's
  let before = null;
  let timer;
  let left = false;
  let refusedToken = null; // ask again only with another token

  async function look() {
    try {
      if (token() !== refusedToken) await ask(token());
      note.textContent = '';
    } catch (error) {
      say(note, `The relay does not answer: ${error.message}. Retrying…`);
      before = null;
    }
    if (!left) timer = setTimeout(look, POLL_INTERVAL);
  }

  async function ask(given) {
    const headers = { Authorization: `Bearer ${given}` };
    const [figures, stats, ready] = await Promise.all([
      fetch(new URL('figures', RELAY), { headers }), fetch(new URL('stats', RELAY)), fetch(new URL('ready', RELAY)),
    ]);
    if (left) return;
    const allowed = figures.status !== 401 && figures.status !== 403;
    facts.hidden = panels.hidden = !allowed;
    refused.hidden = allowed;
    if (operator) operator.element.hidden = !allowed;
    else if (figures.ok) content.append((operator = makeOperator(token, people)).element);
    if (!allowed) {
      explain((await figures.json()).error.message);
      refusedToken = given;
      before = null;
      return;
    }
    if (!figures.ok || !stats.ok) throw new Error(`status ${figures.status}`);
    show(await stats.json(), await figures.json(), await ready.json());
  }

  function explain(why) {
    refused.replaceChildren(make('h2', {}, 'This token cannot show statistics'), make('p', {}, `${why}.`),
      make('p', {}, 'Create a service token with --operate and connect with it:'),
      make('pre', {}, "./scripts/relay token service operator --consume '*' --operate"));
  }

  function show(stats, figures, ready) {
    const now = { at: performance.now(), stats };
    const out = stats.frames_to_consumers;
    set.Connections(count(stats.connections));
    set['Streams live'](count(stats.streams.online + stats.streams.streaming));
    set.Subscriptions(count(stats.streams.consumers));
    set['Alerts stored'](count(stats.alerts_stored));
    plots.connections.add(stats.connections, stats.authenticated);
    if (before !== null) {
      const seconds = (now.at - before.at) / 1000;
      const was = before.stats.frames_to_consumers;
      const rate = (new_, old) => Math.max(0, (new_ - old) / seconds);
      const dropped = (each) => Object.values(each.dropped).reduce((sum, value) => sum + value, 0);
      const superseded = rate(out.dropped.superseded ?? 0, was.dropped.superseded ?? 0);
      const framesIn = rate(stats.frames_accepted, before.stats.frames_accepted);
      const framesOut = rate(out.written, was.written);
      set['Frames in'](`${count(framesIn)} / s`);
      set['Frames out'](`${count(framesOut)} / s`);
      plots.frames.add(framesIn, framesOut);
      plots.drops.add(superseded, rate(dropped(out), dropped(was)) - superseded);
      plots.ages.add(...agesBetween(before.stats.frame_age, stats.frame_age));
    }
    before = now;
    fill(services, Object.entries({ database: ready.database, ...ready.services }));
    fill(endings, Object.entries(stats.endings).sort(([, one], [, other]) => other - one)
      .map(([name, number]) => [name.replaceAll('_', ' '), number]));
    const rows = figures.streams.map(({ streamId, ownerId, status, frames, producer, consumers, carriedFrom, edges }) => {
      const sum = (of) => consumers.reduce((total, each) => total + of(each), 0);
      const lost = ({ dropped }) => Object.values(dropped).reduce((total, value) => total + value, 0);
      return [streamId, ownerId ? people.label(ownerId) : '–', status, frames, consumers.length, sum((each) => each.written), sum(lost), sum((each) => each.waiting), producerOf(producer, carriedFrom, edges)];
    });
    fill(streams, rows.slice(0, MAX_ROWS));
    const viewers = linksOf(figures, people).slice(0, MAX_ROWS);
    fill(links, viewers);
    operator.offer(connectionsOf(figures, people).slice(0, MAX_ROWS));
    people.learn(usersIn(figures));
  }

  look();
  return () => {
    left = true;
    clearTimeout(timer);
  };
}

/** The median and the 99th percentile of the frames between two histograms, in ms; null without frames. */
function agesBetween(old, now) {
  const counts = Object.entries(now).map(([bound, value]) => [Number(bound) || Infinity, value - (old[bound] ?? 0)]);
  counts.sort(([one], [other]) => one - other);
  const all = counts.reduce((sum, [, value]) => sum + value, 0);
  if (all <= 0) return [null, null];
  return [0.5, 0.99].map((part) => {
    let seen = 0;
    let below = 0;
    for (const [bound, value] of counts) {
      if (value > 0 && seen + value >= part * all) {
        const inside = Number.isFinite(bound) ? bound : 2 * below;
        return 1000 * (below + (inside - below) * ((part * all - seen) / value));
      }
      seen += value;
      if (Number.isFinite(bound)) below = bound;
    }
    return null;
  });
}

/** The connection of the producer, or the node that has it, and to how many nodes the stream goes. */
function producerOf(producer, carriedFrom, edges = []) {
  const at = carriedFrom ? `at ${carriedFrom.slice(0, 8)}` : producer ? `#${producer}` : '–';
  return edges.length ? `${at}, to ${edges.length} node${edges.length === 1 ? '' : 's'}` : at;
}

const USER = 'user:';
const SERVICE = 'service:';

/** The ids of users in the figures, owners first. */
function usersIn({ streams }) {
  const viewers = streams.flatMap(({ consumers }) => consumers.map(({ party }) => party));
  return [...streams.map(({ ownerId }) => ownerId), ...viewers.filter((party) => party?.startsWith(USER)).map((party) => party.slice(USER.length))];
}

/** Who it is that has a connection, as text. */
function whoIs(party, people) {
  if (party?.startsWith(USER)) return people.nameOf(party.slice(USER.length));
  return party?.startsWith(SERVICE) ? `service ${party.slice(SERVICE.length)}` : '–';
}

/** The connections that an operator may end: `{ number, text }`. */
function connectionsOf({ streams }, people) {
  const found = new Map();
  for (const { streamId, ownerId, producer, consumers, node } of streams) {
    const at = (number) => (node ? `${node}/${number}` : String(number));
    if (producer) found.set(at(producer), `sends ${streamId}: ${ownerId ? people.nameOf(ownerId) : 'nobody'}`);
    for (const { connection, party } of consumers) found.set(at(connection), `watches ${streamId}: ${whoIs(party, people)}`);
  }
  return [...found].map(([number, text]) => ({ number, text }));
}

/** The rows of the connections whose links are measured, the slowest first. */
function linksOf({ streams }, people) {
  const viewers = new Map(); // by the number of the connection
  for (const { streamId, consumers } of streams) {
    for (const { connection, party, layer, link, waiting } of consumers.filter((each) => each.link)) {
      const viewer = viewers.get(connection) ?? { connection, party, layer, link, streamIds: [], waiting: 0 };
      viewer.streamIds.push(streamId);
      viewer.waiting += waiting;
      viewers.set(connection, viewer);
    }
  }
  const order = ({ link }) => (link.calm ? Infinity : link.bytesPerSecond ?? Number.MAX_VALUE);
  const compare = (one, other) => (order(one) === order(other) ? one.connection - other.connection : order(one) - order(other));
  const shown = (value, text) => new Figure(value === undefined ? '–' : text(value));
  return [...viewers.values()].sort(compare).map(({ connection, party, layer, link, streamIds, waiting }) => [
    `#${connection}`,
    make('bdi', { title: party }, whoIs(party, people)),
    streamIds.length === 1 ? streamIds[0] : `${count(streamIds.length)} streams`,
    layer ?? '–',
    link.calm ? new Figure('enough') : shown(link.bytesPerSecond, (value) => bits(8 * value)),
    shown(link.roundTripSeconds, (value) => duration(1000 * value)),
    shown(link.bytesUnderWay, (value) => `${count(value / 1024)} KiB`),
    waiting,
  ]);
}

/** A number with its unit, which is aligned as numbers are. */
class Figure {
  constructor(text) {
    this.text = text;
  }
}

function table(title, columns, body, wide = false) {
  return make('section', { class: wide ? 'card wide' : 'card' }, make('h2', {}, title), make('div', { class: 'scroll', tabindex: wide ? 0 : undefined },
    make('table', {}, make('thead', {}, make('tr', {}, ...columns.map((name, index) => make('th', { scope: 'col', class: NUMBERS.has(name) ? 'number' : null }, name)))), body)));
}

function fill(body, rows) {
  const lines = rows.map((row) => make('tr', {}, ...row.map((value) => (
    value instanceof Figure || typeof value === 'number'
      ? make('td', { class: 'number' }, value.text ?? count(value)) : make('td', {}, value instanceof Node ? value : String(value))))));
  body.replaceChildren(...(lines.length ? lines : [make('tr', {}, make('td', { class: 'faint' }, 'None'))]));
}

/** Two lines over the last minutes, from 0 to the maximum. */
class Plot {
  constructor(title, ...names) {
    this._values = names.map(() => []);
    this._lines = names.map(() => make('polyline', { points: '' }));
    this._most = make('span', {}, '');
    this._shown = names.map(() => make('b', {}, '–'));
    const svg = make('svg', { viewBox: '0 0 100 40', preserveAspectRatio: 'none', role: 'img', 'aria-label': `${title}, the last five minutes` },
      make('line', { x1: 0, x2: 100, y1: 40, y2: 40 }), make('line', { x1: 0, x2: 100, y1: 0, y2: 0 }), ...this._lines);
    this.element = make('section', { class: 'card plot' }, make('h2', {}, title), svg, make('div', { class: 'legend' },
      ...names.map((name, index) => make('span', {}, make('span', { class: index ? 'key second' : 'key' }), `${name} `, this._shown[index])), this._most));
  }

  add(...values) {
    values.forEach((value, index) => {
      this._values[index].push(value);
      if (this._values[index].length > MAX_SAMPLES) this._values[index].shift();
      say(this._shown[index], value === null ? '–' : count(value));
    });
    const most = Math.max(1, ...this._values.flat().filter((value) => value !== null));
    say(this._most, `max ${count(most)}`);
    this._values.forEach((line, index) => {
      const from = MAX_SAMPLES - line.length;
      const points = line.flatMap((value, at) => (
        value === null ? [] : [`${(100 * (from + at) / (MAX_SAMPLES - 1)).toFixed(2)},${(40 - 39 * value / most).toFixed(2)}`]));
      this._lines[index].setAttribute('points', points.join(' '));
    });
  }
}
