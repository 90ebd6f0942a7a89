// The layers of a stream: the widths in which each of its pictures comes.

const WIDTHS = [320, 640];
/** Of the largest layer of a picture to the one below: less would cost more than it shows. */
export const MIN_WIDTH_RATIO = 1.5;

/** The layers of pictures up to a width, the smallest first: `[{ id, width }]`. */
export const layersUpTo = (largest) => [...WIDTHS.filter((width) => MIN_WIDTH_RATIO * width <= largest), largest].map(
  (width) => ({ id: String(width), width }),
);
