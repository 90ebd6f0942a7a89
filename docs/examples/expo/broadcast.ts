import type { CameraView } from 'expo-camera';
import { type RefObject, useEffect, useState } from 'react';
import { AppState } from 'react-native';
import { type Alert, RelayClient, RelayError } from 'relay-client';

import { RELAY_URL } from './addresses';
import { getToken } from './session';

const FPS = 8;
/** Alerts that are kept for the list. */
const MAX_ALERTS = 20;
/** Pauses before the next plan, ms: while the connection is full, and while nobody watches. */
const NO_ROOM_PAUSE = 15;
const NO_VIEWER_PAUSE = 200;
/** And behind a picture that the camera did not take. */
const CAMERA_PAUSE = 1000;

export interface Broadcast {
  /** What to tell the person who holds the phone. */
  readonly text: string;
  readonly viewers: number;
  /** The newest first. */
  readonly alerts: readonly Alert[];
}

/** Broadcasts the camera for as long as the component is mounted and `streamId` stays the same. */
export function useBroadcast(camera: RefObject<CameraView | null>, streamId: string): Broadcast {
  const [text, setText] = useState('Connecting');
  const [viewers, setViewers] = useState(0);
  const [alerts, setAlerts] = useState<readonly Alert[]>([]);

  useEffect(() => {
    const client = new RelayClient({ url: RELAY_URL, token: getToken });
    const publication = client.publish({
      streamId,
      metadata: { codec: 'jpeg' },
      history: MAX_ALERTS,
      onDemand: setViewers,
      onAlert: (alert) => setAlerts((known) => [alert, ...known].slice(0, MAX_ALERTS)),
      onError: (error) => setText(error.message), // for instance: somebody else has this id
    });
    client.on('state', ({ state, error }) => {
      if (state === 'ready') setText('On air');
      if (state === 'waiting') setText('No connection, trying again');
      if (state === 'paused') setText('Paused');
      if (state === 'closed' && error instanceof RelayError && error.code !== 'CLOSED') {
        setText(error.code === 'NO_TOKEN' ? 'You are signed out' : error.message);
      }
    });
    client.connect().catch(() => {}); // `state` has reported it

    // A system suspends an app in the background, and its camera with it. `inactive` is only a
    // dialog above the app, or the switcher of apps.
    const background = AppState.addEventListener('change', (state) => {
      if (state === 'active') client.resume();
      if (state === 'background') client.pause();
    });

    let going = true;
    const film = async (): Promise<void> => {
      while (going) {
        const plan = publication.next({ fps: FPS });
        if (plan === null) { // nobody watches, or earlier pictures still need the link
          await sleep(publication.consumers > 0 ? NO_ROOM_PAUSE : NO_VIEWER_PAUSE);
          continue;
        }
        const picture = await takePicture(camera.current, plan.quality);
        if (picture !== undefined) publication.sendFrame(picture, plan);
        else await sleep(CAMERA_PAUSE);
      }
    };
    film().catch((error: Error) => setText(error.message));

    return () => {
      going = false;
      background.remove();
      client.close();
    };
  }, [camera, streamId]);

  return { text, viewers, alerts };
}

/** Returns a JPEG in base64; `undefined` while the camera is not ready, as after a pause. */
async function takePicture(camera: CameraView | null, quality: number): Promise<string | undefined> {
  try {
    const picture = await camera?.takePictureAsync({ base64: true, quality, shutterSound: false });
    return picture?.base64;
  } catch {
    return undefined;
  }
}

function sleep(time: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, time));
}
