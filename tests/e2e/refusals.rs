//! What a forwarder says of what it refuses, and of files that are missing.

use std::os::unix::fs::PermissionsExt;

use whrelay_tests::eventually;
use whrelay_tests::process::{Cloud, Home};
use whrelay_tests::sender::{client, path_of, raw, send};

use crate::{home, told};

/// Lines of the log that have all of these.
fn logged(cloud: &Cloud, parts: &[&str]) -> usize {
    let log = cloud.process.stderr();
    let has = |line: &&str| parts.iter().all(|part| line.contains(part));
    log.lines().filter(has).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_logged_without_a_key_a_few_at_a_time_and_counted() {
    let home = home();
    let mut cloud = Cloud::start(&home).await;
    let args = [&["--to", "localhost:1"], &cloud.flags()[..]].concat();
    let (_listen, url) = home.listen(&args).await;
    let path = path_of(&url);
    let address = cloud.url.trim_start_matches("http://").parse().unwrap();
    let unknown = format!("{}/in/default-unknown-key/tail", cloud.url);
    for _ in 0..200 {
        let answer = client().post(&unknown).body("x").send().await.unwrap();
        assert_eq!(answer.status(), 404);
    }
    let climbing = format!("POST {path}/a/../b HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(raw(address, climbing.as_bytes()).await.status, 400);
    assert_eq!(raw(address, b"no request\r\n\r\n").await.status, 400);
    let request = client().get(format!("{}/v1/buckets", cloud.url));
    let answer = request.bearer_auth("whr_adm_wrong").send().await.unwrap();
    assert_eq!(answer.status(), 401);
    let peer = "peer=127.0.0.1";
    for parts in [
        ["reason=\"unauthorized\"", "status=401", "/v1/buckets"],
        ["bucket=\"default\"", "status=400", "/in/{default}/a/../b"],
        ["reason=\"bad_request\"", "status=400", "invalid"],
        ["reason=\"not_found\"", "status=404", "/in/defa…/tail"],
    ] {
        let line = || (logged(&cloud, &[&parts[..], &[peer]].concat()) > 0).then_some(());
        eventually(parts[2], line).await;
    }
    // How many of them at once is the unit test's business.
    assert!(logged(&cloud, &["not_found", peer]) < 200);
    let (code, status) = told(&home, &["status"]);
    assert_eq!(code, Some(0), "{status}");
    assert!(status.contains("200 not_found"), "{status}");
    assert!(status.contains("1 unauthorized"), "{status}");
    assert_eq!(cloud.process.terminate().await, Some(0));
    let log = cloud.process.stderr();
    assert!(log.contains("not_found: 200"), "{log}");
    let key = path.rsplit('-').next().unwrap();
    assert!(!log.contains(key) && !log.contains("unknown-key"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_does_not_last_is_warned_of() {
    let home = home();
    let in_memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = in_memory.path().to_str().unwrap();
    let mut forwarder = home.start(&["forwarder", "--bind", "127.0.0.1:0", "--data-dir", dir]);
    let warned = || forwarder.stderr().contains("is in memory").then_some(());
    eventually("it is warned of", warned).await;
    // The other commands find it there, too.
    let shown = || {
        let (code, status) = told(&home, &["status", "--data-dir", dir]);
        (code == Some(0) && status.contains("forwarder  http://127.0.0.1")).then_some(())
    };
    eventually("status shows it", shown).await;
    assert_eq!(forwarder.terminate().await, Some(0));
}

/// The soft limit was left as it was: at 1024 files the input stood still, in silence.
#[tokio::test(flavor = "multi_thread")]
async fn few_open_files_are_said_once_and_connections_that_come_anyway_stop_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (script, files) = (dir.path().join("few"), 100);
    let text = format!(
        "#!/bin/sh\nulimit -n {files}\nexec {} \"$@\"\n",
        env!("CARGO_BIN_EXE_whrelay-e2e")
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o700)).unwrap();
    let (few, plenty) = (Home::new(script.to_str().unwrap()), home());
    let cloud = Cloud::start(&few).await;
    let warned = "it serves 50 connections at once instead of 16384";
    assert_eq!(logged(&cloud, &[warned]), 1);
    let args = [&["--to", "localhost:1"], &cloud.flags()[..]].concat();
    let (_listen, url) = plenty.listen(&args).await;
    let address = cloud.url.trim_start_matches("http://");
    let mut open = Vec::new();
    for _ in 0..3 * files {
        open.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    for _ in 0..10 {
        send(&url, "new").await;
    }
    assert_eq!(logged(&cloud, &["no connection can be accepted"]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("soft");
    let text = format!(
        "#!/bin/sh\nulimit -S -n 100\nexec {} \"$@\"\n",
        env!("CARGO_BIN_EXE_whrelay-e2e")
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o700)).unwrap();
    let home = Home::new(script.to_str().unwrap());
    let cloud = Cloud::start(&home).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", cloud.process.pid())).unwrap();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let fields: Vec<_> = line.unwrap().split_whitespace().collect();
    assert_eq!(fields[0], fields[1], "{fields:?}");
}
