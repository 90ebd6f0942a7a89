import { RelayClient } from 'relay-client';

const { url, token, stream } = JSON.parse(decodeURIComponent(location.hash.slice(1)));
const shown = document.querySelector('output');
const client = new RelayClient({ url, token });
client.on('state', ({ error }) => { if (error) shown.textContent = error.message; });
client.subscribe(stream, {
  onFrame: ({ seq, data }) => { shown.textContent = `frame ${seq}: ${new TextDecoder().decode(data)}`; },
});
await client.connect();
