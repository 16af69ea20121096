// The programs on the page for npm, of what `npm run build` has made. That for a page runs in Chromium.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { nats, PER_SECOND, publisher, rig, skipped, withRig } from "./follow.js";
import { example, type Program, until } from "./rig.js";

const root = join(import.meta.dirname, "../..");
// In the package, where its own name is known.
const folder = join(import.meta.dirname, ".examples");
const isBuilt = existsSync(join(root, "dist/index.js"));

withRig();

/** Run a program until it has printed something. */
async function printed(path: string): Promise<string> {
  const child = spawn(process.execPath, ["--experimental-websocket", path], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  let text = "";
  child.stdout.on("data", (data) => {
    text += data;
  });
  await until("some output", () => text.includes("\n") || child.exitCode !== null);
  child.kill();
  await once(child, "exit");
  return text;
}

describe.skipIf(skipped || !isBuilt)("on the page for npm", () => {
  let server: Program;
  beforeAll(async () => {
    server = await rig.server(nats);
    mkdirSync(folder, { recursive: true });
    publisher.run(PER_SECOND);
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  test("the program for Node trades", async () => {
    publisher.run(PER_SECOND);
    const stubs = "const myToken = () => 'none';\nconst trade = async (...args) => console.log(...args);\n";
    const path = join(folder, "node.mjs");
    writeFileSync(path, stubs + example("js", server.url));
    expect(await printed(path)).toMatch(/^[A-Z]+\.trade \d+\n/);
  });

  test("the program for React shows a price", async () => {
    publisher.run(PER_SECOND);
    const contents = `${example("jsx", server.url)}
      import { createRoot } from "react-dom/client";
      import { Window } from "happy-dom";
      Object.assign(globalThis, { window: new Window(), requestAnimationFrame: (frame) => setTimeout(frame, 16) });
      globalThis.document = window.document;
      const box = document.body.appendChild(document.createElement("div"));
      createRoot(box).render(<App />);
      setInterval(() => /\\d/.test(box.textContent) && console.log(box.innerHTML), 50);`;
    const outfile = join(folder, "react.mjs");
    const stdin = { contents, loader: "jsx" as const, resolveDir: root };
    await build({ stdin, outfile, bundle: true, format: "esm", jsx: "automatic", packages: "external" });
    expect(await printed(outfile)).toMatch(/^<b class="live">\d+<\/b>\n/);
  });
});
