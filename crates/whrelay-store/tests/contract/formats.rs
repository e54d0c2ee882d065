//! Stores of earlier formats are taken over, with everything that is in them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use whrelay_core::bucket::Seq;
use whrelay_core::delivery::{State, event_state};
use whrelay_core::destination::{DestinationName, Kind};
use whrelay_core::id::EventId;
use whrelay_store::{Begin, RedbStore, Role, Search};

use crate::setup::*;

/// The stores of a fixture, and what their own version said of them.
fn unpack(format: u32) -> (TempDir, Value) {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(format!("format-{format}.tar.gz"));
    let dir = tempfile::tempdir().expect("a directory");
    let archive = File::open(archive).expect("a fixture");
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    archive.unpack(dir.path()).expect("unpacked");
    let expected = std::fs::read(dir.path().join("expected.json")).expect("read");
    (dir, serde_json::from_slice(&expected).expect("JSON"))
}

fn open(dir: &Path, role: Role) -> RedbStore {
    RedbStore::open(dir, &options(role)).expect("an older store is taken over")
}

/// Formats of which there is a fixture.
const FORMATS: [u32; 5] = [6, 7, 8, 9, 10];

/// The agents of a fixture, each with its bucket and name.
fn agents(dir: &Path) -> Vec<(String, String, PathBuf)> {
    let named = |entry: std::io::Result<std::fs::DirEntry>| {
        let place = entry.expect("read").path();
        let name = place.file_name()?.to_str()?.strip_prefix("agent-")?;
        let (bucket, name) = name.split_once('-')?;
        Some((bucket.to_owned(), name.to_owned(), place.clone()))
    };
    let all: Vec<_> = std::fs::read_dir(dir)
        .expect("a directory")
        .filter_map(named)
        .collect();
    assert_eq!(all.len(), 3);
    all
}

#[tokio::test]
async fn agents_keep_every_event_and_every_delivery() {
    for format in FORMATS {
        keep_every_event_and_every_delivery(format).await;
    }
}

async fn keep_every_event_and_every_delivery(format: u32) {
    let (dir, expected) = unpack(format);
    let shown = expected["events"].as_array().expect("a list");
    let (mut kept, mut attempts) = (BTreeMap::new(), 0);
    for (bucket_name, name, place) in agents(dir.path()) {
        let store = open(&place, Role::Agent);
        attempts += store.attempts_after(0, usize::MAX).expect("read").len();
        for event in shown {
            let id = event["event"].as_str().expect("text").parse();
            let found = store.find_event(id.expect("an id")).expect("read");
            let deliveries = found.map(|(bucket, seq)| store.deliveries_of(bucket, seq));
            for delivery in deliveries.into_iter().flat_map(|all| all.expect("read")) {
                let state = (delivery.state.to_string(), u64::from(delivery.attempts));
                kept.insert(delivery.id.to_string(), state);
            }
        }
        let census = store.census().expect("read");
        assert!(census.is_whole(), "{census:?}");
        let status = expected["status"].as_array().expect("a list").iter();
        let status = status
            .clone()
            .find(|line| line["bucket"] == *bucket_name && line["name"] == *name)
            .expect("it was shown");
        let mut counted = BTreeMap::new();
        for destination in store.destinations().expect("read") {
            let counts = store.counts(destination.id).expect("read");
            for (state, count) in [
                ("queued", counts.queued),
                ("stalled", counts.stalled),
                ("sent", counts.sent),
                ("dead", counts.dead),
            ] {
                *counted.entry(state).or_insert(0) += count;
            }
        }
        for (state, count) in counted {
            assert_eq!(status[state], count, "{bucket_name} {name} {state}");
        }
        assert_eq!(
            store
                .removals(store.buckets().expect("read")[0].id)
                .expect("read")
                .bodies,
            status["removed"]["bodies"].as_u64().expect("a number")
        );
        assert_eq!(
            store.size(),
            status["stored_bytes"].as_u64().expect("a number")
        );
        let bucket = store.buckets().expect("read").remove(0);
        assert_eq!(store.size(), store.bucket_size(bucket.id));
        let source = store.source(bucket.id).expect("read").expect("it has one");
        assert!(source.seq > Seq(0));
        assert_eq!(source.locator.is_empty(), format == 6);
        store.close().await;
        // And once more, now that it is of today's format.
        assert!(open(&place, Role::Agent).epoch().opens >= 2);
    }
    for event in shown {
        for delivery in event["deliveries"].as_array().expect("a list") {
            let text = |key: &str| delivery[key].as_str().expect("text").to_owned();
            let tried = delivery["attempts"].as_u64().expect("a number");
            assert_eq!(kept[&text("delivery")], (text("state"), tried), "{event}");
        }
    }
    assert_eq!(
        attempts,
        expected["attempts"].as_array().expect("a list").len()
    );
}

/// A store that is damaged cannot be migrated first.
#[tokio::test]
async fn damaged_stores_are_salvaged_with_what_each_side_knows_of_the_other() {
    for (format, place, role) in [
        (6, "forwarder", Role::Forwarder),
        (6, "embedded-forwarder", Role::Forwarder),
        (6, "agent-shop-default", Role::Agent),
        (7, "forwarder", Role::Forwarder),
        (7, "agent-shop-other", Role::Agent),
        (8, "agent-lab-default", Role::Agent),
        (8, "forwarder", Role::Forwarder),
        (9, "agent-shop-other", Role::Agent),
        (9, "forwarder", Role::Forwarder),
    ] {
        let (whole, damaged) = (unpack(format).0, unpack(format).0);
        let damaged = damaged.path().join(place);
        crate::salvage::behead(&damaged);
        crate::salvage::save(&damaged).expect("saved");
        let (whole, saved) = (open(&whole.path().join(place), role), open(&damaged, role));
        for bucket in whole.buckets().expect("read") {
            let known = |store: &RedbStore| {
                let all = store.subscriptions(Some(bucket.id)).expect("read");
                let source = store.source(bucket.id).expect("read");
                let known = all.into_iter().map(|one| {
                    let acked = one.stored.known().map(|known| known.acked);
                    (one.name, acked)
                });
                (known.collect::<Vec<_>>(), source.map(|source| source.seq))
            };
            assert_eq!(known(&whole), known(&saved), "{place} {}", bucket.name);
            let last = |store: &RedbStore| store.last_seq(bucket.id).expect("read");
            assert_eq!(last(&whole), last(&saved), "{place} {}", bucket.name);
        }
    }
}

#[tokio::test]
async fn what_was_queued_is_still_queued() {
    for format in FORMATS {
        still_queued(format);
    }
}

fn still_queued(format: u32) {
    let (dir, expected) = unpack(format);
    let store = open(&dir.path().join("agent-lab-default"), Role::Agent);
    let bucket = store.buckets().expect("read").remove(0);
    let search = Search {
        bucket: bucket.id,
        states: vec![State::Queued, State::Stalled],
        since: None,
        until: None,
    };
    let found = store
        .search(&search, Begin::Oldest, None, 99)
        .expect("read");
    let found: Vec<_> = found.iter().map(|(id, _)| id.to_string()).collect();
    assert_eq!(Value::from(found), expected["held"]);
}

#[tokio::test]
async fn a_forwarder_keeps_what_its_agents_have_not_received() {
    for format in FORMATS {
        keeps_what_is_owed(format);
    }
}

fn keeps_what_is_owed(format: u32) {
    let (dir, expected) = unpack(format);
    let store = open(&dir.path().join("forwarder"), Role::Forwarder);
    let buckets = store.buckets().expect("read");
    let shop = buckets
        .iter()
        .find(|b| b.name.as_str() == "shop")
        .expect("there");
    let all = store.subscriptions(Some(shop.id)).expect("read");
    let names: Vec<_> = all.iter().map(|known| known.name.as_str()).collect();
    assert!(names.len() == 2 && names.contains(&"other"), "{names:?}");
    let owed = expected["late"].as_array().expect("a list");
    for known in &all {
        let events = store
            .read_after(
                shop,
                known.stored.known().expect("whole").acked,
                999,
                usize::MAX,
            )
            .expect("read");
        let ids: Vec<_> = events
            .events
            .iter()
            .map(|e| e.event.id.to_string())
            .collect();
        for id in owed {
            let id = id.as_str().expect("text").to_owned();
            assert!(ids.contains(&id), "{} is owed {id}", known.name);
        }
    }
    let unread = buckets
        .iter()
        .find(|b| b.name.as_str() == "unread")
        .expect("there");
    assert!(
        store
            .subscriptions(Some(unread.id))
            .expect("read")
            .is_empty()
    );
    for id in expected["unread"].as_array().expect("a list") {
        let id: EventId = id.as_str().expect("text").parse().expect("an id");
        assert!(store.find_event(id).expect("read").is_some());
    }
    let (of_shop, of_unread) = (store.bucket_size(shop.id), store.bucket_size(unread.id));
    assert_eq!(store.size(), of_shop + of_unread);
    assert!(of_unread > 0);
}

/// Before format 9 a destination was the text of a URL, and a replay to a new one said what it was begun in place of.
#[tokio::test]
async fn the_destinations_of_format_8_have_names_and_their_deliveries() {
    let (dir, expected) = unpack(8);
    let store = open(&dir.path().join("agent-lab-default"), Role::Agent);
    let all = store.destinations().expect("read");
    let kinds: Vec<_> = all.iter().map(|to| to.kind.clone()).collect();
    let default = Kind::Lasting {
        name: DestinationName::first(),
        is_named: false,
    };
    assert!(
        matches!(&kinds[..], [Kind::Removed { .. }, Kind::Removed { .. }, last] if *last == default),
        "{kinds:?}"
    );
    let bucket = store.buckets().expect("read").remove(0);
    let moved = expected["events"].as_array().expect("a list").iter();
    let mut moved = moved.filter(|event| event["path"] == "/moved");
    let moved = moved.next().expect("there")["event"]
        .as_str()
        .expect("text");
    let (_, seq) = store
        .find_event(moved.parse().expect("an id"))
        .expect("read")
        .expect("there");
    let deliveries = store.deliveries_of(bucket.id, seq).expect("read");
    assert_eq!(deliveries.len(), 2);
    assert_eq!(event_state(&deliveries), Some(State::Sent));
    assert_eq!(deliveries[0].destination, all[1].id);
    assert_eq!(deliveries[1].destination, all[1].id);
    assert!(indexes_are_whole(&store));
    store.close().await;
    let shop = agents(dir.path())
        .into_iter()
        .find(|(bucket, name, _)| bucket == "shop" && name != "other");
    let store = open(&shop.expect("there").2, Role::Agent);
    let all = store.destinations().expect("read");
    let one_offs = all.iter().filter(|to| to.kind == Kind::OneOff).count();
    assert_eq!(one_offs, 1, "{all:?}");
}
