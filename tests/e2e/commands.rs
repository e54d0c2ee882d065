//! What people do to events from another terminal, and the commands around it.

use serde_json::Value;
use whrelay_tests::eventually;
use whrelay_tests::process::{Cloud, Home};
use whrelay_tests::receiver::{Received, Receiver, Reply};
use whrelay_tests::sender::send;

use crate::{home, json_lines, text, told};

/// Bodies that begin with `bad` are refused.
fn picky(r: &Received) -> Reply {
    match r.body.starts_with(b"bad") && r.header("x-whrelay-replay").is_empty() {
        true => Reply::Status(422),
        false => Reply::Status(200),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_are_grouped_replayed_by_filter_and_history_stays() {
    let (home, receiver) = (home(), Receiver::scripted(picky).await);
    let (mut listen, url) = home.listen(&["--to", &receiver.target()]).await;
    let mut last = String::new();
    for n in 0..5 {
        last = send(&format!("{url}/orders?n={n}"), format!("bad {n}")).await;
    }
    let good = send(&url, "good").await;
    listen.wait_state(&last, "dead").await;
    listen.wait_state(&good, "sent").await;
    let groups = home.run(&["events", "--status", "dead", "--group", "--json"]);
    let groups = json_lines(&groups.stdout);
    assert_eq!(groups.len(), 1, "{groups:?}");
    let said = (groups[0]["count"].as_u64(), groups[0]["status"].as_u64());
    assert_eq!(said, (Some(5), Some(422)));
    let people = text(&home.run(&["events", "--group"]).stdout);
    let place = format!("5 × 422 at http://{}/orders", receiver.target());
    assert!(people.contains(&place), "{people}");

    let dry = home.run(&["replay", "--status", "dead", "--dry-run", "--json"]);
    assert_eq!(json_lines(&dry.stdout).len(), 5);
    assert_eq!(receiver.count(), 6, "a dry run delivers nothing");
    let (done, said) = told(&home, &["replay", "--status", "dead", "--wait"]);
    assert_eq!(done, Some(0), "{said}");
    assert_eq!(receiver.count(), 11);
    let dead = json_lines(&home.run(&["events", "--status", "dead", "--json"]).stdout);
    assert!(dead.is_empty(), "{dead:?}");
    let shown = home.run(&["events", "show", &last, "--attempts", "--json"]);
    let states: Vec<Value> = json_lines(&shown.stdout)
        .into_iter()
        .map(|attempt| attempt["state"].clone())
        .collect();
    assert_eq!(states, ["dead", "sent"], "the old record stays");
    let (none, said) = told(&home, &["replay", "--status", "dead"]);
    assert_eq!(none, Some(3), "{said}");
    for unclear in [&["replay"][..], &["discard"], &["replay", &good, "--all"]] {
        let (unclear, said) = told(&home, unclear);
        assert_eq!(unclear, Some(2), "{said}");
        assert!(
            said.contains("error: ") && said.contains("hint: "),
            "{said}"
        );
    }
    let (times, said) = told(
        &home,
        &["replay", &good, "--times", "3", "--shuffle", "--wait"],
    );
    assert_eq!(times, Some(0), "{said}");
    assert_eq!(receiver.count(), 14);
    assert_eq!(listen.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_to_another_target_goes_there_also_after_a_restart() {
    let home = home();
    let (mut receiver, mut other) = (Receiver::start().await, Receiver::start().await);
    let (to, elsewhere) = (receiver.target(), other.target());
    let (mut listen, url) = home.listen(&["--to", &to]).await;
    let id = send(&url, "x").await;
    listen.wait_state(&id, "sent").await;
    other.stop();
    let (begun, said) = told(&home, &["replay", &id, "--to", &elsewhere]);
    assert_eq!(begun, Some(0), "{said}");
    listen.wait_state(&id, "stalled").await;
    assert_eq!(listen.terminate().await, Some(0));
    let (mut listen, url) = home.listen(&["--to", &to]).await;
    other.open_again().await;
    eventually("it arrives there", || (other.count() == 1).then_some(())).await;
    assert_eq!(receiver.count(), 1);
    listen.wait_state(&id, "sent").await;
    // A replay to the agent's own URL is one to its destination, whose queue goes to its next URL.
    receiver.stop();
    let (begun, said) = told(&home, &["replay", &id, "--to", &to]);
    assert_eq!(begun, Some(0), "{said}");
    let id = send(&url, "y").await;
    listen
        .wait("received", |line| line["event"] == id.as_str())
        .await;
    assert_eq!(listen.terminate().await, Some(0));
    let (mut listen, _) = home.listen(&["--to", &elsewhere]).await;
    eventually("both go there", || (other.count() == 3).then_some(())).await;
    assert!(other.events()[1..].contains(&id));
    assert_eq!(receiver.count(), 1);
    assert_eq!(listen.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_discarded_by_a_person_and_stays_visible() {
    let (home, mut receiver) = (home(), Receiver::start().await);
    receiver.stop();
    let to = receiver.target();
    let (mut listen, url) = home.listen(&["--to", &to]).await;
    let mut ids = Vec::new();
    for n in 0..4 {
        ids.push(send(&url, n.to_string()).await);
    }
    listen
        .wait("received", |line| line["event"] == ids[3].as_str())
        .await;
    let (one, said) = told(&home, &["discard", &ids[0]]);
    assert_eq!(one, Some(0), "{said}");
    let (dry, said) = told(&home, &["discard", "--all", "--dry-run"]);
    assert_eq!(dry, Some(0));
    assert!(said.contains("3 events would be discarded"), "{said}");
    assert_eq!(listen.terminate().await, Some(0));
    let (rest, said) = told(&home, &["discard", "--until", "0s"]);
    assert_eq!(rest, Some(0), "{said}");
    let dead = home.run(&["events", "--reason", "discarded", "--json"]);
    assert_eq!(json_lines(&dead.stdout).len(), 4);
    let logs = json_lines(&home.run(&["logs", "--event", &ids[3], "--json"]).stdout);
    assert_eq!(logs.last().unwrap()["reason"], "discarded");
    receiver.open_again().await;
    let (_listen, _) = home.listen(&["--to", &to]).await;
    let (back, said) = told(&home, &["replay", &ids[2], "--wait"]);
    assert_eq!(back, Some(0), "{said}");
    assert_eq!(receiver.events(), [ids[2].clone()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn trigger_signs_with_the_secret_at_the_place_that_is_named() {
    let (mut home, receiver) = (home(), Receiver::start().await);
    let to = receiver.target();
    home.set("HOOK_SECRET", "secret");
    for secret in ["secret", "env:HOOK_SECRET"] {
        let args = [
            "trigger",
            "github",
            "--body",
            "/dev/null",
            "--to",
            &to,
            "--secret",
            secret,
        ];
        let (code, said) = told(&home, &args);
        assert_eq!(code, Some(0), "{said}");
        let is_seen = said.contains("every user of this machine");
        assert_eq!(is_seen, secret == "secret", "{said}");
    }
    let seen = receiver.seen();
    let signature = |n: usize| seen[n].header("x-hub-signature-256");
    assert!(!signature(0).is_empty());
    assert_eq!(signature(0), signature(1));
    let (code, said) = told(&home, &["events", "evt_01"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("whrelay events show evt_01"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_exported_whole() {
    let (home, receiver) = (home(), Receiver::start().await);
    let (listen, url) = home.listen(&["--to", &receiver.target()]).await;
    let one = send(&format!("{url}/x?y=1"), "hello").await;
    let two = send(&url, b"\xff\x00".to_vec()).await;
    for id in [&one, &two] {
        listen.wait_state(id, "sent").await;
    }
    let lines = json_lines(&home.run(&["events", "export", "--format", "json"]).stdout);
    assert_eq!(lines.len(), 2);
    assert_eq!(
        (&lines[0]["event"], &lines[1]["body_base64"]),
        (&Value::from(one.clone()), &Value::from("/wA="))
    );
    assert_eq!(lines[0]["log"][0]["status"], 200);
    let file = home.path().join("out.har");
    let file = file.to_str().unwrap();
    let (done, said) = told(
        &home,
        &["events", "export", "--format", "har", "--output", file],
    );
    assert_eq!(done, Some(0), "{said}");
    let har: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let entries = har["log"]["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[0]["request"]["postData"]["text"], "hello");
    assert_eq!(entries[0]["request"]["queryString"][0]["name"], "y");
    assert_eq!(entries[1]["request"]["postData"]["encoding"], "base64");
    let (none, _) = told(
        &home,
        &["events", "export", "--format", "har", "--status", "dead"],
    );
    assert_eq!(none, Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_are_sent_signed_and_the_test_command_waits_for_them() {
    let (home, receiver) = (home(), Receiver::start().await);
    let to = receiver.target();
    let binary = env!("CARGO_BIN_EXE_whrelay-e2e");
    let trigger =
        format!("{binary} trigger github push --secret s --to $WHRELAY_URL/github --count 3");
    let test = |expect: &str, kind: &str, command: &str| {
        let kind = format!("kind={kind}");
        let args = [
            "test",
            "--expect",
            expect,
            "--match",
            "path=/github",
            "--match",
            &kind,
            "--to",
            &to,
            "--timeout",
            "20s",
            "--",
            "sh",
            "-c",
            command,
        ];
        told(&home, &args)
    };
    let (done, said) = test("3", "push", &trigger);
    assert_eq!(done, Some(0), "{said}");
    let seen = receiver.seen();
    assert_eq!(seen.len(), 3);
    for request in &seen {
        assert_eq!(request.header("x-github-event"), "push");
        let signature = request.header("x-hub-signature-256");
        assert_eq!(signature, hub_signature("s", &request.body));
    }
    let (failed, said) = test("1", "push", "exit 7");
    assert_eq!(failed, Some(7), "{said}");
    let (many, said) = test("2", "push", &trigger);
    assert_eq!(many, Some(1), "{said}");
    assert!(said.contains("2 expected"), "{said}");
    let args = ["test", "--expect", "1", "--to", &to, "--timeout", "300ms"];
    let (late, said) = told(&home, &args);
    assert_eq!(late, Some(1), "{said}");
    assert!(said.contains("0 of 1 event were delivered"), "{said}");
    for unclear in [
        &["trigger"][..],
        &["trigger", "gitlab"],
        &["trigger", "github", "nothing"],
        &["trigger", "github", "push"],
    ] {
        let (unclear, said) = told(&home, unclear);
        assert_eq!(unclear, Some(2), "{said}");
        assert!(said.contains("hint: "), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn test_ends_as_its_command_does_and_takes_its_children_with_it() {
    let refusing = Receiver::scripted(|_| Reply::Status(422)).await;
    let (home, receiver) = (home(), Receiver::start().await);
    let (good, bad) = (receiver.target(), refusing.target());
    let test = |to: &str, more: &[&str], script: &str| {
        let args = ["test", "--expect", "1", "--timeout", "20s", "--to", to];
        told(
            &home,
            &[&args[..], more, &["--", "sh", "-c", script]].concat(),
        )
    };
    let binary = env!("CARGO_BIN_EXE_whrelay-e2e");
    let two = format!("{binary} trigger github push --to $WHRELAY_URL --count 2");
    let (done, said) = test(&good, &["--at-least"], &two);
    assert_eq!(done, Some(0), "{said}");
    // What is refused for good is not waited for.
    let began = std::time::Instant::now();
    let slow = format!("{binary} trigger github push --to $WHRELAY_URL; sleep 600");
    let (done, said) = test(&bad, &[], &slow);
    assert_eq!(done, Some(1), "{said}");
    assert!(said.contains("is not tried again"), "{said}");
    assert!(began.elapsed().as_secs() < 19, "{said}");
    let (done, said) = test(&good, &[], "kill -TERM $$");
    assert_eq!(done, Some(143), "{said}");
    let args = [
        "test",
        "--expect",
        "1",
        "--to",
        &good,
        "--",
        "/no/such/program",
    ];
    assert_eq!(told(&home, &args).0, Some(127));
    let pid = home.path().join("pid");
    let script = format!("sleep 600 & echo $! >{}; wait", pid.display());
    let args = [
        "test",
        "-q",
        "--expect",
        "1",
        "--timeout",
        "2s",
        "--to",
        &good,
    ];
    let out = home.run(&[&args[..], &["--", "sh", "-c", &script]].concat());
    assert_eq!(
        (out.status.code(), text(&out.stdout).as_str()),
        (Some(1), "")
    );
    let pid = std::fs::read_to_string(pid).unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    let gone = || {
        let state = std::fs::read_to_string(&stat);
        let runs = state.is_ok_and(|text| !text.contains(") Z "));
        (!runs).then_some(())
    };
    eventually("its child ends", gone).await;
}

fn hub_signature(secret: &str, body: &[u8]) -> String {
    use hmac::{Hmac, KeyInit, Mac};
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body);
    let bytes = mac.finalize().into_bytes();
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256={hex}")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_flaky_receiver_stands_by_itself() {
    let home = home();
    let flaky = home.start(&["flaky", "--port", "0", "--fail", "50%", "--json"]);
    let ready = flaky.wait("ready", |_| true).await;
    let to = format!("localhost:{}", ready["port"]);
    // Of so many tries by chance, none fails all of them.
    let schedule = ["1s"; 60].join(",");
    let (listen, url) = home.listen(&["--to", &to, "--schedule", &schedule]).await;
    let has_answered = |status| flaky.all("request").iter().any(|r| r["status"] == status);
    for n in 0..100 {
        let id = send(&url, n.to_string()).await;
        listen.wait_state(&id, "sent").await;
        if has_answered(503) && has_answered(200) {
            return;
        }
    }
    panic!("not both answers: {:?}", flaky.all("request"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_its_forwarder_ends_where_it_is_told_to() {
    let (there, here) = (home(), home());
    let receiver = Receiver::start().await;
    let mut cloud = whrelay_tests::process::Cloud::start(&there).await;
    let (forwarder, file) = (cloud.url.clone(), cloud.token_file.clone());
    let to = receiver.target();
    let flags = [
        "--to",
        &to,
        "--forwarder",
        &forwarder,
        "--token-file",
        &file,
        "--exit-on-disconnect",
        "1s",
    ];
    let (mut listen, _) = here.listen(&flags).await;
    cloud.process.kill();
    let ended = listen.ended().await;
    assert_eq!(ended.code(), Some(5), "{}", listen.stderr());
}

#[test]
fn shells_and_man_are_told_of_every_command() {
    let mut home = home();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = text(&home.run(&["completions", shell]).stdout);
        assert!(script.contains("exit-on-disconnect"), "{shell}");
    }
    home.set("SOURCE_DATE_EPOCH", "1767225600");
    let page = text(&home.run(&["man"]).stdout);
    let title = page.lines().find(|line| line.starts_with(".TH whrelay"));
    assert!(title.unwrap().contains("2026-01-01"), "{page}");
    let dir = home.path().join("man");
    let written = home.run(&["man", "--dir", dir.to_str().unwrap()]);
    assert_eq!(written.status.code(), Some(0));
    assert!(dir.join("whrelay-listen.1").exists());
}

/// What `config show` says of a key: its value and where that is from.
fn configured(home: &Home, args: &[&str], key: &str) -> (Value, String) {
    let out = home.run(&[args, &["config", "show", "--json"]].concat());
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let lines = json_lines(&out.stdout);
    let line = lines.iter().find(|line| line["key"] == key).unwrap();
    let origin = line["origin"].as_str().unwrap().to_owned();
    (line["values"].clone(), origin)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_typed_comes_before_the_environment_and_the_files() {
    let (mut home, receiver) = (home(), Receiver::start().await);
    let user = home.path().join(".config/whrelay");
    std::fs::create_dir_all(&user).unwrap();
    let user_file = user.join("config.toml");
    std::fs::write(
        &user_file,
        "bucket = \"user\"\nmax_in_flight = 3\nrate = \"5/s\"\n",
    )
    .unwrap();
    let project = format!(
        "to = \"{}\"\nbucket = \"project\"\n[profile.prod]\nbucket = \"prod\"\n",
        receiver.target()
    );
    std::fs::write(home.path().join("whrelay.toml"), project).unwrap();
    let is = |home: &Home, args: &[&str], key, value: &str, from: &str| {
        let (values, origin) = configured(home, args, key);
        assert_eq!(values, serde_json::json!([value]), "{key}");
        assert!(origin.ends_with(from), "{key}: {origin}");
    };
    is(&home, &[], "bucket", "project", "whrelay.toml:2");
    is(
        &home,
        &["--profile", "prod"],
        "bucket",
        "prod",
        "whrelay.toml:4",
    );
    is(&home, &[], "rate", "5/s", "config.toml:3");
    is(&home, &[], "schedule", "medium", "default");
    let (check, said) = told(&home, &["config", "check"]);
    assert_eq!(check, Some(0), "{said}");
    let (mut listen, url) = home.listen(&[]).await;
    assert!(url.contains("/in/project-"), "{url}");
    let id = send(&url, "x").await;
    listen.wait_state(&id, "sent").await;
    assert_eq!(listen.terminate().await, Some(0));
    home.set("WHRELAY_BUCKET", "env");
    is(&home, &[], "bucket", "env", "WHRELAY_BUCKET");
    let (mut listen, url) = home.listen(&["3999", "--bucket", "typed"]).await;
    assert!(url.contains("/in/typed-"), "{url}");
    let targets = &listen.all("ready")[0]["targets"];
    let only = serde_json::json!(["http://localhost:3999"]);
    assert_eq!(
        *targets, only,
        "a target that is typed takes the place of others"
    );
    assert_eq!(listen.terminate().await, Some(0));
}

#[test]
fn a_mistake_in_a_file_is_named_by_its_line() {
    let home = home();
    let file = home.path().join("whrelay.toml");
    for (written, at) in [
        ("to = ", "whrelay.toml:1: "),
        ("\nrate = \"fast\"", "whrelay.toml:2: rate: "),
        ("max_in_flight = 0", "whrelay.toml:1: max_in_flight: "),
        (
            "colour = \"red\"",
            "whrelay.toml:1: there is no key `colour`",
        ),
        ("[listen]\nto = \"3000\"", "whrelay.toml:1: "),
    ] {
        std::fs::write(&file, written).unwrap();
        for args in [&["config", "check"][..], &["listen", "3000"], &["status"]] {
            let (refused, said) = told(&home, args);
            assert_eq!(refused, Some(2), "{written}: {said}");
            assert!(said.contains(at), "{written}: {said}");
        }
    }
    assert_eq!(home.run(&["--help"]).status.code(), Some(0));
    std::fs::write(&file, "").unwrap();
    let (unknown, said) = told(&home, &["--profile", "prod", "status"]);
    assert_eq!(unknown, Some(2), "{said}");
    std::fs::remove_file(&file).unwrap();
    let (none, said) = told(&home, &["config", "check"]);
    assert_eq!(none, Some(3), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_looks_at_everything_around_the_stores() {
    let (there, here) = (home(), home());
    let nothing = here.run(&["doctor"]);
    assert_eq!(nothing.status.code(), Some(0), "{}", text(&nothing.stdout));
    let mut receiver = Receiver::start().await;
    let cloud = Cloud::start(&there).await;
    let (flags, to) = (cloud.flags(), receiver.target());
    let (_listen, _) = here.listen(&[&flags[..], &["--to", &to]].concat()).await;
    let doctor = |args: &[&str]| {
        let out = here.run(&[&["doctor", "--json"], args].concat());
        (out.status.code(), json_lines(&out.stdout))
    };
    let failed = |checks: &[Value]| -> Vec<String> {
        let failed = checks.iter().filter(|check| check["ok"] == false);
        failed
            .map(|check| check["check"].as_str().unwrap().to_owned())
            .collect()
    };
    let (code, checks) = doctor(&flags);
    assert_eq!(code, Some(0), "{checks:?}");
    for kind in [
        "config",
        "data",
        "forwarder",
        "token",
        "clock",
        "agent",
        "target",
        "store",
    ] {
        assert!(
            checks.iter().any(|check| check["check"] == kind),
            "{kind}: {checks:?}"
        );
    }
    receiver.stop();
    let (code, checks) = doctor(&flags);
    assert_eq!(
        (code, failed(&checks)),
        (Some(1), vec!["target".to_owned()])
    );
    let (_, checks) = doctor(&["--forwarder", &cloud.url]);
    assert!(failed(&checks).contains(&"token".to_owned()), "{checks:?}");
    let (_, checks) = doctor(&["--forwarder", "http://127.0.0.1:9"]);
    assert!(
        failed(&checks).contains(&"forwarder".to_owned()),
        "{checks:?}"
    );
    let every_failure_has_a_hint = checks
        .iter()
        .all(|c| c["ok"] == true || c["hint"].is_string());
    assert!(every_failure_has_a_hint, "{checks:?}");
}
