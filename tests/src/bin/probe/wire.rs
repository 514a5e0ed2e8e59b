//! Packets that leave otherwise than the address in the call says: other destinations of one socket, headers and options.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{self, MsgFlags, SockaddrLike};

use crate::net::{address, connect, dissolve, plain_socket, send, set_option, socket_for, storage};
use crate::{Attempt, number, say};

const NOPS: [u8; 4] = [1; 4];
/// A destination options header that holds nothing but padding.
const PADDING: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
const UDP_CORK: i32 = 1;
const IPV6_FLOWLABEL_MGR: i32 = 32;

pub(super) fn attempt(words: &[&str]) -> Option<Attempt> {
    Some(match *words {
        ["udp-dissolved", first, then] => dissolved(address(first), address(then)),
        ["udp-many-to", first, then] => many_to(&[address(first), address(then)]),
        ["udp-corked", first, then] => corked(address(first), address(then)),
        ["udp-more", first, then] => more(address(first), address(then)),
        ["udp-corked-connect", first, then] => corked_connect(address(first), address(then)),
        ["udp-gso", to] => segmented(address(to)),
        ["udp-large", to] => large(address(to)),
        ["fastopen-sendmsg", to] => fastopen(address(to), false),
        ["fastopen-sendmmsg", to] => fastopen(address(to), true),
        ["option", level, name, length] => option(number(level), number(name), number(length)),
        ["route-option", to, via] => route_option(address(to), address(via).ip()),
        ["route-cmsg", to, via] => routed(address(to), address(via).ip()),
        ["dstopts-cmsg", to] => with_control(address(to), libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &PADDING),
        ["ip-options", to] => ip_options(address(to)),
        ["ip-options-tcp", to] => ip_options_tcp(address(to)),
        ["ip-options-cmsg", to] => with_control(address(to), libc::IPPROTO_IP, libc::IP_RETOPTS, &NOPS),
        ["flow-label", to] => flow_label(address(to)),
        _ => return None,
    })
}

fn udp(to: SocketAddr) -> Attempt<OwnedFd> {
    socket_for(to, libc::SOCK_DGRAM)
}

fn send_to(fd: &OwnedFd, to: SocketAddr, bytes: &[u8], flags: MsgFlags) -> Attempt {
    socket::sendto(fd.as_raw_fd(), bytes, &storage(to), flags).map(drop)
}

fn dissolved(first: SocketAddr, then: SocketAddr) -> Attempt {
    let fd = udp(first)?;
    connect(&fd, first)?;
    say(send(&fd, b"x"));
    dissolve(&fd)?;
    send_to(&fd, then, b"x", MsgFlags::empty())
}

/// One call for several destinations; it ends at the first that fails, and is `ok` if all went.
fn many_to(to: &[SocketAddr]) -> Attempt {
    let [first, ..] = to else { return Err(Errno::EINVAL) };
    let fd = udp(*first)?;
    let mut headers = socket::MultiHeaders::preallocate(to.len(), None);
    let slices = vec![[IoSlice::new(b"x")]; to.len()];
    let addresses: Vec<_> = to.iter().map(|to| Some(storage(*to))).collect();
    let none: [socket::ControlMessage<'_>; 0] = [];
    let sent = socket::sendmmsg(fd.as_raw_fd(), &mut headers, &slices, addresses, none, MsgFlags::empty())?.count();
    if sent == to.len() { Ok(()) } else { Err(Errno::EPERM) }
}

/// What is corked goes where the first piece was sent to, whatever the later ones say.
fn corked(first: SocketAddr, then: SocketAddr) -> Attempt {
    let fd = udp(first)?;
    set_option(fd.as_fd(), libc::IPPROTO_UDP, UDP_CORK, 1)?;
    say(send_to(&fd, first, b"x", MsgFlags::empty()));
    say(send_to(&fd, then, b"y", MsgFlags::empty()));
    set_option(fd.as_fd(), libc::IPPROTO_UDP, UDP_CORK, 0)
}

fn more(first: SocketAddr, then: SocketAddr) -> Attempt {
    let fd = udp(first)?;
    say(send_to(&fd, first, b"x", MsgFlags::from_bits_retain(libc::MSG_MORE)));
    send_to(&fd, then, b"y", MsgFlags::empty())
}

fn corked_connect(first: SocketAddr, then: SocketAddr) -> Attempt {
    let fd = udp(first)?;
    connect(&fd, first)?;
    set_option(fd.as_fd(), libc::IPPROTO_UDP, UDP_CORK, 1)?;
    send(&fd, b"x")?;
    say(connect(&fd, then));
    set_option(fd.as_fd(), libc::IPPROTO_UDP, UDP_CORK, 0)
}

/// Three datagrams of one byte in one call.
fn segmented(to: SocketAddr) -> Attempt {
    let fd = udp(to)?;
    set_option(fd.as_fd(), libc::IPPROTO_UDP, libc::UDP_SEGMENT, 1)?;
    send_to(&fd, to, b"abc", MsgFlags::empty())
}

/// As large as a datagram can be over IPv4: more than any device takes at once.
fn large(to: SocketAddr) -> Attempt {
    send_to(&udp(to)?, to, &[0; 65_507], MsgFlags::empty())
}

fn fastopen(to: SocketAddr, many: bool) -> Attempt {
    let fd = socket_for(to, libc::SOCK_STREAM)?;
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL);
    if !many {
        return socket::sendmsg(fd.as_raw_fd(), &[IoSlice::new(b"x")], &[], flags, Some(&storage(to))).map(drop);
    }
    let mut headers = socket::MultiHeaders::preallocate(1, None);
    let none: [socket::ControlMessage<'_>; 0] = [];
    let slices = [[IoSlice::new(b"x")]];
    socket::sendmmsg(fd.as_raw_fd(), &mut headers, &slices, [Some(storage(to))], none, flags).map(drop)
}

/// Zeroes as an option's value: whether it may be set at all.
fn option(level: i32, name: i32, length: usize) -> Attempt {
    let family = if level == libc::IPPROTO_IPV6 { libc::AF_INET6 } else { libc::AF_INET };
    set_bytes(&plain_socket(family, libc::SOCK_DGRAM, 0)?, level, name, &vec![0; length])
}

fn set_bytes(fd: &OwnedFd, level: i32, name: i32, bytes: &[u8]) -> Attempt {
    let size = bytes.len() as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes of a live slice.
    Errno::result(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, bytes.as_ptr().cast(), size) }).map(drop)
}

/// A segment routing header (`struct ipv6_sr_hdr`): first to `via`, from there to where the call says.
fn routing_header(via: IpAddr) -> Vec<u8> {
    let IpAddr::V6(via) = via else { return Vec::new() };
    let mut header = vec![0, 4, 4, 1, 1, 0, 0, 0];
    header.extend([0; 16]);
    header.extend(via.octets());
    header
}

fn route_option(to: SocketAddr, via: IpAddr) -> Attempt {
    let fd = udp(to)?;
    set_bytes(&fd, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &routing_header(via))?;
    send_to(&fd, to, b"x", MsgFlags::empty())
}

/// With a message the kernel takes routing headers of type 2 at most.
fn routed(to: SocketAddr, via: IpAddr) -> Attempt {
    let IpAddr::V6(via) = via else { return Err(Errno::EAFNOSUPPORT) };
    let header = [&[0, 2, 2, 1, 0, 0, 0, 0][..], &via.octets()].concat();
    with_control(to, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &header)
}

/// One datagram with one ancillary message.
fn with_control(to: SocketAddr, level: i32, kind: i32, data: &[u8]) -> Attempt {
    let fd = udp(to)?;
    let target = storage(to);
    let mut byte = *b"x";
    let mut slice = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // Aligned as the kernel wants it.
    let mut control = [0_u64; 16];
    // SAFETY: sizes of constant arguments; the buffer has room for a header and 64 bytes.
    unsafe {
        let header = control.as_mut_ptr().cast::<libc::cmsghdr>();
        (*header).cmsg_len = libc::CMSG_LEN(data.len() as u32) as usize;
        ((*header).cmsg_level, (*header).cmsg_type) = (level, kind);
        libc::CMSG_DATA(header).copy_from_nonoverlapping(data.as_ptr(), data.len().min(64));
        let message = libc::msghdr {
            msg_name: target.as_ptr().cast_mut().cast(),
            msg_namelen: target.len(),
            msg_iov: &raw mut slice,
            msg_iovlen: 1,
            msg_control: header.cast(),
            msg_controllen: libc::CMSG_SPACE(data.len() as u32) as usize,
            msg_flags: 0,
        };
        Errno::result(libc::sendmsg(fd.as_raw_fd(), &raw const message, 0)).map(drop)
    }
}

fn ip_options(to: SocketAddr) -> Attempt {
    let fd = udp(to)?;
    set_bytes(&fd, libc::IPPROTO_IP, libc::IP_OPTIONS, &NOPS)?;
    send_to(&fd, to, b"x", MsgFlags::empty())
}

fn ip_options_tcp(to: SocketAddr) -> Attempt {
    let fd = socket_for(to, libc::SOCK_STREAM)?;
    set_bytes(&fd, libc::IPPROTO_IP, libc::IP_OPTIONS, &NOPS)?;
    connect(&fd, to)?;
    send(&fd, b"x")
}

/// A flow label with headers of its own (`struct in6_flowlabel_req`, then an ancillary message).
fn flow_label(to: SocketAddr) -> Attempt {
    let IpAddr::V6(ip) = to.ip() else { return Err(Errno::EAFNOSUPPORT) };
    let mut request = ip.octets().to_vec();
    // Label 0 (any), action GET, share EXCL, flags CREATE, expiry, linger, padding.
    request.extend([0, 0, 0, 0, 0, 1, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
    request.extend(24_u64.to_ne_bytes());
    request.extend(libc::IPPROTO_IPV6.to_ne_bytes());
    request.extend(libc::IPV6_DSTOPTS.to_ne_bytes());
    request.extend(PADDING);
    set_bytes(&udp(to)?, libc::IPPROTO_IPV6, IPV6_FLOWLABEL_MGR, &request)
}
