//! The loopback servers that the agents try to reach, as threads. Each counts who reached it, so that the demo does not
//! have to believe the daemon.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Nobody may keep a thread for longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest head of a request.
const MAX_HEAD: usize = 8 << 10;
/// What is asked of the web server by way of the proxy.
const PROXIED: &str = "/proxied";

/// How often each server was reached.
#[derive(Default)]
pub(super) struct Hits {
    pub(super) web4: AtomicU64,
    pub(super) web6: AtomicU64,
    /// Requests that came to the web server through the proxy.
    pub(super) proxied: AtomicU64,
    pub(super) udp: AtomicU64,
}

/// The servers' ports; they serve until the process ends.
pub(super) struct Servers {
    pub(super) web: u16,
    /// Whether the web server has IPv6 too: not every host has.
    pub(super) ipv6: bool,
    pub(super) proxy: u16,
    pub(super) echo: u16,
    pub(super) hits: Arc<Hits>,
}

impl Servers {
    /// Binds and serves.
    pub(super) fn start() -> Result<Self> {
        let hits = Arc::new(Hits::default());
        let (web4, web6) = bind_both().context("cannot listen on loopback")?;
        let proxy = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
        let echo = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot bind a UDP socket on loopback")?;
        let servers = Self {
            web: web4.local_addr()?.port(),
            ipv6: web6.is_some(),
            proxy: proxy.local_addr()?.port(),
            echo: echo.local_addr()?.port(),
            hits: Arc::clone(&hits),
        };
        let counted = Arc::clone(&hits);
        serve(web4, move |stream| answer(stream, &counted.web4, &counted.proxied, "IPv4"));
        if let Some(web6) = web6 {
            let counted = Arc::clone(&hits);
            serve(web6, move |stream| answer(stream, &counted.web6, &counted.proxied, "IPv6"));
        }
        serve(proxy, forward);
        thread::spawn(move || echo_all(&echo, &hits.udp));
        Ok(servers)
    }
}

/// The same port for IPv4 and IPv6, or IPv4 alone where there is no other.
fn bind_both() -> io::Result<(TcpListener, Option<TcpListener>)> {
    let has_ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    loop {
        let web4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        if !has_ipv6 {
            return Ok((web4, None));
        }
        match TcpListener::bind((Ipv6Addr::LOCALHOST, web4.local_addr()?.port())) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            other => return Ok((web4, Some(other?))),
        }
    }
}

fn serve(listener: TcpListener, handle: impl Fn(TcpStream) -> Result<()> + Send + Sync + 'static) {
    let handle = Arc::new(handle);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let handle = Arc::clone(&handle);
            // What goes wrong on one connection the client sees, and the demo by the count that lacks.
            thread::spawn(move || drop(handle(stream)));
        }
    });
}

fn answer(mut stream: TcpStream, direct: &AtomicU64, proxied: &AtomicU64, family: &str) -> Result<()> {
    let head = read_head(&mut stream)?;
    let is_proxied = head.split(' ').nth(1) == Some(PROXIED);
    let (hits, how) = if is_proxied { (proxied, "the proxy") } else { (direct, family) };
    hits.fetch_add(1, Ordering::SeqCst);
    let body = format!("the web server answers over {how}\n");
    let length = body.len();
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")?;
    Ok(())
}

/// A forward proxy: `CONNECT host:port`, or a request with an absolute URI. It only leads to loopback.
fn forward(mut client: TcpStream) -> Result<()> {
    let head = read_head(&mut client)?;
    let (line, headers) = head.split_once("\r\n").context("no request line")?;
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().context("no target")?);
    if method == "CONNECT" {
        let server = connect(target)?;
        client.write_all(b"HTTP/1.0 200 Connection established\r\n\r\n")?;
        return relay(client, server);
    }
    let rest = target.strip_prefix("http://").context("no absolute URI")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut server = connect(authority)?;
    write!(server, "{method} /{path} HTTP/1.0\r\nVia: 1.0 writ-demo\r\n{headers}")?;
    relay(client, server)
}

fn connect(authority: &str) -> Result<TcpStream> {
    let address: SocketAddr = authority.parse()?;
    if !address.ip().is_loopback() {
        bail!("`{address}` is not loopback");
    }
    Ok(TcpStream::connect(address)?)
}

/// Copies both ways until the server has said all.
fn relay(mut client: TcpStream, mut server: TcpStream) -> Result<()> {
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        drop(io::copy(&mut from_client, &mut to_server));
        to_server.shutdown(Shutdown::Write)
    });
    io::copy(&mut server, &mut client)?;
    client.shutdown(Shutdown::Both)?;
    Ok(())
}

/// The request line and the headers, with the empty line that ends them.
fn read_head(stream: &mut TcpStream) -> Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_HEAD || stream.read(&mut byte)? == 0 {
            bail!("no whole request");
        }
        head.extend(byte);
    }
    Ok(String::from_utf8(head)?)
}

fn echo_all(socket: &UdpSocket, hits: &AtomicU64) {
    let mut buffer = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        hits.fetch_add(1, Ordering::SeqCst);
        let said = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).trim_end().to_owned();
        drop(socket.send_to(format!("the UDP server echoes: {said}\n").as_bytes(), from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(port: u16, request: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn counts(servers: &Servers) -> [u64; 4] {
        let hits = &servers.hits;
        [&hits.web4, &hits.web6, &hits.proxied, &hits.udp].map(|count| count.load(Ordering::SeqCst))
    }

    #[test]
    fn the_web_server_answers_and_counts() {
        let servers = Servers::start().unwrap();
        assert!(ask(servers.web, "GET / HTTP/1.0\r\n\r\n").ends_with("answers over IPv4\n"));
        assert_eq!(counts(&servers), [1, 0, 0, 0]);
    }

    #[test]
    fn the_proxy_forwards_both_ways_of_asking_and_only_to_loopback() {
        let servers = Servers::start().unwrap();
        let web = format!("127.0.0.1:{}", servers.web);
        let absolute = ask(servers.proxy, &format!("GET http://{web}/proxied HTTP/1.0\r\nHost: {web}\r\n\r\n"));
        assert!(absolute.ends_with("answers over the proxy\n"), "{absolute}");
        let tunnel = format!("CONNECT {web} HTTP/1.0\r\n\r\nGET /proxied HTTP/1.0\r\n\r\n");
        assert!(ask(servers.proxy, &tunnel).ends_with("answers over the proxy\n"));
        assert_eq!(counts(&servers), [0, 0, 2, 0]);
        assert_eq!(ask(servers.proxy, "CONNECT 192.0.2.1:80 HTTP/1.0\r\n\r\n"), "");
    }

    #[test]
    fn datagrams_come_back() {
        let servers = Servers::start().unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(b"hello\n", (Ipv4Addr::LOCALHOST, servers.echo)).unwrap();
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"the UDP server echoes: hello\n");
        assert_eq!(counts(&servers), [0, 0, 0, 1]);
    }
}
