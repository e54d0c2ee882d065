//! Secrets that other users of the machine can read. It must not read them.

use std::path::{Path, PathBuf};

use crate::args::is_reference;
use crate::config::Config;
use crate::output::Output;

/// Keys whose values are secrets.
const SECRETS: [&str; 4] = ["header", "provider", "secret", "token"];
/// What the name of a header field has in it whose value is a secret.
const SECRET_FIELDS: [&str; 7] = ["auth", "cookie", "key", "pass", "secret", "sign", "token"];

/// Whether others than this user may use a file or directory.
pub(crate) fn is_open(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let ours = rustix::process::geteuid().as_raw();
        let about = path.metadata();
        about.is_ok_and(|about| {
            let is_ours = about.uid() == ours || about.uid() == 0;
            about.mode() & 0o077 != 0 || !is_ours
        })
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

/// Files that others can read: of these with a token those that are, and configuration files with a secret.
pub(crate) fn files<'a>(tokens: &'a [PathBuf], config: &'a Config) -> Vec<&'a Path> {
    let with_secrets = config.files.iter().filter(|file| {
        let mut sets = SECRETS.iter().filter_map(|key| config.sets.get(*key));
        sets.any(|set| set.file == **file && set.values.iter().any(|value| !names_place(value)))
    });
    let all = tokens.iter().chain(with_secrets);
    all.map(PathBuf::as_path)
        .filter(|path| is_open(path))
        .collect()
}

/// Whether a value, maybe with a provider's name before it, only names the place where a secret is.
fn names_place(value: &str) -> bool {
    let secret = value.split_once('=').map_or(value, |(_, secret)| secret);
    is_reference(value) || is_reference(secret)
}

/// Warns, at a start, of what others can read.
pub(crate) fn warn(data: &Path, tokens: &[PathBuf], config: &Config, output: &Output) {
    if is_open(data) {
        let dir = data.display();
        output.warn(&format!(
            "other users of this machine can look into {dir}: `chmod 700` makes it private"
        ));
    }
    for path in files(tokens, config) {
        let path = path.display();
        output.warn(&format!(
            "other users of this machine can read {path}, which has a secret: `chmod 600` makes it private"
        ));
    }
}

/// Whether the value of a header field of this name is a secret.
pub(crate) fn is_secret_field(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_FIELDS.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_with_secrets_are_known_by_their_names() {
        for name in [
            "Authorization",
            "X-Api-Key",
            "cookie",
            "X-GitHub-Token",
            "X-Signature",
        ] {
            assert!(is_secret_field(name), "{name}");
        }
        for name in ["X-Env", "Accept", "Host"] {
            assert!(!is_secret_field(name), "{name}");
        }
    }
}
