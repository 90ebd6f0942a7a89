// Notifications of this browser: a switch for one stream, or for all that the user may see.
import { ask, RELAY } from './api.js';
import { make, makeField, makeSelect, makeTime, say } from './dom.js';

const ALL = '*';
const KEPT = `relay-push ${RELAY}`; // in the storage of this browser, which all relays of an origin share
const SEVERITIES = [['low', 'All alerts'], ['medium', 'From medium'], ['high', 'From high'], ['critical', 'Critical only']];

/** Why this browser can get no notifications; null if it can. */
function obstacle() {
  if (!isSecureContext) return 'Notifications need HTTPS, or a page on localhost.';
  if (!('PushManager' in globalThis && 'Notification' in globalThis && navigator.serviceWorker)) {
    return navigator.standalone === false // Safari on iOS and iPadOS alone has this
      ? 'On an iPhone or iPad, add this page to the Home Screen first (Share, Add to Home Screen), and open it from there.'
      : 'This browser cannot get notifications.';
  }
  if (Notification.permission === 'denied') return 'This browser blocks notifications of this page. Allow them in its settings for this site.';
  return null;
}

/** What this browser has subscribed to, whoever is signed in; null if to nothing. */
async function subscriptionHere() {
  if (!navigator.serviceWorker || !('PushManager' in globalThis)) return null;
  const registration = await navigator.serviceWorker.getRegistration(RELAY);
  return await registration?.pushManager?.getSubscription() ?? null;
}

/** The id under which the relay knows a browser. */
async function idOf({ endpoint }) {
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(endpoint)));
  return `webpush_${Array.from(hash.slice(0, 16), (byte) => byte.toString(16).padStart(2, '0')).join('')}`;
}

const bytesOf = (base64url) => Uint8Array.from(atob(base64url.replaceAll('-', '+').replaceAll('_', '/')), (letter) => letter.charCodeAt(0));

function isFor(subscription, key) {
  const used = new Uint8Array(subscription.options.applicationServerKey ?? []);
  const wanted = bytesOf(key);
  return used.length === wanted.length && used.every((byte, at) => byte === wanted[at]);
}

/** Subscribes with the push service of the browser, for the relay's key alone. */
async function subscribe(key, token) {
  await navigator.serviceWorker.register(new URL('push-worker.js', RELAY), { scope: RELAY, updateViaCache: 'none' });
  const { pushManager } = await navigator.serviceWorker.ready;
  const current = await pushManager.getSubscription();
  if (current && isFor(current, key)) return current;
  if (current) { // by which the relay could reach it no more; one of another user's is not ours to remove
    await ask(token, `push/${await idOf(current)}`, { method: 'DELETE' }).catch(() => {});
    await current.unsubscribe();
  }
  return pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: bytesOf(key) });
}

/** Remembers what the relay knows of this browser: if the browser changes its subscription, the relay may forget it. */
function remember(user, target) {
  try {
    if (target === null) localStorage.removeItem(KEPT);
    else localStorage.setItem(KEPT, JSON.stringify({ user, target }));
  } catch {
    // the browser keeps nothing
  }
}

function recall(user) {
  try {
    const kept = JSON.parse(localStorage.getItem(KEPT));
    return kept.user === user ? kept.target ?? null : null;
  } catch {
    return null;
  }
}

/** Has this browser notified by these rules; returns what the relay knows of it then. */
async function save(key, token, user, { streams, minSeverity, cooldown, events, picture }) {
  const { endpoint, keys } = (await subscribe(key, token)).toJSON();
  const body = { subscription: { endpoint, keys }, streams, minSeverity, cooldown, events, picture };
  const { subscription } = await ask(token, 'push', { method: 'POST', body });
  remember(user, subscription);
  return subscription;
}

/**
 * What the relay knows of this browser, of what it has told of the user's browsers; null if nothing. A browser that has
 * to subscribe again, or that has changed its subscription, is notified by the same rules as before.
 */
async function findHere({ key, subscriptions }, token, user) {
  const canBe = obstacle() === null;
  const here = canBe ? await subscriptionHere() : null;
  const id = here && await idOf(here);
  const known = subscriptions.find((each) => each.id === id) ?? null;
  if (known) {
    if (known.givenUp || !isFor(here, key)) return save(key, token, user, known);
    remember(user, known);
    return known;
  }
  const before = recall(user);
  if (before === null || !canBe || Notification.permission !== 'granted') return null;
  if (before.id === id) { // it was removed on another browser, or by an operator
    remember(user, null);
    return null;
  }
  if (subscriptions.some((each) => each.id === before.id)) {
    await ask(token, `push/${before.id}`, { method: 'DELETE' }).catch(() => {}); // another page may be faster
  }
  return save(key, token, user, before);
}

/** Tells the relay of the subscription that this browser has by now. */
export async function repair(token, user) {
  await findHere(await ask(token, 'push'), token, user);
}

/** Ends the notifications of this browser, with those that it shows. */
export async function forget(token) {
  remember(null, null);
  const subscription = await subscriptionHere();
  if (subscription === null) return;
  const id = await idOf(subscription);
  await Promise.allSettled([ask(token, `push/${id}`, { method: 'DELETE' }), subscription.unsubscribe()]);
  const registration = await navigator.serviceWorker.getRegistration(RELAY);
  for (const each of await registration?.getNotifications() ?? []) each.close();
}

/** A card with the switch for a stream; with null instead, for all, and the list of one's browsers. */
export function makeNotify(token, streamId, user) {
  const name = streamId ?? ALL;
  const control = make('input', { type: 'checkbox', role: 'switch', disabled: true, onchange: () => attempt(() => turn(control.checked)) });
  const severity = makeSelect(SEVERITIES, 'low', () => attempt(() => change(mine.streams, severity.value)));
  const severityField = makeField('Severity', severity);
  const result = make('p', { class: 'faint', role: 'status' });
  const browsers = make('ul', { class: 'links' });
  const others = make('details', { hidden: true }, make('summary', {}, 'Browsers that are notified'), browsers);
  let key = null;
  let mine = null; // what the relay knows of this browser

  function show(text = '') {
    const forAll = mine?.streams.includes(ALL) ?? false;
    control.checked = mine !== null && (forAll || mine.streams.includes(name));
    const locked = streamId !== null && forAll;
    control.disabled = key === null || locked || (mine === null && obstacle() !== null);
    severityField.hidden = !control.checked || locked;
    severity.value = mine?.minSeverity ?? 'low';
    say(result, text || (locked ? 'On for all streams.' : '') || (mine === null && obstacle()) || '');
  }

  async function attempt(work) {
    control.disabled = true;
    let text = '';
    try {
      text = await work();
    } catch (error) {
      text = error.name === 'AbortError' ? 'The push service of this browser does not answer.' : `${error.message}.`;
    }
    show(text);
  }

  async function load() {
    let given;
    try {
      given = await ask(token(), 'push');
    } catch (error) {
      say(result, `${error.message}.`);
      return;
    }
    key = given.key;
    const told = given.subscriptions;
    await attempt(async () => {
      mine = await findHere(given, token(), user);
      if (mine && !told.some(({ id }) => id === mine.id)) given = await ask(token(), 'push');
      return '';
    });
    list(given.subscriptions);
  }

  function list(subscriptions) {
    browsers.replaceChildren(...subscriptions.map(makeBrowser));
    others.hidden = streamId !== null || subscriptions.length === 0;
  }

  function makeBrowser({ id, service, streams, createdAt, givenUp }) {
    const what = id === mine?.id ? 'This browser' : `By ${service}`;
    const remove = make('button', {
      type: 'button',
      class: 'quiet',
      'aria-label': `Remove: ${what}`,
      onclick: () => attempt(async () => {
        await ask(token(), `push/${id}`, { method: 'DELETE' });
        await load();
        return 'It is not notified any more.';
      }),
    }, 'Remove');
    const about = streams.includes(ALL) ? 'all streams' : streams.join(', ');
    return make('li', {}, make('span', {}, `${what}: ${about}`),
      make('span', { class: 'faint' }, givenUp ? 'could not be reached, ' : '', 'since ', makeTime(createdAt)), remove);
  }

  /** Has to begin with the question of the browser, which only a click may ask. */
  async function turn(on) {
    const left = (mine?.streams ?? []).filter((each) => each !== name);
    if (on) {
      if (await Notification.requestPermission() !== 'granted') return 'You have not allowed notifications.';
      return change([...left, name]);
    }
    if (left.length > 0) return change(left);
    await forget(token());
    await load();
    return 'This browser is not notified any more.';
  }

  async function change(streams, minSeverity = mine?.minSeverity ?? 'low') {
    mine = await save(key, token(), user, { ...mine, streams, minSeverity });
    list((await ask(token(), 'push')).subscriptions);
    return 'This browser is notified, also while this page is closed.';
  }

  load();
  return make('section', { class: 'card notify' },
    make('label', { class: 'check' }, control, streamId === null ? 'Notify me of alerts on all streams' : 'Notify me of alerts on this stream'),
    severityField, result, others);
}
