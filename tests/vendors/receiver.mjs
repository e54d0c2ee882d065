// Answers POST /<library>/<key> with 200 where that library accepts the request, else with 400.
// usage: node receiver.mjs PORT SECRETS (a JSON file: library -> secret)
import { createServer } from "node:http";
import { readFileSync } from "node:fs";
import { verifiers } from "./verifiers.mjs";

const secrets = JSON.parse(readFileSync(process.argv[3], "utf8"));
const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const name = request.url.split("/")[1];
  let said = "refused";
  try {
    const accepted = await verifiers[name]({
      body: Buffer.concat(chunks), headers: request.headers, secret: secrets[name],
      url: `http://${request.headers.host}${request.url}`, path: request.url, method: request.method, request,
    });
    response.statusCode = accepted ? 200 : 400;
    said = accepted ? "accepted" : said;
  } catch (error) {
    response.statusCode = 400;
    said = String(error?.message ?? error).split("\n")[0];
  }
  response.end(said);
});
server.listen(Number(process.argv[2]), "127.0.0.1", () => console.log("ready"));
