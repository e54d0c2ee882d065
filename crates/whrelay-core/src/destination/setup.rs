//! Which stored destination each `--to` and `--route` means. A name owns its queue, a URL is a property of it,
//! and the order of the arguments never decides.

use std::collections::HashSet;

use super::{Destination, DestinationName, Kind, OptionKey, OptionSet, Spec};
use crate::delivery::DestinationId;
use crate::route::{Prefix, Route};
use crate::target::Target;

/// Why destinations cannot be set up as they are given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// A name that stands for no URL.
    #[error("there is no destination `{0}`")]
    Unknown(DestinationName),
    /// A file that is not trusted means a destination on another machine.
    #[error(
        "a project's file may mean {0} ({1}), which is on another machine, only once you trust the file"
    )]
    Untrusted(DestinationName, String),
    /// A name with two URLs.
    #[error("destination `{0}` has two URLs: {1} and {2}")]
    TwoUrls(DestinationName, String, String),
}

impl SetupError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Unknown(name) => format!(
                "give its URL, as in --to {name}=localhost:3000; a host is written http://{name}"
            ),
            Self::Untrusted(..) => {
                "read whrelay.toml, then run `whrelay config trust` to accept it as it is"
                    .to_owned()
            }
            Self::TwoUrls(name, ..) => {
                format!("give {name} one URL, or two destinations two names")
            }
        }
    }
}

/// A destination as a configuration file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: DestinationName,
    /// Its URL, where the file has it.
    pub target: Option<Target>,
    /// Its options.
    pub options: OptionSet,
}

/// What a person asks for: where events go, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// Where all events go that no route takes.
    pub to: Vec<Spec>,
    /// Where those under a path go.
    pub routes: Vec<Route>,
    /// What files say of single destinations.
    pub declared: Vec<Declared>,
    /// Options that files give all destinations: those of a single one come before.
    pub general: OptionSet,
    /// Options that were typed: they come before everything.
    pub typed: OptionSet,
    /// Options that have their default again.
    pub reset: Vec<OptionKey>,
    /// Those of the destinations that a file without trust names.
    pub untrusted: Vec<Spec>,
}

/// A destination that events go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What is stored of it so far.
    pub before: Option<Destination>,
    /// Its name.
    pub name: DestinationName,
    /// Whether a person chose the name.
    pub is_named: bool,
    /// Its URL.
    pub target: Target,
    /// Its options.
    pub options: OptionSet,
    /// Those that are as they were stored, and not as by default.
    pub kept: Vec<OptionKey>,
    /// Which events go there.
    pub prefixes: Vec<Prefix>,
}

impl Setup {
    /// The destinations in the order of the arguments, each once, of which `stored` are known.
    ///
    /// # Errors
    /// When a name has no URL, or two.
    pub fn plan(&self, stored: &[Destination]) -> Result<Vec<Planned>, SetupError> {
        let is_removed = |known: &&Destination| matches!(known.kind, Kind::Removed { .. });
        let mut plan = Plan {
            setup: self,
            stored: stored
                .iter()
                .filter(|known| known.name().is_some())
                .collect(),
            removed: stored.iter().filter(is_removed).collect(),
            planned: Vec::new(),
        };
        for (prefix, spec) in self.given() {
            if let Some(name) = spec.name() {
                plan.add_named(name, spec, prefix)?;
            }
        }
        // Names come first, so that an unnamed URL is never taken from a name.
        for target in self.to.iter().filter_map(unnamed) {
            plan.add_unnamed(target, Prefix::default(), true);
        }
        for route in &self.routes {
            if let Some(target) = unnamed(&route.to) {
                plan.add_unnamed(target, route.prefix.clone(), false);
            }
        }
        let first = |planned: &Planned| self.given().position(|(_, spec)| means(planned, spec));
        plan.planned.sort_by_key(first);
        for planned in &plan.planned {
            let remote = planned
                .before
                .as_ref()
                .filter(|before| !is_here(&before.target));
            let is_untrusted = self.untrusted.iter().any(|spec| means(planned, spec));
            if let Some(before) = remote.filter(|_| is_untrusted) {
                let url = before.target.to_string();
                return Err(SetupError::Untrusted(planned.name.clone(), url));
            }
        }
        Ok(plan.planned)
    }

    /// The options of one-off replays: those that hold for every destination.
    pub fn replay_options(&self) -> OptionSet {
        self.typed.over(&self.general)
    }

    /// Every destination that is given, and which events go there.
    fn given(&self) -> impl Iterator<Item = (Prefix, &Spec)> {
        let to = self.to.iter().map(|spec| (Prefix::default(), spec));
        to.chain(
            self.routes
                .iter()
                .map(|route| (route.prefix.clone(), &route.to)),
        )
    }

    fn declared(&self, name: &DestinationName) -> Option<&Declared> {
        self.declared.iter().find(|declared| declared.name == *name)
    }

    /// What this run says of a destination's options.
    fn given_options(&self, name: &DestinationName) -> OptionSet {
        let declared = self.declared(name).map(|declared| declared.options.clone());
        let mut of_files = declared.unwrap_or_default().over(&self.general);
        self.reset.iter().for_each(|key| of_files.reset(*key));
        self.typed.over(&of_files)
    }
}

struct Plan<'a> {
    setup: &'a Setup,
    /// Those that events go to.
    stored: Vec<&'a Destination>,
    /// Those that a person has removed.
    removed: Vec<&'a Destination>,
    planned: Vec<Planned>,
}

impl<'a> Plan<'a> {
    fn add_named(
        &mut self,
        name: &DestinationName,
        spec: &Spec,
        prefix: Prefix,
    ) -> Result<(), SetupError> {
        let given = spec.target();
        if let Some(same) = self
            .planned
            .iter_mut()
            .find(|planned| planned.name == *name)
        {
            if let Some(target) = given.filter(|target| **target != same.target) {
                let (first, second) = (same.target.to_string(), target.to_string());
                return Err(SetupError::TwoUrls(name.clone(), first, second));
            }
            same.prefixes.push(prefix);
            return Ok(());
        }
        let before = self
            .stored
            .iter()
            .copied()
            .find(|known| known.name() == Some(name));
        let declared = self
            .setup
            .declared(name)
            .and_then(|declared| declared.target.as_ref());
        // Another argument may have the URL of a name that comes first by itself.
        let mut same = self
            .setup
            .given()
            .filter(|(_, other)| other.name() == Some(name));
        let typed = same.find_map(|(_, other)| other.target());
        let target = typed.or(declared).or(before.map(|before| &before.target));
        let target = target
            .ok_or_else(|| SetupError::Unknown(name.clone()))?
            .clone();
        let before = before.or_else(|| self.unnamed_at(&target));
        let before = before.or_else(|| self.removed_at(&target));
        let mut given = self.setup.given();
        let is_chosen =
            given.any(|(_, other)| matches!(other, Spec::Named(named, _) if named == name));
        let was_unnamed =
            before.is_some_and(|before| is_unnamed(before) && before.name() == Some(name));
        self.push(
            before,
            (name.clone(), is_chosen || !was_unnamed),
            target,
            prefix,
        );
        Ok(())
    }

    fn add_unnamed(&mut self, target: &Target, prefix: Prefix, may_have_moved: bool) {
        if let Some(same) = self
            .planned
            .iter_mut()
            .find(|planned| planned.target == *target)
        {
            same.prefixes.push(prefix);
            return;
        }
        let at = self
            .stored
            .iter()
            .copied()
            .filter(|known| !self.is_planned(known.id));
        let at = at
            .filter(|known| known.target == *target)
            .min_by_key(|known| known.id);
        let before = at.or_else(|| self.moved().filter(|_| may_have_moved));
        let name = match before.map(|before| &before.kind) {
            Some(Kind::Lasting { name, is_named }) => (name.clone(), *is_named),
            Some(Kind::OneOff | Kind::Removed { .. }) | None => (self.new_name(target), false),
        };
        let before = before.or_else(|| self.removed_at(target));
        self.push(before, name, target.clone(), prefix);
    }

    fn push(
        &mut self,
        before: Option<&'a Destination>,
        (name, is_named): (DestinationName, bool),
        target: Target,
        prefix: Prefix,
    ) {
        // Removal ends what was set of one that a person had removed.
        let lasting = before.filter(|before| before.name().is_some());
        let mut stored = lasting
            .map(|before| before.options.clone())
            .unwrap_or_default();
        self.setup.reset.iter().for_each(|key| stored.reset(*key));
        let given = self.setup.given_options(&name);
        let defaults = OptionSet::defaults();
        let is_kept = |key: &OptionKey| {
            let kept = stored.get(*key).filter(|_| given.get(*key).is_none());
            kept.is_some() && kept != defaults.get(*key)
        };
        self.planned.push(Planned {
            before: before.cloned(),
            kept: OptionKey::ALL.into_iter().filter(is_kept).collect(),
            options: given.over(&stored),
            name,
            is_named,
            target,
            prefixes: vec![prefix],
        });
    }

    /// The only unnamed destination that no argument means, where there is only one unnamed `--to`: that is
    /// it under a new URL.
    fn moved(&self) -> Option<&'a Destination> {
        let targets: HashSet<_> = self.setup.to.iter().filter_map(unnamed).collect();
        let is_given = |known: &Destination| {
            let mut all = self.setup.given().filter_map(|(_, spec)| spec.target());
            all.any(|target| *target == known.target)
        };
        let is_left = |known: &&Destination| {
            is_unnamed(known) && !self.is_planned(known.id) && !is_given(known)
        };
        let mut left = self.stored.iter().copied().filter(is_left);
        match (targets.len(), left.next(), left.next()) {
            (1, Some(only), None) => Some(only),
            _ => None,
        }
    }

    /// An unnamed destination with this URL, which a name is now given to.
    fn unnamed_at(&self, target: &Target) -> Option<&'a Destination> {
        let is_given = |known: &Destination| {
            self.setup
                .given()
                .any(|(_, spec)| spec.name().is_some() && spec.name() == known.name())
        };
        let mut all = self
            .stored
            .iter()
            .copied()
            .filter(|known| is_unnamed(known));
        all.find(|known| known.target == *target && !self.is_planned(known.id) && !is_given(known))
    }

    /// A removed destination with this URL: what has ended there belongs to it again.
    fn removed_at(&self, target: &Target) -> Option<&'a Destination> {
        let all = self.removed.iter().copied();
        let there = all.filter(|known| known.target == *target && !self.is_planned(known.id));
        there.max_by_key(|known| known.id)
    }

    fn is_planned(&self, id: DestinationId) -> bool {
        let mut before = self
            .planned
            .iter()
            .filter_map(|planned| planned.before.as_ref());
        before.any(|before| before.id == id)
    }

    fn new_name(&self, target: &Target) -> DestinationName {
        let is_taken = |name: &DestinationName| {
            let mut stored = self
                .stored
                .iter()
                .filter(|known| !self.is_planned(known.id));
            stored.any(|known| known.name() == Some(name))
                || self.planned.iter().any(|planned| planned.name == *name)
                || self.setup.declared(name).is_some()
        };
        let first = DestinationName::first();
        match is_taken(&first) {
            false => first,
            true => DestinationName::made_of(target, is_taken),
        }
    }
}

/// Whether an argument means a destination.
fn means(planned: &Planned, spec: &Spec) -> bool {
    match spec {
        Spec::Known(name) | Spec::Named(name, _) => *name == planned.name,
        Spec::Unnamed(target) => *target == planned.target,
    }
}

/// Whether a URL is a port of this machine.
fn is_here(target: &Target) -> bool {
    target.is_loopback() && target.socket().is_none()
}

fn unnamed(spec: &Spec) -> Option<&Target> {
    match spec {
        Spec::Unnamed(target) => Some(target),
        Spec::Known(_) | Spec::Named(..) => None,
    }
}

fn is_unnamed(known: &Destination) -> bool {
    matches!(
        known.kind,
        Kind::Lasting {
            is_named: false,
            ..
        }
    )
}

#[cfg(test)]
mod tests;
