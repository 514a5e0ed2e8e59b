//! Asking the host's own resolvers: a fresh port and a random number for each question, and nothing believed that does not
//! match both.

use std::cell::RefCell;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use agent_common::Reason;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::answer::{PAYLOAD, accept};

/// How long one server is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Servers that are tried; a single one twice.
const TRIES: usize = 2;
/// How often the host's configuration is looked at.
const LOOK: Duration = Duration::from_secs(1);
const DNS: u16 = 53;

/// The servers that questions are passed on to.
pub struct Upstream {
    /// Those of the configuration, if any.
    fixed: Vec<SocketAddr>,
    /// resolv.conf(5).
    file: PathBuf,
    read: RefCell<Read>,
}

#[derive(Default)]
struct Read {
    looked: Option<Instant>,
    changed: Option<SystemTime>,
    servers: Vec<SocketAddr>,
}

impl Upstream {
    /// `fixed` servers, or those of `file` if there are none.
    pub fn new(fixed: Vec<SocketAddr>, file: PathBuf) -> Self {
        Self { fixed, file, read: RefCell::default() }
    }

    /// What the first server says that says anything.
    ///
    /// # Errors
    /// [`Reason::Timeout`] if none does, [`Reason::Error`] if what they say is that they cannot.
    pub async fn ask(&self, query: &Query) -> Result<Message, Reason> {
        let servers = self.servers();
        let mut failure = Reason::Timeout;
        for server in servers.iter().cycle().take(TRIES) {
            match timeout(PATIENCE, ask(*server, query)).await {
                Ok(Ok(answer)) if is_final(&answer) => return Ok(answer),
                Ok(Ok(_)) => failure = Reason::Error,
                Ok(Err(_)) | Err(_) => {}
            }
        }
        Err(failure)
    }

    fn servers(&self) -> Vec<SocketAddr> {
        if !self.fixed.is_empty() {
            return self.fixed.clone();
        }
        let mut read = self.read.borrow_mut();
        if read.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            read.looked = Some(Instant::now());
            let changed = fs::metadata(&self.file).and_then(|file| file.modified()).ok();
            if changed != read.changed || read.servers.is_empty() {
                (read.changed, read.servers) =
                    (changed, name_servers(&fs::read_to_string(&self.file).unwrap_or_default()));
            }
        }
        read.servers.clone()
    }
}

fn is_final(answer: &Message) -> bool {
    matches!(answer.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// The servers that resolv.conf(5) names: the local one if it names none.
pub fn name_servers(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let words =
        lines.filter(|rest| rest.starts_with(char::is_whitespace)).filter_map(|rest| rest.split_whitespace().next());
    let servers: Vec<SocketAddr> = words.filter_map(server).collect();
    if servers.is_empty() { vec![(Ipv4Addr::LOCALHOST, DNS).into()] } else { servers }
}

/// `fe80::1%eth0` too: the scope is the interface's number.
fn server(word: &str) -> Option<SocketAddr> {
    let (address, scope) = word.split_once('%').map_or((word, None), |(address, scope)| (address, Some(scope)));
    let address: IpAddr = address.parse().ok()?;
    let scope = scope.and_then(|name| nix::net::if_::if_nametoindex(name).ok());
    Some(match (address, scope) {
        (IpAddr::V6(v6), Some(scope)) => std::net::SocketAddrV6::new(v6, DNS, 0, scope).into(),
        _ => (address, DNS).into(),
    })
}

async fn ask(server: SocketAddr, query: &Query) -> std::io::Result<Message> {
    let id: u16 = rand::random();
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(query.clone());
    // The asker's own options stay here: client subnets and cookies tell who asks.
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD);
    message.set_edns(edns);
    let bytes = message.to_vec().map_err(std::io::Error::other)?;
    let answer = over_udp(server, &bytes, id, query).await?;
    if answer.metadata.truncation { over_tcp(server, &bytes, id, query).await } else { Ok(answer) }
}

/// Connected, so that the kernel takes packets from that server only. What does not match is passed over: somebody guesses.
async fn over_udp(server: SocketAddr, bytes: &[u8], id: u16, query: &Query) -> std::io::Result<Message> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = buffer.get(..length).and_then(|bytes| accept(bytes, id, query)) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, bytes: &[u8], id: u16, query: &Query) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_u16(u16::try_from(bytes.len()).map_err(std::io::Error::other)?).await?;
    stream.write_all(bytes).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; length.into()];
    stream.read_exact(&mut buffer).await?;
    accept(&buffer, id, query).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_resolv_conf_has_them() {
        let text = "# nameserver 192.0.2.9\nsearch example.com\n nameserver 192.0.2.1 extra\nnameserver\t2001:db8::1\n\
            nameserver nonsense\nnameserverx 192.0.2.8\n";
        let expected: Vec<SocketAddr> = vec!["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()];
        assert_eq!(name_servers(text), expected);
        assert_eq!(name_servers("nameserver fe80::1%lo")[0].port(), 53);
        assert_eq!(name_servers(""), ["127.0.0.1:53".parse().unwrap()]);
    }
}
