// Better Auth itself, for the tests: each line of stdin is [what, ...arguments], and is answered with
// a line `done: {...}`. The database is the one that PGHOST and its like name.
'use strict';

const readline = require('node:readline');
const { pathToFileURL } = require('node:url');
const { Pool } = require('pg');

const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const snake = (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
const fields = (...names) => ({
  fields: process.argv[2] === 'snake' ? Object.fromEntries(names.map((name) => [name, snake(name)])) : {},
});

async function main() {
  const { betterAuth } = await load('better-auth');
  const { getMigrations } = await load('better-auth/db/migration');
  const { admin } = await load('better-auth/plugins/admin');
  const times = ['createdAt', 'updatedAt'];
  const auth = betterAuth({
    baseURL: 'http://localhost',
    secret: 'of no use to anybody, and only for the tests',
    database: new Pool(),
    emailAndPassword: { enabled: true },
    user: fields('emailVerified', ...times),
    session: fields('expiresAt', 'ipAddress', 'userAgent', 'userId', ...times),
    account: fields(
      'accountId', 'providerId', 'userId', 'accessToken', 'refreshToken', 'idToken',
      'accessTokenExpiresAt', 'refreshTokenExpiresAt', ...times),
    verification: fields('expiresAt', ...times),
    plugins: [admin({ schema: {
      user: fields('banReason', 'banExpires'),
      session: fields('impersonatedBy'),
    } })],
  });
  const cookies = {};

  async function keep(answer) {
    const { headers, response } = await answer;
    cookies[response.token] = new Headers({
      cookie: headers.getSetCookie().map((cookie) => cookie.split(';')[0]).join('; '),
    });
    return { token: response.token, userId: response.user.id };
  }

  const deeds = {
    migrate: async () => (await getMigrations(auth.options)).runMigrations(),
    signUp: (email) => keep(auth.api.signUpEmail({
      body: { email, name: email, password: 'correct horse battery' }, returnHeaders: true })),
    signIn: (email) => keep(auth.api.signInEmail({
      body: { email, password: 'correct horse battery' }, returnHeaders: true })),
    signOut: (token) => auth.api.signOut({ headers: cookies[token] }),
    revokeOthers: (token) => auth.api.revokeOtherSessions({ headers: cookies[token] }),
    ban: (token, userId) => auth.api.banUser({ body: { userId }, headers: cookies[token] }),
    remove: (token, userId) => auth.api.removeUser({ body: { userId }, headers: cookies[token] }),
  };
  console.log('ready:');
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [what, ...given] = JSON.parse(line);
    console.log('done:', JSON.stringify((await deeds[what](...given)) ?? {}));
  }
  process.exit(0);
}

main();
