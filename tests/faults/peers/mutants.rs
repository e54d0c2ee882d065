//! Bytes that a seed makes: pure chance, and good frames bent by it. It must not expect anything of
//! them but that the tunnel they came over ends, and nothing else does.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::io::AsyncWriteExt;
use whrelay_core::id::EventId;
use whrelay_core::limits;
use whrelay_proto::codec;
use whrelay_proto::frame::{
    Ack, EventHead, Events, Frame, Refused, RefusedCode, Resume, Welcome, WireEvent, WireHeader,
};

use super::SLACK;
use super::frames::hello;
use super::socket::{BINARY, Gate, TEXT, masked, said};
use crate::chance::Chance;

/// The bucket that mutants may have: their subscriptions fill it.
pub(crate) const MUTANTS: &str = "mutants";
const TOGETHER: usize = 16;
const ENDS_WITHIN: Duration = limits::HELLO_TIMEOUT.saturating_add(SLACK);
/// Longest that is pure chance.
const LONGEST: usize = 300;

/// Tries so many seeds, a frame each. Answers with what went wrong.
pub(crate) async fn attack(gate: &Gate, seeds: u64) -> Vec<String> {
    let tries = (0..seeds).map(|seed| run(gate, seed));
    let found: Vec<_> = stream::iter(tries)
        .buffer_unordered(TOGETHER)
        .collect()
        .await;
    found.into_iter().flatten().collect()
}

async fn run(gate: &Gate, seed: u64) -> Option<String> {
    let mut chance = Chance::new(seed);
    let ended = play(gate, seed, &mut chance).await;
    ended
        .err()
        .map(|why| format!("mutants, seed {seed}: {why}"))
}

async fn play(gate: &Gate, seed: u64, chance: &mut Chance) -> Result<(), String> {
    let mut socket = gate.enter().await?;
    if chance.permille(700) {
        let hello = hello(MUTANTS, &format!("mutant-{seed}"), None);
        socket.send(&said(Frame::Hello(hello))).await;
    }
    socket.send(&bent(chance)).await;
    // Whatever that was, nobody goes on after this: the bytes may have announced more of
    // themselves.
    socket.send(&masked(TEXT, b"the end")).await;
    let _ = socket.stream.shutdown().await;
    let cut = socket.until_cut(ENDS_WITHIN).await;
    cut.then_some(())
        .ok_or_else(|| format!("still open, after {:?}", socket.heard))
}

/// A websocket message, or what is left of one.
fn bent(chance: &mut Chance) -> Vec<u8> {
    if chance.permille(150) {
        let noise = noise(chance);
        return if chance.permille(500) {
            noise
        } else {
            masked(BINARY, &noise)
        };
    }
    let frame = good(chance);
    let mut bytes = codec::encode(frame).to_vec();
    if chance.permille(250) {
        let mut bytes = masked(BINARY, &bytes);
        bend(chance, &mut bytes);
        return bytes;
    }
    bend(chance, &mut bytes);
    masked(BINARY, &bytes)
}

fn noise(chance: &mut Chance) -> Vec<u8> {
    (0..chance.index(LONGEST))
        .map(|_| chance.bits() as u8)
        .collect()
}

fn bend(chance: &mut Chance, bytes: &mut Vec<u8>) {
    for _ in 0..=chance.below(4) {
        let at = chance.index(bytes.len());
        match chance.below(6) {
            0 => bytes[at] ^= 1 << chance.below(8),
            1 => bytes[at] = *chance.pick(&[0, 1, 0x7f, 0x80, 0xc0, 0xdf, 0xff]),
            2 => bytes.truncate(at + 1),
            3 => bytes.insert(at, chance.bits() as u8),
            4 => drop(bytes.splice(at..at, noise(chance))),
            _ => {
                let again = bytes[at..].to_vec();
                bytes.extend(again);
            }
        }
    }
}

fn good(chance: &mut Chance) -> Frame {
    match chance.below(5) {
        0 => {
            let resume = Resume::at("another", chance.bits());
            Frame::Hello(hello(MUTANTS, "bent", Some(resume)))
        }
        1 => Frame::Ack(Ack {
            upto: chance.below(10),
        }),
        2 => Frame::Welcome(Welcome {
            version: 1,
            forwarder: "x".into(),
            start: 0,
            waiting: 0,
            ..Welcome::default()
        }),
        3 => Frame::Refused(Refused {
            code: RefusedCode::Protocol,
            text: "x".into(),
        }),
        _ => Frame::Events(Events {
            after: 0,
            upto: 2,
            events: vec![event(1), event(2)],
        }),
    }
}

/// A small event at a place.
pub(crate) fn event(seq: u64) -> WireEvent {
    let id = EventId::from_parts(
        whrelay_core::time::Timestamp::from_micros(1_000_000),
        seq.into(),
    );
    let headers = vec![WireHeader("content-type".into(), b"text/plain".to_vec())];
    let head = EventHead {
        id: id.to_bytes(),
        received_at: 1_000_000,
        method: "POST".into(),
        tail: String::new(),
        query: None,
        headers,
    };
    WireEvent {
        seq,
        head,
        body: seq.to_string().into(),
    }
}
