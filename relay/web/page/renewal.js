// A new token while the old one ends: asked for below the bar, with everything going on behind it.
import { say } from './dom.js';

const $ = (id) => document.getElementById(id);
const SOON = 60_000; // ms

/**
 * Keeps the token of a session, and asks for another when the relay wants one. What was pasted is
 * tried on the first connection; only when the relay has taken it, the others get it too.
 */
export class Renewal {
  constructor(token, { onPasted, onTaken }) {
    this.token = token; // the one that the relay took last
    this._onPasted = onPasted; // called when there is one to be tried
    this._onTaken = onTaken; // called when the relay has taken it
    this._pasted = null; // one that it has not judged yet
    this._given = null; // the last that the first connection was given
    this._entered = false; // whether there has been a session
    this._ends = null; // what is to be said of its end; null: nothing
    this._over = false;
    this._problem = ''; // with what was pasted last
    this._answer = null; // where the first connection waits for one
    this._followers = [];
    this._submit = (event) => {
      event.preventDefault();
      this._take($('renewal-token').value.trim());
    };
    $('renewal').addEventListener('submit', this._submit);
  }

  /** What the first connection asks for a token; the answer may wait until somebody pastes one. */
  ask = ({ reason, refused }) => {
    if (refused !== undefined && refused === this._pasted) this._reject('The relay does not take that token');
    const over = reason === 'expired' || (reason === 'refused' && refused === this.token) || this._over;
    if (this._pasted || !this._entered || !over) return this._give(this._pasted ?? this.token);
    this._over = true;
    this._ends = 'The session has ended.';
    this._show();
    say($('state'), 'Needs a new token');
    return new Promise((resolve) => { this._answer = resolve; });
  };

  /** What another connection asks: it waits for what the first one has found to be good. */
  follow() {
    let last = null;
    return async ({ reason }) => {
      const over = reason === 'expired' || reason === 'refused';
      if (over && last === this.token) await new Promise((resolve) => { this._followers.push(resolve); });
      last = this.token;
      return last;
    };
  }

  /** The session ends soon, says the relay. */
  announce(expiresAt) {
    this._ends = `The session ends at ${new Date(expiresAt).toLocaleTimeString()}.`;
    this._show();
  }

  /** There is a session on the first connection. */
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

  /** The relay said no on the living connection, which goes on with the token that it has. */
  refuse() {
    if (this._pasted) this._reject('That is the token of somebody else');
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
    say($('renewal-text'), [this._problem, this._ends, 'To go on, paste a new token.'].filter(Boolean).join(' '));
    $('renewal').hidden = false;
  }
}
