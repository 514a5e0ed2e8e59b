//! Unix sockets: decided by who listens, whatever name the caller gives.

mod own;

use std::io::Read;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

pub(crate) use self::own::own_tests;
use crate::Test;
use crate::harness::ear::Ear;
use crate::harness::machine::Tier;
use crate::harness::record::Record;
use crate::harness::run::Ran;
use crate::harness::skip;
use crate::harness::wait::until;
use crate::harness::world::{Lab, World};

const OPEN: &str = "net/unix/test/open";
const BEYOND: &str = "baseline/unix-beyond-grant";
const STREAM: (&str, i32) = ("stream", libc::SOCK_STREAM);
const SEQPACKET: (&str, i32) = ("seqpacket", libc::SOCK_SEQPACKET);
const DGRAM: (&str, i32) = ("dgram", libc::SOCK_DGRAM);

/// Who listens is asked where BPF LSM is.
fn on_full_tier<const N: usize>(named: [(&'static str, crate::Body); N]) -> Vec<Test> {
    named.map(|(name, body)| Test { name, needs: Tier::Full, body }).into()
}

pub(crate) fn tests() -> Vec<Test> {
    on_full_tier([
        ("unix::stream", |lab| decided(lab, STREAM, "", &["unix", "stream"])),
        ("unix::seqpacket", |lab| decided(lab, SEQPACKET, "", &["unix", "seqpacket"])),
        ("unix::dgram_connected", |lab| decided(lab, DGRAM, "", &["unix", "dgram"])),
        ("unix::dgram_sendto", |lab| decided(lab, DGRAM, "", &["unix-sendto"])),
        ("unix::dgram_sendmmsg", |lab| decided(lab, DGRAM, "", &["unix-sendmmsg"])),
        ("unix::abstract_stream", |lab| decided(lab, STREAM, "@", &["unix", "stream"])),
        ("unix::abstract_dgram", |lab| decided(lab, DGRAM, "@", &["unix-sendto"])),
        ("unix::answers_for_one_question", once),
        ("unix::in_a_child", |lab| decided(lab, STREAM, "", &["fork", "unix", "stream"])),
        ("unix::path_of_full_length", full_length),
        ("unix::abstract_name_by_the_kernel", autobound),
        ("unix::abstract_in_another_netns", other_netns),
        ("unix::other_names_of_an_open_socket", other_names),
        ("unix::open_names_of_a_shut_socket", false_names),
        ("unix::of_the_own_task", own_task),
        ("unix::of_another_task", another_task),
        ("unix::nameless_peers", nameless),
        ("unix::socket_made_before_the_mark", made_before),
        ("unix::ends_with_its_task", revoked),
        ("unix::libc_goes_on_without_its_daemons", libc_daemons),
        ("unix::labels_can_be_granted", labels),
    ])
}

fn path(world: &World, name: &str) -> String {
    world.daemon.place.path(name).to_string_lossy().into_owned()
}

/// Listens at a path of this world.
fn ear(world: &World, kind: i32, name: &str) -> Result<Ear> {
    Ear::new(kind, &path(world, name))
}

fn words<'w>(action: &[&'w str], more: &[&'w str]) -> Vec<&'w str> {
    [action, more].concat()
}

/// The refusal of one attempt, and that nothing came of it.
fn expect_refused(world: &World, ran: &Ran, ear: &Ear, label: &str) -> Result<Record> {
    ran.expect_refused()?;
    ensure!(ear.arrived() == 0, "the refused attempt arrived");
    let record = world.decision(ran.task()?, "connect_unix", "deny", "policy")?;
    expect_listener(&record, &ear.name, label)?;
    Ok(record)
}

fn expect_listener(record: &Record, name: &str, label: &str) -> Result<()> {
    record.expect("/resource/type", "unix")?;
    if !name.is_empty() {
        record.expect("/resource/name", name)?;
    }
    record.expect("/resource/labels/0", label)
}

/// One way to reach a listener: unmarked, marked without a grant, with one, and under a label that is forbidden.
fn decided(lab: &Lab, kind: (&str, i32), sign: &str, action: &[&str]) -> Result<()> {
    let world = lab.shared()?;
    let name = |label: &str| {
        if sign.is_empty() {
            path(&world, &format!("{label}-{}", kind.0))
        } else {
            format!("@writ-test-{label}-{}", kind.0)
        }
    };
    let (open, shut) = (Ear::new(kind.1, &name("open"))?, Ear::new(kind.1, &name("shut"))?);
    for ear in [&open, &shut] {
        world.unmarked(&words(action, &[&ear.name]))?.expect(&["ok"])?;
        ensure!(ear.arrived() > 0, "nothing arrived");
    }
    let record = expect_refused(&world, &world.task().run(&words(action, &[&open.name]))?, &open, OPEN)?;
    record.expect("/policies/0/id", BEYOND)?;
    let ran = world.task().connect(OPEN).run(&words(action, &[&open.name]))?;
    ran.expect(&["ok"])?;
    ensure!(open.arrived() > 0, "nothing arrived");
    let record = world.decision(ran.task()?, "connect_unix", "allow", "policy")?;
    expect_listener(&record, &open.name, OPEN)?;
    record.expect("/policies/0/id", "test/unix")?;
    let ran = world.task().connect("net/unix").run(&words(action, &[&shut.name]))?;
    expect_refused(&world, &ran, &shut, "net/unix/test/shut")?.expect("/policies/0/id", "test/unix-shut")?;
    let audited = world.task().audit().run(&words(action, &[&shut.name]))?;
    audited.expect(&["ok"])?;
    let record = world.decision(audited.task()?, "connect_unix", "would_deny", "policy")?;
    expect_listener(&record, &shut.name, "net/unix/test/shut")
}

/// An answer that holds for one question finds its way to the hook in which nobody waits, each time.
fn once(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    for (kind, number) in [STREAM, DGRAM] {
        let ear = ear(&world, number, &format!("erroring-{kind}"))?;
        let action = ["unix", kind, &ear.name];
        world.unmarked(&action)?.expect(&["ok"])?;
        let mut session = world.task().connect("net/unix/test").session()?;
        let task = session.task()?;
        for _ in 0..2 {
            session.expect(&action, &["errno EPERM"])?;
        }
        session.close()?;
        world.event(&task, "task_ended")?;
        let told = |record: &Record| record.task() == task && record.text("/action") == "connect_unix";
        let reasons: Vec<String> =
            world.daemon.records()?.into_iter().filter(told).map(|r| r.text("/reason").to_owned()).collect();
        ensure!(!reasons.is_empty() && reasons.iter().all(|reason| reason == "error"), "{kind}: {reasons:?}");
        ensure!(ear.arrived() == 1, "more than the control arrived");
    }
    Ok(())
}

/// All 108 bytes, without a NUL.
fn full_length(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut name = path(&world, "open-");
    name.extend(std::iter::repeat_n('x', 108 - name.len()));
    let ear = Ear::new(libc::SOCK_STREAM, &name)?;
    let action = ["unix", "stream", &name];
    world.unmarked(&action)?.expect(&["ok"])?;
    ensure!(ear.arrived() == 1, "nothing arrived");
    expect_refused(&world, &world.task().run(&action)?, &ear, OPEN)?;
    world.task().connect(OPEN).run(&action)?.expect(&["ok"])
}

/// A name that no catalogue knows.
fn autobound(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut ear = Ear::new(libc::SOCK_DGRAM, "")?;
    let socket = UnixDatagram::from(ear.fd.try_clone()?);
    let own = socket.local_addr()?;
    use std::os::linux::net::SocketAddrExt;
    ear.name = format!("@{}", String::from_utf8_lossy(own.as_abstract_name().context("it has no name")?));
    let action = ["unix-sendto", &ear.name];
    world.unmarked(&action)?.expect(&["ok"])?;
    ensure!(ear.arrived() == 1, "nothing arrived");
    expect_refused(&world, &world.task().connect("net/unix/test").run(&action)?, &ear, "net/unix/unknown")?;
    world.task().connect("net/unix/unknown").run(&action)?.expect(&["ok"])
}

/// This thread, and what it starts, live in a network namespace in which nobody looks for listeners.
fn other_netns(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let inside = || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let ear = Ear::new(libc::SOCK_STREAM, "@writ-test-open-netns")?;
        let action = ["unix", "stream", "@writ-test-open-netns"];
        world.unmarked(&action)?.expect(&["ok"])?;
        ensure!(ear.arrived() == 1, "nothing arrived");
        expect_refused(&world, &world.task().run(&action)?, &ear, OPEN)?;
        world.task().connect(OPEN).run(&action)?.expect(&["ok"])
    };
    let done = std::thread::scope(|scope| scope.spawn(inside).join());
    done.map_err(|_| anyhow::anyhow!("the thread died"))?
}

/// How a caller may name a socket otherwise than its listener did: the words before the socket's own path and another, and
/// those after them.
fn ways(world: &World, from: &str, to: &str) -> Result<Vec<Vec<String>>> {
    let target = path(world, "mount-point");
    std::fs::write(&target, "")?;
    let file = Path::new(from).file_name().context("a file name")?.to_string_lossy().into_owned();
    let directory = path(world, "");
    let ways: [&[&str]; 7] = [
        &["unix-symlink", from, to, "stream"],
        &["unix-link", from, to, "stream"],
        &["unix-rename", from, to, "stream"],
        &["unix-self-root", "stream", from],
        &["chdir", &directory, "unix", "stream", &file],
        &["chdir", "/", "unix", "stream", from.trim_start_matches('/')],
        &["bind", from, &target, "unix", "stream", &target],
    ];
    Ok(ways.iter().map(|way| way.iter().map(|&word| word.to_owned()).collect()).collect())
}

/// The kernel learns of a listener that nobody has named yet within a second, or from the first attempt.
fn other_names(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let ear = ear(&world, libc::SOCK_STREAM, "open-known")?;
    for way in ways(&world, &ear.name, &path(&world, "alias"))? {
        let action: Vec<&str> = way.iter().map(String::as_str).collect();
        world.unmarked(&action)?.expect(&["ok"])?;
        ensure!(ear.arrived() == 1, "nothing arrived: {action:?}");
        expect_refused_by_and_by(&world, &action, &ear, OPEN)?;
        let granted = || Ok((world.task().connect(OPEN).run(&action)?.lines == ["ok"]).then_some(()));
        until(&format!("a connection by {action:?}"), 10, granted)?;
        ensure!(ear.arrived() == 1, "nothing arrived: {action:?}");
    }
    Ok(())
}

/// Never through, and at last for the right reason.
fn expect_refused_by_and_by(world: &World, action: &[&str], ear: &Ear, label: &str) -> Result<()> {
    until(&format!("a decision on {action:?}"), 10, || {
        let ran = world.task().connect("net/unix/unknown").connect(OPEN_ALIAS).run(action)?;
        ran.expect_refused()?;
        ensure!(ear.arrived() == 0, "{action:?} arrived");
        let task = ran.task()?;
        let record = world.daemon.record("a refusal", |record| {
            record.task() == task && record.text("/action") == "connect_unix" && record.text("/effect") == "deny"
        })?;
        if record.text("/reason") == "undecidable" {
            return Ok(None);
        }
        expect_listener(&record, &ear.name, label).map(Some)
    })
}

/// A label that nothing here has.
const OPEN_ALIAS: &str = "net/unix/display";

/// A name with an open label leads to a socket that is shut.
fn false_names(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let ear = ear(&world, libc::SOCK_STREAM, "shut-known")?;
    let to = path(&world, "open-trick");
    for way in ways(&world, &ear.name, &to)? {
        let action: Vec<&str> = way.iter().map(String::as_str).collect();
        world.unmarked(&action)?.expect(&["ok"])?;
        ensure!(ear.arrived() == 1, "nothing arrived: {action:?}");
        until(&format!("a decision on {action:?}"), 10, || {
            let ran = world.task().connect(OPEN).run(&action)?;
            ran.expect_refused()?;
            ensure!(ear.arrived() == 0, "{action:?} arrived");
            let task = ran.task()?;
            let record = world.daemon.record("a refusal", |record| {
                record.task() == task && record.text("/action") == "connect_unix" && record.text("/effect") == "deny"
            })?;
            let known = record.text("/reason") == "policy";
            if known {
                expect_listener(&record, &ear.name, "net/unix/test/shut")?;
            }
            Ok(known.then_some(()))
        })?;
    }
    Ok(())
}

/// What a task does among its own processes needs no grant and leaves no record.
fn own_task(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let own = path(&world, "own");
    for (kind, name) in [
        ("stream", own.as_str()),
        ("dgram", &own),
        ("seqpacket", &own),
        ("stream", "@writ-own"),
        ("dgram", "@writ-own"),
    ] {
        let action = ["unix-own", kind, name];
        world.unmarked(&action)?.expect(&["ok"])?;
        world.task().run(&action)?.expect(&["ok"])?;
    }
    for kind in ["stream", "dgram", "seqpacket"] {
        world.unmarked(&["unix-socketpair", kind])?.expect(&["ok"])?;
        world.task().run(&["unix-socketpair", kind])?.expect(&["ok"])?;
    }
    let mut session = world.task().session()?;
    session.expect(&["unix-bind", "stream", "@writ-own-parent"], &["ok"])?;
    session.expect(&["fork", "unix", "stream", "@writ-own-parent"], &["ok"])?;
    let task = session.task()?;
    session.close()?;
    world.event(&task, "task_ended")?;
    let told =
        world.daemon.records()?.iter().any(|record| record.task() == task && record.text("/action") == "connect_unix");
    ensure!(!told, "a task's talk with itself was recorded");
    Ok(())
}

fn another_task(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut first = world.task().session()?;
    let name = path(&world, "open-of-a-task");
    first.expect(&["unix-bind", "stream", &name], &["ok"])?;
    let action = ["unix", "stream", &name];
    world.unmarked(&action)?.expect(&["ok"])?;
    // Its name is of no use to it.
    let ran = world.task().connect(OPEN).connect("net/unix/unknown").run(&action)?;
    ran.expect_refused()?;
    let record = world.decision(ran.task()?, "connect_unix", "deny", "policy")?;
    expect_listener(&record, &name, "net/unix/agent")?;
    world.task().connect("net/unix/agent").run(&action)?.expect(&["ok"])?;
    // Of datagrams likewise.
    first.expect(&["unix-bind", "dgram", "@writ-test-open-task"], &["ok"])?;
    let action = ["unix-sendto", "@writ-test-open-task"];
    world.unmarked(&action)?.expect(&["ok"])?;
    world.task().connect(OPEN).run(&action)?.expect_refused()?;
    world.task().connect("net/unix/agent").run(&action)?.expect(&["ok"])?;
    drop(first);
    Ok(std::fs::remove_file(name)?)
}

/// The other end of a pair that an unmarked process made: datagrams are decided, a stream that is connected already is not.
fn nameless(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let action = ["unix-fd-write", "0"];
    let refused = |label: &str| -> Result<(Ran, usize)> {
        let (here, there) = UnixDatagram::pair()?;
        here.set_nonblocking(true)?;
        let ran = world.task().connect(label).stdin(there).run(&action)?;
        Ok((ran, usize::from(here.recv(&mut [0; 8]).is_ok())))
    };
    let (ran, arrived) = refused("net/unix/unknown")?;
    ran.expect_refused()?;
    ensure!(arrived == 0, "the refused datagram arrived");
    expect_listener(&world.decision(ran.task()?, "connect_unix", "deny", "policy")?, "", "net/unix/unnamed")?;
    let (ran, arrived) = refused("net/unix/unnamed")?;
    ran.expect(&["ok"])?;
    ensure!(arrived == 1, "nothing arrived");
    let (mut here, there) = UnixStream::pair()?;
    world.task().stdin(there).run(&action)?.expect(&["ok"])?;
    Ok(here.read_exact(&mut [0])?)
}

/// It is the receiver that counts, not who made the sender.
fn made_before(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let ear = ear(&world, libc::SOCK_DGRAM, "open-before")?;
    let action = ["unix-fd-sendto", "0", &ear.name];
    let ran = world.task().stdin(UnixDatagram::unbound()?).run(&action)?;
    expect_refused(&world, &ran, &ear, OPEN)?;
    world.task().connect(OPEN).stdin(UnixDatagram::unbound()?).run(&action)?.expect(&["ok"])?;
    ensure!(ear.arrived() == 1, "nothing arrived");
    Ok(())
}

/// Nothing is sent any more on sockets that were connected in time.
fn revoked(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    for (kind, number) in [STREAM, SEQPACKET, DGRAM] {
        let ear = ear(&world, number, &format!("open-flow-{kind}"))?;
        let mut session = world.task().connect(OPEN).session()?;
        let task = session.task()?;
        session.expect(&["unix-flow", kind, &ear.name], &["ok"])?;
        session.expect(&["flow-send", "x"], &["ok"])?;
        session.expect(&["unix-flow-write"], &["ok"])?;
        world.daemon.ask(&["task", "revoke", &task])?;
        session.expect(&["flow-send", "x"], &["errno EPERM"])?;
        session.expect(&["unix-flow-write"], &["errno EPERM"])?;
        session.expect(&["unix", kind, &ear.name], &["errno EPERM"])?;
        let record = world.decision(&task, "connect_unix", "deny", "revoked")?;
        record.expect("/source", "structural")?;
        record.expect("/resource/name", &ear.name)?;
    }
    Ok(())
}

/// libc asks nscd and tells syslog; neither refusal is its callers' concern.
fn libc_daemons(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let nscd = Path::new("/var/run/nscd/socket");
    if nscd.exists() || Path::new("/dev/log").exists() {
        return Err(skip("this machine has an nscd or a logger of its own"));
    }
    std::fs::create_dir_all("/var/run/nscd")?;
    let (asked, told) = (Ear::new(libc::SOCK_STREAM, "/var/run/nscd/socket")?, Ear::new(libc::SOCK_DGRAM, "/dev/log")?);
    world.unmarked(&["syslog"])?.expect(&["ok"])?;
    ensure!(told.arrived() > 0, "syslog(3) told nobody");
    let ran = world.task().run(&["syslog"])?;
    ran.expect(&["ok"])?;
    ensure!(told.arrived() == 0, "syslog(3) arrived");
    expect_listener(
        &world.decision(ran.task()?, "connect_unix", "deny", "policy")?,
        "/dev/log",
        "net/unix/log/syslog",
    )?;
    drop(asked);
    // Only a refusal is quick: an unmarked process would wait for an answer of this nscd.
    let control = world.unmarked(&["getpwnam", "root"])?;
    let asked = Ear::new(libc::SOCK_STREAM, "/var/run/nscd/socket")?;
    let ran = world.task().run(&["getpwnam", "root"])?;
    ensure!(ran.lines == control.lines, "without nscd {:?}, refused {:?}", control.lines, ran.lines);
    ensure!(asked.arrived() == 0, "nscd was reached");
    let record = world.decision(ran.task()?, "connect_unix", "deny", "policy")?;
    expect_listener(&record, "/var/run/nscd/socket", "net/unix/resolver/nscd")
}

fn labels(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let answer = world.daemon.ask(&["labels"])?;
    let connect = answer.get("connect").and_then(Value::as_array).context("no labels to connect to")?;
    for label in ["net/unix", "net/unix/unknown", "net/unix/agent", "net/unix/container/docker", OPEN] {
        ensure!(connect.iter().any(|own| own == label), "`{label}` is not among {connect:?}");
    }
    let ran = world.task().connect("net/unix/contaner").run(&["unix-socketpair", "stream"])?;
    ensure!(ran.stderr.contains("net/unix/container"), "no suggestion: {}", ran.stderr);
    Ok(())
}
