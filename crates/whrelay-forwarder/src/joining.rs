//! An agent joins a subscription: which lease it takes, where it starts, and what is noticed on the way. It must
//! not send events.

use std::str::FromStr;
use std::sync::Arc;

use whrelay_core::bucket::{Bucket, BucketName, Seq};
use whrelay_core::history::WentBack;
use whrelay_core::limits;
use whrelay_core::subscription::{Holder, Join, Joined};
use whrelay_core::time::Timestamp;
use whrelay_proto::NEWEST_VERSION;
use whrelay_proto::frame::{Epoch, Hello, Known, Noticed, Other, RefusedCode, Welcome, Who};
use whrelay_proto::lease::Rival;
use whrelay_store::{Incident, Store};

use crate::Shared;
use crate::hub::{Incumbent, Lease, Lost};
use crate::tunnel::End;

/// What a session is of.
pub(crate) struct Subscription {
    pub(crate) bucket: Arc<Bucket>,
    pub(crate) name: String,
}

/// The subscription that an agent asks for.
pub(crate) fn subscription(shared: &Shared, hello: &Hello) -> Result<Subscription, End> {
    let unknown = || {
        let text = format!("there is no bucket `{}` here", hello.bucket.escape_debug());
        End::Refuse(RefusedCode::UnknownBucket, text)
    };
    let name = hello.bucket.parse().map_err(|_| unknown())?;
    let bucket = shared.registry.by_name(&name).ok_or_else(unknown)?;
    let name = BucketName::from_str(&hello.subscription);
    let name = name.map_err(|e| End::Refuse(RefusedCode::UnknownBucket, e.to_string()))?;
    Ok(Subscription {
        bucket,
        name: name.to_string(),
    })
}

/// Takes the lease of a subscription, or refuses where another agent has it.
pub(crate) fn lease<'hub>(
    shared: &'hub Shared,
    subscription: &Subscription,
    hello: &Hello,
) -> Result<(Lease<'hub>, Option<Incumbent>), End> {
    let key = (subscription.bucket.id, subscription.name.as_str());
    let now = shared.clock.now();
    let leased = shared
        .hub
        .lease(key, hello.who.as_ref(), hello.take_over, now);
    leased.map_err(|incumbent| {
        let (name, who) = (&subscription.name, person(incumbent.who.as_ref()));
        let since = incumbent.since;
        let text = match incumbent.rival {
            Rival::Copy => format!(
                "two agents run on copies of one data directory: the other one ({who}) has \
                 subscription `{name}` since {since}"
            ),
            Rival::Other | Rival::Itself | Rival::Successor => {
                format!("subscription `{name}` is in use by another agent ({who}) since {since}")
            }
        };
        if incumbent.rival == Rival::Copy {
            let rival = person(hello.who.as_ref());
            let text = format!("{text}; refused the one that came second ({rival})");
            note(shared, "two_copies", text);
        }
        End::Refuse(RefusedCode::InUse, text)
    })
}

/// The refusal of an agent that has lost its lease.
pub(crate) fn lost(name: &str, lost: Option<&Lost>) -> End {
    match lost {
        Some(Lost::To(who, at)) => {
            let who = person(who.as_ref());
            let text = format!("another agent ({who}) took subscription `{name}` at {at}");
            End::Refuse(RefusedCode::Replaced, text)
        }
        Some(Lost::Changed(why)) => End::Refuse(RefusedCode::Unavailable, (*why).to_owned()),
        None => End::Gone("the lease was lost"),
    }
}

/// Finds where the agent starts, and writes it down. Answers the welcome.
pub(crate) async fn welcome(
    shared: &Arc<Shared>,
    subscription: &Subscription,
    hello: Hello,
    lease: &Lease<'_>,
    incumbent: Option<Incumbent>,
) -> Result<Welcome, End> {
    let Subscription { bucket, name } = subscription;
    let store = &shared.store;
    let resume = hello.resume.as_ref();
    let join = Join {
        name: name.clone(),
        holder: hello.who.as_ref().map(holder),
        claim: resume.and_then(|resume| resume.claim(store.id())),
        is_empty: resume.is_none(),
        wants_backlog: hello.backlog,
        backlog_end: hello.backlog_end.as_ref().map(Known::entry),
        lease: lease.epoch,
        now: shared.clock.now(),
    };
    let joined = store.journal.join(bucket.id, &join).await?;
    let joined = joined.ok_or_else(|| {
        let most = limits::MAX_SUBSCRIPTIONS;
        let text = format!("bucket `{}` has {most} subscriptions already", bucket.name);
        End::Refuse(RefusedCode::TooManySubscriptions, text)
    })?;
    let waiting = store.journal.count(bucket.id, joined.after, joined.last);
    let waiting = waiting.await?;
    let mut noticed = noticed(shared, &hello, &joined, incumbent.as_ref());
    if joined.is_new {
        let skipped = store.journal.count(bucket.id, Seq(0), joined.after);
        noticed.skipped = skipped.await?;
    }
    tell(shared, subscription, &hello, (&joined, waiting), &noticed);
    let again = lease.taken >= limits::TAKEN_AGAIN;
    if let Some(other) = noticed.taken_from.as_ref().filter(|_| again) {
        let (this, other) = (person(hello.who.as_ref()), named(&other.host, &other.user));
        let text = format!(
            "agents take subscription `{name}` of bucket `{}` from each other again and again, {this} and \
             {other}: give one of them another --name",
            bucket.name
        );
        note(shared, "taken_again", text);
    }
    let oldest = match store.journal.read_after(bucket, joined.after, 1, 0).await {
        // The store is being reopened. It is only for people to read.
        Err(error) if error.is_retryable() => None,
        oldest => oldest?.events.into_iter().next(),
    };
    Ok(Welcome {
        version: NEWEST_VERSION,
        forwarder: store.id().to_owned(),
        start: joined.after.0,
        waiting,
        clock: shared.clock.now().as_micros(),
        oldest: oldest.map(|first| first.event.received_at.as_micros()),
        newest: joined.newest.map(|id| Known::new((joined.last, id))),
        epoch: Some(epoch_of(store)),
        noticed,
    })
}

/// What there is to notice about an agent that came.
fn noticed(
    shared: &Shared,
    hello: &Hello,
    joined: &Joined,
    incumbent: Option<&Incumbent>,
) -> Noticed {
    let mut noticed = Noticed {
        backlog_end_lost: joined.backlog_end_lost,
        ..Noticed::default()
    };
    match joined.went_back {
        Some(WentBack::Forwarder { from }) => noticed.forwarder_went_back = Some(from.0),
        Some(WentBack::Agent { from }) => noticed.agent_went_back = Some(from.0),
        None => {}
    }
    let store = &shared.store;
    let known = hello.resume.as_ref().filter(|r| r.forwarder == store.id());
    if let Some(known) = known
        && known
            .epoch
            .is_some_and(|known| epoch_of(store).is_earlier_than(known))
    {
        noticed.forwarder_went_back = noticed.forwarder_went_back.or(Some(known.seq));
    }
    let (Some(who), Some((before, seen_at))) = (&hello.who, &joined.before) else {
        return noticed;
    };
    let live = incumbent.is_some();
    let other = Other {
        host: printable(&before.host),
        user: printable(&before.user),
        seen_at: seen_at.map(Timestamp::as_micros),
        live,
    };
    let before_epoch = Epoch {
        opens: before.opens,
        instance: before.instance,
    };
    if before.store != who.store {
        noticed.taken_from = Some(other);
    } else if who.epoch.is_earlier_than(before_epoch) {
        let own = joined.own_before.map(|own| own.0);
        noticed.agent_went_back = noticed.agent_went_back.or(own);
        if live {
            noticed.copy_of = Some(other);
        }
    }
    noticed
}

fn epoch_of(store: &Store) -> Epoch {
    let epoch = store.journal.epoch();
    Epoch {
        opens: epoch.opens,
        instance: epoch.instance,
    }
}

/// Says in the log, and keeps, what was noticed.
fn tell(
    shared: &Arc<Shared>,
    subscription: &Subscription,
    hello: &Hello,
    (joined, waiting): (&Joined, u64),
    noticed: &Noticed,
) {
    let Subscription { bucket, name } = subscription;
    let (who, after) = (person(hello.who.as_ref()), joined.after.0);
    tracing::info!(
        bucket = %bucket.name,
        subscription = %name,
        agent = %hello.agent.escape_debug(),
        who,
        waiting,
        "agent connected"
    );
    let about = format!("subscription `{name}` of bucket `{}`", bucket.name);
    let claimed = hello
        .resume
        .as_ref()
        .filter(|resume| resume.forwarder == shared.store.id());
    if let Some(claimed) = claimed.filter(|claimed| claimed.seq > joined.last.0) {
        tracing::warn!(
            bucket = %bucket.name,
            subscription = %name,
            claimed = claimed.seq,
            last = joined.last.0,
            "an agent says that it has events that this forwarder never had"
        );
    }
    if let Some(from) = noticed.forwarder_went_back {
        let text = format!(
            "this forwarder's directory went back to an earlier copy: the agent of {about} ({who}) has \
             its events up to number {from}; both agree up to number {after}, and what follows is sent"
        );
        note(shared, "forwarder_went_back", text);
    }
    if let Some(from) = noticed.agent_went_back {
        let text = format!(
            "the directory of the agent of {about} ({who}) went back to an earlier copy: it had \
             confirmed events up to number {from}; it continues after number {after}"
        );
        note(shared, "agent_went_back", text);
    }
    if let Some(other) = &noticed.copy_of {
        let text = format!(
            "two agents run on copies of one data directory, {about}: {who} and {}",
            named(&other.host, &other.user)
        );
        note(shared, "two_copies", text);
    }
    if let Some(other) = noticed.taken_from.as_ref().filter(|other| other.live) {
        let before = named(&other.host, &other.user);
        let text = format!("{about} was taken over by {who} from {before}, which was connected");
        note(shared, "taken_over", text);
    }
}

/// Logs an incident, and keeps it while the session goes on.
fn note(shared: &Shared, kind: &'static str, text: String) {
    tracing::warn!(kind, "{text}");
    let store = shared.store.clone();
    let incident = Incident {
        at: shared.clock.now(),
        kind: kind.to_owned(),
        text,
    };
    tokio::spawn(async move {
        if let Err(error) = store.catalog.add_incident(incident).await {
            tracing::warn!(%error, "could not save an incident");
        }
    });
}

fn holder(who: &Who) -> Holder {
    let Who {
        store,
        epoch,
        follows: _,
        host,
        user,
    } = who;
    Holder {
        store: printable(store),
        opens: epoch.opens,
        instance: epoch.instance,
        host: printable(host),
        user: printable(user),
    }
}

/// An agent's words about itself, as far as they may be kept and shown.
fn printable(text: &str) -> String {
    let plain = text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ');
    plain.take(limits::MAX_LABEL).collect()
}

fn person(who: Option<&Who>) -> String {
    who.map_or_else(
        || "unnamed".to_owned(),
        |who| named(&printable(&who.host), &printable(&who.user)),
    )
}

fn named(host: &str, user: &str) -> String {
    format!("{user}@{host}")
}
