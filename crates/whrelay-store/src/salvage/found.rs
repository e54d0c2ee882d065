//! What a pair of a leaf is, if it is whole: the store's seal decides. It must not know what is made of it.

use std::io;

use serde::de::DeserializeOwned;
use whrelay_core::bucket::{BucketId, BucketName, Seq};
use whrelay_core::delivery::{Delivery, DeliveryKey};
use whrelay_core::id::EventId;
use whrelay_core::target::Target;

use crate::attempts;
use crate::pages::{Pages, Shape};
use crate::record::{Seal, Unsealed};
use crate::rows::{
    AttemptMore, AttemptRow, BucketRow, DeliveryRow, DestinationRow, EventRow, OldDeliveryRow,
    OldDestinationRow, RemovalsRow, SourceRow, SubscriptionRow,
};
use crate::subscriptions;
use crate::tables::{SIZE, delivery_key, event_key, sized_bucket};

/// Something whole.
pub(super) enum Found {
    /// With whether its body is there.
    Event(BucketId, Seq, EventId, bool, Unsealed),
    /// Retention has emptied this place.
    Removed(BucketId, Seq),
    Removals(BucketId, RemovalsRow),
    Delivery(Delivery, Unsealed),
    /// With its bucket, and its row in the index by state.
    Attempt(u64, BucketId, (u8, i64, u64), Unsealed),
    Bucket(u32, BucketRow, Unsealed),
    Destination(u32, DestinationRow, Unsealed),
    Source(BucketId, SourceRow),
    Subscription(BucketId, BucketName, SubscriptionRow),
    /// The last number given.
    Last(u32, u64),
}

impl Found {
    pub(super) fn is_an_agents(&self) -> bool {
        match self {
            Self::Delivery(..) | Self::Attempt(..) | Self::Destination(..) | Self::Source(..) => {
                true
            }
            // An agent's bucket has no input URL, and so no secret.
            Self::Bucket(_, BucketRow { name, key }, _) => name == key,
            // A forwarder remembers what it removed as one number.
            Self::Removed(..) => true,
            Self::Event(..) | Self::Removals(..) | Self::Subscription(..) | Self::Last(..) => false,
        }
    }
}

/// What a table's pairs look like, and what each of them is.
type Reader = fn(Seal, &[u8], &[u8]) -> Option<Found>;

const SHAPES: [(Shape, Reader); 6] = [
    (shape(Some(12), None), read_event),
    (shape(Some(16), None), read_delivery),
    (shape(Some(8), None), read_attempt),
    (shape(Some(4), None), read_small),
    (shape(None, None), read_subscription),
    (shape(Some(4), Some(16)), read_last),
];

const fn shape(key: Option<usize>, value: Option<usize>) -> Shape {
    Shape { key, value }
}

/// Everything whole in a leaf, read as each kind of table until one makes sense.
pub(super) fn read_leaf(pages: &mut Pages, pairs: usize, seal: Seal) -> io::Result<Vec<Found>> {
    for (shape, read) in SHAPES {
        let (mut found, mut end) = (Vec::new(), 0);
        for n in 0..pairs {
            let one = pages.pair(shape, pairs, n)?;
            let one = one.and_then(|(key, value)| read(seal, key, value));
            if one.is_some() {
                end = end.max(pages.end(shape, pairs, n)?);
            }
            found.extend(one);
        }
        if !found.is_empty() {
            pages.pass(end);
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// The row of a record that is whole, and has nothing behind it.
fn whole<T: DeserializeOwned>(seal: Seal, key: &[u8], record: &[u8]) -> Option<T> {
    let (head, body) = seal.parts(key, record)?;
    let (row, rest) = postcard::take_from_bytes(head).ok()?;
    (rest.is_empty() && body.is_empty()).then_some(row)
}

fn number<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

fn place(key: &[u8]) -> Option<(BucketId, Seq)> {
    let (bucket, seq) = key.split_at_checked(4)?;
    Some((
        BucketId(u32::from_le_bytes(number(bucket)?)),
        Seq(u64::from_le_bytes(number(seq)?)),
    ))
}

fn read_event(seal: Seal, key: &[u8], record: &[u8]) -> Option<Found> {
    let (bucket, seq) = place(key)?;
    let (head, _) = seal.parts(&event_key(bucket, seq), record)?;
    if head.is_empty() {
        return Some(Found::Removed(bucket, seq));
    }
    let row: EventRow = postcard::from_bytes(head).ok()?;
    let record = Unsealed::of(record);
    let has_body = row.has_body();
    Some(Found::Event(bucket, seq, row.id(), has_body, record))
}

fn read_delivery(seal: Seal, key: &[u8], record: &[u8]) -> Option<Found> {
    let (bucket, seq) = place(key.get(..12)?)?;
    let key = DeliveryKey {
        bucket,
        seq,
        ordinal: u32::from_le_bytes(number(&key[12..])?),
    };
    let seed = delivery_key(key);
    if let Some(row) = whole::<DeliveryRow>(seal, &seed, record) {
        let delivery = row.into_delivery(key);
        return Some(Found::Delivery(delivery, Unsealed::of(record)));
    }
    let old = match whole::<OldDeliveryRow>(seal, &seed, record) {
        Some(of_9) => of_9,
        None => of_8::delivery(seal.parts(&seed, record)?.0)?,
    };
    let delivery = old.renewed().into_delivery(key);
    let record = Unsealed::new(&DeliveryRow::new(&delivery), &[]).ok()?;
    Some(Found::Delivery(delivery, record))
}

fn read_attempt(seal: Seal, key: &[u8], record: &[u8]) -> Option<Found> {
    let place = u64::from_le_bytes(number(key)?);
    let (row, more) = seal
        .open::<AttemptRow>("attempt", &place.to_be_bytes(), record)
        .ok()?;
    let attempt = row.into_attempt(AttemptMore::read(more)?);
    let row = attempts::index_row(place, &attempt);
    let bucket = attempt.key.bucket;
    Some(Found::Attempt(place, bucket, row, Unsealed::of(record)))
}

/// Tables with numbers as keys: what a record says tells which it is of. Tokens are not saved: they let
/// people in, and who has the token file makes its own good again.
fn read_small(seal: Seal, key: &[u8], record: &[u8]) -> Option<Found> {
    let id = u32::from_le_bytes(number(key)?);
    let key = id.to_be_bytes();
    if let Some(row) = whole::<BucketRow>(seal, &key, record)
        && row.name.parse::<BucketName>().is_ok()
        && row.key.starts_with(&row.name)
    {
        return Some(Found::Bucket(id, row, Unsealed::of(record)));
    }
    if let Some(row) = whole::<DestinationRow>(seal, &key, record)
        && row.target.contains(":/")
    {
        return Some(Found::Destination(id, row, Unsealed::of(record)));
    }
    if let Some((head, &[])) = seal.parts(&key, record)
        && let Some(row) = DestinationRow::of_9(head)
        && row.target.contains(":/")
    {
        let record = Unsealed::new(&row, &[]).ok()?;
        return Some(Found::Destination(id, row, record));
    }
    if let Some(row) = whole::<OldDestinationRow>(seal, &key, record)
        && let Ok(target) = row.target.parse::<Target>()
    {
        let row = row.named(&of_8::kind(id, &target));
        let record = Unsealed::new(&row, &[]).ok()?;
        return Some(Found::Destination(id, row, record));
    }
    let source = whole::<SourceRow>(seal, &key, record)
        .or_else(|| Some(whole::<of_6::Source>(seal, &key, record)?.into()));
    if let Some(row) = source
        && row.forwarder.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Some(Found::Source(BucketId(id), row));
    }
    Some(Found::Removals(BucketId(id), whole(seal, &key, record)?))
}

fn read_subscription(seal: Seal, key: &[u8], record: &[u8]) -> Option<Found> {
    let (bucket, name) = key.split_at_checked(4)?;
    let bucket = BucketId(u32::from_le_bytes(number(bucket)?));
    let name: BucketName = std::str::from_utf8(name).ok()?.parse().ok()?;
    let key = subscriptions::key(bucket, name.as_str());
    let of_10 = || match seal.parts(&key, record)? {
        (head, &[]) => SubscriptionRow::of_10(head),
        _ => None,
    };
    let row = whole::<SubscriptionRow>(seal, &key, record)
        .or_else(of_10)
        .or_else(|| Some(whole::<of_6::Subscription>(seal, &key, record)?.into()))?;
    Some(Found::Subscription(bucket, name, row))
}

/// Rows as format 8 has them.
mod of_8 {
    use whrelay_core::destination::{DestinationName, Kind};
    use whrelay_core::target::Target;

    use crate::rows::OldDeliveryRow;

    type Start = (
        ([u8; 16], [u8; 16], u32, i64, i64, u32),
        (Option<i64>, Option<u32>, u32, Option<i64>, Option<i64>),
        (bool, Option<u64>),
    );

    /// A delivery that was begun in place of others, which are listed at its end.
    pub(super) fn delivery(head: &[u8]) -> Option<OldDeliveryRow> {
        let (start, _) = postcard::from_bytes::<(Start, Vec<u32>)>(head).ok()?;
        let today = postcard::to_extend(&(start, false), Vec::new()).ok()?;
        postcard::from_bytes(&today).ok()
    }

    /// What a destination is called that has only a number and a URL.
    pub(super) fn kind(id: u32, target: &Target) -> Kind {
        let numbered = |name: &DestinationName| name.as_str().ends_with(&format!("-{id}"));
        let name = match id {
            1 => DestinationName::first(),
            _ => DestinationName::made_of(target, |name| !numbered(name)),
        };
        let is_named = false;
        Kind::Lasting { name, is_named }
    }
}

/// Rows as format 6 has them: a store that is damaged cannot be migrated first.
mod of_6 {
    use serde::Deserialize;

    use crate::rows::{SourceRow, SubscriptionRow};

    #[derive(Deserialize)]
    pub(super) struct Subscription {
        acked: u64,
        since: u64,
    }

    impl From<Subscription> for SubscriptionRow {
        fn from(Subscription { acked, since }: Subscription) -> Self {
            Self {
                acked,
                since,
                ..Self::default()
            }
        }
    }

    #[derive(Deserialize)]
    pub(super) struct Source {
        forwarder: String,
        seq: u64,
    }

    impl From<Source> for SourceRow {
        fn from(Source { forwarder, seq }: Source) -> Self {
            Self {
                forwarder,
                seq,
                locator: Vec::new(),
                whole_after: 0,
            }
        }
    }
}

fn read_last(seal: Seal, key: &[u8], value: &[u8]) -> Option<Found> {
    let (last, check) = value.split_at_checked(8)?;
    let of = u32::from_le_bytes(number(key)?);
    let last = u64::from_le_bytes(number(last)?);
    let check = u64::from_le_bytes(number(check)?);
    let is_size = of == SIZE || sized_bucket(of).is_some();
    (check == seal.check(of, last) && !is_size).then_some(Found::Last(of, last))
}
