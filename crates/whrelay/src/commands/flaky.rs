//! `whrelay flaky`: a receiver that fails and goes away, to try retries on. It must not know whrelay.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::mpsc;

use crate::args::FlakyArgs;
use crate::embedded::cannot_bind;
use crate::failure::Failure;
use crate::output::Output;
use crate::receiver::{Exchange, Receiver};
use crate::shutdown;
use crate::text::shown;

/// How long it stays between two absences, times the length of one.
const UP_PER_DOWN: u32 = 3;

pub(crate) async fn run(args: FlakyArgs, output: &Output) -> Result<(), Failure> {
    let began = Instant::now();
    let heals_after = args.always_after;
    let healed = move || heals_after.is_some_and(|after| began.elapsed() >= after);
    let fail = f64::from(args.fail.0) / 100.0;
    let fails = Arc::new(move |_: &str| !healed() && rand::random::<f64>() < fail);
    let (exchanges, mut coming) = mpsc::unbounded_channel();
    let tell = Arc::new(move |exchange| {
        // Where nobody prints any more, nobody needs to know.
        let _ = exchanges.send(exchange);
    });
    let bind = std::net::SocketAddr::from(([127, 0, 0, 1], args.port));
    let receiver = Receiver::start(args.port, false, fails, tell).await;
    let receiver = receiver.map_err(|e| cannot_bind(bind, &e, "--port"))?;
    let port = receiver.port();
    if args.json {
        output.json(&json!({"type": "ready", "port": port, "pid": std::process::id()}))?;
    }
    output.tell(&format!(
        "whrelay listen --to localhost:{port} delivers here"
    ));
    let stop = shutdown::on_signal();
    let pause = args.down.map(|down| down.saturating_mul(UP_PER_DOWN));
    let mut leave_at = pause.map(|pause| Instant::now() + pause);
    loop {
        let until = leave_at.map_or(Duration::MAX, |at| {
            at.saturating_duration_since(Instant::now())
        });
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(exchange) = coming.recv() => print(&exchange, args.json, output)?,
            () = tokio::time::sleep(until) => {
                let Some(down) = args.down.filter(|_| !healed()) else {
                    leave_at = None;
                    continue;
                };
                receiver.go_away(down);
                output.tell(&format!("away for {} s", down.as_secs_f64()));
                leave_at = pause.map(|pause| Instant::now() + down + pause);
            }
        }
    }
}

fn print(exchange: &Exchange, json: bool, output: &Output) -> Result<(), Failure> {
    let Exchange {
        method,
        path,
        event,
        attempt,
        status,
    } = exchange;
    if json {
        return output.json(&json!({
            "type": "request", "method": method, "path": path, "event": event,
            "attempt": attempt.parse::<u32>().ok(), "status": status,
        }));
    }
    let attempt = match attempt.as_str() {
        "" | "1" => String::new(),
        number => format!("  attempt {}", shown(number)),
    };
    output.data(&format!(
        "[{status}] {} {}  {}{attempt}",
        shown(method),
        shown(path),
        shown(event)
    ))
}
