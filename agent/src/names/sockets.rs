//! The resolver's sockets: UDP and TCP on the loopback of one network namespace.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use agent_common::maps::Resolver;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, socket};

/// `include/uapi/asm-generic/socket.h`.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// What is bound. A namespace without IPv6 has two of the four.
#[derive(Debug)]
pub struct Sockets {
    /// As `bpf_get_netns_cookie` numbers it.
    pub netns: u64,
    /// On 127.0.0.1 and ::1.
    pub udp: Vec<UdpSocket>,
    /// On 127.0.0.1 and ::1.
    pub tcp: Vec<TcpListener>,
}

impl Sockets {
    /// In the network namespace of this thread.
    ///
    /// # Errors
    /// If not even IPv4 can be had.
    pub fn here() -> io::Result<Self> {
        let (v4, v6): (IpAddr, IpAddr) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
        let first = udp(v4)?;
        let netns = cookie(&first)?;
        let udp = [Ok(first), udp(v6)].into_iter().filter_map(io::Result::ok).collect();
        let tcp = [Ok(tcp(v4)?), tcp(v6)].into_iter().filter_map(io::Result::ok).collect();
        Ok(Self { netns, udp, tcp })
    }

    /// In another network namespace, where this thread goes for it and from where it comes back to `home`.
    ///
    /// # Errors
    /// If it cannot go there, or as [`Sockets::here`]. The second value is false if it could not come back.
    pub fn within(namespace: &File, home: &File) -> (io::Result<Self>, bool) {
        if let Err(error) = setns(namespace, CloneFlags::CLONE_NEWNET) {
            return (Err(error.into()), true);
        }
        let sockets = Self::here();
        (sockets, setns(home, CloneFlags::CLONE_NEWNET).is_ok())
    }

    /// The ports, for the kernel.
    pub fn ports(&self) -> Resolver {
        let port = |addresses: Vec<SocketAddr>, v4: bool| {
            addresses.iter().find(|address| address.is_ipv4() == v4).map_or(0, SocketAddr::port)
        };
        let udp: Vec<_> = self.udp.iter().filter_map(|socket| socket.local_addr().ok()).collect();
        let tcp: Vec<_> = self.tcp.iter().filter_map(|socket| socket.local_addr().ok()).collect();
        Resolver {
            udp4: port(udp.clone(), true),
            tcp4: port(tcp.clone(), true),
            udp6: port(udp, false),
            tcp6: port(tcp, false),
        }
    }
}

fn udp(address: IpAddr) -> io::Result<UdpSocket> {
    Ok(UdpSocket::from(bound(address, SockType::Datagram)?))
}

fn tcp(address: IpAddr) -> io::Result<TcpListener> {
    let socket = bound(address, SockType::Stream)?;
    listen(&socket, Backlog::new(128)?)?;
    Ok(TcpListener::from(socket))
}

/// A port that the system chooses. A namespace that was just made has no address yet: that may come later.
fn bound(address: IpAddr, kind: SockType) -> io::Result<OwnedFd> {
    let (family, level, option) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, libc::SOL_IP, libc::IP_FREEBIND),
        IpAddr::V6(_) => (AddressFamily::Inet6, libc::SOL_IPV6, libc::IPV6_FREEBIND),
    };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    let on: libc::c_int = 1;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes of a live integer.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const on).cast(), size) };
    nix::errno::Errno::result(done)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, 0)))?;
    Ok(fd)
}

fn cookie(socket: &impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut size = size_of::<u64>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `size` bytes, which the number has.
    let done =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut size) };
    nix::errno::Errno::result(done)?;
    Ok(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_those_that_are_bound() {
        let sockets = Sockets::here().unwrap();
        let ports = sockets.ports();
        assert_eq!(sockets.udp[0].local_addr().unwrap().port(), ports.udp4);
        assert_eq!(sockets.tcp[0].local_addr().unwrap().port(), ports.tcp4);
        assert!(sockets.netns != 0 && ports.udp4 != 0 && ports.tcp4 != 0);
    }
}
