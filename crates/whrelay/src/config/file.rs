//! One configuration file: keys, values as they would be typed, and the lines they stand on. It must not
//! know which keys there are.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A key of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The profile it is for; for all where there is none.
    pub(crate) profile: Option<String>,
    /// The destination it is for; for all where there is none.
    pub(crate) destination: Option<String>,
    /// The key, with underscores.
    pub(crate) key: String,
    /// What a flag would be given: several where it can be repeated.
    pub(crate) values: Vec<String>,
    /// The line, from 1.
    pub(crate) line: usize,
}

/// Why a file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub(crate) line: usize,
    pub(crate) message: String,
}

/// Reads a file: `key = value`, `[providers.NAME]` tables with a `secret`, `[destination.NAME]` tables with the options
/// of one, and `[profile.NAME]` tables with the same, which count where that profile is chosen.
pub(crate) fn read(text: &str) -> Result<Vec<Entry>, Mistake> {
    let table = DeTable::parse(text).map_err(|error| Mistake {
        line: line_of(text, error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    })?;
    let mut entries = Vec::new();
    for (key, value) in table.get_ref() {
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("profile", DeValue::Table(profiles)) => {
                for (name, profile) in profiles {
                    let DeValue::Table(keys) = profile.get_ref() else {
                        return Err(mistake(text, profile, "a profile is a table of keys"));
                    };
                    let name = name.get_ref().to_string();
                    for (key, value) in keys {
                        entries.extend(keyed(text, Some(&name), key.get_ref(), value)?);
                    }
                }
            }
            (key, _) => entries.extend(keyed(text, None, key, value)?),
        }
    }
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

fn keyed(
    text: &str,
    profile: Option<&String>,
    key: &str,
    value: &Spanned<DeValue<'_>>,
) -> Result<Vec<Entry>, Mistake> {
    let mut entries = match (key, value.get_ref()) {
        ("providers", DeValue::Table(all)) => vec![providers(text, value, all)?],
        ("destination", DeValue::Table(all)) => destinations(text, all)?,
        (key, DeValue::Table(_)) => {
            let meant = match key {
                "provider" => "write [providers.NAME]".to_owned(),
                "destinations" => "write [destination.NAME]".to_owned(),
                key => format!("a profile would be [profile.{key}]"),
            };
            let why = format!("there is no table [{key}]; {meant}");
            return Err(mistake(text, value, &why));
        }
        (key, _) => vec![entry(text, key, value)?],
    };
    for entry in &mut entries {
        entry.profile = profile.cloned();
    }
    Ok(entries)
}

/// `[destination.api]` with the URL and the options of that destination.
fn destinations(text: &str, all: &DeTable<'_>) -> Result<Vec<Entry>, Mistake> {
    let mut entries = Vec::new();
    for (name, destination) in all {
        let DeValue::Table(keys) = destination.get_ref() else {
            let why = "a destination is a table, as in [destination.api]";
            return Err(mistake(text, destination, why));
        };
        for (key, value) in keys {
            let entry = entry(text, key.get_ref(), value)?;
            entries.push(Entry {
                destination: Some(name.get_ref().to_string()),
                ..entry
            });
        }
    }
    Ok(entries)
}

/// `[providers.stripe] secret = "…"`, as `--provider stripe=…` would be typed.
fn providers(text: &str, at: &Spanned<DeValue<'_>>, all: &DeTable<'_>) -> Result<Entry, Mistake> {
    let mut values = Vec::new();
    for (name, provider) in all {
        let why = "a provider is a table with a `secret`: a text, or a list of texts";
        let DeValue::Table(keys) = provider.get_ref() else {
            return Err(mistake(text, provider, why));
        };
        for (key, value) in keys {
            if key.get_ref() != "secret" {
                return Err(mistake(text, value, why));
            }
            let secrets = entry(text, "secret", value)?.values;
            let name = name.get_ref();
            values.extend(secrets.iter().map(|secret| format!("{name}={secret}")));
        }
    }
    Ok(Entry {
        profile: None,
        destination: None,
        key: "provider".to_owned(),
        values,
        line: line_of(text, at.span().start),
    })
}

fn entry(text: &str, key: &str, value: &Spanned<DeValue<'_>>) -> Result<Entry, Mistake> {
    let values = match value.get_ref() {
        DeValue::Array(items) => {
            let items = items.iter().map(|item| scalar(text, item));
            items.collect::<Result<_, _>>()?
        }
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Table(_) => vec![scalar(text, value)?],
    };
    Ok(Entry {
        profile: None,
        destination: None,
        key: key.replace('-', "_"),
        values,
        line: line_of(text, value.span().start),
    })
}

fn scalar(text: &str, value: &Spanned<DeValue<'_>>) -> Result<String, Mistake> {
    match value.get_ref() {
        DeValue::String(value) => Ok(value.to_string()),
        DeValue::Integer(value) => Ok(value.to_string()),
        DeValue::Float(value) => Ok(value.to_string()),
        DeValue::Boolean(value) => Ok(value.to_string()),
        DeValue::Datetime(value) => Ok(value.to_string()),
        DeValue::Array(_) | DeValue::Table(_) => {
            let why = "a value is a text, a number, true or false, or a list of these";
            Err(mistake(text, value, why))
        }
    }
}

fn mistake(text: &str, at: &Spanned<DeValue<'_>>, message: &str) -> Mistake {
    Mistake {
        line: line_of(text, at.span().start),
        message: message.to_owned(),
    }
}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().iter().take(at);
    1 + before.filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lists_and_profiles_with_their_lines() {
        let text =
            "to = [\"3000\", \"3001\"]\nmax-in-flight = 4\n\n[profile.prod]\ninsecure = false\n";
        let entry = |profile: Option<&str>, key: &str, values: &[&str], line| Entry {
            profile: profile.map(str::to_owned),
            destination: None,
            key: key.to_owned(),
            values: values.iter().map(|value| (*value).to_owned()).collect(),
            line,
        };
        assert_eq!(
            read(text).expect("a file"),
            [
                entry(None, "to", &["3000", "3001"], 1),
                entry(None, "max_in_flight", &["4"], 2),
                entry(Some("prod"), "insecure", &["false"], 5),
            ]
        );
        let text = "[destination.api]\nto = \"3000\"\nmax-attempts = 3\n";
        let of_api = |key, values: &[&str], line| Entry {
            destination: Some("api".to_owned()),
            ..entry(None, key, values, line)
        };
        assert_eq!(
            read(text).expect("a file"),
            [
                of_api("to", &["3000"], 2),
                of_api("max_attempts", &["3"], 3),
            ]
        );
        let text =
            "[providers.stripe]\nsecret = \"env:A\"\n[providers.slack]\nsecret = [\"b\", \"c\"]\n";
        assert_eq!(
            read(text).expect("a file"),
            [entry(
                None,
                "provider",
                &["slack=b", "slack=c", "stripe=env:A"],
                1
            )]
        );
    }

    #[test]
    fn a_mistake_names_its_line() {
        for (text, line) in [
            ("\nto = ", 2),
            ("a = 1\na = 2", 2),
            ("a = 1\n[listen]\nto = \"3000\"", 2),
            ("[profile]\nprod = 3", 2),
            ("x = [[1]]", 1),
            ("[destination]\napi = \"3000\"", 2),
            ("[destinations.api]\nto = \"3000\"", 1),
            ("[providers]\nstripe = \"x\"", 2),
            ("[providers.stripe]\nkey = \"x\"", 2),
        ] {
            assert_eq!(read(text).expect_err("a mistake").line, line, "{text}");
        }
    }
}
