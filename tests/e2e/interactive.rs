//! The interactive view in a real terminal, driven by keys.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use whrelay_tests::eventually;
use whrelay_tests::process::Home;
use whrelay_tests::receiver::{Receiver, Reply};
use whrelay_tests::sender::send;

use crate::{home, text};

/// A terminal with `whrelay listen` in it.
struct Terminal<'a> {
    home: &'a Home,
}

/// What the terminal's shell does with it.
const IN_FRONT: &str = r#"trap : INT; "$@"; echo $? >code"#;
const CONTINUED: &str = r#"set -m; "$@"; echo suspended; bg; read _; fg; echo $? >code"#;
const BEHIND: &str = r#"set -m; "$@" & wait $!; echo $? >code"#;

impl<'a> Terminal<'a> {
    fn start(home: &'a Home, set: &[&str], args: &[&str]) -> Self {
        Self::start_by(IN_FRONT, home, set, args)
    }

    fn start_by(shell: &str, home: &'a Home, set: &[&str], args: &[&str]) -> Self {
        let config = home.path().join("tmux.conf");
        std::fs::write(&config, "set -g remain-on-exit on\n").unwrap();
        let terminal = Self { home };
        let home_set = format!("HOME={}", home.path().display());
        let ready = terminal.ready_file().display().to_string();
        let binary = env!("CARGO_BIN_EXE_whrelay-e2e");
        let begin = [
            "new-session",
            "-d",
            "-x",
            "100",
            "-y",
            "24",
            "sh",
            "-c",
            shell,
            "sh",
            "env",
            "TZ=UTC",
            &home_set,
        ];
        let listen = [binary, "listen", "--ready-file", &ready];
        terminal.tmux(&[&begin[..], set, &listen, args].concat());
        terminal
    }

    fn ready_file(&self) -> PathBuf {
        self.home.path().join("ready.json")
    }

    fn tmux(&self, args: &[&str]) -> String {
        let out = Command::new("tmux")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("LANG", "C.UTF-8")
            .env("TERM", "xterm-256color")
            .current_dir(self.home.path())
            .arg("-S")
            .arg(self.home.path().join("tmux"))
            .arg("-f")
            .arg(self.home.path().join("tmux.conf"))
            .args(args)
            .output()
            .unwrap();
        assert!(out.status.success(), "tmux {args:?}: {}", text(&out.stderr));
        text(&out.stdout)
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// What is left there once it has ended, with what has been scrolled away.
    fn left(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-S", "-"])
    }

    async fn shows(&self, what: &str) -> String {
        let found = || Some(self.screen()).filter(|screen| screen.contains(what));
        eventually(what, found).await
    }

    async fn url(&self) -> String {
        let ready = || {
            std::fs::read(self.ready_file())
                .ok()
                .filter(|text| text.ends_with(b"\n"))
        };
        let ready: Value = serde_json::from_slice(&eventually("ready", ready).await).unwrap();
        ready["url"].as_str().unwrap().to_owned()
    }

    async fn ends(&self) -> String {
        let ended = || {
            let code = std::fs::read_to_string(self.home.path().join("code")).ok()?;
            code.strip_suffix('\n').map(str::to_owned)
        };
        eventually("it ends", ended).await
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_choose_replay_show_pause_and_quit() {
    let (home, receiver) = (home(), Receiver::start().await);
    let terminal = Terminal::start(&home, &[], &["--to", &receiver.target()]);
    let url = terminal.url().await;
    terminal.shows("Send webhooks to").await;
    for n in 0..3 {
        send(&format!("{url}/{n}"), format!("body {n}")).await;
    }
    terminal.shows("3 sent").await;
    terminal.press("g");
    terminal.press("r");
    terminal.shows("delivered again").await;
    eventually("the replay", || (receiver.count() == 4).then_some(())).await;
    assert_eq!(receiver.seen()[3].body, b"body 0");
    terminal.press("d");
    let details = terminal.shows("body 0").await;
    assert!(details.contains("q back"), "{details}");
    terminal.press("q");
    terminal.press("o");
    terminal.shows("Copied").await;
    terminal.press("q");
    terminal.shows("j/k select").await;

    terminal.press("p");
    terminal.shows("PAUSED").await;
    terminal.press("Escape");
    send(&url, "later").await;
    terminal.shows("1 queued").await;
    assert_eq!(receiver.count(), 4, "nothing starts while it is paused");
    terminal.press("p");
    eventually("it goes on", || (receiver.count() == 5).then_some(())).await;

    terminal.tmux(&["resize-window", "-x", "50", "-y", "12"]);
    let fits = || {
        let screen = terminal.screen();
        let narrow = screen.lines().all(|line| line.chars().count() <= 50);
        let whole = screen.contains("Send webhooks") && screen.contains("j/k select");
        (narrow && whole && screen.lines().count() <= 12).then_some(())
    };
    eventually("it fits the smaller window", fits).await;
    terminal.shows("0 queued").await;
    terminal.press("q");
    assert_eq!(terminal.ends().await, "0");
    let left = terminal.left();
    assert!(
        left.contains("next `listen`") && !left.contains("j/k"),
        "{left}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn asked_twice_it_stops_at_once_and_gives_the_terminal_back() {
    let (home, receiver) = (home(), Receiver::scripted(|_| Reply::Hang).await);
    let terminal = Terminal::start(&home, &[], &["--to", &receiver.target()]);
    send(&terminal.url().await, "x").await;
    eventually("an attempt", || (receiver.count() == 1).then_some(())).await;
    terminal.press("C-c");
    terminal.shows("Stopping").await;
    // Keys that come at once are one wish.
    let ended = || {
        terminal.press("C-c");
        std::fs::read_to_string(home.path().join("code")).ok()
    };
    eventually("it ends", ended).await;
    assert_eq!(terminal.ends().await, "1");
    let left = terminal.left();
    assert!(
        left.contains("stopped at once") && !left.contains("j/k"),
        "{left}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_can_little_gets_plain_lines() {
    for set in ["TERM=dumb", "CI=true"] {
        let (home, receiver) = (home(), Receiver::start().await);
        let terminal = Terminal::start(&home, &[set], &["--to", &receiver.target()]);
        let id = send(&terminal.url().await, "x").await;
        let screen = terminal.shows(&id).await;
        assert!(screen.contains("Ctrl-C stops"), "{screen}");
        terminal.press("C-c");
        assert_eq!(terminal.ends().await, "0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_leaves_the_terminal_to_others_while_it_runs_in_the_background() {
    let (home, receiver) = (home(), Receiver::start().await);
    let terminal = Terminal::start_by(BEHIND, &home, &[], &["--to", &receiver.target()]);
    let id = send(&terminal.url().await, "x").await;
    let screen = terminal.shows(&id).await;
    assert!(!screen.contains("j/k select"), "{screen}");
    eventually("it is delivered", || (receiver.count() == 1).then_some(())).await;
    // It is no child of the terminal's shell any more, and would outlast it.
    let ready = std::fs::read(home.path().join("ready.json")).unwrap();
    let ready: Value = serde_json::from_slice(&ready).unwrap();
    let ended = Command::new("kill").arg(ready["pid"].to_string()).status();
    assert!(ended.unwrap().success());
    assert_eq!(terminal.ends().await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_suspended_and_goes_on_in_the_background_and_in_front() {
    let (home, receiver) = (home(), Receiver::start().await);
    let terminal = Terminal::start_by(CONTINUED, &home, &[], &["--to", &receiver.target()]);
    let url = terminal.url().await;
    terminal.shows("j/k select").await;
    terminal.press("C-z");
    terminal.shows("suspended").await;
    send(&url, "x").await;
    eventually("it is delivered", || (receiver.count() == 1).then_some(())).await;
    let screen = terminal.screen();
    assert!(!screen.contains("j/k select"), "{screen}");
    terminal.press("Enter");
    terminal.shows("1 sent").await;
    terminal.press("q");
    assert_eq!(terminal.ends().await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_while_someone_keeps_its_control_socket_open() {
    let (home, receiver) = (home(), Receiver::start().await);
    let terminal = Terminal::start(&home, &[], &["--to", &receiver.target()]);
    terminal.shows("Send webhooks to").await;
    let mut visitor = UnixStream::connect(control(&home)).unwrap();
    let head = [
        "POST /v1/ask HTTP/1.1",
        "Host: door",
        "Content-Type: application/json",
        "Content-Length: 10",
        "Expect: 100-continue",
    ];
    write!(visitor, "{}\r\n\r\n", head.join("\r\n")).unwrap();
    let mut answer = [0; 12];
    visitor.read_exact(&mut answer).unwrap();
    assert_eq!(text(&answer), "HTTP/1.1 100", "it waits for the body");
    terminal.press("q");
    assert_eq!(terminal.ends().await, "0");
    let left = terminal.left();
    assert!(left.contains("next `listen`"), "{left}");
    drop(visitor);
}

/// The socket on which an agent answers other commands.
fn control(home: &Home) -> String {
    let found = Command::new("find")
        .arg(home.path())
        .args(["-name", "control.json"])
        .output()
        .unwrap();
    let notice = std::fs::read(text(&found.stdout).trim_end()).unwrap();
    let notice: Value = serde_json::from_slice(&notice).unwrap();
    notice["socket"].as_str().unwrap().to_owned()
}
