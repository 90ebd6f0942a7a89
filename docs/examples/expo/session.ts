import { expoClient } from '@better-auth/expo/client';
import { createAuthClient } from 'better-auth/react';
import * as SecureStore from 'expo-secure-store';
import type { TokenRequest } from 'relay-client';

import { APP_URL } from './addresses';

/** Better Auth's own client. It keeps the session's cookie in the secure store, and nowhere else. */
export const auth = createAuthClient({
  baseURL: APP_URL,
  plugins: [expoClient({ scheme: 'relay-broadcast', storagePrefix: 'relay', storage: SecureStore })],
});

/**
 * Returns the session's token for relay, or `null` if nobody is signed in.
 *
 * Better Auth extends the session when it is read, so a token that relay refused is read anew.
 * Throws without a network: the client then tries again later, and nobody is signed out.
 */
export async function getToken(_request: TokenRequest): Promise<string | null> {
  const { data, error } = await auth.getSession();
  if (error !== null) throw new Error(error.message ?? 'The application does not answer');
  return data?.session.token ?? null;
}
