// Alerts as they pop up, and the list of those of one stream with the earlier ones.
import { make, makeTime } from './dom.js';

const MOST_TOASTS = 4;
const TOAST_LASTS = 12_000; // ms
const MOST_LISTED = 200; // unless earlier ones are asked for
const PAGE = 20;
const PATIENCE = 15_000; // ms, for a page of earlier alerts

const timers = new Map(); // by toast

export function popUp({ streamId, severity, message, timestamp }) {
  const toasts = document.getElementById('toasts');
  const toast = make('div', { class: 'toast', 'data-severity': severity },
    make('div', {}, make('strong', { dir: 'auto' }, message), make('span', { class: 'faint' }, `${streamId} · ${severity} · `), makeTime(timestamp)),
    make('button', { type: 'button', class: 'quiet', 'aria-label': 'Dismiss', onclick: () => dismiss(toast) }, '✕'));
  toasts.append(toast);
  while (toasts.children.length > MOST_TOASTS) dismiss(toasts.firstChild);
  timers.set(toast, setTimeout(() => dismiss(toast), TOAST_LASTS));
}

function dismiss(toast) {
  clearTimeout(timers.get(toast));
  timers.delete(toast);
  toast.remove();
}

/** The alerts of one stream, the newest first, by `add` and by asking for earlier ones. */
export function makeAlertList(streamId, token) {
  const list = make('ul', { class: 'alerts', 'aria-label': `Alerts of ${streamId}`, tabindex: 0 });
  const none = make('p', { class: 'faint' }, 'None yet.');
  const note = make('p', { class: 'faint', role: 'status' });
  const more = make('button', { type: 'button', class: 'quiet', onclick: () => loadEarlier() }, 'Earlier alerts');
  let [oldest, newest] = [Infinity, 0]; // of those in the list, which is without gaps
  let most = MOST_LISTED;
  let loading = false;

  function show({ alertId, severity, message, timestamp }, place) {
    oldest = Math.min(oldest, alertId);
    newest = Math.max(newest, alertId);
    none.hidden = true;
    place(make('li', { 'data-alert': alertId, 'data-severity': severity },
      makeTime(timestamp), ` · ${severity}`, make('div', { dir: 'auto' }, message)));
  }

  /** Makes room, but not while a page is under way that is to follow the last line. */
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
      const answer = await fetch(`/alerts?streamId=${encodeURIComponent(streamId)}&limit=${PAGE}${before}`, {
        headers: { Authorization: `Bearer ${token()}` },
        signal: AbortSignal.timeout(PATIENCE),
      });
      const body = await answer.json();
      if (!answer.ok) throw new Error(body.error.message);
      for (const alert of body.alerts) if (alert.alertId < oldest) show(alert, (line) => list.append(line));
      most = Math.max(most, list.children.length);
      if (!body.more && document.activeElement === more) list.focus();
      more.hidden = !body.more;
      note.textContent = '';
    } catch (error) {
      note.textContent = `Earlier alerts did not come: ${error.message}`;
    }
    loading = false;
    trim();
  }

  function add(alert) {
    if (alert.alertId <= newest) return; // it came with a page of the earlier ones
    show(alert, (line) => list.prepend(line));
    trim();
  }

  const element = make('section', { class: 'card' }, make('h2', {}, 'Alerts'), none, list, note, more);
  return { element, add, loadEarlier };
}
