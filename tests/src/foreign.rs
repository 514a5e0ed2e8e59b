//! Sockets that change hands: what a task did not make itself, it cannot use.

use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use crate::harness::machine::Tier;
use crate::harness::meeting::Meeting;
use crate::harness::run::{Ran, Session};
use crate::harness::server::expect_silence;
use crate::harness::skip;
use crate::harness::wait::until;
use crate::harness::world::{Lab, OPEN, World};
use crate::{Test, on_every_tier};

pub(crate) fn tests() -> Vec<Test> {
    let mut all = on_every_tier([
        ("foreign::made_before_the_mark", made_before),
        ("foreign::udp_made_before_the_mark", udp_made_before),
        ("foreign::connected_before_the_mark", connected_before),
        ("foreign::passed_by_an_unmarked_process", passed),
        ("foreign::of_another_task", of_another_task),
        ("foreign::given_away_ends_when_revoked", given_away_revoked),
        ("foreign::given_away_ends_with_its_task", given_away_ended),
    ]);
    let full: [(&'static str, crate::Body); 4] = [
        ("foreign::inherited_connected", |lab| inherited_connected(lab, "send-fd")),
        ("foreign::inherited_connected_sendfile", |lab| inherited_connected(lab, "sendfile-fd")),
        ("foreign::inherited_connected_udp", inherited_udp),
        ("foreign::passed_connected", passed_connected),
    ];
    all.extend(full.map(|(name, body)| Test { name, needs: Tier::Full, body }));
    all
}

fn tcp_socket() -> Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
}

/// Refused although the grant covers the endpoint.
fn expect_foreign(world: &World, ran: &Ran) -> Result<()> {
    ran.expect_refused()?;
    ensure!(world.open.arrived()? == 0, "the refused attempt arrived");
    world.decision(ran.task()?, "connect", "deny", "foreign_socket")?.expect("/source", "structural")
}

fn made_before(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let ran = world.task().connect(OPEN).stdin(tcp_socket()?).run(&["connect-fd", "0", &world.open.tcp()?])?;
    expect_foreign(&world, &ran)
}

fn udp_made_before(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let ran = world.task().connect(OPEN).stdin(socket).run(&["connect-fd", "0", &world.open.udp()?])?;
    expect_foreign(&world, &ran)
}

/// `writ run` leaves the command its standard streams and no other descriptor.
fn connected_before(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let stream = TcpStream::connect(world.open.tcp4.address()?)?;
    // SAFETY: a plain flag on an open descriptor, so that a child would inherit it.
    ensure!(unsafe { libc::fcntl(stream.as_raw_fd(), libc::F_SETFD, 0) } == 0, "cannot make it inheritable");
    let control = world.unmarked(&["descriptors"])?;
    ensure!(control.lines != ["0"], "the control inherits nothing either");
    world.task().run(&["descriptors"])?.expect(&["0"])
}

fn passed(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let meeting = Meeting::new(&world)?;
    let address = world.open.tcp()?;
    let ran = std::thread::scope(|scope| -> Result<Ran> {
        let client = scope.spawn(|| world.task().connect(OPEN).run(&["take-and-connect", &meeting.path(), &address]));
        meeting.give(&tcp_socket()?)?;
        client.join().map_err(|_| anyhow::anyhow!("the client's thread died"))?
    })?;
    if world.machine.tier == Tier::Full {
        return expect_not_taken(&world, &ran);
    }
    expect_foreign(&world, &ran)
}

/// The message comes, the descriptor does not.
fn expect_not_taken(world: &World, ran: &Ran) -> Result<()> {
    // How the probe is told that the control message was cut short.
    ran.expect(&["errno ENOBUFS"])?;
    ensure!(world.open.arrived()? == 0, "the refused attempt arrived");
    world.decision(ran.task()?, "receive", "deny", "foreign_socket")?.expect("/source", "structural")
}

/// As standard input: `writ run` closes everything else.
fn inherited_connected(lab: &Lab, way: &str) -> Result<()> {
    let world = lab.shared()?;
    let stream = TcpStream::connect(world.open.tcp4.address()?)?;
    let mut there = world.open.tcp4.next()?;
    let ran = world.task().connect(OPEN).stdin(stream.try_clone()?).run(&[way, "0"])?;
    if way == "sendfile-fd" && ran.lines == ["ok"] {
        return Err(skip("this kernel asks nobody about sendfile(2) (before 6.5)"));
    }
    ran.expect_refused()?;
    expect_silence(&mut there)?;
    world.decision(ran.task()?, "send", "deny", "foreign_socket")?.expect("/resource/address", "127.0.0.1")
}

fn inherited_udp(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(world.open.udp4.address()?)?;
    let ran = world.task().connect(OPEN).stdin(socket).run(&["send-fd", "0"])?;
    ran.expect_refused()?;
    ensure!(world.open.arrived()? == 0, "the refused datagram arrived");
    world.decision(ran.task()?, "send", "deny", "foreign_socket")?.expect("/resource/protocol", "udp")
}

fn passed_connected(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let stream = TcpStream::connect(world.open.tcp4.address()?)?;
    world.open.arrived()?;
    let meeting = Meeting::new(&world)?;
    let ran = std::thread::scope(|scope| -> Result<Ran> {
        let client = scope.spawn(|| world.task().connect(OPEN).run(&["take-and-send", &meeting.path()]));
        meeting.give(&stream)?;
        client.join().map_err(|_| anyhow::anyhow!("the client's thread died"))?
    })?;
    expect_not_taken(&world, &ran)
}

/// A socket of that kind, made by the session.
fn socket_of(session: &mut Session, world: &World, kind: &str) -> Result<OwnedFd> {
    let meeting = Meeting::new(world)?;
    session.tell(&[kind, &meeting.path()])?;
    let fd = meeting.take()?;
    ensure!(session.answer()? == ["ok"], "the socket was not given away");
    Ok(fd)
}

fn of_another_task(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let mut first = world.task().connect(OPEN).session()?;
    let fd = socket_of(&mut first, &world, "give-tcp")?;
    let ran = world.task().connect(OPEN).stdin(fd).run(&["connect-fd", "0", &world.open.tcp()?])?;
    ensure!(first.task()? != ran.task()?, "both are one task");
    expect_foreign(&world, &ran)
}

/// An unmarked helper holds a socket that a task made. The task is revoked, so nothing leaves it.
fn given_away_revoked(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let mut session = world.task().connect(OPEN).session()?;
    let task = session.task()?;
    let stream = TcpStream::from(socket_of(&mut session, &world, "give-tcp")?);
    world.daemon.ask(&["task", "revoke", &task])?;
    // The first segment and those that the kernel sends again within this time.
    stream.set_write_timeout(Some(Duration::from_millis(1500)))?;
    let target = SockaddrStorage::from(world.open.tcp4.address()?);
    let outcome = connect(stream.as_raw_fd(), &target);
    ensure!(outcome.is_err(), "the socket of a revoked task connected");
    ensure!(world.open.arrived()? == 0, "the refused attempt arrived");
    world.decision(&task, "send", "deny", "revoked").map(drop)
}

/// The task ends by itself: what its sockets hold may drain, and then nothing leaves them any more.
fn given_away_ended(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.open.arrived()?;
    let mut session = world.task().connect(OPEN).session()?;
    let task = session.task()?;
    let socket = UdpSocket::from(socket_of(&mut session, &world, "give-udp")?);
    session.close()?;
    world.event(&task, "task_ended")?;
    until("the end of the task's sockets", 10, || {
        // Refused or dropped: what counts is whether it arrives.
        let _ = socket.send_to(b"x", world.open.udp4.address()?);
        Ok((world.open.udp4.arrived()? == 0).then_some(()))
    })?;
    world.daemon.record("the drop", |record| {
        let reason = record.text("/reason");
        record.task() == task && record.text("/action") == "send" && ["ended", "expired"].contains(&reason)
    })?;
    Ok(())
}
