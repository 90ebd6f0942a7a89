// A TCP link to the relay that dies where it is told to: a loopback proxy that counts bytes.
import net from 'node:net';

/**
 * Opens a link. `planOf(n)` says what becomes of the n-th connection, from 0: `{ way, at, how }`
 * cuts it when `at` bytes went `up` (to the relay) or `down`, by
 *   reset    both sides get a TCP reset
 *   end      both sides get an end of file
 *   silence  nothing goes through any more, in either direction, and nobody is told
 *   deaf     nothing goes through in this one direction any more
 * and without a plan it lives. While `link.away` is set, nobody gets through at all. `rates` are the
 * bytes a second that go `up` and `down`; without one, as many as there are.
 */
export async function openLink(target, planOf = () => null, rates = {}) {
  const link = { away: false, connections: 0, cuts: 0, bytes: { up: 0, down: 0 }, cut: null };
  const open = new Set();
  const server = net.createServer((near) => {
    if (link.away) {
      near.on('error', () => {});
      near.resetAndDestroy();
      return;
    }
    const plan = planOf(link.connections);
    link.connections += 1;
    const far = net.connect({ host: target.hostname, port: target.port });
    for (const socket of [near, far]) {
      socket.setNoDelay(true);
      open.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => open.delete(socket));
    }
    const state = { deaf: new Set() };
    const cut = (how) => {
      link.cuts += 1;
      link.cut?.();
      if (how === 'reset') for (const socket of [near, far]) socket.resetAndDestroy();
      if (how === 'end') for (const socket of [near, far]) socket.end();
      if (how === 'silence') state.deaf = new Set(['up', 'down']);
      if (how === 'deaf') state.deaf.add(plan.way);
    };
    link.break = cut;
    forward('up', near, far);
    forward('down', far, near);

    function forward(way, from, to) {
      let passed = 0;
      const trickle = (rest) => {
        if (to.destroyed || state.deaf.has(way)) return;
        const size = Math.ceil(rates[way] / 50);
        to.write(rest.subarray(0, size));
        link.bytes[way] += Math.min(size, rest.length);
        setTimeout(() => (rest.length > size ? trickle(rest.subarray(size)) : from.resume()), 20);
      };
      from.on('data', (chunk) => {
        if (state.deaf.has(way)) return;
        if (rates[way]) {
          from.pause();
          trickle(chunk);
          return;
        }
        const rest = plan?.way === way && !plan.done ? plan.at - passed : Infinity;
        passed += chunk.length;
        link.bytes[way] += chunk.length;
        if (chunk.length < rest) {
          to.write(chunk);
          return;
        }
        plan.done = true;
        to.write(chunk.subarray(0, rest), () => cut(plan.how));
        if (plan.how !== 'deaf') state.deaf.add(way);
      });
      // What went dead tells nobody, not even that somebody left.
      from.on('close', () => { if (!state.deaf.has(way)) to.destroy(); });
    }
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  link.url = `ws://127.0.0.1:${server.address().port}`;
  link.close = () => {
    server.close();
    for (const socket of open) socket.destroy();
  };
  return link;
}
