//! The canary: a marked process that really tries each path, so that nothing is claimed which is not refused.
//!
//! Each attempt is made first by the daemon, unmarked, where it must succeed: only then does the refusal mean anything.
//! The child is this same program, started with the hidden flag `--canary`. It lives as long as the daemon does: a line of
//! words comes in, and for each word a line goes out that says what came of it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::attempt::{Addresses, Attempt, Outcome, connect};

/// The word for a datagram on the socket whose datagrams are to be dropped later.
const FLOW: &str = "flow";
/// What the child says once it has what it is to have from before its mark.
const READY: &str = "ready";
/// How long a program may take to start.
const START: Duration = Duration::from_secs(10);
/// Longest answer that a child gives.
const MAX_LINE: usize = 4096;

/// What came of each attempt.
pub(super) type Outcomes = BTreeMap<Attempt, Outcome>;

/// The child, and what the daemon itself can do.
pub(super) struct Canary {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    read: Vec<u8>,
    available: BTreeMap<Attempt, io::Result<()>>,
}

impl Canary {
    /// Tries everything from here, then starts the child, which connects one socket and does nothing more before
    /// [`Canary::run`].
    pub(super) fn start(addresses: &Addresses, attempts: &[Attempt]) -> io::Result<Self> {
        let available = attempts.iter().map(|&attempt| (attempt, addresses.available(attempt))).collect();
        let mut child = Command::new("/proc/self/exe")
            .arg("--canary")
            .args(addresses.to_words())
            .arg(addresses.secret())
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let missing = || io::Error::other("the child has no pipes");
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = child.stdout.take().ok_or_else(missing)?;
        let mut canary = Self { child, input, output, read: Vec::new(), available };
        match canary.answer(READY, Instant::now() + START)?.as_str() {
            "ok" => Ok(canary),
            other => Err(io::Error::other(format!("it has no socket to begin with: {other}"))),
        }
    }

    /// The child's process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets the marked child try. `end` is called when it holds a connected socket, to end its task.
    ///
    /// # Errors
    /// If it does not answer within `limit`, or not so that it can be understood: it is of no more use then.
    pub(super) fn run(&mut self, attempts: &[Attempt], limit: Duration, end: impl FnOnce()) -> io::Result<Outcomes> {
        let until = Instant::now() + limit;
        let at_once = || attempts.iter().copied().filter(|attempt| *attempt != Attempt::Egress);
        let words: Vec<&str> = at_once().map(Attempt::word).chain([FLOW]).collect();
        self.tell(&words)?;
        let mut outcomes = Outcomes::new();
        for attempt in at_once() {
            outcomes.insert(attempt, self.outcome(attempt, until)?);
        }
        let first = self.answer(FLOW, until)?;
        end();
        if attempts.contains(&Attempt::Egress) {
            self.tell(&[Attempt::Egress.word()])?;
            outcomes.insert(Attempt::Egress, egress(&first, &self.answer(Attempt::Egress.word(), until)?));
        }
        Ok(outcomes)
    }

    fn tell(&mut self, words: &[&str]) -> io::Result<()> {
        self.input.write_all(format!("{}\n", words.join(" ")).as_bytes())
    }

    fn outcome(&mut self, attempt: Attempt, until: Instant) -> io::Result<Outcome> {
        let answer = self.answer(attempt.word(), until)?;
        Ok(match (self.available.get(&attempt), answer.as_str()) {
            (Some(Err(error)), _) => Outcome::Unavailable(error.to_string()),
            (_, "EPERM") => Outcome::Refused,
            (_, "ok") => Outcome::Through,
            (_, other) => Outcome::Failed(other.to_owned()),
        })
    }

    /// The child's line for a word: `WORD RESULT`.
    fn answer(&mut self, word: &str, until: Instant) -> io::Result<String> {
        let line = self.line(until)?;
        let answer = line.strip_prefix(word).map(str::trim);
        answer.map(str::to_owned).ok_or_else(|| io::Error::other(format!("it said `{line}`")))
    }

    fn line(&mut self, until: Instant) -> io::Result<String> {
        loop {
            if let Some(end) = self.read.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(line.trim_ascii_end()).into_owned());
            }
            if self.read.len() > MAX_LINE {
                return Err(io::Error::other("it says more than it was asked"));
            }
            self.wait(until)?;
            let mut bytes = [0; 1024];
            let count = self.output.read(&mut bytes)?;
            if count == 0 {
                return Err(io::Error::other("it has ended"));
            }
            self.read.extend(bytes.iter().take(count));
        }
    }

    fn wait(&self, until: Instant) -> io::Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.output.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => Err(io::Error::other("it did not answer in time")),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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

/// The child's side: tries what it is told until nobody is there to tell it. Returns the exit code.
pub fn main(words: &[String]) -> u8 {
    match Addresses::from_words(words).map(|addresses| sing(&addresses)) {
        Some(Ok(())) => 0,
        _ => 1,
    }
}

/// What the child holds.
struct Held {
    /// Connected before the mark.
    foreign: UdpSocket,
    /// Connected under it.
    own: Option<UdpSocket>,
    /// Opened before the mark.
    secret: File,
}

fn sing(addresses: &Addresses) -> io::Result<()> {
    let ready = addresses.flow().and_then(|foreign| Ok((foreign, File::open(addresses.secret())?)));
    say(READY, &ready)?;
    let (foreign, secret) = ready?;
    let mut held = Held { foreign, own: None, secret };
    for line in io::stdin().lock().lines() {
        for word in line?.split_whitespace() {
            say(word, &try_word(addresses, &mut held, word))?;
        }
    }
    Ok(())
}

fn try_word(addresses: &Addresses, held: &mut Held, word: &str) -> io::Result<()> {
    match Attempt::from_word(word) {
        Some(Attempt::Forked) => forked(addresses),
        Some(Attempt::Egress) => send(held.own.as_ref()),
        Some(Attempt::ForeignSocket) => send(Some(&held.foreign)),
        Some(Attempt::HeldSecret) => held.secret.read_at(&mut [0], 0).map(drop),
        Some(other) => addresses.try_one(other),
        None => {
            if held.own.is_none() {
                held.own = Some(addresses.flow()?);
            }
            send(held.own.as_ref())
        }
    }
}

fn send(flow: Option<&UdpSocket>) -> io::Result<()> {
    flow.ok_or(io::ErrorKind::NotConnected)?.send(b"canary").map(drop)
}

/// The attempt of a child process, whose mark is its parent's.
fn forked(addresses: &Addresses) -> io::Result<()> {
    let code = Command::new("/proc/self/exe")
        .arg("--canary-child")
        .arg(addresses.tcp4.map_or_else(String::new, |address| address.to_string()))
        .stdin(Stdio::null())
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

fn say<T>(word: &str, result: &io::Result<T>) -> io::Result<()> {
    let text = match result {
        Ok(_) => "ok".to_owned(),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => "EPERM".to_owned(),
        Err(error) => error.to_string().replace('\n', " "),
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{word} {text}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_counts_as_cut_only_if_it_flowed_before() {
        assert_eq!(egress("ok", "EPERM"), Outcome::Refused);
        assert_eq!(egress("ok", "ok"), Outcome::Through);
        assert_eq!(egress("ok", "timed out"), Outcome::Failed("timed out".into()));
        assert!(matches!(egress("EPERM", "EPERM"), Outcome::Unavailable(_)));
    }

    /// A shell in the child's place.
    fn script(text: &str) -> Canary {
        let mut child =
            Command::new("sh").args(["-c", text]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let unavailable = Err(io::Error::other("no IPv6"));
        let available = [(Attempt::Tcp4, Ok(())), (Attempt::Tcp6, unavailable)].into();
        Canary { child, input, output, read: Vec::new(), available }
    }

    fn run(text: &str, attempts: &[Attempt]) -> io::Result<Outcomes> {
        script(text).run(attempts, Duration::from_millis(500), || {})
    }

    #[test]
    fn what_the_child_says_is_held_against_what_the_daemon_can() {
        let says = "read a; printf 'tcp4 EPERM\\ntcp6 EPERM\\nudp4 ok\\nudp6 no'; echo ' such'; echo flow ok; read b";
        let outcomes = run(says, &[Attempt::Tcp4, Attempt::Tcp6, Attempt::Udp4, Attempt::Udp6]).unwrap();
        let expected = [
            (Attempt::Tcp4, Outcome::Refused),
            (Attempt::Tcp6, Outcome::Unavailable("no IPv6".into())),
            (Attempt::Udp4, Outcome::Through),
            (Attempt::Udp6, Outcome::Failed("no such".into())),
        ];
        assert_eq!(outcomes, expected.into());
    }

    #[test]
    fn a_child_that_is_silent_dead_or_beside_itself_is_an_error() {
        for (text, expected) in [
            ("read a; sleep 5", "in time"),
            ("read a", "ended"),
            ("read a; echo no; sleep 5", "`no`"),
            ("read a; yes | tr -d '\\n' | head -c 9999; sleep 5", "more than"),
        ] {
            let error = run(text, &[Attempt::Tcp4]).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
