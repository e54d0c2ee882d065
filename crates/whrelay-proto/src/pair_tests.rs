//! Both sessions against each other, without sockets: the link is cut after every frame and at
//! random, and a model of both stores checks that nothing is lost, skipped or acknowledged early.

use bytes::Bytes;
use proptest::prelude::*;
use whrelay_core::limits;

use crate::frame::{Ack, EventHead, Events, Frame, Hello, Resume, Welcome, WireEvent};
use crate::{AgentAction, AgentSession, ForwarderAction, ForwarderSession, ProtocolError, codec};

const STORE: &str = "store-1";

/// What both sides have on disk.
#[derive(Default)]
struct World {
    stored: u64,
    cursor: u64,
    on_agent: Vec<u64>,
    agent_cursor: Option<u64>,
}

fn event(seq: u64) -> WireEvent {
    let head = EventHead {
        id: u128::from(seq).to_be_bytes(),
        received_at: 0,
        method: "POST".into(),
        tail: String::new(),
        query: None,
        headers: Vec::new(),
    };
    WireEvent {
        seq,
        head,
        body: Bytes::from(seq.to_be_bytes().to_vec()),
    }
}

fn over_the_wire(frame: Frame) -> Frame {
    codec::decode(codec::encode(frame)).expect("our own frame")
}

impl World {
    /// One session until it is idle or `cut` frames have been carried. Answers frames carried.
    fn session(&mut self, cut: usize, agent_dies: bool) -> usize {
        let resume = self.agent_cursor.map(|seq| Resume::at(STORE, seq));
        let (mut agent, hello) = AgentSession::begin(Hello::new("b", "s", resume));
        let mut forwarder = ForwarderSession::default();
        let (mut down, mut up) = (Vec::new(), vec![hello]);
        let mut carried = 0;
        loop {
            if let Some(room) = forwarder.room() {
                let upto = (room.after + room.events.min(3) as u64).min(self.stored);
                if upto > room.after {
                    let events = (room.after + 1..=upto).map(event).collect();
                    down.extend(forwarder.send(upto, events));
                }
            }
            let frames = (std::mem::take(&mut up), std::mem::take(&mut down));
            if frames.0.is_empty() && frames.1.is_empty() {
                return carried;
            }
            for frame in frames.0 {
                if carried == cut {
                    return carried;
                }
                carried += 1;
                down.extend(self.at_forwarder(&mut forwarder, frame));
            }
            for frame in frames.1 {
                if carried == cut {
                    return carried;
                }
                carried += 1;
                up.extend(self.at_agent(&mut agent, frame, agent_dies && carried == cut));
            }
        }
    }

    fn at_forwarder(&mut self, session: &mut ForwarderSession, frame: Frame) -> Option<Frame> {
        match session
            .on_frame(over_the_wire(frame))
            .expect("a well-behaved agent")
        {
            ForwarderAction::Subscribe(hello) => {
                let start = hello
                    .resume
                    .filter(|r| r.forwarder == STORE)
                    .map_or(self.cursor, |r| r.seq);
                // What the agent resumes from is on its disk: the hello receipts it.
                self.cursor = self.cursor.max(start);
                let waiting = self.stored - start;
                let forwarder = STORE.into();
                Some(session.start(Welcome {
                    version: 1,
                    forwarder,
                    start,
                    waiting,
                    ..Welcome::default()
                }))
            }
            ForwarderAction::Acked(upto) => {
                assert!(
                    self.on_agent.last().is_some_and(|last| *last >= upto),
                    "acked before on disk"
                );
                self.cursor = self.cursor.max(upto);
                None
            }
        }
    }

    fn at_agent(&mut self, session: &mut AgentSession, frame: Frame, dies: bool) -> Option<Frame> {
        match session
            .on_frame(over_the_wire(frame))
            .expect("a well-behaved forwarder")
        {
            AgentAction::Store { .. } if dies => None,
            AgentAction::Store { events, upto } => {
                for event in events {
                    assert_eq!(
                        event.body,
                        event.seq.to_be_bytes().to_vec(),
                        "the body changed"
                    );
                    if !self.on_agent.contains(&event.seq) {
                        self.on_agent.push(event.seq);
                    }
                }
                self.agent_cursor = Some(upto);
                session.persisted(upto)
            }
            AgentAction::Welcomed(_) | AgentAction::Refused(_) => None,
        }
    }

    fn settled(&mut self) {
        self.session(usize::MAX, false);
        assert_eq!(
            self.on_agent,
            (1..=self.stored).collect::<Vec<_>>(),
            "lost, doubled or reordered"
        );
        assert_eq!(self.cursor, self.stored, "an ack is missing");
    }
}

#[test]
fn the_link_cut_after_each_frame_loses_nothing() {
    for agent_dies in [false, true] {
        for cut in 0..40 {
            let mut world = World {
                stored: 20,
                ..World::default()
            };
            world.session(cut, agent_dies);
            world.settled();
        }
    }
}

proptest! {
    #[test]
    fn any_number_of_cuts_loses_nothing(
        steps in prop::collection::vec((0u64..9, 0usize..30, any::<bool>(), any::<bool>()), 1..30)
    ) {
        let mut world = World::default();
        for (arrivals, cut, agent_dies, agent_forgets) in steps {
            world.stored += arrivals;
            world.session(cut, agent_dies);
            if agent_forgets {
                world.agent_cursor = world.agent_cursor.filter(|seq| *seq <= world.cursor);
            }
        }
        world.settled();
    }

    #[test]
    fn no_frame_however_absurd_panics_or_forges_an_ack(acks in prop::collection::vec(any::<u64>(), 1..20)) {
        let mut forwarder = live(5);
        forwarder.send(9, (6..=9).map(event).collect());
        let mut acked = 5;
        for upto in acks {
            match forwarder.on_frame(Frame::Ack(Ack { upto })) {
                Ok(ForwarderAction::Acked(upto)) => {
                    prop_assert!(upto > acked && upto <= 9);
                    acked = upto;
                }
                Ok(ForwarderAction::Subscribe(_)) => prop_assert!(false, "an ack is no hello"),
                Err(error) => prop_assert!(error.is_retryable()),
            }
        }
    }
}

fn live(start: u64) -> ForwarderSession {
    let (_, hello) = AgentSession::begin(Hello::new("b", "s", None));
    let mut forwarder = ForwarderSession::default();
    forwarder.on_frame(hello).expect("a hello");
    let welcome = Welcome {
        version: 1,
        forwarder: STORE.into(),
        start,
        ..Welcome::default()
    };
    forwarder.start(welcome);
    forwarder
}

fn live_agent(start: u64) -> AgentSession {
    let (mut agent, _) = AgentSession::begin(Hello::new("b", "s", None));
    let welcome = Welcome {
        version: 1,
        forwarder: STORE.into(),
        start,
        ..Welcome::default()
    };
    agent.on_frame(Frame::Welcome(welcome)).expect("a welcome");
    agent
}

#[test]
fn a_gap_or_disorder_is_noticed() {
    let batch = |after, upto, seqs: &[u64]| {
        Frame::Events(Events {
            after,
            upto,
            events: seqs.iter().copied().map(event).collect(),
        })
    };
    for (bad, good) in [
        (batch(6, 7, &[7]), false),
        (batch(5, 7, &[7, 6]), false),
        (batch(5, 7, &[6, 6]), false),
        (batch(5, 6, &[7]), false),
        (batch(5, 5, &[]), false),
        (batch(5, 9, &[6, 8]), true),
        (batch(5, 9, &[]), true),
    ] {
        assert_eq!(live_agent(5).on_frame(bad.clone()).is_ok(), good, "{bad:?}");
    }
}

#[test]
fn nothing_is_sent_beyond_the_credit() {
    let mut forwarder = live(0);
    let mut sent = 0;
    while let Some(room) = forwarder.room() {
        sent = room.after + room.events as u64;
        forwarder.send(sent, (room.after + 1..=sent).map(event).collect());
    }
    assert_eq!(sent, u64::from(limits::WINDOW_EVENTS));
    forwarder
        .on_frame(Frame::Ack(Ack { upto: sent }))
        .expect("a valid ack");
    assert!(forwarder.room().is_some(), "an ack gives credit back");
}

#[test]
fn heads_count_like_bodies_and_a_larger_one_than_an_input_takes_is_refused() {
    let with_query = |seq, length| {
        let mut event = event(seq);
        event.head.query = Some("q".repeat(length));
        event
    };
    let (mut forwarder, mut agent) = (live(0), live_agent(0));
    let mut sent = 0;
    while forwarder.room().is_some() {
        sent += 1;
        let event = with_query(sent, limits::MAX_HEAD - 64);
        let frame = forwarder.send(sent, vec![event]).expect("a session");
        agent.on_frame(frame).expect("within the window");
    }
    let least = limits::WINDOW_BYTES / limits::MAX_HEAD as u64;
    assert!((least..least + 2).contains(&sent), "{sent} events");

    let batch = |events: Vec<WireEvent>| {
        Frame::Events(Events {
            after: 0,
            upto: events.len() as u64,
            events,
        })
    };
    let most = 2 * least + (limits::LARGEST_MAX_BODY / limits::MAX_HEAD) as u64;
    let many = (1..=most).map(|seq| with_query(seq, limits::MAX_HEAD - 64));
    let refused = live_agent(0).on_frame(batch(many.collect()));
    assert!(
        matches!(refused, Err(ProtocolError::OverWindow)),
        "{refused:?}"
    );
    let refused = live_agent(0).on_frame(batch(vec![with_query(1, limits::MAX_HEAD)]));
    assert!(
        matches!(refused, Err(ProtocolError::Malformed(_))),
        "{refused:?}"
    );
}

#[test]
fn versions_without_overlap_are_refused_for_good() {
    let (_, hello) = AgentSession::begin(Hello::new("b", "s", None));
    let Frame::Hello(mut hello) = hello else {
        unreachable!("begin answers a hello")
    };
    (hello.oldest, hello.newest) = (2, 9);
    let refused = ForwarderSession::default().on_frame(Frame::Hello(hello));
    assert!(matches!(&refused, Err(e @ ProtocolError::Version { .. }) if !e.is_retryable()));
}
