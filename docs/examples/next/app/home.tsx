'use client';

import { useState } from 'react';

import { authClient } from '../lib/auth-client';
import { Cameras } from './cameras';

const UNANSWERED = 'The application does not answer';

/** The cameras of the person who is signed in; a form for everybody else. */
export function Home({ relayUrl }: { relayUrl: string }) {
  const { data: session, isPending } = authClient.useSession();
  const [problem, setProblem] = useState('');

  const signOut = async (): Promise<void> => {
    const done = await authClient.signOut().catch(() => null);
    setProblem(done === null || done.error !== null ? UNANSWERED : '');
  };

  if (isPending) return <p>Loading</p>;
  if (session === null) return <SignIn />;
  return (
    <main>
      <p>
        {session.user.email} <button onClick={() => void signOut()}>Sign out</button> {problem}
      </p>
      {/* Another person gets another client. */}
      <Cameras key={session.session.id} relayUrl={relayUrl} />
    </main>
  );
}

function SignIn() {
  const [problem, setProblem] = useState('');

  const submit = async (form: FormData): Promise<void> => {
    const email = String(form.get('email'));
    const password = String(form.get('password'));
    try {
      const { error } =
        form.get('intent') === 'sign-up'
          ? await authClient.signUp.email({ name: email, email, password })
          : await authClient.signIn.email({ email, password });
      setProblem(error === null ? '' : (error.message ?? UNANSWERED));
    } catch { // there is no network
      setProblem(UNANSWERED);
    }
  };

  return (
    <form action={submit}>
      <p>
        <label>
          E-mail address <input name="email" type="email" autoComplete="email" required />
        </label>
      </p>
      <p>
        <label>
          Password <input name="password" type="password" minLength={8} autoComplete="current-password" required />
        </label>
      </p>
      <button name="intent" value="sign-in">Sign in</button>{' '}
      <button name="intent" value="sign-up">Create an account</button>
      <p role="status">{problem}</p>
    </form>
  );
}
