// A canvas that shows the pictures of a stream, with measurements of them.

const CODECS = { avc1: 'H.264', avc3: 'H.264', hvc1: 'H.265', hev1: 'H.265', vp8: 'VP8', vp09: 'VP9', av01: 'AV1' };
const familyOf = (codec) => String(codec).split('.')[0];

/** The video codec of a stream, by its metadata; null where each frame is a picture. */
export function videoCodecOf(metadata) {
  const codec = metadata?.codec;
  return typeof codec === 'string' && Object.hasOwn(CODECS, familyOf(codec)) ? codec : null;
}

/** Events per second, averaged over the last seconds. */
export class Rate {
  constructor(seconds = 3) {
    this._span = seconds * 1000;
    this._events = [];
  }

  add(amount = 1) {
    this._trim();
    this._events.push([performance.now(), amount]);
  }

  get perSecond() {
    this._trim();
    const since = this._events.length ? Math.max(1000, performance.now() - this._events[0][0]) : 1000;
    return this._events.reduce((sum, [, amount]) => sum + amount, 0) / (since / 1000);
  }

  _trim() {
    const oldest = performance.now() - this._span;
    while (this._events.length && this._events[0][0] < oldest) this._events.shift();
  }
}

/**
 * Decodes frames and draws them. `onPicture` is called after each one, `onProblem` with what to say
 * when pictures cannot be shown, and `onKeyframeWanted` when only a keyframe helps.
 */
export class Screen {
  constructor(canvas, { onPicture, onProblem, onKeyframeWanted }) {
    this.rate = new Rate();
    this.bytes = new Rate();
    this.missed = 0;
    this.receivedAt = null; // by the relay, of the last picture
    this.drawnAt = -Infinity;
    this.width = this.height = null; // of the last picture
    this._canvas = canvas;
    this._told = { onPicture, onProblem, onKeyframeWanted };
    this._decoder = null; // of a stream of video
    this._decodes = null; // what it is for
    this._seq = 0; // of the last frame that was decoded
    this._turn = 0; // of decoding: pictures of an earlier one are not drawn
    this._shown = Promise.resolve(); // once the last frame of a video is decoded
  }

  /** Draws a frame; the relay sends the next one when this is done. */
  show(frame, metadata) {
    this.missed += frame.missed;
    this.bytes.add(frame.data.byteLength);
    const codec = videoCodecOf(metadata);
    if (codec === null) return this._showImage(frame);
    const turn = this._turn;
    // The next frame builds on this one, which may still wait for the decoder to load.
    const shown = this._shown.then(() => (turn === this._turn ? this._decode(frame, codec, metadata.description) : undefined));
    this._shown = shown.catch(() => {});
    return shown;
  }

  /** Ends decoding, until the next frame. */
  stop() {
    this._turn += 1;
    this._closeDecoder();
  }

  /** Shows nothing any more. */
  clear() {
    this.stop();
    this.drawnAt = -Infinity;
    this.receivedAt = this.width = this.height = null;
    this._canvas.width = 16; // erases it
    this._canvas.height = 9;
  }

  async _decode(frame, codec, description) {
    // Frames of another layer build on others, and begin with a keyframe.
    const decodes = `${frame.epoch} ${codec} ${frame.layer} ${description}`;
    if (this._decodes !== decodes) {
      this._closeDecoder();
      if (frame.keyframe === false) return; // of a subscription that others had before
      this._decodes = decodes;
      this._decoder = await this._openDecoder(codec, description);
    }
    const decoder = this._decoder;
    if (decoder === null || frame.seq <= this._seq) return; // the latest keyframe comes again with each subscription
    this._seq = frame.seq;
    if (decoder.unsupported) this._told.onProblem(`This browser cannot show ${CODECS[familyOf(codec)]} video`);
    else await decoder.decode(frame);
  }

  _closeDecoder() {
    this._decoder?.close();
    this._decoder = this._decodes = null;
    this._seq = 0;
  }

  /** Loads the decoder of video only where there is video; null if decoding was stopped, or without it. */
  async _openDecoder(codec, description) {
    const turn = this._turn;
    const loaded = await import('./decoder.js').catch(() => null);
    if (turn !== this._turn) return null;
    if (loaded === null) { // the network is gone, or a policy forbids it: the next keyframe tries again
      this._decodes = null;
      this._told.onProblem('The decoder of this video cannot be loaded');
      return null;
    }
    return new loaded.Decoder({ codec, description }, {
      onPicture: (picture) => this._draw(picture, picture.displayWidth, picture.displayHeight, picture.timestamp / 1000),
      onFailure: () => this._told.onKeyframeWanted(),
    });
  }

  async _showImage({ data, receivedAt }) {
    if (this._decodes !== null) this._closeDecoder();
    const turn = this._turn;
    let picture;
    try {
      picture = await createImageBitmap(new Blob([data]));
    } catch {
      if (turn === this._turn) this._told.onProblem('The browser cannot show these frames');
      return;
    }
    if (turn === this._turn) this._draw(picture, picture.width, picture.height, receivedAt);
    else picture.close();
  }

  _draw(picture, width, height, receivedAt) {
    const canvas = this._canvas;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    canvas.getContext('2d').drawImage(picture, 0, 0);
    picture.close();
    this.width = width;
    this.height = height;
    this.receivedAt = receivedAt;
    this.drawnAt = performance.now();
    this.rate.add();
    this._told.onPicture();
  }
}
