// A viewer and phone in the hands of a test: drive.js STREAM [TOKEN ...] gives SESSION_TOKEN first,
// then the others, and prints what happens; `-` is nobody signed in, `!` a refresh that fails.
// Lines of stdin: pause, resume, publish, close.
import readline from 'node:readline';

import { HASTY, WebSocket } from './stage.js';
import { RelayClient } from '../../../relay/web/client/relay-client.js';

const [streamId, ...more] = process.argv.slice(2);
const tokens = [process.env.SESSION_TOKEN, ...more];
const token = ({ reason, refused, expiresAt }) => {
  const next = tokens.length > 1 ? tokens.shift() : tokens[0];
  console.log('token:', JSON.stringify({ reason, refused, expiresAt }));
  if (next === '!') throw new Error('no network');
  return next === '-' ? null : next;
};
const client = new RelayClient({ url: process.env.WS_URL, token, WebSocket, ...HASTY });
client.on('state', ({ state, error }) => console.log(`${state}:`, error?.code ?? ''));
client.on('session', (session) => console.log('session:', JSON.stringify(session)));
client.on('notice', (notice) => console.log('notice:', JSON.stringify(notice)));
client.on('problem', ({ code }) => console.log('problem:', code));
client.subscribe(streamId, {
  onFrame: ({ seq, missed }) => console.log('frame:', JSON.stringify({ seq, missed })),
  onAlert: ({ message, replayed }) => console.log('alert:', JSON.stringify({ message, replayed })),
});
client.connect().catch(() => {});

const commands = {
  publish: () => client.publish({
    streamId,
    onRegistered: () => console.log('registered:'),
    onDemand: (consumers) => console.log('demand:', consumers),
  }),
};
readline.createInterface({ input: process.stdin })
  .on('line', (line) => (commands[line] ?? (() => client[line]()))())
  .on('close', () => client.close());
