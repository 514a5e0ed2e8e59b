//! The wire has the last word: what leaves a socket goes where that was decided, whatever the socket did before.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};

use crate::harness::netns;
use crate::harness::options::Options;
use crate::harness::server::{TcpServer, UdpServer};
use crate::harness::world::{Lab, MORE, OPEN, World};
use crate::net::refused_and_allowed;
use crate::{Test, on_every_tier};

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("wire::fast_open_sendmsg", |lab| over(lab, "fastopen-sendmsg", |w| w.open.tcp())),
        ("wire::fast_open_sendmmsg", |lab| over(lab, "fastopen-sendmmsg", |w| w.open.tcp())),
        ("wire::udp_large", |lab| over(lab, "udp-large", |w| w.open.udp())),
        ("wire::udp_segmented", segmented),
        ("wire::udp_dissolved_then_elsewhere", dissolved),
        ("wire::udp_to_many_addresses", many),
        ("wire::udp_corked_then_elsewhere", |lab| corked(lab, "udp-corked", &["ok", "ok", "ok"])),
        ("wire::udp_more_then_elsewhere", |lab| corked(lab, "udp-more", &["ok", "ok"])),
        ("wire::udp_corked_and_connected_elsewhere", corked_connect),
        ("wire::translated_address", translated),
        ("wire::translated_datagram", translated_datagram),
        ("wire::translation_of_the_operators", declared),
    ])
}

fn over(lab: &Lab, way: &str, address: impl Fn(&World) -> Result<String>) -> Result<()> {
    let world = lab.shared()?;
    refused_and_allowed(&world, &[way, &address(&world)?])
}

fn segmented(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let words = ["udp-gso", &world.open.udp()?];
    world.open.arrived()?;
    world.unmarked(&words)?.expect(&["ok"])?;
    ensure!(world.open.arrived()? == 3, "not all of the unmarked segments arrived");
    world.task().run(&words)?.expect_refused()?;
    ensure!(world.open.arrived()? == 0, "refused segments arrived");
    world.task().connect(OPEN).run(&words)?.expect(&["ok"])?;
    ensure!(world.open.arrived()? == 3, "not all of the allowed segments arrived");
    Ok(())
}

/// Both arrive unmarked; marked, the one that is granted does and the other does not.
fn second_stays(world: &World, words: &[&str], unmarked: &[&str], marked: &[&str]) -> Result<()> {
    world.open.arrived()?;
    world.more.arrived()?;
    world.unmarked(words)?.expect(unmarked).context("without a mark")?;
    let went = (world.open.arrived()?, world.more.arrived()?);
    ensure!(went == (1, 1), "unmarked, {went:?} arrived");
    let ran = world.task().connect(OPEN).run(words)?;
    ran.expect(marked)?;
    let went = (world.open.arrived()?, world.more.arrived()?);
    ensure!(went == (1, 0), "marked, {went:?} arrived");
    world.decision(ran.task()?, "connect", "deny", "policy").map(drop)
}

fn dissolved(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let words = ["udp-dissolved", &world.open.udp()?, &world.more.udp()?];
    second_stays(&world, &words, &["ok", "ok"], &["ok", "errno EPERM"])
}

fn many(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let words = ["udp-many-to", &world.open.udp()?, &world.more.udp()?];
    second_stays(&world, &words, &["ok"], &["errno EPERM"])
}

/// What was begun to one destination goes there as a whole: the kernel does not look at the later address.
fn corked(lab: &Lab, way: &str, lines: &[&str]) -> Result<()> {
    let world = lab.shared()?;
    let (first, then) = (world.open.udp()?, world.more.udp()?);
    let words = [way, &first, &then];
    world.open.arrived()?;
    world.more.arrived()?;
    world.unmarked(&words)?.expect(lines)?;
    let went = (world.open.arrived()?, world.more.arrived()?);
    ensure!(went == (1, 0), "unmarked, {went:?} arrived");
    world.task().connect(OPEN).run(&words)?.expect(lines)?;
    let went = (world.open.arrived()?, world.more.arrived()?);
    ensure!(went == (1, 0), "marked, {went:?} arrived");
    let refused = world.task().connect(MORE).run(&words)?;
    ensure!(refused.lines.first().is_some_and(|line| line == "errno EPERM"), "{refused:?}");
    ensure!(world.open.arrived()? == 0, "the refused datagram arrived");
    Ok(())
}

fn corked_connect(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let words = ["udp-corked-connect", &world.open.udp()?, &world.more.udp()?];
    world.open.arrived()?;
    world.more.arrived()?;
    world.unmarked(&words)?;
    world.more.arrived()?;
    world.open.arrived()?;
    let ran = world.task().connect(OPEN).run(&words)?;
    ensure!(ran.lines.first().is_some_and(|line| line == "errno EPERM"), "{ran:?}");
    ensure!(world.more.arrived()? == 0, "it arrived where it may not");
    Ok(())
}

/// Where what is sent to a granted address goes instead, in a namespace of the test's own.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

fn elsewhere(to: SocketAddr) -> SocketAddr {
    SocketAddr::new(ELSEWHERE.into(), to.port())
}

fn expect_both(world: &World, task: &str, effect: &str, reason: &str, to: SocketAddr) -> Result<()> {
    let record = world.decision(task, "send", effect, reason)?;
    record.expect("/resource/address", &ELSEWHERE.to_string())?;
    record.expect("/resource/decided", &to.to_string())
}

fn translated(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let to = world.open.tcp4.address()?;
    netns::inside(|| {
        let there = TcpServer::at(elsewhere(to))?;
        netns::translate_all_to(ELSEWHERE, to.port())?;
        let words = ["tcp", &to.to_string()];
        world.unmarked(&words)?.expect(&["ok"])?;
        ensure!(there.arrived()?.len() == 1, "the translation does not work");
        let mut session = world.task().connect(OPEN).session()?;
        let task = session.task()?;
        // It waits for an answer until it is ended.
        session.tell(&words)?;
        expect_both(&world, &task, "deny", "rerouted", to)?;
        ensure!(there.arrived()?.is_empty(), "the refused connection arrived");
        Ok(())
    })
}

fn translated_datagram(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let to = world.open.udp4.address()?;
    netns::inside(|| {
        let there = UdpServer::at(elsewhere(to))?;
        netns::translate_all_to(ELSEWHERE, to.port())?;
        let words = ["udp", &to.to_string()];
        world.unmarked(&words)?.expect(&["ok"])?;
        ensure!(there.arrived()? == 1, "the translation does not work");
        let ran = world.task().connect(OPEN).run(&words)?;
        ran.expect_refused()?;
        ensure!(there.arrived()? == 0, "the refused datagram arrived");
        expect_both(&world, ran.task()?, "deny", "rerouted", to)?;
        let audited = world.task().connect(OPEN).audit().run(&words)?;
        audited.expect(&["ok"])?;
        ensure!(there.arrived()? == 1, "audit mode kept it back");
        expect_both(&world, audited.task()?, "would_deny", "rerouted", to)
    })
}

/// The operator has said so: it goes, and the record shows both addresses. What is not granted stays refused.
fn declared(lab: &Lab) -> Result<()> {
    let lines = "[[translation]]\nname = \"engine\"\nfrom = [\"127.0.0.1\"]\nto = [\"127.0.0.2\"]";
    let world = lab.own(Options::default().last(lines))?;
    let (tcp, udp) = (world.open.tcp4.address()?, world.open.udp4.address()?);
    netns::inside(|| {
        let there = (TcpServer::at(elsewhere(tcp))?, UdpServer::at(elsewhere(udp))?);
        netns::translate_all_to(ELSEWHERE, tcp.port())?;
        let words = ["tcp", &tcp.to_string()];
        let ran = world.task().connect(OPEN).run(&words)?;
        ran.expect(&["ok"])?;
        ensure!(there.0.arrived()?.len() == 1, "the connection did not arrive");
        expect_both(&world, ran.task()?, "allow", "policy", tcp)?;
        let refused = world.task().connect(MORE).run(&words)?;
        refused.expect_refused()?;
        ensure!(there.0.arrived()?.is_empty(), "the refused connection arrived");
        Ok(())
    })?;
    world.daemon.stop().map(drop)
}
