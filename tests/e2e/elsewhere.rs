//! What commands see of a forwarder on another machine, and of what lies between.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use whrelay_tests::port;
use whrelay_tests::process::{Cloud, Home};
use whrelay_tests::proxy::Proxy;
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender::send;

use crate::{home, json_lines, told};

#[tokio::test(flavor = "multi_thread")]
async fn the_status_shows_how_many_events_wait_at_the_forwarder_that_is_configured() {
    let (there, here, receiver) = (home(), home(), Receiver::start().await);
    let mut cloud = Cloud::start(&there).await;
    let to = receiver.target();
    let args = [&cloud.flags()[..], &["--name", "mine", "--to", &to]].concat();
    let (mut listen, url) = here.listen(&args).await;
    assert_eq!(listen.terminate().await, Some(0));
    for n in 0..3 {
        send(&url, format!("{n}")).await;
    }
    let status = [&["status"][..], &cloud.flags()].concat();
    let (code, said) = told(&here, &status);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("default: 3 events waiting"), "{said}");
    assert!(said.contains("mine  away  3 events waiting"), "{said}");
    let lines = json_lines(&here.run(&[&status[..], &["--json"]].concat()).stdout);
    let forwarders: Vec<_> = lines
        .iter()
        .filter(|it| it["type"] == "forwarder")
        .collect();
    assert_eq!(forwarders.len(), 1, "{lines:?}");
    assert_eq!(forwarders[0]["buckets"][0]["waiting"], 3);

    // Its own machine shows it once, whether it is named or not.
    let lines = json_lines(&there.run(&[&status[..], &["--json"]].concat()).stdout);
    assert_eq!(lines.len(), 1, "{lines:?}");

    std::fs::write(here.path().join("wrong"), "whr_wrong").unwrap();
    let wrong = here.path().join("wrong").display().to_string();
    let flags = ["status", "--forwarder", &cloud.url, "--token-file", &wrong];
    assert_eq!(told(&here, &flags).0, Some(4));
    cloud.process.kill();
    let (code, said) = told(&here, &[&["status"][..], &cloud.flags()].concat());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("cannot reach the forwarder"), "{said}");
}

/// The checks of the doctor about a forwarder: what it found of one kind.
async fn found(home: &Home, flags: [&str; 4], kind: &str) -> Value {
    let args = [&["doctor", "--json"][..], &flags].concat();
    let checks = tokio::task::block_in_place(|| json_lines(&home.run(&args).stdout));
    let found = checks.iter().find(|check| check["check"] == kind);
    found.unwrap_or_else(|| panic!("{checks:?}")).clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_measures_how_long_a_proxy_keeps_an_idle_tunnel() {
    let (there, here) = (home(), home());
    let bind = port::quiet();
    let cloud = Cloud::start_at(&there, &bind).await;
    let patience = Duration::from_secs(3);
    let impatient = Proxy::impatient(bind.parse().unwrap(), patience).await;
    let url = format!("http://{}", impatient.address);
    let through = ["--forwarder", &url, "--token-file", &cloud.token_file];
    let tunnel = found(&here, through, "tunnel").await;
    assert_eq!(tunnel["ok"], false, "{tunnel}");
    let result = tunnel["result"].as_str().unwrap();
    assert_eq!(result, "cut after 3 s without traffic");
    let hint = tunnel["hint"].as_str().unwrap();
    assert!(hint.contains("proxy_read_timeout"), "{hint}");
    let tunnel = found(&here, cloud.flags(), "tunnel").await;
    assert_eq!(tunnel["ok"], true, "{tunnel}");
}

/// The head of a request.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// A server that answers each request by its head, or passes it on to another one.
async fn server(
    answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    other: String,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let head = head(&mut near).await;
            if let Some(answer) = answer(&head) {
                near.write_all(answer.as_bytes()).await.unwrap();
                continue;
            }
            let mut far = TcpStream::connect(&other).await.unwrap();
            far.write_all(head.as_bytes()).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut near, &mut far).await });
        }
    });
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_a_proxy_that_refuses_what_the_forwarder_takes() {
    let (there, here) = (home(), home());
    let bind = port::quiet();
    let cloud = Cloud::start_at(&there, &bind).await;
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let seen = Arc::clone(&asked);
    let refuses = move |head: &str| {
        let is_input = head.starts_with("POST /in/ ");
        is_input.then(|| {
            seen.lock().unwrap().push(head.to_lowercase());
            "HTTP/1.1 413 Too Large\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n"
                .to_owned()
        })
    };
    let url = server(refuses, bind).await;
    let flags = ["--forwarder", &url, "--token-file", &cloud.token_file];
    let input = found(&here, flags, "input").await;
    assert_eq!(input["ok"], false, "{input}");
    let hint = input["hint"].as_str().unwrap();
    assert!(hint.contains("client_max_body_size 26214400"), "{hint}");
    let asked = asked.lock().unwrap().remove(0);
    assert!(asked.contains("content-length: 26214400"), "{asked}");
    assert!(!asked.contains("authorization"), "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_passes_no_upgrade_is_named_and_dialled_again() {
    let (there, here) = (home(), home());
    let bind = port::quiet();
    let cloud = Cloud::start_at(&there, &bind).await;
    let without_upgrade = |head: &str| {
        let json = r#"{"detail":"a websocket is needed"}"#;
        let length = json.len();
        let answer = format!(
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\n\
             Content-Length: {length}\r\n\r\n{json}"
        );
        head.starts_with("GET /v1/tunnel").then_some(answer)
    };
    let url = server(without_upgrade, bind).await;
    let flags = ["--forwarder", &url, "--token-file", &cloud.token_file];
    let listen = [&["listen", "3000"][..], &flags].concat();
    let (code, said) = tokio::task::block_in_place(|| told(&here, &listen));
    // It would be 1 where dialling again cannot help.
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("proxy_set_header Upgrade"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn words_of_a_forwarder_elsewhere_do_not_control_the_terminal() {
    let (there, here) = (home(), home());
    let cloud = Cloud::start(&there).await;
    let evil = r"\u001b]0;evil\u0007\u009b2J";
    let answer = |status: &str, kind: &str, json: String| {
        let length = json.len();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n{json}"
        )
    };
    let answers = move |head: &str| {
        let is_status = head.starts_with("GET /v1/status");
        Some(if is_status {
            let bucket = format!(r#"{{"bucket":"{evil}","waiting":1,"refuses":"{evil}"}}"#);
            let refused = format!(r#"{{"{evil}":1}}"#);
            let json = format!(
                r#"{{"type":"forwarder","url":"{evil}","pid":1,"buckets":[{bucket}],"refused":{refused}}}"#
            );
            answer("200 OK", "application/json", json)
        } else {
            let json = format!(r#"{{"detail":"{evil}"}}"#);
            answer("401 Unauthorized", "application/problem+json", json)
        })
    };
    let url = server(answers, String::new()).await;
    for command in ["status", "doctor"] {
        let flags = ["--forwarder", &url, "--token-file", &cloud.token_file];
        let args = [&[command][..], &flags].concat();
        let said = tokio::task::block_in_place(|| told(&here, &args).1);
        assert!(said.contains("evil"), "{command}: {said}");
        let mut controls = said.chars().filter(|c| c.is_control() && *c != '\n');
        assert_eq!(controls.next(), None, "{command}: {said:?}");
    }
}
