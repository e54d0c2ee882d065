//! Processes on one machine that start, stop and go beside each other.

use serde_json::Value;
use whrelay_tests::eventually;
use whrelay_tests::process::{Cloud, Home};
use whrelay_tests::receiver::{Receiver, Reply};
use whrelay_tests::sender::send;

use crate::{home, text};

/// The exit code and what was said on stderr.
fn told(home: &Home, args: &[&str]) -> (Option<i32>, String) {
    let out = home.run(args);
    (out.status.code(), text(&out.stderr) + &text(&out.stdout))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_stopped_holds_no_command_up() {
    let (home, receiver) = (home(), Receiver::start().await);
    let (listen, _) = home.listen(&["--to", &receiver.target()]).await;
    listen.freeze();
    let awake = format!("kill -CONT {}", listen.pid());
    let (code, said) = told(&home, &["status"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("does not answer") && said.contains(&awake),
        "{said}"
    );
    let (code, said) = told(&home, &["doctor"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("does not answer"), "{said}");
    listen.thaw();
    assert_eq!(told(&home, &["status"]).0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_shows_what_an_agent_that_was_killed_has_on_disk() {
    let (home, receiver) = (home(), Receiver::start().await);
    let (mut listen, url) = home.listen(&["--to", &receiver.target()]).await;
    let id = send(&url, "x").await;
    listen.wait_state(&id, "sent").await;
    listen.kill();
    let follow = home.start(&["logs", "--follow", "--json"]);
    follow.wait_state(&id, "sent").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_start_at_once_on_a_fresh_machine_share_a_forwarder() {
    let (home, one, two) = (home(), Receiver::start().await, Receiver::start().await);
    let (to_one, to_two) = (one.target(), two.target());
    let named_one = ["--to", &to_one, "--name", "one"];
    let named_two = ["--to", &to_two, "--name", "two"];
    let ((_first, url), (_second, same)) =
        tokio::join!(home.listen(&named_one), home.listen(&named_two),);
    assert_eq!(url, same);
    let id = send(&url, "x").await;
    let both = || (one.events() == [id.clone()] && two.events() == [id.clone()]).then_some(());
    eventually("both get it", both).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_of_the_command_that_a_test_runs_are_its_own() {
    let (home, receiver) = (home(), Receiver::start().await);
    let cloud = Cloud::start(&home).await;
    let to = receiver.target();
    let trigger = r#""$0" trigger github push --to "$WHRELAY_URL""#;
    let args = ["test", "--to", &to, "--expect", "1"];
    let command = ["--", "sh", "-c", trigger, env!("CARGO_BIN_EXE_whrelay-e2e")];
    let tested = [&args[..], &cloud.flags(), &command, &["--token", "x"]].concat();
    let (code, said) = told(&home, &tested);
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("can be seen by"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_where_no_agent_runs_is_made_as_the_files_say() {
    let (home, receiver, other) = (home(), Receiver::start().await, Receiver::start().await);
    std::fs::write(
        home.path().join("whrelay.toml"),
        "header = [\"X-Plan: gold\"]\n",
    )
    .unwrap();
    let (mut listen, url) = home.listen(&["--to", &receiver.target()]).await;
    let id = send(&url, "x").await;
    listen.wait_state(&id, "sent").await;
    assert_eq!(listen.terminate().await, Some(0));
    let to = other.target();
    let (code, said) = told(&home, &["replay", &id, "--to", &to, "--wait"]);
    assert_eq!(code, Some(0), "{said}");
    for receiver in [&receiver, &other] {
        assert_eq!(receiver.seen()[0].header("x-plan"), "gold");
    }
    let args = ["replay", &id, "--to", &to, "--wait", "-H", "X-Plan: lead"];
    assert_eq!(told(&home, &args).0, Some(0));
    assert_eq!(other.seen()[1].header("x-plan"), "lead");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_tries_nothing_before_its_time() {
    let (home, receiver) = (home(), Receiver::scripted(|_| Reply::Status(503)).await);
    let args = ["--to", &receiver.target(), "--schedule", "1h,1h"];
    let (mut listen, url) = home.listen(&args).await;
    let first = send(&url, "1").await;
    listen.wait_state(&first, "stalled").await;
    assert_eq!(listen.terminate().await, Some(0));
    let (listen, url) = home.listen(&args).await;
    let second = send(&url, "2").await;
    listen.wait_state(&second, "stalled").await;
    assert_eq!(receiver.events(), [first, second], "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_beside_an_endpoint_that_is_away_cost_no_attempt() {
    let (home, mut receiver) = (home(), Receiver::start().await);
    receiver.stop();
    let args = ["--to", &receiver.target(), "--max-attempts", "2"];
    let (mut listen, url) = home.listen(&args).await;
    let mut ids = vec![send(&url, "0").await];
    listen.wait_state(&ids[0], "stalled").await;
    for n in 1..4 {
        ids.push(send(&url, n.to_string()).await);
    }
    for _ in 0..3 {
        assert_eq!(listen.terminate().await, Some(0));
        (listen, _) = home.listen(&args).await;
        let away = |line: &Value| line["state"] == "offline";
        listen.wait("endpoint", away).await;
    }
    receiver.open_again().await;
    for (id, number) in ids.iter().zip([2, 1, 1, 1]) {
        let sent = listen.wait_state(id, "sent").await;
        assert_eq!(sent["attempt"], number, "{sent}");
    }
    assert_eq!(receiver.events(), ids, "oldest first");
}
