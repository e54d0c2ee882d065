//! Ring 4, the network between agent and forwarder: three hosts in namespaces, and between them what
//! networks do. Whatever happens, each event arrives once, and a tunnel that is dead is found out in
//! time. Each scene runs in a process of its own, on the laptop. Needs root, iproute2 and nftables.

mod hosts;
mod scenes;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::IsCa;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use whrelay_tests::process::{Home, Process};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender;
use whrelay_tests::tls::Identity;

use crate::arrivals::all_arrive;
use crate::chance::Chance;
use crate::report;
use crate::script;
use hosts::{CLOUD, FRONT, Host, Hosts, NAME, ROUTER};
use scenes::{Notice, SCENES, Scene, Way};

const PORT: u16 = 8080;
const TLS_PORT: u16 = 8443;
const PROXY_PORT: u16 = 3128;
/// Events before a fault, during it, and after it.
const EVENTS: usize = 20;
/// How long everything may take to arrive once nothing is wrong any more: the longest pause before a
/// dial, and a silence that has to be noticed first.
const ARRIVES_WITHIN: Duration = Duration::from_secs(60);
/// What the forwarder logs when it finds a tunnel dead.
const NOTICED: &str = "agent disconnected";

/// Plays every scene, all at once. Says whether all held.
pub(crate) fn run(binary: &str) -> bool {
    let began = Instant::now();
    let children = SCENES.iter().map(|scene| {
        let laid = Hosts::lay(scene.name);
        let child = Command::new("ip")
            .args(["netns", "exec", &laid.0.namespace(Host::Laptop)])
            .arg(std::env::current_exe().unwrap())
            .args(["scene", "--binary", binary, "--name", scene.name])
            .stdout(Stdio::piped())
            .spawn();
        (scene, laid, child.unwrap())
    });
    let mut held = true;
    for (scene, laid, child) in children.collect::<Vec<_>>() {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let told = text.lines().last().unwrap_or("it said nothing").to_owned();
        let fault = format!("{} ({})", scene.told, scene.ids);
        let found = output.status.success().then(|| told.clone()).ok_or(told);
        held &= report::judge(&fault, format!("{} events", 3 * EVENTS), began, found);
        drop(laid);
    }
    held
}

/// Plays one scene, on the laptop of hosts that are laid. Says whether it held.
pub(crate) fn scene(binary: &str, name: &str) -> bool {
    let scene = SCENES.iter().find(|scene| scene.name == name).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let played = runtime.block_on(play(binary, scene));
    println!("{}", played.as_ref().unwrap_or_else(|why| why));
    played.is_ok()
}

async fn play(binary: &str, scene: &Scene) -> Result<String, String> {
    let mut stage = Stage::set(binary, scene).await;
    let mut sent = HashSet::new();
    stage.send(EVENTS, scene, &mut sent).await;
    all_arrive(&stage.receiver, &sent, ARRIVES_WITHIN).await?;
    let began = Instant::now();
    let mut told = stage.trouble(scene, &mut sent).await?;
    stage.send(EVENTS, scene, &mut sent).await;
    let took = all_arrive(&stage.receiver, &sent, ARRIVES_WITHIN).await?;
    let requests = stage.receiver.count();
    if requests != sent.len() {
        return Err(format!("{requests} requests for {} events", sent.len()));
    }
    let redialled = stage.noticed().0;
    if matches!(scene.notice, Notice::Never) && redialled > 0 {
        return Err(format!("the tunnel was given up {redialled} times"));
    }
    write!(
        told,
        "{redialled} new tunnels, all arrived {:.1} s after it was over, {:.0} s in all",
        took.as_secs_f64(),
        began.elapsed().as_secs_f64()
    )
    .unwrap();
    Ok(told)
}

/// Everything that takes part in a scene.
struct Stage {
    hosts: Hosts,
    receiver: Receiver,
    forwarder: Process,
    listen: Process,
    proxy: Option<HostCommand>,
    /// What takes the TLS off before the forwarder.
    _terminator: Option<HostCommand>,
    /// The input URL as senders reach it.
    front: String,
    _home: Home,
}

impl Stage {
    async fn set(binary: &str, scene: &Scene) -> Self {
        let hosts = Hosts::of(scene.name);
        for (host, commands) in scene.before {
            hosts.on(*host, commands);
        }
        hosts.resolve(scene.named[0]);
        let mut home = Home::new(binary);
        home.set("WHRELAY_ALLOW_PLAIN_HTTP", "1");
        let (forwarder, token_file) = start_forwarder(&hosts, &mut home, binary).await;
        let (mut proxy, mut terminator) = (None, None);
        let mut run = format!("exec {binary} \"$@\"");
        let url = match scene.way {
            Way::Name => format!("http://{NAME}:{PORT}"),
            Way::Address => format!("http://{CLOUD}:{PORT}"),
            Way::Proxy => {
                let at = format!("{CLOUD}:{TLS_PORT}");
                let server = format!("127.0.0.1:{PORT}");
                let tls =
                    HostCommand::start(&hosts, Host::Cloud, &["terminate", &at, &server]).await;
                let roots = home.path().join("roots.pem");
                let certificate = tls.process.all("ready").remove(0)["certificate"].take();
                std::fs::write(&roots, certificate.as_str().unwrap()).unwrap();
                let through = format!("{ROUTER}:{PROXY_PORT}");
                proxy = Some(HostCommand::start(&hosts, Host::Router, &["proxy", &through]).await);
                run = format!(
                    "HTTPS_PROXY=http://{through} SSL_CERT_FILE={} {run}",
                    roots.display()
                );
                terminator = Some(tls);
                format!("https://{at}")
            }
        };
        home.use_binary(&script::write(&home.path().join("here"), &run));
        let receiver = Receiver::start().await;
        let to = receiver.target();
        let flags = [
            "--to",
            &to,
            "--forwarder",
            &url,
            "--token-file",
            &token_file,
        ];
        let (listen, url) = home.listen(&flags).await;
        Self {
            hosts,
            receiver,
            forwarder,
            listen,
            proxy,
            _terminator: terminator,
            front: format!("http://{FRONT}:{PORT}{}", sender::path_of(&url)),
            _home: home,
        }
    }

    /// The fault, from its beginning to its end; answers with what was noticed.
    async fn trouble(
        &mut self,
        scene: &Scene,
        sent: &mut HashSet<String>,
    ) -> Result<String, String> {
        let before = self.noticed();
        self.hosts.resolve(scene.named[1]);
        for (host, commands) in scene.begin {
            self.hosts.on(*host, commands);
        }
        if let Some(proxy) = &mut self.proxy {
            proxy.process.kill();
        }
        let began = Instant::now();
        self.send(EVENTS, scene, sent).await;
        let mut told = String::new();
        if let Notice::Within(time) = scene.notice {
            while !(self.noticed().0 > before.0 && self.noticed().1 > before.1) {
                if began.elapsed() > time {
                    let (now, then) = (self.noticed(), before);
                    return Err(format!("not noticed in {time:?}: {then:?}, then {now:?}"));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            told = format!("noticed after {:.1} s, ", began.elapsed().as_secs_f64());
        }
        tokio::time::sleep(scene.holds.saturating_sub(began.elapsed())).await;
        for (host, commands) in scene.end {
            self.hosts.on(*host, commands);
        }
        self.hosts.resolve(scene.named[2]);
        if let Some(proxy) = &mut self.proxy {
            proxy.start_again().await;
        }
        Ok(told)
    }

    /// Sends so many events, by the way that no fault touches.
    async fn send(&self, events: usize, scene: &Scene, sent: &mut HashSet<String>) {
        let (client, mut chance) = (sender::client(), Chance::new(sent.len() as u64));
        for _ in 0..events {
            let length = chance.index(scene.body);
            let answer = client.post(&self.front).body(vec![7; length]).send().await;
            let text = answer.unwrap().text().await.unwrap();
            sent.insert(sender::id_of(&text));
        }
    }

    /// How often the agent and the forwarder have found the tunnel dead.
    fn noticed(&self) -> (usize, usize) {
        let links = self.listen.all("link");
        let ended = |line: &&serde_json::Value| line["state"] == "disconnected";
        (
            links.iter().filter(ended).count(),
            self.forwarder.stderr().matches(NOTICED).count(),
        )
    }
}

async fn start_forwarder(hosts: &Hosts, home: &mut Home, binary: &str) -> (Process, String) {
    let run = format!("env WHRELAY_LOG=info {binary}");
    home.use_binary(&hosts.program(Host::Cloud, home.path(), &run));
    let (bind, public) = (format!("[::]:{PORT}"), format!("http://{CLOUD}:{PORT}"));
    let process = home.start(&[
        "forwarder",
        "--bind",
        &bind,
        "--public-url",
        &public,
        "--json",
    ]);
    let ready = process.wait("ready", |_| true).await;
    (process, ready["token_file"].as_str().unwrap().to_owned())
}

/// A command of this program, on a host.
struct HostCommand {
    process: Process,
    home: Home,
    args: Vec<String>,
}

impl HostCommand {
    async fn start(hosts: &Hosts, host: Host, args: &[&str]) -> Self {
        let this = std::env::current_exe().unwrap();
        let mut home = Home::new("");
        home.use_binary(&hosts.program(host, home.path(), this.to_str().unwrap()));
        let process = home.start(args);
        process.wait("ready", |_| true).await;
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self {
            process,
            home,
            args,
        }
    }

    async fn start_again(&mut self) {
        let args: Vec<_> = self.args.iter().map(String::as_str).collect();
        self.process = self.home.start(&args);
        self.process.wait("ready", |_| true).await;
    }
}

/// Takes the TLS off before a server, for an address. It runs until it is killed.
pub(crate) fn terminate(bind: &str, server: &str) -> bool {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind(bind).await.unwrap();
        let address = listener.local_addr().unwrap().ip().to_string();
        let identity = Identity::new(&address, 2099, IsCa::NoCa);
        let ready = serde_json::json!({"type": "ready", "certificate": identity.pem});
        println!("{ready}");
        identity.terminate(listener, server.to_owned()).await;
        true
    })
}

/// An HTTP proxy that speaks CONNECT (RFC 9110 section 9.3.6). It runs until it is killed.
pub(crate) fn proxy(bind: &str) -> bool {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind(bind).await.unwrap();
        println!(r#"{{"type":"ready"}}"#);
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                // Who breaks it off, and how, is what is tried.
                let _ = pass_on(stream).await;
            });
        }
    })
}

async fn pass_on(near: TcpStream) -> std::io::Result<()> {
    let mut near = BufReader::new(near);
    let mut line = String::new();
    near.read_line(&mut line).await?;
    let ["CONNECT", target, _] = line.split_whitespace().collect::<Vec<_>>()[..] else {
        return near.write_all(b"HTTP/1.1 405 X\r\n\r\n").await;
    };
    let mut far = TcpStream::connect(target).await?;
    let mut field = String::new();
    while near.read_line(&mut field).await? > 2 {
        field.clear();
    }
    near.write_all(b"HTTP/1.1 200 X\r\n\r\n").await?;
    copy_bidirectional(&mut near, &mut far).await?;
    Ok(())
}
