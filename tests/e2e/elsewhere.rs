//! What commands see of a forwarder on another machine, and of what lies between.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
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

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_a_proxy_that_refuses_what_the_forwarder_takes() {
    let (mut there, here) = (home(), home());
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let public = format!("http://{}", proxy.local_addr().unwrap());
    there.set("WHRELAY_PUBLIC_URL", &public);
    let bind = port::quiet();
    let cloud = Cloud::start_at(&there, &bind).await;
    let refusing = tokio::spawn(async move {
        let (mut stream, _) = proxy.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer =
            "HTTP/1.1 413 Too Large\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(head).unwrap()
    });
    let url = format!("http://{bind}");
    let flags = ["--forwarder", &url, "--token-file", &cloud.token_file];
    let input = found(&here, flags, "input").await;
    assert_eq!(input["ok"], false, "{input}");
    let hint = input["hint"].as_str().unwrap();
    assert!(hint.contains("client_max_body_size 26214400"), "{hint}");
    let asked = refusing.await.unwrap();
    assert!(asked.contains("content-length: 26214400"), "{asked}");
    assert!(!asked.to_lowercase().contains("authorization"), "{asked}");
}
