// Chooses widths and bit rates of video by what the connection carries.
import { MIN_WIDTH_RATIO } from './layers.js';

/** Bits a second that a width is worth at 25 pictures a second: more shows no difference, a third is too little. */
const WORTH = [[1280, 2.5e6], [960, 1.6e6], [640, 8e5], [480, 4.5e5], [320, 2.5e5]];
const SHARE = 0.8; // of what the connection carries
const UNKNOWN = 8e5; // bits a second, where that is not known
const [LEAST_WORTH, RISE_WORTH] = [0.35, 0.6]; // of what a width is worth, to keep it and to rise to it
const RISE_AFTER = 2000; // ms with room to spare: each change of the width costs a keyframe
const LEFT_OUT = 0; // the width of a layer for which there is no room

/** Divides what the connection carries among the layers of a picture. */
export class LayerRates {
  constructor() {
    this._choices = new Map(); // by the id of a layer
  }

  /**
   * Plans a picture: `{ pictures: [{ layer, width, bitrate }], best }`. All layers but the largest get
   * what they are worth, and the largest takes the rest: in its own width, or a smaller one that is at
   * least 1.5 times that of the layer below. If there is too little for it, it is left out.
   *
   * `bandwidth`: bytes a second, or null; `layers`: those that somebody needs, the smallest first;
   * `isFixed`: whether they keep their width.
   */
  plan({ bandwidth, layers, isFixed, fps, time }) {
    const rate = bandwidth === null ? UNKNOWN : SHARE * 8 * bandwidth;
    const worth = (width) => worthOf(width) * Math.sqrt(Math.min(1, fps / 25));
    const last = layers.length - 1;
    for (let top = last; ; top -= 1) {
      const below = layers.slice(0, top).map(({ id, width }) => ({ layer: id, width, bitrate: Math.round(worth(width)) }));
      const rest = below.reduce((left, { bitrate }) => left - bitrate, rate);
      const { id, width } = layers[top];
      const widths = isFixed ? [width] : widthsUpTo(width);
      const least = top > 0 ? MIN_WIDTH_RATIO * below.at(-1).width : 0;
      const wide = [...widths.filter((each) => each >= least), ...(top > 0 ? [LEFT_OUT] : [])];
      const { best, ...largest } = this._choiceOf(id).plan({ rate: rest, widths: wide, worth, time });
      if (largest.width === LEFT_OUT) continue;
      return { pictures: [...below, { layer: id, ...largest }], best: best && top === last };
    }
  }

  _choiceOf(id) {
    if (!this._choices.has(id)) this._choices.set(id, new WidthChoice());
    return this._choices.get(id);
  }
}

/** Chooses width and bit rate of one layer. */
class WidthChoice {
  constructor() {
    this._width = null;
    this._spareSince = null;
  }

  /** `rate`: bits a second that it may take; `widths`: those that may be chosen, the widest first. */
  plan({ rate, widths, worth, time }) {
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
const widthsUpTo = (widest) => [widest, ...WORTH.map(([width]) => width).filter((width) => width < widest)];

function worthOf(width) {
  const [near, worth] = WORTH.find(([each]) => each <= width) ?? WORTH.at(-1);
  return worth * (width / near) ** 1.6;
}
