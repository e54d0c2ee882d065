//! Two agents that want one subscription: which of them may have it. It must not know who is connected.

use crate::frame::Who;

/// What an agent that comes is to the one that has the subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rival {
    /// The same process, over a new connection.
    Itself,
    /// The same directory, opened next: the process that had it is gone.
    Successor,
    /// The same directory, opened otherwise: one of them runs on a copy of it.
    Copy,
    /// Another directory.
    Other,
}

impl Rival {
    /// What `new` is to `holder`. Versions that do not say who they are count as the same.
    pub fn of(new: Option<&Who>, holder: Option<&Who>) -> Self {
        let (Some(new), Some(holder)) = (new, holder) else {
            return Self::Itself;
        };
        if new.store != holder.store {
            Self::Other
        } else if new.epoch.instance == holder.epoch.instance {
            Self::Itself
        } else if new.follows == Some(holder.epoch.instance) {
            Self::Successor
        } else {
            Self::Copy
        }
    }

    /// Whether it takes the subscription at once from one that is connected. An older connection of its own may
    /// be one that nobody will ever close.
    pub fn replaces(self, take_over: bool) -> bool {
        match self {
            Self::Itself | Self::Successor => true,
            Self::Copy | Self::Other => take_over,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Epoch;

    fn who(store: &str, instance: u64, follows: u64) -> Who {
        Who {
            store: store.into(),
            epoch: Epoch { opens: 5, instance },
            follows: Some(follows),
            ..Who::default()
        }
    }

    #[test]
    fn only_its_own_directory_replaces_an_agent_unasked() {
        let holder = who("a", 4, 3);
        let rival = |new: &Who| Rival::of(Some(new), Some(&holder));
        assert_eq!(rival(&holder), Rival::Itself);
        assert_eq!(rival(&who("a", 5, 4)), Rival::Successor);
        // A copy of the opening before, and that copy opened once more.
        assert_eq!(rival(&who("a", 6, 3)), Rival::Copy);
        assert_eq!(rival(&who("a", 7, 6)), Rival::Copy);
        assert_eq!(rival(&who("b", 5, 4)), Rival::Other);
        for (rival, replaces) in [
            (Rival::Itself, true),
            (Rival::Successor, true),
            (Rival::Copy, false),
            (Rival::Other, false),
        ] {
            assert_eq!(rival.replaces(false), replaces, "{rival:?}");
            assert!(rival.replaces(true));
        }
        assert_eq!(Rival::of(None, Some(&holder)), Rival::Itself);
    }
}
