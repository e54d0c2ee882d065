//! What the arguments and files of `listen` ask for: where events go, and how.

use whrelay_agent::Requests;
use whrelay_core::destination::{Declared, DestinationName, Setup, Spec};
use whrelay_core::route::{Prefix, Route};

use crate::args::{ListenArgs, RequestArgs};
use crate::config;
use crate::config::trust::Level;
use crate::failure::{Code, Failure};

/// Destinations of one agent at most: each is delivered to by itself.
const MAX_DESTINATIONS: usize = 256;

/// How requests to destinations are made.
pub(crate) fn requests(args: &RequestArgs) -> Requests {
    Requests {
        fields: args.fields(),
        trust: args.trust(),
        signatures: args.signatures.signatures(),
    }
}

/// Where events go, and how deliveries are made; nothing that no route takes may be lost for it.
pub(crate) fn setup(args: &ListenArgs, config: &config::Config) -> Result<Setup, Failure> {
    let mut to: Vec<Spec> = Vec::new();
    for spec in args.targets.iter().chain(&args.to) {
        if !to.contains(spec) {
            to.push(spec.clone());
        }
    }
    let declared = config.destinations.declared();
    if !args.to_is_typed {
        to.extend(declared_only(&declared, &to, &args.route));
    }
    let mut routes: Vec<Route> = Vec::new();
    for route in &args.route {
        if !routes.contains(route) {
            routes.push(route.clone());
        }
    }
    let count = to.len() + routes.len();
    if count > MAX_DESTINATIONS {
        let why = format!("{count} destinations are too many");
        return Err(Failure::new(Code::Usage, why).hint(format!("at most {MAX_DESTINATIONS}")));
    }
    if count == 0 {
        return Err(
            Failure::new(Code::Usage, "no target: where should events go?")
                .hint("whrelay listen --to localhost:3000"),
        );
    }
    let takes_all = |route: &Route| route.prefix == Prefix::default();
    if to.is_empty() && !routes.iter().any(takes_all) {
        return Err(
            Failure::new(Code::Usage, "events outside your routes have no target")
                .hint("say where the rest goes with --to, or with --route /=TARGET"),
        );
    }
    Ok(Setup {
        to,
        routes,
        declared,
        general: args.delivery.general(),
        typed: args.delivery.typed(),
        reset: args.reset.clone(),
        untrusted: untrusted(args, config),
    })
}

/// What a project's file that is not trusted says of destinations.
fn untrusted(args: &ListenArgs, config: &config::Config) -> Vec<Spec> {
    let is_untrusted = |key: &str, is_typed: bool| {
        let set = config.sets.get(key).filter(|_| !is_typed);
        set.is_some_and(|set| set.level == Level::Project)
    };
    let mut untrusted = config.destinations.untrusted();
    if is_untrusted("to", args.to_is_typed) {
        untrusted.extend(args.to.iter().cloned());
    }
    if is_untrusted("route", args.route_is_typed) {
        untrusted.extend(args.route.iter().map(|route| route.to.clone()));
    }
    untrusted
}

/// The destinations of files that no other argument names: each gets every event.
fn declared_only(declared: &[Declared], to: &[Spec], routes: &[Route]) -> Vec<Spec> {
    let is_named = |name: &DestinationName| {
        let mut all = to.iter().chain(routes.iter().map(|route| &route.to));
        all.any(|spec| spec.name() == Some(name))
    };
    let with_url = declared.iter().filter(|declared| declared.target.is_some());
    let rest = with_url.filter(|declared| !is_named(&declared.name));
    rest.map(|declared| Spec::Known(declared.name.clone()))
        .collect()
}
