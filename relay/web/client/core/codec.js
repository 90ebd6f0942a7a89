// What goes over the wire: messages as JSON or MessagePack, bytes, and base64. React Native lacks
// TextDecoder and, in places, atob.

const BASE64 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
const BASE64_VALUES = new Uint8Array(128).fill(64);
for (let index = 0; index < 64; index += 1) BASE64_VALUES[BASE64.charCodeAt(index)] = index;

export function bytesOf(data) {
  if (data instanceof ArrayBuffer) return new Uint8Array(data);
  if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  throw new TypeError('neither text nor bytes');
}

export function joinBytes(parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** Reads a message of the relay; throws if it is none. */
export function readMessage(data) {
  const message = typeof data === 'string' ? JSON.parse(data) : decodeMessagePack(bytesOf(data));
  if (message === null || typeof message.type !== 'string') throw new Error('it has no type');
  return message;
}

export const asBytes = (data) => (typeof data === 'string' ? decodeBase64(data) : bytesOf(data));
export const asBase64 = (data) => (typeof data === 'string' ? data : encodeBase64(bytesOf(data)));

export function encodeBase64(bytes) {
  const parts = [];
  for (let start = 0; start < bytes.length; start += 6144) {
    const codes = [];
    const end = Math.min(start + 6144, bytes.length);
    for (let at = start; at < end; at += 3) {
      const bits = (bytes[at] << 16) | ((bytes[at + 1] ?? 0) << 8) | (bytes[at + 2] ?? 0);
      codes.push(
        BASE64.charCodeAt(bits >> 18),
        BASE64.charCodeAt((bits >> 12) & 63),
        at + 1 < bytes.length ? BASE64.charCodeAt((bits >> 6) & 63) : 61,
        at + 2 < bytes.length ? BASE64.charCodeAt(bits & 63) : 61,
      );
    }
    parts.push(String.fromCharCode.apply(null, codes));
  }
  return parts.join('');
}

export function decodeBase64(text) {
  const rest = text.endsWith('==') ? 2 : text.endsWith('=') ? 1 : 0;
  if (text.length % 4 !== 0) throw new TypeError('not base64');
  const bytes = new Uint8Array((text.length / 4) * 3 - rest);
  const valueAt = (at) => {
    const code = text.charCodeAt(at);
    const value = code < 128 ? BASE64_VALUES[code] : 64;
    if (value === 64 && !(code === 61 && at >= text.length - rest)) throw new TypeError('not base64');
    return value & 63;
  };
  for (let at = 0, to = 0; at < text.length; at += 4) {
    const bits = (valueAt(at) << 18) | (valueAt(at + 1) << 12) | (valueAt(at + 2) << 6) | valueAt(at + 3);
    bytes[to++] = bits >> 16;
    if (to < bytes.length) bytes[to++] = bits >> 8;
    if (to < bytes.length) bytes[to++] = bits;
  }
  return bytes;
}

// -- MessagePack, as far as the protocol uses it: no extension types, string keys only.

const MOST_NESTED = 100;
const PLAIN = { enumerable: true, configurable: true, writable: true };

/** Encodes null, booleans, finite numbers, strings, bytes, arrays and objects; omits `undefined`. */
export function encodeMessagePack(value) {
  const writer = new Writer();
  writer.value(value, 0);
  return writer.bytes.subarray(0, writer.size);
}

/** Decodes one value. Bytes are views into `bytes`, not copies. Throws on other types and on trailing bytes. */
export function decodeMessagePack(bytes) {
  const reader = new Reader(bytes);
  const value = reader.value(0);
  if (reader.at !== bytes.length) throw new RangeError('trailing bytes after the message');
  return value;
}

class Writer {
  constructor() {
    this.size = 0;
    this._grow(256);
  }

  _grow(room) {
    const bytes = new Uint8Array(room);
    if (this.bytes) bytes.set(this.bytes.subarray(0, this.size));
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer);
  }

  /** Reserves so many bytes; returns their offset. */
  _take(count) {
    const at = this.size;
    if (at + count > this.bytes.length) this._grow(Math.max(2 * this.bytes.length, at + count));
    this.size += count;
    return at;
  }

  _byte(byte) {
    const at = this._take(1); // first: it may replace `bytes`
    this.bytes[at] = byte;
  }

  _put(bytes) {
    const at = this._take(bytes.length);
    this.bytes.set(bytes, at);
  }

  /** Writes a type byte and a number of 1, 2 or 4 bytes. */
  _head(head, width, number) {
    const at = this._take(1 + width);
    this.bytes[at] = head;
    if (width === 1) this.bytes[at + 1] = number;
    else if (width === 2) this.view.setUint16(at + 1, number);
    else this.view.setUint32(at + 1, number);
  }

  _length(length, short, most, heads) {
    if (length <= most) this._byte(short | length);
    else if (length < 0x100 && heads[0]) this._head(heads[0], 1, length);
    else if (length < 0x10000) this._head(heads[1], 2, length);
    else this._head(heads[2], 4, length);
  }

  value(value, depth) {
    if (depth > MOST_NESTED) throw new RangeError('nested too deeply');
    if (value === null || value === undefined) this._byte(0xc0);
    else if (value === true || value === false) this._byte(value ? 0xc3 : 0xc2);
    else if (typeof value === 'number') this._number(value);
    else if (typeof value === 'string') this._text(value);
    else if (Array.isArray(value)) {
      this._length(value.length, 0x90, 15, [0, 0xdc, 0xdd]);
      for (const each of value) this.value(each, depth + 1);
    } else if (value instanceof ArrayBuffer || ArrayBuffer.isView(value)) {
      const bytes = bytesOf(value);
      this._length(bytes.length, 0, -1, [0xc4, 0xc5, 0xc6]);
      this._put(bytes);
    } else if (typeof value === 'object') {
      const entries = Object.entries(value).filter(([, each]) => each !== undefined);
      this._length(entries.length, 0x80, 15, [0, 0xde, 0xdf]);
      for (const [key, each] of entries) {
        this._text(key);
        this.value(each, depth + 1);
      }
    } else throw new TypeError(`cannot encode a ${typeof value}`);
  }

  _number(value) {
    if (!Number.isFinite(value)) throw new RangeError('cannot encode a number that is not finite');
    if (!Number.isSafeInteger(value)) {
      const at = this._take(9);
      this.bytes[at] = 0xcb;
      this.view.setFloat64(at + 1, value);
    } else if (value >= 0 && value < 0x80) this._byte(value);
    else if (value < 0 && value >= -0x20) this._byte(value & 0xff);
    else if (value > 0xffffffff || value < -0x80000000) {
      const at = this._take(9);
      this.bytes[at] = value < 0 ? 0xd3 : 0xcf;
      this.view.setUint32(at + 1, Math.floor(value / 0x100000000));
      this.view.setUint32(at + 5, value >>> 0);
    } else if (value >= 0) {
      if (value < 0x100) this._head(0xcc, 1, value);
      else if (value < 0x10000) this._head(0xcd, 2, value);
      else this._head(0xce, 4, value);
    } else if (value >= -0x80) this._head(0xd0, 1, value & 0xff);
    else if (value >= -0x8000) this._head(0xd1, 2, value & 0xffff);
    else this._head(0xd2, 4, value >>> 0);
  }

  _text(text) {
    const codes = utf8Of(text);
    this._length(codes.length, 0xa0, 31, [0xd9, 0xda, 0xdb]);
    this._put(codes);
  }
}

function utf8Of(text) {
  const codes = [];
  for (const character of text) {
    let code = character.codePointAt(0);
    if (code >= 0xd800 && code <= 0xdfff) code = 0xfffd; // a lone surrogate
    if (code < 0x80) codes.push(code);
    else if (code < 0x800) codes.push(0xc0 | (code >> 6), 0x80 | (code & 63));
    else if (code < 0x10000) codes.push(0xe0 | (code >> 12), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63));
    else {
      codes.push(0xf0 | (code >> 18), 0x80 | ((code >> 12) & 63), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63));
    }
  }
  return codes;
}

class Reader {
  constructor(bytes) {
    this.at = 0;
    this._bytes = bytes;
    this._view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  _skip(count) {
    const at = this.at;
    if (at + count > this._bytes.length) throw new RangeError('the message is incomplete');
    this.at += count;
    return at;
  }

  _uint(width) {
    const at = this._skip(width);
    if (width === 1) return this._bytes[at];
    if (width === 2) return this._view.getUint16(at);
    if (width === 4) return this._view.getUint32(at);
    return this._view.getUint32(at) * 0x100000000 + this._view.getUint32(at + 4);
  }

  value(depth) {
    if (depth > MOST_NESTED) throw new RangeError('nested too deeply');
    const head = this._uint(1);
    if (head < 0x80) return head;
    if (head < 0x90) return this._map(head & 15, depth);
    if (head < 0xa0) return this._array(head & 15, depth);
    if (head < 0xc0) return this._text(head & 31);
    if (head >= 0xe0) return head - 0x100;
    switch (head) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: case 0xc5: case 0xc6: {
        const length = this._uint(1 << (head - 0xc4));
        const at = this._skip(length);
        return this._bytes.subarray(at, at + length);
      }
      case 0xca: return this._view.getFloat32(this._skip(4));
      case 0xcb: return this._view.getFloat64(this._skip(8));
      case 0xcc: case 0xcd: case 0xce: case 0xcf: return this._uint(1 << (head - 0xcc));
      case 0xd0: return this._view.getInt8(this._skip(1));
      case 0xd1: return this._view.getInt16(this._skip(2));
      case 0xd2: return this._view.getInt32(this._skip(4));
      case 0xd3: {
        const at = this._skip(8);
        return this._view.getInt32(at) * 0x100000000 + this._view.getUint32(at + 4);
      }
      case 0xd9: case 0xda: case 0xdb: return this._text(this._uint(1 << (head - 0xd9)));
      case 0xdc: case 0xdd: return this._array(this._uint(2 << (head - 0xdc)), depth);
      case 0xde: case 0xdf: return this._map(this._uint(2 << (head - 0xde)), depth);
      default: throw new TypeError(`unsupported type 0x${head.toString(16)}`);
    }
  }

  _array(length, depth) {
    if (length > this._bytes.length - this.at) throw new RangeError('the message is incomplete');
    const values = [];
    for (let index = 0; index < length; index += 1) values.push(this.value(depth + 1));
    return values;
  }

  _map(length, depth) {
    const object = {};
    for (let index = 0; index < length; index += 1) {
      const key = this.value(depth + 1);
      if (typeof key !== 'string') throw new TypeError('a key is not a string');
      const value = this.value(depth + 1);
      // like JSON.parse: an own property, whatever its name
      if (key === '__proto__') Object.defineProperty(object, key, { value, ...PLAIN });
      else object[key] = value;
    }
    return object;
  }

  _text(length) {
    const bytes = this._bytes;
    let at = this._skip(length);
    const end = this.at;
    let text = '';
    const next = (least, most) => {
      const code = at < end ? bytes[at] : 0;
      if (code < least || code > most) throw new TypeError('text is not UTF-8');
      at += 1;
      return code & 63;
    };
    while (at < end) {
      const code = bytes[at++];
      if (code < 0x80) text += String.fromCharCode(code);
      else if (code >= 0xc2 && code < 0xe0) text += String.fromCharCode(((code & 31) << 6) | next(0x80, 0xbf));
      else if (code >= 0xe0 && code < 0xf0) {
        const high = next(code === 0xe0 ? 0xa0 : 0x80, code === 0xed ? 0x9f : 0xbf);
        text += String.fromCharCode(((code & 15) << 12) | (high << 6) | next(0x80, 0xbf));
      } else if (code >= 0xf0 && code < 0xf5) {
        const high = next(code === 0xf0 ? 0x90 : 0x80, code === 0xf4 ? 0x8f : 0xbf);
        const middle = next(0x80, 0xbf);
        text += String.fromCodePoint(((code & 7) << 18) | (high << 12) | (middle << 6) | next(0x80, 0xbf));
      } else throw new TypeError('text is not UTF-8');
    }
    return text;
  }
}
