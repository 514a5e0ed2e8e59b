//! Flows that a task opened while it might: they end with it, and no other flow does.

use std::net::{TcpStream, UdpSocket};

use anyhow::{Result, ensure};

use crate::harness::run::Session;
use crate::harness::server::{expect_silence, expect_text};
use crate::harness::world::{Lab, OPEN, World};
use crate::{Test, on_every_tier};

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("egress::tcp_ends_when_revoked", tcp_revoked),
        ("egress::tcp_ends_when_expired", tcp_expired),
        ("egress::tcp6_ends_when_revoked", tcp6_revoked),
        ("egress::udp_ends_when_revoked", udp_revoked),
        ("egress::udp_ends_when_expired", udp_expired),
        ("egress::sent_by_who_is_left", sent_by_descendant),
    ])
}

/// A session with an open TCP flow, and the server's end of it.
fn tcp_flow(world: &World, session: Session, address: &str) -> Result<(Session, TcpStream)> {
    let mut session = session;
    session.expect(&["flow-tcp", address], &["ok"])?;
    let server = if address.starts_with('[') { &world.open.tcp6 } else { &world.open.tcp4 };
    let mut stream = server.next()?;
    send(&mut session, &mut stream, "before")?;
    Ok((session, stream))
}

fn send(session: &mut Session, stream: &mut TcpStream, text: &str) -> Result<()> {
    session.expect(&["flow-send", text], &["ok"])?;
    expect_text(stream, text)
}

/// What the sender is told depends on the kernel; that nothing comes does not.
fn expect_cut(world: &World, session: &mut Session, stream: &mut TcpStream, task: &str, reason: &str) -> Result<()> {
    session.ask(&["flow-send", "after"])?;
    expect_silence(stream)?;
    let record = world.decision(task, "send", "deny", reason)?;
    record.expect("/resource/type", "endpoint")?;
    let port = u64::from(stream.local_addr()?.port());
    ensure!(record.number("/resource/port") == port, "not the server's port in {}", record.0);
    Ok(())
}

fn tcp_revoked(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let address = world.open.tcp()?;
    let (mut own, mut own_stream) = tcp_flow(&world, world.task().connect(OPEN).session()?, &address)?;
    let (mut other, mut other_stream) = tcp_flow(&world, world.task().connect(OPEN).session()?, &address)?;
    let (mut free, mut free_stream) = tcp_flow(&world, world.unmarked_session()?, &address)?;
    let task = own.task()?;
    world.daemon.ask(&["task", "revoke", &task])?;
    expect_cut(&world, &mut own, &mut own_stream, &task, "revoked")?;
    ensure!(world.daemon.counter("packets_dropped")? > 0, "no packet was counted");
    send(&mut other, &mut other_stream, "still")?;
    send(&mut free, &mut free_stream, "still")
}

fn tcp_expired(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let (mut session, mut stream) = tcp_flow(&world, world.task().connect(OPEN).ttl(2).session()?, &world.open.tcp()?)?;
    let task = session.task()?;
    world.event(&task, "task_expired")?;
    expect_cut(&world, &mut session, &mut stream, &task, "expired")
}

fn tcp6_revoked(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let address = world.open.tcp6.address()?.to_string();
    let (mut session, mut stream) = tcp_flow(&world, world.task().connect(OPEN).session()?, &address)?;
    let task = session.task()?;
    world.daemon.ask(&["task", "revoke", &task])?;
    expect_cut(&world, &mut session, &mut stream, &task, "revoked")
}

/// A child that inherited the flow is no way around.
fn sent_by_descendant(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let (mut session, mut stream) = tcp_flow(&world, world.task().connect(OPEN).session()?, &world.open.tcp()?)?;
    let task = session.task()?;
    world.daemon.ask(&["task", "revoke", &task])?;
    session.ask(&["flow-send-in-child", "after"])?;
    expect_silence(&mut stream)?;
    world.decision(&task, "send", "deny", "revoked").map(drop)
}

/// A session with a connected UDP socket, to a server of the test's own behind a granted label.
fn udp_flow(world: &World, session: Session) -> Result<Session> {
    let mut session = session;
    session.expect(&["flow-udp", &world.open.udp()?], &["ok"])?;
    session.expect(&["flow-send", "before"], &["ok"])?;
    ensure!(world.open.arrived()? == 1, "the flow does not arrive");
    Ok(session)
}

fn expect_udp_cut(world: &World, session: &mut Session, task: &str, reason: &str) -> Result<()> {
    for _ in 0..3 {
        session.ask(&["flow-send", "after"])?;
    }
    ensure!(world.open.arrived()? == 0, "a datagram came through");
    // Either the program was quicker, and its datagrams were dropped, or its socket was destroyed before.
    world.daemon.record(&format!("the cut of {task}"), |record| {
        let dropped = record.is_decision("send", "deny", reason) && record.text("/resource/protocol") == "udp";
        let cut = record.kind() == "flow_cut" && record.text("/reason") == reason && record.text("/protocol") == "udp";
        record.task() == task && (dropped || cut)
    })?;
    Ok(())
}

fn udp_revoked(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let mut own = udp_flow(&world, world.task().connect(OPEN).session()?)?;
    let mut other = udp_flow(&world, world.task().connect(OPEN).session()?)?;
    let task = own.task()?;
    world.daemon.ask(&["task", "revoke", &task])?;
    expect_udp_cut(&world, &mut own, &task, "revoked")?;
    other.expect(&["flow-send", "still"], &["ok"])?;
    let free = UdpSocket::bind("127.0.0.1:0")?;
    free.send_to(b"still", world.open.udp4.address()?)?;
    ensure!(world.open.arrived()? == 2, "another flow was cut too");
    Ok(())
}

fn udp_expired(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let mut session = udp_flow(&world, world.task().connect(OPEN).ttl(2).session()?)?;
    let task = session.task()?;
    world.event(&task, "task_expired")?;
    expect_udp_cut(&world, &mut session, &task, "expired")
}
