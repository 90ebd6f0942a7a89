const TIMEOUT = 2000;

/**
 * Tells relay that a session has ended, so that its connections end at once, and not when relay looks
 * at the session table again. With several relays that do not serve together, tell each.
 *
 * Never throws: nobody is kept from signing out because relay is away.
 */
export async function revokeSession(sessionId: string): Promise<void> {
  const { RELAY_HTTP_URL: url, RELAY_REVOKE_TOKEN: token } = process.env;
  if (url === undefined || token === undefined) return;
  try {
    const answer = await fetch(`${url}/revocations`, {
      method: 'POST',
      headers: { authorization: `Bearer ${token}` },
      body: JSON.stringify({ sessionId }),
      signal: AbortSignal.timeout(TIMEOUT),
    });
    if (!answer.ok) console.error(`relay answered ${answer.status} to a revocation`);
  } catch (error) {
    console.error('relay was not told of a sign-out:', error);
  }
}
