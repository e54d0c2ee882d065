//! What happens to the network between an agent and its forwarder. It must not know how that is judged.

use std::time::Duration;

use super::hosts::Host::{self, Cloud, Laptop, Router};
use super::hosts::{CLOUD, CLOUD_V6};

/// Whether the tunnel must be found dead.
#[derive(Clone, Copy, Debug)]
pub(super) enum Notice {
    /// By both ends, so soon after the fault began.
    Within(Duration),
    /// It must stay up: what is too short to be worth a new one is not.
    Never,
    /// It may be.
    Maybe,
}

/// How the laptop finds the forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Address,
    Name,
    /// Through a proxy on the router, which forwards nothing itself.
    Proxy,
}

/// One fault.
pub(super) struct Scene {
    pub(super) name: &'static str,
    pub(super) ids: &'static str,
    pub(super) told: &'static str,
    pub(super) way: Way,
    /// Commands before anything starts, when the fault begins, and when it ends.
    pub(super) before: &'static [(Host, &'static str)],
    pub(super) begin: &'static [(Host, &'static str)],
    pub(super) end: &'static [(Host, &'static str)],
    /// What the forwarder's name means on the laptop before the fault, while it lasts, and after.
    pub(super) named: [&'static str; 3],
    /// How long it lasts once its commands are done.
    pub(super) holds: Duration,
    pub(super) notice: Notice,
    /// Bytes of a body at most.
    pub(super) body: usize,
}

const SECOND: Duration = Duration::from_secs(1);
/// Silence that counts as death, and what a busy machine adds.
const SILENT: Notice = Notice::Within(Duration::from_secs(27));
/// An end of the connection that the system tells of, once something is sent: a ping is, in time.
const TOLD: Notice = Notice::Within(Duration::from_secs(12));

const OPEN: &[(Host, &str)] = &[(Router, "nft flush chain inet attack line")];

const PLAIN: Scene = Scene {
    name: "",
    ids: "",
    told: "",
    way: Way::Address,
    before: &[],
    begin: &[],
    end: OPEN,
    named: [CLOUD; 3],
    holds: SECOND,
    notice: Notice::Maybe,
    body: 2000,
};

/// Every fault that is tried.
pub(super) const SCENES: &[Scene] = &[
    Scene {
        name: "silence",
        ids: "N1",
        told: "the router drops everything (half-open)",
        begin: &[(Router, "nft add rule inet attack line drop")],
        notice: SILENT,
        ..PLAIN
    },
    Scene {
        name: "deaf",
        ids: "N4",
        told: "the router drops what goes to the agent",
        begin: &[(Router, "nft add rule inet attack line iifname far drop")],
        // The forwarder still hears the agent's first ping.
        notice: Notice::Within(Duration::from_secs(37)),
        ..PLAIN
    },
    Scene {
        name: "mute",
        ids: "N4",
        told: "the router drops what comes from the agent",
        begin: &[(Router, "nft add rule inet attack line iifname near drop")],
        notice: SILENT,
        ..PLAIN
    },
    Scene {
        name: "cable",
        ids: "N1",
        told: "the cable is pulled",
        begin: &[(Router, "ip link set far down")],
        end: &[(Router, "ip link set far up; ip addr add fd02::1/64 dev far nodad")],
        notice: SILENT,
        ..PLAIN
    },
    Scene {
        name: "blink",
        ids: "N3",
        told: "a partition of 5 s",
        begin: &[(Router, "nft add rule inet attack line drop")],
        holds: Duration::from_secs(5),
        notice: Notice::Never,
        ..PLAIN
    },
    Scene {
        name: "flapping",
        ids: "N3",
        told: "a second of partition in every two, for 24 s",
        begin: &[(
            Router,
            "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do
               nft add rule inet attack line drop; sleep 1; nft flush chain inet attack line; sleep 1
             done &",
        )],
        holds: Duration::from_secs(24),
        ..PLAIN
    },
    Scene {
        name: "loss",
        ids: "N4",
        told: "every fifth packet is lost, for 20 s",
        begin: &[(
            Router,
            "nft add rule inet attack line numgen random mod 100 lt 20 drop",
        )],
        holds: Duration::from_secs(20),
        ..PLAIN
    },
    Scene {
        name: "resets",
        ids: "N2",
        told: "a middlebox resets every connection, for 5 s",
        begin: &[(
            Router,
            "nft add rule inet attack line meta l4proto tcp reject with tcp reset",
        )],
        holds: Duration::from_secs(5),
        notice: TOLD,
        ..PLAIN
    },
    Scene {
        name: "idle-cut",
        ids: "N2",
        told: "a NAT forgets connections after 5 s of idling, without a word",
        before: &[(
            Router,
            "nft add rule inet attack line ct state invalid drop
             echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose
             echo 5 > /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established",
        )],
        begin: &[(Router, "sleep 6")],
        notice: SILENT,
        ..PLAIN
    },
    Scene {
        name: "idle-kept",
        ids: "N2",
        told: "a NAT that forgets connections after 15 s of idling, for 35 s",
        before: &[(
            Router,
            "nft add rule inet attack line ct state invalid drop
             echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose
             echo 15 > /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established",
        )],
        begin: &[(Router, "sleep 35")],
        notice: Notice::Never,
        ..PLAIN
    },
    Scene {
        name: "small-packets",
        ids: "N11",
        told: "a path that takes 600 bytes a packet",
        begin: &[(Router, "ip link set near mtu 600; ip link set far mtu 600")],
        end: &[(Router, "ip link set near mtu 1500; ip link set far mtu 1500")],
        notice: Notice::Never,
        body: 100_000,
        ..PLAIN
    },
    Scene {
        name: "slow",
        ids: "N7",
        told: "a link of 1 Mbit/s",
        begin: &[(
            Router,
            "tc qdisc add dev near root tbf rate 1mbit burst 16kbit latency 400ms",
        )],
        end: &[(Router, "tc qdisc del dev near root")],
        notice: Notice::Never,
        body: 100_000,
        ..PLAIN
    },
    Scene {
        name: "roaming",
        ids: "N11, N9",
        told: "the laptop gets another address",
        begin: &[(
            Laptop,
            "ip addr del 10.1.0.2/24 dev near; ip addr add 10.1.0.9/24 dev near
             ip route add default via 10.1.0.1",
        )],
        notice: SILENT,
        ..PLAIN
    },
    Scene {
        name: "moved",
        ids: "N11",
        told: "the forwarder gets another address under its name",
        way: Way::Name,
        begin: &[(
            Cloud,
            "ip addr del 10.2.0.2/24 dev far; ip addr add 10.2.0.7/24 dev far
             ip route add default via 10.2.0.1",
        )],
        named: [CLOUD, "10.2.0.7", "10.2.0.7"],
        notice: SILENT,
        ..PLAIN
    },
    Scene {
        name: "nameless",
        ids: "N11",
        told: "the forwarder's name is unknown for a while",
        way: Way::Name,
        begin: &[(
            Router,
            "nft add rule inet attack line meta l4proto tcp reject with tcp reset",
        )],
        holds: Duration::from_secs(8),
        named: [CLOUD, "", CLOUD],
        notice: TOLD,
        ..PLAIN
    },
    Scene {
        name: "six",
        ids: "N11",
        told: "only IPv6 is spoken, and the router drops everything",
        way: Way::Name,
        before: &[
            (Laptop, "ip addr del 10.1.0.2/24 dev near"),
            (Cloud, "ip addr del 10.2.0.2/24 dev far"),
        ],
        begin: &[(Router, "nft add rule inet attack line drop")],
        named: [CLOUD_V6; 3],
        notice: SILENT,
        ..PLAIN
    },
    Scene {
        name: "proxy",
        ids: "N11, N2",
        told: "a proxy is the only way, and cuts everything",
        way: Way::Proxy,
        before: &[(Router, "nft add rule inet attack line drop")],
        end: &[],
        holds: Duration::from_secs(5),
        notice: TOLD,
        ..PLAIN
    },
];
