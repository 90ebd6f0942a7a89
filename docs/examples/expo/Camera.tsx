import { CameraView, useCameraPermissions } from 'expo-camera';
import { useKeepAwake } from 'expo-keep-awake';
import { useRef, useState } from 'react';
import { Button, FlatList, StyleSheet, Text, View } from 'react-native';

import { useBroadcast } from './broadcast';
import { auth } from './session';

/** The width that is looked for: larger pictures cost the link more than viewers see. */
const WIDTH = 1280;

/** Shows and broadcasts the camera, with the alerts that services raise about its stream. */
export function Camera({ streamId }: { streamId: string }) {
  const [permission, askForPermission] = useCameraPermissions();
  if (permission === null) return null; // the system has not answered yet
  if (!permission.granted) {
    return (
      <View style={styles.question}>
        <Text>relay needs the camera to broadcast it.</Text>
        <Button title="Allow the camera" onPress={() => void askForPermission()} />
      </View>
    );
  }
  return <OnAir streamId={streamId} />;
}

function OnAir({ streamId }: { streamId: string }) {
  useKeepAwake(); // a phone that locks itself stops its camera
  const camera = useRef<CameraView>(null);
  const [size, setSize] = useState<string>();
  const [problem, setProblem] = useState('');
  const { text, viewers, alerts } = useBroadcast(camera, streamId);

  const chooseSize = async (): Promise<void> => {
    const sizes = (await camera.current?.getAvailablePictureSizesAsync()) ?? [];
    const chosen = nearest(sizes, WIDTH);
    if (chosen !== undefined) setSize(chosen);
  };

  const signOut = async (): Promise<void> => {
    try {
      await auth.signOut();
    } catch { // there is no network
      setProblem('The application does not answer. ');
    }
  };

  return (
    <View style={styles.all}>
      <CameraView
        ref={camera}
        style={styles.camera}
        facing="back"
        animateShutter={false}
        {...(size === undefined ? {} : { pictureSize: size })}
        onCameraReady={() => void chooseSize()}
      />
      <View style={styles.state}>
        <Text accessibilityLiveRegion="polite">
          {problem}{streamId}: {text}. {viewers === 0 ? 'Nobody watches' : `Viewers: ${viewers}`}
        </Text>
        <Button title="Sign out" onPress={() => void signOut()} />
      </View>
      <FlatList
        style={styles.alerts}
        data={alerts}
        keyExtractor={({ alertId }) => String(alertId)}
        renderItem={({ item }) => (
          <Text style={styles.alert}>
            {new Date(item.timestamp).toLocaleTimeString()} {item.severity}: {item.message}
          </Text>
        )}
      />
    </View>
  );
}

/** Returns the size, such as `1280x720`, whose longer side is nearest to a width. */
function nearest(sizes: readonly string[], width: number): string | undefined {
  const away = (size: string) => Math.abs(Math.max(...size.split('x').map(Number)) - width);
  return sizes
    .filter((size) => /^\d+x\d+$/.test(size)) // iOS also lists names, such as `Photo`
    .reduce<string | undefined>((best, size) => (best === undefined || away(size) < away(best) ? size : best), undefined);
}

const styles = StyleSheet.create({
  all: { flex: 1 },
  question: { flex: 1, justifyContent: 'center', alignItems: 'center', gap: 12 },
  camera: { flex: 3 },
  state: { flexDirection: 'row', justifyContent: 'space-between', alignItems: 'center', padding: 8 },
  alerts: { flex: 1, paddingHorizontal: 8 },
  alert: { paddingVertical: 4 },
});
