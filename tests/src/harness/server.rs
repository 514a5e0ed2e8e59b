//! Loopback servers on ports that the system chose.
//!
//! They have no thread: the kernel takes connections and datagrams, and the test looks at what has come. Queues are in
//! order, so a connection of the test's own, made afterwards, proves that nothing else came before it.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::wait::bound;

const BACKLOG: i32 = 4096;

#[derive(Debug)]
pub(crate) struct TcpServer(TcpListener);

impl TcpServer {
    pub(crate) fn new(ip: impl Into<IpAddr>) -> Result<Self> {
        Self::at(SocketAddr::new(ip.into(), 0))
    }

    pub(crate) fn at(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address)?;
        // SAFETY: two integers. Listening again only makes the queue longer.
        ensure!(unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) } == 0, "listen failed");
        Ok(Self(listener))
    }

    pub(crate) fn address(&self) -> Result<SocketAddr> {
        Ok(self.0.local_addr()?)
    }

    /// The connections that have come since this was last asked.
    pub(crate) fn arrived(&self) -> Result<Vec<TcpStream>> {
        let own = TcpStream::connect(self.address()?)?;
        let mut others = Vec::new();
        loop {
            let (stream, peer) = self.0.accept()?;
            if peer == own.local_addr()? {
                return Ok(others);
            }
            others.push(stream);
        }
    }

    /// The next connection, which must come.
    pub(crate) fn next(&self) -> Result<TcpStream> {
        Ok(self.0.accept()?.0)
    }
}

#[derive(Debug)]
pub(crate) struct UdpServer(UdpSocket);

impl UdpServer {
    pub(crate) fn new(ip: impl Into<IpAddr>) -> Result<Self> {
        Self::at(SocketAddr::new(ip.into(), 0))
    }

    pub(crate) fn at(address: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind(address)?;
        socket.set_read_timeout(Some(bound(10)))?;
        Ok(Self(socket))
    }

    pub(crate) fn address(&self) -> Result<SocketAddr> {
        Ok(self.0.local_addr()?)
    }

    /// How many datagrams have come since this was last asked.
    pub(crate) fn arrived(&self) -> Result<usize> {
        let own = UdpSocket::bind((self.address()?.ip(), 0))?;
        own.send_to(b"mine", self.address()?)?;
        let mut others = 0;
        loop {
            let (_, peer) = self.0.recv_from(&mut [0; 64]).context("the test's own datagram")?;
            if peer == own.local_addr()? {
                return Ok(others);
            }
            others += 1;
        }
    }
}

/// TCP and UDP over IPv4 and IPv6, all with one label.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) tcp4: TcpServer,
    pub(crate) tcp6: TcpServer,
    pub(crate) udp4: UdpServer,
    pub(crate) udp6: UdpServer,
}

impl Servers {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            tcp4: TcpServer::new(Ipv4Addr::LOCALHOST)?,
            tcp6: TcpServer::new(Ipv6Addr::LOCALHOST)?,
            udp4: UdpServer::new(Ipv4Addr::LOCALHOST)?,
            udp6: UdpServer::new(Ipv6Addr::LOCALHOST)?,
        })
    }

    pub(crate) fn tcp(&self) -> Result<String> {
        Ok(self.tcp4.address()?.to_string())
    }

    pub(crate) fn udp(&self) -> Result<String> {
        Ok(self.udp4.address()?.to_string())
    }

    /// Everything that has come since this was last asked, on all four.
    pub(crate) fn arrived(&self) -> Result<usize> {
        Ok(self.tcp4.arrived()?.len() + self.tcp6.arrived()?.len() + self.udp4.arrived()? + self.udp6.arrived()?)
    }

    /// Their catalogue entries under `label`.
    pub(crate) fn catalogue(&self, label: &str) -> Result<String> {
        let mut text = String::new();
        let tcp = [self.tcp4.address()?, self.tcp6.address()?];
        let udp = [self.udp4.address()?, self.udp6.address()?];
        for (protocol, address) in tcp.map(|a| ("tcp", a)).into_iter().chain(udp.map(|a| ("udp", a))) {
            text += &endpoint(label, protocol, address);
        }
        Ok(text)
    }
}

/// One catalogue entry.
pub(crate) fn endpoint(label: &str, protocol: &str, address: SocketAddr) -> String {
    let (ip, port) = (address.ip(), address.port());
    format!(
        "[[endpoint]]\nname = \"test {protocol} {address}\"\nlabels = [\"{label}\"]\ncidrs = [\"{ip}\"]\n\
         ports = [{port}]\nprotocols = [\"{protocol}\"]\n"
    )
}

/// Reads exactly `text`.
pub(crate) fn expect_text(stream: &mut TcpStream, text: &str) -> Result<()> {
    stream.set_read_timeout(Some(bound(10)))?;
    let mut buffer = vec![0; text.len()];
    stream.read_exact(&mut buffer).with_context(|| format!("`{text}` did not come"))?;
    ensure!(buffer == text.as_bytes(), "{:?} came for `{text}`", String::from_utf8_lossy(&buffer));
    Ok(())
}

/// Nothing comes for as long as a packet that was held up would be sent again (0.2 s, then 0.4 s).
pub(crate) fn expect_silence(stream: &mut TcpStream) -> Result<()> {
    let end = Instant::now() + Duration::from_millis(800);
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut [0; 64]) {
            Err(_) => {}
            // The end of the stream, as the process went, carries no byte.
            Ok(0) => return Ok(()),
            Ok(count) => bail!("{count} bytes came through"),
        }
    }
    Ok(())
}
