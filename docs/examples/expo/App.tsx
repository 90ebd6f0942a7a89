import { StatusBar } from 'expo-status-bar';
import { ActivityIndicator, StyleSheet, View } from 'react-native';

import { Camera } from './Camera';
import { auth } from './session';
import { SignIn } from './SignIn';

export default function App() {
  const { data: session, isPending } = auth.useSession();
  return (
    <View style={styles.app}>
      <StatusBar style="auto" />
      {session !== null ? (
        <Camera streamId={`camera-${session.user.id}`} />
      ) : isPending ? (
        <ActivityIndicator style={styles.app} accessibilityLabel="Loading" />
      ) : (
        <SignIn />
      )}
    </View>
  );
}

const styles = StyleSheet.create({ app: { flex: 1, paddingTop: 48 } });
