//! The canary: a marked process that really tries each path, so that nothing is claimed which is not refused.
//!
//! Each attempt is made first by the daemon, unmarked, where it must succeed: only then does the refusal mean anything.
//! The child is this same program, started with the hidden flag `--canary`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

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
    Secret,
    UnixStream,
    UnixDatagram,
    /// A datagram from a socket that was connected before its task ended.
    Egress,
}

impl Attempt {
    pub(super) const ALL: [Self; 11] = [
        Self::Tcp4,
        Self::Tcp6,
        Self::Udp4,
        Self::Udp6,
        Self::Forked,
        Self::RawSocket,
        Self::PacketSocket,
        Self::Secret,
        Self::UnixStream,
        Self::UnixDatagram,
        Self::Egress,
    ];

    const fn word(self) -> &'static str {
        match self {
            Self::Tcp4 => "tcp4",
            Self::Tcp6 => "tcp6",
            Self::Udp4 => "udp4",
            Self::Udp6 => "udp6",
            Self::Forked => "forked",
            Self::RawSocket => "raw_socket",
            Self::PacketSocket => "packet_socket",
            Self::Secret => "secret",
            Self::UnixStream => "unix_stream",
            Self::UnixDatagram => "unix_datagram",
            Self::Egress => "egress",
        }
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
    unix_stream: Option<UnixListener>,
    unix_datagram: Option<UnixDatagram>,
    secret: PathBuf,
}

/// The same, as the child gets them.
#[derive(Clone, Debug)]
struct Addresses {
    tcp4: Option<SocketAddr>,
    tcp6: Option<SocketAddr>,
    udp4: Option<SocketAddr>,
    udp6: Option<SocketAddr>,
    flow: Option<SocketAddr>,
    secret: PathBuf,
}

impl Targets {
    /// Binds the servers and writes the file.
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        let secret = directory.join("canary-secret");
        // What an earlier daemon may have left.
        UNIX.iter().for_each(|name| drop(fs::remove_file(beside(&secret, name))));
        fs::write(&secret, "nothing to see\n")?;
        let (v4, v6) = ((Ipv4Addr::LOCALHOST, 0), (Ipv6Addr::LOCALHOST, 0));
        Ok(Self {
            tcp4: TcpListener::bind(v4).ok(),
            tcp6: TcpListener::bind(v6).ok(),
            udp4: UdpSocket::bind(v4).ok(),
            udp6: UdpSocket::bind(v6).ok(),
            flow: UdpSocket::bind(v4).ok(),
            unix_stream: UnixListener::bind(beside(&secret, STREAM))
                .ok()
                .filter(|own| own.set_nonblocking(true).is_ok()),
            unix_datagram: UnixDatagram::bind(beside(&secret, DATAGRAM))
                .ok()
                .filter(|own| own.set_nonblocking(true).is_ok()),
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

    fn addresses(&self) -> Addresses {
        let tcp = |listener: &Option<TcpListener>| listener.as_ref().and_then(|l| l.local_addr().ok());
        let udp = |socket: &Option<UdpSocket>| socket.as_ref().and_then(|s| s.local_addr().ok());
        Addresses {
            tcp4: tcp(&self.tcp4),
            tcp6: tcp(&self.tcp6),
            udp4: udp(&self.udp4),
            udp6: udp(&self.udp6),
            flow: udp(&self.flow),
            secret: self.secret.clone(),
        }
    }

    /// Takes in what the daemon's own attempts brought: nobody else does.
    fn empty(&self) {
        while self.unix_stream.as_ref().is_some_and(|own| own.accept().is_ok()) {}
        while self.unix_datagram.as_ref().is_some_and(|own| own.recv(&mut [0]).is_ok()) {}
    }
}

/// Names of the unix sockets, beside the secret.
const UNIX: [&str; 2] = [STREAM, DATAGRAM];
const STREAM: &str = "canary-stream";
const DATAGRAM: &str = "canary-datagram";

fn beside(secret: &Path, name: &str) -> PathBuf {
    secret.with_file_name(name)
}

impl Drop for Targets {
    fn drop(&mut self) {
        UNIX.iter().for_each(|name| drop(fs::remove_file(beside(&self.secret, name))));
        let _ = fs::remove_file(&self.secret);
    }
}

impl Addresses {
    fn try_one(&self, attempt: Attempt) -> io::Result<()> {
        match attempt {
            Attempt::Tcp4 | Attempt::Forked => connect(self.tcp4),
            Attempt::Tcp6 => connect(self.tcp6),
            Attempt::Udp4 => send(self.udp4),
            Attempt::Udp6 => send(self.udp6),
            Attempt::RawSocket => socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
            Attempt::PacketSocket => socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0),
            Attempt::Secret => File::open(&self.secret).map(drop),
            Attempt::UnixStream => UnixStream::connect(beside(&self.secret, STREAM)).map(drop),
            Attempt::UnixDatagram => {
                UnixDatagram::unbound()?.send_to(b"canary", beside(&self.secret, DATAGRAM)).map(drop)
            }
            Attempt::Egress => Ok(()),
        }
    }

    fn to_words(&self) -> Vec<String> {
        let word = |address: Option<SocketAddr>| address.map_or_else(|| "-".to_owned(), |a| a.to_string());
        [self.tcp4, self.tcp6, self.udp4, self.udp6, self.flow].into_iter().map(word).collect()
    }

    fn from_words(words: &[String]) -> Option<Self> {
        let [tcp4, tcp6, udp4, udp6, flow, secret] = words else { return None };
        let (tcp4, tcp6, udp4, udp6) = (tcp4.parse().ok(), tcp6.parse().ok(), udp4.parse().ok(), udp6.parse().ok());
        Some(Self { tcp4, tcp6, udp4, udp6, flow: flow.parse().ok(), secret: PathBuf::from(secret) })
    }
}

fn connect(to: Option<SocketAddr>) -> io::Result<()> {
    TcpStream::connect_timeout(&to.ok_or(io::ErrorKind::AddrNotAvailable)?, Duration::from_secs(5)).map(drop)
}

fn send(to: Option<SocketAddr>) -> io::Result<()> {
    let to = to.ok_or(io::ErrorKind::AddrNotAvailable)?;
    unconnected(to)?.send_to(b"canary", to).map(drop)
}

fn unconnected(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0))
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<()> {
    // SAFETY: a plain system call; the descriptor is owned at once.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// The child, waiting to be marked.
pub(super) struct Canary {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    available: Vec<(Attempt, io::Result<()>)>,
}

impl Canary {
    /// Tries everything from here, then starts the child, which does nothing before [`Canary::run`].
    pub(super) fn start(targets: &Targets) -> io::Result<Self> {
        let addresses = targets.addresses();
        let available = Attempt::ALL.iter().map(|&attempt| (attempt, addresses.try_one(attempt))).collect();
        targets.empty();
        let mut child = Command::new("/proc/self/exe")
            .arg("--canary")
            .args(addresses.to_words())
            .arg(&addresses.secret)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let missing = || io::Error::other("the child has no pipes");
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        Ok(Self { child, input, output, available })
    }

    /// The child's process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets the marked child try everything. `end` is called when it holds a connected socket, to end its task.
    pub(super) fn run(mut self, end: impl FnOnce()) -> io::Result<Vec<(Attempt, Outcome)>> {
        self.input.write_all(b"go\n")?;
        let mut outcomes = Vec::new();
        for attempt in Attempt::ALL.iter().filter(|attempt| **attempt != Attempt::Egress) {
            outcomes.push((*attempt, self.outcome(*attempt)?));
        }
        let first = self.answer(Attempt::Egress)?;
        end();
        self.input.write_all(b"go\n")?;
        let second = self.answer(Attempt::Egress)?;
        outcomes.push((Attempt::Egress, egress(&first, &second)));
        drop(self.input);
        self.child.wait()?;
        Ok(outcomes)
    }

    fn outcome(&mut self, attempt: Attempt) -> io::Result<Outcome> {
        let answer = self.answer(attempt)?;
        let here = self.available.iter().find(|(other, _)| *other == attempt).map(|(_, result)| result);
        Ok(match (here, answer.as_str()) {
            (Some(Err(error)), _) => Outcome::Unavailable(error.to_string()),
            (_, "EPERM") => Outcome::Refused,
            (_, "ok") => Outcome::Through,
            (_, other) => Outcome::Failed(other.to_owned()),
        })
    }

    /// The child's line for an attempt: `WORD RESULT`.
    fn answer(&mut self, attempt: Attempt) -> io::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let answer = line.trim_end().strip_prefix(attempt.word()).map(str::trim);
        answer.map(str::to_owned).ok_or_else(|| io::Error::other(format!("the canary said `{}`", line.trim_end())))
    }
}

fn egress(first: &str, second: &str) -> Outcome {
    match (first, second) {
        ("ok", "EPERM") => Outcome::Refused,
        ("ok", "ok") => Outcome::Through,
        ("ok", other) => Outcome::Failed(other.to_owned()),
        (other, _) => Outcome::Unavailable(format!("the datagram before its task's end: {other}")),
    }
}

/// The child's side: waits for the word, tries everything, says what came of it. Returns the exit code.
pub fn main(words: &[String]) -> u8 {
    match Addresses::from_words(words).map(|addresses| sing(&addresses)) {
        Some(Ok(())) => 0,
        _ => 1,
    }
}

fn sing(addresses: &Addresses) -> io::Result<()> {
    let mut words = io::stdin().lock().lines();
    let mut wait = || words.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into())).map(drop);
    wait()?;
    for attempt in Attempt::ALL.into_iter().filter(|attempt| *attempt != Attempt::Egress) {
        let result = match attempt {
            Attempt::Forked => forked(addresses),
            other => addresses.try_one(other),
        };
        say(attempt, &result)?;
    }
    let flow = flow(addresses.flow);
    say(Attempt::Egress, &flow)?;
    wait()?;
    say(Attempt::Egress, &flow.and_then(|socket| socket.send(b"after").map(drop)))
}

/// The attempt of a child process, whose mark is its parent's.
fn forked(addresses: &Addresses) -> io::Result<()> {
    let code = Command::new("/proc/self/exe")
        .arg("--canary-child")
        .arg(addresses.tcp4.map_or_else(String::new, |address| address.to_string()))
        .status()?
        .code();
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code)),
        None => Err(io::Error::other("the child was killed")),
    }
}

/// The grandchild's side: connects, and exits with the error's number.
pub fn child(address: &OsStr) -> u8 {
    let result = connect(address.to_str().and_then(|address| address.parse().ok()));
    result.map_or_else(|error| error.raw_os_error().and_then(|code| u8::try_from(code).ok()).unwrap_or(255), |()| 0)
}

fn flow(to: Option<SocketAddr>) -> io::Result<UdpSocket> {
    let to = to.ok_or(io::ErrorKind::AddrNotAvailable)?;
    let socket = unconnected(to)?;
    socket.connect(to)?;
    socket.send(b"before")?;
    Ok(socket)
}

fn say<T>(attempt: Attempt, result: &io::Result<T>) -> io::Result<()> {
    let text = match result {
        Ok(_) => "ok".to_owned(),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => "EPERM".to_owned(),
        Err(error) => error.to_string().replace('\n', " "),
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{} {text}", attempt.word())?;
    out.flush()
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
        assert_eq!((read.tcp4, read.udp6, read.flow), (addresses.tcp4, addresses.udp6, addresses.flow));
        assert_eq!(read.secret, addresses.secret);
        assert!(Addresses::from_words(&words[1..]).is_none());
    }

    #[test]
    fn a_flow_counts_as_cut_only_if_it_flowed_before() {
        assert_eq!(egress("ok", "EPERM"), Outcome::Refused);
        assert_eq!(egress("ok", "ok"), Outcome::Through);
        assert_eq!(egress("ok", "timed out"), Outcome::Failed("timed out".into()));
        assert!(matches!(egress("EPERM", "EPERM"), Outcome::Unavailable(_)));
    }

    #[test]
    fn from_here_the_attempts_succeed() {
        let directory = tempfile::tempdir().unwrap();
        let targets = Targets::new(directory.path()).unwrap();
        let addresses = targets.addresses();
        for attempt in [Attempt::Tcp4, Attempt::Udp4, Attempt::Secret] {
            assert!(addresses.try_one(attempt).is_ok(), "{attempt:?}");
        }
        drop(targets);
        assert!(!addresses.secret.exists(), "nothing is left behind");
    }
}
