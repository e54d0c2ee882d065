//! Programs that start another one under something: a clock, a tracer, a network. It must not know
//! which.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Writes a shell script that can be run in place of a program; answers with its path.
pub(crate) fn write(path: &Path, text: &str) -> String {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}
