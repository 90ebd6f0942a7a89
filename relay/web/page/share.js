// Links to the pictures of one's own stream, for tools that cannot send a token.
import { ask } from './api.js';
import { make, makeField, makeSelect, makeTime, say } from './dom.js';

/** A card that makes links to a stream; `token` gives the token to ask with. */
export function makeShare(streamId, token) {
  const what = makeSelect([['mjpeg', 'Live video (MJPEG)'], ['still', 'Single pictures']], 'mjpeg');
  const seconds = makeSelect([['3600', '1 hour'], ['28800', '8 hours'], ['86400', '24 hours']], '3600');
  const button = make('button', { type: 'submit' }, 'Make a link');
  const result = make('p', { role: 'status', class: 'faint' }, 'Whoever has a link sees this stream until it expires.');
  const links = make('ul', { class: 'links' });

  async function attempt(control, work) {
    control.disabled = true;
    say(result, ''); // so that the same answer is read again
    try {
      say(result, await work());
    } catch (error) {
      say(result, `${error.message}.`);
    }
    control.disabled = false;
  }

  /** A link that was just made has its URL, those of before are known by their id alone. */
  function show({ link, url }) {
    const named = `${link.what === 'still' ? 'Single pictures' : 'Live video'} (${link.id})`;
    const address = url === undefined ? make('span', {}, named)
      : make('input', { readonly: true, value: new URL(url, location.href).href, 'aria-label': 'Link', onfocus: () => address.select() });
    const revoke = make('button', {
      type: 'button',
      class: 'quiet',
      'aria-label': `Revoke ${named}`,
      onclick: () => attempt(revoke, async () => {
        await ask(token(), `links/${link.id}`, { method: 'DELETE' });
        item.remove();
        return 'The link is revoked.';
      }),
    }, 'Revoke');
    const item = make('li', {}, address, make('span', { class: 'faint' }, 'until ', makeTime(link.expiresAt)), revoke);
    links.prepend(item);
  }

  ask(token(), 'links').then((given) => {
    for (const link of given.links) if (link.streamId === streamId) show({ link });
  }, (error) => say(result, `Could not list the links: ${error.message}.`));

  return make('form', {
    class: 'card',
    autocomplete: 'off',
    onsubmit: (event) => {
      event.preventDefault();
      attempt(button, async () => {
        const body = { streamId, what: what.value, seconds: Number(seconds.value) };
        show(await ask(token(), 'links', { method: 'POST', body }));
        return 'Copy the link now: it is not shown again.';
      });
    },
  }, make('h2', {}, 'Links for other tools'), make('div', { class: 'fields' }, makeField('Shows', what), makeField('For', seconds)),
  make('div', { class: 'buttons' }, button), result, links);
}
