//! What is done with names once they are known, and by programs of the host.

use std::io::Write;
use std::net::Shutdown;

use anyhow::{Result, ensure};

use super::{ANY, NAMED, PUBLIC, WILD};
use crate::harness::options::Options;
use crate::harness::run::Ran;
use crate::harness::server::{TcpServer, expect_text};
use crate::harness::skip;
use crate::harness::wait::until;
use crate::harness::world::{Lab, OPEN, World};

/// Where a server listens under an address whose name is granted, and the address is not.
fn at_loopback(world: &World) -> Result<String> {
    world.more.arrived()?;
    world.more.tcp()
}

pub(super) fn a_connection_by_name(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let to = at_loopback(&world)?;
    world.unmarked(&["tcp", &to])?.expect(&["ok"])?;
    ensure!(world.more.arrived()? == 1, "the unmarked attempt did not arrive");
    let mut task = world.task().connect(NAMED).session()?;
    let id = task.task()?;
    task.expect(&["dns-udp", ANY, "live.named.example", "A"], &["NoError 127.0.0.1", "ok"])?;
    task.expect(&["tcp", &to], &["ok"])?;
    ensure!(world.more.arrived()? == 1, "the allowed attempt did not arrive");
    let record = world.decision(&id, "connect", "allow", "policy")?;
    let hosts: Vec<_> = record.array("/resource/hosts").iter().filter_map(|host| host.as_str()).collect();
    ensure!(hosts == ["live.named.example"], "hosts {hosts:?}");
    ensure!(record.array("/resource/labels").iter().any(|label| label == NAMED), "labels in {}", record.0);
    task.close().map(drop)
}

/// A refusal that was given before the name was known goes with it, and so does a permission.
pub(super) fn a_name_that_comes_later(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let to = at_loopback(&world)?;
    let mut task = world.task().connect(NAMED).session()?;
    for _ in 0..2 {
        task.expect(&["tcp", &to], &["errno EPERM"])?;
    }
    task.expect(&["dns-udp", ANY, "live.named.example", "A"], &["NoError 127.0.0.1", "ok"])?;
    task.expect(&["tcp", &to], &["ok"])?;
    task.close().map(drop)
}

pub(super) fn another_task_does_not_profit(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let to = at_loopback(&world)?;
    let mut one = world.task().connect(NAMED).session()?;
    let mut other = world.task().connect(NAMED).session()?;
    one.expect(&["dns-udp", ANY, "live.named.example", "A"], &["NoError 127.0.0.1", "ok"])?;
    one.expect(&["tcp", &to], &["ok"])?;
    other.expect(&["tcp", &to], &["errno EPERM"])?;
    // Nor does one that may not ask for the name.
    let mut third = world.task().connect(WILD).session()?;
    third.expect(&["dns-udp", ANY, "live.named.example", "A"], &["Refused", "ok"])?;
    third.expect(&["tcp", &to], &["errno EPERM"])
}

fn needs(program: &str) -> Result<String> {
    let found = ["/usr/bin", "/bin"].map(|directory| format!("{directory}/{program}"));
    let found = found.into_iter().find(|path| std::path::Path::new(path).exists());
    found.ok_or_else(|| skip(format!("this machine has no `{program}`")))
}

/// The host's own configuration: whatever server it names.
fn asks_servers() -> Result<()> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let named = text.lines().any(|line| line.trim().starts_with("nameserver"));
    let nss = std::fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
    let hosts = nss.lines().find(|line| line.starts_with("hosts:")).unwrap_or("hosts: files dns");
    if named && hosts.contains("dns") && !hosts.contains("resolve") {
        return Ok(());
    }
    Err(skip("this machine's C library asks no name server"))
}

pub(super) fn getent(lab: &Lab) -> Result<()> {
    let program = needs("getent")?;
    asks_servers()?;
    let world = lab.shared()?;
    let words = ["program", &program, "ahostsv4", "api.public.example"];
    let ran = world.task().connect(PUBLIC).run(&words)?;
    ensure!(ran.lines.iter().any(|line| line.starts_with("192.0.2.10 ")), "{ran:?}");
    let refused = world.task().run(&words)?;
    refused.expect(&["errno ENOENT"])?;
    world.decision(refused.task()?, "resolve", "deny", "policy").map(drop)
}

pub(super) fn curl(lab: &Lab) -> Result<()> {
    let program = needs("curl")?;
    asks_servers()?;
    let world = lab.shared()?;
    at_loopback(&world)?;
    let port = world.more.tcp4.address()?.port();
    let url = format!("http://live.named.example:{port}/");
    let words = ["program", &program, "-4", "-s", "--noproxy", "*", "--max-time", "20", &url];
    let allowed = std::thread::scope(|scope| -> Result<Ran> {
        let client = scope.spawn(|| world.task().connect(NAMED).run(&words));
        answer_http(&world.more.tcp4)?;
        client.join().map_err(|_| anyhow::anyhow!("the client's thread died"))?
    })?;
    allowed.expect(&["hello", "ok"])?;
    world.decision(allowed.task()?, "connect", "allow", "policy")?.expect("/resource/hosts/0", "live.named.example")?;
    world.task().run(&words)?.expect(&["errno ENOENT"])?;
    ensure!(world.more.arrived()? == 0, "the refused attempt arrived");
    Ok(())
}

fn answer_http(server: &TcpServer) -> Result<()> {
    let mut stream = server.next()?;
    expect_text(&mut stream, "GET / HTTP/1.1\r\n")?;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n")?;
    stream.shutdown(Shutdown::Write)?;
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
    Ok(())
}

/// An address from a file has no name: nobody who could be believed has said it.
pub(super) fn hosts_file(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let mut task = world.task().connect(OPEN).session()?;
    let id = task.task()?;
    let found = task.ask(&["getaddrinfo", "localhost"])?;
    if !found.iter().any(|line| line.contains("127.0.0.1")) {
        return Err(skip("this machine's files have no `localhost`"));
    }
    task.expect(&["tcp", &world.open.tcp()?], &["ok"])?;
    let record = world.decision(&id, "connect", "allow", "policy")?;
    ensure!(record.array("/resource/hosts").is_empty(), "a name in {}", record.0);
    task.close().map(drop)
}

/// For new connections the name ends with its time; those that are there go on.
pub(super) fn a_name_ends_and_its_connection_goes_on(lab: &Lab) -> Result<()> {
    let world = lab.own(Options::default().setting("dns_grace = \"1s\""))?;
    let to = at_loopback(&world)?;
    let mut task = world.task().connect(NAMED).session()?;
    task.expect(&["dns-udp", ANY, "short.named.example", "A"], &["NoError 127.0.0.1", "ok"])?;
    task.expect(&["flow-tcp", &to], &["ok"])?;
    let mut stream = world.more.tcp4.next()?;
    task.expect(&["tcp", &to], &["ok"])?;
    until("the end of the name", 60, || Ok((task.ask(&["tcp", &to])? == ["errno EPERM"]).then_some(())))?;
    task.expect(&["flow-send", "still-here"], &["ok"])?;
    expect_text(&mut stream, "still-here")?;
    task.expect(&["dns-udp", ANY, "short.named.example", "A"], &["NoError 127.0.0.1", "ok"])?;
    task.expect(&["tcp", &to], &["ok"])?;
    task.close().map(drop)
}
