//! What an attacker tries who has a repository that is cloned here, or an account on this machine, or a URL that is
//! mistaken for another one.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use whrelay_tests::eventually;
use whrelay_tests::port;
use whrelay_tests::process::{Cloud, Home};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender::{client, id_of, send};

use crate::{home, json_lines, text, told};

fn project(home: &Home, text: &str) -> PathBuf {
    let path = home.path().join("whrelay.toml");
    fs::write(&path, text).unwrap();
    path
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o777
}

/// The exit code of a command in another directory.
fn told_in(home: &Home, dir: &Path, command: &str) -> Option<i32> {
    let mut run = Command::new(env!("CARGO_BIN_EXE_whrelay-e2e"));
    run.arg(command).current_dir(dir).env_clear();
    run.env("HOME", home.path()).output().unwrap().status.code()
}

/// The token of a forwarder.
fn token(cloud: &Cloud) -> String {
    let text = fs::read_to_string(&cloud.token_file).unwrap();
    text.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloned_repository_stops_the_command_until_its_file_is_trusted() {
    let (mut home, stranger) = (home(), Receiver::start().await);
    let (forwarder, far) = (format!("http://{}", stranger.target()), "http://192.0.2.1");
    home.set("WHRELAY_TOKEN", "whr_adm_of_the_users_own");
    let victim = home.path().join(".bashrc");
    for set in [
        "ready_file = \".bashrc\"".to_owned(),
        format!("forwarder = \"{forwarder}\""),
        "bind = \"0.0.0.0:0\"".to_owned(),
        format!("to = \"{far}\""),
        format!("to = [\"3000\", \"{far}\"]"),
        "to = \"unix:/run/docker.sock\"".to_owned(),
        format!("route = [\"/a=3000\", \"/b={far}\"]"),
        "name = \"somebody\"".to_owned(),
        "header = [\"X-A: b\"]".to_owned(),
        "backlog = \"none\"".to_owned(),
        "ca_file = \"/dev/zero\"".to_owned(),
        "insecure = true".to_owned(),
        format!("[profile.here]\nforwarder = \"{forwarder}\""),
    ] {
        project(&home, &set);
        let profile = ["--profile", "here"];
        let chosen = if set.contains("[profile") {
            &profile[..]
        } else {
            &[]
        };
        for args in [
            &["listen", "--to", "3000"][..],
            &["test", "--expect", "1", "--to", "3000"],
            &["subscription", "ls"],
            &["status"],
        ] {
            let (code, said) = told(&home, &[args, chosen].concat());
            assert_eq!(code, Some(2), "{set}: {args:?}: {said}");
            assert!(said.contains("whrelay config trust"), "{set}: {said}");
        }
        let (code, said) = told(&home, &[&["doctor"][..], chosen].concat());
        assert!(
            code == Some(1) && said.contains("config trust"),
            "{set}: {said}"
        );
    }
    assert_eq!(stranger.count(), 0, "nobody was asked");
    assert!(!victim.exists());
    // What is not chosen does not count.
    project(&home, "[profile.other]\nbind = \"0.0.0.0:0\"\n");
    assert_eq!(told(&home, &["status"]).0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_may_set_what_cannot_hurt() {
    let (home, receiver) = (home(), Receiver::start().await);
    let to = receiver.target();
    project(
        &home,
        &format!(
            "to = \"{to}\"\nroute = \"/a={to}/b\"\nbucket = \"shop\"\nschedule = \"seconds\"\nmax_in_flight = 2\n\
             rate = \"100/s\"\norder = \"fifo\"\noutput = \"json\"\ntimeout = \"5s\"\n"
        ),
    );
    let mut listen = home.start(&["listen"]);
    let ready = listen.wait("ready", |_| true).await;
    assert_eq!(ready["bucket"], "shop");
    let id = send(ready["url"].as_str().unwrap(), "x").await;
    listen.wait_state(&id, "sent").await;
    assert_eq!(listen.terminate().await, Some(0));
    // What it gives up, it could give up all: it has bounds.
    for set in [
        "deadline = \"1ns\"",
        "max_attempts = 1",
        "schedule = \"1ms\"",
    ] {
        project(&home, set);
        assert_eq!(told(&home, &["status"]).0, Some(2), "{set}");
    }
    // Of a forwarder that serves others it chooses no bucket.
    project(&home, "bucket = \"shop\"\n");
    for command in [&["ls"][..], &["rm", "laptop"]] {
        let (code, said) = told(&home, &[&["subscription"], command].concat());
        assert!(code == Some(2) && said.contains("`bucket`"), "{said}");
    }
    let (there, here) = (crate::home(), home);
    let cloud = Cloud::start(&there).await;
    let (code, said) = told(&here, &[&["listen"][..], &cloud.flags()].concat());
    assert!(code == Some(2) && said.contains("`bucket`"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_trusted_as_it_is() {
    let (home, receiver) = (home(), Receiver::start().await);
    let to = receiver.target();
    let text = format!("to = \"{to}\"\nname = \"mine\"\n");
    project(&home, &text);
    assert_eq!(told(&home, &["listen"]).0, Some(2));
    let (code, said) = told(&home, &["config", "trust"]);
    assert_eq!(code, Some(0), "{said}");
    let (mut listen, url) = home.listen(&[]).await;
    let id = send(&url, "x").await;
    listen.wait_state(&id, "sent").await;
    assert_eq!(listen.terminate().await, Some(0));
    let notes = home.path().join(".local/share/whrelay/trusted");
    assert_eq!(mode(&notes), 0o700);
    // A link to it is another file: paths in it would be others.
    let elsewhere = home.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(
        home.path().join("whrelay.toml"),
        elsewhere.join("whrelay.toml"),
    )
    .unwrap();
    assert_eq!(told_in(&home, &elsewhere, "status"), Some(2));
    // Its next version is another file.
    project(&home, &(text.clone() + "bind = \"0.0.0.0:0\"\n"));
    assert_eq!(told(&home, &["listen"]).0, Some(2));
    project(&home, &text);
    assert_eq!(told(&home, &["status"]).0, Some(0));
    assert_eq!(told(&home, &["config", "trust", "--revoke"]).0, Some(0));
    assert_eq!(told(&home, &["status"]).0, Some(2));
    fs::remove_file(home.path().join("whrelay.toml")).unwrap();
    assert_eq!(told(&home, &["config", "trust"]).0, Some(3));
}

#[test]
fn a_file_that_others_can_write_is_ignored_loudly() {
    let home = home();
    let path = project(&home, "max_in_flight = 3\n");
    let value = || {
        let out = home.run(&["-q", "config", "show", "--json"]);
        let lines = json_lines(&out.stdout);
        let of = lines.iter().find(|line| line["key"] == "max_in_flight");
        (of.unwrap()["values"][0].clone(), text(&out.stderr))
    };
    assert_eq!(value().0, "3");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o646)).unwrap();
    let (found, said) = value();
    assert!(
        found == "16" && said.contains("warning: whrelay.toml is ignored"),
        "{said}"
    );
    assert_eq!(told(&home, &["config", "trust"]).0, Some(1));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    // Only the administrator can give a file away; elsewhere the rights above say the same.
    if chown(&path, Some(65534), None).is_ok() {
        let (found, said) = value();
        assert!(found == "16" && said.contains("another user"), "{said}");
    }
    fs::remove_file(&path).unwrap();
    project(&home, &"# long\n".repeat(10_000));
    let (code, said) = told(&home, &["status"]);
    assert!(code == Some(2) && said.contains("larger than"), "{said}");
    fs::remove_file(&path).unwrap();
    symlink("/dev/zero", &path).unwrap();
    assert_eq!(told(&home, &["status"]).0, Some(2), "it is read to no end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_goes_only_to_the_forwarder_that_it_was_given_for() {
    let (mut home, stranger) = (home(), Receiver::start().await);
    home.set("WHRELAY_TOKEN", "whr_adm_of_the_users_own");
    project(
        &home,
        &format!(
            "forwarder = \"http://{}\"\nto = \"3000\"\n",
            stranger.target()
        ),
    );
    assert_eq!(told(&home, &["config", "trust"]).0, Some(0));
    for args in [
        &["listen"][..],
        &["subscription", "ls"],
        &["test", "--expect", "1"],
    ] {
        let (code, said) = told(&home, args);
        assert!(
            code == Some(4) && said.contains("is not sent to"),
            "{args:?}: {said}"
        );
    }
    assert_eq!(told(&home, &["doctor"]).0, Some(1));
    let asked = stranger.seen();
    assert!(
        asked
            .iter()
            .all(|request| request.all("authorization").is_empty()),
        "{asked:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_crosses_a_network_in_the_clear_only_if_that_is_asked_for() {
    let (there, here, receiver) = (home(), home(), Receiver::start().await);
    let cloud = Cloud::start(&there).await;
    // An address of this machine that does not look like one.
    let far = cloud.url.replace("127.0.0.1", "0.0.0.0");
    let to = receiver.target();
    let flags = ["--forwarder", &far, "--token-file", &cloud.token_file];
    let (code, said) = told(&here, &[&["listen", "--to", &to][..], &flags].concat());
    assert!(
        code == Some(2) && said.contains("--allow-plain-http"),
        "{said}"
    );
    let args = [&["--to", &to, "--allow-plain-http"][..], &flags].concat();
    let (_listen, _) = here.listen(&args).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_url_is_not_taken_for_a_forwarder_and_keeps_no_token() {
    let (there, here, receiver) = (home(), home(), Receiver::start().await);
    let cloud = Cloud::start(&there).await;
    let to = receiver.target();
    let (listen, url) = here
        .listen(&[&cloud.flags()[..], &["--to", &to]].concat())
        .await;
    for command in [
        &["listen", "--to", &to][..],
        &["doctor"],
        &["subscription", "ls"],
    ] {
        let flags = ["--forwarder", &url, "--token-file", &cloud.token_file];
        let (code, said) = told(&here, &[command, &flags].concat());
        assert!(code == Some(2) && said.contains("input URL"), "{said}");
    }
    assert!(listen.all("received").is_empty(), "it was posted to");
    // In any field that somebody puts a whole one in.
    for (name, value) in [
        (
            "x-forwarded-authorization",
            format!("Bearer {}", token(&cloud)),
        ),
        ("cookie", format!("a=b; t={}", token(&cloud))),
        ("authorization", format!("token \"{}\"", token(&cloud))),
        ("authorization", format!("Bearer\t{}", token(&cloud))),
    ] {
        let sent = client().put(&url).header(name, value).header("x-kept", "1");
        let id = id_of(&sent.send().await.unwrap().text().await.unwrap());
        listen.wait_state(&id, "sent").await;
        let seen = receiver.seen();
        let request = seen.iter().find(|request| request.event() == id).unwrap();
        assert_eq!(
            (request.header(name), request.header("x-kept")),
            (String::new(), "1".into())
        );
    }
    // An older version, or another program.
    for (authorization, kept) in [
        (format!("Bearer {}", token(&cloud)), false),
        ("bearer  whr_adm_cut_off".to_owned(), false),
        ("Bearer of-the-senders-own".to_owned(), true),
        ("Basic d2hyXw==".to_owned(), true),
    ] {
        let sent = client().put(&url).header("authorization", &authorization);
        let id = id_of(&sent.send().await.unwrap().text().await.unwrap());
        listen.wait_state(&id, "sent").await;
        let seen = receiver.seen();
        let request = seen.iter().find(|request| request.event() == id).unwrap();
        assert_eq!(
            request.header("authorization") == authorization,
            kept,
            "{authorization}"
        );
    }
    let said = || {
        cloud
            .process
            .stderr()
            .contains("an access token was removed")
            .then_some(())
    };
    eventually("the forwarder says so", said).await;
    assert!(!cloud.process.stderr().contains(&token(&cloud)));
    let status = json_lines(&there.run(&["status", "--json"]).stdout);
    let forwarder = status
        .iter()
        .find(|line| line["type"] == "forwarder")
        .unwrap();
    assert_eq!(forwarder["refused"]["access_token_removed"], 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ready_file_is_private_and_there_only_while_it_is_true() {
    let (home, receiver) = (home(), Receiver::start().await);
    let (to, ready) = (receiver.target(), home.path().join("ready"));
    let victim = home.path().join("victim");
    fs::write(&victim, "mine").unwrap();
    symlink(&victim, &ready).unwrap();
    let args = [
        "listen",
        "--to",
        &to,
        "--ready-file",
        ready.to_str().unwrap(),
    ];
    let (code, said) = told(&home, &args);
    assert!(code == Some(2) && said.contains("--ready-file"), "{said}");
    assert_eq!(fs::read(&victim).unwrap(), b"mine");
    fs::remove_file(&ready).unwrap();
    // One from before says nothing of a start that fails.
    fs::write(&ready, "stale").unwrap();
    let taken = Receiver::start().await;
    let bind = format!("127.0.0.1:{}", taken.port());
    let (code, said) = told(&home, &[&args[..], &["--bind", &bind]].concat());
    assert!(code == Some(6) && !ready.exists(), "{said}");
    fs::write(&ready, "stale").unwrap();
    fs::set_permissions(&ready, fs::Permissions::from_mode(0o666)).unwrap();
    let (mut listen, _) = home.listen(&args[1..]).await;
    let there = || {
        fs::read_to_string(&ready)
            .ok()
            .filter(|text| text.contains("ready"))
    };
    let line: Value = serde_json::from_str(&eventually("it is there", there).await).unwrap();
    assert_eq!(line["pid"], listen.pid());
    assert_eq!(mode(&ready), 0o600);
    assert_eq!(listen.terminate().await, Some(0));
    assert!(!ready.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_whose_port_is_taken_makes_no_token_and_a_log_never_has_it() {
    let (home, taken) = (home(), Receiver::start().await);
    let bind = format!("127.0.0.1:{}", taken.port());
    let (code, said) = told(&home, &["forwarder", "--bind", &bind]);
    assert_eq!(code, Some(6), "{said}");
    let file = home
        .path()
        .join(".local/share/whrelay/forwarder/admin-token");
    assert!(!file.exists() && !said.contains("whr_"), "{said}");
    let cloud = Cloud::start(&home).await;
    let said = cloud.process.stderr();
    assert!(
        said.contains(&cloud.token_file) && !said.contains("whr_"),
        "{said}"
    );
    assert_eq!(mode(Path::new(&cloud.token_file)), 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_that_others_can_see_are_named() {
    let (there, home, receiver) = (home(), home(), Receiver::start().await);
    let cloud = Cloud::start(&there).await;
    let to = receiver.target();
    let args = [&cloud.flags()[..], &["--to", &to]].concat();
    let (mut listen, _) = home.listen(&args).await;
    assert!(!listen.stderr().contains("warning"), "{}", listen.stderr());
    assert_eq!(listen.terminate().await, Some(0));
    fs::set_permissions(&cloud.token_file, fs::Permissions::from_mode(0o644)).unwrap();
    home.configure("header = [\"Authorization: Bearer hidden\"]\n");
    let data = home.path().join(".local/share/whrelay");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    let args = [&args[..], &["-H", "X-Api-Key: typed"]].concat();
    let (listen, _) = home.listen(&args).await;
    let said = listen.stderr();
    for named in [
        "admin-token, which has a secret",
        "config.toml, which has a secret",
        "can look into",
        "on the command line can be seen",
    ] {
        assert!(said.contains(named), "{named}: {said}");
    }
    let (_, shown) = told(&home, &["config", "show"]);
    assert!(
        shown.contains("Authorization: …") && !shown.contains("hidden"),
        "{shown}"
    );
    let (code, said) = told(&home, &[&["doctor"][..], &cloud.flags()].concat());
    assert_eq!(code, Some(1));
    assert!(
        said.contains("FAIL secret") && said.contains("FAIL data"),
        "{said}"
    );
    // A crash leaves no image of the memory, where tokens are.
    let limits = fs::read_to_string(format!("/proc/{}/limits", listen.pid())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let core: Vec<_> = core.unwrap().split_whitespace().skip(4).take(2).collect();
    assert_eq!(core, ["0", "0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_socket_is_out_of_reach_of_others_and_a_stale_notice_is_not_believed() {
    let (mut home, receiver) = (home(), Receiver::start().await);
    let runtime = home.path().join("run");
    fs::create_dir(&runtime).unwrap();
    home.set("XDG_RUNTIME_DIR", runtime.to_str().unwrap());
    let (mut listen, url) = home.listen(&["--to", &receiver.target()]).await;
    let notice = home
        .path()
        .join(".local/share/whrelay/agents/embedded/default/default/control.json");
    let told_of: Value = serde_json::from_slice(&fs::read(&notice).unwrap()).unwrap();
    let socket = PathBuf::from(told_of["socket"].as_str().unwrap());
    assert!(socket.starts_with(&runtime), "{}", socket.display());
    assert_eq!(
        (mode(&socket), mode(socket.parent().unwrap())),
        (0o600, 0o700)
    );
    let id = send(&url, "x").await;
    listen.wait_state(&id, "sent").await;
    listen.kill();
    // An attacker's socket where others can put one.
    let evil = home.path().join("evil.sock");
    let _listening = std::os::unix::net::UnixListener::bind(&evil).unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let lie = serde_json::json!({ "socket": evil, "pid": std::process::id() });
    fs::write(&notice, lie.to_string()).unwrap();
    let lines = json_lines(&home.run(&["events", "--json"]).stdout);
    assert_eq!(lines[0]["event"], id, "it is read from the store");
}

/// The port of an embedded forwarder that has ended may be somebody else's.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_at_an_old_port_gets_a_token() {
    let (home, receiver) = (home(), Receiver::start().await);
    let bind = port::quiet();
    let to = receiver.target();
    let (mut listen, url) = home.listen(&["--to", &to, "--bind", &bind]).await;
    send(&url, "x").await;
    listen.kill();
    let stranger = std::net::TcpListener::bind(&bind).unwrap();
    stranger.set_nonblocking(true).unwrap();
    let (code, said) = told(&home, &["listen", "--to", &to, "--bind", &bind]);
    assert_eq!(code, Some(6), "{said}");
    // However many commands have the lock meanwhile.
    let commands = [&["status"][..], &["subscription", "ls"]].repeat(6);
    let all = commands.iter().map(|args| home.start(args));
    for mut command in all.collect::<Vec<_>>() {
        let ended = command.ended().await.code();
        assert_eq!(ended, Some(0), "{}", command.stderr());
    }
    let came = stranger.accept().map(drop).map_err(|error| error.kind());
    assert_eq!(
        came,
        Err(std::io::ErrorKind::WouldBlock),
        "somebody connected"
    );
}

/// What a command prints on a terminal.
fn on_a_terminal(home: &Home, args: &str) -> Vec<u8> {
    let command = format!("{} {args}", env!("CARGO_BIN_EXE_whrelay-e2e"));
    let shown = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env_clear()
        .env("HOME", home.path())
        .env("PATH", "/usr/bin:/bin")
        .env("NO_COLOR", "1")
        .current_dir(home.path())
        .output();
    shown.unwrap().stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_does_not_reach_a_terminal_as_it_is_and_a_pipe_gets_its_bytes() {
    let (home, receiver) = (home(), Receiver::start().await);
    let (listen, url) = home.listen(&["--to", &receiver.target()]).await;
    let body = "safe\u{1b}]0;evil\u{7}\u{9b}31m\u{202e}gnp.exe\n";
    let sent = client().post(&url).header("x-evil", "\u{9b}31m");
    let id = sent.body(body).send().await.unwrap().text().await.unwrap();
    let id = id_of(&id);
    listen.wait_state(&id, "sent").await;
    for args in [
        format!("events show {id} --body"),
        format!("events show {id}"),
        "events export --format json".to_owned(),
        "events export --format har".to_owned(),
    ] {
        let shown = text(&on_a_terminal(&home, &args));
        assert!(
            shown.contains("safe") || shown.contains("c2FmZ"),
            "{args}: {shown}"
        );
        let evil = |c: char| {
            let is_line = matches!(c, '\n' | '\r');
            (c.is_control() && !is_line) || c == '\u{202e}'
        };
        assert!(!shown.contains(evil), "{args}: {shown:?}");
    }
    let exact = home.run(&["events", "show", &id, "--body"]).stdout;
    assert_eq!(exact, body.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_takes_the_place_of_files_only() {
    let (home, receiver) = (home(), Receiver::start().await);
    let (listen, url) = home.listen(&["--to", &receiver.target()]).await;
    let id = send(&url, "x").await;
    listen.wait_state(&id, "sent").await;
    let at = |name: &str| home.path().join(name);
    fs::write(at("victim"), "mine").unwrap();
    fs::write(at("report.new"), "mine").unwrap();
    symlink(at("victim"), at("link")).unwrap();
    let made = Command::new("mkfifo").arg(at("pipe")).status();
    assert!(made.unwrap().success());
    for name in ["link", "pipe"] {
        let (code, said) = told(
            &home,
            &["events", "export", "--format", "json", "--output", name],
        );
        assert!(code == Some(1) && said.contains("--output"), "{said}");
    }
    for _ in 0..2 {
        let (code, said) = told(
            &home,
            &["events", "export", "--format", "json", "--output", "report"],
        );
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(mode(&at("report")), 0o600);
    }
    for name in ["victim", "report.new"] {
        assert_eq!(fs::read(at(name)).unwrap(), b"mine");
    }
}

#[test]
fn secrets_stay_out_of_errors() {
    let home = home();
    for args in [
        &["listen", "3000", "-H", "Authorization Bearer s3cret"][..],
        &["listen", "3000", "--forwarder", "http://u:s3cret@h"],
        &["trigger", "stripe", "--secret"],
    ] {
        let (code, said) = told(&home, args);
        assert!(code == Some(2) && !said.contains("s3cret"), "{said}");
    }
    home.configure("header = [\"Authorization Bearer s3cret\"]\n");
    let (code, said) = told(&home, &["status"]);
    assert!(code == Some(2) && !said.contains("s3cret"), "{said}");
}
