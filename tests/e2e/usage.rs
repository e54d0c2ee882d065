//! Wrong use, what commands say of it, and the places that stay.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use whrelay_tests::port;
use whrelay_tests::process::Home;
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender::send;

use crate::{home, json_lines, text, told};

/// The exit code and what was said on stderr.
fn refused(home: &Home, args: &[&str]) -> (Option<i32>, String) {
    let out = home.run(args);
    assert!(out.stdout.is_empty(), "{args:?}: {}", text(&out.stdout));
    (out.status.code(), text(&out.stderr))
}

#[test]
fn nonsense_is_refused_by_its_flag_with_a_hint_for_its_command() {
    let home = home();
    for (args, named, hint) in [
        (
            &["listen", "3000", "--deadline", "-5s"][..],
            "--deadline",
            "`whrelay listen --help`",
        ),
        (&["logs", "-n", "-1"], "--lines", "`whrelay logs --help`"),
        (
            &["listen", "3000", "--since", "2999-01-01"],
            "--since",
            "`whrelay listen --help`",
        ),
        (
            &["flaky", "--down", "0s"],
            "--down",
            "`whrelay flaky --help`",
        ),
        (
            &["listen", "3000", "--host-header", "a b"],
            "--host-header",
            "`whrelay listen --help`",
        ),
        (
            &["forwarder", "--bind", "example.com"],
            "--bind",
            "`whrelay forwarder --help`",
        ),
        (&["lisen"], "lisen", "did you mean `listen`?"),
        (&["status", "--jsn"], "--jsn", "did you mean `--json`?"),
        (&["events", "bogus"], "bogus", "`whrelay events --help`"),
        (
            &["events", "--since", "2h", "--until", "3h"],
            "--until",
            "count back",
        ),
        (
            &["logs", "--status", "sent", "--reason", "rejected"],
            "--reason",
            "--status",
        ),
        (&["logs", "-f", "--until", "1h"], "--until", "--follow"),
    ] {
        let (code, said) = refused(&home, args);
        assert_eq!(code, Some(2), "{args:?}: {said}");
        let lines: Vec<_> = said.lines().collect();
        let [error, tip] = lines[..] else {
            panic!("{args:?}: an error and a hint: {said}");
        };
        assert!(
            error.starts_with("error: ") && error.contains(named),
            "{said}"
        );
        assert!(tip.starts_with("hint: ") && tip.contains(hint), "{said}");
    }
    let (code, said) = refused(&home, &[]);
    assert!(code == Some(2) && said.contains("Usage: whrelay"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_matches_nothing_exits_3_and_nothing_at_all_is_said() {
    let (home, receiver) = (home(), Receiver::start().await);
    for list in ["events", "logs"] {
        let (code, said) = refused(&home, &[list]);
        assert!(code == Some(0) && said.contains("yet"), "{said}");
    }
    let (listen, url) = home.listen(&["--to", &receiver.target()]).await;
    let id = send(&url, "x").await;
    listen.wait_state(&id, "sent").await;
    for args in [
        &["events", "--bucket", "other"][..],
        &["events", "--group", "--status", "dead"],
        &["logs", "--status", "dead"],
        &["replay", "--until", "1d"],
        &["discard", "--status", "dead"],
    ] {
        let (code, said) = refused(&home, args);
        assert!(
            code == Some(3) && said.contains("hint: "),
            "{args:?}: {said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_says_when_its_port_is_taken_and_comes_back_to_it() {
    let (home, receiver) = (home(), Receiver::start().await);
    let (to, bind) = (receiver.target(), port::quiet());
    let (mut listen, url) = home.listen(&["--to", &to, "--bind", &bind]).await;
    let shown = json_lines(&home.run(&["status", "--json"]).stdout).remove(0);
    assert_eq!(shown["url"], url);
    assert_eq!(listen.terminate().await, Some(0));
    // Somebody else has it for a while.
    let taken = std::net::TcpListener::bind(&bind).unwrap();
    let (mut listen, away) = home.listen(&["--to", &to]).await;
    assert!(!away.contains(&bind), "{away}");
    let named = format!("port {} is busy", &bind["127.0.0.1:".len()..]);
    let said = |line: &Value| line["message"].as_str().unwrap().contains(&named);
    listen.wait("warning", said).await;
    assert_eq!(listen.terminate().await, Some(0));
    drop(taken);
    let (mut listen, back) = home.listen(&["--to", &to]).await;
    assert_eq!(back, url);
    assert_eq!(listen.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_queued_by_a_replay_that_would_wait_for_nobody() {
    let (home, receiver) = (home(), Receiver::start().await);
    let to = receiver.target();
    let (mut listen, url) = home.listen(&["--to", &to]).await;
    let id = send(&url, "x").await;
    listen.wait_state(&id, "sent").await;
    assert_eq!(listen.terminate().await, Some(0));
    let (code, said) = refused(&home, &["replay", &id, "--wait"]);
    assert!(code == Some(1) && said.contains("no agent runs"), "{said}");
    let status = json_lines(&home.run(&["status", "--json"]).stdout).remove(0);
    assert_eq!(status["queued"], 0);
    // One that has nothing of it is nobody to wait for.
    let bucket = ["--to", &to, "--bucket", "other"];
    let (listen, url) = home.listen(&bucket).await;
    let other = send(&url, "y").await;
    listen.wait_state(&other, "sent").await;
    let (code, said) = refused(&home, &["replay", "--bucket", "other", "--wait"]);
    assert_eq!(code, Some(0), "{said}");
    let times = receiver.events().iter().filter(|id| **id == other).count();
    assert_eq!(times, 2);
}

#[test]
fn a_file_that_makes_no_sense_is_named_and_stops_neither_doctor_nor_completions() {
    let home = home();
    let project = home.path().join("whrelay.toml");
    std::fs::write(&project, "to = \"3000\"\nretry_on = \"never\"\n").unwrap();
    let (code, said) = refused(&home, &["listen"]);
    assert_eq!(code, Some(2));
    let all = "possible values: transient, non-2xx";
    assert!(
        said.contains("whrelay.toml:2:") && said.contains(all),
        "{said}"
    );
    assert!(said.contains("hint: `whrelay listen --help`"), "{said}");
    let checks = home.run(&["doctor", "--json"]);
    assert_eq!(checks.status.code(), Some(1));
    let checks = json_lines(&checks.stdout);
    let config = checks.iter().find(|check| check["check"] == "config");
    let config = config.unwrap();
    assert!(config["ok"] == false && config["result"].as_str().unwrap().contains(":2:"));
    for needs_none in [&["completions", "bash"][..], &["man"]] {
        assert_eq!(home.run(needs_none).status.code(), Some(0));
    }
    std::fs::write(&project, "[prof]\nto = \"3000\"\n").unwrap();
    let (_, said) = refused(&home, &["listen"]);
    assert!(said.contains("[profile.prof]"), "{said}");
}

#[test]
fn a_service_that_does_not_start_is_not_left_installed() {
    let mut home = home();
    let bin = home.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let fake = bin.join("systemctl");
    std::fs::write(
        &fake,
        "#!/bin/sh\ncase $2 in status) exit 4;; start) exit 1;; esac\n",
    )
    .unwrap();
    std::fs::set_permissions(&fake, PermissionsExt::from_mode(0o755)).unwrap();
    home.set("PATH", &format!("{}:/usr/bin:/bin", bin.display()));
    let (code, said) = refused(&home, &["service", "install", "listen", "3000"]);
    assert!(code == Some(1) && said.contains("hint: "), "{said}");
    let unit = home.path().join(".config/systemd/user/whrelay.service");
    assert!(!unit.exists());
    let (code, said) = refused(&home, &["service", "install", "listen"]);
    assert!(code == Some(2) && said.contains("no target"), "{said}");
    // A directory's name, which a repository chooses, must not become lines of the unit.
    home.set("WHRELAY_CONFIG", "");
    home.set("WHRELAY_DATA_DIR", "/tmp/x\nExecStartPre=/bin/evil");
    let (code, said) = refused(&home, &["service", "install", "listen", "3000"]);
    assert!(code == Some(2) && said.contains("line breaks"), "{said}");
    home.set("WHRELAY_DATA_DIR", "");
    // Nor is a link followed to another file of the user's.
    let victim = home.path().join("victim");
    std::fs::write(&victim, "mine").unwrap();
    std::fs::create_dir_all(unit.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&victim, &unit).unwrap();
    let (code, said) = refused(&home, &["service", "install", "listen", "3000"]);
    assert!(
        code == Some(1) && said.contains("whrelay.service"),
        "{said}"
    );
    assert_eq!(std::fs::read(&victim).unwrap(), b"mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_to_nothing_is_not_set() {
    let (mut home, receiver) = (home(), Receiver::start().await);
    home.configure(&format!("to = \"{}\"\n", receiver.target()));
    for name in [
        "WHRELAY_TO",
        "WHRELAY_BIND",
        "WHRELAY_RATE",
        "WHRELAY_FORWARDER",
    ] {
        home.set(name, "");
    }
    let (listen, url) = home.listen(&[]).await;
    let id = send(&url, "x").await;
    listen.wait_state(&id, "sent").await;
}

#[test]
fn a_slip_of_the_finger_is_no_host_and_a_port_is_no_command() {
    let home = home();
    let (code, said) = refused(&home, &["listen", "300o"]);
    assert!(code == Some(2) && said.contains("digits only"), "{said}");
    for word in ["3000", "localhost:3000"] {
        let (code, said) = refused(&home, &[word]);
        let hint = format!("did you mean `whrelay listen {word}`?");
        assert!(code == Some(2) && said.contains(&hint), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_is_one_that_can_be_used_also_where_all_addresses_are_bound() {
    let (there, here, receiver) = (home(), home(), Receiver::start().await);
    let bind = whrelay_tests::port::quiet().replace("127.0.0.1", "0.0.0.0");
    let forwarder = there.start(&["forwarder", "--json", "--bind", &bind]);
    let ready = forwarder.wait("ready", |_| true).await;
    let url = ready["url"].as_str().unwrap();
    assert_eq!(
        url,
        format!("http://{}", bind.replace("0.0.0.0", "127.0.0.1"))
    );
    let to = receiver.target();
    let (listen, input) = here.listen(&["--to", &to, "--bind", "0.0.0.0:0"]).await;
    assert!(input.starts_with("http://127.0.0.1:"), "{input}");
    let warned = |line: &Value| {
        line["message"]
            .as_str()
            .unwrap()
            .contains("other machines reach")
    };
    listen.wait("warning", warned).await;
    let id = send(&input, "x").await;
    listen.wait_state(&id, "sent").await;
}

/// What is set in the environment is named where it is wrong, may be several targets, and may begin with `~`.
#[tokio::test(flavor = "multi_thread")]
async fn values_of_the_environment_are_read_as_people_write_them() {
    let mut home = home();
    home.set("WHRELAY_TIMEOUT", "soon");
    let (code, said) = told(&home, &["listen", "3000"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("error: WHRELAY_TIMEOUT: "), "{said}");
    home.set("WHRELAY_TIMEOUT", "5s");
    home.set("WHRELAY_TO", "localhost:3997 localhost:3998");
    home.set("WHRELAY_READY_FILE", "~/is-ready");
    let (mut listen, _) = home.listen(&[]).await;
    let ready = listen.all("ready").remove(0);
    assert_eq!(ready["targets"].as_array().unwrap().len(), 2, "{ready}");
    assert!(home.path().join("is-ready").exists());
    assert_eq!(listen.terminate().await, Some(0));
}

/// A program that stands for cloudflared: it says its URL among other things, and runs until it is told to end.
fn tunnel_program(home: &whrelay_tests::process::Home, then: &str) {
    use std::os::unix::fs::PermissionsExt;
    let dir = home.path().join("bin");
    std::fs::create_dir_all(&dir).unwrap();
    let said = "printf '\\351\\n' >&2\n\
                echo 'INF see https://developers.cloudflare.com/' >&2\n\
                echo 'INF |  https://calm-tea.trycloudflare.com  |' >&2";
    let text = format!(
        "#!/bin/sh\necho \"$@\" >{0}/args\n{said}\n{then}\n",
        home.path().display()
    );
    std::fs::write(dir.join("cloudflared"), text).unwrap();
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.join("cloudflared"), executable).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installed_program_gives_the_input_a_public_url() {
    let (mut home, receiver) = (home(), Receiver::start().await);
    let to = receiver.target();
    home.set("PATH", "/nowhere");
    let (code, said) = told(&home, &["listen", &to, "--public"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("install cloudflared or ngrok"), "{said}");
    let (code, said) = told(&home, &["listen", &to, "--public=ssh:-oProxyCommand=x"]);
    assert_eq!(code, Some(2), "{said}");

    let bin = home.path().join("bin");
    home.set("PATH", &format!("{}:/usr/bin:/bin", bin.display()));
    tunnel_program(&home, "exec sleep 600");
    let (mut listen, url) = home.listen(&["--to", &to, "--public"]).await;
    assert!(
        url.starts_with("https://calm-tea.trycloudflare.com/in/"),
        "{url}"
    );
    let by = |line: &Value| {
        line["message"]
            .as_str()
            .unwrap()
            .contains("cloudflared (pid ")
    };
    let by = listen.wait("warning", by).await;
    let message = by["message"].as_str().unwrap();
    let local = message.split_whitespace().last().unwrap();
    let args = std::fs::read_to_string(home.path().join("args")).unwrap();
    let port = local.split(['/', ':']).nth(4).unwrap();
    assert!(
        args.contains(&format!("--url http://127.0.0.1:{port}")),
        "{args}"
    );
    // What comes through it comes to the same input.
    let id = send(local, "x").await;
    listen.wait_state(&id, "sent").await;
    assert_eq!(listen.terminate().await, Some(0));

    tunnel_program(&home, "exit 3");
    let (mut listen, _) = home.listen(&["--to", &to, "--public"]).await;
    let ended = |line: &Value| {
        line["message"]
            .as_str()
            .unwrap()
            .contains("cloudflared has ended")
    };
    listen.wait("warning", ended).await;
    assert_eq!(listen.terminate().await, Some(0));
}
