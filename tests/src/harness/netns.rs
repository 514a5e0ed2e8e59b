//! A network namespace of the test's own, with its loopback up and, where a test wants it, address translation.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use super::skip;

/// Runs `body` on a thread that is in a new network namespace, as is everything that it starts.
pub(crate) fn inside<T: Send>(body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            loopback_up()?;
            body()
        });
        thread.join().map_err(|_| anyhow!("the thread in the namespace died"))?
    })
}

fn loopback_up() -> Result<()> {
    let fd = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    // SAFETY: plain numbers, all of which may be 0.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (at, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *at = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request takes one live `ifreq`.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    Ok(())
}

/// One more address of the loopback device (`struct in6_ifreq`: address, length of the prefix, number of the device).
pub(crate) fn add_address(address: Ipv6Addr) -> Result<()> {
    #[repr(C)]
    struct Request([u8; 16], u32, i32);
    let fd = socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)?;
    let request = Request(address.octets(), 128, 1);
    // SAFETY: the request takes one live `in6_ifreq`.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFADDR, &raw const request) })?;
    Ok(())
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: three integers.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

const NEWTABLE: u16 = 0;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const BATCH_BEGIN: u16 = libc::NFNL_MSG_BATCH_BEGIN as u16;
const BATCH_END: u16 = libc::NFNL_MSG_BATCH_END as u16;
const TABLES: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
const NESTED: u16 = 1 << 15;
const ACK: u16 = libc::NLM_F_ACK as u16;
const CREATE: u16 = libc::NLM_F_CREATE as u16 | ACK;

/// Every new IPv4 connection from here goes to that address and port instead (`nft add rule ip t c dnat to ADDRESS:PORT`).
/// Skips if the kernel has no nftables.
pub(crate) fn translate_all_to(address: Ipv4Addr, port: u16) -> Result<()> {
    let fd = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)
        .map_err(|error| skip(format!("this kernel has no nfnetlink: {error}")))?;
    let name = |number: u16, text: &str| attribute(number, &[text.as_bytes(), &[0]].concat());
    let number = |kind: u16, value: i32| attribute(kind, &value.to_be_bytes());
    let hook = attribute(4 | NESTED, &[number(1, 3), number(2, -100)].concat());
    let chain = [name(1, "t"), name(3, "c"), hook, name(7, "nat")].concat();
    // Registers 8 and 9 are the first two of four bytes (`NFT_REG32_00`).
    let load = |register: i32, value: &[u8]| {
        let data = attribute(2 | NESTED, &attribute(1, value));
        expression("immediate", &[number(1, register), data].concat())
    };
    let nat = [number(1, 1), number(2, libc::AF_INET), number(3, 8), number(5, 9)].concat();
    let expressions = [load(8, &address.octets()), load(9, &port.to_be_bytes()), expression("nat", &nat)].concat();
    let rule = [name(1, "t"), name(2, "c"), attribute(4 | NESTED, &expressions)].concat();
    let batch = [
        message(BATCH_BEGIN, 0, &[]),
        message(TABLES | NEWTABLE, CREATE, &name(1, "t")),
        message(TABLES | NEWCHAIN, CREATE, &chain),
        message(TABLES | NEWRULE, CREATE | libc::NLM_F_APPEND as u16, &rule),
        message(BATCH_END, 0, &[]),
    ];
    exchange(&fd, &batch.concat(), 3)
}

fn expression(name: &str, data: &[u8]) -> Vec<u8> {
    let inner = [attribute(1, &[name.as_bytes(), &[0]].concat()), attribute(2 | NESTED, data)].concat();
    attribute(1 | NESTED, &inner)
}

fn attribute(kind: u16, data: &[u8]) -> Vec<u8> {
    let length = (data.len() + 4) as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A netlink message with netfilter's own header; in a batch's first and last that names the subsystem.
fn message(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let edge = kind == BATCH_BEGIN || kind == BATCH_END;
    let (family, subsystem) = if edge { (0, libc::NFNL_SUBSYS_NFTABLES as u16) } else { (libc::AF_INET as u8, 0) };
    let length = (16 + 4 + attributes.len()) as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(subsystem.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

/// Sends a batch and takes as many acknowledgements as are due.
fn exchange(fd: &OwnedFd, batch: &[u8], due: usize) -> Result<()> {
    // SAFETY: a live buffer of that length.
    let sent = unsafe { libc::send(fd.as_raw_fd(), batch.as_ptr().cast(), batch.len(), 0) };
    Errno::result(sent)?;
    for _ in 0..due {
        let mut answer = [0_u8; 4096];
        // SAFETY: as above.
        let length = Errno::result(unsafe { libc::recv(fd.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) })?;
        ensure!(length >= 20, "an answer of {length} bytes");
        let [.., a, b, c, d] = answer.first_chunk::<20>().copied().unwrap_or([0; 20]);
        let error = -i32::from_ne_bytes([a, b, c, d]);
        if error == libc::EOPNOTSUPP || error == libc::ENOENT || error == libc::EPROTONOSUPPORT || error == libc::EINVAL
        {
            return Err(skip(format!("this kernel cannot translate addresses: {}", Errno::from_raw(error))));
        }
        ensure!(error == 0, "netfilter refuses: {}", Errno::from_raw(error));
    }
    Ok(())
}
