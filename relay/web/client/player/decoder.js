// Decodes frames of a video codec in the browser (WebCodecs).
import { decodeBase64 } from '../core/codec.js';

const MAX_QUEUED = 3; // frames
const MAX_FAILURES = 3; // in a row, until the browser counts as one that cannot decode this

/**
 * Decodes the frames of one stream, from the first keyframe on, and again from the next one after a
 * failure. `onPicture` gets each picture, a `VideoFrame`, and closes it.
 */
export class Decoder {
  constructor({ codec, description }, { onPicture, onFailure }) {
    this.unsupported = typeof VideoDecoder === 'undefined';
    this._codec = codec;
    this._description = description;
    this._onPicture = onPicture;
    this._onFailure = onFailure;
    this._failures = 0;
    this._decoder = null; // while it waits for a keyframe
    this._resume = null;
  }

  /** Takes a frame; ends when there is room for the next one. */
  async decode({ data, keyframe, receivedAt }) {
    if (this.unsupported) return;
    const key = keyframe !== false;
    try {
      if (this._decoder === null) {
        if (!key) return;
        this._open();
      }
      this._decoder.decode(new EncodedVideoChunk({ type: key ? 'key' : 'delta', timestamp: 1000 * receivedAt, data }));
    } catch (error) {
      this._fail(error);
      return;
    }
    while (this._decoder?.decodeQueueSize >= MAX_QUEUED) await new Promise((resolve) => { this._resume = resolve; });
  }

  _open() {
    const decoder = new VideoDecoder({
      output: (picture) => {
        this._failures = 0;
        if (this._decoder === decoder) this._onPicture(picture);
        else picture.close();
      },
      error: (error) => { if (this._decoder === decoder) this._fail(error); },
    });
    this._decoder = decoder;
    decoder.ondequeue = () => this._resume?.();
    const description = typeof this._description === 'string' && { description: decodeBase64(this._description) };
    decoder.configure({ codec: this._codec, optimizeForLatency: true, ...description });
  }

  _fail(error) {
    this.close();
    this._failures += 1;
    this.unsupported = error.name === 'NotSupportedError' || this._failures >= MAX_FAILURES;
    this._onFailure();
  }

  close() {
    const decoder = this._decoder;
    this._decoder = null;
    if (decoder !== null && decoder.state !== 'closed') decoder.close();
    this._resume?.();
  }
}
