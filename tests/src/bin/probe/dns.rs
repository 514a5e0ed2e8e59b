//! Questions for names, as the resolvers of libraries put them. Each prints a line: the answer's code and its addresses.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{Name, RData, RecordType};
use nix::errno::Errno;

use crate::net::{address, errno};
use crate::{Attempt, number};

/// Longer than the daemon takes to give up.
const PATIENCE: Duration = Duration::from_secs(60);
/// For answers that are not to come.
const SHORT: Duration = Duration::from_secs(5);

pub(super) fn attempt(words: &[&str]) -> Option<Attempt> {
    Some(match *words {
        ["dns-udp", server, name, kind] => connected(address(server), name, kind, false).map(|answer| tell(&answer)),
        ["dns-edns", server, name, kind] => connected(address(server), name, kind, true).map(|answer| tell(&answer)),
        ["dns-musl", one, two, name, kind] => like_musl(&[address(one), address(two)], name, kind),
        ["dns-go", server, name, kind] => like_go(address(server), name, kind),
        ["dns-tcp", server, name, kind] => {
            over_tcp(address(server), &question(name, kind, false)).map(|answer| tell(&answer))
        }
        ["dns-raw", server, hex] => raw(address(server), hex),
        ["dns-prefixes", server, name] => prefixes(address(server), name),
        ["dns-many", server, pattern, count] => many(address(server), pattern, number(count)),
        ["dns-shared", server, name] => shared(address(server), name),
        ["getaddrinfo", name] => getaddrinfo(name),
        ["program", program, ref arguments @ ..] => run(program, arguments),
        _ => return None,
    })
}

fn question(name: &str, kind: &str, edns: bool) -> Message {
    let mut name = Name::from_ascii(name).unwrap_or_default();
    name.set_fqdn(true);
    let kind = match kind.parse() {
        Ok(kind) => kind,
        Err(_) => RecordType::from(number::<u16>(kind)),
    };
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(1400);
        message.set_edns(edns);
    }
    message
}

fn encode(message: &Message) -> Attempt<Vec<u8>> {
    message.to_vec().map_err(|_| Errno::EINVAL)
}

fn decode(bytes: &[u8]) -> Attempt<Message> {
    Message::from_vec(bytes).map_err(|_| Errno::EPROTO)
}

/// `NoError 192.0.2.1 2001:db8::1`, with ` cut` where the answer was.
fn tell(answer: &Message) {
    let mut line = format!("{:?}", answer.metadata.response_code);
    let mut addresses: Vec<IpAddr> = answer.answers.iter().flat_map(|record| addresses_of(&record.data)).collect();
    addresses.sort_unstable();
    let count = addresses.len();
    if count > 4 {
        line += &format!(" {count} addresses");
    } else {
        addresses.iter().for_each(|address| line += &format!(" {address}"));
    }
    println!("{line}{}", if answer.metadata.truncation { " cut" } else { "" });
}

fn addresses_of(data: &RData) -> Vec<IpAddr> {
    let service = match data {
        RData::A(a) => return vec![a.0.into()],
        RData::AAAA(a) => return vec![a.0.into()],
        RData::HTTPS(https) => &https.0,
        RData::SVCB(svcb) => svcb,
        _ => return Vec::new(),
    };
    let of = |value: &SvcParamValue| match value {
        SvcParamValue::Ipv4Hint(hints) => hints.0.iter().map(|hint| IpAddr::from(hint.0)).collect(),
        SvcParamValue::Ipv6Hint(hints) => hints.0.iter().map(|hint| IpAddr::from(hint.0)).collect(),
        _ => Vec::new(),
    };
    service.svc_params.iter().flat_map(|(_, value)| of(value)).collect()
}

fn udp_for(server: SocketAddr) -> Attempt<UdpSocket> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).map_err(|error| errno(&error))?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(|error| errno(&error))?;
    Ok(socket)
}

/// A connected socket, as glibc and c-ares have it, that checks whom it is connected to.
fn connected(server: SocketAddr, name: &str, kind: &str, edns: bool) -> Attempt<Message> {
    let question = question(name, kind, edns);
    let socket = udp_for(server)?;
    let received = socket.connect(server).and_then(|()| {
        let peer = socket.peer_addr()?;
        if peer != server {
            println!("peer {peer}");
        }
        socket.send(&question.to_vec().unwrap_or_default())?;
        let mut buffer = [0; 4096];
        let (length, from) = socket.recv_from(&mut buffer)?;
        if from != server {
            println!("from {from}");
        }
        Ok(buffer.get(..length).unwrap_or_default().to_vec())
    });
    let answer = decode(&received.map_err(|error| errno(&error))?)?;
    if answer.metadata.id == 4711 && answer.queries == question.queries { Ok(answer) } else { Err(Errno::EPROTO) }
}

/// One unconnected socket, the question to every server, answers from these servers only.
fn like_musl(servers: &[SocketAddr], name: &str, kind: &str) -> Attempt {
    let question = encode(&question(name, kind, false))?;
    let socket = udp_for(*servers.first().ok_or(Errno::EINVAL)?)?;
    let received = (|| {
        for server in servers {
            socket.send_to(&question, server)?;
        }
        let mut buffer = [0; 512];
        loop {
            let (length, from) = socket.recv_from(&mut buffer)?;
            if servers.contains(&from) {
                return Ok(buffer.get(..length).unwrap_or_default().to_vec());
            }
            println!("from {from}");
        }
    })();
    let answer = decode(&received.map_err(|error: std::io::Error| errno(&error))?)?;
    tell(&answer);
    Ok(())
}

/// A connected socket with EDNS, and TCP where the answer was cut.
fn like_go(server: SocketAddr, name: &str, kind: &str) -> Attempt {
    let mut answer = connected(server, name, kind, true)?;
    if answer.metadata.truncation {
        answer = over_tcp(server, &question(name, kind, true))?;
    }
    tell(&answer);
    Ok(())
}

fn over_tcp(server: SocketAddr, question: &Message) -> Attempt<Message> {
    let bytes = encode(question)?;
    let received = (|| {
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let peer = stream.peer_addr()?;
        if peer != server {
            println!("peer {peer}");
        }
        stream.write_all(&u16::try_from(bytes.len()).unwrap_or(0).to_be_bytes())?;
        stream.write_all(&bytes)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    })();
    decode(&received.map_err(|error: std::io::Error| errno(&error))?)
}

/// Bytes that are no proper question: `code` of the answer, or `silence`.
fn raw(server: SocketAddr, hex: &str) -> Attempt {
    let digits: Vec<char> = hex.chars().collect();
    let pairs = digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap_or(0));
    println!("{}", code_of(server, &pairs.collect::<Vec<u8>>(), SHORT)?);
    Ok(())
}

fn code_of(server: SocketAddr, bytes: &[u8], patience: Duration) -> Attempt<String> {
    let socket = udp_for(server)?;
    let received = (|| {
        socket.set_read_timeout(Some(patience))?;
        socket.send_to(bytes, server)?;
        let mut buffer = [0; 4096];
        socket.recv_from(&mut buffer).map(|(length, _)| buffer.get(..length).unwrap_or_default().to_vec())
    })();
    match received {
        Ok(bytes) => Ok(format!("{:?}", decode(&bytes)?.metadata.response_code)),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok("silence".to_owned()),
        Err(error) => Err(errno(&error)),
    }
}

/// Every beginning of a question: those with a whole header are answered, none as if it were whole.
fn prefixes(server: SocketAddr, name: &str) -> Attempt {
    let whole = encode(&question(name, "A", true))?;
    for length in 1..whole.len() {
        let patience = if length < 12 { Duration::from_millis(30) } else { PATIENCE };
        let code = code_of(server, whole.get(..length).unwrap_or_default(), patience)?;
        let expected = if length < 12 { "silence" } else { "FormErr" };
        if code != expected {
            println!("{length} bytes: {code}");
            return Err(Errno::EPROTO);
        }
    }
    Ok(())
}

/// `count` questions, one after the other, `{}` in the name being their number; each code and how often it came.
fn many(server: SocketAddr, pattern: &str, count: u32) -> Attempt {
    let mut codes: std::collections::BTreeMap<String, u32> = std::collections::BTreeMap::new();
    for number in 0..count {
        let answer = connected(server, &pattern.replace("{}", &number.to_string()), "A", false)?;
        *codes.entry(format!("{:?}", answer.metadata.response_code)).or_default() += 1;
    }
    let line: Vec<String> = codes.into_iter().map(|(code, count)| format!("{code} {count}")).collect();
    println!("{}", line.join(" "));
    Ok(())
}

/// A dual-stack socket asks an IPv4 server: what comes back is mapped.
fn shared(server: SocketAddr, name: &str) -> Attempt {
    let IpAddr::V4(v4) = server.ip() else { return Err(Errno::EINVAL) };
    let mapped = SocketAddr::new(v4.to_ipv6_mapped().into(), server.port());
    for connect in [true, false] {
        let socket = udp_for(mapped)?;
        let received = (|| {
            let question = question(name, "A", false).to_vec().unwrap_or_default();
            if connect {
                socket.connect(mapped)?;
                socket.send(&question)?;
            } else {
                socket.send_to(&question, mapped)?;
            }
            let mut buffer = [0; 512];
            let (length, from) = socket.recv_from(&mut buffer)?;
            if from != mapped {
                println!("from {from}");
            }
            Ok(buffer.get(..length).unwrap_or_default().to_vec())
        })();
        tell(&decode(&received.map_err(|error: std::io::Error| errno(&error))?)?);
    }
    Ok(())
}

/// What the C library makes of a name: whatever its configuration says.
fn getaddrinfo(name: &str) -> Attempt {
    match (name, 80).to_socket_addrs() {
        Ok(found) => {
            let mut found: Vec<String> = found.map(|address| address.ip().to_string()).collect();
            found.sort_unstable();
            found.dedup();
            println!("{}", found.join(" "));
            Ok(())
        }
        Err(_) => Err(Errno::ENOENT),
    }
}

/// A program of the host, whose output is this one's.
fn run(program: &str, arguments: &[&str]) -> Attempt {
    let status = std::process::Command::new(program).args(arguments).status().map_err(|error| errno(&error))?;
    if status.success() { Ok(()) } else { Err(Errno::ENOENT) }
}
