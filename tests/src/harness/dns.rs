//! A name server of the tests' own, to which the daemon passes questions on. What it says follows from the name.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::svcb::{IpHint, SVCB, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HTTPS, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::wait::until;

/// Name servers of this process, each with an address of its own.
static NUMBER: AtomicU8 = AtomicU8::new(0);
/// How long it takes to notice its end.
const TURN: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct NameServer {
    address: SocketAddr,
    /// Where it stands in the place of a server that a process asks by itself: port 53 of a loopback address of its own.
    pub(crate) here: SocketAddr,
    stop: Arc<AtomicBool>,
    asked: Asked,
    elsewhere: Asked,
    threads: Vec<JoinHandle<()>>,
}

type Asked = Arc<Mutex<Vec<String>>>;

impl NameServer {
    pub(crate) fn new() -> Result<Self> {
        let (udp, tcp) = on_one_port()?;
        let address = udp.local_addr()?;
        let (stop, asked, elsewhere) = (Arc::new(AtomicBool::new(false)), Asked::default(), Asked::default());
        let mut threads = vec![serve_udp(udp, &stop, &asked)?, serve_tcp(tcp, &stop, &asked)?];
        let here = own_address();
        let other = UdpSocket::bind(here).with_context(|| format!("cannot listen on {here}"))?;
        threads.push(serve_udp(other, &stop, &elsewhere)?);
        threads.push(serve_tcp(TcpListener::bind(here)?, &stop, &elsewhere)?);
        Ok(Self { address, here, stop, asked, elsewhere, threads })
    }

    pub(crate) fn setting(&self) -> String {
        format!("dns_servers = [\"{}\"]", self.address)
    }

    /// The names that the daemon asked for since this was last called.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The names that somebody asked for at `here`.
    pub(crate) fn asked_elsewhere(&self) -> Vec<String> {
        std::mem::take(&mut *self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Several runs of these tests may go on at the same time.
/// The system chooses for one of them; for the other the port may still be that of a connection of before.
fn on_one_port() -> Result<(UdpSocket, TcpListener)> {
    until("a port that is free twice", 10, || {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        match TcpListener::bind(udp.local_addr()?) {
            Ok(tcp) => Ok(Some((udp, tcp))),
            Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
}

fn own_address() -> SocketAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    SocketAddr::from(([127, 64 | (high & 0x3f), low, number], 53))
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_udp(socket: UdpSocket, stop: &Arc<AtomicBool>, asked: &Asked) -> Result<JoinHandle<()>> {
    socket.set_read_timeout(Some(TURN))?;
    let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let (stop, asked) = (Arc::clone(stop), Arc::clone(asked));
    Ok(std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while !stop.load(Ordering::Relaxed) {
            let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
            for (from_stranger, bytes) in answers(buffer.get(..length).unwrap_or_default(), &asked, false) {
                let from = if from_stranger { &stranger } else { &socket };
                let _ = from.send_to(&bytes, peer);
            }
        }
    }))
}

fn serve_tcp(listener: TcpListener, stop: &Arc<AtomicBool>, asked: &Asked) -> Result<JoinHandle<()>> {
    listener.set_nonblocking(true)?;
    let (stop, asked) = (Arc::clone(stop), Arc::clone(asked));
    Ok(std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                // One question a connection is all that the daemon asks.
                Ok((stream, _)) => drop(serve_stream(stream, &asked)),
                Err(_) => std::thread::sleep(TURN),
            }
        }
    }))
}

fn serve_stream(mut stream: TcpStream, asked: &Asked) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut question = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut question)?;
    for (_, bytes) in answers(&question, asked, true) {
        stream.write_all(&u16::try_from(bytes.len()).unwrap_or(0).to_be_bytes())?;
        stream.write_all(&bytes)?;
    }
    Ok(())
}

/// What is sent, each from the server's own address or from a stranger's.
fn answers(question: &[u8], asked: &Asked, tcp: bool) -> Vec<(bool, Vec<u8>)> {
    let Ok(question) = Message::from_vec(question) else { return Vec::new() };
    let Some(query) = question.queries.first() else { return Vec::new() };
    let name = query.name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
    let right = answer(&question, &name, query.query_type, tcp);
    let mut wrong = right.clone();
    let forged = Record::from_rdata(query.name.clone(), 300, RData::A(A(Ipv4Addr::new(198, 51, 100, 66))));
    wrong.answers = vec![forged];
    let first = name.split('.').next().unwrap_or_default();
    let messages = match first {
        "silent" => Vec::new(),
        "wrong-id" | "wrong-id-only" => {
            wrong.metadata.id = wrong.metadata.id.wrapping_add(1);
            vec![(false, wrong), (false, right)]
        }
        "wrong-question" | "wrong-question-only" => {
            wrong.queries.iter_mut().for_each(|query| {
                query.set_name(Name::from_ascii("other.wild.example.").unwrap_or_default());
            });
            vec![(false, wrong), (false, right)]
        }
        "off-path" => vec![(true, wrong), (false, right)],
        "no-response" => {
            wrong.metadata.message_type = MessageType::Query;
            vec![(false, wrong), (false, right)]
        }
        _ => vec![(false, right)],
    };
    let only = first.ends_with("-only");
    let sent = messages.into_iter().take(if only { 1 } else { 2 });
    sent.filter_map(|(stranger, message)| Some((stranger, message.to_vec().ok()?))).collect()
}

fn answer(question: &Message, name: &str, kind: RecordType, tcp: bool) -> Message {
    let mut message = Message::response(question.metadata.id, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.recursion_available = true;
    message.add_queries(question.queries.clone());
    let first = name.split('.').next().unwrap_or_default();
    match first {
        "fail" => message.metadata.response_code = ResponseCode::ServFail,
        "nx" => {
            message.metadata.response_code = ResponseCode::NXDomain;
            message.add_authority(soa());
        }
        "big" if !tcp => message.metadata.truncation = true,
        _ => {
            message.add_answers(records(name, kind));
        }
    }
    if first.starts_with("nx-") {
        message.metadata.response_code = ResponseCode::NXDomain;
        message.answers.clear();
    }
    message
}

fn soa() -> Record {
    let name = |text: &str| Name::from_ascii(text).unwrap_or_default();
    Record::from_rdata(
        name("example."),
        60,
        RData::SOA(SOA::new(name("ns.example."), name("x.example."), 1, 2, 3, 4, 60)),
    )
}

fn records(name: &str, kind: RecordType) -> Vec<Record> {
    let owner = Name::from_ascii(format!("{name}.")).unwrap_or_default();
    let record = |data: RData| Record::from_rdata(owner.clone(), 300, data);
    let a = |d: u8| record(RData::A(A(Ipv4Addr::new(192, 0, 2, d))));
    let first = name.split('.').next().unwrap_or_default();
    if let Some(target) = alias(first) {
        let mut chain = vec![record(RData::CNAME(CNAME(Name::from_ascii(format!("{target}.")).unwrap_or_default())))];
        if target != name && chain.len() < 8 && !first.starts_with("loop") {
            chain.extend(records(target, kind));
        } else if first.starts_with("loop") {
            let other = Name::from_ascii(format!("{target}.")).unwrap_or_default();
            chain.push(Record::from_rdata(other, 300, RData::CNAME(CNAME(owner.clone()))));
        }
        return chain;
    }
    match (first, kind) {
        ("empty", _) => Vec::new(),
        (_, RecordType::TXT) => vec![record(RData::TXT(TXT::new(vec!["orders".to_owned()])))],
        ("live" | "other" | "short" | "late", RecordType::A) => {
            let mut found = record(RData::A(A(Ipv4Addr::LOCALHOST)));
            found.ttl = if first == "short" { 0 } else { 300 };
            vec![found]
        }
        ("live" | "other", RecordType::AAAA) => vec![record(RData::AAAA(AAAA(Ipv6Addr::LOCALHOST)))],
        ("mixed", RecordType::A) => vec![a(20), record(RData::A(A(Ipv4Addr::LOCALHOST)))],
        ("big", RecordType::A) => (1..=60).map(a).collect(),
        ("hints", RecordType::HTTPS) => vec![record(RData::HTTPS(HTTPS(hints())))],
        (_, RecordType::A) => match first.strip_prefix("v4-").and_then(|text| text.replace('-', ".").parse().ok()) {
            Some(address) => vec![record(RData::A(A(address)))],
            None => vec![a(10), a(11)],
        },
        (_, RecordType::AAAA) => match first.strip_prefix("v6-").and_then(|hex| u128::from_str_radix(hex, 16).ok()) {
            Some(bits) => vec![record(RData::AAAA(AAAA(Ipv6Addr::from_bits(bits))))],
            None => vec![record(RData::AAAA(AAAA(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10))))],
        },
        _ => Vec::new(),
    }
}

fn alias(first: &str) -> Option<&'static str> {
    Some(match first {
        "alias" => "api.public.example",
        "alias-private" => "v4-10-0-0-1.nowhere.example",
        "alias-metadata" => "v4-169-254-169-254.nowhere.example",
        "alias-twice" => "alias.nowhere.example",
        "loop" => "loop2.wild.example",
        "loop-self" => "loop-self.wild.example",
        "dangling" => "empty.nowhere.example",
        _ => return None,
    })
}

fn hints() -> SVCB {
    let v4 = vec![A(Ipv4Addr::new(192, 0, 2, 30)), A(Ipv4Addr::LOCALHOST)];
    let v6 = vec![AAAA(Ipv6Addr::LOCALHOST)];
    let params = vec![
        (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(v4))),
        (SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(IpHint(v6))),
    ];
    SVCB::new(1, Name::root(), params)
}

/// The catalogue entries of the names that tests ask for.
pub(crate) const CATALOGUE: &str = r#"
[[endpoint]]
name = "names of this host"
labels = ["test/named"]
names = ["*.named.example", "named.example"]
private = true
[[endpoint]]
name = "other names of this host"
labels = ["test/named-otherwise"]
names = ["other.named-otherwise.example"]
private = true
[[endpoint]]
name = "one public name"
labels = ["test/public"]
names = ["api.public.example"]
ports = [443]
[[endpoint]]
name = "public names"
labels = ["test/wild"]
names = ["*.wild.example"]
"#;
