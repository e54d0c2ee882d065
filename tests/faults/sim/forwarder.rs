//! The forwarder's steps: as its real shell takes them, one at a time.

use bytes::Bytes;
use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::event::{Event, Header, Request};
use whrelay_core::history::WentBack;
use whrelay_core::id::EventId;
use whrelay_core::subscription::{Holder, Join, Joined, LeaseEpoch};
use whrelay_proto::frame::{
    Frame, Hello, Known, Noticed, Refused, RefusedCode, Welcome, Who, WireEvent,
};
use whrelay_proto::lease::Rival;
use whrelay_proto::{ForwarderAction, NEWEST_VERSION, codec};
use whrelay_store::NewEvent;

use super::ledger::{Verdicts, hold};
use super::node::{Desk, ForwarderProcess, ProcessClock, Purpose};
use super::planted::Bug;
use super::retention::alone;
use super::seen::Point;
use super::vault::{Done, Vault, Write};
use super::world::World;

/// The subscription that a write makes known.
fn subscription(write: &Write) -> Option<(BucketId, String)> {
    if let Write::Ack {
        bucket,
        subscription,
        ..
    } = write
    {
        return Some((*bucket, subscription.clone()));
    }
    let Write::Join { bucket, join } = write else {
        return None;
    };
    Some((*bucket, join.name.clone()))
}

impl<V: Vault> World<V> {
    pub(crate) fn start_forwarder(&mut self) -> Verdicts {
        self.forwarder.vault.reopen();
        self.forwarder.instance = self.chance.bits();
        let clock = ProcessClock::start(&self.forwarder.machine, self.time);
        self.forwarder.process = Some(ForwarderProcess {
            clock,
            desk: Desk::default(),
            leases: Vec::new(),
        });
        Ok(())
    }

    /// A sender posts. It hears something only after the commit.
    pub(crate) fn post(&mut self, bucket: usize) -> Verdicts {
        let request = self.draw_request();
        let random = u128::from(self.chance.bits());
        let Some(process) = &mut self.forwarder.process else {
            return Ok(());
        };
        self.posts_left -= 1;
        let received_at = process.clock.read(&self.forwarder.machine, self.time).now;
        let event = Event {
            id: EventId::from_parts(received_at, random),
            bucket: self.forwarder.buckets[bucket].name.clone(),
            received_at,
            request,
            removed_body: None,
        };
        let new = NewEvent {
            event: event.clone(),
            deliveries: Vec::new(),
        };
        let write = Write::Append {
            bucket: self.forwarder.buckets[bucket].id,
            events: vec![new],
            mark: None,
        };
        let event = Box::new(event);
        if self.planted == Some(Bug::AnswerBeforeFsync) {
            let (vault, buckets) = (&self.forwarder.vault, &self.forwarder.buckets);
            // The sender has its answer; only a crash shows that it was a lie.
            let _ = self.ledger.accept(vault, buckets, bucket, &event);
            self.ledger.believe(bucket, &event);
        }
        let purpose = Purpose::Post { bucket, event };
        process.desk.asked.push_back((write, purpose));
        Ok(())
    }

    fn draw_request(&mut self) -> Request {
        let header = |name: &str, value: &[u8]| Header {
            name: name.to_owned(),
            value: Bytes::copy_from_slice(value),
        };
        let length = self.chance.index(96);
        let body: Vec<u8> = (0..length).map(|_| self.chance.bits() as u8).collect();
        Request {
            method: "POST".to_owned(),
            tail: format!("/{}", self.chance.below(9)),
            query: self.chance.permille(300).then(|| "x=1&x=%2F".to_owned()),
            headers: vec![header("x-twice", b"one"), header("x-twice", b"\xfftwo")],
            body: body.into(),
        }
    }

    pub(crate) fn commit_forwarder(&mut self) -> Verdicts {
        let all_up = self.agents.iter().all(|node| node.process.is_some());
        let Some(process) = &mut self.forwarder.process else {
            return Ok(());
        };
        let removes =
            |(write, _): &(Write, Purpose)| matches!(write, Write::RemoveReceipted { .. });
        if process.desk.asked.front().is_some_and(removes) && !all_up {
            // A dead node's disk is nobody's to read, and without it nobody can judge this.
            process.desk.asked.pop_front();
            return Ok(());
        }
        let group = 1 + self.chance.index(process.desk.asked.len());
        let group = alone(process.desk.asked.iter().map(|(write, _)| write), group);
        let (writes, purposes): (Vec<_>, Vec<_>) = process.desk.asked.drain(..group).unzip();
        let subscribed: Vec<_> = writes.iter().filter_map(subscription).collect();
        let before = writes.first().map(|write| self.may_drop(write));
        let Ok(done) = self.forwarder.vault.commit(writes) else {
            self.crash_forwarder();
            return Ok(());
        };
        self.subscribed.extend(subscribed);
        if let Some(process) = &mut self.forwarder.process {
            process.desk.answered.extend(done.into_iter().zip(purposes));
        }
        self.dropped(&before.unwrap_or_default())
    }

    pub(crate) fn settle_forwarder(&mut self) -> Verdicts {
        let Some(process) = &mut self.forwarder.process else {
            return Ok(());
        };
        let Some((done, purpose)) = process.desk.answered.pop_front() else {
            return Ok(());
        };
        if let (Purpose::Join { link }, Done::Joined(Some(joined))) = (&purpose, &done) {
            self.welcome(*link, joined);
        }
        if let Purpose::Post { bucket, event } = purpose {
            if self.planted != Some(Bug::LostWakeUp) {
                self.wake(bucket);
            }
            let (vault, buckets) = (&self.forwarder.vault, &self.forwarder.buckets);
            self.ledger.accept(vault, buckets, bucket, &event)?;
        }
        Ok(())
    }

    fn wake(&mut self, bucket: usize) {
        for far in self.links.iter_mut().filter_map(|link| link.far.as_mut()) {
            if far.place.as_ref().is_some_and(|(mine, _)| *mine == bucket) {
                far.wake = true;
            }
        }
    }

    pub(crate) fn frame_up(&mut self, link: usize) -> Verdicts {
        let Some(bytes) = self.links[link].up.pop_front() else {
            return Ok(());
        };
        let Some(far) = &mut self.links[link].far else {
            return Ok(());
        };
        let action = codec::decode(bytes).and_then(|frame| far.session.on_frame(frame));
        match action {
            Ok(ForwarderAction::Subscribe(hello)) => {
                self.seen.note(Point::FrameHello);
                self.subscribe(link, *hello)
            }
            Ok(ForwarderAction::Acked(upto)) => {
                self.seen.note(Point::FrameAck);
                while far.sent.front().is_some_and(|seq| *seq <= upto) {
                    far.sent.pop_front();
                }
                far.wake = true;
                if let Some((bucket, subscription)) = far.place.clone() {
                    self.record_ack(link, (bucket, subscription), upto);
                }
                Ok(())
            }
            Err(_) => {
                self.seen.note(Point::BreachOther);
                self.refuse(link, RefusedCode::Protocol);
                Ok(())
            }
        }
    }

    fn record_ack(&mut self, link: usize, (bucket, subscription): (usize, String), upto: u64) {
        let write = Write::Ack {
            bucket: self.forwarder.buckets[bucket].id,
            subscription,
            upto: Seq(upto),
            lease: LeaseEpoch(self.links[link].id),
        };
        if let Some(process) = &mut self.forwarder.process {
            process.desk.asked.push_back((write, Purpose::Ack));
        }
    }

    /// Takes the lease, and asks the store where the agent starts.
    fn subscribe(&mut self, link: usize, hello: Hello) -> Verdicts {
        let buckets = &self.forwarder.buckets;
        let named = |b: &whrelay_core::bucket::Bucket| b.name.as_str() == hello.bucket;
        let Some(bucket) = buckets.iter().position(named) else {
            self.refuse(link, RefusedCode::UnknownBucket);
            return Ok(());
        };
        let id = buckets[bucket].id;
        if !self.take_lease(link, bucket, &hello) {
            self.seen.note(Point::InUse);
            self.refuse(link, RefusedCode::InUse);
            return Ok(());
        }
        let Some(far) = &mut self.links[link].far else {
            return Ok(());
        };
        far.place = Some((bucket, hello.subscription.clone()));
        far.window = hello.window_events as usize;
        far.who.clone_from(&hello.who);
        let Some(process) = &mut self.forwarder.process else {
            return Ok(());
        };
        let name = self.forwarder.vault.name();
        let holder = |who: Who| Holder {
            store: who.store,
            opens: who.epoch.opens,
            instance: who.epoch.instance,
            host: who.host,
            user: who.user,
        };
        let join = Join {
            name: hello.subscription,
            holder: hello.who.map(holder),
            is_empty: hello.resume.is_none(),
            claim: hello.resume.and_then(|resume| resume.claim(&name)),
            wants_backlog: hello.backlog,
            backlog_end: hello.backlog_end.as_ref().map(Known::entry),
            lease: LeaseEpoch(self.links[link].id),
            now: process.clock.read(&self.forwarder.machine, self.time).now,
        };
        let write = Write::Join {
            bucket: id,
            join: Box::new(join),
        };
        let link = self.links[link].id;
        let purpose = Purpose::Join { link };
        process.desk.asked.push_back((write, purpose));
        self.one_lease()
    }

    /// Welcomes the agent on a link, if it is still there.
    fn welcome(&mut self, link: u64, joined: &Joined) {
        let Some(link) = self.links.iter().position(|l| l.id == link) else {
            return;
        };
        let vault = &self.forwarder.vault;
        let welcome = Welcome {
            version: NEWEST_VERSION,
            forwarder: vault.name(),
            start: joined.after.0,
            waiting: joined.last.0 - joined.after.0,
            clock: self.forwarder.machine.wall(self.time).as_micros(),
            newest: joined.newest.map(|id| Known::new((joined.last, id))),
            noticed: Noticed {
                backlog_end_lost: joined.backlog_end_lost,
                ..Noticed::default()
            },
            ..Welcome::default()
        };
        match joined.went_back {
            Some(WentBack::Forwarder { .. }) => self.seen.note(Point::ForwarderWentBack),
            Some(WentBack::Agent { .. }) => {
                self.seen.note(Point::AgentWentBack);
            }
            None => {}
        }
        self.links[link].there = joined.last;
        let Some(far) = &mut self.links[link].far else {
            return;
        };
        let frame = far.session.start(welcome);
        far.wake = true;
        self.links[link].down.push_back(codec::encode(frame));
    }

    /// Takes the lease of a subscription, unless an agent that is heard of has it and may keep it.
    fn take_lease(&mut self, link: usize, bucket: usize, hello: &Hello) -> bool {
        let (id, subscription) = (self.links[link].id, &hello.subscription);
        let mine =
            |lease: &&mut (usize, String, u64)| (lease.0, &lease.1) == (bucket, subscription);
        let Some(process) = &mut self.forwarder.process else {
            return false;
        };
        let lease = process.leases.iter_mut().find(mine);
        let holder = lease.as_ref().map(|lease| lease.2);
        let older = self.links.iter().position(|link| Some(link.id) == holder);
        let older = older.filter(|older| self.links[*older].far.is_some());
        if let Some(older) = older {
            let far = self.links[older].far.as_ref();
            let rival = Rival::of(hello.who.as_ref(), far.and_then(|far| far.who.as_ref()));
            let is_heard = self.links[older].cut.is_none();
            if is_heard && !rival.replaces(hello.take_over) {
                return false;
            }
        }
        match lease {
            Some(lease) => lease.2 = id,
            None => process.leases.push((bucket, subscription.clone(), id)),
        }
        if let Some(older) = older
            && self.planted != Some(Bug::OldSessionKeepsLease)
        {
            self.refuse(older, RefusedCode::Replaced);
        }
        true
    }

    /// I15: one live session per subscription.
    fn one_lease(&self) -> Verdicts {
        let mut live: Vec<_> = self
            .links
            .iter()
            .filter_map(|link| link.far.as_ref()?.place.as_ref())
            .collect();
        live.sort();
        let double = live.windows(2).find(|pair| pair[0] == pair[1]);
        hold(double.is_none(), "I15", || {
            format!("two live sessions of {double:?}")
        })
    }

    fn refuse(&mut self, link: usize, code: RefusedCode) {
        let frame = Frame::Refused(Refused {
            code,
            text: String::new(),
        });
        let link = &mut self.links[link];
        if link.far.take().is_some() && link.cut.is_none() {
            link.down.push_back(codec::encode(frame));
        }
    }

    /// Sends one batch, if there is credit and something to send.
    pub(crate) fn push(&mut self, link: usize) -> Verdicts {
        let Some(far) = &mut self.links[link].far else {
            return Ok(());
        };
        let Some((bucket, subscription)) = far.place.clone() else {
            return Ok(());
        };
        far.wake = false;
        let Some(mut room) = far.session.room() else {
            self.seen.note(Point::CreditUsedUp);
            return Ok(());
        };
        if self.planted == Some(Bug::CreditIgnored) {
            room.events = 100;
        }
        let mut from = &self.forwarder.buckets[bucket];
        if self.planted == Some(Bug::WrongTenant) {
            from = &self.forwarder.buckets[0];
        }
        let batch = self
            .forwarder
            .vault
            .read_after(from, Seq(room.after), room.events, room.bytes);
        if batch.upto.0 == room.after {
            return Ok(());
        }
        far.wake = true;
        let wire = batch
            .events
            .into_iter()
            .map(|s| WireEvent::new(s.seq.0, s.event));
        let events: Vec<_> = wire.collect();
        far.sent.extend(events.iter().map(|event| event.seq));
        let (flying, window) = (far.sent.len(), far.window.max(1));
        hold(flying <= window, "I13", || {
            format!("{flying} events in flight, {window} allowed")
        })?;
        if let Some(frame) = far.session.send(batch.upto.0, events) {
            self.links[link].down.push_back(codec::encode(frame));
        }
        if self.planted == Some(Bug::ForwarderForgetsOnSend) {
            self.record_ack(link, (bucket, subscription), batch.upto.0);
        }
        Ok(())
    }

    pub(crate) fn far_notices(&mut self, link: usize) -> Verdicts {
        self.seen.note(Point::SilenceNoticed);
        self.links[link].far = None;
        Ok(())
    }

    pub(crate) fn crash_forwarder(&mut self) {
        let Some(process) = self.forwarder.process.take() else {
            return;
        };
        self.seen.crashes += 1;
        let desk = &process.desk;
        let posts = |purpose: &Purpose| matches!(purpose, Purpose::Post { .. });
        let mut idle = true;
        let cases = [
            (
                desk.asked.iter().any(|(_, p)| posts(p)),
                Point::CrashWithPostUnwritten,
            ),
            (
                desk.answered.iter().any(|(_, p)| posts(p)),
                Point::CrashWithPostUnanswered,
            ),
            (
                desk.asked.iter().any(|(_, p)| !posts(p)),
                Point::CrashWithAckUnwritten,
            ),
            (
                self.links
                    .iter()
                    .any(|l| l.far.as_ref().is_some_and(|far| !far.sent.is_empty())),
                Point::CrashWithEventsUnacked,
            ),
        ];
        for (_, point) in cases.into_iter().filter(|(is, _)| *is) {
            self.seen.note(point);
            idle = false;
        }
        if idle {
            self.seen.note(Point::CrashWhileIdle);
        }
        for link in 0..self.links.len() {
            self.links[link].far = None;
            self.cut_link(link);
        }
    }
}
