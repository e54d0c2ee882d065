//! `whrelay demo`: the main job on real parts, on this machine, in a minute. It must not fake
//! anything: the forwarder, the tunnel, both stores and the sockets are those of `listen`.

mod curve;
mod payloads;

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use tokio::sync::mpsc;
use whrelay_agent::lines::{AttemptLine, EndpointState, Line};
use whrelay_agent::{Access, Config, Label, Proxies, Requests};
use whrelay_core::backlog::Backlog;
use whrelay_core::bucket::BucketName;
use whrelay_core::delivery::State;
use whrelay_core::destination::Setup;
use whrelay_core::retention::Retention;
use whrelay_delivery::Trust;

use self::payloads::{Webhook, webhook};
use crate::agents;
use crate::args::DemoArgs;
use crate::embedded::Embedded;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::paths::{Paths, Scratch, runtime_dirs};
use crate::receiver::Receiver;
use crate::shutdown;

/// Time the demo may take beyond what the receiver is away: retries are short here.
const PATIENCE: Duration = Duration::from_secs(90);

/// Of ten first attempts, so many fail.
const FAILING_OF_TEN: u8 = 3;

pub(crate) async fn run(args: DemoArgs, output: &Output) -> Result<(), Failure> {
    let scratch = Scratch::new("demo")?;
    let paths = Paths::under(scratch.path());
    let name: BucketName = "demo"
        .parse()
        .map_err(|e| Failure::new(Code::Bug, format!("{e}")))?;
    let fails = |attempt: &str| attempt == "1" && rand::random::<u8>() % 10 < FAILING_OF_TEN;
    let receiver = Receiver::start(0, true, Arc::new(fails), Arc::new(|_| {})).await;
    let receiver = receiver.map_err(|e| network(&e))?;
    let loopback = Some(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
    let embedded = Embedded::start(&paths.embedded(&name), loopback, Retention::ALL).await?;
    let dir = paths
        .embedded_agents()
        .join(name.as_str())
        .join(name.as_str());
    let store = agents::open_to_listen(&dir, Retention::ALL).await?;
    let target = format!("localhost:{}", receiver.port());
    let setup = Setup {
        to: vec![
            target
                .parse()
                .map_err(|e| Failure::new(Code::Bug, format!("{e}")))?,
        ],
        ..Setup::default()
    };
    let config = config(&embedded, setup, name, dir);
    output.tell("\n  sender -> forwarder's store -> tunnel -> agent's store -> receiver\n");
    let interrupted = shutdown::on_signal();
    let stop = interrupted.child_token();
    let (lines, coming) = mpsc::unbounded_channel();
    let tell = Arc::new(move |line| {
        // The show is over before the agent is.
        let _ = lines.send(line);
    });
    let agent = tokio::spawn(whrelay_agent::run(
        config,
        store.clone(),
        tell,
        stop.clone(),
    ));
    let show = Show {
        args: &args,
        output,
        receiver: &receiver,
        coming,
    };
    let shown = tokio::select! {
        biased;
        // The agent is interrupted, too, and may have ended by now.
        () = interrupted.cancelled() => Err(Failure::new(Code::Failed, "interrupted")),
        shown = tokio::time::timeout(PATIENCE + args.down, show.run()) => {
            shown.unwrap_or_else(|_| Err(Failure::new(Code::Failed, "not all were delivered in time")))
        }
    };
    stop.cancel();
    // Everything that counts has been counted.
    let _ = agent.await;
    embedded.stop().await;
    store.journal.close().await;
    shown
}

/// An agent of the demo's own forwarder.
fn config(embedded: &Embedded, setup: Setup, name: BucketName, dir: PathBuf) -> Config {
    Config {
        forwarder: embedded.url.clone(),
        proxies: Proxies::none(),
        trust: Trust::default(),
        access: Access::new(embedded.token.clone(), None),
        bucket: name.clone(),
        subscription: name,
        label: Label::default(),
        take_over: false,
        wants_backlog: None,
        setup,
        backlog: Backlog::default(),
        exit_on_disconnect: None,
        requests: Requests::default(),
        retention: Retention::ALL,
        dir,
        runtime_dirs: runtime_dirs(),
    }
}

fn network(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        Code::Unreachable,
        format!("loopback does not work: {error}"),
    )
}

struct Show<'a> {
    args: &'a DemoArgs,
    output: &'a Output,
    receiver: &'a Receiver,
    coming: mpsc::UnboundedReceiver<Line>,
}

#[derive(Deserialize)]
struct Accepted {
    id: String,
}

#[derive(Default)]
struct Counts {
    attempts: u64,
    failed: u64,
    /// When each event was delivered, since the start.
    sent: Vec<Duration>,
}

impl Show<'_> {
    async fn run(mut self) -> Result<(), Failure> {
        let url = self.ready().await?;
        let total = self.args.events as usize;
        let (bar, began) = (self.bar(), Instant::now());
        let sending = send_all(url, total, self.receiver, self.args.down, &bar);
        let mut counts = Counts::default();
        let counting = async {
            while counts.sent.len() < total {
                let line = self.coming.recv().await;
                let line =
                    line.ok_or_else(|| Failure::new(Code::Failed, "the agent has stopped"))?;
                if let Line::Attempt(attempt) = &line {
                    counts.take(attempt, began.elapsed());
                    bar.set_position(counts.sent.len() as u64);
                }
                if let Line::Endpoint { state, .. } = &line {
                    if *state == EndpointState::Online {
                        bar.set_message("the receiver is back");
                    }
                    bar.suspend(|| self.output.tell_line(&line));
                }
            }
            Ok::<(), Failure>(())
        };
        let (sent, counted) = tokio::join!(sending, counting);
        bar.finish_with_message("");
        let sent: HashMap<String, Webhook> = sent?;
        counted?;
        self.report(&counts, &sent, began.elapsed())
    }

    async fn ready(&mut self) -> Result<String, Failure> {
        while let Some(line) = self.coming.recv().await {
            if let Line::Ready(ready) = line {
                return Ok(ready.url);
            }
        }
        Err(Failure::new(Code::Failed, "the agent did not start"))
    }

    fn bar(&self) -> ProgressBar {
        if !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(u64::from(self.args.events));
        let style = ProgressStyle::with_template("  {bar:40} {pos}/{len} delivered  {msg}");
        style.map_or(bar.clone(), |style| bar.with_style(style))
    }

    fn report(
        &self,
        counts: &Counts,
        sent: &HashMap<String, Webhook>,
        took: Duration,
    ) -> Result<(), Failure> {
        self.output
            .data(&curve::draw(&counts.sent, took, sent.len()))?;
        let received = self.receiver.received();
        let intact = |(id, webhook): &(&String, &Webhook)| {
            received
                .get(*id)
                .is_some_and(|bodies| bodies.iter().all(|b| *b == webhook.body))
        };
        let whole = sent.iter().filter(intact).count();
        let doubled = received.values().filter(|bodies| bodies.len() > 1).count();
        let Counts {
            attempts, failed, ..
        } = counts;
        let text = format!(
            "{} sent, {whole} delivered to the byte, {doubled} more than once; \
             {attempts} attempts, {failed} failed; {:.1} s",
            sent.len(),
            took.as_secs_f64()
        );
        self.output.data(&text)?;
        if whole == self.args.events as usize {
            return Ok(());
        }
        Err(Failure::new(Code::Failed, "not all were delivered"))
    }
}

impl Counts {
    fn take(&mut self, attempt: &AttemptLine, at: Duration) {
        self.attempts += 1;
        if attempt.state == State::Sent {
            self.sent.push(at);
        } else {
            self.failed += 1;
        }
    }
}

/// Sends all webhooks; half-way the receiver goes away for a while, and the sending goes on.
async fn send_all(
    url: String,
    total: usize,
    receiver: &Receiver,
    down: Duration,
    bar: &ProgressBar,
) -> Result<HashMap<String, Webhook>, Failure> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .build()
        .map_err(|e| network(&e))?;
    let mut sent = HashMap::new();
    for n in 0..total {
        if n == total / 2 {
            receiver.go_away(down);
            bar.set_message("the receiver is away");
        }
        let webhook = webhook(n);
        let mut request = client
            .post(format!("{url}{}", webhook.path))
            .body(webhook.body.clone());
        for (name, value) in &webhook.headers {
            request = request.header(*name, value);
        }
        let answer = request
            .send()
            .await
            .and_then(reqwest::Response::error_for_status);
        let answer = answer.map_err(|e| network(&e))?;
        let Accepted { id } = answer.json().await.map_err(|e| network(&e))?;
        sent.insert(id, webhook);
    }
    Ok(sent)
}
