import { connection } from 'next/server';

import { Home } from './home';

export default async function Page() {
  await connection(); // the relay's address is read for each request, not when the app is built
  return <Home relayUrl={process.env.RELAY_URL ?? 'ws://localhost:3000'} />;
}
