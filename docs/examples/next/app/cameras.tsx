'use client';

import { useEffect, useRef, useState } from 'react';
import { type Alert, RelayClient, type StreamEntry } from 'relay-client';

import { getToken } from '../lib/auth-client';

/** All live streams that the user may watch, each with its picture and its last alert. */
export function Cameras({ relayUrl }: { relayUrl: string }) {
  const [client, setClient] = useState<RelayClient | null>(null);
  const [state, setState] = useState('Connecting');
  const [streams, setStreams] = useState<readonly StreamEntry[]>([]);

  useEffect(() => {
    const created = new RelayClient({ url: relayUrl, token: getToken });
    created.on('state', ({ state: now, error }) => setState(error === null ? now : `${now}: ${error.message}`));
    created.watchStreams(setStreams);
    created.connect().catch(() => {}); // `state` has reported it
    setClient(created);
    return () => created.close();
  }, [relayUrl]);

  return (
    <>
      <p role="status">{state}</p>
      {streams.length === 0 && <p>No camera is on air.</p>}
      {client !== null && streams.map(({ streamId }) => <Camera key={streamId} client={client} streamId={streamId} />)}
    </>
  );
}

function Camera({ client, streamId }: { client: RelayClient; streamId: string }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const [alert, setAlert] = useState<Alert>();

  useEffect(() => {
    const { clientWidth = 640 } = canvas.current ?? {};
    const subscription = client.subscribe(streamId, {
      maxWidth: Math.ceil(clientWidth * devicePixelRatio),
      history: 1,
      onAlert: setAlert,
      onError: () => {}, // the stream ended, or is no longer shown to this user: the list says so
      // The next frame comes when this one has been drawn.
      onFrame: async ({ data }) => {
        const picture = await createImageBitmap(new Blob([data]));
        const screen = canvas.current;
        if (screen !== null) {
          screen.width = picture.width;
          screen.height = picture.height;
          screen.getContext('2d')?.drawImage(picture, 0, 0);
        }
        picture.close();
      },
    });
    return () => subscription.unsubscribe();
  }, [client, streamId]);

  return (
    <figure style={{ margin: '1rem 0' }}>
      <canvas ref={canvas} role="img" aria-label={`Camera ${streamId}`} style={{ width: '100%' }} />
      <figcaption>
        {streamId}
        {alert !== undefined && ` – ${alert.severity}: ${alert.message}`}
      </figcaption>
    </figure>
  );
}
