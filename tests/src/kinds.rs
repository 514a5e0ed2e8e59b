//! Sockets of kinds that policy has no word for: refused where they are made.

use anyhow::{Result, ensure};

use crate::harness::machine::Tier;
use crate::harness::skip;
use crate::harness::world::{Lab, OPEN};
use crate::{Test, on_every_tier};

const NETLINK: i32 = libc::AF_NETLINK;
const INET: i32 = libc::AF_INET;
const STREAM: i32 = libc::SOCK_STREAM;
const DGRAM: i32 = libc::SOCK_DGRAM;
const RAW: i32 = libc::SOCK_RAW;
/// DCCP's type of socket.
const DCCP: i32 = 6;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = on_every_tier([
        ("kinds::raw", |lab| refused(lab, INET, RAW, libc::IPPROTO_RAW)),
        ("kinds::raw_icmp", |lab| refused(lab, INET, RAW, libc::IPPROTO_ICMP)),
        ("kinds::raw_v6", |lab| refused(lab, libc::AF_INET6, RAW, libc::IPPROTO_RAW)),
        ("kinds::ping", |lab| ping(lab, INET, libc::IPPROTO_ICMP)),
        ("kinds::ping_v6", |lab| ping(lab, libc::AF_INET6, libc::IPPROTO_ICMPV6)),
        ("kinds::udp_lite", |lab| refused(lab, INET, DGRAM, libc::IPPROTO_UDPLITE)),
        ("kinds::sctp", |lab| refused(lab, INET, STREAM, libc::IPPROTO_SCTP)),
        ("kinds::sctp_many", |lab| refused(lab, INET, libc::SOCK_SEQPACKET, libc::IPPROTO_SCTP)),
        ("kinds::dccp", |lab| refused(lab, INET, DCCP, libc::IPPROTO_DCCP)),
        ("kinds::mptcp", |lab| refused(lab, INET, STREAM, libc::IPPROTO_MPTCP)),
        ("kinds::tcp_and_udp_can_be_made", tcp_and_udp),
    ]);
    // No cgroup program sees these families.
    let families: [(&'static str, crate::Body); 8] = [
        ("kinds::packet", |lab| refused(lab, libc::AF_PACKET, RAW, 0)),
        ("kinds::vsock", |lab| refused(lab, libc::AF_VSOCK, STREAM, 0)),
        ("kinds::alg", |lab| refused(lab, libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
        ("kinds::netlink_uevent", |lab| refused(lab, NETLINK, RAW, libc::NETLINK_KOBJECT_UEVENT)),
        ("kinds::netlink_generic", |lab| refused(lab, NETLINK, DGRAM, libc::NETLINK_GENERIC)),
        ("kinds::netlink_netfilter", |lab| refused(lab, NETLINK, RAW, libc::NETLINK_NETFILTER)),
        ("kinds::netlink_xfrm", |lab| refused(lab, NETLINK, RAW, libc::NETLINK_XFRM)),
        ("kinds::packet_by_io_uring", |lab| refused_by(lab, &["uring-kind"], libc::AF_PACKET, RAW, 0)),
    ];
    all.extend(families.map(|(name, body)| Test { name, needs: Tier::Full, body }));
    all
}

fn refused(lab: &Lab, family: i32, kind: i32, protocol: i32) -> Result<()> {
    refused_by(lab, &["socket"], family, kind, protocol)
}

/// In a network namespace that lets every group make them.
fn ping(lab: &Lab, family: i32, protocol: i32) -> Result<()> {
    refused_by(lab, &["netns", "netns-ping", "socket"], family, DGRAM, protocol)
}

/// Refused even to a task whose grant covers every endpoint here.
fn refused_by(lab: &Lab, way: &[&str], family: i32, kind: i32, protocol: i32) -> Result<()> {
    let world = lab.shared()?;
    let numbers = [family, kind, protocol].map(|number| number.to_string());
    let words: Vec<&str> = way.iter().copied().chain(numbers.iter().map(String::as_str)).collect();
    let control = world.unmarked(&words)?;
    if control.lines != ["ok"] {
        return Err(skip(format!("this kernel does not make such sockets: {}", control.lines.concat())));
    }
    // Who may use every capability, so that it is the kind which is refused.
    let ran = world.task().intent("administer").connect(OPEN).connect("net/loopback").run(&words)?;
    ran.expect_refused()?;
    let record = world.decision(ran.task()?, "socket", "deny", "unsupported_path")?;
    record.expect("/resource/type", "socket")?;
    record.expect("/source", "structural")?;
    let told = (record.number("/resource/family"), record.number("/resource/socket_type"));
    ensure!(told == (family as u64, kind as u64), "another kind of socket in {}", record.0);
    // In audit mode it is only noted.
    let audited = world.task().audit().run(&words)?;
    audited.expect(&["ok"])?;
    world.decision(audited.task()?, "socket", "would_deny", "unsupported_path").map(drop)
}

fn tcp_and_udp(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    for (kind, protocol) in [(STREAM, 0), (STREAM, libc::IPPROTO_TCP), (DGRAM, 0), (DGRAM, libc::IPPROTO_UDP)] {
        for family in [INET, libc::AF_INET6] {
            let words = ["socket", &family.to_string(), &kind.to_string(), &protocol.to_string()];
            world.task().run(&words)?.expect(&["ok"])?;
        }
    }
    let route = ["socket", &NETLINK.to_string(), &RAW.to_string(), &libc::NETLINK_ROUTE.to_string()];
    world.task().run(&route)?.expect(&["ok"])
}
