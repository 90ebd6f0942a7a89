// How much the link to the relay carries, and which pictures fit it. No I/O, and no clock of its own.

const MAX_QUEUE_TIME = 5; // ms that a frame may wait at the narrow place
const MAX_OVERDUE = 15; // ms, besides jitter, by which the oldest answer may be overdue while frames are sent
const VERY_LATE = 125; // ms: a later answer says that the link has changed, or had a gap
const SAMPLE_LIFETIME = 600; // ms, while there are more than MIN_SAMPLES
const [MIN_SAMPLES, MAX_SAMPLES] = [3, 24];
const MIN_BUSY_TIME = 0.5; // ms of a sample, on average, on links that are too fast to measure
const [MAX_ROUND_TRIPS, ROUND_TRIP_LIFETIME] = [20, 10_000];
const QUESTION_PAUSE = 1000; // ms between two questions ahead of a frame
const MIN_IDLE_TIME = 10; // ms, besides jitter, that the narrow place is idle ahead of a question beside frames
const MAX_ROUND_TRIP_AGE = 5000; // ms after which the link is left to run empty to measure it
const FIRST_ANSWER = 1000; // ms for which the answer to the first pictures is waited for
const [MAX_SILENCE, MIN_BANDWIDTH] = [15_000, 4096]; // ms, bytes a second: the slowest link
const MAX_UNDER_WAY = 1024; // frames of which the answer is remembered to be due

/**
 * Measures the link to the relay by what the relay says has come, and tells when to send. No I/O;
 * all times are ms of one clock. The model is that of the relay's own pacer:
 *
 * The link has one narrow place, first in, first out, with a queue of any depth in front of it. A
 * frame keeps the narrow place busy for
 *
 *     answer - max(answer before, sent + usual round trip)
 *
 * and the bandwidth is the sum of bytes by the sum of these times. From it follows when each answer
 * is due, and so when the narrow place will be free. The next frame may be sent a round trip before
 * that: it arrives as the narrow place becomes free, so the link is full and nothing queues.
 *
 * - Before the first answer nothing is known: `hasRoom` and `bandwidth` are null, also where answers
 *   have stopped for long.
 * - The usual round trip is the median of questions asked while nothing is under way. Over a long way
 *   something always is: there it is asked when the narrow place should be idle, and counts if it was,
 *   as the answer before came some time ago. Otherwise queueing would be taken for distance. A link
 *   that is never idle is left to run empty now and then, but not of frames that build on one another.
 * - An answer that is late by far replaces all that was known, and is doubtful itself: the next one
 *   decides. So a gap in the radio is no smaller link, and a rate that is too high does not last.
 * - While the oldest answer is overdue nothing is sent: the link may have become slower.
 */
export class Uplink {
  constructor() {
    this.roundTrip = 0; // the usual one
    this.jitter = 0; // by how much it is longer than the shortest
    this.late = 0; // by how much the last answer was later than it was due
    this._frames = []; // under way: { number, size, sentAt, due }
    this._sent = 0; // number of frames
    this._answeredAt = -Infinity;
    this._lastDue = -Infinity; // when the narrow place will be free, by when an answer would come
    this._samples = []; // { at, size, busy }
    this._doubtful = false; // whether the only sample is of an answer that was late by far
    this._roundTrips = []; // { at, time }
    this._askedAt = -Infinity;
    this._askedBehind = 0; // number of the last frame ahead of the question
    this._emptiedAt = -Infinity; // when it was last asked while nothing was under way
  }

  /** Bytes a second that the link carries; null while that is not known. */
  bandwidth(time) {
    this._samples = recent(this._samples, SAMPLE_LIFETIME, time);
    if (this._samples.length === 0 || this._isSilent(time)) return null;
    let size = sum(this._samples, 'size');
    let busy = Math.max(sum(this._samples, 'busy'), MIN_BUSY_TIME * this._samples.length);
    const [first] = this._frames;
    const already = first === undefined ? 0 : time - this._busySince(first);
    if (already > 0 && already / first.size > busy / size) { // it has taken longer than was expected
      size += first.size;
      busy += already;
    }
    return 1000 * size / busy;
  }

  /** Whether to send a frame now that may wait so long; null while nothing is known of the link. */
  hasRoom(time, mayWait = MAX_QUEUE_TIME) {
    if (this.bandwidth(time) === null) return null;
    const [first] = this._frames;
    if (first === undefined) return true;
    if (time > first.due + MAX_OVERDUE + 2 * this.jitter + mayWait) return false;
    if (mayWait <= MAX_QUEUE_TIME && this._mustRunEmpty(time)) return false;
    return this.queueTime(time) <= mayWait;
  }

  /** How long a frame that is sent now would wait at the narrow place, as far as is known. */
  queueTime(time) {
    return Math.max(0, this._lastDue - time - this.roundTrip);
  }

  /** Of frames that have not come yet, as far as is known. */
  get bytesUnderWay() {
    return this._frames.reduce((sum, { size }) => sum + size, 0);
  }

  /** Whether the first frames are under way, and their answer may still come. */
  isUntried(time) {
    return this._samples.length === 0 && this._frames.length > 0 && time - this._frames[0].sentAt < FIRST_ANSWER;
  }

  /** Whether to ask for a reply ahead of the next frame. */
  wantsQuestion(time) {
    if (time - this._askedAt < QUESTION_PAUSE) return false;
    if (this._frames.length === 0) return true;
    if (this._samples.length === 0 || this._roundTrips.length === 0) return false;
    return time >= this._lastDue - this.roundTrip + this._minIdle || this._mustRunEmpty(time);
  }

  questionAsked(time) {
    this._askedAt = time;
    this._askedBehind = this._sent;
    if (this._frames.length === 0) this._emptiedAt = time;
  }

  questionAnswered(time) {
    const isBehind = this._frames.length > 0 && this._frames[0].number <= this._askedBehind;
    const wasIdle = !isBehind && time >= this._answeredAt + this._minIdle;
    if (this._emptiedAt !== this._askedAt && !wasIdle) return;
    const roundTrips = [...this._roundTrips.slice(1 - MAX_ROUND_TRIPS), { at: time, time: time - this._askedAt }];
    this._roundTrips = recent(roundTrips, ROUND_TRIP_LIFETIME, time);
    const times = this._roundTrips.map((each) => each.time).sort((one, other) => one - other);
    this.roundTrip = times[(times.length - 1) >> 1];
    this.jitter = this.roundTrip - times[0];
  }

  frameSent(size, time) {
    this._lastDue = Math.max(time + this.roundTrip, this._lastDue) + this._timeOf(size, time);
    this._frames.push({ number: this._sent += 1, size, sentAt: time, due: this._lastDue });
    if (this._frames.length > MAX_UNDER_WAY) this._frames.shift();
  }

  /** So many frames have come. Ignores a number that is known already, and one that was never sent. */
  answer(number, time) {
    const answered = number > this._sent ? [] : this._frames.filter((frame) => frame.number <= number);
    if (answered.length === 0) return;
    this._frames = this._frames.slice(answered.length);
    this.late = this._samples.length === 0 ? 0 : Math.max(0, time - answered.at(-1).due);
    this._measure(answered, time);
    this._answeredAt = time;
    this._forecast(time);
  }

  /**
   * Takes a sample of what was answered at once. The narrow place may have been idle between two
   * frames. It was busy since the one from which on the bytes came the fastest.
   */
  _measure(answered, time) {
    let size = 0;
    let best = { size: 0, busy: 1 };
    for (const frame of answered.reverse()) {
      size += frame.size;
      const busy = Math.max(0, time - this._busySince(frame));
      if (best.size === 0 || size * best.busy > best.size * busy) best = { size, busy };
    }
    const veryLate = this.late > VERY_LATE;
    if (veryLate || this._doubtful) this._samples = [];
    this._doubtful = veryLate;
    this._samples = [...this._samples.slice(1 - MAX_SAMPLES), { at: time, ...best }];
  }

  /** Says anew when the answers under way are due. */
  _forecast(time) {
    let due = time;
    for (const frame of this._frames) {
      due = Math.max(due, frame.sentAt + this.roundTrip) + this._timeOf(frame.size, time);
      frame.due = due;
    }
    this._lastDue = due;
  }

  /** Since when the narrow place is busy with this one, the first that is not answered. */
  _busySince({ sentAt }) {
    return Math.max(this._answeredAt, sentAt + this.roundTrip);
  }

  /** How long so many bytes keep the narrow place busy, as far as is known. */
  _timeOf(size, time) {
    const bandwidth = this.bandwidth(time);
    return bandwidth ? 1000 * size / bandwidth : 0;
  }

  _mustRunEmpty(time) {
    const measuredAt = this._roundTrips.at(-1)?.at ?? -Infinity;
    return time - Math.max(measuredAt, this._emptiedAt) > MAX_ROUND_TRIP_AGE;
  }

  /** For how long the narrow place has to be idle ahead of a question beside frames. */
  get _minIdle() {
    return MIN_IDLE_TIME + this.jitter;
  }

  /** Whether the oldest answer is overdue by so much that none is expected any more. */
  _isSilent(time) {
    const [first] = this._frames;
    return first !== undefined && time > first.due + MAX_SILENCE + 1000 * first.size / MIN_BANDWIDTH;
  }
}

/** Without what is older than its lifetime, but for the last ones. */
const recent = (values, lifetime, time) => values.filter(({ at }, index) => (
  values.length - index <= MIN_SAMPLES || time - at <= lifetime));
const sum = (values, name) => values.reduce((total, each) => total + each[name], 0);

const QUALITIES = [0.8, 0.75, 0.69, 0.61, 0.5, 0.39, 0.3]; // of JPEG: each takes about 12 % fewer bytes
const STEP_SHARE = 0.88;
const WIDTHS = [1280, 960, 640, 480, 320];
const WIDTH_EXPONENT = 1.63; // by which bytes grow with the width
const RISE_AFTER = 200; // ms with room to spare
const [SPARE, MAX_RISE] = [1.2, 1.5]; // of bytes
const LEARNING = 0.5; // weight of one picture, when the scene changes
const USUAL_STEP = 2; // of all layers of a picture but the largest: their own width, at quality 0.69
const MIN_WIDTH_RATIO = 1.5; // of the largest layer of a picture to the one below
const [BRIEF_STAY, LASTING_STAY] = [10_000, 60_000]; // ms of a layer: the first doubles its pause, the last ends it
const [MIN_RETURN_PAUSE, MAX_RETURN_PAUSE] = [3000, 60_000]; // ms until a layer that was left out may be sent again

/**
 * Chooses width and quality of pictures by what they may take, on a ladder from the best picture
 * down in steps of about 12 % of bytes. A width is kept down to quality 0.3, and the next narrower
 * one begins at the quality that takes fewer bytes: of all pictures that take no more, these are
 * nearest to the original.
 *
 * What a step takes is learned from the pictures sent: two of one step that differ show that the
 * scene has changed, and all steps with it; the first one after a change of step shows what this
 * step takes beside the last, and those beyond it are estimated from it.
 *
 * Down at once; up after 0.2 s with 20 % to spare, by one step or at most half the bytes more.
 */
export class Ladder {
  constructor(width) {
    this.width = width;
    this.steps = stepsFrom(width);
    this._at = this.steps.length >> 1;
    this._sizes = this.steps.map(({ share }) => share);
    this._isSized = false; // whether these are bytes, not shares
    this._learned = null; // the step of the last picture
    this._spareSince = null;
  }

  /** The step for a picture of so many bytes; where it is while the budget is null. */
  choose(budget, time) {
    if (budget === null || !this._isSized) return this.steps[this._at];
    const fits = this._sizes.findIndex((size, index) => index >= this._at && size <= budget);
    if (fits !== this._at) {
      this._at = fits === -1 ? this.steps.length - 1 : fits;
      this._spareSince = null;
      return this.steps[this._at];
    }
    const most = MAX_RISE * this._sizes[this._at];
    const higher = this._sizes.findIndex((size, index) => (
      size * SPARE <= budget && (size <= most || index === this._at - 1)));
    if (higher === -1 || higher >= this._at) this._spareSince = null;
    else if (this._spareSince === null) this._spareSince = time;
    else if (time - this._spareSince >= RISE_AFTER) {
      this._at = higher;
      this._spareSince = time;
    }
    return this.steps[this._at];
  }

  /** The least picture, while it is in doubt what the link carries. */
  least() {
    this._spareSince = null;
    return this.steps.at(-1);
  }

  /** The step of a layer that is not the largest of its picture. */
  usual() {
    this._at = Math.min(USUAL_STEP, this.steps.length - 1);
    this._spareSince = null;
    return this.steps[this._at];
  }

  /** What a picture of a step takes, as far as is known; null before the first picture. */
  sizeOf(step) {
    return this._isSized ? this._sizes[this.steps.indexOf(step)] : null;
  }

  /** Before the first picture: the largest one would take so many bytes, by what other layers take. */
  expect(size) {
    if (this._learned !== null) return;
    this._sizes = this.steps.map(({ share }) => share * size);
    this._isSized = true;
  }

  /** Pictures of other layers take so many times the bytes now. */
  scale(factor) {
    this._sizes = this._sizes.map((size) => size * factor);
  }

  /** A picture of a step took so many bytes. Returns by what factor the scene has changed, if that shows. */
  learn(step, size) {
    const [at, last] = [this.steps.indexOf(step), this._learned];
    const ratio = size / this._sizes[at];
    const change = at === last ? 1 + LEARNING * (ratio - 1) : 1;
    if (last === null) this.scale(ratio);
    else if (at === last) this.scale(change);
    else {
      this._sizes = this._sizes.map((each, index) => (
        (at > last ? index >= at : index <= at) ? each * ratio : each));
    }
    this._learned = at;
    this._isSized = true;
    return change;
  }
}

/**
 * Divides what a picture may take among its layers, `[{ id, width }]`, the smallest first. All but
 * the largest are of their usual quality, and the largest takes the rest, as its ladder says. If
 * that would not make it 1.5 times as wide as the one below, it is left out, and the one below is the
 * largest. A stream without layers has a single one, without an id.
 *
 * What a layer takes that is left out is estimated from those that are sent. One that does not last is
 * followed by a pause: viewers see each change, and only pictures find out what a link carries. A layer
 * that is sent goes on whatever pause it had: it came as the only one that was needed, or below another.
 */
export class LayerPlanner {
  constructor() {
    this._ladders = new Map(); // by id
    this._plan = new Map(); // the steps of the last picture by id, the smallest first
    this._stays = new Map(); // of layers by id: { since, pause, next }, ms; `since` is null while it is left out
  }

  /** The steps of a picture that may take so many bytes: a `Map` by id; a null budget is unknown. */
  plan(layers, budget, time) {
    const ladders = layers.map((layer) => this._ladderOf(layer));
    for (const { id } of layers) if (!this._stays.has(id)) this._stays.set(id, { since: null, pause: 0, next: 0 });
    this._estimate();
    this._divide(layers, ladders, budget, time);
    this._noteStays(layers, time);
    return this._plan;
  }

  _divide(layers, ladders, budget, time) {
    const before = this._plan;
    this._plan = new Map();
    for (let top = layers.length - 1; top > 0; top -= 1) {
      const below = ladders.slice(0, top);
      const usual = below.map((ladder) => ladder.sizeOf(ladder.steps[USUAL_STEP]));
      const rest = budget === null ? null : budget - usual.reduce((total, size) => total + size, 0);
      const step = ladders[top].choose(rest, time);
      const spare = before.has(layers[top].id) ? 1 : SPARE;
      const tooLarge = rest !== null && ladders[top].sizeOf(step) * spare > rest;
      const tooNarrow = step.width < MIN_WIDTH_RATIO * layers[top - 1].width;
      if (tooLarge || tooNarrow || !this._mayCome(layers[top].id, time)) continue;
      below.forEach((ladder, index) => this._plan.set(layers[index].id, ladder.usual()));
      this._plan.set(layers[top].id, step);
      return;
    }
    this._plan.set(layers[0].id, ladders[0].choose(budget, time));
  }

  /** Whether a layer is sent already, or may be again. */
  _mayCome(id, time) {
    const { since, next } = this._stays.get(id);
    return since !== null || time >= next;
  }

  /** Notes which layers are sent, and of others since when, and for how long. */
  _noteStays(layers, time) {
    for (const [id, stay] of this._stays) {
      if (this._plan.has(id)) stay.since ??= time;
      else if (stay.since !== null) this._endStay(stay, time, layers.some((layer) => layer.id === id));
    }
  }

  /** Notes that a layer is not sent any more: it is left out, unless nobody needs it. */
  _endStay(stay, time, isNeeded) {
    const stayed = time - stay.since;
    stay.since = null;
    if (stayed >= LASTING_STAY) stay.pause = 0;
    if (!isNeeded) return;
    if (stayed < BRIEF_STAY) stay.pause = Math.min(Math.max(2 * stay.pause, MIN_RETURN_PAUSE), MAX_RETURN_PAUSE);
    stay.next = time + stay.pause;
  }

  /** The least picture, while it is in doubt what the link carries. */
  least([layer]) {
    this._plan = new Map([[layer.id, this._ladderOf(layer).least()]]);
    return this._plan;
  }

  /** The frame of a layer of the last picture took so many bytes. */
  learn(id, size) {
    const step = this._plan.get(id);
    if (step === undefined) return; // it was not planned
    const change = this._ladders.get(id).learn(step, size);
    if (id !== [...this._plan.keys()].at(-1)) return;
    for (const [other, ladder] of this._ladders) if (!this._plan.has(other)) ladder.scale(change);
  }

  _ladderOf({ id, width }) {
    const known = this._ladders.get(id);
    if (known === undefined || known.width !== width) this._ladders.set(id, new Ladder(width));
    return this._ladders.get(id);
  }

  /** Estimates what layers take of which nothing was sent. */
  _estimate() {
    const ladders = [...this._ladders.values()];
    const known = ladders.find((ladder) => ladder._learned !== null);
    if (known === undefined) return;
    for (const ladder of ladders) {
      const ratio = (ladder.width / known.width) ** WIDTH_EXPONENT;
      ladder.expect(known.sizeOf(known.steps[0]) * (ratio || 1));
    }
  }
}

/** The steps of a ladder: `{ width, quality, share }`, with the share of the first one's bytes. */
function stepsFrom(widest) {
  const steps = [];
  for (const width of widest === undefined ? [undefined] : [widest, ...WIDTHS.filter((each) => each < widest)]) {
    for (const [index, quality] of QUALITIES.entries()) {
      const share = (width === undefined ? 1 : (width / widest) ** WIDTH_EXPONENT) * STEP_SHARE ** index;
      if (steps.length === 0 || share <= steps.at(-1).share * 0.9) steps.push({ width, quality, share });
    }
  }
  return steps;
}
