//! Options of sockets that are ways around: refused where they are set, and on the wire where they come with a message.

use std::net::Ipv6Addr;

use anyhow::{Context, Result, ensure};

use crate::harness::machine::Tier;
use crate::harness::world::{Lab, OPEN, World};
use crate::harness::{netns, skip};
use crate::{Test, on_every_tier};

/// A label whose grant lets a task route, by the tests' policies.
const ROUTES: &str = "test/routes";

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("options::ipv6_routing_header", |lab| refused(lab, &["option", "41", "57", "0"], "source_routing")),
        ("options::ipv6_hop_by_hop", |lab| refused(lab, &["option", "41", "54", "0"], "source_routing")),
        ("options::ipv6_destination", |lab| refused(lab, &["option", "41", "59", "0"], "source_routing")),
        ("options::ipv6_before_routing", |lab| refused(lab, &["option", "41", "55", "0"], "source_routing")),
        ("options::ipv6_old_routing_header", |lab| refused(lab, &["option", "41", "5", "0"], "source_routing")),
        ("options::ipv6_old_all_at_once", |lab| refused(lab, &["option", "41", "6", "0"], "source_routing")),
        ("options::ipv6_flow_label_with_headers", flow_label),
        ("options::ip_options", |lab| refused(lab, &["option", "0", "4", "0"], "source_routing")),
        ("options::socket_mark", |lab| refused(lab, &["option", "1", "36", "4"], "socket_mark")),
        ("options::iptables", iptables),
        ("options::harmless_ones_can_be_set", harmless),
        ("options::with_each_message", with_each_message),
        ("options::permitted_ones_arrive", permitted),
        ("options::permitted_routes_are_still_decided", routed),
    ])
}

fn refused(lab: &Lab, words: &[&str], facility: &str) -> Result<()> {
    let world = lab.shared()?;
    let free = world.unmarked(words)?;
    ensure!(free.lines != ["errno EPERM"], "refused without a mark");
    let free: Vec<&str> = free.lines.iter().map(String::as_str).collect();
    let ran = world.task().connect(OPEN).run(words)?;
    ran.expect_refused().context("without leave")?;
    let record = world.decision(ran.task()?, "use", "deny", "no_permit")?;
    record.expect("/resource/name", facility)?;
    let shown = format!("option {} of level {}", words.get(2).unwrap_or(&""), words.get(1).unwrap_or(&""));
    record.expect("/resource/detail", &shown)?;
    // Some take a capability besides, which the full tier asks about too.
    let allowed = world.task().intent("administer").run(words)?;
    allowed.expect(&free).context("with leave")?;
    world.decision(allowed.task()?, "use", "allow", "policy")?;
    let audited = world.task().audit().run(words)?;
    audited.expect(&free).context("in audit mode")?;
    world.decision(audited.task()?, "use", "would_deny", "no_permit").map(drop)
}

fn flow_label(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let words = ["flow-label", "[::1]:9"];
    ensure!(world.unmarked(&words)?.lines != ["errno EPERM"], "refused without a mark");
    let ran = world.task().connect(OPEN).run(&words)?;
    ran.expect_refused()?;
    world.decision(ran.task()?, "use", "deny", "no_permit")?.expect("/resource/name", "source_routing")
}

/// Rules can be replaced through any socket, given the capability.
fn iptables(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let words = ["option", "0", "64", "4"];
    ensure!(world.unmarked(&words)?.lines != ["errno EPERM"], "refused without a mark");
    let ran = world.task().intent("review").run(&words)?;
    ran.expect_refused()?;
    world.decision(ran.task()?, "use", "deny", "no_permit")?.expect("/resource/name", "cap_net_admin")
}

fn harmless(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    // SO_REUSEADDR, SO_KEEPALIVE, IP_TOS, IPV6_UNICAST_HOPS (with a hop limit of 0), a filter longer than a page.
    for words in
        [["option", "1", "2", "4"], ["option", "1", "9", "4"], ["option", "0", "1", "4"], ["option", "41", "16", "4"]]
    {
        world.task().run(&words)?.expect(&["ok"]).with_context(|| format!("{words:?}"))?;
    }
    Ok(())
}

/// Ancillary data pass no hook but the last.
fn with_each_message(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let (v4, v6) = (world.open.udp()?, world.open.udp6.address()?.to_string());
    let ways: [&[&str]; 3] = [&["ip-options-cmsg", &v4], &["dstopts-cmsg", &v6], &["route-cmsg", &v6, "[::1]:1"]];
    for words in ways {
        let control = world.unmarked(words)?;
        if words.first() == Some(&"route-cmsg") && control.lines == ["errno EINVAL"] {
            // Only with CONFIG_IPV6_MIP6 does a kernel take routing headers with a message.
            continue;
        }
        control.expect(&["ok"]).with_context(|| format!("{words:?} without a mark"))?;
        world.open.arrived()?;
        let ran = world.task().connect(OPEN).run(words)?;
        ran.expect_refused().with_context(|| format!("{words:?}"))?;
        ensure!(world.open.arrived()? == 0, "{words:?} arrived");
        if world.machine.tier == Tier::Full && words.first() == Some(&"dstopts-cmsg") {
            // It takes a capability, which is asked about before.
            world.decision(ran.task()?, "use", "deny", "no_permit")?.expect("/resource/name", "cap_net_raw")?;
        } else {
            world.decision(ran.task()?, "send", "deny", "unsupported_path")?.expect("/resource/protocol", "udp")?;
        }
        let audited = world.task().connect(OPEN).audit().run(words)?;
        audited.expect(&["ok"]).with_context(|| format!("{words:?} in audit mode"))?;
        world.decision(audited.task()?, "send", "would_deny", "unsupported_path")?;
    }
    Ok(())
}

fn permitted(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let (udp, tcp) = (world.open.udp()?, world.open.tcp()?);
    for words in [["ip-options", &udp], ["ip-options-tcp", &tcp]] {
        arrives(&world, &words)?;
    }
    Ok(())
}

fn arrives(world: &World, words: &[&str]) -> Result<()> {
    world.open.arrived()?;
    world.unmarked(words)?.expect(&["ok"]).with_context(|| format!("{words:?} without a mark"))?;
    ensure!(world.open.arrived()? == 1, "{words:?} did not arrive without a mark");
    let refused = world.task().connect(OPEN).run(words)?;
    refused.expect_refused().with_context(|| format!("{words:?} without leave"))?;
    ensure!(world.open.arrived()? == 0, "{words:?} arrived");
    world.task().connect(OPEN).connect(ROUTES).run(words)?.expect(&["ok"]).with_context(|| format!("{words:?}"))?;
    ensure!(world.open.arrived()? == 1, "{words:?} did not arrive");
    // Leave to use the option is no leave to go elsewhere.
    world.task().connect(ROUTES).run(words)?.expect_refused().with_context(|| format!("{words:?} without a grant"))
}

/// Over another hop: the packet bears the hop's address, and that one must be permitted too.
fn routed(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let hop = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
    let to = world.open.udp6.address()?.to_string();
    netns::inside(|| {
        netns::add_address(hop)?;
        let words = ["route-option", &to, &format!("[{hop}]:1")];
        let control = world.unmarked(&words)?;
        if control.lines == ["errno EINVAL"] {
            return Err(skip("this kernel takes no segment routing headers"));
        }
        control.expect(&["ok"]).context("without a mark")?;
        world.task().connect(OPEN).run(&words)?.expect_refused().context("without leave")?;
        let ran = world.task().connect(OPEN).connect(ROUTES).run(&words)?;
        ran.expect_refused().context("with leave")?;
        let record = world.decision(ran.task()?, "send", "deny", "rerouted")?;
        record.expect("/resource/address", &hop.to_string())?;
        record.expect("/resource/decided", &to)
    })
}
