//! Which stored destination each argument means.

use super::*;
use crate::bucket::BucketId;
use crate::destination::EndpointState;

fn stored(id: u32, name: &str, is_named: bool, target: &str) -> Destination {
    Destination {
        id: DestinationId(id),
        bucket: BucketId(1),
        kind: Kind::Lasting {
            name: name.parse().expect("a name"),
            is_named,
        },
        target: target.parse().expect("a target"),
        options: OptionSet::default(),
        paused_at: None,
        endpoint: EndpointState::Online,
        offline_since: None,
        back_since: None,
    }
}

fn setup(to: &[&str], routes: &[&str]) -> Setup {
    Setup {
        to: to
            .iter()
            .map(|text| text.parse().expect("a destination"))
            .collect(),
        routes: routes
            .iter()
            .map(|text| text.parse().expect("a route"))
            .collect(),
        ..Setup::default()
    }
}

/// Each destination as its number, name, port and paths.
fn planned(setup: &Setup, known: &[Destination]) -> Vec<String> {
    let plan = setup.plan(known).expect("a plan");
    let shown = plan.iter().map(|planned| {
        let id = planned
            .before
            .as_ref()
            .map_or("new".to_owned(), |before| before.id.0.to_string());
        let paths: Vec<_> = planned.prefixes.iter().map(ToString::to_string).collect();
        let port = planned.target.port();
        format!("{id} {} {port} {}", planned.name, paths.join(","))
    });
    shown.collect()
}

#[test]
fn the_first_unnamed_is_default_and_later_ones_are_named_after_their_urls() {
    let all = setup(&["3000", "4000"], &["/x=5000"]);
    assert_eq!(
        planned(&all, &[]),
        [
            "new default 3000 /",
            "new localhost-4000 4000 /",
            "new localhost-5000 5000 /x"
        ]
    );
    let twice = setup(&["3000", "localhost:3000"], &["/x=3000"]);
    assert_eq!(planned(&twice, &[]), ["new default 3000 /,/,/x"]);
}

#[test]
fn an_unnamed_url_is_the_destination_that_has_it_in_whatever_order() {
    let known = [
        stored(1, "default", false, "3000"),
        stored(2, "localhost-4000", false, "4000"),
    ];
    for to in [["3000", "4000"], ["4000", "3000"]] {
        let mut all = planned(&setup(&to, &[]), &known);
        all.sort();
        assert_eq!(all, ["1 default 3000 /", "2 localhost-4000 4000 /"]);
    }
    let named = [stored(7, "api", true, "3000")];
    assert_eq!(planned(&setup(&["3000"], &[]), &named), ["7 api 3000 /"]);
}

#[test]
fn the_only_unnamed_one_moves_with_its_queue_where_only_one_is_left() {
    let one = [stored(1, "default", false, "3000")];
    assert_eq!(planned(&setup(&["4000"], &[]), &one), ["1 default 4000 /"]);
    assert_eq!(
        planned(&setup(&["4000", "5000"], &[]), &one),
        ["new localhost-4000 4000 /", "new localhost-5000 5000 /"],
        "nobody knows which"
    );
    let two = [one[0].clone(), stored(2, "localhost-3001", false, "3001")];
    assert_eq!(
        planned(&setup(&["4000"], &[]), &two),
        ["new localhost-4000 4000 /"]
    );
    assert_eq!(
        planned(&setup(&["4000"], &["/x=3001"]), &two),
        ["1 default 4000 /", "2 localhost-3001 3001 /x"]
    );
    assert_eq!(
        planned(&setup(&["3000"], &["/x=4001"]), &two),
        ["1 default 3000 /", "new localhost-4001 4001 /x"],
        "a route moves nothing"
    );
    let named = [stored(1, "api", true, "3000")];
    assert_eq!(
        planned(&setup(&["4000"], &[]), &named),
        ["new default 4000 /"]
    );
}

#[test]
fn a_name_owns_its_queue_under_every_url() {
    let known = [
        stored(1, "api", true, "3000"),
        stored(2, "default", false, "4000"),
    ];
    assert_eq!(
        planned(&setup(&["api=5000"], &[]), &known),
        ["1 api 5000 /"]
    );
    assert_eq!(planned(&setup(&["api"], &[]), &known), ["1 api 3000 /"]);
    assert_eq!(
        planned(&setup(&["4000"], &["/stripe=api"]), &known),
        ["2 default 4000 /", "1 api 3000 /stripe"]
    );
    assert_eq!(
        planned(&setup(&["api=4000", "3000"], &[]), &known),
        ["1 api 4000 /", "new localhost-3000 3000 /"],
        "the URL of a name that moves is free"
    );
    assert_eq!(
        planned(&setup(&["hooks"], &["/x=hooks=6000"]), &known),
        ["new hooks 6000 /,/x"],
        "another argument has its URL"
    );
}

#[test]
fn a_name_given_to_an_unnamed_url_takes_its_queue() {
    let known = [stored(1, "default", false, "3000")];
    assert_eq!(
        planned(&setup(&["api=3000"], &[]), &known),
        ["1 api 3000 /"]
    );
    assert_eq!(
        planned(&setup(&["api=3000", "default=4000"], &[]), &known),
        ["new api 3000 /", "1 default 4000 /"]
    );
}

#[test]
fn a_one_off_is_never_meant_and_a_removed_one_only_by_its_url() {
    let mut known = [
        stored(1, "default", false, "3000"),
        stored(2, "api", true, "4000"),
    ];
    known[0].kind = Kind::OneOff;
    known[1].kind = Kind::Removed {
        name: "api".parse().expect("a name"),
    };
    known[1].options.max_attempts = Some(3);
    let all = setup(&["3000", "hooks=4000"], &[]);
    assert_eq!(
        planned(&all, &known),
        ["new default 3000 /", "2 hooks 4000 /"]
    );
    let plan = all.plan(&known).expect("a plan");
    assert_eq!(plan[1].options, OptionSet::default(), "they went with it");
    let elsewhere = setup(&["api=5000"], &[]);
    assert_eq!(planned(&elsewhere, &known), ["new api 5000 /"]);
}

#[test]
fn the_name_of_a_renamed_destination_is_free_and_a_bare_name_chooses_none() {
    let known = [stored(1, "default", false, "3000")];
    assert_eq!(
        planned(&setup(&["api=3000", "3003"], &[]), &known),
        ["1 api 3000 /", "new default 3003 /"]
    );
    let plan = |to: &str| setup(&[to], &[]).plan(&known).expect("a plan").remove(0);
    assert!(!plan("default").is_named && plan("default=3000").is_named);
}

#[test]
fn a_file_without_trust_means_no_destination_on_another_machine() {
    let known = [
        stored(1, "prod", true, "http://203.0.113.5"),
        stored(2, "default", false, "http://203.0.113.6"),
    ];
    for to in ["prod", "prod=3000", "4000"] {
        let mut all = setup(&[to], &[]);
        assert!(all.plan(&known).is_ok());
        all.untrusted = all.to.clone();
        let refused = all.plan(&known).expect_err("refused");
        assert!(
            matches!(refused, SetupError::Untrusted(..)),
            "{to}: {refused}"
        );
    }
}

#[test]
fn an_unknown_name_and_a_name_with_two_urls_are_refused_with_a_hint() {
    for (to, routes) in [(&["api"][..], &[][..]), (&["3000"], &["/stripe=api"])] {
        let refused = setup(to, routes).plan(&[]).expect_err("unknown");
        assert_eq!(refused.to_string(), "there is no destination `api`");
        assert!(refused.hint().contains("--to api=localhost:3000"));
    }
    let refused = setup(&["api=3000", "api=4000"], &[])
        .plan(&[])
        .expect_err("two");
    assert!(matches!(refused, SetupError::TwoUrls(..)), "{refused}");
}

#[test]
fn what_is_typed_comes_before_a_destinations_file_entry_and_that_before_the_files_general_one() {
    let attempts = |n| OptionSet {
        max_attempts: Some(n),
        ..OptionSet::default()
    };
    let mut known = stored(1, "api", true, "3000");
    known.options = OptionSet {
        timeout: Some(std::time::Duration::ZERO),
        ..attempts(1)
    };
    let mut all = setup(&["api"], &[]);
    let options = |all: &Setup| {
        all.plan(&[known.clone()]).expect("a plan")[0]
            .options
            .clone()
    };
    assert_eq!(options(&all), known.options);
    let kept = all.plan(&[known.clone()]).expect("a plan")[0].kept.clone();
    assert_eq!(kept, [OptionKey::MaxAttempts, OptionKey::Timeout]);
    all.general = attempts(2);
    assert_eq!(options(&all).max_attempts, Some(2));
    let name: DestinationName = "api".parse().expect("a name");
    all.declared = vec![Declared {
        name,
        target: None,
        options: attempts(3),
    }];
    assert_eq!(options(&all).max_attempts, Some(3));
    all.typed = attempts(4);
    assert_eq!(options(&all).max_attempts, Some(4));
    all.reset = vec![OptionKey::MaxAttempts, OptionKey::Timeout];
    assert_eq!(options(&all), attempts(4), "what is typed counts");
    all.typed = OptionSet::default();
    assert_eq!(
        options(&all),
        OptionSet::default(),
        "a reset comes before files"
    );
}
