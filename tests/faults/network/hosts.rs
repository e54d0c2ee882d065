//! Three hosts in network namespaces: a laptop, a router, and a cloud, as two networks that the router
//! joins, and a way from the laptop to the cloud of the senders' own, which no fault touches. Needs root,
//! iproute2 and nftables. It must not know what is tried on them.

use std::path::PathBuf;
use std::process::Command;

use crate::script;

/// The cloud as agents reach it, over the router.
pub(super) const CLOUD: &str = "10.2.0.2";
/// The same where only IPv6 is spoken.
pub(super) const CLOUD_V6: &str = "fd02::2";
/// The cloud as senders reach it.
pub(super) const FRONT: &str = "10.3.0.1";
/// The router as the laptop reaches it.
pub(super) const ROUTER: &str = "10.1.0.1";
/// The name of the cloud, as the laptop's hosts file has it.
pub(super) const NAME: &str = "forwarder.test";

/// One of the three.
#[derive(Clone, Copy, Debug, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub(super) enum Host {
    Laptop,
    Router,
    Cloud,
}

/// What each host runs once, before anything else.
const LAID: [(Host, &str); 3] = [
    (
        Host::Laptop,
        "ip link set lo up; ip link set near up; ip link set side up
         ip addr add 10.1.0.2/24 dev near; ip addr add fd01::2/64 dev near nodad
         ip addr add 10.3.0.2/24 dev side
         ip route add default via 10.1.0.1; ip -6 route add default via fd01::1",
    ),
    (
        Host::Router,
        "ip link set lo up; ip link set near up; ip link set far up
         ip addr add 10.1.0.1/24 dev near; ip addr add fd01::1/64 dev near nodad
         ip addr add 10.2.0.1/24 dev far; ip addr add fd02::1/64 dev far nodad
         echo 1 > /proc/sys/net/ipv4/ip_forward
         echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
         nft add table inet attack
         nft 'add chain inet attack line { type filter hook forward priority 0; policy accept; }'",
    ),
    (
        Host::Cloud,
        "ip link set lo up; ip link set far up; ip link set side up
         ip addr add 10.2.0.2/24 dev far; ip addr add fd02::2/64 dev far nodad
         ip addr add 10.3.0.1/24 dev side
         ip route add default via 10.2.0.1; ip -6 route add default via fd02::1",
    ),
];

/// The hosts of one scene.
pub(super) struct Hosts {
    scene: String,
}

/// Hosts that are gone when this is.
pub(super) struct Laid(pub(super) Hosts);

impl Hosts {
    /// Those that were laid for a scene.
    pub(super) fn of(scene: &str) -> Self {
        let scene = format!("whrelay-{scene}");
        Self { scene }
    }

    pub(super) fn lay(scene: &str) -> Laid {
        let hosts = Self::of(scene);
        hosts.clear();
        for host in [Host::Laptop, Host::Router, Host::Cloud] {
            sh(&format!("ip netns add {}", hosts.namespace(host)));
        }
        for (one, other, link) in [
            (Host::Laptop, Host::Router, "near"),
            (Host::Router, Host::Cloud, "far"),
            (Host::Laptop, Host::Cloud, "side"),
        ] {
            sh(&format!(
                "ip link add {link} netns {} type veth peer name {link} netns {}",
                hosts.namespace(one),
                hosts.namespace(other)
            ));
        }
        for (host, commands) in LAID {
            hosts.on(host, commands);
        }
        std::fs::create_dir_all(hosts.files()).unwrap();
        // Nobody answers for other names, and says so at once.
        std::fs::write(hosts.files().join("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
        hosts.resolve(CLOUD);
        Laid(hosts)
    }

    pub(super) fn namespace(&self, host: Host) -> String {
        format!("{}-{host}", self.scene)
    }

    /// What `ip netns exec` puts over the laptop's `/etc`.
    fn files(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(self.namespace(Host::Laptop))
    }

    /// What the cloud's name means on the laptop from now on; nothing where that is empty.
    pub(super) fn resolve(&self, address: &str) {
        let line = match address {
            "" => String::new(),
            address => format!("{address} {NAME}\n"),
        };
        // Written in place: the running laptop has this very file.
        let text = format!("127.0.0.1 localhost\n::1 localhost\n{line}");
        std::fs::write(self.files().join("hosts"), text).unwrap();
    }

    /// Runs commands on a host; any that fails is an end.
    pub(super) fn on(&self, host: Host, commands: &str) {
        let namespace = self.namespace(host);
        let status = Command::new("ip")
            .args(["netns", "exec", &namespace, "sh", "-ec", commands])
            .status();
        assert!(status.unwrap().success(), "{namespace}: {commands}");
    }

    /// A program that runs another one on a host.
    pub(super) fn program(&self, host: Host, dir: &std::path::Path, run: &str) -> String {
        let text = format!("exec ip netns exec {} {run} \"$@\"", self.namespace(host));
        script::write(&dir.join(format!("on-{host}")), &text)
    }

    fn clear(&self) {
        for host in [Host::Laptop, Host::Router, Host::Cloud] {
            // They may not be there.
            let _ = Command::new("sh")
                .args([
                    "-c",
                    &format!("ip netns del {} 2>/dev/null", self.namespace(host)),
                ])
                .status();
        }
        let _ = std::fs::remove_dir_all(self.files());
    }
}

impl Drop for Laid {
    fn drop(&mut self) {
        self.0.clear();
    }
}

fn sh(command: &str) {
    let status = Command::new("sh").args(["-ec", command]).status();
    assert!(status.unwrap().success(), "{command}");
}
