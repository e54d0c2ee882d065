//! `whrelay completions` and `whrelay man`: what shells and `man` show, from the flags themselves.

use std::any::TypeId;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory, ValueHint};
use clap_mangen::Man;
use whrelay_core::time::Timestamp;
use whrelay_delivery::Clock;

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
    let day = day()?;
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        Man::new(command).date(day).render(&mut page)?;
        return output.bytes(&page);
    };
    let written = write_all(command, dir, &day);
    written.map_err(|e| {
        Failure::new(Code::Failed, format!("--dir {}: {e}", dir.display()))
            .hint("name a directory that can be written, or made")
    })
}

/// A page for each command.
fn write_all(command: Command, dir: &Path, day: &str) -> std::io::Result<()> {
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
    let mut command = command;
    command.build();
    write_each(command, dir, day)
}

fn write_each(command: Command, dir: &Path, day: &str) -> std::io::Result<()> {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        write_each(sub.clone(), dir, day)?;
    }
    Man::new(command).date(day).generate_to(dir)?;
    Ok(())
}

/// Today, or the day that packagers give (reproducible-builds.org/specs/source-date-epoch).
fn day() -> Result<String, Failure> {
    let given = std::env::var("SOURCE_DATE_EPOCH").unwrap_or_default();
    let made = match given.as_str() {
        "" => Clock::default().now().as_micros() / 1_000_000,
        given => given.parse::<u32>().map(i64::from).map_err(|_| {
            let why = format!("SOURCE_DATE_EPOCH={given} is not a number of seconds since 1970");
            Failure::new(Code::Usage, why).hint("unset it, or set it as `date +%s` prints it")
        })?,
    };
    let made = Timestamp::from_micros(made.saturating_mul(1_000_000)).to_string();
    Ok(made.split('T').next().unwrap_or_default().to_owned())
}
