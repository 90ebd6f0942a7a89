// Watches a stream with the installed package, on Node or Bun, until its stdin ends.
import { RelayClient } from 'relay-client';

// Node before 22 has no WebSocket of its own.
const { WebSocket } = globalThis.WebSocket ? globalThis : await import('ws');
const client = new RelayClient({ url: process.env.WS_URL, token: process.env.SESSION_TOKEN, WebSocket });
client.subscribe(process.argv[2], {
  onFrame: ({ seq, data }) => console.log(`frame ${seq}: ${new TextDecoder().decode(data)}`),
});
const { userId } = await client.connect();
console.log(`session: ${userId}`);
process.stdin.on('end', () => client.close()).resume();
