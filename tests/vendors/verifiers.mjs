// The vendors' own libraries, each as a function of a request that answers whether it accepts it.
import { createRequire } from "node:module";
import { Paddle } from "@paddle/paddle-node-sdk";
import { LinearWebhookClient } from "@linear/sdk/webhooks";
import { WorkOS } from "@workos-inc/node";
import { verify as verifyGithub } from "@octokit/webhooks-methods";
import OpenAI from "openai";
import { Webhook as Svix } from "svix";
import { Webhook as Standard } from "standardwebhooks";
import Stripe from "stripe";
import { WebhooksHelper } from "square";
import twilio from "twilio";
import { Resend } from "resend";
import { verifyWebhook as verifyClerk } from "@clerk/backend/webhooks";
import { validateSignature as verifyLine } from "@line/bot-sdk";
import Razorpay from "razorpay";
import "@shopify/shopify-api/adapters/node";
import { shopifyApi } from "@shopify/shopify-api";

const require = createRequire(import.meta.url);
const { verifySlackRequest } = require("@slack/bolt");
const { verifyRequest } = require("@contentful/node-apps-toolkit");
const { isValidSignature: verifySanity } = require("@sanity/webhook");
const { Signature } = require("@hubspot/api-client");

const form = (body) => Object.fromEntries(
  [...new Set(new URLSearchParams(body).keys())].map((name) => {
    const all = new URLSearchParams(body).getAll(name);
    return [name, all.length > 1 ? all : all[0]];
  }));

// A body that is no JSON is accepted where only its parsing fails.
const unlessJson = (error) => error instanceof SyntaxError || (() => { throw error; })();

export const verifiers = {
  stripe: async ({ body, headers, secret }) => {
    const client = new Stripe("sk_test_x");
    return client.webhooks.signature.verifyHeader(body, headers["stripe-signature"], secret, 300);
  },
  svix: ({ body, headers, secret }) => {
    try { new Svix(secret).verify(body, headers); } catch (error) { return unlessJson(error); }
    return true;
  },
  standard: ({ body, headers, secret }) => {
    try { new Standard(secret).verify(body, headers); } catch (error) { return unlessJson(error); }
    return true;
  },
  openai: async ({ body, headers, secret }) => {
    const client = new OpenAI({ apiKey: "sk-x", webhookSecret: secret });
    await client.webhooks.verifySignature(body.toString(), headers);
    return true;
  },
  resend: ({ body, headers, secret }) => {
    const svix = { id: headers["svix-id"], timestamp: headers["svix-timestamp"], signature: headers["svix-signature"] };
    const options = { payload: body.toString(), headers: svix, webhookSecret: secret };
    try { new Resend("re_x").webhooks.verify(options); } catch (error) { return unlessJson(error); }
    return true;
  },
  clerk: async ({ body, headers, secret, url }) => {
    const request = new Request(url, { method: "POST", headers, body });
    try { await verifyClerk(request, { signingSecret: secret }); } catch (error) { return unlessJson(error); }
    return true;
  },
  line: ({ body, headers, secret }) => verifyLine(body, secret, headers["x-line-signature"]),
  razorpay: ({ body, headers, secret }) =>
    Razorpay.validateWebhookSignature(body.toString(), headers["x-razorpay-signature"], secret),
  sanity: ({ body, headers, secret }) => verifySanity(body.toString(), headers["sanity-webhook-signature"], secret),
  slack: ({ body, headers, secret }) => {
    verifySlackRequest({ signingSecret: secret, body: body.toString(), headers });
    return true;
  },
  paddle: ({ body, headers, secret }) =>
    new Paddle("pdl_x").webhooks.isSignatureValid(body.toString(), secret, headers["paddle-signature"]),
  linear: ({ body, headers, secret }) =>
    new LinearWebhookClient(secret).verify(body, headers["linear-signature"]),
  workos: async ({ body, headers, secret }) => {
    const workos = new WorkOS("sk_x");
    const payload = JSON.parse(body.toString());
    return workos.webhooks.verifyHeader({ payload, sigHeader: headers["workos-signature"], secret });
  },
  hubspot: ({ body, headers, secret, url, method }) =>
    Signature.isValid({
      signatureVersion: "v3", method, url, clientSecret: secret, requestBody: body.toString(),
      signature: headers["x-hubspot-signature-v3"], timestamp: Number(headers["x-hubspot-request-timestamp"]),
    }),
  contentful: ({ body, headers, secret, path, method }) =>
    verifyRequest(secret, { method, path, headers, body: body.toString() }),
  twilio: ({ body, headers, secret, url }) =>
    twilio.validateRequest(secret, headers["x-twilio-signature"], url, form(body.toString())),
  square: ({ body, headers, secret, url }) =>
    WebhooksHelper.verifySignature({
      requestBody: body.toString(), signatureHeader: headers["x-square-hmacsha256-signature"],
      signatureKey: secret, notificationUrl: url,
    }),
  github: ({ body, headers, secret }) =>
    verifyGithub(secret, body.toString(), headers["x-hub-signature-256"]),
  shopify: async ({ body, headers, secret, request }) => {
    const shopify = shopifyApi({
      apiKey: "key", apiSecretKey: secret, hostName: "shop.test", apiVersion: "2026-10",
      isEmbeddedApp: false, logger: { level: 0 },
    });
    const { valid } = await shopify.webhooks.validate({ rawBody: body.toString(), rawRequest: request });
    return valid;
  },
};
