// `node browser.mjs LIBRARY CONFIG`: the library in Chromium; lines go to standard output.

import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const [library, text] = process.argv.slice(2);
const { WebSocketServer } = createRequire(`${library}/package.json`)("ws");
const player = fileURLToPath(new URL("./player.mjs", import.meta.url));
const page = `<!doctype html><meta charset="utf-8"><title>player</title><script type="module">
  import { connect } from "/dist/index.js";
  import { z1 } from "/dist/z1.js";
  import { play } from "/player.mjs";
  const lines = new WebSocket(location.href.replace("http", "ws"));
  const report = (line) => lines.send(line);
  addEventListener("error", ({ message }) => report(JSON.stringify({ kind: "error", at: 0, message })));
  lines.onmessage = ({ data }) => {
    const config = JSON.parse(data);
    config.options.compression = config.compressed ? z1() : undefined;
    play(connect, config, report);
  };
</script>`;
const server = createServer(async (request, response) => {
  const { pathname } = new URL(request.url, "http://localhost");
  try {
    if (pathname === "/") response.setHeader("content-type", "text/html").end(page);
    else {
      const file = pathname === "/player.mjs" ? player : `${library}${pathname}`;
      response.setHeader("content-type", "text/javascript").end(await readFile(file));
    }
  } catch {
    response.writeHead(404).end();
  }
});
new WebSocketServer({ server }).on("connection", (socket) => {
  socket.on("message", (line) => process.stdout.write(`${line}\n`));
  socket.send(text);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const profile = await mkdtemp(join(tmpdir(), "player-"));
const browser = spawn(
  process.env.CHROMIUM ?? "chromium",
  [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    `--user-data-dir=${profile}`,
    `http://127.0.0.1:${server.address().port}/`,
  ],
  { stdio: "ignore", detached: true },
);
process.stdin.resume().on("end", async () => {
  process.kill(-browser.pid, "SIGKILL");
  await rm(profile, { recursive: true, force: true, maxRetries: 5 }).catch(() => {});
  process.exit(0);
});
