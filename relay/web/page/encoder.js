// Encodes pictures of the camera: as JPEG, or with a video codec of the browser (WebCodecs).

/** In the order of preference: phones encode the first in hardware, and nearly all browsers decode it. */
const CODECS = [
  // In this format each keyframe holds all that a decoder needs: nobody has to be told a description.
  { id: 'h264', name: 'H.264', codec: 'avc1.42E028', more: { avc: { format: 'annexb' } } },
  { id: 'vp9', name: 'VP9', codec: 'vp09.00.31.08', more: { bitrateMode: 'constant' } },
  { id: 'vp8', name: 'VP8', codec: 'vp8' },
];
const TWO_LAYERS = 'L1T2'; // nothing builds on the frames of the second one, which are half of them
const KEYFRAME_INTERVAL = 5000; // ms: viewers that need one sooner ask
const MAX_QUEUED = 2; // pictures
const STEP = 0.1; // of the bit rate, to be worth a change

/** The codecs that this browser can encode: `{ id, name, codec, config }`. */
export async function findCodecs() {
  if (typeof VideoEncoder === 'undefined') return [];
  const found = await Promise.all(CODECS.map(async ({ codec, more, ...kind }) => {
    for (const layers of [{ scalabilityMode: TWO_LAYERS }, {}]) {
      const config = { codec, latencyMode: 'realtime', ...more, ...layers };
      const example = { ...config, width: 1280, height: 720, bitrate: 1e6, framerate: 15 };
      const { supported } = await VideoEncoder.isConfigSupported(example).catch(() => ({ supported: false }));
      if (supported) return { ...kind, codec, config };
    }
    return null;
  }));
  return found.filter((each) => each !== null);
}

/** Encodes JPEG pictures. */
export class JpegEncoder {
  constructor() {
    this._canvases = []; // one for each size, so that all show the same moment
  }

  /** Encodes what the video shows now in each size, `[{ width, quality }]`: promises of bytes, or of null after a failure. */
  encode(video, sizes) {
    return sizes.map(({ width, quality }, index) => {
      const canvas = this._canvases[index] ??= document.createElement('canvas');
      canvas.width = width;
      canvas.height = Math.round(video.videoHeight * (width / video.videoWidth));
      canvas.getContext('2d', { alpha: false }).drawImage(video, 0, 0, canvas.width, canvas.height);
      return new Promise((resolve) => { canvas.toBlob(resolve, 'image/jpeg', quality); })
        .then(async (blob) => blob && new Uint8Array(await blob.arrayBuffer()));
    });
  }
}

/**
 * Encodes each picture with a video codec, in several layers, with an encoder for each. A picture is a
 * keyframe in all its layers, or in none.
 *
 * `onFrame` gets `{ layer, data, timestamp, keyframe, discardable }`, one picture after the other, each
 * the smallest layer first, and returns whether the frame was sent. After `onError` it is of no use.
 */
export class VideoLayers {
  constructor(kind, { onFrame, onError }) {
    this._kind = kind;
    this._onFrame = onFrame;
    this._onError = onError;
    this._encoders = new Map(); // by layer
    this._pictures = []; // that are being encoded: { timestamp, layers, frames }
    this._needsKeyframe = true;
    this._keyframeAt = -Infinity; // when the last one was encoded
    this._keyframeFor = Infinity; // timestamp of the picture that is being encoded as a keyframe
  }

  /** Whether so many pictures wait to be encoded that no other one should be taken. */
  get busy() {
    return [...this._encoders.values()].some((each) => each.busy);
  }

  /** Makes one of the next pictures a keyframe. */
  wantKeyframe() {
    this._needsKeyframe = true;
  }

  /** Encodes what the video shows now, in each size, `pictures: [{ layer, width, bitrate }]`. */
  encode(video, { pictures, fps, timestamp }) {
    this._keepOnly(pictures.map(({ layer }) => layer));
    const even = (length) => 2 * Math.round(length / 2);
    const aspect = video.videoHeight / video.videoWidth;
    const resized = pictures.map(({ layer, width, bitrate }) => this._encoderOf(layer).configure(
      { width: even(width), height: even(aspect * width), bitrate, framerate: fps },
    )).includes(true); // as of an encoder that is new
    const time = performance.now();
    const isDue = this._needsKeyframe || time - this._keyframeAt >= KEYFRAME_INTERVAL;
    const keyFrame = resized || (this._keyframeFor === Infinity && isDue);
    if (keyFrame) [this._keyframeFor, this._keyframeAt] = [timestamp, time];
    this._pictures.push({ timestamp, layers: pictures.map(({ layer }) => layer), frames: new Map() });
    const picture = new VideoFrame(video, { timestamp: 1000 * timestamp });
    try {
      for (const { layer } of pictures) this._encoderOf(layer).encode(picture, keyFrame);
    } finally {
      picture.close();
    }
  }

  close() {
    this._pictures = [];
    this._keepOnly([]);
  }

  _encoderOf(layer) {
    if (!this._encoders.has(layer)) {
      const onFrame = (frame) => this._take({ layer, ...frame });
      this._encoders.set(layer, new Encoder(this._kind, { onFrame, onError: this._onError }));
    }
    return this._encoders.get(layer);
  }

  /** Closes the encoders of all other layers. */
  _keepOnly(layers) {
    for (const [layer, encoder] of this._encoders) {
      if (layers.includes(layer)) continue;
      encoder.close();
      this._encoders.delete(layer);
      for (const { frames } of this._pictures) if (!frames.has(layer)) frames.set(layer, null);
    }
    this._sendInOrder();
  }

  _take(frame) {
    const { layer, timestamp } = frame;
    for (const picture of this._pictures) {
      // Encoders may drop pictures: no frame of those before is to come any more.
      if (picture.timestamp <= timestamp && !picture.frames.has(layer)) {
        picture.frames.set(layer, picture.timestamp === timestamp ? frame : null);
      }
    }
    this._sendInOrder();
  }

  /** Sends what has come, up to the first frame that has not. */
  _sendInOrder() {
    while (this._pictures.length > 0) {
      const [{ timestamp, layers, frames }] = this._pictures;
      while (layers.length > 0 && frames.has(layers[0])) this._send(frames.get(layers.shift()));
      if (layers.length > 0) return;
      this._pictures.shift();
      if (timestamp >= this._keyframeFor) this._keyframeFor = Infinity;
    }
  }

  _send(frame) {
    if (frame === null) return;
    if (frame.keyframe) this._needsKeyframe = false;
    if (!this._onFrame(frame) && !frame.discardable) this.wantKeyframe();
  }
}

/** The encoder of one layer. `onFrame` gets `{ data, timestamp, keyframe, discardable }`. */
class Encoder {
  constructor(kind, { onFrame, onError }) {
    this._kind = kind;
    this._options = null;
    this._encoder = new VideoEncoder({
      output: (chunk, metadata) => {
        if (this._encoder.state === 'closed') return;
        if (metadata?.decoderConfig?.description) {
          onError(new Error('it wants viewers to be told more than they are'));
          return;
        }
        const keyframe = chunk.type === 'key';
        const data = new Uint8Array(chunk.byteLength);
        chunk.copyTo(data);
        const discardable = !keyframe && metadata?.svc?.temporalLayerId > 0 && { discardable: true };
        onFrame({ data, timestamp: chunk.timestamp / 1000, keyframe, ...discardable });
      },
      error: onError,
    });
  }

  get busy() {
    return this._encoder.encodeQueueSize >= MAX_QUEUED;
  }

  encode(picture, keyFrame) {
    this._encoder.encode(picture, { keyFrame });
  }

  /** Applies options that differ; returns whether the size does. */
  configure(options) {
    const before = this._options;
    const resized = before?.width !== options.width || before.height !== options.height;
    const change = resized || before.framerate !== options.framerate
      || Math.abs(options.bitrate - before.bitrate) > STEP * before.bitrate;
    if (!change) return false;
    this._options = options;
    this._encoder.configure({ ...this._kind.config, ...options });
    return resized;
  }

  close() {
    if (this._encoder.state !== 'closed') this._encoder.close();
  }
}
