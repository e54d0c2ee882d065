//! `whrelay test`: listens until so many events were delivered, while a command runs. It must not count
//! what was not delivered.

use std::collections::HashMap;
use std::ffi::OsString;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::Instant;
use whrelay_agent::lines::{Line, ReceivedLine};
use whrelay_core::backlog::Backlog;
use whrelay_core::bucket::BucketName;
use whrelay_core::delivery::State;
use whrelay_core::destination::{OptionSet, Setup};
use whrelay_core::retention::Retention;
use whrelay_core::retry::Schedule;

use crate::args::{Matcher, TestArgs};
use crate::commands::listen::{self, Job};
use crate::failure::{Code, Failure};
use crate::forwarders::Door;
use crate::output::Output;
use crate::paths::{Paths, Scratch};
use crate::shutdown;
use crate::text::events;

/// How long a forwarder may take to notice that an agent is gone, and how often it is asked.
const LEAVES_WITHIN: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// One event more would come within this time behind the last one that is expected.
const SETTLED: Duration = Duration::from_millis(300);
/// What shells answer where a command does not exist, or cannot be run.
const NO_COMMAND: u8 = 127;
const NOT_RUNNABLE: u8 = 126;

pub(crate) async fn run(args: TestArgs, output: &Output) -> Result<(), Failure> {
    shutdown::unless_insisted(test(args, output)).await
}

async fn test(args: TestArgs, output: &Output) -> Result<(), Failure> {
    let scratch = Scratch::new("test")?;
    let interrupted = shutdown::on_signal();
    let stop = interrupted.child_token();
    let (lines, coming) = mpsc::unbounded_channel();
    let tell = Arc::new(move |line| {
        // Once enough is known, nobody needs to know more.
        let _ = lines.send(line);
    });
    let name: BucketName = format!("test-{:08x}", rand::random::<u32>())
        .parse()
        .map_err(|e| Failure::new(Code::Bug, format!("{e}")))?;
    let job = job(&args, name.clone());
    let paths = Paths::under(scratch.path());
    let agents = listen::agents_of(&paths, (&job.choice, &job.trust), &job.bucket).await?;
    let dir = agents.join(job.bucket.as_str()).join(name.as_str());
    let mut agent = tokio::spawn(job.run(paths, dir, tell, stop.clone()));
    let until = Instant::now() + args.timeout;
    let watch = Watch {
        args: &args,
        output,
        coming,
        events: HashMap::new(),
        received: 0,
        delivered: 0,
    };
    let bug = |e: tokio::task::JoinError| Failure::new(Code::Bug, e.to_string());
    let tested = tokio::select! {
        biased;
        tested = watch.run(until) => tested,
        // The agent is interrupted, too, and may have ended by now.
        () = interrupted.cancelled() => Err(Failure::new(Code::Failed, "interrupted")),
        ended = &mut agent => {
            return ended.map_err(bug)?.and(Err(Failure::new(Code::Failed, "the agent has stopped")));
        }
    };
    stop.cancel();
    // What was asked for is known by now.
    let _ = agent.await;
    end_subscription(&args, &name, output).await;
    tested
}

/// Ends the run's own subscription at a forwarder, which would keep events for nobody.
async fn end_subscription(args: &TestArgs, name: &BucketName, output: &Output) {
    if args.forwarder.url.is_none() {
        return;
    }
    let ended = async {
        let trust = args.requests.tunnel_trust();
        let door = Door::of(&args.forwarder, trust, (&args.bucket, None)).await?;
        let until = Instant::now() + LEAVES_WITHIN;
        loop {
            match door.end(&args.bucket, name.as_str()).await {
                // The forwarder has not noticed yet that the agent is gone.
                Err(failure) if failure.is_in_use() && Instant::now() < until => {
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                ended => return ended,
            }
        }
    };
    if let Err(failure) = ended.await {
        let why = failure.message();
        output.tell(&format!(
            "warning: could not end subscription {name}: {why}"
        ));
    }
}

fn job(args: &TestArgs, name: BucketName) -> Job {
    let setup = Setup {
        to: args.to.clone(),
        typed: OptionSet {
            schedule: Some(Schedule::Seconds),
            ..OptionSet::default()
        },
        ..Setup::default()
    };
    Job {
        setup,
        choice: args.forwarder.clone(),
        bucket: args.bucket.clone(),
        name,
        take_over: false,
        wants_backlog: Some(false),
        // What others have left behind is not part of the test.
        backlog: Backlog {
            newest: Some(0),
            since: None,
        },
        trust: args.requests.tunnel_trust(),
        requests: listen::requests(&args.requests),
        retention: Retention::ALL,
        exit_on_disconnect: None,
        public: None,
    }
}

struct Watch<'a> {
    args: &'a TestArgs,
    output: &'a Output,
    coming: mpsc::UnboundedReceiver<Line>,
    /// What is known of each event: an attempt may be told of before the event itself is.
    events: HashMap<String, Seen>,
    /// Those that match.
    received: u32,
    delivered: u32,
}

#[derive(Default)]
struct Seen {
    matches: bool,
    /// Targets that it has reached.
    reached: usize,
    /// Whether it was given up at one.
    is_dead: bool,
}

impl Seen {
    fn is_delivered(&self, targets: usize) -> bool {
        self.matches && self.reached >= targets
    }
}

impl Watch<'_> {
    async fn run(mut self, until: Instant) -> Result<(), Failure> {
        let (mut command, mut started) = (None, self.args.command.is_empty());
        // When all that was expected had come; one more would follow soon.
        let mut settled: Option<Instant> = None;
        loop {
            let running = async {
                match &mut command {
                    Some(running) => wait(running).await,
                    None => std::future::pending().await,
                }
            };
            let settling = settled.map_or(until, |at| at.min(until));
            tokio::select! {
                line = self.coming.recv() => {
                    // The agent has ended, and its task says why.
                    let Some(line) = line else { return std::future::pending().await };
                    if self.args.json || !self.output.is_quiet() {
                        self.output.line(&line, self.args.json)?;
                    }
                    if let Line::Ready(ready) = &line {
                        let expected = events(self.args.expect.into());
                        self.output.tell(&format!("waiting for {expected} at {}", ready.url));
                        command = start(&self.args.command, &ready.url, self.args.json)?;
                        started = true;
                    }
                    self.take(&line)?;
                }
                ended = running => {
                    ended?;
                    command = None;
                }
                () = tokio::time::sleep_until(settling) => match settled {
                    Some(at) if at <= until => return self.counted(),
                    Some(_) | None => return Err(self.too_few()),
                },
            }
            if self.received > self.args.expect && !self.args.at_least {
                return Err(self.too_many());
            }
            let is_enough = self.delivered >= self.args.expect && started && command.is_none();
            settled = match (is_enough, self.args.at_least, settled) {
                (true, true, _) => return self.counted(),
                (true, false, None) => Some(Instant::now() + SETTLED),
                (true, false, settled) => settled,
                (false, _, _) => None,
            };
        }
    }

    /// As many as were expected were delivered.
    fn counted(&self) -> Result<(), Failure> {
        let delivered = events(self.delivered.into());
        self.output.tell(&format!("{delivered} delivered"));
        Ok(())
    }

    fn too_many(&self) -> Failure {
        let (received, expect) = (events(self.received.into()), self.args.expect);
        let message = format!("{received} were received, and {expect} expected");
        Failure::new(Code::Failed, message).hint("--at-least takes more, --match counts only some")
    }

    fn take(&mut self, line: &Line) -> Result<(), Failure> {
        let (event, matches, state) = if let Line::Received(received) = line {
            let mut matchers = self.args.matches.iter();
            let matches = matchers.all(|matcher| fits(matcher, received));
            (&received.event, matches, None)
        } else if let Line::Attempt(attempt) = line {
            (&attempt.event, false, Some(attempt.state))
        } else {
            return Ok(());
        };
        let targets = self.args.to.len();
        let seen = self.events.entry(event.clone()).or_default();
        let (matched, was_delivered) = (seen.matches, seen.is_delivered(targets));
        seen.matches |= matches;
        seen.reached += usize::from(state == Some(State::Sent));
        seen.is_dead |= state == Some(State::Dead);
        if seen.matches && !matched {
            self.received += 1;
        }
        if seen.is_delivered(targets) && !was_delivered {
            self.delivered += 1;
        }
        if seen.matches && seen.is_dead {
            let why = format!("event {event} was refused and is not tried again");
            return Err(Failure::new(Code::Failed, why)
                .hint("the target answered with a code that is final, see the line above"));
        }
        Ok(())
    }

    fn too_few(&self) -> Failure {
        let message = format!(
            "{} of {} were delivered within {} s",
            self.delivered,
            events(self.args.expect.into()),
            self.args.timeout.as_secs_f64()
        );
        let matching = self.events.values().filter(|seen| seen.matches).count();
        let hint = match matching - self.delivered as usize {
            0 => "nothing else that matches was received".to_owned(),
            waiting => format!(
                "{} received, but not delivered in time: see the attempts above",
                events(waiting as u64)
            ),
        };
        Failure::new(Code::Failed, message).hint(hint)
    }
}

fn fits(matcher: &Matcher, received: &ReceivedLine) -> bool {
    match matcher {
        Matcher::Path(prefix) => {
            let tail = received.path.split('?').next().unwrap_or_default();
            prefix.takes(tail)
        }
        Matcher::Method(method) => received.method == *method,
        Matcher::Kind(kind) => received.kind.as_ref() == Some(kind),
    }
}

/// Starts the command, in a group of its own, so that its children end with it.
fn start(command: &[OsString], url: &str, json: bool) -> Result<Option<Group>, Failure> {
    let Some((program, args)) = command.split_first() else {
        return Ok(None);
    };
    // Lines on stdout are for scripts, and only ours.
    let stdout = match json {
        true => Stdio::from(std::io::stderr()),
        false => Stdio::inherit(),
    };
    let mut command = Command::new(program);
    command
        .args(args)
        .env("WHRELAY_URL", url)
        .stdin(Stdio::null())
        .stdout(stdout)
        .kill_on_drop(true);
    #[cfg(unix)]
    command.process_group(0);
    let child = command.spawn().map_err(|error| Failure::Ran {
        code: match error.kind() == std::io::ErrorKind::NotFound {
            true => NO_COMMAND,
            false => NOT_RUNNABLE,
        },
        message: format!("{}: {error}", program.to_string_lossy()),
    })?;
    Ok(Some(Group(child)))
}

/// A command and what it has started.
struct Group(tokio::process::Child);

impl Drop for Group {
    fn drop(&mut self) {
        #[cfg(unix)]
        {
            // Once it was waited for, its number may be another's; its children may still run in its group.
            let pid = self.0.id().and_then(|id| i32::try_from(id).ok());
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::TERM);
            }
        }
    }
}

async fn wait(Group(child): &mut Group) -> Result<(), Failure> {
    let status = child.wait().await;
    let status = status.map_err(|e| Failure::new(Code::Failed, e.to_string()))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::Ran {
        // A command that a signal has ended has no code: shells answer with 128 and its number.
        code: exit_code(status),
        message: format!("the command failed: {status}"),
    })
}

fn exit_code(status: ExitStatus) -> u8 {
    #[cfg(unix)]
    let signal = std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
    #[cfg(not(unix))]
    let signal = None;
    let code = status
        .code()
        .or(signal)
        .and_then(|code| u8::try_from(code).ok());
    code.unwrap_or(Code::Failed as u8)
}
