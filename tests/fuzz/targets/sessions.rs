//! A peer may send any frames in any order: a session answers with an action or an error, and an agent
//! never acknowledges more than it was told is on disk.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use whrelay_proto::frame::{Frame, Hello, Welcome};
use whrelay_proto::{AgentAction, AgentSession, ForwarderAction, ForwarderSession, codec};

fuzz_target!(|messages: Vec<Vec<u8>>| {
    let (mut agent, _) = AgentSession::begin(Hello::new("shop", "default", None));
    let mut forwarder = ForwarderSession::default();
    for message in messages {
        let Ok(frame) = codec::decode(Bytes::from(message)) else {
            continue;
        };
        if let Ok(AgentAction::Store { upto, .. }) = agent.on_frame(frame.clone())
            && let Some(Frame::Ack(ack)) = agent.persisted(upto)
        {
            assert_eq!(ack.upto, upto);
        }
        if let Ok(ForwarderAction::Subscribe(_)) = forwarder.on_frame(frame) {
            let welcome = Welcome {
                version: 1,
                forwarder: String::new(),
                start: 0,
                waiting: 0,
                ..Welcome::default()
            };
            forwarder.start(welcome);
        }
        if let Some(room) = forwarder.room() {
            let sent = forwarder.send(room.after + 1, Vec::new());
            assert!(sent.is_some());
        }
    }
});
