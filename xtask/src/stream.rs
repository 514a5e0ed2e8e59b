//! Runs a program within a time limit and passes its output on while it comes.

use std::io::{ErrorKind, Read, Write};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How a program ended and what it wrote to standard output.
pub(crate) struct Streamed {
    /// `None` if the time limit ended it.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) output: String,
}

/// Runs `command` without input for at most `limit`. Its output goes to standard output at once, and is kept as well.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Result<Streamed> {
    run_into(command, limit, &mut std::io::stdout())
}

/// The same, but the output is only kept.
pub(crate) fn run_quietly(command: &mut Command, limit: Duration) -> Result<Streamed> {
    run_into(command, limit, &mut std::io::sink())
}

fn run_into(command: &mut Command, limit: Duration, out: &mut dyn Write) -> Result<Streamed> {
    let program = command.get_program().to_string_lossy().into_owned();
    let started = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start `{program}`"))?;
    let output = child.stdout.take().context("a started program has no output")?;
    let mut kept = Vec::new();
    let in_time = pass_on(&chunks(output), started + limit, out, &mut kept)?;
    if !in_time {
        child.kill().with_context(|| format!("cannot stop `{program}`"))?;
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{program}`"))?;
    let output = String::from_utf8_lossy(&kept).into_owned();
    Ok(Streamed { status: in_time.then_some(status), output })
}

/// Copies chunks to `out` and into `kept`; false when the deadline came before the end.
fn pass_on(chunks: &Receiver<Vec<u8>>, deadline: Instant, out: &mut dyn Write, kept: &mut Vec<u8>) -> Result<bool> {
    loop {
        match chunks.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(chunk) => {
                out.write_all(&chunk)?;
                out.flush()?;
                kept.extend_from_slice(&chunk);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(true),
            Err(RecvTimeoutError::Timeout) => return Ok(false),
        }
    }
}

/// Reads in a thread, so that waiting for output can have an end.
fn chunks(mut output: ChildStdout) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut buffer = [0; 8192];
        loop {
            match output.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    let chunk = buffer.get(..length).unwrap_or_default().to_vec();
                    if sender.send(chunk).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::command;

    #[test]
    fn output_and_status_are_kept() {
        let mut shown = Vec::new();
        let mut shell = command("sh", ["-c", "echo out; exit 3"]);
        let streamed = run_into(&mut shell, Duration::from_secs(60), &mut shown).unwrap();
        assert_eq!((streamed.output.as_str(), shown.as_slice()), ("out\n", b"out\n".as_slice()));
        assert_eq!(streamed.status.unwrap().code(), Some(3));
    }

    #[test]
    fn the_limit_ends_a_program() {
        let streamed = run(&mut command("sleep", ["600"]), Duration::from_millis(50)).unwrap();
        assert!(streamed.status.is_none());
    }
}
