// The layers of a stream: the widths in which each of its pictures comes.

const WIDTHS = [320, 640];
/** Of the largest layer of a picture to the one below: less would cost more than it shows. */
export const MIN_WIDTH_RATIO = 1.5;
const MAX_LAYERS = 4; // that a stream may have

/** The layers of pictures up to a width, the smallest first: `[{ id, width }]`. */
export const layersUpTo = (largest) => [...WIDTHS.filter((width) => MIN_WIDTH_RATIO * width <= largest), largest].map(
  (width) => ({ id: String(width), width }),
);

/** The layers that a broadcaster names in the metadata of its stream, for viewers to choose from. */
export function layersOf(metadata) {
  const layers = Array.isArray(metadata?.layers) ? metadata.layers.slice(0, MAX_LAYERS) : [];
  return layers.filter((each) => typeof each?.id === 'string' && Number.isInteger(each.width) && each.width > 0);
}
