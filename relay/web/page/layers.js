// The layers of a stream: the widths in which each of its pictures comes.

const WIDTHS = [320, 640];
const MAX_SHARE = 0.8; // of the largest width: a layer that is hardly smaller is of no use
const MAX_LAYERS = 4; // that a stream may have

/** The layers of pictures up to a width, the smallest first: `[{ id, width }]`. */
export const layersUpTo = (largest) => [...WIDTHS.filter((width) => width < MAX_SHARE * largest), largest].map(
  (width) => ({ id: String(width), width }),
);

/** The layers that a broadcaster names in the metadata of its stream, for viewers to choose from. */
export function layersOf(metadata) {
  const layers = Array.isArray(metadata?.layers) ? metadata.layers.slice(0, MAX_LAYERS) : [];
  return layers.filter((each) => typeof each?.id === 'string' && Number.isInteger(each.width) && each.width > 0);
}
