//! Destinations: names that own queues, stored options, and the commands that change them.

use serde_json::{Value, json};
use whrelay_tests::eventually;
use whrelay_tests::process::{Cloud, Home, Process};
use whrelay_tests::receiver::{Receiver, Reply};
use whrelay_tests::sender::send;

use crate::{home, json_lines, told};

async fn queue(listen: &Process, url: &str, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for n in 0..count {
        let id = send(url, n.to_string()).await;
        listen
            .wait("received", |line| line["event"] == id.as_str())
            .await;
        ids.push(id);
    }
    ids
}

/// Waits until these events have arrived, each once. Those that start at once arrive in any order.
async fn all_arrive(receiver: &Receiver, ids: &[String]) {
    let sorted = |mut all: Vec<String>| {
        all.sort();
        all
    };
    let wanted = sorted(ids.to_vec());
    eventually("all arrive", || {
        (sorted(receiver.events()) == wanted).then_some(())
    })
    .await;
}

fn says(text: &str) -> impl Fn(&Value) -> bool {
    move |line| {
        line["message"]
            .as_str()
            .is_some_and(|message| message.contains(text))
    }
}

/// What `destination show` says, in JSON.
fn shown(home: &Home, name: &str) -> Value {
    let out = home.run(&["destination", "show", name, "--json"]);
    json_lines(&out.stdout).remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_goes_with_its_name_to_another_url_and_waits_while_the_name_is_left_out() {
    let (home, mut old, new) = (home(), Receiver::start().await, Receiver::start().await);
    let other = Receiver::start().await;
    old.stop();
    let api = format!("api={}", old.target());
    let (mut listen, url) = home.listen(&["--to", &api]).await;
    let ids = queue(&listen, &url, 3).await;
    assert_eq!(listen.terminate().await, Some(0));

    // Another destination beside it: it keeps its queue, and is named with the commands that help.
    let (mut listen, _) = home.listen(&["--to", &other.target()]).await;
    let told_of = listen
        .wait("warning", says("3 deliveries are queued for api"))
        .await;
    let message = told_of["message"].as_str().unwrap();
    assert!(
        message.contains("--to api") && message.contains("destination rm api"),
        "{message}"
    );
    let status = told(&home, &["status"]).1;
    assert!(status.contains("with `--to api`, too"), "{status}");
    assert_eq!(listen.terminate().await, Some(0));
    assert_eq!(other.count(), 0);

    let moved = format!("api={}", new.target());
    let (mut listen, _) = home.listen(&["--to", &moved]).await;
    listen
        .wait("warning", says("3 queued deliveries go to"))
        .await;
    all_arrive(&new, &ids).await;
    listen.wait_state(&ids[0], "sent").await;
    let attempt = listen.all("attempt").remove(0);
    assert_eq!(attempt["destination"], "api");
    assert_eq!(attempt["target"], format!("http://{}", new.target()));
    assert_eq!(listen.terminate().await, Some(0));

    // An attempt that was made at the URL of before still says so.
    let logs = json_lines(&home.run(&["logs", "--event", &ids[0], "--json"]).stdout);
    let targets: Vec<_> = logs.iter().map(|line| line["target"].clone()).collect();
    assert_eq!(
        targets.last(),
        Some(&json!(format!("http://{}", new.target())))
    );
    assert!(
        targets[..targets.len() - 1]
            .iter()
            .all(|t| *t == format!("http://{}", old.target()))
    );
    // The name alone is enough from now on.
    let (mut listen, url) = home.listen(&["--to", "api"]).await;
    let id = send(&url, "x").await;
    listen.wait_state(&id, "sent").await;
    assert_eq!(listen.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_option_is_stored_until_it_is_given_anew_or_reset() {
    let (home, receiver) = (home(), Receiver::start().await);
    let to = receiver.target();
    let with = ["--to", &to, "--rate", "50/s", "--max-attempts", "3"];
    let (mut listen, _) = home.listen(&with).await;
    assert_eq!(listen.terminate().await, Some(0));
    let (mut listen, _) = home.listen(&["--to", &to, "--max-attempts", "4"]).await;
    let kept = listen
        .wait("warning", says("stored options of default"))
        .await;
    let kept = kept["message"].as_str().unwrap();
    assert!(
        kept.contains("rate 50/s") && !kept.contains("max-attempts"),
        "{kept}"
    );
    let replaces = "options of default that this start replaces: max-attempts 4 (was 3)";
    listen.wait("warning", says(replaces)).await;
    let of = shown(&home, "default");
    assert_eq!(
        (&of["options"]["rate"], &of["options"]["max_attempts"]),
        (&json!("50/s"), &json!(4))
    );
    assert_eq!(of["set"], json!(["max-attempts", "rate"]));
    // Another process changes it while it runs.
    let set = [
        "destination",
        "set",
        "default",
        "--timeout",
        "2s",
        "--reset",
        "rate",
        "--json",
    ];
    let out = json_lines(&home.run(&set).stdout).remove(0);
    assert_eq!(
        (&out["options"]["timeout_ms"], &out["options"]["rate"]),
        (&json!(2000), &Value::Null)
    );
    assert_eq!(listen.terminate().await, Some(0));
    let (mut listen, _) = home.listen(&["--to", &to, "--reset", "max-attempts"]).await;
    let of = shown(&home, "default");
    assert_eq!(of["set"], json!(["timeout"]));
    assert_eq!(listen.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_destination_gets_nothing_until_it_is_resumed_also_after_a_restart() {
    let (home, receiver) = (home(), Receiver::start().await);
    let to = format!("api={}", receiver.target());
    let (mut listen, url) = home.listen(&["--to", &to]).await;
    assert_eq!(told(&home, &["destination", "pause", "api"]).0, Some(0));
    let ids = queue(&listen, &url, 2).await;
    assert_eq!(listen.terminate().await, Some(0));
    let (mut listen, url) = home.listen(&["--to", "api"]).await;
    listen.wait("warning", says("has been paused since")).await;
    let status = json_lines(&home.run(&["status", "--json"]).stdout).remove(0);
    assert_eq!(
        (&status["paused"], &status["queued"]),
        (&json!(true), &json!(2))
    );
    assert!(status["targets"][0]["paused_at"].is_string(), "{status}");
    let ids = [ids, queue(&listen, &url, 1).await].concat();
    assert_eq!(receiver.count(), 0);
    assert_eq!(told(&home, &["destination", "resume", "api"]).0, Some(0));
    all_arrive(&receiver, &ids).await;
    assert_eq!(listen.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_changes_while_it_runs_gets_what_is_queued() {
    let (home, mut old, new) = (home(), Receiver::start().await, Receiver::start().await);
    old.stop();
    let (mut listen, url) = home.listen(&["--to", &old.target()]).await;
    let ids = queue(&listen, &url, 3).await;
    listen
        .wait("endpoint", |line| line["state"] == "offline")
        .await;
    let set = ["destination", "set", "default", "--to", &new.target()];
    let (done, said) = told(&home, &set);
    assert!(
        done == Some(0) && said.contains("3 queued deliveries"),
        "{said}"
    );
    all_arrive(&new, &ids).await;
    assert_eq!(listen.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_with_a_queue_is_removed_only_with_a_word_on_the_queue() {
    let (home, mut away) = (home(), Receiver::start().await);
    let there = Receiver::start().await;
    away.stop();
    let (one, two) = (
        format!("one={}", away.target()),
        format!("two={}", away.target()),
    );
    let (mut listen, url) = home.listen(&["--to", &one, "--to", &two]).await;
    let ids = queue(&listen, &url, 3).await;
    let (running, said) = told(&home, &["destination", "rm", "one", "--discard"]);
    assert!(
        running == Some(1) && said.contains("a `listen` delivers to one"),
        "{said}"
    );
    assert_eq!(listen.terminate().await, Some(0));
    let (refused, said) = told(&home, &["destination", "rm", "one"]);
    assert!(
        refused == Some(1) && said.contains("--move-to") && said.contains("--discard"),
        "{said}"
    );
    let (unknown, said) = told(&home, &["destination", "rm", "one", "--move-to", "three"]);
    assert!(unknown == Some(3) && said.contains("three"), "{said}");
    // Both have every event, so that none may arrive twice.
    let (done, said) = told(&home, &["destination", "rm", "one", "--move-to", "two"]);
    assert!(
        done == Some(0) && said.contains("discarded 3 deliveries"),
        "{said}"
    );
    let to = format!("three={}", there.target());
    let (mut listen, _) = home.listen(&["--to", &to]).await;
    let (done, said) = told(&home, &["destination", "rm", "two", "--move-to", "three"]);
    assert!(
        done == Some(0) && said.contains("moved 3 deliveries"),
        "{said}"
    );
    all_arrive(&there, &ids).await;
    assert_eq!(listen.terminate().await, Some(0));
    let all = json_lines(&home.run(&["destination", "ls", "--json"]).stdout);
    let names: Vec<_> = all.iter().map(|line| line["name"].clone()).collect();
    assert_eq!(names, ["three"]);
}

/// What was moved into an order stood before what its head had passed, and was never tried.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_moves_into_an_order_is_delivered_in_its_order() {
    let (home, mut old, api) = (home(), Receiver::start().await, Receiver::start().await);
    old.stop();
    let (to, route) = (
        format!("api={}", api.target()),
        format!("/o=old={}", old.target()),
    );
    let all = ["--to", &to, "--route", &route, "--order", "fifo"];
    let (mut listen, url) = home.listen(&all).await;
    let ids = queue(&listen, &format!("{url}/o"), 3).await;
    let id = send(&url, "later").await;
    listen.wait_state(&id, "sent").await;
    assert_eq!(listen.terminate().await, Some(0));
    let (mut listen, _) = home.listen(&["--to", "api"]).await;
    let (done, said) = told(&home, &["destination", "rm", "old", "--move-to", "api"]);
    assert!(
        done == Some(0) && said.contains("moved 3 deliveries"),
        "{said}"
    );
    listen.wait_state(&ids[2], "sent").await;
    assert_eq!(api.events()[1..], ids);
    assert_eq!(listen.terminate().await, Some(0));
}

/// An event that is dead at the other destination has not arrived there.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_moves_over_what_is_dead_at_the_other_destination() {
    let (home, mut web) = (home(), Receiver::start().await);
    let api = Receiver::scripted(|_| Reply::Status(404)).await;
    web.stop();
    let (to_api, to_web) = (
        format!("api={}", api.target()),
        format!("web={}", web.target()),
    );
    let (mut listen, url) = home.listen(&["--to", &to_api, "--to", &to_web]).await;
    let ids = queue(&listen, &url, 2).await;
    listen.wait_state(&ids[0], "dead").await;
    listen.wait_state(&ids[1], "dead").await;
    assert_eq!(listen.terminate().await, Some(0));
    let (done, said) = told(&home, &["destination", "rm", "web", "--move-to", "api"]);
    assert!(
        done == Some(0) && said.contains("moved 2 deliveries"),
        "{said}"
    );
    let queued = json_lines(&home.run(&["events", "--status", "queued", "--json"]).stdout);
    let stalled = json_lines(
        &home
            .run(&["events", "--status", "stalled", "--json"])
            .stdout,
    );
    assert_eq!(queued.len() + stalled.len(), 2);
}

/// The file of a cloned repository moves no queue of a destination elsewhere, and sends nothing there.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_trust_means_no_destination_on_another_machine() {
    let (home, mut receiver) = (home(), Receiver::start().await);
    receiver.stop();
    let prod = format!("prod={}", receiver.target());
    let (mut listen, url) = home.listen(&["--to", &prod]).await;
    queue(&listen, &url, 1).await;
    assert_eq!(listen.terminate().await, Some(0));
    let set = [
        "destination",
        "set",
        "prod",
        "--to",
        "http://203.0.113.5:81",
    ];
    assert_eq!(told(&home, &set).0, Some(0));
    for text in [
        "to = \"prod\"\n",
        "[destination.prod]\nto = \"localhost:3000\"\n",
    ] {
        std::fs::write(home.path().join("whrelay.toml"), text).unwrap();
        let (code, said) = tokio::task::block_in_place(|| told(&home, &["listen"]));
        assert!(
            code == Some(2) && said.contains("config trust"),
            "{text}: {said}"
        );
    }
    assert_eq!(shown(&home, "prod")["target"], "http://203.0.113.5:81");
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_about_destinations_is_refused_with_a_hint_and_changes_nothing() {
    let home = home();
    for (args, code, word) in [
        (&["listen", "--to", "api"][..], 2, "--to api=localhost:3000"),
        (
            &["listen", "3000", "--route", "/x=api"],
            2,
            "there is no destination `api`",
        ),
        (
            &["listen", "--to", "a=3000", "--to", "a=4000"],
            2,
            "two URLs",
        ),
        (
            &["listen", "--to", "A=3000"],
            2,
            "cannot name a destination",
        ),
        (&["listen", "--to", "api="], 2, "--to"),
        (&["destination", "show", "api"], 3, "destination ls"),
        (
            &["destination", "set", "api", "--rate", "1/s"],
            3,
            "there is no destination",
        ),
        (&["destination", "set", "api"], 2, "nothing to set"),
        (
            &["destination", "set", "api", "--to", "web"],
            2,
            "http://web",
        ),
        (
            &["destination", "rm", "api", "--move-to", "api"],
            2,
            "itself",
        ),
        (&["replay", "--all", "--to", "api=3000"], 2, "not both"),
        (&["listen", "--to", "api=web"], 2, "http://web"),
        (
            &["destination", "rm", "api", "--discard", "--move-to", "b"],
            2,
            "--discard",
        ),
    ] {
        let (exit, said) = tokio::task::block_in_place(|| told(&home, args));
        assert!(
            exit == Some(code) && said.contains(word),
            "{args:?}: {exit:?} {said}"
        );
    }
}

#[test]
fn nonsense_about_destinations_in_a_file_is_refused_by_its_line() {
    let home = home();
    for (file, word) in [
        (
            "[destination.api]\ncolour = \"red\"\n",
            "there is no key `colour` in [destination.api]",
        ),
        (
            "[destination.api]\nto = \"ftp://x\"\n",
            "destination.api.to",
        ),
        (
            "[destination.api]\nrate = [\"1/s\", \"2/s\"]\n",
            "one value",
        ),
        (
            "[destination.\"a b\"]\nto = \"3000\"\n",
            "cannot name a destination",
        ),
        ("[destination]\napi = \"3000\"\n", "[destination.api]"),
    ] {
        home.configure(file);
        let (exit, said) = told(&home, &["listen"]);
        assert!(exit == Some(2) && said.contains(word), "{file}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn destinations_of_a_file_have_their_own_options_and_a_typed_target_takes_their_place() {
    let (home, api, hooks) = (home(), Receiver::start().await, Receiver::start().await);
    home.configure(&format!(
        "max_attempts = 5\nroute = [\"/stripe=hooks\"]\n\
         [destination.api]\nto = \"{}\"\nmax_attempts = 7\n[destination.hooks]\nto = \"{}\"\n",
        api.target(),
        hooks.target()
    ));
    let (mut listen, url) = home.listen(&[]).await;
    let id = send(&format!("{url}/stripe/x"), "x").await;
    listen.wait_state(&id, "sent").await;
    let id = send(&url, "y").await;
    listen.wait_state(&id, "sent").await;
    assert_eq!((api.count(), hooks.count()), (1, 1));
    assert_eq!(shown(&home, "api")["options"]["max_attempts"], 7);
    assert_eq!(shown(&home, "hooks")["options"]["max_attempts"], 5);
    let config = told(&home, &["config", "show"]).1;
    assert!(
        config.contains("destination.api.max_attempts = \"7\""),
        "{config}"
    );
    assert_eq!(listen.terminate().await, Some(0));
    let (mut listen, url) = home.listen(&["--to", "hooks"]).await;
    let id = send(&url, "z").await;
    listen.wait_state(&id, "sent").await;
    assert_eq!((api.count(), hooks.count()), (1, 2));
    assert_eq!(listen.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_under_another_spelling_is_the_same_and_another_one_is_not() {
    let (there, here, mut receiver) = (home(), home(), Receiver::start().await);
    let cloud = Cloud::start(&there).await;
    let to = receiver.target();
    receiver.stop();
    let args = [&cloud.flags()[..], &["--to", &to]].concat();
    let (mut listen, url) = here.listen(&args).await;
    let ids = queue(&listen, &url, 2).await;
    let other = cloud.url.replace("127.0.0.1", "localhost");
    let spelled = [
        "--forwarder",
        &other,
        "--token-file",
        &cloud.token_file,
        "--to",
        &to,
    ];
    let second = [&["listen"][..], &spelled].concat();
    let (code, said) = tokio::task::block_in_place(|| told(&here, &second));
    assert_eq!(code, Some(6), "it is in use: {said}");
    assert_eq!(listen.terminate().await, Some(0));
    receiver.open_again().await;
    let (mut listen, _) = here.listen(&spelled).await;
    all_arrive(&receiver, &ids).await;
    assert_eq!(listen.terminate().await, Some(0));
    let agents = here.path().join(".local/share/whrelay/agents");
    assert_eq!(std::fs::read_dir(agents).unwrap().count(), 1);
}
