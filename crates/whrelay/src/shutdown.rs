//! Being asked to stop. It must not know what runs.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::failure::{Code, Failure};

/// Signals that come within this time are one wish: some runners send the same to a process and to its group.
pub(crate) const ONE_WISH: Duration = Duration::from_millis(300);

/// A token that is cancelled by Ctrl-C, SIGTERM or SIGHUP.
pub(crate) fn on_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        signalled().await;
        token.cancel();
    });
    stop
}

/// Waits until a signal has asked the process to stop, and Ctrl-C or SIGTERM asks again a while later. A second
/// SIGHUP asks nothing: where a terminal closes, both the system and the shell send one.
pub(crate) async fn insisted() {
    signalled().await;
    tokio::time::sleep(ONE_WISH).await;
    asked().await;
}

/// Runs to the end, or until someone insists.
pub(crate) async fn unless_insisted(
    running: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    tokio::select! {
        ran = running => ran,
        () = insisted() => Err(at_once()),
    }
}

/// What was not waited for.
pub(crate) fn at_once() -> Failure {
    Failure::new(Code::Failed, "stopped at once").hint(
        "no events were lost: interrupted deliveries are retried by the next `whrelay listen`",
    )
}

/// Waits for Ctrl-C, SIGTERM or SIGHUP.
async fn signalled() {
    tokio::select! {
        () = asked() => {}
        () = hung_up() => {}
    }
}

#[cfg(unix)]
async fn asked() {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
    let [Ok(mut interrupt), Ok(mut terminate)] = kinds.map(signal) else {
        // Without signals there is still SIGKILL, which loses nothing either.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

#[cfg(not(unix))]
async fn asked() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits for SIGHUP, which a terminal sends that is closed. A process that was started with SIGHUP ignored, as
/// `nohup` does, goes on: a handler would undo that.
#[cfg(target_os = "linux")]
async fn hung_up() {
    use tokio::signal::unix::{SignalKind, signal};
    if ignores_hangup() {
        return std::future::pending().await;
    }
    match signal(SignalKind::hangup()) {
        Ok(mut hangup) => drop(hangup.recv().await),
        Err(_) => std::future::pending().await,
    }
}

/// Elsewhere nothing says without unsafe code whether SIGHUP is ignored, so that it keeps the effect that it had
/// when the process started.
#[cfg(not(target_os = "linux"))]
async fn hung_up() {
    std::future::pending().await
}

/// Whether the process was started with SIGHUP ignored. Where the system does not say, it was.
#[cfg(target_os = "linux")]
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = ignored_in(&status);
    mask.is_none_or(|mask| mask & 1 << (HANGUP - 1) != 0)
}

#[cfg(target_os = "linux")]
const HANGUP: u32 = 1;

/// The signals that a process ignores, one bit for each, as `/proc/PID/status` has it.
#[cfg(target_os = "linux")]
fn ignored_in(status: &str) -> Option<u64> {
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status_of_a_process() {
        let status = "Name:\twhrelay\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\n";
        assert_eq!(ignored_in(status), Some(0x1001));
        assert_eq!(ignored_in("Name:\twhrelay\n"), None);
    }
}
