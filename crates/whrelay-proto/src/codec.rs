//! Frames as bytes: `type:u8 | length of head:u32, big-endian | head: MessagePack map | bodies`.
//!
//! Bodies follow the head raw, one after another, in the lengths the head gives. Unknown fields of
//! a head are skipped. It must not know in which order frames make sense.

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::ProtocolError;
use crate::frame::{EventHead, Events, Frame, WireEvent};

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const REFUSED: u8 = 3;
const EVENTS: u8 = 4;
const ACK: u8 = 5;

#[derive(Serialize, Deserialize)]
struct EventsHead {
    after: u64,
    upto: u64,
    events: Vec<EventEntry>,
}

#[derive(Serialize, Deserialize)]
struct EventEntry {
    seq: u64,
    head: EventHead,
    body_len: u64,
}

/// The bytes of a frame.
pub fn encode(frame: Frame) -> Bytes {
    match frame {
        Frame::Hello(hello) => pack(HELLO, &hello, &[]),
        Frame::Welcome(welcome) => pack(WELCOME, &welcome, &[]),
        Frame::Refused(refused) => pack(REFUSED, &refused, &[]),
        Frame::Ack(ack) => pack(ACK, &ack, &[]),
        Frame::Events(Events {
            after,
            upto,
            events,
        }) => {
            let mut bodies = Vec::with_capacity(events.len());
            let entry = |WireEvent { seq, head, body }: WireEvent| {
                let body_len = body.len() as u64;
                bodies.push(body);
                EventEntry {
                    seq,
                    head,
                    body_len,
                }
            };
            let events = events.into_iter().map(entry).collect();
            pack(
                EVENTS,
                &EventsHead {
                    after,
                    upto,
                    events,
                },
                &bodies,
            )
        }
    }
}

/// The frame of the bytes. Bodies are slices of `message`, not copies.
pub fn decode(message: Bytes) -> Result<Frame, ProtocolError> {
    let malformed = |what: &str| ProtocolError::Malformed(what.to_owned());
    let (kind, rest) = message.split_first().ok_or_else(|| malformed("empty"))?;
    let (length, rest) = rest
        .split_first_chunk()
        .ok_or_else(|| malformed("no head length"))?;
    let length = u32::from_be_bytes(*length) as usize;
    let head = rest
        .get(..length)
        .ok_or_else(|| malformed("shorter than its head"))?;
    let body_start = message.len() - rest.len() + length;
    if *kind == EVENTS {
        return unpack_events(read(head)?, message.slice(body_start..));
    }
    if body_start != message.len() {
        return Err(malformed("bytes after the head"));
    }
    match *kind {
        HELLO => Ok(Frame::Hello(read(head)?)),
        WELCOME => Ok(Frame::Welcome(read(head)?)),
        REFUSED => Ok(Frame::Refused(read(head)?)),
        ACK => Ok(Frame::Ack(read(head)?)),
        other => Err(malformed(&format!("unknown type {other}"))),
    }
}

fn pack<T: Serialize>(kind: u8, head: &T, bodies: &[Bytes]) -> Bytes {
    let size = bodies.iter().map(Bytes::len).sum::<usize>();
    let mut out = BytesMut::with_capacity(size + 512).writer();
    out.get_mut().put_u8(kind);
    out.get_mut().put_u32(0);
    // A serialiser over memory fails only for types MessagePack cannot name; ours it can, and a
    // frame cut short by one it cannot is refused by the other side.
    let written = rmp_serde::encode::write_named(&mut out, head);
    debug_assert!(written.is_ok(), "a head that MessagePack cannot hold");
    let mut out = out.into_inner();
    let length = u32::try_from(out.len() - 5).unwrap_or(u32::MAX);
    out[1..5].copy_from_slice(&length.to_be_bytes());
    bodies.iter().for_each(|body| out.extend_from_slice(body));
    out.freeze()
}

fn read<T: DeserializeOwned>(head: &[u8]) -> Result<T, ProtocolError> {
    rmp_serde::from_slice(head).map_err(|e| ProtocolError::Malformed(e.to_string()))
}

fn unpack_events(head: EventsHead, mut bodies: Bytes) -> Result<Frame, ProtocolError> {
    let mut events = Vec::with_capacity(head.events.len());
    for EventEntry {
        seq,
        head,
        body_len,
    } in head.events
    {
        let length = usize::try_from(body_len)
            .ok()
            .filter(|length| *length <= bodies.len());
        let length = length.ok_or_else(|| ProtocolError::Malformed("body cut short".into()))?;
        events.push(WireEvent {
            seq,
            head,
            body: bodies.split_to(length),
        });
    }
    if !bodies.is_empty() {
        return Err(ProtocolError::Malformed("bytes after the last body".into()));
    }
    Ok(Frame::Events(Events {
        after: head.after,
        upto: head.upto,
        events,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{
        Ack, Epoch, Hello, Known, Noticed, Other, Refused, RefusedCode, Resume, Welcome, Who,
        WireHeader,
    };
    use proptest::prelude::*;

    prop_compose! {
        fn events()(
            seq: u64, id: [u8; 16], received_at: i64, method in "[A-Z]{1,8}", tail in "(/[^/]{0,5}){0,3}",
            query in prop::option::of(".{0,9}"),
            headers in prop::collection::vec(("[a-z-]{1,9}", any::<Vec<u8>>()), 0..5),
            body in prop::collection::vec(any::<u8>(), 0..300),
        ) -> WireEvent {
            let headers = headers.into_iter().map(|(k, v)| WireHeader(k, v)).collect();
            let head = EventHead { id, received_at, method, tail, query, headers };
            WireEvent { seq, head, body: body.into() }
        }
    }

    fn hellos() -> impl Strategy<Value = Frame> {
        (
            any::<[u16; 2]>(),
            ".{0,9}",
            any::<Option<u64>>(),
            any::<u32>(),
        )
            .prop_map(|([oldest, newest], text, seq, window_events)| {
                let epoch = seq.map(|opens| Epoch { opens, instance: 7 });
                let resume = seq.map(|seq| Resume {
                    locator: vec![Known(seq, [7; 16])],
                    epoch,
                    whole_after: seq,
                    ..Resume::at(&text, seq)
                });
                let who = epoch.map(|epoch| Who {
                    store: text.clone(),
                    epoch,
                    follows: seq,
                    host: text.clone(),
                    user: text.clone(),
                });
                let (bucket, subscription, agent) = (text.clone(), text.clone(), text);
                let window_bytes = u64::from(window_events) << 9;
                Frame::Hello(Hello {
                    oldest,
                    newest,
                    bucket,
                    subscription,
                    resume,
                    window_events,
                    window_bytes,
                    agent,
                    who,
                    take_over: oldest > newest,
                    backlog: (oldest != 7).then_some(newest != 7),
                    backlog_end: seq.map(|seq| Known(seq, [8; 16])),
                })
            })
    }

    fn frames() -> impl Strategy<Value = Frame> {
        let welcome = (any::<u16>(), ".{0,9}", any::<[u64; 2]>(), any::<i64>()).prop_map(
            |(version, forwarder, [start, waiting], clock)| {
                Frame::Welcome(Welcome {
                    version,
                    forwarder,
                    start,
                    waiting,
                    clock,
                    oldest: (waiting > 0).then_some(clock),
                    newest: (waiting > 0).then_some(Known(waiting, [9; 16])),
                    epoch: Some(Epoch {
                        opens: start,
                        instance: waiting,
                    }),
                    noticed: Noticed {
                        agent_went_back: Some(start),
                        skipped: waiting,
                        taken_from: Some(Other::default()),
                        ..Noticed::default()
                    },
                })
            },
        );
        let refused = ".{0,9}".prop_map(|text| {
            Frame::Refused(Refused {
                code: RefusedCode::Replaced,
                text,
            })
        });
        let batch = (any::<[u64; 2]>(), prop::collection::vec(events(), 0..4)).prop_map(
            |([after, upto], events)| {
                Frame::Events(Events {
                    after,
                    upto,
                    events,
                })
            },
        );
        prop_oneof![
            hellos(),
            welcome,
            refused,
            batch,
            any::<u64>().prop_map(|upto| Frame::Ack(Ack { upto }))
        ]
    }

    proptest! {
        #[test]
        fn frames_round_trip(frame in frames()) {
            prop_assert_eq!(decode(encode(frame.clone())).ok(), Some(frame));
        }

        #[test]
        fn a_frame_cut_anywhere_is_refused(frame in frames(), at: prop::sample::Index) {
            let bytes = encode(frame);
            prop_assert!(decode(bytes.slice(..at.index(bytes.len()))).is_err());
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>, kind in 0u8..7) {
            let _ = decode(Bytes::from(bytes.clone()));
            let framed = [&[kind][..], &(bytes.len() as u32).to_be_bytes(), &bytes].concat();
            let _ = decode(Bytes::from(framed));
        }

        #[test]
        fn a_flipped_byte_never_panics(frame in frames(), at: prop::sample::Index, flip in 1u8..) {
            let mut bytes = encode(frame).to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let _ = decode(Bytes::from(bytes));
        }
    }

    #[test]
    fn fields_and_codes_of_a_later_version_are_skipped() {
        #[derive(Serialize)]
        struct Later {
            upto: u64,
            colour: &'static str,
        }
        let ack = decode(pack(
            ACK,
            &Later {
                upto: 3,
                colour: "red",
            },
            &[],
        ));
        assert_eq!(ack.ok(), Some(Frame::Ack(Ack { upto: 3 })));
        #[derive(Serialize)]
        struct LaterRefused {
            code: &'static str,
            text: &'static str,
        }
        let refused = decode(pack(
            REFUSED,
            &LaterRefused {
                code: "full_moon",
                text: "",
            },
            &[],
        ));
        let unknown = Refused {
            code: RefusedCode::Unknown,
            text: String::new(),
        };
        assert_eq!(refused.ok(), Some(Frame::Refused(unknown)));
    }
}
