import { expo } from '@better-auth/expo';
import { betterAuth } from 'better-auth';
import { Pool } from 'pg';

import { revokeSession } from './relay';

/** The application's accounts. relay reads the session table of the same database. */
export const auth = betterAuth({
  baseURL: process.env.BETTER_AUTH_URL ?? 'http://localhost:3001',
  database: new Pool({ connectionString: process.env.DATABASE_URL }),
  emailAndPassword: { enabled: true },
  plugins: [expo()],
  // The phone app of docs/examples/expo, also in Expo Go while it is being developed.
  trustedOrigins: ['relay-broadcast://', ...(process.env.EXPO_GO ? ['exp://'] : [])],
  databaseHooks: {
    // Sign-outs, bans and revocations all delete the session.
    session: { delete: { after: ({ id }) => revokeSession(id) } },
  },
});
