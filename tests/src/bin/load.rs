//! `writ-load`: does one operation again and again and says how long each batch took, for `cargo xtask bench`.
//!
//! It reads commands from standard input, one a line, and answers each with one line: `ok` and numbers, or `error` and
//! why. Times are nanoseconds of the monotonic clock; in a guest whose clock counts instructions they are instructions.
//!
//! | command | answer |
//! |---|---|
//! | `open PATH COUNT BATCHES` | a time for each batch of open and close |
//! | `read PATH COUNT BATCHES` | of reading one byte of a file that is open |
//! | `tcp ADDRESS COUNT BATCHES` | of socket, connect and close, the connection reset |
//! | `udp ADDRESS COUNT BATCHES` | of connect on one UDP socket |
//! | `sendto COUNT BATCHES` | of sending a datagram from an unconnected socket |
//! | `first ADDRESS COUNT GAP` | how many connects were refused, then the time of each, with GAP microseconds between them; each goes to the next address |
//! | `listen` | the port of a TCP server on every address |
//! | `drain` | how many connections that server has taken in since |
//! | `flows ADDRESS COUNT` | nothing, once so many TCP connections are open, on which a thread sends all the time |
//! | `revoke SOCKET TASK COUNT` | takes so many connections in, waits until all of them send, revokes the task by the daemon's socket: how long that took, then for each connection how long after the call its last byte came |
//! | `peer` | the port of a TCP server on loopback that answers each block with one byte |
//! | `blocks ADDRESS SIZE COUNT BATCHES` | a time for each batch of blocks sent to such a server and answered |

use std::io::{self, BufRead, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::str::FromStr;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::Linger;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrIn, accept, bind, connect, getsockname, listen, recv,
    sendto, setsockopt, socket,
};
use nix::sys::stat::Mode;
use nix::sys::uio::pread;

/// How long an operation may be refused before the first batch: where the daemon cannot answer while the caller waits, a
/// verdict is there at the next attempt.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that the server keeps until it is told to drain.
const BACKLOG: i32 = 4096;
/// After so long without a byte none is on its way any more: a held-up segment is sent again sooner.
const SILENCE: Duration = Duration::from_millis(400);

fn main() -> ExitCode {
    let mut server = None;
    for line in io::stdin().lock().lines() {
        let answer = line.map_err(Into::into).and_then(|line| obey(&line, &mut server));
        let text = match answer {
            Ok(numbers) => numbers.iter().fold("ok".to_owned(), |text, number| format!("{text} {number}")),
            Err(error) => format!("error {error:#}"),
        };
        if writeln!(io::stdout(), "{text}").is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn obey(line: &str, server: &mut Option<OwnedFd>) -> Result<Vec<u64>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["open", path, count, batches] => opens(path, Plan::new(count, batches)?),
        ["read", path, count, batches] => reads(path, Plan::new(count, batches)?),
        ["tcp", address, count, batches] => tcp(parse(address)?, Plan::new(count, batches)?),
        ["udp", address, count, batches] => udp(parse(address)?, Plan::new(count, batches)?),
        ["sendto", count, batches] => datagrams(Plan::new(count, batches)?),
        ["first", address, count, gap] => first(parse(address)?, parse(count)?, Duration::from_micros(parse(gap)?)),
        ["listen"] => serve(server),
        ["flows", address, count] => flows(parse(address)?, parse(count)?),
        ["revoke", daemon, task, count] => {
            revoke(server.as_ref().context("there is no server")?, daemon, task, parse(count)?)
        }
        ["peer"] => peer(),
        ["blocks", address, size, count, batches] => blocks(parse(address)?, parse(size)?, Plan::new(count, batches)?),
        ["drain"] => drain(server.as_ref().context("there is no server")?),
        _ => Err(anyhow!("`{line}` is no command")),
    }
}

fn parse<T: FromStr>(word: &str) -> Result<T> {
    word.parse().map_err(|_| anyhow!("`{word}` cannot be used here"))
}

/// How often.
#[derive(Clone, Copy)]
struct Plan {
    count: u32,
    batches: u32,
}

impl Plan {
    fn new(count: &str, batches: &str) -> Result<Self> {
        Ok(Self { count: parse(count)?, batches: parse(batches)? })
    }

    /// Times the batches. `between` is called after each and not timed.
    fn run(self, mut operation: impl FnMut() -> nix::Result<()>, mut between: impl FnMut()) -> Result<Vec<u64>> {
        warm_up(&mut operation)?;
        let mut times = Vec::new();
        for _ in 0..self.batches {
            let started = Instant::now();
            for _ in 0..self.count {
                operation()?;
            }
            times.push(nanoseconds(started));
            between();
        }
        Ok(times)
    }
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn warm_up(operation: &mut impl FnMut() -> nix::Result<()>) -> Result<()> {
    let started = Instant::now();
    loop {
        match operation() {
            Err(Errno::EPERM) if started.elapsed() < PATIENCE => sleep(Duration::from_millis(1)),
            result => return result.context("the operation fails"),
        }
    }
}

fn opens(path: &str, plan: Plan) -> Result<Vec<u64>> {
    plan.run(|| open_file(path).map(drop), || ())
}

fn open_file(path: &str) -> nix::Result<OwnedFd> {
    open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

fn reads(path: &str, plan: Plan) -> Result<Vec<u64>> {
    warm_up(&mut || open_file(path).map(drop))?;
    let file = open_file(path)?;
    plan.run(|| pread(&file, &mut [0], 0).map(drop), || ())
}

fn tcp(to: SocketAddrV4, plan: Plan) -> Result<Vec<u64>> {
    let to = SockaddrIn::from(to);
    let operation = || {
        let socket = stream()?;
        connect(socket.as_raw_fd(), &to)
    };
    plan.run(operation, || ())
}

/// A TCP socket whose close resets the connection, so that no port stays taken.
fn stream() -> nix::Result<OwnedFd> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(socket)
}

fn udp(to: SocketAddrV4, plan: Plan) -> Result<Vec<u64>> {
    let (socket, to) = (datagram_socket()?, SockaddrIn::from(to));
    plan.run(|| connect(socket.as_raw_fd(), &to), || ())
}

fn datagram_socket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
}

/// To a receiver of this process's own, emptied after each batch: what arrives at a full one takes another path.
fn datagrams(plan: Plan) -> Result<Vec<u64>> {
    let (sender, receiver) = (datagram_socket()?, datagram_socket()?);
    bind(receiver.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)))?;
    let to: SockaddrIn = getsockname(receiver.as_raw_fd())?;
    let operation = || sendto(sender.as_raw_fd(), b"x", &to, MsgFlags::empty()).map(drop);
    plan.run(operation, || while recv(receiver.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT).is_ok() {})
}

fn first(from: SocketAddrV4, count: u32, gap: Duration) -> Result<Vec<u64>> {
    let (mut refused, mut times) = (0, Vec::new());
    for number in 0..count {
        let address = Ipv4Addr::from_bits(from.ip().to_bits() + number);
        let to = SockaddrIn::from(SocketAddrV4::new(address, from.port()));
        let socket = stream()?;
        let started = Instant::now();
        let result = connect(socket.as_raw_fd(), &to);
        times.push(nanoseconds(started));
        match result {
            Err(Errno::EPERM) => refused += 1,
            result => result.with_context(|| format!("cannot connect to {to}"))?,
        }
        sleep(gap);
    }
    Ok([vec![refused], times].concat())
}

fn serve(server: &mut Option<OwnedFd>) -> Result<Vec<u64>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = server.insert(socket(AddressFamily::Inet, SockType::Stream, flags, None)?);
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)))?;
    listen(socket, Backlog::new(BACKLOG)?)?;
    let bound: SockaddrIn = getsockname(socket.as_raw_fd())?;
    Ok(vec![bound.port().into()])
}

/// Serves until this process ends.
fn peer() -> Result<Vec<u64>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A client that goes away ends its own thread only.
            std::thread::spawn(move || answer_blocks(stream));
        }
    });
    Ok(vec![port.into()])
}

/// The first four bytes tell how long each block is.
fn answer_blocks(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    let mut block = vec![0; u32::from_ne_bytes(size) as usize];
    loop {
        stream.read_exact(&mut block)?;
        stream.write_all(b"x")?;
    }
}

fn blocks(to: SocketAddrV4, size: u32, plan: Plan) -> Result<Vec<u64>> {
    let mut stream = connected(to)?;
    stream.write_all(&size.to_ne_bytes())?;
    let block = vec![0; size as usize];
    let mut send = || stream.write_all(&block).and_then(|()| stream.read_exact(&mut [0]));
    plan.run(|| send().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))), || ())
}

/// Where the daemon cannot answer while the caller waits, a verdict is there at the next attempt.
fn connected(to: SocketAddrV4) -> Result<TcpStream> {
    let mut made = None;
    warm_up(&mut || {
        made =
            Some(TcpStream::connect(to).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?);
        Ok(())
    })?;
    let stream = made.context("there is no connection")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn drain(server: &OwnedFd) -> Result<Vec<u64>> {
    let mut taken = 0;
    loop {
        match accept(server.as_raw_fd()) {
            // SAFETY: the descriptor is new and nobody else's.
            Ok(connection) => drop(unsafe { OwnedFd::from_raw_fd(connection) }),
            Err(Errno::EAGAIN) => return Ok(vec![taken]),
            Err(error) => return Err(error.into()),
        }
        taken += 1;
    }
}

fn flows(to: SocketAddrV4, count: u32) -> Result<Vec<u64>> {
    let to = SockaddrIn::from(to);
    warm_up(&mut || connect(stream()?.as_raw_fd(), &to))?;
    let open = |_| -> Result<OwnedFd> {
        let socket = stream()?;
        connect(socket.as_raw_fd(), &to).context("cannot connect")?;
        Ok(socket)
    };
    let sockets = (0..count).map(open).collect::<Result<Vec<OwnedFd>>>()?;
    // Until the process ends: what a revoked task is told is of no interest here.
    thread::spawn(move || {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            let sent =
                sockets.iter().filter(|socket| nix::sys::socket::send(socket.as_raw_fd(), &[0; 64], flags).is_ok());
            if sent.count() == 0 {
                thread::yield_now();
            }
        }
    });
    Ok(Vec::new())
}

fn revoke(server: &OwnedFd, daemon: &str, task: &str, count: usize) -> Result<Vec<u64>> {
    let peers = take_in(server, count)?;
    let mut last = vec![None; count];
    let started = Instant::now();
    while last.iter().any(Option::is_none) && started.elapsed() < PATIENCE {
        receive(&peers, &mut last)?;
    }
    let mut stream = UnixStream::connect(daemon).context("cannot reach the daemon")?;
    let head = format!(
        "POST /v1/tasks/{task}/revoke HTTP/1.1\r\nHost: writ\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    let called = Instant::now();
    let call = thread::spawn(move || -> Result<u64> {
        stream.write_all(head.as_bytes())?;
        let mut answer = [0; 15];
        stream.read_exact(&mut answer)?;
        let took = nanoseconds(called);
        if answer.starts_with(b"HTTP/1.1 200") {
            Ok(took)
        } else {
            Err(anyhow!("the daemon does not revoke `{answer:?}`"))
        }
    });
    let mut newest = called;
    while newest.elapsed() < SILENCE || !call.is_finished() {
        if receive(&peers, &mut last)? {
            newest = Instant::now();
        }
    }
    let answered = call.join().map_err(|_| anyhow!("the call panicked"))??;
    let after = |at: &Option<Instant>| at.map_or(0, |at| at.saturating_duration_since(called).as_nanos());
    let after = last.iter().map(|at| u64::try_from(after(at)).unwrap_or(u64::MAX));
    Ok([answered].into_iter().chain(after).collect())
}

/// The first `count` connections that are not closed at once: one only warmed up.
fn take_in(server: &OwnedFd, count: usize) -> Result<Vec<OwnedFd>> {
    let (mut peers, started) = (Vec::new(), Instant::now());
    while peers.len() < count && started.elapsed() < PATIENCE {
        let connection = match accept(server.as_raw_fd()) {
            // SAFETY: the descriptor is new and nobody else's.
            Ok(connection) => unsafe { OwnedFd::from_raw_fd(connection) },
            Err(Errno::EAGAIN) => {
                sleep(Duration::from_millis(1));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if recv(connection.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) != Err(Errno::ECONNRESET)
        {
            peers.push(connection);
        }
    }
    Ok(peers)
}

/// Takes what has come and notes when it was there. Whether anything was.
fn receive(peers: &[OwnedFd], last: &mut [Option<Instant>]) -> Result<bool> {
    let mut fds: Vec<PollFd<'_>> = peers.iter().map(|peer| PollFd::new(peer.as_fd(), PollFlags::POLLIN)).collect();
    poll(&mut fds, PollTimeout::from(5_u8))?;
    let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
    let (mut any, mut buffer) = (false, vec![0; 1 << 16]);
    for ((peer, last), _) in peers.iter().zip(last).zip(ready).filter(|(_, ready)| *ready) {
        if recv(peer.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).is_ok_and(|bytes| bytes > 0) {
            (*last, any) = (Some(Instant::now()), true);
        }
    }
    Ok(any)
}
