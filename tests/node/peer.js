// A phone or a viewer in either encoding: peer.js ROLE ENCODING STREAM. A phone sends each line of
// stdin, base64, as a frame; a viewer prints the seq and the SHA-256 of each that it receives.
'use strict';

const { createHash } = require('node:crypto');
const readline = require('node:readline');
const { decode, encode } = require('@msgpack/msgpack');
const WebSocket = require('ws');

const [role, encoding, streamId] = process.argv.slice(2);
const binary = encoding === 'msgpack';
const path = role === 'phone' ? 'register' : 'subscribe';
const ws = new WebSocket(
  `${process.env.WS_URL}/streams/${path}`,
  binary ? ['relay.v1.msgpack'] : [],
);
const send = (message) => ws.send(binary ? encode(message) : JSON.stringify(message));
const bytes = (data) => (binary ? data : Buffer.from(data, 'base64'));

async function sendFrames() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    send({ type: 'video-frame', data: binary ? Buffer.from(line, 'base64') : line });
  }
  ws.close();
}

const next = {
  AUTHENTICATED: () => send(role === 'phone'
    ? { type: 'register', streamId }
    : { type: 'subscribe', streamId, consumes: ['video-frame'], policy: 'lossless' }),
  REGISTERED: () => { console.log('ready:'); sendFrames(); },
  SUBSCRIBED: () => { console.log('ready:'); process.stdin.on('end', () => ws.close()).resume(); },
};

ws.onopen = () => send({ type: 'auth', token: process.env.SESSION_TOKEN });
ws.onmessage = ({ data }) => {
  const message = binary ? decode(data) : JSON.parse(data);
  if (message.type === 'success') next[message.code]();
  if (message.type === 'error') console.log('error:', message.code, message.message);
  if (message.type === 'video-frame') {
    console.log('frame:', message.seq, createHash('sha256').update(bytes(message.data)).digest('hex'));
  }
};
