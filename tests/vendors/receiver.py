"""Answers POST /<library>/<key> with 200 where that library accepts the request, else with 400.

usage: python receiver.py PORT SECRETS (a JSON file: library -> secret)
"""
import json
import logging
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

import resend
from hubspot.utils.signature import Signature as Hubspot
from linebot.v3.webhook import SignatureValidator as Line
from openai import OpenAI
from paddle_billing.Notifications import Secret, Verifier
from razorpay import Client as Razorpay
from slack_bolt.middleware.request_verification import RequestVerification
from slack_bolt.request import BoltRequest
from slack_bolt.response import BoltResponse
from slack_sdk.signature import SignatureVerifier
from square.utils.webhooks_helper import verify_signature
from standardwebhooks import Webhook as Standard
from stripe import WebhookSignature
from svix.webhooks import Webhook as Svix
from twilio.request_validator import RequestValidator
from workos import WorkOSClient

logging.disable(logging.CRITICAL)


class Request:
    def __init__(self, headers, body):
        self.headers, self.body = headers, body


def slack_bolt(r):
    request = BoltRequest(body=r["body"].decode(), headers=r["lower"])
    passed = BoltResponse(status=299)
    middleware = RequestVerification(r["secret"])
    return middleware.process(req=request, resp=passed, next=lambda: passed).status == 299


def raises_nothing(verify, *request):
    verify(*request)
    return True


VERIFIERS = {
    "py-stripe": lambda r: WebhookSignature.verify_header(
        r["body"].decode(), r["lower"]["stripe-signature"], r["secret"], 300),
    "py-svix": lambda r: raises_nothing(Svix(r["secret"]).verify, r["body"], r["lower"]),
    "py-standard": lambda r: raises_nothing(Standard(r["secret"]).verify, r["body"], r["lower"]),
    "py-resend": lambda r: raises_nothing(resend.Webhooks.verify, {
        "payload": r["body"].decode(), "webhook_secret": r["secret"],
        "headers": {key: r["lower"]["svix-" + key] for key in ("id", "timestamp", "signature")}}),
    "py-openai": lambda r: raises_nothing(
        OpenAI(api_key="sk-x", webhook_secret=r["secret"]).webhooks.verify_signature, r["body"], r["lower"]),
    "py-workos": lambda r: raises_nothing(lambda: WorkOSClient(api_key="sk_x", client_id="x").webhooks.verify_header(
        event_body=r["body"], event_signature=r["lower"]["workos-signature"], secret=r["secret"])),
    "py-hubspot": lambda r: Hubspot.is_valid(
        r["lower"]["x-hubspot-signature-v3"], r["secret"], r["body"].decode(), r["url"], "POST", "v3",
        r["lower"]["x-hubspot-request-timestamp"]),
    "py-line": lambda r: Line(r["secret"]).validate(r["body"].decode(), r["lower"]["x-line-signature"]),
    "py-razorpay": lambda r: Razorpay(auth=("x", "x")).utility.verify_webhook_signature(
        r["body"].decode(), r["lower"]["x-razorpay-signature"], r["secret"]),
    "py-slack": lambda r: SignatureVerifier(r["secret"]).is_valid_request(r["body"], r["headers"]),
    "py-slack-bolt": slack_bolt,
    "py-paddle": lambda r: Verifier().verify(Request(r["headers"], r["body"]), Secret(r["secret"])),
    "py-twilio": lambda r: RequestValidator(r["secret"]).validate(
        r["url"], dict(parse_qsl(r["body"].decode(), keep_blank_values=True)), r["lower"]["x-twilio-signature"]),
    "py-square": lambda r: verify_signature(
        request_body=r["body"].decode(), signature_header=r["lower"]["x-square-hmacsha256-signature"],
        signature_key=r["secret"], notification_url=r["url"]),
}

with open(sys.argv[2]) as file:
    SECRETS = json.load(file)


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name = self.path.split("/")[1]
        said = b"refused"
        try:
            accepted = VERIFIERS[name]({
                "body": body, "headers": self.headers, "secret": SECRETS[name],
                "lower": {key.lower(): value for key, value in self.headers.items()},
                "url": "http://%s%s" % (self.headers["Host"], self.path),
            })
        except Exception as error:
            accepted, said = False, repr(error).encode()
        self.send_response(200 if accepted else 400)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver)
print("ready", flush=True)
server.serve_forever()
