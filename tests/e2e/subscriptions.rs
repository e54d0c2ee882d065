//! Who gets the events of a bucket: named, listed, ended, replayed; and nobody is taken by surprise.

use serde_json::Value;
use whrelay_tests::eventually;
use whrelay_tests::process::{Cloud, Home};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender::{client, send};

use crate::{home, json_lines, text, told};

fn flags<'a>(cloud: &'a Cloud, to: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&cloud.flags()[..], &["--to", to], more].concat()
}

fn list(home: &Home, cloud: &Cloud) -> Vec<Value> {
    let args = [&["subscription", "ls", "--json"][..], &cloud.flags()[..]];
    json_lines(&home.run(&args.concat()).stdout)
}

fn named<'a>(all: &'a [Value], name: &str) -> &'a Value {
    let found = all.iter().find(|one| one["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {all:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_without_a_name_each_get_their_own_subscription() {
    let (server, one, other) = (home(), home(), home());
    let (here, there) = (Receiver::start().await, Receiver::start().await);
    let cloud = Cloud::start(&server).await;
    let (to, other_to) = (here.target(), there.target());
    let (mut first, url) = one.listen(&flags(&cloud, &to, &[])).await;
    let old = send(&url, "old").await;
    first.wait_state(&old, "sent").await;
    let (second, _) = other.listen(&flags(&cloud, &other_to, &[])).await;
    let skips = |line: &Value| {
        line["message"]
            .as_str()
            .unwrap()
            .contains("1 older event is")
    };
    second.wait("warning", skips).await;
    let new = send(&url, "new").await;
    first.wait_state(&new, "sent").await;
    second.wait_state(&new, "sent").await;
    assert_eq!(
        there.events(),
        [new],
        "the old one is no business of a new subscription"
    );
    assert_eq!(list(&server, &cloud).len(), 2);
    // The name is kept over restarts.
    assert_eq!(first.terminate().await, Some(0));
    let (_first, _) = one.listen(&flags(&cloud, &to, &[])).await;
    assert_eq!(list(&server, &cloud).len(), 2);
}

/// Its queue is in the store of that name.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_has_a_store_under_the_old_default_name_keeps_it() {
    let (home, receiver) = (home(), Receiver::start().await);
    let cloud = Cloud::start(&home).await;
    let to = receiver.target();
    let named = flags(&cloud, &to, &["--name", "default"]);
    let (mut before, _) = home.listen(&named).await;
    assert_eq!(before.terminate().await, Some(0));
    let (listen, url) = home.listen(&flags(&cloud, &to, &[])).await;
    let event = send(&url, "x").await;
    listen.wait_state(&event, "sent").await;
    let names = list(&home, &cloud);
    let names: Vec<_> = names.iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["default"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_of_one_name_is_refused_unless_it_takes_over() {
    let (one, other, receiver) = (home(), home(), Receiver::start().await);
    let cloud = Cloud::start(&one).await;
    let to = receiver.target();
    let args = flags(&cloud, &to, &["--name", "shared"]);
    let (mut first, _) = one.listen(&args).await;
    let refused = other.run(&[&["listen"][..], &args].concat());
    assert_eq!(refused.status.code(), Some(6));
    let said = text(&refused.stderr);
    assert!(
        said.contains("in use by another agent") && said.contains("--take-over"),
        "{said}"
    );
    let args = [&args[..], &["--take-over"]].concat();
    let (second, _) = other.listen(&args).await;
    let took = |line: &Value| line["message"].as_str().unwrap().contains("took over");
    second.wait("warning", took).await;
    assert_eq!(first.ended().await.code(), Some(6));
    assert!(
        first.stderr().contains("took subscription"),
        "{}",
        first.stderr()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_nobody_uses_is_ended_and_what_it_missed_goes_to_another() {
    let (home, receiver) = (home(), Receiver::start().await);
    let mut cloud = Cloud::start(&home).await;
    let to = receiver.target();
    let (mut old, url) = home.listen(&flags(&cloud, &to, &["--name", "old"])).await;
    let received = send(&url, "received").await;
    old.wait_state(&received, "sent").await;
    let in_use = [&["subscription", "rm", "old"][..], &cloud.flags()[..]].concat();
    assert_eq!(told(&home, &in_use).0, Some(6), "its agent is connected");
    assert_eq!(old.terminate().await, Some(0));
    let missed = [send(&url, "1").await, send(&url, "2").await];
    let away = || (named(&list(&home, &cloud), "old")["state"] == "away").then_some(());
    eventually("its agent is away", away).await;
    assert_eq!(named(&list(&home, &cloud), "old")["waiting"], 2);

    let (mut new, _) = home.listen(&flags(&cloud, &to, &["--name", "new"])).await;
    let (code, said) = told(&home, &in_use);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("2 events"), "{said}");
    assert_eq!(named(&list(&home, &cloud), "old")["state"], "ended");
    let token = std::fs::read_to_string(&cloud.token_file).unwrap();
    let show = client()
        .get(format!("{}/v1/events/{}", cloud.url, missed[0]))
        .bearer_auth(token.trim());
    let shown: Value = show.send().await.unwrap().json().await.unwrap();
    let fate = named(shown["subscriptions"].as_array().unwrap(), "old");
    assert_eq!(
        (&fate["state"], &fate["reason"]),
        (&"dead".into(), &"unclaimed".into())
    );

    let replay = [
        &["subscription", "replay", "old", "--to", "new"][..],
        &cloud.flags()[..],
    ];
    let (code, said) = told(&home, &replay.concat());
    assert_eq!(code, Some(0), "{said}");
    for event in &missed {
        new.wait_state(event, "sent").await;
    }
    assert_eq!(receiver.count(), 3);
    assert_eq!(new.terminate().await, Some(0));
    let wrong = [
        (&["rm", "nobody"][..], 3),
        (&["replay", "nobody"], 3),
        (&["replay", "new", "--to", "old"], 6),
        (&["ls", "--bucket", "unknown"], 3),
        (&["rm", "No Name"], 2),
    ];
    // A forwarder that does not run says the same as one that runs.
    for runs in [true, false] {
        for (args, code) in wrong {
            let place = if runs { &cloud.flags()[..] } else { &[] };
            let args = [&["subscription"], args, place].concat();
            let (found, said) = told(&home, &args);
            assert_eq!(found, Some(code), "{args:?}: {said}");
        }
        cloud.process.terminate().await;
    }
    assert_eq!(told(&home, &["subscription", "rm", "new"]).0, Some(0));
    let status = json_lines(&home.run(&["status", "--json"]).stdout);
    let forwarder = status.iter().find(|line| line["type"] == "forwarder");
    let bucket = &forwarder.unwrap()["buckets"][0];
    assert_eq!(bucket["waiting"], 0, "for nobody: {bucket}");
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_whose_agents_stay_away_end_by_themselves() {
    let (home, receiver) = (home(), Receiver::start().await);
    home.configure("subscription_ttl = \"1ms\"\n");
    let mut cloud = Cloud::start(&home).await;
    let to = receiver.target();
    let (mut gone, url) = home.listen(&flags(&cloud, &to, &["--name", "gone"])).await;
    let first = send(&url, "first").await;
    gone.wait_state(&first, "sent").await;
    gone.terminate().await;
    send(&url, "missed").await;
    cloud.process.terminate().await;
    cloud.start_again(&home).await;
    let ended = || (named(&list(&home, &cloud), "gone")["state"] == "ended").then_some(());
    eventually("it is ended", ended).await;
    let said = || {
        cloud
            .process
            .stderr()
            .contains("--subscription-ttl")
            .then_some(())
    };
    eventually("the log says so", said).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_nobody_reads_stops_no_other_and_status_says_which_it_is() {
    let (home, receiver) = (home(), Receiver::start().await);
    home.configure("max_disk = \"2MB\"\n");
    let cloud = Cloud::start(&home).await;
    let token = std::fs::read_to_string(&cloud.token_file).unwrap();
    let put = client().put(format!("{}/v1/buckets/unread", cloud.url));
    let made: Value = put
        .bearer_auth(token.trim())
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let unread = made["url"].as_str().unwrap().to_owned();
    let refused = loop {
        let post = client().post(&unread).body(vec![7; 100_000]);
        let answer = post.send().await.unwrap();
        if answer.status() != 200 {
            break answer;
        }
    };
    assert_eq!(refused.status(), 503);
    let problem = refused.text().await.unwrap();
    assert!(problem.contains("share"), "{problem}");
    assert!(problem.contains("--subscription-ttl"), "{problem}");
    let to = receiver.target();
    let (listen, url) = home
        .listen(&flags(&cloud, &to, &["--bucket", "read"]))
        .await;
    for n in 0..20 {
        let id = send(&url, format!("{n}")).await;
        listen.wait_state(&id, "sent").await;
    }
    let lines = json_lines(&home.run(&["status", "--json"]).stdout);
    let forwarder = lines
        .iter()
        .find(|line| line["type"] == "forwarder")
        .unwrap();
    let buckets = forwarder["buckets"].as_array().unwrap();
    let of = |name: &str| buckets.iter().find(|b| b["bucket"] == name).unwrap();
    assert!(of("unread")["refuses"].as_str().unwrap().contains("share"));
    assert!(of("unread")["waiting"].as_u64().unwrap() > 0);
    assert_eq!(of("read")["refuses"], Value::Null);
    let (_, said) = told(&home, &["status"]);
    assert!(
        said.contains("unread") && said.contains("refuses"),
        "{said}"
    );
}

/// Once it said "no agent has run here yet" while events waited.
#[tokio::test(flavor = "multi_thread")]
async fn status_on_a_server_says_what_waits_there_running_or_not() {
    let (home, receiver) = (home(), Receiver::start().await);
    let mut cloud = Cloud::start(&home).await;
    let elsewhere = crate::home();
    let to = receiver.target();
    let (mut listen, url) = elsewhere
        .listen(&flags(&cloud, &to, &["--name", "laptop"]))
        .await;
    listen.terminate().await;
    send(&url, "waits").await;
    for _ in 0..2 {
        let (code, said) = told(&home, &["status"]);
        assert_eq!(code, Some(0), "{said}");
        assert!(
            said.contains("1 event waiting") && said.contains("laptop"),
            "{said}"
        );
        assert!(!said.contains("no agent has run here"), "{said}");
        cloud.process.terminate().await;
    }
}
