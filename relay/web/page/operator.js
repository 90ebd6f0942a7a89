// What an operator does: gives streams to other users, frees them, and ends connections.
import { ask as askRelay } from './api.js';
import { make, makeField, makeTime, say } from './dom.js';

const PAGE_SIZE = 100;

/**
 * The panels of an operator: `{ element, offer }`. `token` gives the token to ask with; `offer` takes
 * connections to choose from, `[{ number, text }]`.
 */
export function makeOperator(token, people) {
  const owners = new Owners(ask, people, {
    transfer: (streamId) => choose(stream, streamId, user),
    free: (streamId) => choose(freed, streamId, freed),
  });

  /** Fills in a stream, and goes to where the rest is to be filled in, or checked. */
  function choose(field, streamId, next) {
    field.value = streamId;
    next.focus();
  }

  function ask(path, body) {
    return askRelay(token(), `operate/${path}`, body && { method: 'POST', body });
  }

  /** A form that asks once more before it acts, and says what became of it. */
  function action(title, fields, text, question, act) {
    const button = make('button', { type: 'submit' }, text);
    const result = make('p', { role: 'status', class: 'faint' });
    return make('form', {
      class: 'card action',
      autocomplete: 'off',
      onsubmit: async (event) => {
        event.preventDefault();
        if (!window.confirm(question())) return;
        button.disabled = true;
        say(result, ''); // so that the same answer is read again
        try {
          say(result, await act());
          owners.lookAgain();
        } catch (error) {
          say(result, `${error.message}.`);
        }
        button.disabled = false;
      },
    }, make('h2', {}, title), ...fields, button, result);
  }

  const stream = input();
  const user = input();
  const history = make('input', { type: 'checkbox' });
  const freed = input();
  const ended = input();
  const numbers = make('datalist', { id: 'connections' });
  const number = make('input', {
    list: 'connections', required: true, autocomplete: 'off', pattern: '([0-9A-Za-z_.\\-]+/)?[1-9][0-9]{0,15}', title: 'a number, or NODE/NUMBER where several relays serve together',
  });
  const actions = [
    action('Transfer a stream',
      [makeField('Stream', stream), makeField('To user (id or e-mail address)', user),
        make('label', { class: 'check' }, history, ' With stored alerts and grants')],
      'Transfer', () => `Give ${stream.value} to ${user.value}? Its producer is disconnected.`,
      async () => {
        const done = await ask('streams/transfer', { streamId: stream.value, userId: user.value, withHistory: history.checked });
        await people.learn([done.ownerId]);
        return `${done.streamId} belongs to ${people.nameOf(done.ownerId)}.`;
      }),
    action('Free a stream', [makeField('Stream to free', freed)], 'Free',
      () => `Take ${freed.value} from its owner? The next user who registers it gets it.`,
      async () => `${(await ask('streams/free', { streamId: freed.value })).streamId} belongs to nobody.`),
    action('End the connections of a user', [makeField('User (id or e-mail address)', ended)], 'End all',
      () => `End all connections of ${ended.value}?`,
      async () => `Connections ended: ${(await ask('users/end', { userId: ended.value })).ended}.`),
    action('End a connection', [makeField('Connection number', number), numbers], 'End',
      () => `End connection ${number.value}?`,
      async () => {
        const [, node, connection] = number.value.match(/^(?:(.*)\/)?(\d+)$/);
        await ask('connections/end', { connection: Number(connection), ...(node && { node }) });
        return `Connection ${number.value} ended.`;
      }),
  ];
  const element = make('section', { class: 'operator', 'aria-label': 'Operator' }, make('div', { class: 'panels' }, ...actions, owners.element));
  return {
    element,
    offer(connections) {
      numbers.replaceChildren(...connections.map(({ number: value, text }) => make('option', { value, label: `${value}: ${text}` })));
    },
  };
}

/** Whose the streams are, page by page. */
class Owners {
  constructor(ask, people, actions) {
    this._ask = ask;
    this._people = people;
    this._actions = actions;
    this._result = make('p', { role: 'status', class: 'faint' });
    this._rows = make('tbody');
    this._gone = make('input', { type: 'checkbox', onchange: () => this.lookAgain() });
    this._more = make('button', { type: 'button', hidden: true, onclick: () => this.look(this._last) }, 'Next page');
    this.element = make('section', { class: 'card wide' }, make('h2', {}, 'Owners'),
      make('label', { class: 'check' }, this._gone, ' Only owners who were deleted'),
      make('div', { class: 'scroll', tabindex: 0 }, make('table', { 'aria-label': 'Owners' },
        make('thead', {}, make('tr', {}, ...['Stream', 'Owner', 'Since', 'Deleted', 'Actions'].map((name) => make('th', { scope: 'col' }, name)))), this._rows)),
      make('div', {}, make('button', { type: 'button', onclick: () => this.look() }, 'Show owners'), ' ', this._more), this._result);
  }

  /** Shows the list anew, if somebody has asked for it: it may be long. */
  lookAgain() {
    if (this._shown) this.look();
  }

  _buttonsFor(streamId, ownerId) {
    const button = (text, act) => make('button', { type: 'button', class: 'quiet', 'aria-label': `${text} ${streamId}`, onclick: () => act(streamId) }, `${text}…`);
    const { transfer, free } = this._actions;
    return [button('Transfer', transfer), ' ', ownerId === null ? null : button('Free', free)];
  }

  async look(after) {
    this._shown = true;
    const query = new URLSearchParams({ limit: PAGE_SIZE, gone: this._gone.checked, ...(after ? { after } : {}) });
    try {
      const { streams, more } = await this._ask(`streams?${query}`);
      await this._people.learn(streams.map(({ ownerId }) => ownerId));
      this._rows.replaceChildren(...streams.map(({ streamId, ownerId, since, goneSince }) => make('tr', {},
        make('td', {}, streamId), make('td', {}, ownerId === null ? 'nobody' : this._people.label(ownerId)), make('td', {}, makeTime(since)),
        make('td', {}, goneSince === null ? '' : makeTime(goneSince)), make('td', {}, ...this._buttonsFor(streamId, ownerId)))));
      this._last = streams.at(-1)?.streamId;
      this._more.hidden = !more;
      say(this._result, streams.length ? '' : 'There are no such streams.');
    } catch (error) {
      say(this._result, `${error.message}.`);
    }
  }
}

const input = () => make('input', { required: true, autocomplete: 'off', autocapitalize: 'off', spellcheck: 'false', maxlength: 256 });
