// A canvas that shows the pictures of a stream, with measurements of them.
import { Decoder, nameOf, videoCodecOf } from './decoder.js';
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
    this.width = null; // of the last picture
    this._last = -Infinity;
    this._status = 'offline';
    this._subscription = null;
    this._decoder = null; // of a stream of video
    this._decodes = null; // what it is for
    this._seq = 0; // of the last frame that was decoded
  }

  /** The subscription knows how its frames are encoded. */
  follow(subscription) {
    this._subscription = subscription;
  }

  /** Draws a frame; the relay sends the next one when this is done. */
  show = (frame) => {
    this.missed += frame.missed;
    this.bytes.add(frame.data.byteLength);
    const codec = videoCodecOf(this._subscription?.metadata);
    if (codec !== null) return this._decode(frame, codec);
    this.stop();
    return this._showImage(frame);
  };

  /** Ends decoding, until the next frame. */
  stop() {
    this._decoder?.close();
    this._decoder = null;
    this._seq = 0;
  }

  async _decode(frame, codec) {
    const { description } = this._subscription.metadata;
    // Frames of another layer build on others, and begin with a keyframe.
    const decodes = `${frame.epoch} ${codec} ${frame.layer} ${description}`;
    if (this._decoder === null || this._decodes !== decodes) {
      this.stop();
      this._decodes = decodes;
      this._decoder = new Decoder({ codec, description }, {
        onPicture: (picture) => this._draw(picture, picture.displayWidth, picture.displayHeight, picture.timestamp / 1000),
        onFailure: () => {
          // The relay asks the phone for a keyframe where a subscription begins.
          if (!this._decoder.unsupported) this._subscription.update({});
          this._refresh();
        },
      });
    }
    if (frame.seq <= this._seq) return; // the latest keyframe, which comes again with each subscription
    this._seq = frame.seq;
    this._unreadable = this._decoder.unsupported ? `This browser cannot show ${nameOf(codec)} video` : null;
    if (this._decoder.unsupported) this._refresh();
    else await this._decoder.decode(frame);
  }

  async _showImage({ data, receivedAt }) {
    let picture;
    try {
      picture = await createImageBitmap(new Blob([data]));
    } catch {
      this._unreadable = 'The browser cannot show these frames';
      this._refresh();
      return;
    }
    this._unreadable = null;
    this._draw(picture, picture.width, picture.height, receivedAt);
  }

  _draw(picture, width, height, receivedAt) {
    if (this._canvas.width !== width || this._canvas.height !== height) Object.assign(this._canvas, { width, height });
    this._canvas.getContext('2d').drawImage(picture, 0, 0);
    picture.close();
    this.size = `${width} × ${height}`;
    this.width = width;
    this.age = Math.max(0, this._client.relayNow() - receivedAt);
    this._last = performance.now();
    this.rate.add();
    this._refresh();
  }

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
    if (this._unreadable) text = this._unreadable;
    else if (this._status === 'offline') text = 'Offline';
    else if (!drawn) text = 'Waiting for a picture…';
    else if (!this.live) text = 'No new pictures';
    say(this._note, text);
    this._note.hidden = text === '';
  }
}
