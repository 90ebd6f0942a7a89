// Better Auth with its HTTP server and with sessions in secondaryStorage, for the tests: each line of
// stdin is [what, ...arguments], and is answered with a line `done: {...}`. Arguments: the package, and
// options as JSON. With `rows` there are rows in the database of PGHOST and its like, too.
'use strict';

const { createHash } = require('node:crypto');
const { createServer } = require('node:http');
const readline = require('node:readline');
const { pathToFileURL } = require('node:url');

const [name, given] = process.argv.slice(2);
const options = JSON.parse(given);
const load = (part) => import(pathToFileURL(require.resolve(`${name}${part}`)).href);

// Whom to tell that a token has ended, as docs/operations.md says.
let relay = null;

async function tellRelay(token) {
  if (relay === null) return;
  const tokenSha256 = createHash('sha256').update(token).digest('hex');
  await fetch(`${relay.url}/revocations`, {
    method: 'POST',
    headers: { authorization: `Bearer ${relay.token}` },
    body: JSON.stringify({ tokenSha256 }),
  });
}

async function openStorage() {
  if (options.redis === undefined) {
    const kept = new Map();
    return {
      get: (key) => kept.get(key) ?? null,
      set: (key, value) => { kept.set(key, value); },
      delete: (key) => { kept.delete(key); },
    };
  }
  const client = require('redis').createClient({ socket: { path: options.redis } });
  await client.connect();
  return {
    get: (key) => client.get(key),
    set: (key, value, ttl) => client.set(key, value, ttl ? { EX: ttl } : {}),
    delete: async (key) => { await client.del(key); },
  };
}

async function main() {
  const [{ betterAuth }, { memoryAdapter }, { bearer, admin }, { toNodeHandler }, { getMigrations }] =
    await Promise.all(['', '/adapters/memory', '/plugins', '/node', '/db/migration'].map(load));
  const storage = await openStorage();
  const server = createServer();
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const baseURL = `http://127.0.0.1:${server.address().port}`;
  const database = options.rows
    ? new (require('pg').Pool)()
    : memoryAdapter({ user: [], session: [], account: [], verification: [] });
  const auth = betterAuth({
    baseURL,
    secret: 'of no use to anybody, and only for the tests',
    database,
    secondaryStorage: {
      ...storage,
      delete: async (key) => {
        await storage.delete(key);
        await tellRelay(key);
      },
    },
    emailAndPassword: { enabled: true },
    plugins: [admin(), ...(options.bearer === false ? [] : [bearer(options.bearer)])],
    session: options.session,
    rateLimit: options.rateLimit ?? { enabled: false },
    telemetry: { enabled: false },
    logger: { disabled: true },
  });
  const asked = [];
  const handle = toNodeHandler(auth);
  server.on('request', (request, response) => {
    asked.push(request.url);
    handle(request, response);
  });
  const headersOf = (token) => new Headers({ authorization: `Bearer ${token}` });
  const stored = async (token) => JSON.parse(await storage.get(token)) ?? {};

  async function keep(answer) {
    const { headers, response } = await answer;
    const { token, user } = response;
    const session = await stored(token);
    return { token, userId: user.id, sessionId: session.session?.id, signed: headers.get('set-auth-token') };
  }

  const password = 'correct horse battery';
  const deeds = {
    migrate: async () => (await getMigrations(auth.options)).runMigrations(),
    signUp: (email) => keep(auth.api.signUpEmail({ body: { email, name: email, password }, returnHeaders: true })),
    signIn: (email) => keep(auth.api.signInEmail({ body: { email, password }, returnHeaders: true })),
    signOut: (token) => auth.api.signOut({ headers: headersOf(token) }),
    use: (token) => auth.api.getSession({ headers: headersOf(token) }),
    revokeAll: (token) => auth.api.revokeSessions({ headers: headersOf(token) }),
    tell: (url, token) => { relay = { url, token }; },
    stored,
    asked: () => ({ asked }),
  };
  console.log('ready:', JSON.stringify({ url: `${baseURL}/api/auth/get-session` }));
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [what, ...rest] = JSON.parse(line);
    console.log('done:', JSON.stringify((await deeds[what](...rest)) ?? {}));
  }
  process.exit(0);
}

main();
