// `node node.mjs LIBRARY CONFIG`: the library in Node; lines go to standard output.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { play } from "./player.mjs";

const [library, text] = process.argv.slice(2);
const { connect } = await import(pathToFileURL(`${library}/dist/index.js`).href);
const { z1 } = await import(pathToFileURL(`${library}/dist/z1.js`).href);
const config = JSON.parse(text);
// Node 20 has no WebSocket of its own, unless it is asked for.
const WebSocket = globalThis.WebSocket ?? createRequire(`${library}/package.json`)("ws");
const compression = config.compressed ? z1() : undefined;
config.options = { ...config.options, WebSocket, compression };
play(connect, config, (line) => process.stdout.write(`${line}\n`));
process.stdin.resume().on("end", () => process.exit(0));
