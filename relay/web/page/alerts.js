// Alerts: pop-ups for new ones, and the list of all alerts of a stream.
import { ask } from './api.js';
import { make, makeTime } from './dom.js';

const MAX_TOASTS = 4;
const TOAST_DURATION = 12_000; // ms
const MAX_LISTED = 200; // unless earlier alerts are loaded
const PAGE_SIZE = 20;

const timers = new Map(); // by toast

export function popUp({ streamId, severity, message, timestamp }) {
  const toasts = document.getElementById('toasts');
  const toast = make('div', { class: 'toast', 'data-severity': severity },
    make('div', {}, make('strong', { dir: 'auto' }, message), make('span', { class: 'faint' }, `${streamId} · ${severity} · `), makeTime(timestamp)),
    make('button', { type: 'button', class: 'quiet', 'aria-label': 'Dismiss', onclick: () => dismiss(toast) }, '✕'));
  toasts.append(toast);
  while (toasts.children.length > MAX_TOASTS) dismiss(toasts.firstChild);
  timers.set(toast, setTimeout(() => dismiss(toast), TOAST_DURATION));
}

function dismiss(toast) {
  clearTimeout(timers.get(toast));
  timers.delete(toast);
  toast.remove();
}

/** The list of the alerts of one stream, newest first. `add` adds a new one. */
export function makeAlertList(streamId, token) {
  const list = make('ul', { class: 'alerts', 'aria-label': `Alerts of ${streamId}`, tabindex: 0 });
  const none = make('p', { class: 'faint' }, 'No alerts yet');
  const note = make('p', { class: 'faint', role: 'status' });
  const more = make('button', { type: 'button', class: 'quiet', onclick: () => loadEarlier() }, 'Load earlier alerts');
  let [oldest, newest] = [Infinity, 0]; // ids in the list, which has no gaps
  let most = MAX_LISTED;
  let loading = false;

  function show(alert, place) {
    const { alertId, severity, message, timestamp } = alert;
    oldest = Math.min(oldest, alertId);
    newest = Math.max(newest, alertId);
    none.hidden = true;
    const line = make('li', { 'data-alert': alertId, 'data-severity': severity },
      makeTime(timestamp), ` · ${severity}`, make('div', { dir: 'auto' }, message));
    place(line);
    if (alert.still || alert.clip) showPicture(alert, line);
  }

  /** Adds the picture that is kept with an alert. Few have one, and what shows it is loaded with the first. */
  async function showPicture(alert, line) {
    try {
      const { makeAlertPicture } = await import('./pictures.js');
      line.append(makeAlertPicture(alert, token) ?? '');
    } catch (error) {
      line.append(make('span', { class: 'faint' }, `No picture: ${error.message}`));
    }
  }

  /** Removes the oldest lines, but not while a page is loading that continues after the last one. */
  function trim() {
    while (!loading && list.children.length > most) {
      list.lastChild.remove();
      oldest = Number(list.lastChild.dataset.alert);
      more.hidden = false;
    }
  }

  async function loadEarlier() {
    if (loading) return;
    loading = true;
    const before = oldest < Infinity ? `&before=${oldest}` : '';
    try {
      const body = await ask(token(), `alerts?streamId=${encodeURIComponent(streamId)}&limit=${PAGE_SIZE}${before}`);
      for (const alert of body.alerts) if (alert.alertId < oldest) show(alert, (line) => list.append(line));
      most = Math.max(most, list.children.length);
      if (!body.more && document.activeElement === more) list.focus();
      more.hidden = !body.more;
      note.textContent = '';
    } catch (error) {
      note.textContent = `Could not load earlier alerts: ${error.message}`;
    }
    loading = false;
    trim();
  }

  function add(alert) {
    if (alert.alertId <= newest) return; // it was in a page of earlier alerts
    show(alert, (line) => list.prepend(line));
    trim();
  }

  const element = make('section', { class: 'card' }, make('h2', {}, 'Alerts'), none, list, note, more);
  return { element, add, loadEarlier };
}
