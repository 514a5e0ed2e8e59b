//! Outbound connections and datagrams, by every way into the kernel: refused without a grant, and nothing arrives.

use anyhow::{Context as _, Result, ensure};

use crate::harness::server::{TcpServer, UdpServer, expect_text};
use crate::harness::skip;
use crate::harness::world::{Lab, OPEN, World};
use crate::{Test, on_every_tier};

pub(crate) fn tests() -> Vec<Test> {
    on_every_tier([
        ("net::tcp4", |lab| over(lab, "tcp", |w| w.open.tcp())),
        ("net::tcp6", |lab| over(lab, "tcp", |w| Ok(w.open.tcp6.address()?.to_string()))),
        ("net::tcp_v4_mapped", |lab| over(lab, "tcp", |w| mapped(&w.open.tcp4))),
        ("net::tcp_unspecified_v4_is_loopback", |lab| over(lab, "tcp", |w| unspecified("0.0.0.0", &w.open.tcp4))),
        ("net::tcp_unspecified_v6_is_loopback", |lab| over(lab, "tcp", |w| unspecified("[::]", &w.open.tcp6))),
        ("net::tcp_nonblocking", |lab| over(lab, "tcp-nonblock", |w| w.open.tcp())),
        ("net::tcp_fast_open", |lab| over(lab, "tcp-fastopen", |w| w.open.tcp())),
        ("net::tcp_fast_open_v6", |lab| over(lab, "tcp-fastopen", |w| Ok(w.open.tcp6.address()?.to_string()))),
        ("net::tcp_fast_open_connect", |lab| over(lab, "tcp-fastopen-connect", |w| w.open.tcp())),
        ("net::udp4", |lab| over(lab, "udp", |w| w.open.udp())),
        ("net::udp6", |lab| over(lab, "udp", |w| Ok(w.open.udp6.address()?.to_string()))),
        ("net::udp_v4_mapped", |lab| over(lab, "udp", |w| udp_mapped(&w.open.udp4))),
        ("net::udp_connected", |lab| over(lab, "udp-connected", |w| w.open.udp())),
        ("net::udp_connected_v6", |lab| over(lab, "udp-connected", |w| Ok(w.open.udp6.address()?.to_string()))),
        ("net::io_uring", |lab| uring(lab, "uring", false)),
        ("net::io_uring_async", |lab| uring(lab, "uring-async", false)),
        ("net::io_uring_sendmsg", |lab| uring(lab, "uring-sendmsg", true)),
        ("net::io_uring_send", |lab| uring(lab, "uring-send", true)),
        ("net::io_uring_socket", |lab| uring(lab, "uring-socket", false)),
        ("net::tcp_unspec_then_elsewhere", tcp_again),
        ("net::udp_connected_then_elsewhere", udp_elsewhere),
        ("net::udp_sendmmsg", udp_many),
        ("net::through_a_proxy", through_a_proxy),
        ("net::record_names_everything", record_names_everything),
        ("net::other_labels_stay_refused", other_labels_stay_refused),
    ])
}

fn mapped(server: &TcpServer) -> Result<String> {
    Ok(format!("[::ffff:127.0.0.1]:{}", server.address()?.port()))
}

fn udp_mapped(server: &UdpServer) -> Result<String> {
    Ok(format!("[::ffff:127.0.0.1]:{}", server.address()?.port()))
}

fn unspecified(ip: &str, server: &TcpServer) -> Result<String> {
    Ok(format!("{ip}:{}", server.address()?.port()))
}

/// Without a mark it goes through; with one it does not; with a grant it does again. Each with its record.
pub(crate) fn over(lab: &Lab, way: &str, address: impl Fn(&World) -> Result<String>) -> Result<()> {
    let world = lab.shared()?;
    refused_and_allowed(&world, &[way, &address(&world)?])
}

pub(crate) fn refused_and_allowed(world: &World, words: &[&str]) -> Result<()> {
    world.open.arrived()?;
    world.unmarked(words)?.expect(&["ok"]).context("without a mark")?;
    ensure!(world.open.arrived()? == 1, "the unmarked attempt did not arrive");
    let refused = world.task().run(words)?;
    refused.expect_refused().context("without a grant")?;
    ensure!(world.open.arrived()? == 0, "the refused attempt arrived");
    world.decision(refused.task()?, "connect", "deny", "policy")?.expect_policy("baseline/connect-beyond-grant")?;
    let allowed = world.task().connect(OPEN).run(words)?;
    allowed.expect(&["ok"]).context("with a grant")?;
    ensure!(world.open.arrived()? == 1, "the allowed attempt did not arrive");
    world.decision(allowed.task()?, "connect", "allow", "policy")?.expect_policy("test/connect")
}

/// Policy permits this task io_uring: what it does by it is decided like everything else.
fn uring(lab: &Lab, way: &str, datagram: bool) -> Result<()> {
    let world = lab.shared()?;
    let words = [way, &if datagram { world.open.udp()? } else { world.open.tcp()? }];
    let control = world.unmarked(&words)?;
    if control.lines == ["errno ENOSYS"] || control.lines == ["errno EPERM"] {
        return Err(skip("this kernel has no io_uring, or has it switched off"));
    }
    world.open.arrived()?;
    refused_and_allowed(&world, &words)
}

fn tcp_again(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    second_is_refused(&world, &["tcp-again", &world.open.tcp()?, &world.more.tcp()?])
}

fn udp_elsewhere(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    second_is_refused(&world, &["udp-elsewhere", &world.open.udp()?, &world.more.udp()?])
}

/// Of two destinations of one socket, the one that is granted is reached and the other is not.
fn second_is_refused(world: &World, words: &[&str]) -> Result<()> {
    world.unmarked(words)?.expect(&["ok", "ok"])?;
    ensure!(world.more.arrived()? == 1, "the unmarked attempt did not arrive");
    let ran = world.task().connect(OPEN).run(words)?;
    ran.expect(&["ok", "errno EPERM"])?;
    ensure!(world.more.arrived()? == 0, "the refused attempt arrived");
    world.decision(ran.task()?, "connect", "deny", "policy").map(drop)
}

fn udp_many(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let words = ["udp-many", &world.open.udp()?, "16"];
    world.open.arrived()?;
    world.unmarked(&words)?.expect(&["ok"])?;
    ensure!(world.open.arrived()? == 16, "not all of the unmarked datagrams arrived");
    let ran = world.task().run(&words)?;
    ran.expect_refused()?;
    ensure!(world.open.arrived()? == 0, "refused datagrams arrived");
    world.decision(ran.task()?, "connect", "deny", "policy")?;
    world.task().connect(OPEN).run(&words)?.expect(&["ok"])?;
    ensure!(world.open.arrived()? == 16, "not all of the allowed datagrams arrived");
    Ok(())
}

/// A task's traffic through a proxy is decided where it leaves the task: at the proxy's own address.
fn through_a_proxy(lab: &Lab) -> Result<()> {
    use std::io::Write;
    let world = lab.shared()?;
    world.open.arrived()?;
    let (proxy, target) = (world.open.tcp()?, world.shut.tcp()?);
    let words = ["http", &proxy, &target];
    let refused = world.task().run(&words)?;
    refused.expect_refused()?;
    ensure!(world.open.arrived()? == 0, "the refused proxy was reached");
    let record = world.decision(refused.task()?, "connect", "deny", "policy")?;
    let port = world.open.tcp4.address()?.port();
    ensure!(record.number("/resource/port") == u64::from(port), "not the proxy's port in {}", record.0);
    let allowed = std::thread::scope(|scope| -> Result<_> {
        let client = scope.spawn(|| world.task().connect(OPEN).run(&words));
        let mut stream = world.open.tcp4.next()?;
        expect_text(&mut stream, &format!("GET http://{target}/ HTTP/1.0\r\n"))?;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello")?;
        // A socket that is closed with unread data resets the connection.
        stream.shutdown(std::net::Shutdown::Write)?;
        drain(&mut stream);
        client.join().map_err(|_| anyhow::anyhow!("the client's thread died"))?
    })?;
    allowed.expect(&["ok"])?;
    world.decision(allowed.task()?, "connect", "allow", "policy").map(drop)
}

fn drain(stream: &mut std::net::TcpStream) {
    // To the end, or until the client has gone: both will do.
    let _ = std::io::copy(stream, &mut std::io::sink());
}

fn record_names_everything(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    let ran = world.task().option("--on-behalf-of", "alice").run(&["fork", "fork", "tcp", &world.open.tcp()?])?;
    ran.expect_refused()?;
    let record = world.decision(ran.task()?, "connect", "deny", "policy")?;
    for (pointer, expected) in [
        ("/agent", "coder"),
        ("/intent", "fix-bug"),
        ("/on_behalf_of", "alice"),
        ("/chain/0", ran.task()?),
        ("/process/comm", "writ-probe"),
        ("/resource/type", "endpoint"),
        ("/resource/address", "127.0.0.1"),
        ("/resource/protocol", "tcp"),
        ("/policies/0/id", "baseline/connect-beyond-grant"),
        ("/policies/0/reason", "the endpoint is not in the task's grant"),
        ("/tier", world.machine.tier.as_str()),
    ] {
        record.expect(pointer, expected)?;
    }
    let labels: Vec<_> = record.array("/resource/labels").iter().filter_map(|label| label.as_str()).collect();
    ensure!(labels.contains(&OPEN) && labels.contains(&"net/loopback"), "labels {labels:?}");
    let lineage = record.array("/process/lineage");
    ensure!(lineage.len() >= 2, "two forks are not in the lineage of {}", record.0);
    let above = lineage.iter().filter(|above| above.pointer("/comm").is_some_and(|comm| comm == "writ-probe"));
    ensure!(above.count() >= 2, "the ancestors are not named in {}", record.0);
    ensure!(record.text("/process/exe").ends_with("/writ-probe"), "no program in {}", record.0);
    Ok(())
}

fn other_labels_stay_refused(lab: &Lab) -> Result<()> {
    let world = lab.shared()?;
    world.more.arrived()?;
    world.task().connect(OPEN).run(&["tcp", &world.more.tcp()?])?.expect_refused()?;
    ensure!(world.more.arrived()? == 0, "the refused attempt arrived");
    Ok(())
}
