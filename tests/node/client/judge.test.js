// What each ending means, also where the close code or the error was not seen.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { judgeEnding } from '../../../relay/web/client/relay-client.js';

const comeBack = { again: true, token: 'connect', after: 0 };
const stop = { again: false, token: 'connect', after: 0 };

test('close codes decide as the table of the protocol says', () => {
  for (const code of [1000, 1001, 1005, 1006, 1011, 1012, 4002, 4003, 4004, 4008, 4012, 4013, 4499, undefined]) {
    assert.deepEqual(judgeEnding(code, '', null), comeBack, `${code}`);
  }
  for (const code of [1002, 1003, 1007, 1009, 4500, 4501, 4502, 4999]) {
    assert.deepEqual(judgeEnding(code, '', null), stop, `${code}`);
  }
  assert.deepEqual(judgeEnding(1008, 'policy', null), stop);
  assert.deepEqual(judgeEnding(1008, 'Authentication failed', null), { ...comeBack, token: 'refused' });
  assert.deepEqual(judgeEnding(4001, 'session expired', null), { ...comeBack, token: 'expired' });
});

test('without a close code the error before it decides', () => {
  const said = (code, more = {}) => judgeEnding(undefined, undefined, { code, ...more });
  for (const code of ['SESSION_REVOKED', 'SUPERSEDED', 'MESSAGE_TOO_BIG']) assert.deepEqual(said(code), stop, code);
  for (const code of ['AUTH_TIMEOUT', 'TOO_SLOW', 'IDLE_TIMEOUT', 'INTERNAL_ERROR', 'SESSION_EXPIRING', 'NEW']) {
    assert.deepEqual(said(code), comeBack, code);
  }
  assert.deepEqual(said('AUTH_FAILED'), { ...comeBack, token: 'refused' });
  assert.deepEqual(said('SESSION_EXPIRED'), { ...comeBack, token: 'expired' });
  assert.deepEqual(said('MESSAGE_TOO_BIG', { retryAfter: 2000 }), { ...comeBack, after: 2000 });
});

test('retryAfter of the error or notice is kept', () => {
  for (const [close, code] of [[4012, 'SERVER_RESTARTING'], [4013, 'AUTH_UNAVAILABLE'], [4008, 'RATE_LIMITED']]) {
    assert.deepEqual(judgeEnding(close, '', { code, retryAfter: 1234 }), { ...comeBack, after: 1234 });
    assert.deepEqual(judgeEnding(1006, '', { code, retryAfter: 1234 }), { ...comeBack, after: 1234 });
  }
});

test('a verification that was not possible is no refusal', () => {
  assert.deepEqual(judgeEnding(4013, 'try again later', { code: 'AUTH_UNAVAILABLE', retryAfter: 5 }), { ...comeBack, after: 5 });
});
