// What operators call the users whose ids the relay has: by name and e-mail address.
import { ask } from './api.js';
import { make } from './dom.js';

const MAX_ASKED = 200; // at a time
const MAX_KNOWN = 5000;

export class People {
  /** `token` gives the token to ask with. */
  constructor(token) {
    this._token = token;
    this._known = new Map(); // by id; null: nothing is known of them
    this._asking = false;
  }

  /** Asks for those that were not asked for yet; the answer shows with the next `label`. */
  async learn(ids) {
    const asked = [...new Set(ids)].filter((id) => id && !this._known.has(id)).slice(0, MAX_ASKED);
    if (this._asking || asked.length === 0) return;
    this._asking = true;
    try {
      const { people } = await ask(this._token(), 'operate/people', { method: 'POST', body: { userIds: asked } });
      if (this._known.size + asked.length > MAX_KNOWN) this._known.clear();
      for (const id of asked) this._known.set(id, null);
      for (const { userId, name, email } of people) this._known.set(userId, [name, email].filter(Boolean).join(' · ') || null);
    } catch {
      // an older relay, or one without its database: ids do
    } finally {
      this._asking = false;
    }
  }

  /** What to call a user, as text. */
  nameOf(id) {
    return this._known.get(id) ?? id;
  }

  /** What to call a user, with the id as a title. Names are the users' own choice: they change nothing around them. */
  label(id) {
    return make('bdi', { title: id }, this.nameOf(id));
  }
}
