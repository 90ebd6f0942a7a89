// A new token while the old one ends: asked for below the bar, with everything going on behind it.
import { say } from './dom.js';

const $ = (id) => document.getElementById(id);
const SOON = 60_000; // ms

/** Keeps the token of a session, and asks for another when the relay wants one. */
export class Renewal {
  constructor(token, onToken) {
    this.token = token;
    this._onToken = onToken; // with each new one
    this._entered = false; // whether the relay has ever taken a token of this session
    this._before = null; // the token before, while the relay has not said what it thinks of this one
    this._asking = null;
    this._submit = (event) => {
      event.preventDefault();
      this._take($('renewal-token').value.trim());
    };
    $('renewal').addEventListener('submit', this._submit);
  }

  /** What clients ask for a token; the answer may have to wait until somebody pastes one. */
  ask = ({ reason, refused }) => {
    const known = refused !== undefined && refused !== this.token; // there is another by now
    if (!this._entered || known || (reason !== 'expired' && reason !== 'refused')) return this.token;
    if (reason === 'refused' && this._before) {
      this._return('The relay does not take that token');
      return this.token;
    }
    this._show(reason === 'expired' ? 'The session has ended' : 'The relay does not take that token');
    say($('state'), 'Needs a new token');
    this._asking ??= new Promise((resolve) => { this._answer = resolve; });
    return this._asking;
  };

  /** The session ends soon, says the relay. */
  announce(expiresAt) {
    this._show(`The session ends at ${new Date(expiresAt).toLocaleTimeString()}`);
  }

  /** There is a session. */
  settle({ expiresAt }, now) {
    this._entered = true;
    this._before = null;
    if (!expiresAt || expiresAt > now + SOON) this.hide();
  }

  /** The new token was refused on the living connection, which goes on with the old one. */
  refuse() {
    if (this._before) this._return('That is the token of somebody else');
  }

  hide() {
    $('renewal').hidden = true;
    $('renewal-token').value = '';
  }

  end() {
    this.hide();
    $('renewal').removeEventListener('submit', this._submit);
  }

  _take(token) {
    if (!token) return;
    this._before = this._asking ? null : this.token; // where that still holds
    this.token = token;
    $('renewal-token').value = '';
    say($('renewal-text'), 'One moment…');
    this._answer?.(token);
    this._asking = this._answer = null;
    this._onToken(token);
  }

  _return(text) {
    this.token = this._before;
    this._before = null;
    this._show(text);
  }

  _show(text) {
    say($('renewal-text'), `${text}. To go on, paste a new token.`);
    $('renewal').hidden = false;
  }
}
