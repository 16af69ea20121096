// Check an AsyncAPI document with the official parser: `node check.mjs FILE`. What it says at the
// levels of errors and warnings fails; the newest version of AsyncAPI is an information.
import { readFileSync } from "node:fs";
import { argv, exit } from "node:process";
import { Parser } from "@asyncapi/parser";

const WARNING = 1;
const { document, diagnostics } = await new Parser().parse(readFileSync(argv[2], "utf8"));
const problems = diagnostics.filter((one) => one.severity <= WARNING);
for (const { code, path, message } of problems) console.error(`${path.join(".")}: ${message} (${code})`);
if (document === undefined || problems.length > 0) exit(1);
const messages = document.allMessages().all().length;
const operations = document.allOperations().all().length;
if (messages === 0 || operations === 0) {
  console.error(`${messages} messages and ${operations} operations: expected some of each`);
  exit(1);
}
console.log(`AsyncAPI ${document.version()}: ${messages} messages, ${operations} operations`);
