// The client's own MessagePack and base64, against those of others.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { test } from 'node:test';

import {
  decodeBase64, decodeMessagePack, encodeBase64, encodeMessagePack,
} from '../../../relay/web/client/relay-client.js';

// Node's own way to the packages of NODE_PATH, which `import` does not look at.
const { decode, encode } = createRequire(import.meta.url)('@msgpack/msgpack');

let seed = Number(process.env.SEED ?? 1);
/** Random numbers that are the same each time. */
function random() {
  seed = (seed * 48271) % 2147483647;
  return seed / 2147483647;
}
const upTo = (most) => Math.floor(random() * (most + 1));
const pick = (...choices) => choices[upTo(choices.length - 1)]();

const EDGES = [0, 1, 5, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x10000, 0xffffffff, 0x100000000, 2 ** 53 - 1];
const NUMBERS = [...EDGES, ...EDGES.map((each) => -each), -0x20, -0x21, -0x81, -0x8001, -0x80000001, 0.5,
  -1.25, 1e300, 5e-324, 2 ** 60];
const TEXTS = ['', 'a', 'ä', '€', '𝄞', '\u0000', '￿', 'x'.repeat(31), 'x'.repeat(32), 'é'.repeat(200),
  'y'.repeat(70_000)];

function text() {
  return pick(() => TEXTS[upTo(TEXTS.length - 2)], () => String.fromCodePoint(...Array.from(
    { length: upTo(20) }, () => pick(() => upTo(0x7f), () => upTo(0xd7ff), () => 0x10000 + upTo(0xfffff)),
  )));
}

function bytes(most = 300) {
  return Uint8Array.from({ length: upTo(most) }, () => upTo(255));
}

function value(depth = 0) {
  const leaf = [
    () => null, () => true, () => false, () => NUMBERS[upTo(NUMBERS.length - 1)],
    () => upTo(2 ** 40) - 2 ** 39, () => random() * 1e6, text, () => bytes(),
  ];
  if (depth > 3) return pick(...leaf);
  return pick(
    ...leaf,
    () => Array.from({ length: upTo(20) }, () => value(depth + 1)),
    () => Object.fromEntries(Array.from({ length: upTo(20) }, () => [text(), value(depth + 1)])),
  );
}

test('what it writes is what others write', () => {
  for (let round = 0; round < 3000; round += 1) {
    const each = value();
    assert.deepEqual(decode(encodeMessagePack(each)), decode(encode(each)));
  }
});

test('it writes no more bytes than others', () => {
  for (const each of [...NUMBERS, ...TEXTS]) {
    assert.deepEqual([...encodeMessagePack(each)], [...encode(each)], `${String(each).slice(0, 20)}`);
  }
  for (const length of [0, 1, 15, 16, 255, 256, 65535, 65536]) {
    const list = new Array(length).fill(1);
    const object = Object.fromEntries(list.map((one, index) => [`k${index}`, one]));
    for (const each of [list, object, new Uint8Array(length)]) {
      assert.deepEqual(Buffer.compare(encodeMessagePack(each), encode(each)), 0);
    }
  }
});

test('it reads what others write', () => {
  for (let round = 0; round < 3000; round += 1) {
    const each = value();
    assert.deepEqual(decodeMessagePack(encode(each)), decode(encode(each)));
    assert.deepEqual(decodeMessagePack(encode(each, { forceFloat32: true })),
      decode(encode(each, { forceFloat32: true })));
  }
});

test('integers of 64 bits are read as JSON.parse reads them', () => {
  const most = Uint8Array.from([0xcf, ...new Array(8).fill(0xff)]);
  const least = Uint8Array.from([0xd3, 0x80, ...new Array(7).fill(0)]);
  assert.equal(decodeMessagePack(most), JSON.parse('18446744073709551615'));
  assert.equal(decodeMessagePack(least), JSON.parse('-9223372036854775808'));
});

test('bytes are views into the message', () => {
  const message = encodeMessagePack({ data: new Uint8Array(1000) });
  assert.equal(decodeMessagePack(message).data.buffer, message.buffer);
});

test('a key named __proto__ is a key like another', () => {
  const read = decodeMessagePack(encodeMessagePack(JSON.parse('{"__proto__": {"evil": true}}')));
  assert.ok(Object.hasOwn(read, '__proto__'));
  assert.equal(read.evil, undefined);
});

test('a message that is cut off anywhere is refused', () => {
  const whole = encodeMessagePack({ type: 'alert', list: [1, 'é', null, 1e9, -7, 0.5], data: bytes() });
  for (let length = 0; length < whole.length; length += 1) {
    assert.throws(() => decodeMessagePack(whole.slice(0, length)), `at ${length}`);
  }
  assert.throws(() => decodeMessagePack(Uint8Array.from([...whole, 0])), /trailing bytes/);
});

test('hostile bytes are refused, quickly and with an error', () => {
  const hostile = [
    [0xc1], [0xc7, 1, 0, 0], [0xd4, 0, 0], [0xdd, 0xff, 0xff, 0xff, 0xff], [0xdf, 0xff, 0xff, 0xff, 0xff],
    [0xdb, 0xff, 0xff, 0xff, 0xff], [0xc6, 0xff, 0xff, 0xff, 0xff], new Array(100_000).fill(0x91),
    [0x81, 0x01, 0x01], [0xa1, 0xff], [0xa2, 0xc0, 0x80], [0xa3, 0xed, 0xa0, 0x80], [0xa4, 0xf4, 0x90, 0x80, 0x80],
    [0xa3, 0xe2, 0x82, 0x41], [0xa1, 0xe2, 0x82, 0xac],
  ];
  for (const each of hostile) assert.throws(() => decodeMessagePack(Uint8Array.from(each)));
  for (let round = 0; round < 20_000; round += 1) {
    try {
      decodeMessagePack(bytes(30));
    } catch (error) {
      assert.ok(error instanceof RangeError || error instanceof TypeError);
    }
  }
});

test('what has no place in a message is refused', () => {
  for (const each of [NaN, Infinity, 1n, Symbol('x'), () => {}]) {
    assert.throws(() => encodeMessagePack({ each }));
  }
  const circle = [];
  circle.push(circle);
  assert.throws(() => encodeMessagePack(circle), /deep/);
  assert.deepEqual(decodeMessagePack(encodeMessagePack({ a: undefined, b: 1 })), { b: 1 });
});

test('text is UTF-8, and half of a pair becomes a mark', () => {
  for (let round = 0; round < 3000; round += 1) {
    const each = text();
    assert.equal(decodeMessagePack(encodeMessagePack(each)), each);
  }
  assert.equal(decodeMessagePack(encodeMessagePack('a\ud800b')), 'a\ufffdb');
});

test('base64 is that of Node, both ways', () => {
  for (let length = 0; length < 600; length += 1) {
    const each = Uint8Array.from({ length }, () => upTo(255));
    assert.equal(encodeBase64(each), Buffer.from(each).toString('base64'));
    assert.deepEqual([...decodeBase64(encodeBase64(each))], [...each]);
  }
  const large = bytes(100_000);
  assert.equal(encodeBase64(large), Buffer.from(large).toString('base64'));
  for (const wrong of ['a', 'ab=c', 'a===', 'ab c', '!!!!', 'äöüß', '====', 'YQ==YQ==']) {
    assert.throws(() => decodeBase64(wrong), `${wrong}`);
  }
});
