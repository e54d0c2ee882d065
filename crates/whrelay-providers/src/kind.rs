//! What a provider calls an event, and the id it gives it.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use whrelay_core::event::Request;

use crate::json;

type Members<'a> = BTreeMap<String, &'a RawValue>;

/// Fields in which providers name the kind of an event.
const KIND_FIELDS: [&str; 17] = [
    "x-github-event",
    "x-gitlab-event",
    "x-gitea-event",
    "x-gogs-event",
    "x-shopify-topic",
    "x-wc-webhook-topic",
    "x-contentful-topic",
    "x-event-key",
    "x-discourse-event",
    "x-hook-event",
    "x-webhook-event",
    "x-webhook-topic",
    "x-event-type",
    "linear-event",
    "sanity-operation",
    "sentry-hook-resource",
    "ce-type",
];

/// Members of a body that do, the surest first.
const KIND_MEMBERS: [&str; 14] = [
    "type",
    "event_type",
    "eventType",
    "event",
    "topic",
    "webhookEvent",
    "event_name",
    "eventName",
    "notification_type",
    "subscriptionType",
    "triggerEvent",
    "webhook_code",
    "trigger",
    "action",
];

/// Members that are objects with one of those in them.
const KIND_OBJECTS: [&str; 5] = ["event", "event-data", "meta", "data", "payload"];

/// Members that are lists of events, or of what has them: LINE's and Meta's.
const KIND_LISTS: [&str; 3] = ["events", "entry", "changes"];
/// How many lists may be within each other.
const LISTS_DEEP: usize = 2;

/// Members whose names do: Dropbox's.
const KIND_NAMES: [&str; 1] = ["list_folder"];

/// Fields of a form that do.
const KIND_FORM: [&str; 7] = [
    "MessageStatus",
    "SmsStatus",
    "CallStatus",
    "txn_type",
    "event",
    "type",
    "command",
];

/// Fields in which providers name a delivery: the same in each of their own retries.
const ID_FIELDS: [&str; 17] = [
    "webhook-id",
    "svix-id",
    "x-github-delivery",
    "x-gitea-delivery",
    "x-shopify-webhook-id",
    "x-shopify-event-id",
    "i-twilio-idempotency-token",
    "x-wc-webhook-delivery-id",
    "x-request-uuid",
    "linear-delivery",
    "x-gitlab-event-uuid",
    "x-contentful-webhook-request-id",
    "x-contentful-idempotency-key",
    "x-razorpay-event-id",
    "request-id",
    "idempotency-key",
    "ce-id",
];

/// Members of a body that do.
const ID_MEMBERS: [&str; 6] = [
    "event_id",
    "eventId",
    "notification_id",
    "webhookId",
    "id",
    "uuid",
];

/// Members of an event in a list that do: LINE's and HubSpot's.
const LISTED_IDS: [&str; 2] = ["webhookEventId", "eventId"];

/// Larger bodies are not read for it.
const MAX_BODY: usize = 1 << 20;
/// What is longer is no name.
const MAX_NAME: usize = 128;

/// What the sender calls this kind of event, where it says so in a field or in the body.
pub fn kind(request: &Request) -> Option<String> {
    let named = KIND_FIELDS.iter().find_map(|name| request.header(name));
    if let Some(name) = named.and_then(|value| name(&String::from_utf8_lossy(value))) {
        return Some(name);
    }
    body_kind(request)
}

fn body_kind(request: &Request) -> Option<String> {
    let body = &request.body;
    if body.len() > MAX_BODY {
        return None;
    }
    match body.trim_ascii_start().first()? {
        b'{' => object_kind(&json::members(body)?, LISTS_DEEP),
        // SendGrid and HubSpot send several at once.
        b'[' => object_kind(&first_of(body)?, LISTS_DEEP),
        _ if is_form(request) => form_kind(body),
        _ => None,
    }
}

fn object_kind(members: &Members<'_>, lists: usize) -> Option<String> {
    let text = |name: &str| members.get(name).and_then(|value| json::string(value));
    let found = KIND_MEMBERS.iter().find_map(|member| name(&text(member)?));
    // Slack puts what happened into an envelope.
    let is_envelope = found.as_deref() == Some("event_callback");
    if let Some(found) = found.filter(|_| !is_envelope) {
        return Some(found);
    }
    let inner = KIND_OBJECTS.iter().find_map(|object| {
        let inner = json::members(members.get(*object)?.get().as_bytes())?;
        let text = |member: &&str| json::string(inner.get(*member)?);
        KIND_MEMBERS.iter().find_map(|member| name(&text(member)?))
    });
    inner
        .or_else(|| is_envelope.then(|| "event_callback".to_owned()))
        .or_else(|| listed_kind(members, lists))
        .or_else(|| {
            let named = KIND_NAMES.iter().find(|name| members.contains_key(**name));
            named.map(|name| (*name).to_owned())
        })
}

/// What the first event of a list is called, or what the list is about.
fn listed_kind(members: &Members<'_>, lists: usize) -> Option<String> {
    let deeper = lists.checked_sub(1)?;
    let text = |members: &Members<'_>, name: &str| json::string(members.get(name)?);
    let (list, first) = KIND_LISTS
        .iter()
        .find_map(|list| Some((*list, first_of(members.get(*list)?.get().as_bytes())?)))?;
    let about = || match list {
        "entry" => text(members, "object"),
        "changes" => text(&first, "field"),
        _ => None,
    };
    object_kind(&first, deeper).or_else(|| name(&about()?))
}

/// The members of the first object of an array.
fn first_of(array: &[u8]) -> Option<Members<'_>> {
    json::members(json::first(array)?.get().as_bytes())
}

fn form_kind(body: &[u8]) -> Option<String> {
    let pairs: BTreeMap<_, _> = form_urlencoded::parse(body).collect();
    if let Some(payload) = pairs.get("payload") {
        return object_kind(&json::members(payload.as_bytes())?, LISTS_DEEP);
    }
    KIND_FORM.iter().find_map(|field| name(pairs.get(*field)?))
}

fn is_form(request: &Request) -> bool {
    let kind = request.header("content-type").unwrap_or_default();
    kind.to_ascii_lowercase()
        .starts_with(b"application/x-www-form-urlencoded")
}

/// The id that the provider gives the delivery, where it says so: its own retries have the same.
pub fn delivery_id(request: &Request) -> Option<String> {
    let named = ID_FIELDS.iter().find_map(|name| request.header(name));
    if let Some(id) = named.and_then(|value| name(&String::from_utf8_lossy(value))) {
        return Some(id);
    }
    if request.body.len() > MAX_BODY {
        return None;
    }
    let body = &request.body[..];
    let Some(members) = json::members(body) else {
        return event_id(&first_of(body)?);
    };
    let text = |member: &str| json::string(members.get(member)?);
    let named = ID_MEMBERS.iter().find_map(|member| name(&text(member)?));
    named.or_else(|| {
        let listed = |list: &&str| first_of(members.get(*list)?.get().as_bytes());
        event_id(&KIND_LISTS.iter().find_map(listed)?)
    })
}

/// The id of an event that comes in a list, where an id may also be that of something else.
fn event_id(members: &Members<'_>) -> Option<String> {
    let value = LISTED_IDS.iter().find_map(|member| members.get(*member))?;
    let is_number = value.get().bytes().all(|b| b.is_ascii_digit());
    name(&match is_number {
        true => value.get().to_owned(),
        false => json::string(value)?,
    })
}

/// A text that can be a name.
fn name(text: &str) -> Option<String> {
    let text = text.trim();
    let is_name = !text.is_empty() && text.len() <= MAX_NAME && !text.contains(char::is_control);
    is_name.then(|| text.to_owned())
}
