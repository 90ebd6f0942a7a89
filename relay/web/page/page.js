// The page of the relay: the current session, and which of three views is shown.
import { ViewerClient } from '../core/client.js';
import { RELAY } from './api.js';
import { make, say, sayAndShow, tabStore } from './dom.js';
import { Renewal } from './renewal.js';
import { showGrid, showStream } from './watch.js';

const KEY = 'relay-token';
const $ = (id) => document.getElementById(id);

/** What to do when the client does not reconnect. */
const ENDED = {
  SESSION_REVOKED: 'Your session was ended: you signed out, or the token was revoked. Connect with a new token.',
  AUTH_FAILED: 'The token is invalid or has expired. Connect with another one.',
};

const PASTE_TIMEOUT = 86_400_000; // ms to paste a token

let session = null;
let leaveView = null;
let turn = null; // of the view that is shown or being loaded
let broadcast = null; // the module, once it is loaded

function enter(given, { keep }) {
  if (keep) tabStore.set(KEY, given);
  const renewal = new Renewal(given, {
    onPasted: () => client.renew(),
    onTaken: (token) => {
      if (keep) tabStore.set(KEY, token);
      for (const each of others) each.renew();
    },
  });
  const options = { url: RELAY, tokenTimeout: PASTE_TIMEOUT };
  const client = new ViewerClient({ ...options, token: renewal.ask });
  const others = new Set();
  /** Opens another connection of this session, such as that of the camera. */
  const connect = (Client, more) => {
    const other = new Client({ ...options, token: renewal.follow(), ...more });
    others.add(other);
    other.on('state', ({ state }) => { if (state === 'closed') others.delete(other); });
    return other;
  };
  session = { client, connect, renewal, token: () => renewal.token };
  const mine = session;
  client.on('state', (change) => { if (session === mine) showState(change); });
  client.on('notice', (notice) => { if (session === mine) tell(notice); });
  client.on('session', (given) => renewal.settle(given, client.relayNow()));
  client.on('problem', ({ code }) => { if (code === 'UNAUTHORIZED') renewal.refuse(); });
  $('enter').hidden = true;
  $('who').hidden = false;
  client.connect().catch(() => {}); // reported by `state`
  route();
}

/** Returns to the form, and shows what happened and what to do. */
function end(which, error) {
  if (session === null || session !== which) return;
  const left = session;
  turn = null;
  session = null;
  left.renewal.end();
  tabStore.remove(KEY);
  leaveView?.();
  leaveView = null;
  broadcast?.stopBroadcast();
  left.client.close();
  $('content').replaceChildren();
  $('toasts').replaceChildren(); // they were for the previous user
  $('banner').hidden = true;
  $('who').hidden = true;
  $('enter').hidden = false;
  $('token').value = '';
  $('wrong').hidden = !error;
  if (error) $('wrong').textContent = ENDED[error.code] ?? `The relay closed the connection: ${error.message}.`;
  $('token').focus();
}

/** Who signs out here gets no notifications here, either. */
async function forgetNotifications(token) {
  const registration = await navigator.serviceWorker?.getRegistration(RELAY).catch(() => null);
  if (!registration) return;
  const { forget } = await import('./notify.js');
  await forget(token).catch(() => {}); // the relay removes it when it is sent to next
}

/** Returns whether that could be done; else it is when notifications are shown next. */
async function repairNotifications() {
  const user = session?.client.session?.userId;
  if (!user) return false;
  const token = session.token();
  try {
    const { repair } = await import('./notify.js');
    await repair(token, user);
    return true;
  } catch {
    return false;
  }
}

function showState({ state, error }) {
  const { client } = session;
  if (state === 'closed') {
    end(session, error);
    return;
  }
  const where = $('state');
  where.dataset.state = state;
  where.dataset.encoding = client.encoding ?? '';
  const seconds = Math.max(1, Math.ceil(((client.retryAt ?? 0) - Date.now()) / 1000));
  const text = {
    ready: client.session?.userId ? `Connected as ${client.session.userId}` : 'Connected as a service',
    connecting: 'Connecting…',
  }[state];
  if (state === 'waiting') sayAndShow(where, 'Offline', `, reconnecting in ${seconds} s`);
  else say(where, text);
  where.title = error ? error.message : '';
}

function tell({ code, expiresAt }) {
  if (code === 'SESSION_EXPIRING') session.renewal.announce(expiresAt);
  if (code !== 'SERVER_RESTARTING') return;
  const banner = $('banner');
  banner.textContent = 'The relay is restarting. This page reconnects automatically.';
  banner.hidden = false;
  setTimeout(() => { banner.hidden = true; }, 10_000);
}

/** Shows the view of the address; those that few need are loaded when they are opened. */
async function route() {
  const [view = '', ...rest] = location.hash.slice(1).split('/');
  const name = ['watch', 'broadcast', 'operate'].includes(view) ? view : 'watch';
  for (const link of document.querySelectorAll('nav a')) {
    if (link.hash === `#${name}`) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  if (session === null) return;
  leaveView?.();
  leaveView = null;
  const content = $('content');
  content.replaceChildren();
  const mine = {};
  turn = mine;
  let streamId = '';
  try {
    streamId = decodeURIComponent(rest.join('/'));
  } catch {
    // a malformed address names no stream
  }
  const load = { broadcast: () => import('./broadcast.js'), operate: () => import('./operate.js') }[name];
  const module = await load?.().catch((error) => ({ error }));
  if (turn !== mine || session === null) return; // another view was opened meanwhile
  if (module?.error) {
    content.append(make('h1', { tabindex: -1 }, 'This view could not be loaded'), make('p', {}, `${module.error.message}. Try again.`));
  } else if (name === 'broadcast') {
    broadcast = module;
    leaveView = module.showBroadcast(session, content);
  } else if (name === 'operate') leaveView = module.showOperate(session, content);
  else if (streamId) leaveView = showStream(session, content, streamId);
  else leaveView = showGrid(session, content);
  const heading = content.querySelector('h1');
  document.title = `${heading.textContent} · relay`;
  heading.focus({ preventScroll: true });
  scrollTo(0, 0);
}

$('enter').addEventListener('submit', (event) => {
  event.preventDefault();
  $('wrong').hidden = true;
  enter($('token').value.trim(), { keep: $('keep').checked });
  $('token').value = '';
});
$('leave').addEventListener('click', () => {
  forgetNotifications(session.token());
  end(session, null);
});
// From the service worker: a notification was clicked, or the browser has another subscription.
navigator.serviceWorker?.addEventListener('message', async ({ data, ports }) => {
  if (data?.type === 'relay-open' && /^#watch/.test(data.hash)) location.hash = data.hash;
  if (data?.type === 'relay-subscription') {
    const told = await repairNotifications();
    ports[0]?.postMessage(told);
  }
});
addEventListener('hashchange', route);
setInterval(() => {
  if (session?.client.state === 'waiting') showState({ state: 'waiting', error: null });
}, 1000);

const kept = tabStore.get(KEY);
route();
if (kept) enter(kept, { keep: true });
else $('token').focus();
