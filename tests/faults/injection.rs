//! Ring 4, system calls that fail: the Nth write, sync or change of length of a forwarder or an agent
//! ends with an error. The process may go on or stop, but what it answered is kept, and what it said
//! is the truth. Needs strace.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use strum::IntoEnumIterator;
use whrelay_tests::process::{Home, Process};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender;

use crate::report::{self, Row};
use crate::script;

/// Posts of a run that lets the first calls fail; for later calls there are more.
const POSTS: usize = 12;
/// Runs at once: most of one is waiting.
const TOGETHER: usize = 4;
/// How long everything accepted may take to arrive once nothing fails any more.
const ARRIVES_WITHIN: Duration = Duration::from_secs(20);
/// A sender's own patience: no provider's is longer than half a minute.
const SENDER_TIMEOUT: Duration = Duration::from_secs(30);

/// Which program's call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumIter)]
enum Program {
    Forwarder,
    Agent,
}

/// Calls and the errors they end with.
const FAILURES: [(&str, &str); 4] = [
    ("fdatasync", "EIO"),
    ("pwrite64", "EIO"),
    ("pwrite64", "ENOSPC"),
    ("ftruncate", "ENOSPC"),
];

/// Lets each of the first `upto` calls of each kind fail once, every `step`th of them. Says whether
/// everything accepted arrived.
pub(crate) fn run(binary: &str, upto: usize, step: usize) -> bool {
    let (began, mut failures) = (Instant::now(), 0);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (mut runs, mut accepted, mut stopped) = (0u32, 0, 0u32);
    let mut planned = Vec::new();
    for program in Program::iter() {
        for (call, error) in FAILURES {
            for nth in (1..=upto).step_by(step) {
                let rule = format!("{call}:error={error}:when={nth}");
                planned.push((program, rule, POSTS + nth / 2));
            }
        }
    }
    let tries = planned
        .into_iter()
        .map(|(program, rule, posts)| async move {
            let found = try_once(binary, program, &rule, posts).await;
            found.map_err(|why| format!("{program:?} {rule}: {why}"))
        });
    runtime.block_on(async {
        let mut tries = futures_util::stream::iter(tries).buffer_unordered(TOGETHER);
        while let Some(found) = tries.next().await {
            runs += 1;
            match found {
                Ok(Run { heard, ended }) => {
                    accepted += heard;
                    stopped += u32::from(ended);
                }
                Err(why) => {
                    println!("{why}");
                    failures += 1;
                }
            }
        }
    });
    report::tell(&Row {
        ring: 4,
        fault: "a write, sync or change of length that fails (D3, D4)".to_owned(),
        tried: format!("{runs} calls, {accepted} events accepted"),
        failures,
        counted: format!("{stopped} times the process stopped by itself"),
        seconds: began.elapsed().as_secs_f64(),
    })
}

struct Run {
    heard: usize,
    ended: bool,
}

async fn try_once(binary: &str, program: Program, rule: &str, posts: usize) -> Result<Run, String> {
    let scripts = tempfile::tempdir().unwrap();
    let failing = failing_binary(scripts.path(), binary, rule);
    let (mut there, mut here) = (Home::new(binary), Home::new(binary));
    match program {
        Program::Forwarder => there.use_binary(&failing),
        Program::Agent => here.use_binary(&failing),
    }
    let receiver = Receiver::start().await;
    let mut heard = HashSet::new();
    // An agent's store belongs to its forwarder's address, so that has to stay.
    let mut bind = "127.0.0.1:0".to_owned();
    let ended = round(&there, &here, &receiver, posts, &mut bind, &mut heard).await;
    // The same places, and nothing that fails.
    there.use_binary(binary);
    here.use_binary(binary);
    let again = round(&there, &here, &receiver, posts, &mut bind, &mut heard).await;
    let arrived: HashSet<_> = receiver.events().into_iter().collect();
    let missing = heard.difference(&arrived).count();
    for id in heard.difference(&arrived).take(3) {
        let shown = here.run(&["events", "show", id, "--json"]);
        println!("{}", String::from_utf8_lossy(&shown.stdout));
    }
    match (missing, again) {
        (0, false) => Ok(Run {
            heard: heard.len(),
            ended,
        }),
        (0, true) => Err("a process stopped though nothing failed".to_owned()),
        (_, _) => Err(format!(
            "{missing} of {} events did not arrive",
            heard.len()
        )),
    }
}

/// Starts both, posts, and waits until everything heard has arrived or a process has stopped. Says
/// whether one has.
async fn round(
    there: &Home,
    here: &Home,
    receiver: &Receiver,
    posts: usize,
    bind: &mut String,
    heard: &mut HashSet<String>,
) -> bool {
    let mut cloud = there.start(&["forwarder", "--bind", bind, "--json"]);
    let Some(ready) = ready(&mut cloud).await else {
        return true;
    };
    let text = |key: &str| ready[key].as_str().unwrap().to_owned();
    let (url, token_file, target) = (text("url"), text("token_file"), receiver.target());
    url.trim_start_matches("http://").clone_into(bind);
    let flags = [
        "--to",
        &target,
        "--forwarder",
        &url,
        "--token-file",
        &token_file,
    ];
    let mut listen = here.start(&[&["listen", "--json"][..], &flags].concat());
    let Some(ready) = self::ready(&mut listen).await else {
        return true;
    };
    post(ready["url"].as_str().unwrap(), posts, heard).await;
    let began = Instant::now();
    loop {
        let arrived: HashSet<_> = receiver.events().into_iter().collect();
        if cloud.has_ended() || listen.has_ended() {
            return true;
        }
        if heard.is_subset(&arrived) || began.elapsed() > ARRIVES_WITHIN {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A script that runs the program with one call that fails.
fn failing_binary(dir: &std::path::Path, binary: &str, rule: &str) -> String {
    let (call, _) = rule.split_once(':').unwrap();
    let traced = format!("-e trace={call} -e inject={rule} -- {binary} \"$@\"");
    let text = format!("exec strace -D -f -qq -o /dev/null {traced}");
    script::write(&dir.join("failing"), &text)
}

/// The ready line, unless the process ends before it.
async fn ready(process: &mut Process) -> Option<serde_json::Value> {
    whrelay_tests::eventually("it is ready or ends", || {
        let ready = process.all("ready").into_iter().next();
        ready
            .map(Some)
            .or_else(|| process.has_ended().then_some(None))
    })
    .await
}

async fn post(url: &str, posts: usize, heard: &mut HashSet<String>) {
    let client = sender::client();
    for n in 0..posts {
        let post = client.post(url).body(n.to_string()).timeout(SENDER_TIMEOUT);
        let Ok(answer) = post.send().await else {
            continue;
        };
        if answer.status().is_success()
            && let Ok(text) = answer.text().await
        {
            heard.insert(sender::id_of(&text));
        }
    }
}
