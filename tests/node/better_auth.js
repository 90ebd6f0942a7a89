// A real Better Auth with an account: prints what it gives to a client, then serves its keys.
// SESSION_TOKEN is its secret, as the other scripts are handed their token.
const { createServer } = require("node:http");
const { pathToFileURL } = require("node:url");

const load = (name) => import(pathToFileURL(require.resolve(name)).href);

async function main() {
  const [{ betterAuth }, { memoryAdapter }, { bearer, jwt }, { toNodeHandler }] = await Promise.all(
    ["better-auth", "better-auth/adapters/memory", "better-auth/plugins", "better-auth/node"].map(load),
  );
  const server = createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const baseURL = `http://127.0.0.1:${server.address().port}`;
  const auth = betterAuth({
    baseURL,
    secret: process.env.SESSION_TOKEN,
    database: memoryAdapter({ user: [], session: [], account: [], verification: [], jwks: [] }),
    emailAndPassword: { enabled: true },
    plugins: [bearer(), jwt()],
    telemetry: { enabled: false },
    logger: { disabled: true },
  });
  server.on("request", toNodeHandler(auth));
  const signedUp = await auth.api.signUpEmail({
    body: { name: "Ann", email: "ann@example.org", password: "correct horse battery" },
    asResponse: true,
  });
  const { token, user } = await signedUp.json();
  const cookie = signedUp.headers.get("set-cookie").match(/session_token=([^;]+)/)[1];
  const bearerToken = signedUp.headers.get("set-auth-token");
  const headers = { authorization: `Bearer ${token}` };
  const made = await (await fetch(`${baseURL}/api/auth/token`, { headers })).json();
  const given = { baseURL, token, userId: user.id, cookie, bearer: bearerToken, jwt: made.token };
  console.log(`given: ${JSON.stringify(given)}`);
  process.stdin.on("end", () => process.exit(0)).resume();
}

main();
