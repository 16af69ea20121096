// `trio-odin.z1`: less than half of the bytes. See "Fewer bytes" in docs/protocol.md.

import { inflateSync } from "fflate";
import type { Compression } from "./index.js";

const PREFIX = "trio-odin.z1";
const LOAD_MS = 10_000;
const utf8 = new TextDecoder();

/**
 * Have a feed read compressed messages: `connect(url, { compression: z1() })`.
 *
 * It loads the server's dictionary by HTTP, once, and keeps it for the connections that follow. Where
 * it cannot be loaded, the next connection has text.
 */
export function z1(): Compression {
  // By the subprotocol that names each.
  const dictionaries = new Map<string, Uint8Array>();
  let isPlain = false;
  return {
    offers() {
      if (isPlain) {
        isPlain = false;
        return [];
      }
      return [...[...dictionaries.keys()].reverse(), PREFIX];
    },
    reader(protocol, url) {
      if (!protocol.startsWith(PREFIX)) return null;
      let dictionary = dictionaries.get(protocol);
      return {
        get isReady() {
          return !!dictionary;
        },
        async prepare({ id, url: path }) {
          const name = `${PREFIX}.${id}`;
          dictionary = dictionaries.get(name);
          if (dictionary) return;
          // Until it is here: a server of another version, or a page that may not load it.
          isPlain = true;
          const signal = AbortSignal.timeout(LOAD_MS);
          // Beside the WebSocket: a proxy may have put all of the server under a path.
          const answer = await fetch(new URL(`.${path}`, url.replace("ws", "http")), { signal });
          if (!answer.ok) throw `no dictionary ${id}: ${answer.status}`;
          dictionary = new Uint8Array(await answer.arrayBuffer());
          dictionaries.set(name, dictionary);
          isPlain = false;
        },
        read(data) {
          const bytes = new Uint8Array(data);
          let seq = 0;
          let unit = 1;
          let at = 0;
          let byte: number;
          do {
            byte = bytes[at++] as number;
            seq += (byte & 0x7f) * unit;
            unit *= 128;
          } while (byte > 0x7f);
          const body = inflateSync(bytes.subarray(at), { dictionary: dictionary as Uint8Array });
          return { seq, ...JSON.parse(utf8.decode(body)) };
        },
      };
    },
  };
}
