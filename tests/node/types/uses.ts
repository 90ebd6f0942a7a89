// What the types allow, and what they do not: compiled, not run.
import { judgeEnding, RelayClient, RelayError } from 'relay-client';
import type { Alert, ClientState, Frame, Publication, Session, StreamEntry, TokenRequest } from 'relay-client';

declare function refresh(request: TokenRequest): Promise<string | null>;
declare const socketClass: typeof WebSocket;

const client = new RelayClient({
  url: 'wss://relay.example.org',
  token: async (request) => (request.reason === 'refused' ? refresh(request) : 'stored'),
  encoding: 'auto',
  WebSocket: socketClass,
  backoff: { first: 100 },
});
export const session: Promise<Session> = client.connect();
export const state: ClientState = client.state;

const stop: () => void = client.on('state', ({ state, error, retryAt }) => {
  if (state === 'closed' && error instanceof RelayError && error.code === 'SESSION_REVOKED') stop();
  const when: number | null = retryAt;
  void when;
});
client.on('session', ({ userId }) => userId?.toUpperCase());

const subscription = client.subscribe('front-door', {
  onFrame: async (frame: Frame) => { await createImageBitmap(new Blob([frame.data])); },
  onAlert: (alert: Alert) => alert.severity === 'critical' && alert.replayed,
  policy: 'lossless',
  maxFps: 5,
  history: 10,
});
subscription.update({ maxFps: null, onFrame: null });
subscription.update({ maxWidth: 320 * devicePixelRatio, layer: null });

const publication: Publication = client.publish({ onDemand: (consumers: number) => consumers > 0 });
export const sent: boolean = publication.sendFrame(new Uint8Array(3), { keyframe: true });
export const key: boolean = publication.sendFrame(new Uint8Array(3), { keyframe: !publication.needsKeyframe, discardable: true });
const plan = publication.next({ fps: 15, width: 1280 });
if (plan !== null) publication.sendFrame(new Uint8Array(plan.width), plan);
export const quality: number | undefined = publication.next()?.quality;
export const layered = new RelayClient({ url: 'wss://relay.example.org', token: 't' }).publish({
  layers: [{ id: 'l', width: 320 }, { id: 'h', width: 1280 }],
  onDemand: (_: number, layers: readonly string[]) => layers.includes('h'),
});
const wanted = layered.next({ fps: 15, width: 1280 });
if (wanted !== null) {
  const { pictures, timestamp } = wanted;
  for (const { layer, width } of pictures) layered.sendFrame(new Uint8Array(width), { layer, timestamp });
}
export const widths: (number | undefined)[] | undefined = layered.next()?.pictures.map(({ width }) => width);
export const carried: number | null = publication.hasRoom ? publication.bandwidth : null;
client.watchStreams((streams: StreamEntry[]) => streams.map(({ streamId }) => streamId));
export const accepted: Promise<{ alertId: number }> = client.alert({ streamId: 's', message: 'm', severity: 'high' });
export const verdict: boolean = judgeEnding(4012, '', { code: 'SERVER_RESTARTING', retryAfter: 5 }).again;

// @ts-expect-error: a client needs a token
new RelayClient({ url: 'wss://relay.example.org' });
// @ts-expect-error: there is no such event
client.on('frame', () => {});
// @ts-expect-error: there is no such policy
client.subscribe('s', { policy: 'oldest' });
// @ts-expect-error: a frame is bytes or base64
publication.sendFrame(5);
// @ts-expect-error: a layer has an id
client.publish({ layers: [{ width: 320 }] });
// @ts-expect-error: there is no such severity
client.alert({ streamId: 's', message: 'm', severity: 'urgent' });
// @ts-expect-error: only the relay says so
client.state = 'ready';
