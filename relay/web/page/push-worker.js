// The service worker of the page: shows the notifications that relay sends, and opens their streams.
// It handles no requests. Notifications come here as relay/alerts/targets/web_push makes them.
const ICON = new URL('page/icon.svg', self.registration.scope).href;
const INSISTENT = new Set(['high', 'critical']);
const TELL_TIMEOUT = 20_000; // ms

self.addEventListener('install', () => self.skipWaiting());
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));

/** The message of a push; browsers want a notification for each push, so also for one that is none. */
function read(data) {
  try {
    const message = data.json();
    if (typeof message?.title === 'string') return message;
  } catch {
    // not from this version of relay
  }
  return { title: 'relay', body: 'Something has happened on a stream', tag: 'unknown' };
}

/** Where a picture is, which comes as a path on relay: never anywhere else. */
function pictureUrl(path) {
  if (typeof path !== 'string') return undefined;
  const url = new URL(path.replace(/^\/+/, ''), self.registration.scope);
  return url.href.startsWith(self.registration.scope) ? url.href : undefined;
}

async function show(message) {
  const { title, body = '', tag, severity, streamId, timestamp, suppressed = 0 } = message;
  const lines = [body, suppressed > 0 ? `(${suppressed} more since the last one)` : ''];
  await self.registration.showNotification(title, {
    body: lines.filter(Boolean).join('\n'),
    tag,
    icon: ICON,
    image: pictureUrl(message.picture),
    timestamp,
    renotify: Boolean(tag) && INSISTENT.has(severity),
    requireInteraction: severity === 'critical',
    data: { streamId },
  });
}

/** The tabs that show this page. Others may be below its path: those with a picture, or of another application. */
async function openPages() {
  const pages = await self.clients.matchAll({ type: 'window', includeUncontrolled: true });
  return pages.filter(({ url }) => url.split(/[?#]/, 1)[0] === self.registration.scope);
}

/** Shows a stream in a page that is open, or else in a new one. */
async function open(streamId) {
  const hash = typeof streamId === 'string' ? `#watch/${encodeURIComponent(streamId)}` : '#watch';
  const [page] = await openPages();
  if (page === undefined) {
    await self.clients.openWindow(new URL(hash, self.registration.scope).href);
    return;
  }
  page.postMessage({ type: 'relay-open', hash }); // it keeps its session, and its camera
  await page.focus();
}

/** Has a page tell relay of the subscription; fails if it cannot: it is asleep, say, or has no session. */
function haveTold(page) {
  return new Promise((resolve, reject) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = ({ data }) => (data === true ? resolve() : reject());
    setTimeout(reject, TELL_TIMEOUT);
    page.postMessage({ type: 'relay-subscription' }, [port2]);
  });
}

/**
 * The browser has another subscription by now, or none. Only a page can tell relay, with the token of
 * its session, which is not for this worker: a page that is open does so, or else the next one.
 */
async function renew({ oldSubscription, newSubscription }) {
  if (!newSubscription && oldSubscription) await self.registration.pushManager.subscribe(oldSubscription.options).catch(() => {});
  try {
    await Promise.any((await openPages()).map(haveTold));
  } catch {
    await show({ title: 'relay', body: 'Open relay once, so that this browser is notified again', tag: 'relay-subscription' });
  }
}

self.addEventListener('pushsubscriptionchange', (event) => event.waitUntil(renew(event)));
self.addEventListener('push', (event) => event.waitUntil(show(event.data ? read(event.data) : read(null))));
self.addEventListener('notificationclick', (event) => {
  event.notification.close();
  event.waitUntil(open(event.notification.data?.streamId));
});
