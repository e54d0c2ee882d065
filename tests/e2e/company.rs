//! Processes on one machine that start, stop and go beside each other.

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use whrelay_tests::eventually;
use whrelay_tests::port::Port;
use whrelay_tests::process::Cloud;
use whrelay_tests::receiver::{Receiver, Reply};
use whrelay_tests::sender::send;

use crate::{home, json_lines, text, told};

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

/// They shared its forwarder, and the second gave its token to whoever answered at the port.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_listen_of_an_embedded_bucket_says_how_to_add_a_target() {
    let (home, receiver) = (home(), Receiver::start().await);
    let to = receiver.target();
    let (first, _url) = home.listen(&["--to", &to]).await;
    for more in [&[][..], &["--name", "other"]] {
        let args = [&["listen", "--to", &to][..], more].concat();
        let (code, said) = told(&home, &args);
        assert_eq!(code, Some(6), "{said}");
        assert!(said.contains(&format!("pid {}", first.pid())), "{said}");
        assert!(said.contains("hint: "), "{said}");
    }
    let (code, said) = told(&home, &["listen", "--to", &to, "--name", "other"]);
    assert!(code == Some(6) && said.contains("--to A --to B"), "{said}");
    // Another bucket has a forwarder of its own.
    let (_other, _) = home.listen(&["--to", &to, "--bucket", "other"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_makes_no_sense_hides_nothing_of_the_others() {
    let (mut home, receiver) = (home(), Receiver::start().await);
    let data = home.path().join("data");
    home.set("WHRELAY_DATA_DIR", data.to_str().unwrap());
    let to = receiver.target();
    let (listen, url) = home.listen(&["--to", &to]).await;
    let id = send(&url, "x").await;
    listen.wait_state(&id, "sent").await;
    let (mut other, _) = home.listen(&["--to", &to, "--bucket", "other"]).await;
    assert_eq!(other.terminate().await, Some(0));
    let store = data.join("agents/embedded/other/default/store.redb");
    std::fs::write(&store, "no store").unwrap();
    let follow = home.start(&["logs", "--follow", "--json"]);
    let names = |said: &str| said.contains(store.to_str().unwrap()) && said.contains("hint: ");
    for (args, code) in [
        (&["events"][..], 1),
        (&["events", "--group"], 1),
        (&["events", "export", "--format", "json"], 1),
        (&["events", "show", &id], 0),
        (&["logs"], 1),
        (&["replay", &id], 0),
        (&["replay", "--all"], 1),
        (&["discard", "--all"], 1),
    ] {
        let out = home.run(args);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
        assert!(names(&said), "{args:?}: {said}");
        let shown = text(&out.stdout) + &said;
        let found = shown.contains(&id) || args.contains(&"--group") || args.contains(&"--all");
        assert!(found, "{args:?}: {shown}");
    }
    let status = home.run(&["status", "--json"]);
    assert_eq!(json_lines(&status.stdout).len(), 1);
    assert_eq!(status.status.code(), Some(1));
    let unknown = format!("evt_{}", "0".repeat(26));
    let (code, said) = told(&home, &["events", "show", &unknown]);
    assert!(code == Some(1) && names(&said), "{code:?}: {said}");
    follow.wait_state(&id, "sent").await;
    let arrived = || (receiver.count() == 3).then_some(());
    eventually("both replays", arrived).await;
}

/// A token that is gone is not let in any more, and whoever runs with it says why it is not connected.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_not_let_in_any_more_says_so() {
    let (there, here, receiver) = (home(), home(), Receiver::start().await);
    let mut cloud = Cloud::start(&there).await;
    let (to, token) = (receiver.target(), here.path().join("token"));
    std::fs::copy(&cloud.token_file, &token).unwrap();
    let flags = [
        "--forwarder",
        &cloud.url,
        "--token-file",
        token.to_str().unwrap(),
    ];
    let args = [&["--to", &to][..], &flags].concat();
    let (listen, _) = here.listen(&args).await;
    assert_eq!(cloud.process.terminate().await, Some(0));
    std::fs::remove_file(&cloud.token_file).unwrap();
    let forwarder = cloud.url.clone();
    cloud.start_again(&there).await;
    let refused = |line: &Value| {
        let error = line["error"].as_str().unwrap_or_default();
        line["state"] == "disconnected" && error.contains("token")
    };
    listen.wait("link", refused).await;
    let status = json_lines(&here.run(&["status", "--json"]).stdout).remove(0);
    let why = status["link_error"].as_str().unwrap();
    assert!(why.contains("token"), "{status}");
    let (code, said) = told(&here, &["doctor"]);
    assert!(code == Some(1) && said.contains(why), "{said}");
    assert_eq!(forwarder, cloud.url);
    // A new one in its file is used without a restart.
    std::fs::copy(&cloud.token_file, &token).unwrap();
    let connected = |line: &&Value| line["state"] == "connected";
    let again = || (listen.all("link").iter().filter(connected).count() > 1).then_some(());
    eventually("it is let in again", again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_here_is_delivered_though_the_forwarder_is_away() {
    let (there, here, mut receiver) = (home(), home(), Receiver::start().await);
    receiver.stop();
    let mut cloud = Cloud::start(&there).await;
    let (forwarder, file) = (cloud.url.clone(), cloud.token_file.clone());
    let to = receiver.target();
    let flags = ["--forwarder", &forwarder, "--token-file", &file];
    let args = [&["--to", &to][..], &flags].concat();
    let (mut listen, url) = here.listen(&args).await;
    let id = send(&url, "x").await;
    listen.wait_state(&id, "stalled").await;
    assert_eq!(listen.terminate().await, Some(0));
    assert_eq!(cloud.process.terminate().await, Some(0));
    receiver.open_again().await;
    let mut listen = here.start(&[&["listen", "--json"][..], &args].concat());
    listen.wait_state(&id, "sent").await;
    listen
        .wait("link", |line| line["state"] == "disconnected")
        .await;
    assert!(listen.all("ready").is_empty(), "the way is not whole");
    cloud.start_again(&there).await;
    let ready = listen.wait("ready", |_| true).await;
    assert_eq!(ready["url"], url.as_str());
    let id = send(&url, "y").await;
    listen.wait_state(&id, "sent").await;
    assert_eq!(listen.terminate().await, Some(0));
    // With nothing to deliver there is nothing to begin with.
    assert_eq!(cloud.process.terminate().await, Some(0));
    let (code, said) = told(&here, &[&["listen"][..], &args].concat());
    assert_eq!(code, Some(5), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_no_forwarder_does_not_pass_for_one() {
    let hello = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec();
    let (home, server) = (
        home(),
        Receiver::scripted(move |_| Reply::Raw(hello.clone())).await,
    );
    let forwarder = format!("http://{}", server.target());
    let (code, said) = told(&home, &["doctor", "--forwarder", &forwarder]);
    assert!(
        code == Some(1) && said.contains("as no forwarder does"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_insists_waits_for_no_attempt_and_loses_nothing() {
    let (home, slow) = (home(), Receiver::scripted(|_| Reply::Hang).await);
    let (mut listen, url) = home.listen(&["--to", &slow.target()]).await;
    let id = send(&url, "x").await;
    eventually("an attempt", || (slow.count() == 1).then_some(())).await;
    assert_eq!(listen.insist().await, Some(1));
    assert!(
        listen.stderr().contains("stopped at once"),
        "{}",
        listen.stderr()
    );
    let receiver = Receiver::start().await;
    let (listen, _) = home.listen(&["--to", &receiver.target()]).await;
    listen.wait_state(&id, "sent").await;
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
    home.configure("header = [\"X-Plan: gold\"]\n");
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
    // A `listen` has fields of its own, and says so.
    let (mut listen, _) = home.listen(&["--to", &receiver.target()]).await;
    let (code, said) = told(&home, &args);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("-H would be ignored"), "{said}");
    assert_eq!(other.count(), 2);
    assert_eq!(listen.terminate().await, Some(0));
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
    let arrived = receiver.events();
    assert_eq!(
        (&arrived[0], arrived.len()),
        (&ids[0], 4),
        "oldest first, each once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_while_it_arrives_has_arrived() {
    let (home, port) = (home(), Port::hold());
    let listener = port.listen();
    let to = port.address.to_string();
    let (listen, url) = home.listen(&["--to", &to]).await;
    let id = send(&url, "x").await;
    let (mut request, _) = listener.accept().await.unwrap();
    let given_up = home.run(&["discard", &id, "--json"]);
    let given_up = json_lines(&given_up.stdout).remove(0);
    assert_eq!(
        (&given_up["type"], &given_up["event"]),
        (&"discard".into(), &id.clone().into())
    );
    request
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    let sent = listen.wait_state(&id, "sent").await;
    assert_eq!(sent["attempt"], 1);
    let event = json_lines(&home.run(&["events", "--json"]).stdout).remove(0);
    let shown = [&event["state"], &event["reason"], &event["attempts"]];
    assert_eq!(shown, [&Value::from("sent"), &Value::Null, &1.into()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_of_two_subscriptions_is_one_line_and_goes_again_to_both() {
    let (home, one, two) = (home(), Receiver::start().await, Receiver::start().await);
    let (to_one, to_two, there) = (one.target(), two.target(), crate::home());
    let cloud = Cloud::start(&there).await;
    let named = |to, name| [&cloud.flags()[..], &["--to", to, "--name", name]].concat();
    let (first, url) = home.listen(&named(&to_one, "one")).await;
    let (second, _) = home.listen(&named(&to_two, "two")).await;
    let id = send(&url, "x").await;
    first.wait_state(&id, "sent").await;
    second.wait_state(&id, "sent").await;
    let [event] = &json_lines(&home.run(&["events", "--json"]).stdout)[..] else {
        panic!("one line for one event")
    };
    let deliveries = event["deliveries"].as_array().unwrap();
    let mut targets: Vec<_> = deliveries
        .iter()
        .map(|d| d["target"].as_str().unwrap())
        .collect();
    targets.sort_unstable();
    let mut wanted = [format!("http://{to_one}"), format!("http://{to_two}")];
    wanted.sort_unstable();
    assert_eq!(
        (targets, &event["attempts"]),
        (wanted.iter().map(String::as_str).collect(), &2.into())
    );
    let shown = json_lines(
        &home
            .run(&["events", "show", &id, "--json", "--attempts"])
            .stdout,
    );
    assert_eq!(shown.len(), 2, "{shown:?}");
    let (code, said) = told(&home, &["replay", &id, "--wait"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!((one.count(), two.count()), (2, 2));
    let other = Receiver::start().await;
    let (code, said) = told(&home, &["replay", &id, "--wait", "--to", &other.target()]);
    assert_eq!((code, other.count()), (Some(0), 1), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_of_an_endpoint_is_shown_with_its_attempt() {
    let why = "{\"error\":\"no such price\"}";
    let answer = format!(
        "HTTP/1.1 422 No\r\nContent-Length: {}\r\n\r\n{why}",
        why.len()
    );
    let picky = move |_: &_| Reply::Raw(answer.clone().into_bytes());
    let (home, receiver) = (home(), Receiver::scripted(picky).await);
    let (mut listen, url) = home.listen(&["--to", &receiver.target()]).await;
    let id = send(&url, "x").await;
    let attempt = listen.wait_state(&id, "dead").await;
    assert_eq!(
        attempt["answer"],
        Value::Null,
        "only where one event is shown"
    );
    assert_eq!(listen.terminate().await, Some(0));
    let shown = json_lines(
        &home
            .run(&["events", "show", &id, "--json", "--attempts"])
            .stdout,
    );
    assert_eq!(shown[0]["answer"], why);
    let (_, said) = told(&home, &["events", "show", &id]);
    assert!(said.contains(&format!("    {why}")), "{said}");
    let har = home.run(&["events", "export", "--format", "har"]);
    let har: Value = serde_json::from_slice(&har.stdout).unwrap();
    assert_eq!(har["log"]["entries"][0]["response"]["content"]["text"], why);
    // Where no agent runs, the command knows what came of it.
    let (code, said) = told(&home, &["replay", &id, "--to", &receiver.target()]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("1 of 1 were not delivered"), "{said}");
    let nobody = Port::hold().address.to_string();
    let (code, said) = told(&home, &["replay", &id, "--to", &nobody]);
    assert_eq!(code, Some(1), "it is tried once: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_is_handed_over_once() {
    let (home, receiver) = (home(), Receiver::scripted(|_| Reply::Status(503)).await);
    let to = receiver.target();
    let args = ["--to", &to, "--handoff-after", "0s", "--deadline", "1s"];
    let (listen, url) = home.listen(&args).await;
    let id = send(&url, "x").await;
    let first = listen.wait_state(&id, "stalled").await;
    assert_eq!(
        (&first["handoff"], &first["phase"]),
        (&true.into(), &"durable".into())
    );
    listen.wait_state(&id, "dead").await;
    let attempts = listen.all("attempt");
    let handed_over = attempts.iter().filter(|line| line["handoff"] == true);
    assert_eq!(handed_over.count(), 1, "{attempts:?}");
}
