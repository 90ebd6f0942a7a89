import { createAuthClient } from 'better-auth/react';
import type { TokenRequest } from 'relay-client';

export const authClient = createAuthClient();

/** Returns the session's token for relay, or `null` if nobody is signed in; throws without a network. */
export async function getToken(_request: TokenRequest): Promise<string | null> {
  const { data, error } = await authClient.getSession();
  if (error !== null) throw new Error(error.message ?? 'The application does not answer');
  return data?.session.token ?? null;
}
