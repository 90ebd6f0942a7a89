// Asks for a new token, below the top bar, when the session is about to end; the view stays usable.
import { say } from './dom.js';

const $ = (id) => document.getElementById(id);
const SOON = 60_000; // ms

/**
 * Holds the token of a session, and asks for another when the relay wants one. A pasted token is
 * tried on the first connection; the other connections get it once the relay has accepted it.
 */
export class Renewal {
  constructor(token, { onPasted, onTaken }) {
    this.token = token; // the last one that the relay accepted
    this._onPasted = onPasted; // called when there is a token to try
    this._onTaken = onTaken; // called when the relay has accepted it
    this._pasted = null; // not yet accepted or rejected
    this._given = null; // the last one given to the first connection
    this._entered = false; // whether there has been a session
    this._ends = null; // what to say about its end; null: nothing
    this._over = false;
    this._problem = ''; // with the last pasted token
    this._answer = null; // resolves the promise that the first connection waits for
    this._followers = [];
    this._submit = (event) => {
      event.preventDefault();
      this._take($('renewal-token').value.trim());
    };
    $('renewal').addEventListener('submit', this._submit);
  }

  /** The token source of the first connection; it may wait until a token is pasted. */
  ask = ({ reason, refused }) => {
    if (refused !== undefined && refused === this._pasted) this._reject('The relay rejected that token');
    const over = reason === 'expired' || (reason === 'refused' && refused === this.token) || this._over;
    if (this._pasted || !this._entered || !over) return this._give(this._pasted ?? this.token);
    this._over = true;
    this._ends = 'The session has ended.';
    this._show();
    say($('state'), 'Needs a new token');
    return new Promise((resolve) => { this._answer = resolve; });
  };

  /** The token source of another connection; it waits for a token that the first one has tried. */
  follow() {
    let last = null;
    return async ({ reason }) => {
      const over = reason === 'expired' || reason === 'refused';
      if (over && last === this.token) await new Promise((resolve) => { this._followers.push(resolve); });
      last = this.token;
      return last;
    };
  }

  /** The relay announced the end of the session. */
  announce(expiresAt) {
    this._ends = `The session ends at ${new Date(expiresAt).toLocaleTimeString()}.`;
    this._show();
  }

  /** The first connection is authenticated. */
  settle({ expiresAt }, now) {
    this._entered = true;
    this._over = false;
    if (this._pasted && this._given === this._pasted) {
      this.token = this._pasted;
      this._pasted = null;
      this._problem = '';
      for (const follow of this._followers.splice(0)) follow();
      this._onTaken(this.token);
    }
    if (!expiresAt || expiresAt > now + SOON) this.hide();
  }

  /** The relay rejected a renewal; the connection keeps the token that it has. */
  refuse() {
    if (this._pasted) this._reject('That token belongs to another user');
  }

  hide() {
    this._ends = null;
    $('renewal').hidden = true;
    $('renewal-token').value = '';
  }

  end() {
    this.hide();
    $('renewal').removeEventListener('submit', this._submit);
  }

  _give(token) {
    this._given = token;
    return token;
  }

  _take(token) {
    if (!token) return;
    this._pasted = token;
    $('renewal-token').value = '';
    say($('renewal-text'), 'One moment…');
    if (this._answer) {
      this._answer(this._give(token));
      this._answer = null;
    } else this._onPasted();
  }

  _reject(problem) {
    this._pasted = null;
    this._problem = `${problem}.`;
    this._show();
  }

  _show() {
    say($('renewal-text'), [this._problem, this._ends, 'Paste a new token to continue.'].filter(Boolean).join(' '));
    $('renewal').hidden = false;
  }
}
