// Asks for a stream too early, is told so, authenticates, and prints all that it receives.
'use strict';

const WebSocket = require('ws');

const ws = new WebSocket(`${process.env.WS_URL}/streams/subscribe`);
const send = (message) => ws.send(JSON.stringify(message));
const subscribe = () => send({
  type: 'subscribe',
  streamId: process.argv[2],
  clientType: 'dashboard',
  consumes: ['video-frame', 'alert'],
});

ws.onopen = subscribe;
ws.onmessage = (event) => {
  console.log('received:', event.data);
  const { code } = JSON.parse(event.data);
  if (code === 'AUTH_REQUIRED') send({ type: 'auth', token: process.env.SESSION_TOKEN });
  if (code === 'AUTHENTICATED') subscribe();
};
process.stdin.on('end', () => ws.close()).resume();
