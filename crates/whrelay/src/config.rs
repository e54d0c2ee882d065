//! Values from the project's `whrelay.toml` and the user's own file. They stand in for defaults: what is
//! typed comes before the environment, that before the project's file, and that before the user's. It must
//! not know what a value means: the flags do.

pub(crate) mod destinations;
pub(crate) mod file;
pub(crate) mod source;
pub(crate) mod trust;

use std::any::TypeId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Arg, Command};
use directories::ProjectDirs;

use self::destinations::Declarations;
use self::file::Entry;
use self::source::Source;
use self::trust::{Level, Trusted};
use crate::args::expanded;
use crate::failure::{Code, Failure, first_line};
use crate::paths::Paths;

/// The project's file, in the directory where a command is run.
pub(crate) const PROJECT: &str = "whrelay.toml";
/// The user's file, in the platform's place for configurations.
const USER: &str = "config.toml";
const PREFIX: &str = "WHRELAY_";

/// A value, and the file and line that it is from.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub(crate) values: Vec<String>,
    pub(crate) origin: String,
    pub(crate) file: PathBuf,
    pub(crate) level: Level,
}

/// What the files say, for a profile.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    pub(crate) sets: BTreeMap<String, Set>,
    /// The destinations that they name.
    pub(crate) destinations: Declarations,
    /// The files that were read.
    pub(crate) files: Vec<PathBuf>,
    /// What is wrong with them, where a command goes on without.
    pub(crate) mistake: Option<String>,
    /// What the user is to know: files that are ignored, and secrets that others can see.
    pub(crate) warnings: Vec<String>,
    /// What a project's file sets that it may not set before it is accepted.
    pub(crate) untrusted: Option<Untrusted>,
}

/// A key of a project's file that could hurt.
#[derive(Clone, Debug)]
pub(crate) struct Untrusted {
    pub(crate) key: String,
    pub(crate) origin: String,
}

impl Untrusted {
    /// Why a command does not run.
    pub(crate) fn failure(&self) -> Failure {
        let Self { key, origin } = self;
        let message =
            format!("{origin}: a project's file may set `{key}` like this only once you trust it");
        Failure::new(Code::Usage, message)
            .hint("read the file, then run `whrelay config trust` to accept it as it is")
    }
}

impl Config {
    /// Reads the files of this user and this directory, and tries every value on its flag.
    pub(crate) fn load(command: &Command, profile: Option<&str>) -> Result<Self, Failure> {
        let mut config = Self::default();
        let mut profiles = BTreeSet::new();
        let known = known(command);
        for path in places()? {
            let text = match source::read(&path)? {
                None => continue,
                Some(Source::Text(text)) => text,
                Some(Source::Ignored(why)) => {
                    config
                        .warnings
                        .push(format!("{} is ignored: {why}", path.display()));
                    continue;
                }
            };
            let level = level(&path, &text);
            let entries = file::read(&text).map_err(|mistake| {
                wrong(&path, mistake.line, &mistake.message).hint("the format is TOML")
            })?;
            profiles.extend(entries.iter().filter_map(|entry| entry.profile.clone()));
            let entries = config.trusted(&known, (&path, level), entries, profile)?;
            config.take((&path, level), entries, profile);
            config.files.push(path);
        }
        match profile {
            Some(wanted) if !profiles.contains(wanted) => {
                let message = format!("there is no profile `{wanted}`");
                let hint = match profiles.is_empty() {
                    true => format!("write [profile.{wanted}] into {PROJECT}"),
                    false => format!("there are {}", Vec::from_iter(profiles).join(", ")),
                };
                Err(Failure::new(Code::Usage, message).hint(hint))
            }
            Some(_) | None => Ok(config),
        }
    }

    /// In place of files that make no sense.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "it is what `unwrap_or_else` has"
    )]
    pub(crate) fn mistaken(why: Failure) -> Self {
        Self {
            mistake: Some(why.message().to_owned()),
            ..Self::default()
        }
    }

    /// Tries the entries of a file on their flags. Answers with those that the file may set, and remembers the first
    /// other one that would count.
    fn trusted(
        &mut self,
        known: &Known,
        (path, level): (&Path, Level),
        entries: Vec<Entry>,
        profile: Option<&str>,
    ) -> Result<Vec<Entry>, Failure> {
        let mut taken = Vec::new();
        for entry in entries {
            let is_trusted = level != Level::Project;
            if entry.destination.is_some() {
                destinations::check(path, &entry)?;
            } else {
                let args = flags(known, path, &entry)?;
                // Trying a value may open the file that it names.
                if is_trusted || trust::is_plain(&entry) {
                    check(args, path, &entry)?;
                }
            }
            if is_trusted || trust::is_harmless(&entry) {
                taken.push(entry);
            } else if counts(&entry, profile) {
                self.untrusted.get_or_insert_with(|| Untrusted {
                    origin: format!("{}:{}", path.display(), entry.line),
                    key: entry.key,
                });
            }
        }
        Ok(taken)
    }

    /// Within a file a profile's keys come before those for all.
    fn take(&mut self, (path, level): (&Path, Level), entries: Vec<Entry>, profile: Option<&str>) {
        let (own, all): (Vec<_>, Vec<_>) = entries
            .into_iter()
            .filter(|entry| counts(entry, profile))
            .partition(|entry| entry.profile.is_some());
        for entry in own.into_iter().chain(all) {
            let origin = format!("{}:{}", path.display(), entry.line);
            if entry.destination.is_some() {
                self.destinations.take(entry, origin, level);
                continue;
            }
            let values = entry.values;
            let set = Set {
                values,
                origin,
                file: path.to_owned(),
                level,
            };
            self.sets.entry(entry.key).or_insert(set);
        }
    }

    /// The commands, with the files' values as defaults of their flags. What follows a flag that wants a
    /// value is its value, a minus or not: then it is the flag that is named where it makes no sense.
    pub(crate) fn apply(&self, command: Command) -> Command {
        let command = command.mut_args(|arg| {
            let takes_value = arg.get_action().takes_values() && !arg.is_positional();
            // A path or a text can be anything, so that it could be meant as a flag.
            let kind = arg.get_value_parser().type_id();
            let anything = kind == TypeId::of::<String>() || kind == TypeId::of::<PathBuf>();
            let arg = match takes_value && !anything {
                true => arg.allow_hyphen_values(true),
                false => arg,
            };
            match self.of(&arg) {
                Some(set) => arg.required(false).default_values(set.values.clone()),
                None => arg,
            }
        });
        command.mut_subcommands(|subcommand| self.apply(subcommand))
    }

    fn of(&self, arg: &Arg) -> Option<&Set> {
        self.sets.get(&key(arg)?)
    }
}

/// The commands, ready for what is typed and set: a variable that is set to nothing is not set, several targets may stand in
/// one variable, and `~` begins a path.
pub(crate) fn prepared(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let set = arg.get_env().and_then(std::env::var_os);
        let is_empty = set.as_ref().is_some_and(|value| value.is_empty());
        let is_path = arg.get_value_parser().type_id() == TypeId::of::<PathBuf>();
        let is_target = arg.get_env().is_some_and(|name| name == "WHRELAY_TO");
        let several = set.is_some_and(|value| value.to_string_lossy().contains(' '));
        let arg = match is_path {
            true => arg.value_parser(PathBufValueParser::new().map(expanded)),
            false => arg,
        };
        match (is_empty, is_target && several) {
            (true, _) => arg.env(None),
            (false, true) => arg.value_delimiter(' '),
            (false, false) => arg,
        }
    });
    command.mut_subcommands(prepared)
}

/// The variable of a flag, as it is named in an error, where that is set and has this value.
pub(crate) fn variable(command: &Command, flag: &str, value: &str) -> Option<String> {
    let long = flag.strip_prefix("--")?.split([' ', '=']).next()?;
    let known = known(command);
    let mut args = known.values().flatten().map(|(_, arg)| arg);
    let arg = args.find(|arg| arg.get_long() == Some(long))?;
    let name = arg.get_env()?.to_str()?;
    let set = std::env::var(name).ok()?;
    set.split([' ', '\n'])
        .chain([&*set])
        .any(|one| one == value)
        .then(|| name.to_owned())
}

/// The key of a flag in a file: its name in the environment, without what all have in common.
pub(crate) fn key(arg: &Arg) -> Option<String> {
    let name = arg.get_env()?.to_str()?.strip_prefix(PREFIX)?;
    Some(name.to_lowercase())
}

/// Flags by their key, each with its command.
pub(crate) type Known = BTreeMap<String, Vec<(String, Arg)>>;

/// Every flag that a file can set, by its key; flags of several commands share one, that of the command
/// which comes first first.
pub(crate) fn known(command: &Command) -> Known {
    let mut all = Known::new();
    let mut left = VecDeque::from([command]);
    while let Some(command) = left.pop_front() {
        left.extend(command.get_subcommands());
        for arg in command.get_arguments() {
            if let Some(key) = key(arg).filter(|key| key != "profile") {
                let name = command.get_name().to_owned();
                all.entry(key).or_default().push((name, arg.clone()));
            }
        }
    }
    all
}

/// The files, the one that comes first first.
pub(crate) fn places() -> Result<Vec<PathBuf>, Failure> {
    let chosen = std::env::var_os("WHRELAY_CONFIG").filter(|path| !path.is_empty());
    let user = match chosen {
        Some(path) => {
            let path = PathBuf::from(path);
            if !path.exists() {
                let message = format!("WHRELAY_CONFIG: {} does not exist", path.display());
                let hint = "name a file, or leave it unset";
                return Err(Failure::new(Code::Usage, message).hint(hint));
            }
            Some(path)
        }
        None => ProjectDirs::from("", "", "whrelay").map(|dirs| dirs.config_dir().join(USER)),
    };
    Ok(std::iter::once(PathBuf::from(PROJECT))
        .chain(user)
        .collect())
}

/// Whether an entry counts with a profile.
fn counts(entry: &Entry, profile: Option<&str>) -> bool {
    entry.profile.is_none() || entry.profile.as_deref() == profile
}

/// How far a file is trusted.
fn level(path: &Path, text: &str) -> Level {
    if path != Path::new(PROJECT) {
        return Level::User;
    }
    let trusted = Paths::resolve().map(|paths| Trusted::of(paths.data()));
    match trusted.is_ok_and(|trusted| trusted.has(path, text)) {
        true => Level::TrustedProject,
        false => Level::Project,
    }
}

fn wrong(path: &Path, line: usize, message: &str) -> Failure {
    let at = format!("{}:{line}", path.display());
    Failure::new(Code::Usage, format!("{at}: {message}"))
}

/// The flags of an entry's key.
fn flags<'a>(known: &'a Known, path: &Path, entry: &Entry) -> Result<&'a [(String, Arg)], Failure> {
    let hint = "keys are the flags' names, as in `max_in_flight`; `whrelay config show` lists them";
    let unknown = || {
        let message = format!("there is no key `{}`", entry.key);
        wrong(path, entry.line, &message).hint(hint)
    };
    known.get(&entry.key).map(Vec::as_slice).ok_or_else(unknown)
}

/// Tries an entry's values on each flag they would be given to.
fn check(args: &[(String, Arg)], path: &Path, entry: &Entry) -> Result<(), Failure> {
    for (command, arg) in args {
        let alone = Command::new("whrelay").disable_help_flag(true).arg(
            arg.clone()
                .required(false)
                .env(None)
                .default_values(entry.values.clone()),
        );
        if let Err(error) = alone.try_get_matches_from(["whrelay"]) {
            let message = format!("{}: {}", entry.key, first_line(&error));
            let flag = arg.get_long().unwrap_or_default();
            let hint = match &command[..] {
                "whrelay" => format!("`whrelay --help` says what --{flag} takes"),
                _ => format!("`whrelay {command} --help` says what --{flag} takes"),
            };
            return Err(wrong(path, entry.line, &message).hint(hint));
        }
    }
    Ok(())
}
