//! Any bytes under a store's seal are a record of each kind or damage, and what a record means is
//! written as the same record again. Under another store's seal they are damage.

#![no_main]
#![expect(
    dead_code,
    reason = "the store uses more of its modules than is tried here"
)]

#[path = "../../../crates/whrelay-store/src/error.rs"]
mod error;
#[path = "../../../crates/whrelay-store/src/record.rs"]
mod record;
#[path = "../../../crates/whrelay-store/src/rows.rs"]
mod rows;

use libfuzzer_sys::fuzz_target;
use record::{Seal, Unsealed};
use rows::{
    AttemptMore, AttemptRow, BucketRow, DeliveryRow, DestinationRow, EventRow, OldDeliveryRow,
    OldDestinationRow, SourceRow,
};
use serde::de::DeserializeOwned;
use whrelay_core::bucket::{BucketId, BucketName, Seq};
use whrelay_core::delivery::{DeliveryKey, DestinationId};

const KEY: &[u8] = b"key";

fn open<T: DeserializeOwned>(seal: Seal, record: &[u8]) -> Option<(T, &[u8])> {
    seal.open("record", KEY, record).ok()
}

fuzz_target!(|data: &[u8]| {
    // That bytes without a seal are damage cannot be tried here: the fuzzer reads the wanted checksum
    // off the comparison and writes it into its next input, which a sender cannot.
    let (ours, another) = (Seal::of("ours"), Seal::of("another"));
    // A record has a head of 13 bytes, which sealing completes.
    if data.len() < 13 {
        return;
    }
    let sealed = Unsealed::of(data).seal(ours, KEY);
    assert!(open::<BucketRow>(another, &sealed).is_none());
    let key = DeliveryKey {
        bucket: BucketId(1),
        seq: Seq(1),
        ordinal: 0,
    };
    let name: BucketName = "shop".parse().expect("a name");
    if let Some((row, body)) = open::<EventRow>(ours, &sealed) {
        let event = row.into_event(name, body);
        let (row, body) = EventRow::new(event.clone());
        let again = Unsealed::new(&row, &body)
            .expect("encodable")
            .seal(ours, KEY);
        let (row, body) = open::<EventRow>(ours, &again).expect("whole");
        assert_eq!(row.into_event(event.bucket.clone(), body), event);
    }
    if let Some((row, _)) = open::<DeliveryRow>(ours, &sealed) {
        let delivery = row.into_delivery(key);
        let again = ours
            .seal(KEY, &DeliveryRow::new(&delivery))
            .expect("encodable");
        let (row, _) = open::<DeliveryRow>(ours, &again).expect("whole");
        assert_eq!(row.into_delivery(key), delivery);
    }
    if let Some((row, more)) = open::<AttemptRow>(ours, &sealed) {
        let before = row.before;
        let attempt = row.into_attempt(AttemptMore::read(more).unwrap_or_default());
        let (row, more) = AttemptRow::new(attempt.clone(), before);
        let more = record::encode(&more).expect("encodable");
        let again = Unsealed::new(&row, &more)
            .expect("encodable")
            .seal(ours, KEY);
        let (row, more) = open::<AttemptRow>(ours, &again).expect("whole");
        let more = record::decode(more).expect("whole");
        assert_eq!(row.into_attempt(more), attempt);
    }
    if let Some((row, _)) = open::<BucketRow>(ours, &sealed) {
        row.into_bucket(BucketId(1));
    }
    if let Some((row, _)) = open::<DestinationRow>(ours, &sealed) {
        row.into_destination(DestinationId(1));
    }
    if let Some((row, _)) = open::<OldDeliveryRow>(ours, &sealed) {
        row.renewed().into_delivery(key);
    }
    open::<OldDestinationRow>(ours, &sealed);
    if let Some(row) = DestinationRow::of_9(data) {
        row.into_destination(DestinationId(1));
    }
    open::<SourceRow>(ours, &sealed);
});
