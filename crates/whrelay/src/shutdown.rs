//! Being asked to stop. It must not know what runs.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::failure::{Code, Failure};

/// Signals that come within this time are one wish: some runners send the same to a process and to its group.
pub(crate) const ONE_WISH: Duration = Duration::from_millis(300);

/// A token that is cancelled by Ctrl-C or SIGTERM.
pub(crate) fn on_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        signalled().await;
        token.cancel();
    });
    stop
}

/// Waits until Ctrl-C or SIGTERM has come, and again a while later: whoever insists does not want to wait.
pub(crate) async fn insisted() {
    signalled().await;
    tokio::time::sleep(ONE_WISH).await;
    signalled().await;
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
        "nothing is lost: what was under way is tried again by its sender, or the next `listen`",
    )
}

#[cfg(unix)]
async fn signalled() {
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
async fn signalled() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
