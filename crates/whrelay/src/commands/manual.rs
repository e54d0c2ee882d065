//! `whrelay completions` and `whrelay man`: what shells and `man` show, from the flags themselves.

use std::any::TypeId;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory, ValueHint};

use crate::args::{CaFile, Cli, CompletionsArgs, ManArgs};
use crate::failure::{Code, Failure};
use crate::output::Output;

pub(crate) fn completions(args: &CompletionsArgs, output: &Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    let mut command = without_files(Cli::command());
    clap_complete::generate(args.shell, &mut command, "whrelay", &mut script);
    output.bytes(&script)
}

/// Only paths are completed with the names of files.
fn without_files(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let kind = arg.get_value_parser().type_id();
        let takes_path = kind == TypeId::of::<PathBuf>() || kind == TypeId::of::<CaFile>();
        let is_plain = arg.get_value_hint() == ValueHint::Unknown;
        match is_plain && !takes_path && arg.get_action().takes_values() {
            true => arg.value_hint(ValueHint::Other),
            false => arg,
        }
    });
    command.mut_subcommands(without_files)
}

pub(crate) fn man(args: &ManArgs, output: &Output) -> Result<(), Failure> {
    let command = Cli::command().disable_help_subcommand(true);
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        return output.bytes(&page);
    };
    let written = write_all(command, dir);
    written.map_err(|e| {
        Failure::new(Code::Failed, format!("--dir {}: {e}", dir.display()))
            .hint("name a directory that can be written, or made")
    })
}

/// A page for each command.
fn write_all(command: clap::Command, dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let is_ours = entry.file_name().to_string_lossy().starts_with("whrelay");
        if is_ours && !entry.file_type()?.is_file() {
            // It would be followed.
            let why = format!("{} is no file", entry.path().display());
            return Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, why));
        }
    }
    clap_mangen::generate_to(command, dir)
}
