//! `writ run` as a process: what the command gets, and how a failure ends. The daemon is a script on a socket.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test's helpers fail by panicking")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tempfile::TempDir;

const TASK: &str = r#"{"id":"t-0000000000001","agent":"coder","intent":"fix-bug","goal":null,"on_behalf_of":null,
    "chain":[],"argv":[],"grant_read":[],"grant_connect":[],"status":"active","mode":"enforce",
    "on_daemon_loss":"deny","started_at":0,"expires_at":0,"ended_at":null,"processes":1,
    "counts":{"allowed":0,"denied":0,"would_denied":0},"slot":0,"epoch":1}"#;

/// Answers one request and gives its sender's process id and its text.
struct Daemon {
    directory: TempDir,
    served: JoinHandle<(i32, String)>,
}

impl Daemon {
    fn answering(status: &'static str, body: &'static str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("writd.sock")).unwrap();
        let served = std::thread::spawn(move || answer(&listener.accept().unwrap().0, status, body));
        Self { directory, served }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("writd.sock")
    }
}

fn answer(mut stream: &UnixStream, status: &str, body: &str) -> (i32, String) {
    let pid = getsockopt(&stream, PeerCredentials).unwrap().pid();
    let mut request = Vec::new();
    while !is_whole(&request) {
        let mut chunk = [0; 4096];
        let length = stream.read(&mut chunk).unwrap();
        assert!(length > 0, "the request broke off");
        request.extend(&chunk[..length]);
    }
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    (pid, String::from_utf8(request).unwrap())
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}

fn writ_run(socket: &Path, command: &[&str]) -> Command {
    let mut writ = Command::new(env!("CARGO_BIN_EXE_writ"));
    writ.arg("--socket").arg(socket).args(["run", "--agent", "coder", "--intent", "fix-bug", "--"]).args(command);
    writ
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_command_is_the_very_process_that_the_daemon_was_asked_to_mark() {
    let daemon = Daemon::answering("201 Created", TASK);
    let writ = writ_run(&daemon.socket(), &["sh", "-c", "echo $$ $WRIT_TASK; exit 7"]).output().unwrap();
    let (pid, request) = daemon.served.join().unwrap();
    assert_eq!(String::from_utf8_lossy(&writ.stdout), format!("{pid} t-0000000000001\n"), "{}", stderr(&writ));
    assert_eq!((writ.status.code(), stderr(&writ).as_str()), (Some(7), ""));
    assert!(request.starts_with("POST /v1/tasks ") && request.contains(r#""mark":"caller""#), "{request}");
}

#[test]
fn the_command_inherits_no_descriptor_but_the_first_three() {
    let daemon = Daemon::answering("201 Created", TASK);
    let (leak, _other) = UnixStream::pair().unwrap();
    let mut writ = writ_run(&daemon.socket(), &["ls", "/proc/self/fd"]);
    // SAFETY: the closure clears one flag of an open descriptor, which is async-signal-safe, and touches no memory.
    unsafe {
        writ.pre_exec(move || Ok(fcntl(&leak, FcntlArg::F_SETFD(FdFlag::empty())).map(drop)?));
    }
    let writ = writ.output().unwrap();
    // The fourth is the directory that `ls` itself has open.
    assert_eq!(String::from_utf8_lossy(&writ.stdout), "0\n1\n2\n3\n", "{}", stderr(&writ));
}

#[test]
fn a_signal_ends_the_command_and_is_seen_by_who_started_it() {
    let daemon = Daemon::answering("201 Created", TASK);
    let writ = writ_run(&daemon.socket(), &["sh", "-c", "kill -TERM $$"]).output().unwrap();
    assert_eq!(writ.status.signal(), Some(15), "{}", stderr(&writ));
}

#[test]
fn a_broken_pipe_ends_the_command_as_it_would_without_writ() {
    let daemon = Daemon::answering("201 Created", TASK);
    let mut writ = writ_run(&daemon.socket(), &["sh", "-c", "kill -PIPE $$"]).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(writ.wait().unwrap().signal(), Some(13));
}

#[test]
fn a_refused_task_starts_nothing() {
    let refusal = r#"{"error":"unknown","message":"unknown agent `coder`","next":"add it"}"#;
    let daemon = Daemon::answering("400 Bad Request", refusal);
    let writ = writ_run(&daemon.socket(), &["echo", "started"]).output().unwrap();
    assert_eq!((writ.status.code(), writ.stdout.len()), (Some(125), 0));
    assert_eq!(stderr(&writ), "writ: `echo` was not started: unknown agent `coder`; add it\n");
}

#[test]
fn without_a_daemon_nothing_starts() {
    let writ = writ_run(Path::new("/nonexistent/writd.sock"), &["echo", "started"]).output().unwrap();
    assert_eq!((writ.status.code(), writ.stdout.len()), (Some(125), 0));
    assert!(stderr(&writ).contains("no daemon at `/nonexistent/writd.sock`"), "{}", stderr(&writ));
}

#[test]
fn a_command_that_cannot_be_executed_ends_as_in_a_shell() {
    for (command, code, text) in [
        ("/nonexistent/x", 127, "writ: `/nonexistent/x` was not found; check its name and PATH\n"),
        ("/etc/passwd", 126, "writ: `/etc/passwd` cannot be executed: Permission denied"),
    ] {
        let daemon = Daemon::answering("201 Created", TASK);
        let writ = writ_run(&daemon.socket(), &[command]).output().unwrap();
        assert_eq!(writ.status.code(), Some(code), "{}", stderr(&writ));
        assert!(stderr(&writ).starts_with(text), "{}", stderr(&writ));
    }
}
