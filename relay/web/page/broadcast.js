// Broadcast: streams the camera of this device while somebody is watching.
import { Rate } from '../player/screen.js';
import { RelayClient } from '../relay-client.js';
import { makeAlertList, popUp } from './alerts.js';
import { findCodecs, JpegEncoder, VideoLayers } from './encoder.js';
import { bits, count, make, makeFacts, makeField, makeSelect, say, sayAndShow, tabStore } from './dom.js';
import { layersUpTo } from './layers.js';
import { LayerRates } from './rates.js';
import { makeShare } from './share.js';

const AUTOMATIC = 'automatic';
const BEST = { width: 1280, quality: 0.8 }; // of what is chosen automatically
const JPEG = { id: 'jpeg', name: 'JPEG pictures' };
const JPEG_QUALITY = 0.72; // with a fixed width
const ROOM_PAUSE = 15; // ms until the connection is asked again whether it has room
const MANY_PAUSES = 10; // a second: the connection is what limits the pictures
const FAST = 50e6; // bits a second; faster connections are not measured well
const list = new Intl.ListFormat('en-GB');
const REFUSED = {
  NotAllowedError: ['The camera is blocked', 'Allow this page to use the camera in the browser settings, then start again.'],
  NotFoundError: ['No camera found', 'This device has no camera that the browser can use.'],
  NotReadableError: ['The camera is in use', 'Close the program that is using it, then start again.'],
};

/** The broadcast outlives the view: it continues while the user looks at another view. */
let current = null;

export function stopBroadcast() {
  current?.stop();
  current = null; // the next user may be another one
}

export function showBroadcast(session, content) {
  content.append(make('div', { class: 'head' }, make('h1', { tabindex: -1 }, 'Broadcast')));
  if (!navigator.mediaDevices?.getUserMedia) {
    content.append(explainInsecure());
    return () => {};
  }
  current ??= new Broadcast(session, () => { current = null; });
  content.append(current.element);
  const timer = setInterval(() => current?.refresh(), 500);
  current.refresh();
  return () => {
    clearInterval(timer);
    if (current && !current.busy) current = null;
  };
}

function explainInsecure() {
  const port = location.port ? `:${location.port}` : '';
  return make('section', { class: 'card refused', role: 'alert' },
    make('h2', {}, 'The browser blocks the camera on this page'),
    make('p', {}, 'Only secure pages may use the camera, and ', make('code', {}, location.origin), ' is not secure. You can:'),
    make('ul', {},
      make('li', {}, 'Open ', make('code', {}, `http://localhost${port}`), ' on the machine that runs the relay.'),
      make('li', {}, 'To try a phone: start the relay with ', make('code', {}, '--dev-tls'), ', install the certificate that it names on the phone, and open ', make('code', {}, `https://${location.host}`), '.'),
      make('li', {}, 'In production: give the relay a certificate with ', make('code', {}, '--tls-certificate FILE --tls-key FILE'), '.')));
}

class Broadcast {
  constructor(session, onStop) {
    this.going = false;
    this._starting = false; // while the browser asks for permission
    this._session = session;
    this._onStop = onStop;
    this._rate = new Rate();
    this._bytes = new Rate();
    this._waits = new Rate(); // for room on the connection
    this._plan = null; // of the last picture
    this._layers = []; // of the pictures, the smallest first
    this._jpeg = new JpegEncoder();
    this._kinds = [JPEG]; // in which pictures can be encoded, the best first
    this._chosen = null; // by the user
    this._encoder = null; // of a video codec
    this._rates = new LayerRates();
    this._countedAt = null; // the timestamp of the last picture of which a frame was sent
    this._build();
    this._found = findCodecs().then((kinds) => this._offer([...kinds, JPEG]));
  }

  /** Lets the user choose among these. */
  _offer(kinds) {
    this._kinds = kinds;
    const options = kinds.map(({ id, name }) => make('option', { value: id, selected: id === this._chosen }, name));
    this._codec.replaceChildren(...options);
  }

  _build() {
    const remembered = tabStore.get('relay-stream') ?? `camera-${Math.random().toString(36).slice(2, 8)}`;
    this._id = make('input', { value: remembered, pattern: '[A-Za-z0-9._:\\-]{1,128}', required: true, autocapitalize: 'off', spellcheck: 'false', title: '1 to 128 letters, digits or - . _ :' });
    this._width = makeSelect([[AUTOMATIC, 'Automatic'], ['640', '640 pixels'], ['960', '960 pixels'], ['1280', '1280 pixels']], AUTOMATIC);
    this._codec = makeSelect([[JPEG.id, JPEG.name]], JPEG.id, (value) => { this._chosen = value; });
    this._fps = makeSelect([['5', '5'], ['10', '10'], ['15', '15'], ['25', '25']], '15');
    this._facing = makeSelect([['environment', 'Back'], ['user', 'Front']], 'environment');
    this._video = make('video', { muted: true, playsinline: true, 'aria-label': 'Camera preview' });
    this._video.muted = true;
    this._note = make('div', { class: 'note' }, 'Camera off');
    this._start = make('button', { type: 'submit', class: 'main' }, 'Start broadcasting');
    this._stop = make('button', { type: 'button', hidden: true, onclick: () => this.stop() }, 'Stop');
    this._says = make('p', { role: 'status' }, 'Viewers see your camera once you start.');
    this._wrong = make('div', { class: 'card refused', role: 'alert', hidden: true });
    const [facts, set] = makeFacts(['Viewers', 'Sent', 'Bit rate', 'Connection']);
    this._set = set;
    this._sends = make('p', { class: 'faint' });
    this._fields = make('div', { class: 'fields' }, makeField('Stream id', this._id), makeField('Camera', this._facing),
      makeField('Width and quality', this._width), makeField('Frames per second', this._fps), makeField('Encoding', this._codec));
    this._side = make('div', { class: 'side' });
    const form = make('form', { class: 'card', onsubmit: (event) => { event.preventDefault(); this.start(); } },
      this._fields, make('div', { class: 'buttons' }, this._start, this._stop), this._says);
    this.element = make('div', { class: 'cast' },
      make('div', {}, this._wrong, make('div', { class: 'screen' }, this._video, this._note), facts, this._sends),
      make('div', {}, form, this._side));
  }

  get busy() { return this.going || this._starting; }

  async start() {
    this._wrong.hidden = true;
    this._start.disabled = this._starting = true;
    await this._found;
    try {
      this._media = await navigator.mediaDevices.getUserMedia({
        audio: false,
        video: { facingMode: this._facing.value, width: { ideal: this._widest }, frameRate: { ideal: Number(this._fps.value) } },
      });
    } catch (error) {
      this._start.disabled = this._starting = false;
      this._refuse(...(REFUSED[error.name] ?? ['The camera did not start', error.message]));
      return;
    }
    this._video.srcObject = this._media;
    await this._video.play().catch(() => {});
    this._start.disabled = false;
    if (!this._starting) { // stopped in the meantime
      this._release();
      return;
    }
    this._starting = false;
    this.going = true;
    this._media.getVideoTracks()[0].addEventListener('ended', () => {
      this.stop();
      this._refuse('The camera stopped', 'It was unplugged, or the page lost access to it. Start again when it is available.');
    });
    this._connect();
    this._video.addEventListener('resize', this._fit);
    document.addEventListener('visibilitychange', this._holdScreen);
    this._holdScreen();
    this._next();
    this.refresh();
  }

  /** Begins again with other layers if the pictures have another width: the phone was turned. */
  _fit = () => {
    if (this.going && this._video.videoWidth && this._largest !== this._layers.at(-1).width) this._publishAgain();
  };

  /** Keeps the screen on. The browser releases the lock whenever the page is hidden. */
  _holdScreen = async () => {
    if (document.visibilityState !== 'visible') return;
    const lock = await navigator.wakeLock?.request('screen').catch(() => null);
    if (this.going) this._lock = lock;
    else lock?.release().catch(() => {});
  };

  _connect() {
    this._streamId = this._id.value.trim();
    tabStore.set('relay-stream', this._streamId);
    this._alerts = makeAlertList(this._streamId, this._session.token);
    this._asked = false;
    this._side.replaceChildren(this._alerts.element, makeShare(this._streamId, this._session.token));
    this._client = this._session.connect(RelayClient, { path: '/streams/register' });
    this._publish();
    this._client.on('state', ({ state, error }) => {
      if (state === 'closed' && error?.code !== 'CLOSED') {
        this.stop();
        this._refuse('The broadcast ended', `${error.message}.`);
      }
      this.refresh();
    });
    this._client.connect().catch(() => {}); // reported by `state`
  }

  _publish() {
    const kind = this._kinds.find(({ id }) => id === this._codec.value);
    this._layers = layersUpTo(this._largest);
    const what = kind === JPEG ? { codec: 'jpeg', mimeType: 'image/jpeg' } : { codec: kind.codec };
    this._publication = this._client.publish({
      streamId: this._streamId,
      metadata: { ...what, device: 'browser', layers: this._layers },
      layers: this._layers,
      onRegistered: () => {
        this._encoder?.wantKeyframe();
        if (!this._asked) this._alerts.loadEarlier(); // only once, not after each reconnect
        this._asked = true;
      },
      onDemand: () => this.refresh(),
      onKeyframeWanted: () => this._encoder?.wantKeyframe(),
      onAlert: (alert) => {
        this._alerts.add(alert);
        popUp(alert);
      },
      onError: (error) => {
        this.stop();
        this._refuse('The relay rejected the stream', `${error.message}.`);
      },
    });
    if (kind !== JPEG) this._openEncoder(kind);
  }

  _openEncoder(kind) {
    const encoder = this._encoder = new VideoLayers(kind, {
      onFrame: ({ data, ...about }) => this._encoder === encoder && this._send(data, about),
      onError: (error) => { if (this._encoder === encoder) this._replace(kind, error); },
    });
  }

  /** An encoder has failed: begin again with another one. JPEG is there in any case. */
  _replace(kind, error) {
    console.warn(`${kind.name}: ${error.message}`);
    this._offer(this._kinds.filter((each) => each !== kind));
    this._publishAgain();
  }

  _publishAgain() {
    this._closeEncoder();
    this._publication.stop();
    this._publish();
  }

  _closeEncoder() {
    this._encoder?.close();
    this._encoder = null;
  }

  get _automatic() { return this._width.value === AUTOMATIC; }
  get _widest() { return this._automatic ? BEST.width : Number(this._width.value); }
  get _largest() { return Math.min(this._widest, this._video.videoWidth || Infinity); }

  /** Plans a picture; null while nobody is watching or the connection has no room. */
  _planNext() {
    const fps = Number(this._fps.value);
    if (!this._video.videoWidth || this._video.readyState < 2) return null; // the camera is not ready
    if (this._encoder !== null) return this._planVideo(fps);
    if (this._automatic) return this._publication.next({ fps });
    const layers = this._publication.hasRoom ? this._neededLayers : [];
    const pictures = layers.map(({ id, width }) => ({ layer: id, width, quality: JPEG_QUALITY }));
    return pictures.length > 0 ? { pictures, timestamp: Date.now() } : null;
  }

  /** The layers that somebody needs now. */
  get _neededLayers() {
    return this._layers.filter(({ id }) => this._publication.layers.includes(id));
  }

  _planVideo(fps) {
    const plan = this._encoder.busy ? null : this._publication.next({ fps });
    if (plan === null) return null;
    const { bandwidth } = this._publication;
    const rates = this._rates.plan({
      bandwidth, layers: this._neededLayers, isFixed: !this._automatic, fps, time: performance.now(),
    });
    return { ...rates, fps, timestamp: plan.timestamp };
  }

  /** Sends pictures, at the chosen rate at most. */
  _next() {
    if (!this.going) return;
    const period = 1000 / Number(this._fps.value);
    const began = performance.now();
    const plan = this._planNext();
    if (plan === null) {
      const watched = this._publication.consumers > 0;
      if (watched) this._waits.add();
      setTimeout(() => this._next(), watched ? ROOM_PAUSE : period);
      return;
    }
    const again = () => setTimeout(() => this._next(), Math.max(0, period - (performance.now() - began)));
    if (this._encoder !== null) {
      this._plan = plan;
      this._encodeVideo(plan);
      again();
      return;
    }
    this._sendPictures(plan).finally(again);
  }

  /** Sends a picture in each size that is planned, the smallest first. */
  async _sendPictures(plan) {
    const publication = this._publication;
    const encoded = this._jpeg.encode(this._video, plan.pictures);
    for (const [index, { layer }] of plan.pictures.entries()) {
      const data = await encoded[index];
      if (publication !== this._publication) return; // another one, with other layers
      if (data && this._send(data, { layer, timestamp: plan.timestamp })) this._plan = plan;
    }
  }

  _encodeVideo(plan) {
    try {
      this._encoder.encode(this._video, plan);
    } catch (error) {
      this._replace(this._kinds.find(({ id }) => id === this._codec.value), error);
    }
  }

  /** Sends and counts a frame, which is a picture in one of its sizes; returns whether it was sent. */
  _send(data, about) {
    if (!this._publication.sendFrame(data, about)) return false;
    this._bytes.add(data.length);
    if (about.timestamp !== this._countedAt) this._rate.add();
    this._countedAt = about.timestamp;
    return true;
  }

  /** What is sent, and why it is not more. */
  _explain() {
    const { pictures, best = this._isBest(pictures.at(-1)) } = this._plan;
    const needed = this._neededLayers.at(-1);
    let why = this._automatic ? 'the best quality' : 'as you chose';
    if (needed !== this._layers.at(-1)) why = 'viewers need no more';
    if (!best || this._waits.perSecond > MANY_PAUSES) why = 'the connection takes no more';
    if (this._automatic && this._publication.bandwidth === null) why = 'how much the connection takes is not known';
    const widths = list.format(pictures.map(({ width }) => String(width)));
    return `${widths} pixels, ${count(this._rate.perSecond)} pictures a second, ${bits(this._bytes.perSecond * 8)}: ${why}.`;
  }

  /** Whether the largest one of a picture is as large and as good as somebody needs it. */
  _isBest({ width, quality }) {
    const needed = this._neededLayers.at(-1);
    return width >= (needed?.width ?? 0) && (!this._automatic || quality === BEST.quality);
  }

  stop() {
    this._starting = false;
    if (!this.going) return;
    this.going = false;
    this._release();
    this._closeEncoder();
    this._video.removeEventListener('resize', this._fit);
    this._client.close();
    document.removeEventListener('visibilitychange', this._holdScreen);
    this._lock?.release().catch(() => {});
    this.refresh();
    if (!this.element.isConnected) this._onStop();
  }

  _release() {
    for (const track of this._media.getTracks()) track.stop();
    this._video.srcObject = null;
  }

  refresh() {
    const { state, retryAt } = this._client ?? {};
    const watched = this.going && this._publication.consumers > 0;
    this._start.hidden = this.going;
    this._stop.hidden = !this.going;
    for (const control of this._fields.querySelectorAll('input, select')) control.disabled = this.going;
    this._note.hidden = this.going;
    if (!this.going) {
      say(this._says, 'Viewers see your camera once you start.');
      this._set.Viewers('–');
      say(this._sends, '');
      return;
    }
    let text = 'Connecting…';
    let shown = '';
    if (state === 'ready' && this._publication.registered) {
      const rests = this._publication.standby
        ? 'Nobody is watching. A picture now and then is kept for alerts.'
        : 'Paused, because nobody is watching. It resumes automatically.';
      text = watched ? 'On air.' : rests;
    } else if (state === 'waiting') {
      const seconds = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
      text = 'Connection lost. The camera stays on.';
      shown = ` Next attempt ${seconds ? `in ${seconds} s` : 'now'}.`;
    }
    sayAndShow(this._says, text, shown);
    this._set.Viewers(state === 'ready' ? count(this._publication.consumers) : '–');
    this._set.Sent(watched ? `${count(this._rate.perSecond)} fps` : '0 fps');
    this._set['Bit rate'](bits(watched ? this._bytes.perSecond * 8 : 0));
    const { bandwidth } = this._publication;
    if (bandwidth === null) this._set.Connection('–');
    else this._set.Connection(bandwidth * 8 > FAST ? `over ${bits(FAST)}` : bits(bandwidth * 8));
    say(this._sends, watched && state === 'ready' && this._plan ? this._explain() : '');
  }

  _refuse(title, text) {
    this._wrong.replaceChildren(make('h2', {}, title), make('p', {}, text));
    this._wrong.hidden = false;
  }
}
