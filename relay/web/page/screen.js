// A canvas that shows the pictures of a stream, with measurements of them.
import { make, Rate, say } from './dom.js';

const MAX_LIVE_AGE = 5000; // ms without a frame until a picture is no longer shown as live

export class Screen {
  constructor(client, streamId) {
    this._client = client;
    this._canvas = make('canvas', { width: 16, height: 9, role: 'img', 'aria-label': `Picture of ${streamId}` });
    this._note = make('div', { class: 'note' }, 'Waiting for a picture…');
    this.element = make('div', { class: 'screen' }, this._canvas, this._note);
    this.rate = new Rate();
    this.bytes = new Rate();
    this.missed = 0;
    this.age = null;
    this.size = null;
    this._last = -Infinity;
    this._status = 'offline';
  }

  /** Draws a frame; the relay sends the next one when this is done. */
  show = async ({ data, missed, receivedAt }) => {
    this.missed += missed;
    let picture;
    try {
      picture = await createImageBitmap(new Blob([data]));
    } catch {
      this._unreadable = true;
      this._refresh();
      return;
    }
    this._unreadable = false;
    const { width, height } = picture;
    if (this._canvas.width !== width || this._canvas.height !== height) Object.assign(this._canvas, { width, height });
    this._canvas.getContext('2d').drawImage(picture, 0, 0);
    picture.close();
    this.size = `${width} × ${height}`;
    this.age = Math.max(0, this._client.relayNow() - receivedAt);
    this._last = performance.now();
    this.rate.add();
    this.bytes.add(data.byteLength);
    this._refresh();
  };

  setStatus(status) {
    this._status = status;
    this._refresh();
  }

  get live() {
    return performance.now() - this._last < MAX_LIVE_AGE;
  }

  refresh() {
    this._refresh();
  }

  _refresh() {
    const drawn = this._last > -Infinity;
    this.element.classList.toggle('old', drawn && !this.live);
    let text = '';
    if (this._unreadable) text = 'The browser cannot show these frames';
    else if (this._status === 'offline') text = 'Offline';
    else if (!drawn) text = 'Waiting for a picture…';
    else if (!this.live) text = 'No new pictures';
    say(this._note, text);
    this._note.hidden = text === '';
  }
}
