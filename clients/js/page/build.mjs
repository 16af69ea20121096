// Build the page into the Python package: `npm run build:page`; with --check: is it current?

import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gunzipSync, gzipSync } from "node:zlib";
import { build } from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const OUT = here("../../../trio_odin/listener/assets/");
const isCheck = process.argv.includes("--check");

// Its license wants to come along.
const license = readFileSync(here("../node_modules/fflate/LICENSE"), "utf8").trim();
const { outputFiles } = await build({
  entryPoints: { page: here("main.ts"), style: here("page.css") },
  outdir: OUT,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022", "chrome109", "firefox115", "safari16.4"],
  legalComments: "none",
  footer: { js: `/* This contains fflate:\n${license} */` },
  write: false,
});
const built = (name) => outputFiles.find(({ path }) => path.endsWith(name)).text;
const lines = (name) =>
  readFileSync(here(name), "utf8")
    .split("\n")
    .map((line) => line.trim());

const files = {
  "index.html": lines("index.html").filter(Boolean).join("\n"),
  "page.js.gz": built("page.js"),
  "page.css.gz": built("style.css"),
  "icon.svg.gz": lines("icon.svg").join(""),
};

let stale = 0;
for (const [name, text] of Object.entries(files)) {
  const isPacked = name.endsWith(".gz");
  if (!isCheck) writeFileSync(OUT + name, isPacked ? gzipSync(text, { level: 9 }) : text);
  const kept = readFileSync(OUT + name);
  if ((isPacked ? gunzipSync(kept) : kept).toString() !== text) {
    console.error(`${name} is not what its source makes: npm run build:page`);
    stale++;
  }
  if (!isCheck) console.log(`${name}: ${text.length} characters, ${kept.length} bytes`);
}
process.exitCode = stale ? 1 : 0;
