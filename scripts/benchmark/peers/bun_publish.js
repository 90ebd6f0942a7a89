// Bun's native publish, as https://bun.sh/docs/api/websockets has it.
const server = Bun.serve({
  hostname: '127.0.0.1',
  port: Number(process.argv[2]),
  fetch(request, server) {
    return server.upgrade(request, { data: { topic: null } }) ? undefined : new Response('no');
  },
  websocket: {
    perMessageDeflate: false,
    message(ws, message) {
      if (ws.data.topic !== null) {
        ws.publish(ws.data.topic, message);
        return;
      }
      const { type, streamId } = JSON.parse(message);
      if (type === 'subscribe') ws.subscribe(streamId);
      if (type === 'register') ws.data.topic = streamId;
      ws.send('{"type":"success"}');
    },
  },
});
console.log(`listening on ${server.port}`);
