//! The style of the house, kept by a failing test.

#![expect(clippy::unwrap_used, reason = "a test panics where it has to fail")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};

const MAX_FILE_LINES: usize = 600;

/// Which crates of ours each of ours may stand on.
const ARROWS: [(&str, &[&str]); 9] = [
    ("whrelay-core", &[]),
    ("whrelay-engine", &["whrelay-core"]),
    ("whrelay-proto", &["whrelay-core"]),
    ("whrelay-store", &["whrelay-core"]),
    ("whrelay-providers", &["whrelay-core"]),
    (
        "whrelay-delivery",
        &[
            "whrelay-core",
            "whrelay-engine",
            "whrelay-providers",
            "whrelay-store",
        ],
    ),
    (
        "whrelay-forwarder",
        &[
            "whrelay-core",
            "whrelay-delivery",
            "whrelay-proto",
            "whrelay-store",
        ],
    ),
    (
        "whrelay-agent",
        &[
            "whrelay-core",
            "whrelay-delivery",
            "whrelay-proto",
            "whrelay-providers",
            "whrelay-store",
        ],
    ),
    (
        "whrelay",
        &[
            "whrelay-agent",
            "whrelay-core",
            "whrelay-delivery",
            "whrelay-forwarder",
            "whrelay-providers",
            "whrelay-store",
        ],
    ),
];

/// Which of our crates may use these of others.
const OWNERS: [(&str, &[&str]); 11] = [
    ("redb", &["whrelay-store"]),
    ("hyper-rustls", &["whrelay-delivery"]),
    ("reqwest", &["whrelay-agent", "whrelay"]),
    ("axum", &["whrelay-forwarder", "whrelay-agent", "whrelay"]),
    ("tokio-tungstenite", &["whrelay-agent", "whrelay-forwarder"]),
    ("clap", &["whrelay"]),
    ("crossterm", &["whrelay"]),
    ("indicatif", &["whrelay"]),
    ("service-manager", &["whrelay"]),
    ("directories", &["whrelay"]),
    ("anstyle", &["whrelay"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn sources() -> Vec<(String, String)> {
    let (mut found, mut dirs) = (
        Vec::new(),
        vec![root().join("crates"), root().join("tests")],
    );
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("node_modules") {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 50);
    found.sort();
    found
}

/// What stands before a file's own tests.
fn outside_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap()
}

fn dependencies() -> BTreeMap<String, Vec<String>> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "metadata",
        "--format-version=1",
        "--no-deps",
        "--offline",
        "--locked",
    ]);
    let out = cargo.current_dir(root()).output().unwrap();
    let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let normal = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap();
        all.iter()
            .filter(|d| d["kind"].is_null())
            .map(name)
            .collect()
    };
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| (name(package), normal(package)))
        .collect()
}

#[test]
fn crates_stand_only_on_what_the_map_allows() {
    let dependencies = dependencies();
    assert_eq!(
        dependencies.len(),
        ARROWS.len() + 1,
        "a crate that the map does not have"
    );
    for (name, allowed) in ARROWS {
        let ours = dependencies[name]
            .iter()
            .filter(|d| d.starts_with("whrelay"));
        for stands_on in ours {
            assert!(
                allowed.contains(&stands_on.as_str()),
                "{name} must not stand on {stands_on}"
            );
        }
    }
}

#[test]
fn crates_of_others_have_their_owners() {
    for (name, uses) in dependencies()
        .iter()
        .filter(|(name, _)| *name != "whrelay-tests")
    {
        for (foreign, owners) in OWNERS {
            let used = uses.iter().any(|used| used == foreign);
            assert!(
                !used || owners.contains(&name.as_str()),
                "{name} must not use {foreign}"
            );
        }
    }
}

#[test]
fn every_module_says_what_it_is_and_stays_small() {
    for (name, text) in sources() {
        assert!(
            text.starts_with("//! "),
            "{name} does not begin with a //! sentence"
        );
        let lines = outside_tests(&text).lines().count();
        assert!(lines <= MAX_FILE_LINES, "{name} has {lines} lines");
    }
}

#[test]
fn pure_crates_have_no_clock_no_chance_and_no_io() {
    let banned = [
        "SystemTime::now",
        "Instant::now",
        "Timestamp::now",
        "rand::",
        "std::env",
        "std::fs",
        "std::net::Tcp",
        "std::thread",
        "async ",
        "tokio",
        "println!",
    ];
    let pure = |name: &str| {
        let mut pure = ["core", "engine", "proto", "providers"].into_iter();
        pure.any(|of| name.starts_with(&format!("crates/whrelay-{of}/src")))
    };
    for (name, text) in sources().into_iter().filter(|(name, _)| pure(name)) {
        for word in banned {
            assert!(!outside_tests(&text).contains(word), "{name} uses {word}");
        }
    }
}

#[test]
fn only_the_output_prints_and_libraries_read_no_environment() {
    for (name, text) in sources() {
        let code = outside_tests(&text);
        if name.starts_with("crates/whrelay/") || name.starts_with("tests/") {
            continue;
        }
        for word in [
            "println!",
            "print!(",
            "eprint",
            "std::env::var",
            "env::args",
            "io::stdout",
        ] {
            assert!(!code.contains(word), "{name} uses {word}");
        }
    }
}

#[test]
fn nothing_is_unfinished_skipped_or_unsafe() {
    // Built at run time, so that this file does not find itself.
    let marks = [
        ("TO", "DO"),
        ("FIX", "ME"),
        ("XX", "X"),
        ("#[ig", "nore"),
        ("#[al", "low"),
        ("unsa", "fe {"),
    ];
    let marks = marks.map(|(a, b)| format!("{a}{b}"));
    for (name, text) in sources() {
        for mark in &marks {
            assert!(!text.contains(mark.as_str()), "{name} has {mark}");
        }
    }
}

#[test]
fn one_word_per_thing() {
    let banned = [
        ("Man", "ager"),
        ("Hand", "ler"),
        ("Hel", "per"),
        ("Ut", "ils"),
        ("Com", "mon"),
    ];
    for (name, text) in sources() {
        for (a, b) in banned {
            let kind = format!("{a}{b}");
            // What a library calls its own is not ours to name.
            let text = text.replace(&format!("Service{kind}"), "");
            let module = format!("mod {}", kind.to_lowercase());
            assert!(
                !text.contains(&kind) && !text.contains(&module),
                "{name} has a {kind}"
            );
        }
    }
}

fn hash(files: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for file in files {
        hasher.update(fs::read(root().join(file)).unwrap());
    }
    hasher
        .finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn documents_change_with_what_they_describe() {
    for (document, described) in [
        (
            "docs/protocol.md",
            &[
                "crates/whrelay-proto/src/frame.rs",
                "crates/whrelay-proto/src/codec.rs",
            ][..],
        ),
        (
            "docs/storage.md",
            &[
                "crates/whrelay-store/src/tables.rs",
                "crates/whrelay-store/src/rows.rs",
                "crates/whrelay-store/src/rows/attempt.rs",
                "crates/whrelay-store/src/rows/delivery.rs",
                "crates/whrelay-store/src/rows/destination.rs",
            ],
        ),
    ] {
        let line = format!(
            "<!-- describes {} at {} -->",
            described.join(" and "),
            hash(described)
        );
        let text = fs::read_to_string(root().join(document)).unwrap();
        assert!(
            text.contains(&line),
            "{document}: read it again beside the code, then put in\n{line}"
        );
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
        .map(|d| root().join(d))
        .into();
    for dir in ["docs", "docs/decisions", "docs/providers"] {
        let entries = fs::read_dir(root().join(dir)).unwrap();
        documents.extend(entries.map(|entry| entry.unwrap().path()));
    }
    for document in documents.iter().filter(|path| path.is_file()) {
        let text = fs::read_to_string(document).unwrap();
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let path = link.split('#').next().unwrap();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            assert!(
                document.parent().unwrap().join(path).exists(),
                "{}: {link}",
                document.display()
            );
        }
    }
}
