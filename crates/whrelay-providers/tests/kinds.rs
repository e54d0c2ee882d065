//! What many providers call their events, and which ids they give them.

use bytes::Bytes;
use whrelay_core::event::{Header, Request};
use whrelay_providers::{delivery_id, kind};

fn request(fields: &[(&str, &str)], body: &str) -> Request {
    let header = |(name, value): &(&str, &str)| Header {
        name: (*name).to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    Request {
        method: "POST".into(),
        tail: String::new(),
        query: None,
        headers: fields.iter().map(header).collect(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

type Named = (
    &'static [(&'static str, &'static str)],
    &'static str,
    &'static str,
);

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

const KINDS: &[Named] = &[
    (&[("x-github-event", "push")], r#"{"action":"x"}"#, "push"),
    (
        &[("x-shopify-topic", "orders/create")],
        "{}",
        "orders/create",
    ),
    (&[("ce-type", "com.acme.x")], "", "com.acme.x"),
    (
        &[],
        r#"{"object":"event","type":"invoice.paid"}"#,
        "invoice.paid",
    ),
    (
        &[],
        r#"{"type":"event_callback","event":{"type":"app_mention"}}"#,
        "app_mention",
    ),
    (&[], r#"{"type":"url_verification"}"#, "url_verification"),
    (
        &[],
        r#"{"event_type":"transaction.paid"}"#,
        "transaction.paid",
    ),
    (
        &[],
        r#"{"event":"meeting.started","payload":{}}"#,
        "meeting.started",
    ),
    (
        &[],
        r#"{"event":{"event_type":"incident.triggered"}}"#,
        "incident.triggered",
    ),
    (
        &[],
        r#"{"webhookEvent":"jira:issue_created"}"#,
        "jira:issue_created",
    ),
    (
        &[],
        r#"[{"subscriptionType":"contact.creation"}]"#,
        "contact.creation",
    ),
    (
        &[],
        r#"[{"event":"delivered"},{"event":"open"}]"#,
        "delivered",
    ),
    (
        &[],
        r#"{"signature":{},"event-data":{"event":"opened"}}"#,
        "opened",
    ),
    (
        &[],
        r#"{"meta":{"event_name":"order_created"}}"#,
        "order_created",
    ),
    (
        &[],
        r#"{"topic":"merchant_order","resource":"x"}"#,
        "merchant_order",
    ),
    (
        &[FORM],
        "MessageSid=SM1&MessageStatus=delivered",
        "delivered",
    ),
    (
        &[FORM],
        "payload=%7B%22type%22%3A%22block_actions%22%7D",
        "block_actions",
    ),
    (&[FORM], "command=%2Fdeploy&text=now", "/deploy"),
    (&[("sanity-operation", "update")], "{}", "update"),
    (
        &[],
        r#"{"destination":"U1","events":[{"type":"message"},{"type":"follow"}]}"#,
        "message",
    ),
    (
        &[],
        r#"{"object":"page","entry":[{"id":"1","changes":[{"field":"feed","value":{}}]}]}"#,
        "feed",
    ),
    (
        &[],
        r#"{"object":"page","entry":[{"id":"1","messaging":[]}]}"#,
        "page",
    ),
    (
        &[],
        r#"{"list_folder":{"accounts":["dbid:1"]},"delta":{"users":[1]}}"#,
        "list_folder",
    ),
];

#[test]
fn kinds_and_ids_of_many_providers() {
    for (fields, body, wanted) in KINDS {
        assert_eq!(
            kind(&request(fields, body)).as_deref(),
            Some(*wanted),
            "{body}"
        );
    }
    for nothing in [
        "",
        "{}",
        "[]",
        "{\"type\":1}",
        "{\"type\":\"\"}",
        "{",
        "text",
        "{\"type\":\"a\\u0007b\"}",
    ] {
        assert_eq!(kind(&request(&[], nothing)), None, "{nothing}");
    }
    let id = |fields: &[(&str, &str)], body| delivery_id(&request(fields, body));
    assert_eq!(
        id(&[("x-github-delivery", "72d3")], "{}").as_deref(),
        Some("72d3")
    );
    assert_eq!(id(&[], "{\"id\":\"evt_1\"}").as_deref(), Some("evt_1"));
    let listed = r#"{"destination":"U1","events":[{"type":"message","webhookEventId":"01H"}]}"#;
    assert_eq!(id(&[], listed).as_deref(), Some("01H"));
    let several = r#"[{"eventId":100,"subscriptionType":"contact.creation"}]"#;
    assert_eq!(id(&[], several).as_deref(), Some("100"));
    let page = r#"{"object":"page","entry":[{"id":"1","changes":[]}]}"#;
    assert_eq!(id(&[], page), None, "the page's");
    for deep in [r#"{"events":["#, "["] {
        let body = deep.repeat(100_000);
        let sent = request(&[], &body);
        assert_eq!((kind(&sent), delivery_id(&sent)), (None, None));
    }
}
