// The StreamClient that mobile apps are written with, as the guide to secure mobile authentication
// has it: without its types, and with Node's `ws` and a variable of the environment in the place
// of React Native's WebSocket and Expo's secure store.
'use strict';

const WebSocket = require('ws');

class AuthService {
  static async getToken() {
    return process.env.SESSION_TOKEN ?? null;
  }
}

class StreamClient {
  ws = null;
  authenticated = false;
  WS_URL = process.env.WS_URL;

  async connect() {
    return new Promise(async (resolve, reject) => {
      const token = await AuthService.getToken();

      if (!token) {
        reject(new Error('Not logged in'));
        return;
      }

      this.ws = new WebSocket(`${this.WS_URL}/streams/register`);

      this.ws.onopen = () => {
        console.log('Connected - sending authentication...');

        this.ws.send(JSON.stringify({
          type: 'auth',
          token: token,
        }));
      };

      this.ws.onmessage = (event) => {
        const message = JSON.parse(event.data);

        if (message.type === 'success' && !this.authenticated) {
          console.log('Authenticated successfully');
          this.authenticated = true;
          resolve();

          this.register();
        } else if (message.type === 'error' && !this.authenticated) {
          console.error('Auth failed:', message.message);
          reject(new Error(message.message));
          this.ws?.close();
        } else {
          this.handleMessage(message);
        }
      };

      this.ws.onerror = (error) => {
        console.error('WebSocket error:', error);
        reject(error);
      };

      this.ws.onclose = () => {
        console.log('WebSocket closed');
        this.authenticated = false;
      };
    });
  }

  register() {
    if (!this.ws || !this.authenticated) return;

    this.ws.send(JSON.stringify({
      type: 'register',
      streamId: `mobile-${Date.now()}`,
      clientType: 'mobile',
      produces: ['video-frame'],
      consumes: ['alert'],
    }));
  }

  sendVideoFrame(frameData) {
    if (!this.ws || !this.authenticated) {
      console.error('Cannot send frame - not authenticated');
      return;
    }

    this.ws.send(JSON.stringify({
      type: 'video-frame',
      data: frameData,
      timestamp: Date.now(),
    }));
  }

  handleMessage(message) {
    switch (message.type) {
      case 'alert':
        console.log('Security alert:', message.message);
        break;

      case 'status':
        console.log('Stream status:', message.status);
        break;

      case 'error':
        console.error('Server error:', message.message);
        break;
    }
  }

  disconnect() {
    this.ws?.close();
    this.authenticated = false;
  }
}

module.exports = { StreamClient };
