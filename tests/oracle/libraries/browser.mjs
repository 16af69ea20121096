// `node browser.mjs LIBRARY CONFIG`: the library in Chromium; lines go to standard output.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const [library, text] = process.argv.slice(2);
const { chromium } = createRequire(`${library}/package.json`)("playwright-core");
const player = fileURLToPath(new URL("./player.mjs", import.meta.url));
const page = `<!doctype html><meta charset="utf-8"><title>player</title><script type="module">
  import { connect } from "/dist/index.js";
  import { z1 } from "/dist/z1.js";
  import { play } from "/player.mjs";
  const config = await window.config();
  config.options.compression = config.compressed ? z1() : undefined;
  play(connect, config, (line) => window.report(line));
</script>`;
const server = createServer(async (request, response) => {
  const path = new URL(request.url, "http://localhost").pathname;
  try {
    if (path === "/") response.setHeader("content-type", "text/html").end(page);
    else {
      const file = path === "/player.mjs" ? player : `${library}${path}`;
      response.setHeader("content-type", "text/javascript").end(await readFile(file));
    }
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu"],
});
const tab = await (await browser.newContext()).newPage();
tab.on("pageerror", (error) => console.log(JSON.stringify({ kind: "error", at: Date.now(), text: String(error) })));
await tab.exposeFunction("report", (line) => console.log(line));
await tab.exposeFunction("config", () => JSON.parse(text));
await tab.goto(`http://127.0.0.1:${server.address().port}/`);
process.stdin.resume().on("end", async () => {
  await browser.close();
  process.exit(0);
});
