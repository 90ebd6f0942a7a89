/** Where the application and the relay are: set these before `npm start`. */
export const APP_URL = process.env.EXPO_PUBLIC_APP_URL ?? 'https://app.example.org';
export const RELAY_URL = process.env.EXPO_PUBLIC_RELAY_URL ?? 'wss://relay.example.org';
