//! A provider's signature belongs to one event.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use whrelay_core::event::Request;
use whrelay_core::time::Timestamp;
use whrelay_delivery::Resign;
use whrelay_providers::{Key, Keyring, Provider, sign};
use whrelay_tests::agent::{Agent, Setup};
use whrelay_tests::eventually;
use whrelay_tests::receiver::{Received, Receiver};
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::client;

const BODY: &str = r#"{"type":"invoice.paid"}"#;

fn key() -> Key {
    Key::new(Provider::Stripe, "whsec_line").unwrap()
}

/// What Stripe sends beside the body, some seconds ago.
fn signature(ago: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let at = Timestamp::EPOCH.after(now - Duration::from_secs(ago));
    let request = Request {
        method: "POST".to_owned(),
        tail: String::new(),
        query: None,
        headers: Vec::new(),
        body: BODY.into(),
    };
    sign(&key(), &request, "", at).unwrap().fields.remove(0).1
}

/// Sends it, and waits for the request that the target gets.
async fn delivered(url: &str, signature: &str, receiver: &Receiver) -> Received {
    let before = receiver.count();
    let post = client().post(url).header("stripe-signature", signature);
    assert_eq!(post.body(BODY).send().await.unwrap().status(), 200);
    eventually("it arrives", || receiver.seen().get(before).cloned()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_is_not_made_anew_for_a_second_event_that_has_it() {
    let (relay, receiver) = (Relay::start().await, Receiver::start().await);
    let setup = |resign| {
        let mut setup = Setup::new(&relay, receiver.target());
        setup.requests.signatures.keys = Arc::new(Keyring::new(vec![key()]));
        setup.requests.signatures.resign = resign;
        setup
    };
    let agent = Agent::start(setup(Resign::Auto)).await;
    let url = relay.input("default").await;
    let caught = signature(5);
    let first = delivered(&url, &caught, &receiver).await;
    assert_eq!(first.header("stripe-signature"), caught, "it is fresh");

    let _agent = agent.restart(setup(Resign::Always)).await;
    let second = delivered(&url, &caught, &receiver).await;
    assert_eq!(second.header("stripe-signature"), caught);
    assert_eq!(second.header("x-whrelay-original-stripe-signature"), "");

    let own = signature(3);
    let third = delivered(&url, &own, &receiver).await;
    assert_ne!(third.header("stripe-signature"), own);
    assert_eq!(third.header("x-whrelay-original-stripe-signature"), own);
}
