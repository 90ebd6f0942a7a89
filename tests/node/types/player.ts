// What the types of the player allow, and what they do not: compiled, not run.
import { RelayPlayer } from 'relay-client/player';
import { RelayClient } from 'relay-client';

RelayPlayer.getToken = async ({ reason }) => (reason === 'refused' ? null : 'token');

const player = document.createElement('relay-player');
player.client = new RelayClient({ url: 'wss://relay.example.org/relay/', token: 't' });
player.stream = 'front-door';
player.quality = 'auto';
player.addEventListener('alert', ({ detail: { severity, alertId } }) => console.log(severity, alertId));
player.addEventListener('statechange', ({ detail: { state, error } }) => console.log(state === 'live', error?.code));
player.addEventListener('picturesize', ({ detail }) => console.log(detail.width));
player.addEventListener('click', () => player.pause());
export const fps: number = player.figures.fps;

// @ts-expect-error: the token comes from a function
player.getToken = 'token';
// @ts-expect-error: only the player says so
player.state = 'live';
// @ts-expect-error: there is no such state
export const wrong: boolean = player.state === 'watching';
