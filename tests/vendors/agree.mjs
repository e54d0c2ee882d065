// Reads JSON lines {verifier, headers, body, secret, url} and writes for each whether the library accepts it.
import { createInterface } from "node:readline";
import { verifiers } from "./verifiers.mjs";

for await (const line of createInterface({ input: process.stdin })) {
  const { verifier, headers, body, secret, url } = JSON.parse(line);
  let accepted = false;
  try {
    accepted = await verifiers[verifier]({
      body: Buffer.from(body, "base64"), headers, secret, url, method: "POST",
    });
  } catch {
    accepted = false;
  }
  console.log(accepted ? "1" : "0");
}
