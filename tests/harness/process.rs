//! The real binary, in a home of its own.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::Value;
use tempfile::TempDir;

use crate::{eventually, port};

/// A machine of one user: everything whrelay keeps is in it.
pub struct Home {
    dir: TempDir,
    binary: String,
    /// What its commands find in their environment, beside the usual.
    set: Vec<(String, String)>,
}

impl Home {
    /// A fresh one, for a binary.
    pub fn new(binary: &str) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            binary: binary.to_owned(),
            set: Vec::new(),
        }
    }

    /// A fresh one in a directory.
    pub fn within(binary: &str, dir: &Path) -> Self {
        Self {
            dir: tempfile::tempdir_in(dir).unwrap(),
            binary: binary.to_owned(),
            set: Vec::new(),
        }
    }

    /// From now on, runs another binary.
    pub fn use_binary(&mut self, binary: &str) {
        binary.clone_into(&mut self.binary);
    }

    /// From now on, commands find this in their environment.
    pub fn set(&mut self, name: &str, value: &str) {
        self.set.push((name.to_owned(), value.to_owned()));
    }

    /// From now on, it is so much later for commands, as in `+310s`.
    pub fn travel(&mut self, by: &str) {
        // The program knows where its library is.
        let asked = Command::new("faketime")
            .args(["-m", "-f", "+0", "printenv", "LD_PRELOAD"])
            .output()
            .expect("faketime: tests/run.sh installs it");
        let library = String::from_utf8(asked.stdout).unwrap();
        self.set("LD_PRELOAD", library.trim());
        self.set("FAKETIME", by);
        self.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }

    /// Writes the user's configuration file.
    pub fn configure(&self, text: &str) {
        let dir = self.path().join(".config/whrelay");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.toml"), text).unwrap();
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(args)
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
            .env_clear()
            .env("HOME", self.path())
            .env("NO_COLOR", "1")
            .env("TZ", "UTC")
            .envs(self.set.iter().cloned());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The same, while other futures of the same task go on.
    pub async fn output(&self, args: &[&str]) -> Output {
        let mut command = tokio::process::Command::from(self.command(args));
        command.output().await.unwrap()
    }

    /// Starts a command whose stdout is JSON lines.
    pub fn start(&self, args: &[&str]) -> Process {
        Self::spawn(self.command(args))
    }

    /// Starts another program in the same environment, found as the test finds it.
    pub fn start_program(&self, program: &str, args: &[&str]) -> Process {
        let ours = self.command(args);
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap());
        for (name, value) in ours.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        Self::spawn(command)
    }

    /// The same, with SIGHUP ignored as `nohup` does.
    pub fn start_nohup(&self, args: &[&str]) -> Process {
        let direct = self.command(args);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", &self.binary]);
        command.args(args).current_dir(self.path());
        command.stdin(Stdio::null()).env_clear();
        for (name, value) in direct.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Process {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, printed) = <(Arc<Mutex<Vec<Value>>>, Arc<Mutex<Vec<u8>>>)>::default();
        let (told, raw) = (Arc::clone(&lines), Arc::clone(&printed));
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let reading = std::thread::spawn(move || {
            let mut line = Vec::new();
            while let Ok(1..) = out.read_until(b'\n', &mut line) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                let parsed = serde_json::from_str(&text);
                told.lock()
                    .unwrap()
                    .push(parsed.unwrap_or(Value::String(text)));
                raw.lock().unwrap().append(&mut line);
            }
        });
        let said = Arc::<Mutex<String>>::default();
        let (heard, mut err) = (Arc::clone(&said), child.stderr.take().unwrap());
        let hearing = std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(n @ 1..) = err.read(&mut buffer) {
                heard
                    .lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Process {
            child,
            reading: [reading, hearing],
            lines,
            printed,
            said,
        }
    }

    /// Starts `listen --json` and waits until it is ready; answers with its input URL.
    pub async fn listen(&self, args: &[&str]) -> (Process, String) {
        let process = self.start(&[&["listen", "--json"], args].concat());
        let ready = process.wait("ready", |_| true).await;
        (process, ready["url"].as_str().unwrap().to_owned())
    }
}

/// A forwarder of its own that is ready.
pub struct Cloud {
    /// The process.
    pub process: Process,
    /// Its URL.
    pub url: String,
    /// Where its admin token lies.
    pub token_file: String,
}

impl Cloud {
    /// Starts one in a home.
    pub async fn start(home: &Home) -> Self {
        Self::start_at(home, &port::quiet()).await
    }

    /// Starts one at an address.
    pub async fn start_at(home: &Home, bind: &str) -> Self {
        let process = home.start(&["forwarder", "--bind", bind, "--json"]);
        let ready = process.wait("ready", |_| true).await;
        let text = |key: &str| ready[key].as_str().unwrap().to_owned();
        Self {
            url: text("url"),
            token_file: text("token_file"),
            process,
        }
    }

    /// Starts it again at the same address, after it has ended.
    pub async fn start_again(&mut self, home: &Home) {
        let bind = self.url.trim_start_matches("http://").to_owned();
        *self = Self::start_at(home, &bind).await;
    }

    /// The flags with which `listen` comes here.
    pub fn flags(&self) -> [&str; 4] {
        ["--forwarder", &self.url, "--token-file", &self.token_file]
    }
}

/// A running command.
pub struct Process {
    child: Child,
    /// What reads stdout and stderr.
    reading: [JoinHandle<()>; 2],
    lines: Arc<Mutex<Vec<Value>>>,
    printed: Arc<Mutex<Vec<u8>>>,
    said: Arc<Mutex<String>>,
}

impl Process {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said on stderr.
    pub fn stderr(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// What it has printed on stdout, to the byte.
    pub fn stdout(&self) -> Vec<u8> {
        self.printed.lock().unwrap().clone()
    }

    /// The lines of a type that it has printed.
    pub fn all(&self, kind: &str) -> Vec<Value> {
        let lines = self.lines.lock().unwrap();
        lines
            .iter()
            .filter(|line| line["type"] == kind)
            .cloned()
            .collect()
    }

    /// The lines that it has printed and that are no JSON.
    pub fn printed(&self) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let text = lines.iter().filter_map(Value::as_str);
        text.map(str::to_owned).collect()
    }

    /// Waits for a line of a type.
    pub async fn wait(&self, kind: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let what = format!("a {kind} line");
        eventually(&what, || self.all(kind).into_iter().find(|line| fits(line))).await
    }

    /// Waits for an attempt that left an event in this state.
    pub async fn wait_state(&self, event: &str, state: &str) -> Value {
        self.wait("attempt", |line| {
            line["event"] == event && line["state"] == state
        })
        .await
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; answers with its exit code.
    pub async fn terminate(&mut self) -> Option<i32> {
        self.signal("-TERM");
        self.ended().await.code()
    }

    /// Ctrl-C, and once it says that this takes a while, SIGTERM; answers with its exit code.
    pub async fn insist(&mut self) -> Option<i32> {
        self.signal("-INT");
        let waits = || self.stderr().contains("again ends them").then_some(());
        eventually("it waits for what is under way", waits).await;
        self.signal("-TERM");
        self.ended().await.code()
    }

    /// SIGSTOP: it does nothing more, and knows nothing of it.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// SIGCONT: it goes on.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    /// SIGHUP.
    pub fn hang_up(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        Command::new("kill").args([signal, &pid]).status().unwrap();
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it has ended and all that it printed and said is read.
    pub async fn ended(&mut self) -> ExitStatus {
        let status = eventually("the process ends", || self.child.try_wait().unwrap()).await;
        let all_read = || self.reading.iter().all(JoinHandle::is_finished);
        eventually("its output ends", || all_read().then_some(())).await;
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
