//! The destinations that configuration files name: `[destination.NAME]` with a URL and options.

use std::collections::BTreeMap;
use std::path::Path;

use whrelay_core::destination::{self, Declared, DestinationName, OptionKey, OptionSet, Spec};

use super::file::Entry;
use super::trust::Level;
use super::wrong;
use crate::failure::Failure;

/// A value of a destination's, and the file and line that it is from.
#[derive(Clone, Debug)]
struct Value {
    text: String,
    origin: String,
    level: Level,
}

/// What files say of destinations, by their names and keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Declarations(BTreeMap<String, BTreeMap<String, Value>>);

impl Declarations {
    /// Takes an entry that was checked, unless one that comes before it has the same key.
    pub(super) fn take(&mut self, entry: Entry, origin: String, level: Level) {
        let Some(name) = entry.destination else {
            return;
        };
        let keys = self.0.entry(name).or_default();
        let text = entry.values.into_iter().next().unwrap_or_default();
        keys.entry(entry.key).or_insert(Value {
            text,
            origin,
            level,
        });
    }

    /// The destinations.
    pub(crate) fn declared(&self) -> Vec<Declared> {
        let declared = |(name, keys): (&String, &BTreeMap<String, Value>)| {
            let (mut target, mut options) = (None, OptionSet::default());
            for (key, Value { text, .. }) in keys {
                match key.parse::<OptionKey>() {
                    // Every value was tried when its file was read.
                    Ok(key) => options.set(key, text).ok()?,
                    Err(_) => target = Some(destination::url(text).ok()?),
                }
            }
            let name = name.parse().ok()?;
            Some(Declared {
                name,
                target,
                options,
            })
        };
        self.0.iter().filter_map(declared).collect()
    }

    /// The destinations of which a file without trust says something.
    pub(crate) fn untrusted(&self) -> Vec<Spec> {
        let is_untrusted = |keys: &BTreeMap<String, Value>| {
            keys.values().any(|value| value.level == Level::Project)
        };
        let named = self.0.iter().filter(|(_, keys)| is_untrusted(keys));
        named
            .filter_map(|(name, _)| Some(Spec::Known(name.parse().ok()?)))
            .collect()
    }

    /// Each value as `config show` has it: its key, its text, and where it is from.
    pub(crate) fn values(&self) -> Vec<(String, &str, &str)> {
        let mut all = Vec::new();
        for (name, keys) in &self.0 {
            for (key, Value { text, origin, .. }) in keys {
                all.push((format!("destination.{name}.{key}"), &**text, &**origin));
            }
        }
        all
    }
}

/// Tries an entry of a destination's.
pub(super) fn check(path: &Path, entry: &Entry) -> Result<(), Failure> {
    let name = entry.destination.as_deref().unwrap_or_default();
    let failed = |why: String| wrong(path, entry.line, &why);
    name.parse::<DestinationName>()
        .map_err(|error| failed(error.to_string()).hint("as in [destination.api]"))?;
    let at = format!("destination.{name}.{}", entry.key);
    let [value] = &entry.values[..] else {
        return Err(failed(format!("{at}: it takes one value")));
    };
    let tried = match (entry.key.parse::<OptionKey>(), entry.key.as_str()) {
        (Ok(key), _) => OptionSet::default().set(key, value),
        (Err(_), "to") => destination::url(value)
            .map(|_| ())
            .map_err(|error| error.to_string()),
        (Err(_), key) => {
            let keys = OptionKey::ALL
                .map(|key| key.as_str().replace('-', "_"))
                .join(", ");
            let why = format!("there is no key `{key}` in [destination.{name}]");
            return Err(failed(why).hint(format!("a destination has to, {keys}")));
        }
    };
    tried.map_err(|why| failed(format!("{at}: {why}")))
}
