//! GitHub's published example payloads, signed as GitHub signs, and verified by the receiver as a
//! user's code would: over the raw bytes.

use std::collections::HashMap;
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;
use whrelay_tests::agent::{Agent, Setup};
use whrelay_tests::eventually;
use whrelay_tests::receiver::Receiver;
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::{client, id_of};

const SECRET: &[u8] = b"It's a Secret to Everybody";

fn signature(body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET).unwrap();
    mac.update(body);
    let hex: String = mac
        .finalize()
        .into_bytes()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256={hex}")
}

fn examples() -> Vec<(String, Vec<u8>)> {
    let path = "vendors/node_modules/@octokit/webhooks-examples/api.github.com/index.json";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = std::fs::read(&path).expect("GitHub's examples: tests/run.sh installs them");
    let kinds: Value = serde_json::from_slice(&text).unwrap();
    let mut examples = Vec::new();
    for kind in kinds.as_array().unwrap() {
        for example in kind["examples"].as_array().unwrap() {
            let name = kind["name"].as_str().unwrap().to_owned();
            // In both spacings, so that a body that was parsed and written anew would show.
            examples.push((name.clone(), serde_json::to_vec(example).unwrap()));
            examples.push((name, serde_json::to_vec_pretty(example).unwrap()));
        }
    }
    examples
}

#[test]
fn githubs_documented_vector_is_what_we_compute() {
    let documented = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    assert_eq!(signature(b"Hello, World!"), documented);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_published_payload_arrives_with_a_valid_signature() {
    let relay = Relay::start().await;
    let receiver = Receiver::start().await;
    let _agent = Agent::start(Setup::new(&relay, receiver.target())).await;
    let (url, client) = (relay.input("default").await, client());
    let examples = examples();
    assert!(examples.len() > 300, "{} examples", examples.len());
    let mut sent = HashMap::new();
    for (kind, body) in examples {
        let request = client
            .post(format!("{url}/github"))
            .header("x-github-event", &kind)
            .header("x-hub-signature-256", signature(&body))
            .body(body.clone());
        let answer = request.send().await.unwrap().text().await.unwrap();
        sent.insert(id_of(&answer), (kind, body));
    }
    eventually("all arrive", || {
        (receiver.count() >= sent.len()).then_some(())
    })
    .await;
    for got in receiver.seen() {
        let (kind, body) = sent.remove(&got.event()).expect("each arrives once");
        assert_eq!(
            got.header("x-hub-signature-256"),
            signature(&got.body),
            "{kind}"
        );
        assert!(
            got.body == body && got.header("x-github-event") == kind,
            "{kind} changed"
        );
    }
    assert!(sent.is_empty());
}
