// Reads JSON lines {definition, payload} and writes for each what GitHub's published schema has against it.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import Ajv from "ajv";
import formats from "ajv-formats";

const schema = createRequire(import.meta.url)("@octokit/webhooks-schemas/schema.json");
const ajv = new Ajv.default({ strict: false });
formats.default(ajv);
ajv.addSchema(schema, "github");
for await (const line of createInterface({ input: process.stdin })) {
  const { definition, payload } = JSON.parse(line);
  const validate = ajv.compile({ $ref: `github#/definitions/${encodeURIComponent(definition)}` });
  console.log(validate(payload) ? "valid" : ajv.errorsText(validate.errors));
}
