//! The curl command of an event.

use http::Method;
use whrelay_tests::eventually;
use whrelay_tests::process::Home;
use whrelay_tests::receiver::{Received, Receiver};
use whrelay_tests::sender::{path_of, raw};

use crate::{home, text};

/// The curl command of a delivered event, and the request that it makes.
fn made_by_curl(home: &Home, receiver: &Receiver, delivered: &Received) -> (String, Received) {
    let show = ["events", "show", &delivered.event(), "--curl"];
    let command = text(&home.run(&show).stdout);
    let ran = std::process::Command::new("sh")
        .args(["-c", &command])
        .output();
    assert!(ran.unwrap().status.success(), "{command}");
    let made = receiver.seen().pop().unwrap();
    assert!(made.event().is_empty(), "curl has made it");
    (command, made)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_curl_command_makes_the_same_request_to_the_byte() {
    let (home, receiver) = (home(), Receiver::start().await);
    let (_listen, url) = home.listen(&["--to", &receiver.target()]).await;
    let requests: [(Method, Vec<u8>); 4] = [
        (Method::PUT, b"it's {\"a\": \"b c\"}\n\n".to_vec()),
        (Method::PUT, (0..=255).cycle().take(70_000).collect()),
        (Method::PUT, Vec::new()),
        (Method::HEAD, Vec::new()),
    ];
    let client = whrelay_tests::sender::client();
    for (method, body) in requests {
        let bytes = http::HeaderValue::from_bytes(b"caf\xe9 'quoted'").unwrap();
        let request = client
            .request(method, format!("{url}/a%20b/[x]?q=1&q='2'"))
            .header("x-bytes", bytes)
            .header("x-twice", "1")
            .header("x-twice", "2")
            .header("x-empty", "")
            .body(body);
        let before = receiver.count();
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        eventually("it arrives", || (receiver.count() > before).then_some(())).await;
        let delivered = receiver.seen().pop().unwrap();
        let (command, made) = made_by_curl(&home, &receiver, &delivered);
        let plain = |r: &Received| {
            let ours = |name: &str| name.to_lowercase().starts_with("x-whrelay-");
            let mut fields: Vec<_> = r.headers.clone();
            fields.retain(|(name, _)| !ours(name));
            fields
                .iter_mut()
                .for_each(|(name, _)| *name = name.to_lowercase());
            fields.sort();
            (r.method.clone(), r.path.clone(), fields, r.body.clone())
        };
        assert_eq!(plain(&made), plain(&delivered), "{command}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_curl_command_sends_a_raw_path_as_it_came() {
    let (home, receiver) = (home(), Receiver::start().await);
    let (_listen, url) = home.listen(&["--to", &receiver.target()]).await;
    let address = url.parse::<url::Url>().unwrap();
    let address = address.socket_addrs(|| None).unwrap().remove(0);
    let tails = [
        "/caf\u{e9}".as_bytes(),
        b"/a//\"b\"",
        "?q=<\u{4f60}>&r=`id`".as_bytes(),
        b"/caf\xe9'\"?\xff",
    ];
    for tail in tails {
        let (path, shown) = (path_of(&url), tail.escape_ascii());
        let head = b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
        let request = [b"POST ", path.as_bytes(), tail, head].concat();
        let before = receiver.count();
        assert_eq!(raw(address, &request).await.status, 200, "{shown}");
        eventually("it arrives", || (receiver.count() > before).then_some(())).await;
        let delivered = receiver.seen().pop().unwrap();
        let (command, made) = made_by_curl(&home, &receiver, &delivered);
        assert_eq!(made.target, delivered.target, "{command}");
        assert!(made.target.ends_with(tail), "{}", made.path);
    }
    let har = home.run(&["events", "export", "--format", "har"]);
    let har: serde_json::Value = serde_json::from_slice(&har.stdout).unwrap();
    let entries = har["log"]["entries"].as_array().unwrap();
    let ends = |entry: &serde_json::Value| {
        entry["request"]["url"]
            .as_str()
            .unwrap()
            .ends_with("/caf%E9'\"?%FF")
    };
    assert!(entries.iter().any(ends), "{entries:?}");
    let list = text(&home.run(&["events"]).stdout);
    assert!(list.contains("/caf\\xe9'\"?\\xff"), "{list}");
}
