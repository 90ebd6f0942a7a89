// The broadcast of https://github.com/websockets/ws#server-broadcast, to those who subscribed.
const { WebSocketServer } = require('ws');

const topics = new Map();
const server = new WebSocketServer({
  host: '127.0.0.1', port: Number(process.argv[2]), perMessageDeflate: false,
});
const members = (topic) => {
  if (!topics.has(topic)) topics.set(topic, new Set());
  return topics.get(topic);
};

server.on('connection', (ws) => {
  let audience = null;
  ws.on('message', (message, isBinary) => {
    if (audience !== null) {
      for (const viewer of audience) viewer.send(message, { binary: isBinary });
      return;
    }
    const { type, streamId } = JSON.parse(message);
    if (type === 'subscribe') {
      members(streamId).add(ws);
      ws.on('close', () => members(streamId).delete(ws));
    }
    if (type === 'register') audience = members(streamId);
    ws.send('{"type":"success"}');
  });
});
server.on('listening', () => console.log(`listening on ${server.address().port}`));
