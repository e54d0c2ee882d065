//! How many files this process may have open, and how many connections that leaves. It must not know who connects.

use whrelay_core::limits;

/// Connections that a forwarder of this process serves at once. Says so where they are fewer than it could serve.
pub(crate) fn connections() -> usize {
    let connections = fitting(allowed());
    if connections < limits::MAX_CONNECTIONS {
        tracing::warn!(
            "this process may open only {} files: it serves {connections} connections at once instead of {} \
             (raise the limit with `ulimit -n` or LimitNOFILE)",
            allowed().unwrap_or_default(),
            limits::MAX_CONNECTIONS
        );
    }
    connections
}

/// Connections that fit, beside what the store and an agent need.
fn fitting(files: Option<u64>) -> usize {
    let Some(files) = files.and_then(|files| usize::try_from(files).ok()) else {
        return limits::MAX_CONNECTIONS;
    };
    // Where there are few, half of them.
    let kept = limits::KEPT_FILES.min(files / 2);
    let left = files - kept;
    left.clamp(limits::MIN_CONNECTIONS, limits::MAX_CONNECTIONS)
}

/// How many files may be open; `None` where there is no limit.
#[cfg(unix)]
fn allowed() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

#[cfg(not(unix))]
fn allowed() -> Option<u64> {
    None
}

/// Raises the limit of open files as far as the system allows.
#[cfg(unix)]
pub(crate) fn raise_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        ..limit
    };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

#[cfg(not(unix))]
pub(crate) fn raise_limit() {}

/// Has the system write no image of this process's memory to a disk when it crashes: there are tokens and webhooks in
/// it.
#[cfg(unix)]
pub(crate) fn forbid_core() {
    use rustix::process::{Resource, Rlimit, setrlimit};

    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::debug!(%error, "core files are not switched off");
    }
}

#[cfg(not(unix))]
pub(crate) fn forbid_core() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_store_and_the_agent() {
        for (files, connections) in [
            (None, limits::MAX_CONNECTIONS),
            (Some(1 << 20), limits::MAX_CONNECTIONS),
            (Some(1024), 1024 - limits::KEPT_FILES),
            (Some(300), 150),
            (Some(10), limits::MIN_CONNECTIONS),
        ] {
            assert_eq!(fitting(files), connections, "{files:?}");
        }
    }
}
