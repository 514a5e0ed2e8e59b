//! Running the demo's agent and passing on what it says.

use std::io::{self, BufRead, BufReader, PipeReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::goals::Goal;
use super::host::{self, Host};
use super::scenes::{How, Scene};
use super::servers::Servers;
use super::wait::{self, STEP};
use crate::command::capture;

/// No agent takes longer, nor do those that it leaves behind.
const LIMIT: Duration = Duration::from_secs(30);

/// Programs that the agent uses where the machine has them; empty where not.
pub(super) struct Tools {
    curl: String,
    python: String,
}

impl Tools {
    /// Looks for those that work.
    pub(super) fn find() -> Self {
        Self {
            curl: said(Command::new("sh").args(["-c", "command -v curl && curl --version >&2"])),
            python: said(Command::new("python3").args(["-c", "import sys; print(sys.executable)"])),
        }
    }

    /// Their names, for people.
    pub(super) fn names(&self) -> String {
        let optional = [("curl", &self.curl), ("python3", &self.python)];
        let found = optional.into_iter().filter(|(_, path)| !path.is_empty()).map(|(name, _)| name);
        std::iter::once("bash").chain(found).collect::<Vec<_>>().join(", ")
    }
}

/// What a program says, if it runs and succeeds.
fn said(command: &mut Command) -> String {
    let output = capture(command).ok().filter(|output| output.status.success());
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// The command line of a scene as a person would write it.
pub(super) fn shown(scene: &Scene, goals: &[Goal]) -> String {
    let script = format!("bash agent.sh {}", words(scene, goals).join(" "));
    match scene.task {
        Some(options) => format!("writ run {options} -- {script}"),
        None => script,
    }
}

/// What the script is told to do.
fn words(scene: &Scene, goals: &[Goal]) -> Vec<&'static str> {
    let how = match scene.how {
        How::Once => None,
        How::Orphan => Some("--orphan"),
        How::UntilExpired | How::UntilRevoked => Some("--until-refused"),
    };
    how.into_iter().chain(goals.iter().map(|goal| goal.word())).collect()
}

/// Runs a scene's agent until the last of its processes has closed its output, and hands each line to `heed` at once.
pub(super) fn run(
    host: &Host,
    servers: &Servers,
    tools: &Tools,
    scene: &Scene,
    goals: &[Goal],
    mut heed: impl FnMut(&str) -> Result<()>,
) -> Result<Vec<String>> {
    let (reader, writer) = io::pipe()?;
    let mut command = command(host, scene, goals);
    environment(&mut command, host, servers, tools);
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let agent = Agent(command.spawn().context("cannot start the agent")?);
    // It holds the ends of the pipe into which the agent writes.
    drop(command);
    let lines = lines(reader);
    let deadline = Instant::now() + LIMIT;
    let mut output = Vec::new();
    loop {
        wait::check()?;
        match lines.recv_timeout(STEP) {
            Ok(line) => {
                heed(&line)?;
                output.push(line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => bail!("the agent does not end"),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    drop(agent);
    Ok(output)
}

fn command(host: &Host, scene: &Scene, goals: &[Goal]) -> Command {
    let mut command = match scene.task {
        Some(options) => {
            let mut writ = host.writ(["run"]);
            writ.args(options.split(' ')).args(["--", "bash"]);
            writ
        }
        None => Command::new("bash"),
    };
    command.arg(host.script()).args(words(scene, goals));
    command
}

fn environment(command: &mut Command, host: &Host, servers: &Servers, tools: &Tools) {
    let Servers { web, proxy, echo, .. } = servers;
    for (name, port) in [("WEB", web), ("PROXY", proxy), ("ECHO", echo)] {
        command.env(name, port.to_string());
    }
    command.env("CURL", &tools.curl).env("PYTHON", &tools.python).env("HOME", host.home()).env("LC_ALL", "C");
}

/// A running agent; dropping it ends it and its process group.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        host::end(&mut self.0, Duration::ZERO);
    }
}

/// Reads in a thread, so that waiting for a line can have an end.
fn lines(reader: PipeReader) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(io::Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    receiver
}
