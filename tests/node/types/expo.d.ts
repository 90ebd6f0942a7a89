// What docs/clients.md uses of Expo and React Native, as their own types have it. The packages
// themselves are hundreds of megabytes, of which this is all that would be looked at.
declare module 'expo-secure-store' {
  export function setItemAsync(key: string, value: string): Promise<void>;
  export function getItemAsync(key: string): Promise<string | null>;
  export function deleteItemAsync(key: string): Promise<void>;
}
declare module 'expo-camera' {
  export interface CameraPictureOptions {
    base64?: boolean;
    quality?: number;
    shutterSound?: boolean;
  }
  export interface CameraCapturedPicture {
    uri: string;
    width: number;
    height: number;
    base64?: string;
  }
  export class CameraView {
    takePictureAsync(options?: CameraPictureOptions): Promise<CameraCapturedPicture>;
  }
}
declare module 'react-native' {
  export type AppStateStatus = 'active' | 'background' | 'inactive' | 'unknown' | 'extension';
  export const AppState: {
    addEventListener(type: 'change', listener: (state: AppStateStatus) => void): { remove(): void };
  };
}
