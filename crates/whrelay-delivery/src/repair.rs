//! An event that is damaged on this disk, and what is done about it. It must not know whom to ask.

use std::pin::Pin;
use std::sync::Arc;

use whrelay_core::event::Event;
use whrelay_core::id::EventId;

/// The result of fetching a damaged event once more.
#[derive(Clone, Debug)]
pub enum Fetched {
    /// Whoever sent it still has it.
    Event(Box<Event>),
    /// Nobody has it any more.
    Gone,
    /// Whoever may have it cannot be asked now.
    Later,
}

/// Asks for an event once more.
pub type Fetch =
    Arc<dyn Fn(EventId) -> Pin<Box<dyn Future<Output = Fetched> + Send>> + Send + Sync>;

/// What is done about a damaged event that was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Repair {
    Restore(Box<Event>),
    AskAgain,
    GiveUp,
}

pub(crate) fn repair(fetched: Fetched, wanted: EventId, is_over: bool) -> Repair {
    match fetched {
        Fetched::Event(event) if event.id == wanted => Repair::Restore(event),
        Fetched::Event(_) | Fetched::Gone => Repair::GiveUp,
        Fetched::Later if is_over => Repair::GiveUp,
        Fetched::Later => Repair::AskAgain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_event_is_asked_for_until_its_deadline() {
        let id = EventId::from_bytes([7; 16]);
        for (is_over, repaired) in [(false, Repair::AskAgain), (true, Repair::GiveUp)] {
            assert_eq!(repair(Fetched::Later, id, is_over), repaired);
            assert_eq!(repair(Fetched::Gone, id, is_over), Repair::GiveUp);
        }
    }
}
