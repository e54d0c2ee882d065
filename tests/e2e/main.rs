//! The real binary, as users and scripts meet it. Each test proves a hook-up; the behaviour behind
//! it is tested in process.

#![expect(clippy::unwrap_used, reason = "a test panics where it has to fail")]

mod commands;
mod company;
mod copies;
mod curl;
mod destinations;
mod doors;
mod elsewhere;
mod interactive;
mod refusals;
mod replays;
mod retention;
mod rollback;
mod service;
mod signals;
mod subscriptions;
mod tls;
mod usage;
mod vendors;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::Value;
use whrelay_tests::eventually;
use whrelay_tests::port;
use whrelay_tests::process::{Cloud, Home};
use whrelay_tests::receiver::{Received, Receiver, Reply};
use whrelay_tests::sender::{path_of, send};

fn home() -> Home {
    Home::new(env!("CARGO_BIN_EXE_whrelay-e2e"))
}

/// The exit code, and all that was said.
fn told(home: &Home, args: &[&str]) -> (Option<i32>, String) {
    let out = home.run(args);
    (out.status.code(), text(&out.stdout) + &text(&out.stderr))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json_lines(bytes: &[u8]) -> Vec<Value> {
    text(bytes)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_fresh_machine_with_nothing_configured_it_works() {
    let (home, receiver) = (home(), Receiver::start().await);
    let (mut listen, url) = home.listen(&["--to", &receiver.target()]).await;
    let ready = listen.all("ready").remove(0);
    assert_eq!(ready["bucket"], "default");
    assert_eq!(
        ready["targets"],
        serde_json::json!([format!("http://{}", receiver.target())])
    );
    assert_eq!(
        (ready["queued"].as_u64(), ready["pid"].as_u64()),
        (Some(0), Some(listen.pid().into()))
    );
    let body: Vec<u8> = (0..=255).cycle().take(25 * 1024 * 1024).collect();
    let id = send(&format!("{url}/a%20b?x=1"), body.clone()).await;
    let received = listen
        .wait("received", |line| line["event"] == id.as_str())
        .await;
    assert_eq!(
        (
            received["method"].as_str(),
            received["path"].as_str(),
            received["bytes"].as_u64()
        ),
        (Some("POST"), Some("/a%20b?x=1"), Some(body.len() as u64))
    );
    let attempt = listen.wait_state(&id, "sent").await;
    for (key, value) in [
        ("attempt", Value::from(1)),
        ("status", Value::from(200)),
        ("error", Value::Null),
        ("reason", Value::Null),
        ("next_attempt_at", Value::Null),
        ("phase", Value::from("fast")),
        ("replay", Value::from(false)),
    ] {
        assert_eq!(attempt[key], value, "{key}");
    }
    assert!(attempt["duration_ms"].is_number() && attempt["at"].as_str().unwrap().ends_with('Z'));
    assert!(receiver.seen()[0].body == body, "the body changed");
    assert_eq!(listen.terminate().await, Some(0));
    assert!(!listen.stderr().contains("panicked"), "{}", listen.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_goes_on_with_the_same_url() {
    let (home, mut receiver) = (home(), Receiver::start().await);
    receiver.stop();
    let to = receiver.target();
    let bind = ["--to", &to, "--bind", &port::quiet()];
    let (mut listen, url) = home.listen(&bind).await;
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(send(&url, format!("{n}")).await);
    }
    listen.kill();
    receiver.open_again().await;
    let (_listen, again) = home.listen(&["--to", &to]).await;
    assert_eq!(again, url, "a pasted URL stays good");
    let all = || {
        ids.iter()
            .all(|id| receiver.events().contains(id))
            .then_some(())
    };
    eventually("all arrive", all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_of_its_own_is_killed_and_nothing_is_lost() {
    let (there, here) = (home(), home());
    let receiver = Receiver::start().await;
    let mut cloud = Cloud::start(&there).await;
    let token_file = PathBuf::from(&cloud.token_file);
    let mode = std::fs::metadata(&token_file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let token = std::fs::read_to_string(&token_file).unwrap();
    let said = cloud.process.stderr();
    assert!(said.contains(&cloud.token_file), "where it is: {said}");
    let forwarder = cloud.url.clone();
    let to = receiver.target();
    let flags = [
        "--to",
        &to,
        "--bucket",
        "shop",
        "--forwarder",
        &forwarder,
        "--token-file",
        &cloud.token_file,
    ];
    let (mut listen, url) = here.listen(&flags).await;
    assert!(url.starts_with(&format!("{forwarder}/in/shop-")), "{url}");
    let mut ids = vec![send(&url, "1").await];
    listen.wait_state(&ids[0], "sent").await;
    listen.kill();
    ids.push(send(&url, "while the agent is away").await);
    cloud.process.kill();
    let bind = forwarder.trim_start_matches("http://").to_owned();
    let again = Cloud::start_at(&there, &bind).await;
    assert!(
        !again.process.stderr().contains(token.trim()),
        "shown once only"
    );
    let (mut listen, same) = here.listen(&flags).await;
    assert_eq!(same, url);
    listen.wait_state(&ids[1], "sent").await;
    assert_eq!(receiver.events(), ids);
    assert_eq!(listen.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_terminal_sees_and_replays() {
    let script = |r: &Received| {
        if r.body == b"bad" {
            Reply::Status(400)
        } else {
            Reply::Status(200)
        }
    };
    let (home, receiver) = (home(), Receiver::scripted(script).await);
    let follow = home.start(&["logs", "--follow", "--json"]);
    let (mut listen, url) = home.listen(&["--to", &receiver.target()]).await;
    let good = send(&format!("{url}/x"), "good").await;
    let bad = send(&url, "bad").await;
    listen.wait_state(&bad, "dead").await;
    listen.wait_state(&good, "sent").await;
    follow.wait_state(&good, "sent").await;
    follow.wait_state(&bad, "dead").await;

    for runs in [true, false] {
        let logs = json_lines(&home.run(&["logs", "--json"]).stdout);
        assert_eq!(logs.len(), 2, "{logs:?}");
        let dead = json_lines(&home.run(&["logs", "--json", "--status", "dead"]).stdout);
        assert_eq!(
            (dead.len(), dead[0]["reason"].as_str()),
            (1, Some("rejected"))
        );
        let events = json_lines(&home.run(&["events", "--json"]).stdout);
        let states: Vec<_> = events
            .iter()
            .map(|e| e["state"].as_str().unwrap())
            .collect();
        assert_eq!(states, ["sent", "dead"], "runs: {runs}");
        assert_eq!(events[0]["deliveries"][0]["attempts"], 1);
        assert_eq!(home.run(&["events", "show", &bad, "--body"]).stdout, b"bad");
        let shown = text(&home.run(&["events", "show", &good]).stdout);
        assert!(
            shown.contains("POST /in/…/x") && shown.ends_with("\n\ngood\n"),
            "{shown}"
        );
        let status = json_lines(&home.run(&["status", "--json"]).stdout).remove(0);
        assert_eq!(
            (status["sent"].as_u64(), status["dead"].as_u64()),
            (Some(1), Some(1))
        );
        assert_eq!(status["link"], if runs { "connected" } else { "stopped" });
        assert_eq!(
            home.run(&["events", "show", "evt_00000000000000000000000000"])
                .status
                .code(),
            Some(3)
        );
        if runs {
            assert_eq!(listen.terminate().await, Some(0));
        }
    }
}

/// What started first may end last, when the agent is being stopped and nobody is told of it any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_goes_on_where_it_was_when_the_agent_starts_again() {
    let script = |r: &Received| match &r.body[..] {
        b"slow" => Reply::Hang,
        _ => Reply::Status(200),
    };
    let (home, receiver) = (home(), Receiver::scripted(script).await);
    let to = receiver.target();
    let flags = ["--to", &to, "--timeout", "2s"];
    let (mut listen, url) = home.listen(&flags).await;
    let follow = home.start(&["logs", "--follow", "--json"]);
    let slow = send(&url, "slow").await;
    eventually("it is tried", || (receiver.count() == 1).then_some(())).await;
    let quick = send(&url, "quick").await;
    follow.wait_state(&quick, "sent").await;
    assert_eq!(listen.terminate().await, Some(0));
    let (mut listen, _) = home.listen(&flags).await;
    let first = follow.wait("attempt", |line| line["event"] == slow.as_str());
    assert_eq!(first.await["attempt"], 1);
    let told = |line: &&Value| line["event"] == quick.as_str();
    assert_eq!(follow.all("attempt").iter().filter(told).count(), 1);
    assert_eq!(listen.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn replays_with_and_without_a_running_agent() {
    let script = |r: &Received| {
        if r.body == b"bad" {
            Reply::Status(400)
        } else {
            Reply::Status(200)
        }
    };
    let (home, receiver) = (home(), Receiver::scripted(script).await);
    let (mut listen, url) = home.listen(&["--to", &receiver.target()]).await;
    let good = send(&url, "good").await;
    let bad = send(&url, "bad").await;
    listen.wait_state(&good, "sent").await;
    listen.wait_state(&bad, "dead").await;
    let done = home.run(&["replay", &good, "--wait", "--json"]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert_eq!(json_lines(&done.stdout).pop().unwrap()["state"], "sent");
    let last = receiver.seen().pop().unwrap();
    assert_eq!(
        (last.event(), last.header("x-whrelay-replay")),
        (good.clone(), "1".into())
    );
    assert_eq!(
        last.header("x-whrelay-attempt"),
        "1",
        "a replay counts anew"
    );
    assert_eq!(home.run(&["replay", &bad, "--wait"]).status.code(), Some(1));
    let unknown = home.run(&["replay", "evt_00000000000000000000000000"]);
    assert_eq!(unknown.status.code(), Some(3));
    let elsewhere = Receiver::start().await;
    let to = elsewhere.target();
    assert_eq!(
        home.run(&["replay", &good, "--to", &to, "--wait"])
            .status
            .code(),
        Some(0)
    );
    assert_eq!(elsewhere.events(), std::slice::from_ref(&good));
    assert_eq!(listen.terminate().await, Some(0));

    let now = home.run(&["replay", &good, "--to", &to]);
    assert_eq!(now.status.code(), Some(0), "{}", text(&now.stderr));
    assert_eq!(
        elsewhere.count(),
        2,
        "delivered at once by the command itself"
    );
    let before = receiver.count();
    let queued = home.run(&["replay", &good]);
    assert_eq!(queued.status.code(), Some(0));
    assert!(text(&queued.stderr).contains("the next `whrelay listen` delivers it"));
    assert_eq!(receiver.count(), before);
    let (listen, _) = home.listen(&["--to", &receiver.target()]).await;
    listen
        .wait("attempt", |line| {
            line["event"] == good.as_str() && line["replay"] == true
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_buckets_side_by_side_and_the_same_twice_refused() {
    let (home, one, two) = (home(), Receiver::start().await, Receiver::start().await);
    let (first, url_one) = home.listen(&["--to", &one.target()]).await;
    let (second, url_two) = home
        .listen(&["--to", &two.target(), "--bucket", "other"])
        .await;
    send(&url_one, "1").await;
    send(&url_two, "2").await;
    eventually("each gets its own", || {
        (one.count() == 1 && two.count() == 1).then_some(())
    })
    .await;
    let again = home.run(&["listen", "--to", &one.target()]);
    assert_eq!(again.status.code(), Some(6));
    let said = text(&again.stderr);
    assert!(
        said.starts_with("error: ") && said.contains(&format!("pid {}", first.pid())),
        "{said}"
    );
    assert_eq!(json_lines(&home.run(&["status", "--json"]).stdout).len(), 2);
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_found_by_the_doctor_and_salvaged() {
    let (home, mut receiver) = (home(), Receiver::start().await);
    receiver.stop();
    let to = receiver.target();
    let (mut listen, url) = home.listen(&["--to", &to]).await;
    let stores = |checks: Vec<Value>| -> Vec<Value> {
        let store = |check: &Value| check["check"] == "store";
        checks.into_iter().filter(store).collect()
    };
    let running = stores(json_lines(&home.run(&["doctor", "--json"]).stdout));
    assert!(
        running.iter().all(|check| check["ok"] == true),
        "{running:?}"
    );
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(send(&url, n.to_string()).await);
    }
    for id in &ids {
        listen
            .wait("received", |line| line["event"] == id.as_str())
            .await;
    }
    listen.kill();
    let whole = home.run(&["doctor", "--json"]);
    assert_eq!(whole.status.code(), Some(0), "{}", text(&whole.stdout));
    let checks = stores(json_lines(&whole.stdout));
    assert_eq!(
        checks.len(),
        2,
        "the agent's store and the embedded forwarder's"
    );
    let dir = PathBuf::from(checks[0]["what"].as_str().unwrap());
    let mut bytes = std::fs::read(dir.join("store.redb")).unwrap();
    bytes[..4096].fill(0xee);
    std::fs::write(dir.join("store.redb"), bytes).unwrap();
    let damaged = home.run(&["doctor"]);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(
        text(&damaged.stdout).contains("doctor --salvage"),
        "{}",
        text(&damaged.stdout)
    );
    let salvaged = home.run(&["doctor", "--salvage"]);
    assert_eq!(
        salvaged.status.code(),
        Some(0),
        "{}",
        text(&salvaged.stdout)
    );
    assert!(
        text(&salvaged.stdout).contains("saved 20 events"),
        "{}",
        text(&salvaged.stdout)
    );
    receiver.open_again().await;
    let (_listen, _) = home.listen(&["--to", &to]).await;
    eventually("all of them", || {
        (receiver.count() == ids.len()).then_some(())
    })
    .await;
    let nowhere = home.run(&["doctor", "nowhere"]);
    assert_eq!(nowhere.status.code(), Some(3), "{}", text(&nowhere.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_use_gets_an_error_a_hint_and_its_code() {
    let (home, receiver) = (home(), Receiver::start().await);
    let port = receiver.target().replace("localhost", "127.0.0.1");
    let file = home.path().join("file");
    std::fs::write(&file, "not a token").unwrap();
    let file = file.to_str().unwrap();
    let nobody = "http://127.0.0.1:1";
    let token = "whr_adm_0000000000_0000000000000000000000000000000000000000000_ZZZZZZ";
    for (args, code) in [
        (&["listen"][..], 2),
        (&["listen", "--to", "ftp://x"], 2),
        (&["listen", "3000", "--bucket", "A B"], 2),
        (&["listen", "3000", "--timeout", "never"], 2),
        (&["no-such-command"], 2),
        (&["replay"], 2),
        (&["listen", "3000", "--forwarder", nobody], 4),
        (
            &[
                "listen",
                "3000",
                "--forwarder",
                nobody,
                "--token-file",
                file,
            ],
            4,
        ),
        (
            &["listen", "3000", "--forwarder", nobody, "--token", token],
            4,
        ),
        (&["listen", "3000", "--bind", &port], 6),
        (&["forwarder", "--bind", &port], 6),
        (&["forwarder", "--data-dir", file], 1),
    ] {
        let out = home.run(args);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains("error: "), "{args:?}: {said}");
        assert!(out.stdout.is_empty(), "{args:?}");
    }
    for args in [
        &["--help"][..],
        &["--version"],
        &["listen", "--help"],
        &["events", "show", "--help"],
    ] {
        assert_eq!(home.run(args).status.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_forwarder_and_a_wrong_token_are_told_apart() {
    let (there, here) = (home(), home());
    let cloud = Cloud::start(&there).await;
    let other = home();
    let stranger = Cloud::start(&other).await;
    let listen = |forwarder: &str, token: &str| {
        let out = here.run(&[
            "listen",
            "3000",
            "--forwarder",
            forwarder,
            "--token-file",
            token,
        ]);
        (out.status.code(), text(&out.stderr))
    };
    let (code, said) = listen(&cloud.url, &stranger.token_file);
    assert_eq!(code, Some(4), "{said}");
    let (code, said) = listen("http://127.0.0.1:1", &cloud.token_file);
    assert_eq!(code, Some(5), "{said}");
    assert_eq!(
        said,
        "error: cannot reach the forwarder at http://127.0.0.1:1/: error sending request: tcp \
         connect error: Connection refused (os error 111)\nhint: is the address right, and does \
         `whrelay forwarder` run there?\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn people_get_two_lines_per_delivery_and_no_control_sequences() {
    let (home, receiver) = (home(), Receiver::start().await);
    let (mut listen, url) = home.listen(&["--to", &receiver.target()]).await;
    let client = whrelay_tests::sender::client();
    let evil = http::HeaderValue::from_bytes(b"push\x9b31m").unwrap();
    let request = client
        .post(format!("{url}/hook"))
        .header("x-github-event", evil)
        .body("\u{1b}[2J");
    let id = whrelay_tests::sender::id_of(&request.send().await.unwrap().text().await.unwrap());
    listen.wait_state(&id, "sent").await;
    assert_eq!(listen.terminate().await, Some(0));
    let shown = text(&home.run(&["events", "show", &id]).stdout);
    assert!(
        !shown.chars().any(|c| c.is_control() && c != '\n'),
        "{shown:?}"
    );
    let logs = text(&home.run(&["logs"]).stdout);
    let line = logs.trim_end();
    assert!(
        line.contains(&format!(
            "<-- [200] POST http://{}/hook  ",
            receiver.target()
        )),
        "{line}"
    );
    assert!(line.ends_with(&id), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_stay_out_of_sight() {
    let (there, here) = (home(), home());
    let mut cloud = Cloud::start(&there).await;
    let receiver = Receiver::start().await;
    let token = std::fs::read_to_string(&cloud.token_file).unwrap();
    let secret = token.trim().split('_').nth(3).unwrap().to_owned();
    let flags = [
        "-vv",
        "--to",
        &receiver.target(),
        "--forwarder",
        &cloud.url,
        "--token-file",
        &cloud.token_file,
    ];
    let (mut listen, url) = here.listen(&flags).await;
    let id = send(&url, "x").await;
    listen.wait_state(&id, "sent").await;
    assert_eq!(listen.terminate().await, Some(0));
    assert_eq!(cloud.process.terminate().await, Some(0));
    let key = path_of(&url);
    let said = listen.stderr();
    assert!(!said.contains(&secret) && !said.contains(&key), "{said}");
    let mut left = vec![here.path().to_owned(), there.path().join(".local")];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(
                std::fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if !path.ends_with("admin-token") {
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "the token is in {}", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_delivers_everything() {
    let out = home().run(&["demo", "--events", "30", "--down", "1s"]);
    let said = text(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{said}{}", text(&out.stderr));
    assert!(
        said.contains("30 sent, 30 delivered to the byte, 0 more than once"),
        "{said}"
    );
}
