//! Webhooks of our own writing in the shape of GitHub's and Stripe's. They must not come from
//! anyone's real account.

use serde_json::json;

/// A webhook to send.
#[derive(Clone, Debug)]
pub(super) struct Webhook {
    pub(super) path: &'static str,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
}

/// The n-th webhook: one after the other from either provider.
pub(super) fn webhook(n: usize) -> Webhook {
    if n.is_multiple_of(2) {
        push(n)
    } else {
        payment(n)
    }
}

fn push(n: usize) -> Webhook {
    let body = json!({
        "ref": "refs/heads/main",
        "before": format!("{:040x}", n),
        "after": format!("{:040x}", n + 1),
        "repository": { "id": 4_100 + n, "full_name": "demo/shop", "private": true },
        "pusher": { "name": "mara", "email": "mara@example.test" },
        "commits": [{
            "id": format!("{:040x}", n + 1),
            "message": format!("Step {n}: make it better — and keep « ünïcode » intact"),
            "added": [], "removed": [], "modified": ["src/lib.rs"],
        }],
    });
    Webhook {
        path: "/github",
        headers: vec![
            ("content-type", "application/json".into()),
            ("user-agent", "GitHub-Hookshot/demo".into()),
            ("x-github-event", "push".into()),
            (
                "x-github-delivery",
                format!("00000000-0000-4000-8000-{n:012x}"),
            ),
        ],
        body: body.to_string().into_bytes(),
    }
}

fn payment(n: usize) -> Webhook {
    let body = json!({
        "id": format!("evt_demo_{n:06}"),
        "object": "event",
        "type": "payment_intent.succeeded",
        "livemode": false,
        "data": { "object": {
            "id": format!("pi_demo_{n:06}"), "object": "payment_intent",
            "amount": 1_000 + n, "currency": "eur", "status": "succeeded",
        } },
    });
    let pretty = serde_json::to_vec_pretty(&body).unwrap_or_default();
    Webhook {
        path: "/stripe",
        headers: vec![
            ("content-type", "application/json; charset=utf-8".into()),
            ("user-agent", "Stripe/1.0 (demo)".into()),
        ],
        body: pretty,
    }
}
