//! Destinations of a store, by their URLs: what tests need of them.

use whrelay_core::bucket::BucketId;
use whrelay_core::delivery::DestinationId;
use whrelay_core::destination::{DestinationName, Kind, OptionSet};
use whrelay_core::target::Target;
use whrelay_store::{Catalog, NewDestination, StoreError};

/// The lasting destination of a bucket with this URL, added where there is none.
///
/// # Errors
/// When it is not on disk.
pub async fn destination(
    catalog: &dyn Catalog,
    bucket: BucketId,
    target: &str,
) -> Result<DestinationId, StoreError> {
    let target: Target = target.parse().expect("a target");
    let all = catalog.destinations().await?;
    if let Some(known) = all.iter().find(|known| known.target == target) {
        return Ok(known.id);
    }
    let is_taken = |name: &DestinationName| all.iter().any(|known| known.name() == Some(name));
    let name = DestinationName::made_of(&target, is_taken);
    let new = NewDestination {
        bucket,
        kind: Kind::Lasting {
            name,
            is_named: false,
        },
        target,
        options: OptionSet::default(),
    };
    Ok(catalog.add_destination(new).await?.id)
}
