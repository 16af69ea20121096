// What npm would publish, of what `npm run build` has made.

import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";

const root = join(import.meta.dirname, "..");
const isBuilt = existsSync(join(root, "dist/index.js"));

test.skipIf(!isBuilt)("the package has what is meant, and nothing else", () => {
  const printed = execFileSync("npm", ["pack", "--dry-run", "--json"], { cwd: root, encoding: "utf8" });
  const files: { path: string }[] = JSON.parse(printed)[0].files;
  const paths = files.map(({ path }) => path.replace(/index-[\w-]+\.d\.ts$/, "index-HASH.d.ts")).sort();
  expect(paths).toEqual([
    ...["LICENSE", "README.md", "dist/index-HASH.d.ts", "dist/index.d.ts", "dist/index.js"],
    ...["dist/react.d.ts", "dist/react.js", "dist/z1.d.ts", "dist/z1.js", "package.json"],
  ]);
});

test.skipIf(!isBuilt)("the entry for pages imports nothing", () => {
  for (const name of ["index.js", "z1.js"]) {
    const code = readFileSync(join(root, "dist", name), "utf8");
    expect(code).toMatch(/^export \{/m);
    expect(code).not.toMatch(/^import /m);
  }
});

test("the lock file names no address, and the license is the project's", () => {
  const read = (...path: string[]): string => readFileSync(join(root, ...path), "utf8");
  expect(read("package-lock.json")).not.toContain('"resolved"');
  expect(read("LICENSE")).toBe(read("..", "..", "LICENSE"));
});

test("the options of the README are those that there are, with their defaults", async () => {
  const { DEFAULTS } = await import("../src/core.js");
  const readme = readFileSync(join(root, "README.md"), "utf8");
  const rows = [...readme.matchAll(/^\| (`\w+Ms`(?:, `\w+Ms`)*) \| ([\d, ]+) \| /gm)].filter(
    ([row]) => !row.includes("everyMs`"),
  );
  const told = rows.flatMap(([, names = "", values = ""]) => {
    const numbers = values.split(", ");
    return names.split(", ").map((name, index) => [name.slice(1, -1), Number(numbers[index])]);
  });
  expect(told.length).toBeGreaterThan(8);
  for (const [name, value] of told)
    expect([name, DEFAULTS[name as keyof typeof DEFAULTS]]).toEqual([name, value]);
});
