//! What the canary tries, and how: each path once, in a way that changes nothing if it goes through.

use std::fs::{self, File};
use std::io::{self, IoSliceMut, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::kill;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, sockopt};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::{Pid, getpid, getppid};

/// Opened, and not written to.
const KERNEL_FILE: &str = "/sys/kernel/rcu_expedited";
/// A setting that no kernel since 5.18 looks at.
const SETTING: &str = "/proc/sys/kernel/random/urandom_min_reseed_secs";

/// A path that the canary tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Attempt {
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
    /// A child of the canary.
    Forked,
    RawSocket,
    PacketSocket,
    Netlink,
    UnixStream,
    UnixDatagram,
    Listen,
    Secret,
    Setting,
    Capability,
    IoUring,
    Userfaultfd,
    UserNamespace,
    /// A datagram by a socket that was connected before there was a mark.
    ForeignSocket,
    /// The secret, by a descriptor from before the mark.
    HeldSecret,
    /// The daemon's memory.
    Memory,
    /// A signal to the daemon.
    Signal,
    /// bpf(2).
    Bpf,
    /// A new file where the daemon keeps its own.
    OwnFile,
    /// A file below /sys, to write to.
    KernelFile,
    /// A question for a name, to a server that is none.
    Name,
    /// A datagram from a socket that was connected before its task ended.
    Egress,
}

impl Attempt {
    /// In the order of trying: what may change the one who tries comes last.
    pub(super) const ALL: [Self; 26] = [
        Self::Tcp4,
        Self::Tcp6,
        Self::Udp4,
        Self::Udp6,
        Self::Forked,
        Self::RawSocket,
        Self::PacketSocket,
        Self::Netlink,
        Self::UnixStream,
        Self::UnixDatagram,
        Self::Listen,
        Self::Secret,
        Self::Setting,
        Self::Capability,
        Self::IoUring,
        Self::Userfaultfd,
        Self::UserNamespace,
        Self::ForeignSocket,
        Self::HeldSecret,
        Self::Memory,
        Self::Signal,
        Self::Bpf,
        Self::OwnFile,
        Self::KernelFile,
        Self::Name,
        Self::Egress,
    ];

    /// Its name between daemon and child.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Tcp4 => "tcp4",
            Self::Tcp6 => "tcp6",
            Self::Udp4 => "udp4",
            Self::Udp6 => "udp6",
            Self::Forked => "forked",
            Self::RawSocket => "raw_socket",
            Self::PacketSocket => "packet_socket",
            Self::Netlink => "netlink",
            Self::UnixStream => "unix_stream",
            Self::UnixDatagram => "unix_datagram",
            Self::Listen => "listen",
            Self::Secret => "secret",
            Self::Setting => "setting",
            Self::Capability => "capability",
            Self::IoUring => "io_uring",
            Self::Userfaultfd => "userfaultfd",
            Self::UserNamespace => "user_namespace",
            Self::ForeignSocket => "foreign_socket",
            Self::HeldSecret => "held_secret",
            Self::Memory => "memory",
            Self::Signal => "signal",
            Self::Bpf => "bpf",
            Self::OwnFile => "own_file",
            Self::KernelFile => "kernel_file",
            Self::Name => "name",
            Self::Egress => "egress",
        }
    }

    pub(super) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|attempt| attempt.word() == word)
    }

    /// Whether only BPF LSM refuses it; the secret is fanotify's where there is none.
    pub(super) const fn needs_lsm(self) -> bool {
        matches!(
            self,
            Self::PacketSocket
                | Self::Netlink
                | Self::UnixStream
                | Self::UnixDatagram
                | Self::Listen
                | Self::Capability
                | Self::IoUring
                | Self::Userfaultfd
                | Self::UserNamespace
                | Self::ForeignSocket
                | Self::HeldSecret
                | Self::Memory
                | Self::Signal
                | Self::Bpf
                | Self::OwnFile
                | Self::KernelFile
        )
    }

    /// What can be tried every second: all that needs neither a new process nor another thread's answer.
    pub(super) const fn is_cheap(self) -> bool {
        !matches!(self, Self::Forked | Self::Name)
    }
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// EPERM, where the daemon itself succeeded.
    Refused,
    /// It went through.
    Through,
    /// The daemon itself could not do it: the host lacks it.
    Unavailable(String),
    /// It failed for another reason than the guard.
    Failed(String),
}

/// Where the attempts lead: servers of the daemon's own on loopback, and a file.
pub(super) struct Targets {
    tcp4: Option<TcpListener>,
    tcp6: Option<TcpListener>,
    udp4: Option<UdpSocket>,
    udp6: Option<UdpSocket>,
    flow: Option<UdpSocket>,
    /// Bound and no more: the port on which the canary tries to listen, kept free for it.
    listen: Option<TcpListener>,
    unix_stream: Option<UnixListener>,
    unix_datagram: Option<UnixDatagram>,
    secret: PathBuf,
}

/// The same, as the child gets them.
#[derive(Clone, Debug)]
pub(super) struct Addresses {
    pub(super) tcp4: Option<SocketAddr>,
    tcp6: Option<SocketAddr>,
    udp4: Option<SocketAddr>,
    udp6: Option<SocketAddr>,
    flow: Option<SocketAddr>,
    listen: Option<SocketAddr>,
    secret: PathBuf,
}

impl Targets {
    /// Binds the servers and writes the file.
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        let secret = directory.join("canary-secret");
        fs::write(&secret, "nothing to see\n")?;
        let (v4, v6) = ((Ipv4Addr::LOCALHOST, 0), (Ipv6Addr::LOCALHOST, 0));
        let listens = |listener: io::Result<TcpListener>| {
            listener.and_then(|listener| listener.set_nonblocking(true).map(|()| listener)).ok()
        };
        Ok(Self {
            tcp4: listens(TcpListener::bind(v4)),
            tcp6: listens(TcpListener::bind(v6)),
            udp4: UdpSocket::bind(v4).ok(),
            udp6: UdpSocket::bind(v6).ok(),
            flow: UdpSocket::bind(v4).ok(),
            listen: bound().ok(),
            unix_stream: at(&beside(&secret, STREAM), |path| UnixListener::bind(path), UnixListener::set_nonblocking),
            unix_datagram: at(
                &beside(&secret, DATAGRAM),
                |path| UnixDatagram::bind(path),
                UnixDatagram::set_nonblocking,
            ),
            secret,
        })
    }

    /// The file that is a secret of no policy.
    pub(super) fn secret(&self) -> &Path {
        &self.secret
    }

    /// Where the datagrams of the egress attempt go: the daemon allows the canary this one destination.
    pub(super) fn egress(&self) -> Option<SocketAddr> {
        self.flow.as_ref().and_then(|socket| socket.local_addr().ok())
    }

    /// Where the canary tries to listen.
    pub(super) fn listen(&self) -> Option<SocketAddr> {
        self.listen.as_ref().and_then(|socket| socket.local_addr().ok())
    }

    /// Every other destination, and whether it is one of TCP.
    pub(super) fn forbidden(&self) -> impl Iterator<Item = (SocketAddr, bool)> {
        let all = self.addresses();
        let tcp = [all.tcp4, all.tcp6].into_iter().flatten().map(|address| (address, true));
        tcp.chain([all.udp4, all.udp6].into_iter().flatten().map(|address| (address, false)))
    }

    pub(super) fn addresses(&self) -> Addresses {
        let tcp = |listener: &Option<TcpListener>| listener.as_ref().and_then(|l| l.local_addr().ok());
        let udp = |socket: &Option<UdpSocket>| socket.as_ref().and_then(|s| s.local_addr().ok());
        Addresses {
            tcp4: tcp(&self.tcp4),
            tcp6: tcp(&self.tcp6),
            udp4: udp(&self.udp4),
            udp6: udp(&self.udp6),
            flow: udp(&self.flow),
            listen: tcp(&self.listen),
            secret: self.secret.clone(),
        }
    }

    /// Takes what came in, so that the next that comes finds room.
    pub(super) fn drain(&self) {
        for listener in [&self.tcp4, &self.tcp6].into_iter().flatten() {
            while listener.accept().is_ok() {}
        }
        while self.unix_stream.as_ref().is_some_and(|own| own.accept().is_ok()) {}
        while self.unix_datagram.as_ref().is_some_and(|own| own.recv(&mut [0]).is_ok()) {}
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.secret);
        [STREAM, DATAGRAM].iter().for_each(|name| drop(fs::remove_file(beside(&self.secret, name))));
    }
}

/// Where the daemon listens for the canary, beside its secret.
fn beside(secret: &Path, name: &str) -> PathBuf {
    secret.with_file_name(name)
}

const STREAM: &str = "canary-stream";
const DATAGRAM: &str = "canary-datagram";
const NEW: &str = "canary-directory";

/// A socket of the daemon's own, in the place of what an earlier one may have left.
fn at<T>(path: &Path, bind: fn(&Path) -> io::Result<T>, set_nonblocking: fn(&T, bool) -> io::Result<()>) -> Option<T> {
    let _ = fs::remove_file(path);
    bind(path).ok().filter(|own| set_nonblocking(own, true).is_ok())
}

impl Addresses {
    /// Carries out one attempt, but for those of [`Attempt::Forked`], [`Attempt::ForeignSocket`], [`Attempt::HeldSecret`] and
    /// [`Attempt::Egress`], which take more than one process or moment.
    pub(super) fn try_one(&self, attempt: Attempt) -> io::Result<()> {
        match attempt {
            Attempt::Tcp4 | Attempt::Forked => connect(self.tcp4),
            Attempt::Tcp6 => connect(self.tcp6),
            Attempt::Udp4 => send(self.udp4),
            Attempt::Udp6 => send(self.udp6),
            Attempt::RawSocket => socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
            Attempt::PacketSocket => socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0),
            Attempt::Netlink => socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_KOBJECT_UEVENT),
            Attempt::UnixStream => UnixStream::connect(beside(&self.secret, STREAM)).map(drop),
            Attempt::UnixDatagram => {
                UnixDatagram::unbound()?.send_to(b"canary", beside(&self.secret, DATAGRAM)).map(drop)
            }
            Attempt::Listen => listen(self.listen),
            Attempt::Secret => File::open(&self.secret).map(drop),
            Attempt::Setting => setting(),
            Attempt::Capability => capability(),
            Attempt::IoUring => io_uring(),
            Attempt::Userfaultfd => userfaultfd(),
            Attempt::UserNamespace => Ok(unshare(CloneFlags::CLONE_NEWUSER)?),
            Attempt::Name => ask_for_a_name(),
            Attempt::Memory => memory_of(getppid()),
            // What number 0 says is only whether one may.
            Attempt::Signal => Ok(kill(getppid(), None)?),
            Attempt::Bpf => bpf(),
            Attempt::OwnFile => new_directory(&beside(&self.secret, NEW)),
            Attempt::KernelFile => File::options().write(true).open(KERNEL_FILE).map(drop),
            Attempt::ForeignSocket | Attempt::HeldSecret | Attempt::Egress => Ok(()),
        }
    }

    /// Whether this host can do it at all: tried, but for what would change the daemon itself.
    pub(super) fn available(&self, attempt: Attempt) -> io::Result<()> {
        match attempt {
            Attempt::UserNamespace => user_namespaces(),
            Attempt::Listen => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop),
            Attempt::ForeignSocket => self.flow()?.send(b"canary").map(drop),
            Attempt::Name => to_a_name_server().map(drop),
            Attempt::Memory => memory_of(getpid()),
            Attempt::Signal => Ok(kill(getpid(), None)?),
            other => self.try_one(other),
        }
    }

    /// A socket that has sent something to where it may.
    pub(super) fn flow(&self) -> io::Result<UdpSocket> {
        let to = self.flow.ok_or(io::ErrorKind::AddrNotAvailable)?;
        let socket = unconnected(to)?;
        socket.connect(to)?;
        Ok(socket)
    }

    /// For the child's command line.
    pub(super) fn to_words(&self) -> Vec<String> {
        let word = |address: Option<SocketAddr>| address.map_or_else(|| "-".to_owned(), |a| a.to_string());
        [self.tcp4, self.tcp6, self.udp4, self.udp6, self.flow, self.listen].into_iter().map(word).collect()
    }

    /// From the child's command line.
    pub(super) fn from_words(words: &[String]) -> Option<Self> {
        let [tcp4, tcp6, udp4, udp6, flow, listen, secret] = words else { return None };
        let (tcp4, tcp6, udp4, udp6) = (tcp4.parse().ok(), tcp6.parse().ok(), udp4.parse().ok(), udp6.parse().ok());
        let (flow, listen) = (flow.parse().ok(), listen.parse().ok());
        Some(Self { tcp4, tcp6, udp4, udp6, flow, listen, secret: PathBuf::from(secret) })
    }

    pub(super) fn secret(&self) -> &Path {
        &self.secret
    }
}

/// Not on loopback, where policy may let everybody listen. The address may be used by several until one of them listens.
fn bound() -> io::Result<TcpListener> {
    let own = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::setsockopt(&own, sockopt::ReuseAddr, &true)?;
    socket::bind(own.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, 0))?;
    Ok(own.into())
}

fn listen(at: Option<SocketAddr>) -> io::Result<()> {
    TcpListener::bind(at.ok_or(io::ErrorKind::AddrNotAvailable)?).map(drop)
}

/// Connects and hangs up.
pub(super) fn connect(to: Option<SocketAddr>) -> io::Result<()> {
    TcpStream::connect_timeout(&to.ok_or(io::ErrorKind::AddrNotAvailable)?, Duration::from_secs(1)).map(drop)
}

fn send(to: Option<SocketAddr>) -> io::Result<()> {
    let to = to.ok_or(io::ErrorKind::AddrNotAvailable)?;
    unconnected(to)?.send_to(b"canary", to).map(drop)
}

/// Where nobody answers questions but the daemon's resolver, to which those of marked processes are led.
const NO_NAME_SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 53, 53, 53), 53);
/// How long the resolver may take, which answers by itself.
const ANSWER: Duration = Duration::from_millis(1500);
/// RFC 1035, section 4.1: a question for the addresses of `canary.invalid`, a name that there cannot be (RFC 6761).
const QUESTION: &[u8] = b"\x77\x72\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06canary\x07invalid\x00\x00\x01\x00\x01";
/// The response code of an answer that is refused.
const REFUSED: u8 = 5;

fn to_a_name_server() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(NO_NAME_SERVER)?;
    Ok(socket)
}

/// The resolver's refusal counts as that of the system call.
fn ask_for_a_name() -> io::Result<()> {
    let socket = to_a_name_server()?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.send(QUESTION)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    let code = answer.get(..length).and_then(|answer| answer.get(3)).map(|flags| flags & 0x0f);
    if code == Some(REFUSED) { Err(Errno::EPERM.into()) } else { Ok(()) }
}

fn unconnected(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0))
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<()> {
    // SAFETY: a plain system call; the descriptor is owned at once.
    owned(i64::from(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) }))
}

/// Closes the new descriptor that a system call gave.
fn owned(fd: i64) -> io::Result<()> {
    let fd = Errno::result(fd)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the descriptor is new and nobody else's.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// Writes what is there already.
fn setting() -> io::Result<()> {
    let value = fs::read(SETTING)?;
    File::options().write(true).open(SETTING)?.write_all(&value)
}

/// `SO_RCVBUFFORCE`, which takes CAP_NET_ADMIN, on a socket that nothing will come in by.
fn capability() -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    let size: libc::c_int = 4096;
    let (value, length) = ((&raw const size).cast(), libc::socklen_t::try_from(size_of_val(&size)).unwrap_or(0));
    // SAFETY: the kernel reads one live integer of the length that is given.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value, length) };
    Ok(Errno::result(set).map(drop)?)
}

fn io_uring() -> io::Result<()> {
    // `struct io_uring_params` has 120 bytes; all of them may be 0.
    let mut params = [0_u64; 15];
    // SAFETY: the kernel reads and writes one live `io_uring_params`.
    owned(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) })
}

/// One byte at address 0. Nothing is there, which only those are told who may look.
fn memory_of(process: Pid) -> io::Result<()> {
    let nowhere = [RemoteIoVec { base: 0, len: 1 }];
    match process_vm_readv(process, &mut [IoSliceMut::new(&mut [0])], &nowhere) {
        Ok(_) | Err(Errno::EFAULT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes one and removes it again.
fn new_directory(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::remove_dir(path)
}

/// `BPF_OBJ_GET` of what is not there.
fn bpf() -> io::Result<()> {
    const OBJ_GET: libc::c_int = 7;
    let path = c"/writ-canary";
    // The address of a path, then two words that are 0.
    let attributes = [path.as_ptr() as u64, 0];
    // SAFETY: the kernel reads attributes of the size that is given, and a NUL-terminated path.
    match owned(unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, attributes.as_ptr(), size_of_val(&attributes)) }) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn userfaultfd() -> io::Result<()> {
    /// `UFFD_USER_MODE_ONLY`, for which no host asks for more.
    const USER_MODE_ONLY: libc::c_int = 1;
    // SAFETY: a plain system call.
    owned(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) })
}

fn user_namespaces() -> io::Result<()> {
    let most = fs::read_to_string("/proc/sys/user/max_user_namespaces")?;
    if most.trim() == "0" { Err(io::Error::other("user.max_user_namespaces is 0")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_travel_as_words() {
        let targets = Targets::new(tempfile::tempdir().unwrap().path()).unwrap();
        let addresses = targets.addresses();
        let mut words = addresses.to_words();
        words.push(addresses.secret.display().to_string());
        let read = Addresses::from_words(&words).unwrap();
        assert_eq!(
            (read.tcp4, read.udp6, read.flow, read.listen),
            (addresses.tcp4, addresses.udp6, addresses.flow, addresses.listen)
        );
        assert_eq!(read.secret, addresses.secret);
        assert!(Addresses::from_words(&words[1..]).is_none());
    }

    #[test]
    fn attempts_travel_as_words() {
        for attempt in Attempt::ALL {
            assert_eq!(Attempt::from_word(attempt.word()), Some(attempt));
        }
        assert_eq!(Attempt::from_word("flow"), None);
    }

    #[test]
    fn from_here_the_attempts_succeed() {
        let directory = tempfile::tempdir().unwrap();
        let targets = Targets::new(directory.path()).unwrap();
        let addresses = targets.addresses();
        for attempt in [Attempt::Tcp4, Attempt::Udp4, Attempt::Secret, Attempt::ForeignSocket, Attempt::Name] {
            assert!(addresses.available(attempt).is_ok(), "{attempt:?}");
        }
        assert!(ask_for_a_name().is_err_and(|error| error.raw_os_error() != Some(libc::EPERM)), "nobody answers there");
        assert!(addresses.flow().is_ok());
        targets.drain();
        drop(targets);
        assert!(!addresses.secret.exists(), "nothing is left behind");
    }
}
