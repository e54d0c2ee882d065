//! Being asked to stop. It must not know what runs.

use tokio_util::sync::CancellationToken;

use crate::failure::{Code, Failure};

/// A token that is cancelled by Ctrl-C or SIGTERM.
pub(crate) fn on_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        signalled(1).await;
        token.cancel();
    });
    stop
}

/// Waits until Ctrl-C or SIGTERM has come twice: whoever insists does not want to wait.
pub(crate) async fn insisted() {
    signalled(2).await;
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
async fn signalled(times: usize) {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
    let [Ok(mut interrupt), Ok(mut terminate)] = kinds.map(signal) else {
        // Without signals there is still SIGKILL, which loses nothing either.
        return std::future::pending().await;
    };
    for _ in 0..times {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
async fn signalled(times: usize) {
    for _ in 0..times {
        if tokio::signal::ctrl_c().await.is_err() {
            return std::future::pending().await;
        }
    }
}
