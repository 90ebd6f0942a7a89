// Drives a StreamClient for the tests: each line of stdin is a frame to send, their end is the end.
'use strict';

const readline = require('node:readline');
const { StreamClient } = require('./stream_client.js');

const client = new StreamClient();

async function play() {
  try {
    await client.connect();
  } catch (error) {
    console.log('rejected:', error.message);
    return;
  }
  client.ws.addEventListener('message', (event) => console.log('received:', event.data));
  for await (const frame of readline.createInterface({ input: process.stdin })) {
    client.sendVideoFrame(frame);
  }
  client.disconnect();
}

play();
// By now the client has its token, and so its socket.
setImmediate(() => {
  client.ws.addEventListener('close', (event) => console.log('closed:', event.code, event.reason));
});
