// Encodes pictures of the camera: as JPEG, or with a video codec of the browser (WebCodecs).

/** In the order of preference: phones encode the first in hardware, and nearly all browsers decode it. */
const CODECS = [
  // In this format each keyframe holds all that a decoder needs: nobody has to be told a description.
  { id: 'h264', name: 'H.264', codec: 'avc1.42E028', more: { avc: { format: 'annexb' } } },
  { id: 'vp9', name: 'VP9', codec: 'vp09.00.31.08' },
  { id: 'vp8', name: 'VP8', codec: 'vp8' },
];
const TWO_LAYERS = 'L1T2'; // nothing builds on the frames of the second one, which are half of them
const KEYFRAME_INTERVAL = 5000; // ms: viewers that need one sooner ask
const MAX_QUEUED = 2; // pictures
/** Bits a second that a width is worth at 25 pictures a second: more shows no difference, a third is too little. */
const WORTH = [[1280, 2.5e6], [960, 1.6e6], [640, 8e5], [480, 4.5e5], [320, 2.5e5]];
const SHARE = 0.8; // of what the connection carries
const UNKNOWN = 8e5; // bits a second, where that is not known
const [LEAST_WORTH, RISE_WORTH] = [0.35, 0.6]; // of what a width is worth, to keep it and to rise to it
const RISE_AFTER = 2000; // ms with room to spare: each change of the width costs a keyframe
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

/** Chooses width and bit rate by what the connection carries. */
export class BitRate {
  constructor() {
    this._width = null;
    this._spareSince = null;
  }

  /** `bandwidth`: bytes a second, or null; `widths`: those that may be chosen, the widest first. */
  plan({ bandwidth, widths, fps, time }) {
    const rate = bandwidth === null ? UNKNOWN : SHARE * 8 * bandwidth;
    const worth = (width) => worthOf(width) * Math.sqrt(Math.min(1, fps / 25));
    const largest = (share) => widths.find((width) => share * worth(width) <= rate) ?? widths.at(-1);
    const kept = widths.includes(this._width) && (this._width <= largest(LEAST_WORTH));
    const higher = largest(RISE_WORTH);
    if (!kept) this._width = higher;
    if (!kept || higher <= this._width) this._spareSince = null;
    else if (this._spareSince === null) this._spareSince = time;
    else if (time - this._spareSince >= RISE_AFTER) {
      this._width = higher;
      this._spareSince = null;
    }
    const most = worth(this._width);
    return { width: this._width, bitrate: Math.round(Math.min(rate, most)), best: rate >= most && this._width === widths[0] };
  }
}

/** The widths to choose from, up to the widest. */
export const widthsUpTo = (widest) => [widest, ...WORTH.map(([width]) => width).filter((width) => width < widest)];

function worthOf(width) {
  const [near, worth] = WORTH.find(([each]) => each <= width) ?? WORTH.at(-1);
  return worth * (width / near) ** 1.6;
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

/** One encoder of a video codec. `onFrame` gets `{ data, timestamp, keyframe, discardable }`; after `onError` it is of no use. */
export class Encoder {
  constructor(kind, { onFrame, onError }) {
    this._kind = kind;
    this._options = null;
    this._keyframeAt = -Infinity; // when the last one was encoded
    this._keyframeFor = null; // timestamp of the picture that is being encoded as a keyframe
    this._encoder = new VideoEncoder({
      output: (chunk, metadata) => {
        if (metadata?.decoderConfig?.description) {
          onError(new Error('it wants viewers to be told more than they are'));
          return;
        }
        const keyframe = chunk.type === 'key';
        // Encoders may drop a picture: then the keyframe is still to come.
        if (this._keyframeFor !== null && chunk.timestamp >= this._keyframeFor) this._keyframeFor = null;
        const data = new Uint8Array(chunk.byteLength);
        chunk.copyTo(data);
        const discardable = !keyframe && metadata?.svc?.temporalLayerId > 0 && { discardable: true };
        onFrame({ data, timestamp: chunk.timestamp / 1000, keyframe, ...discardable });
      },
      error: onError,
    });
  }

  /** Whether so many pictures wait to be encoded that no other one should be taken. */
  get busy() {
    return this._encoder.encodeQueueSize >= MAX_QUEUED;
  }

  /** Encodes what the video shows now. */
  encode(video, { width, bitrate, fps, timestamp, keyframe }) {
    const even = (length) => 2 * Math.round(length / 2);
    const height = even(video.videoHeight * (width / video.videoWidth));
    const resized = this._configure({ width: even(width), height, bitrate, framerate: fps });
    const time = performance.now();
    const keyFrame = resized || (this._keyframeFor === null && (keyframe || time - this._keyframeAt >= KEYFRAME_INTERVAL));
    if (keyFrame) {
      this._keyframeFor = 1000 * timestamp;
      this._keyframeAt = time;
    }
    const picture = new VideoFrame(video, { timestamp: 1000 * timestamp });
    this._encoder.encode(picture, { keyFrame });
    picture.close();
  }

  /** Applies options that differ; returns whether the size does. */
  _configure(options) {
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
