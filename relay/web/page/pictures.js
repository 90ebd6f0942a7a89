// What is kept with an alert: its picture, and a clip that plays in its place.
import { RELAY } from './api.js';
import { make, say } from './dom.js';

const LOAD_TIMEOUT = 30_000; // ms; a picture that is being kept is waited for
const MAX_GAP = 2_000; // ms between two pictures of a clip, however long there was none
const RETRY = 3_000; // ms until a clip that is not ready is asked for again

/** The picture of an alert, if one is kept or is to be: an element for its line in the list, else null. */
export function makeAlertPicture({ alertId, message, still, clip }, token) {
  const [hasStill, hasClip] = [still, clip].map((state) => state === 'kept' || state === 'pending');
  if (!hasStill && !hasClip) return null;
  const canvas = make('canvas', { role: 'img', 'aria-label': `Picture of the alert: ${message}`, hidden: true });
  const note = make('span', { class: 'faint', role: 'status' });
  const play = hasClip ? make('button', { type: 'button', class: 'quiet', onclick: () => toggle() }, 'Play clip') : null;
  const element = make('figure', { class: 'kept' }, canvas, make('figcaption', {}, play, note));
  let playing = null; // the AbortController of the clip

  async function load(path, signal) {
    const answer = await fetch(new URL(`alerts/${alertId}/${path}`, RELAY), {
      headers: { Authorization: `Bearer ${token()}` },
      signal: AbortSignal.any([signal, AbortSignal.timeout(LOAD_TIMEOUT)]),
    });
    if (answer.ok) return answer;
    const { error } = await answer.json();
    throw Object.assign(new Error(error.message), { again: answer.headers.has('Retry-After') });
  }

  async function show(blob) {
    const picture = await createImageBitmap(blob);
    [canvas.width, canvas.height] = [picture.width, picture.height];
    canvas.getContext('2d').drawImage(picture, 0, 0);
    picture.close();
    canvas.hidden = false;
  }

  async function toggle() {
    if (playing) {
      playing.abort();
      return;
    }
    playing = new AbortController();
    const { signal } = playing;
    play.textContent = 'Stop clip';
    try {
      const parts = await loadClip(signal);
      say(note, '');
      let before = null;
      for (const { blob, time } of parts) {
        if (before !== null) await pause(Math.min(MAX_GAP, Math.max(0, time - before)), signal);
        before = time;
        if (!element.isConnected) break;
        await show(blob);
      }
    } catch (error) {
      if (!signal.aborted) say(note, `The clip cannot be played: ${error.message}`);
    }
    playing = null;
    play.textContent = 'Play clip';
  }

  async function loadClip(signal) {
    for (;;) {
      try {
        return partsOf(new Uint8Array(await (await load('clip.mjpeg', signal)).arrayBuffer()));
      } catch (error) {
        if (!error.again) throw error;
        say(note, 'The clip is not ready yet …');
        await pause(RETRY, signal);
      }
    }
  }

  if (hasStill) {
    whenVisible(element, async () => {
      try {
        await show(await (await load('still.jpg', new AbortController().signal)).blob());
      } catch (error) {
        say(note, `No picture: ${error.message}`);
      }
    });
  }
  return element;
}

function pause(time, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, time);
    signal.addEventListener('abort', () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}

/** Loads no pictures of lines that nobody looks at. */
function whenVisible(element, load) {
  const observer = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    load();
  });
  observer.observe(element);
}

/** The pictures of a clip, each with its time in ms. Each part says how long it is. */
function partsOf(bytes) {
  const found = [];
  const text = new TextDecoder('latin1');
  let at = 0;
  for (;;) {
    let end = at;
    while (end < bytes.length && !(bytes[end] === 13 && bytes[end + 2] === 13)) end += 1; // an empty line
    const head = text.decode(bytes.subarray(at, end));
    const length = Number(/Content-Length: (\d+)/.exec(head)?.[1]);
    if (!length) return found;
    const time = 1000 * Number(/X-Timestamp: ([\d.]+)/.exec(head)?.[1] ?? 0);
    found.push({ blob: new Blob([bytes.subarray(end + 4, end + 4 + length)], { type: 'image/jpeg' }), time });
    at = end + 4 + length;
  }
}
