import { useState } from 'react';
import { Button, StyleSheet, Text, TextInput, View } from 'react-native';

import { auth } from './session';

/** Asks for an e-mail address and a password. `App` shows what follows when there is a session. */
export function SignIn() {
  const [email, setEmail] = useState('');
  const [password, setPassword] = useState('');
  const [problem, setProblem] = useState('');
  const [busy, setBusy] = useState(false);

  const signIn = async (): Promise<void> => {
    setBusy(true);
    try {
      const { error } = await auth.signIn.email({ email: email.trim(), password });
      setProblem(error === null ? '' : (error.message ?? 'The application could not sign you in'));
    } catch { // there is no network
      setProblem('The application does not answer');
    }
    setBusy(false);
  };

  return (
    <View style={styles.form}>
      <TextInput
        style={styles.field}
        accessibilityLabel="E-mail address"
        placeholder="E-mail address"
        autoCapitalize="none"
        autoComplete="email"
        keyboardType="email-address"
        value={email}
        onChangeText={setEmail}
      />
      <TextInput
        style={styles.field}
        accessibilityLabel="Password"
        placeholder="Password"
        autoComplete="current-password"
        secureTextEntry
        value={password}
        onChangeText={setPassword}
        onSubmitEditing={() => void signIn()}
      />
      <Text accessibilityLiveRegion="polite">{problem}</Text>
      <Button title="Sign in" disabled={busy || email === '' || password === ''} onPress={() => void signIn()} />
    </View>
  );
}

const styles = StyleSheet.create({
  form: { flex: 1, justifyContent: 'center', padding: 24, gap: 12 },
  field: { borderWidth: StyleSheet.hairlineWidth, borderRadius: 8, padding: 12 },
});
