//! Figures of the release binary as a process: memory, start, size.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use std::io::{BufRead, BufReader};

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use whrelay_agent::Proxies;
use whrelay_delivery::Trust;
use whrelay_proto::frame::Hello;
use whrelay_proto::{AgentSession, SUBPROTOCOL, codec};

const TUNNELS: usize = 5000;

/// The path of this program.
pub(crate) fn this_program() -> PathBuf {
    std::env::current_exe().unwrap()
}

pub(crate) fn binary() -> PathBuf {
    this_program().with_file_name("whrelay")
}

/// A program that has said it is ready, in a line of JSON; it ends with this.
pub(crate) struct Running {
    child: Child,
    /// Kept open: a process whose output nobody reads ends.
    _stdout: BufReader<ChildStdout>,
    ready: serde_json::Value,
    took: Duration,
}

impl Running {
    pub(crate) fn start(program: &Path, args: &[&str], home: &Path) -> Self {
        let began = Instant::now();
        let mut command = Command::new(program);
        command
            .args(args)
            .env("HOME", home)
            .env("WHRELAY_DATA_DIR", home);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (mut line, mut stdout) = (String::new(), BufReader::new(child.stdout.take().unwrap()));
        stdout.read_line(&mut line).unwrap();
        let (ready, took) = (serde_json::from_str(&line).unwrap(), began.elapsed());
        Self {
            child,
            _stdout: stdout,
            ready,
            took,
        }
    }

    /// `whrelay forwarder` on a free port.
    pub(crate) fn forwarder(home: &Path) -> Self {
        Self::start(
            &binary(),
            &["forwarder", "--bind", "127.0.0.1:0", "--json"],
            home,
        )
    }

    /// A text of its ready line.
    pub(crate) fn text(&self, key: &str) -> String {
        self.ready[key].as_str().unwrap().to_owned()
    }

    /// A forwarder's admin token.
    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.text("token_file"))
            .unwrap()
            .trim()
            .to_owned()
    }

    /// Resident memory, in kB.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Memory of an idle `listen`, its time to ready, and the binary's size.
pub(crate) async fn small() {
    let mut starts = Vec::new();
    let home = tempfile::tempdir().unwrap();
    for _ in 0..11 {
        let listen = Running::start(
            &binary(),
            &["listen", "--to", "localhost:9", "--json"],
            home.path(),
        );
        starts.push(listen.took);
        if starts.len() == 11 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            println!(
                "idle listen, embedded forwarder included: {} kB resident",
                listen.resident()
            );
        }
    }
    starts.sort();
    println!(
        "start to ready: median {:.1?}, slowest {:.1?}",
        starts[5], starts[10]
    );
    let size = std::fs::metadata(binary()).unwrap().len();
    println!("binary: {:.1} MB", size as f64 / 1e6);
}

/// Memory of the forwarder for each idle tunnel.
pub(crate) async fn tunnels() {
    let home = tempfile::tempdir().unwrap();
    let forwarder = Running::forwarder(home.path());
    let (url, token) = (forwarder.text("url"), forwarder.token());
    let parsed = whrelay_core::token::Token::parse(&token).unwrap();
    let bucket = "bench".parse().unwrap();
    whrelay_agent::ensure_bucket(
        &url.parse().unwrap(),
        &Proxies::none(),
        &Trust::default(),
        &parsed,
        &bucket,
    )
    .await
    .unwrap();
    let address = url.trim_start_matches("http://").to_owned();
    let before = forwarder.resident();
    let mut sockets = Vec::new();
    for n in 0..TUNNELS {
        let mut request = format!("ws://{address}/v1/tunnel")
            .into_client_request()
            .unwrap();
        let headers = request.headers_mut();
        headers.insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
        headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream)
            .await
            .unwrap();
        let (_, hello) = AgentSession::begin(Hello::new("bench", &format!("agent-{n}"), None));
        socket
            .send(Message::Binary(codec::encode(hello)))
            .await
            .unwrap();
        socket.next().await.unwrap().unwrap();
        sockets.push(socket);
    }
    let grown = forwarder.resident() - before;
    let each = grown as f64 / TUNNELS as f64;
    println!("{TUNNELS} idle tunnels: {before} kB before, {grown} kB more, {each:.2} kB each");
}
