// Asks the relay over HTTP.

/** Where the relay is: behind a proxy it may be under a path. */
export const RELAY = new URL('..', import.meta.url).href;
const TIMEOUT = 15_000; // ms

/** Asks with a token, and for anything but GET with a body; returns the answer, or throws what the relay says. */
export async function ask(token, path, { method = 'GET', body } = {}) {
  const answer = await fetch(new URL(path, RELAY), {
    method,
    headers: { Authorization: `Bearer ${token}`, ...(body && { 'Content-Type': 'application/json' }) },
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(TIMEOUT),
  });
  const given = await answer.json();
  if (!answer.ok) throw new Error(given.error?.message ?? `status ${answer.status}`);
  return given;
}
