//! Processes under a task, and the same processes without one.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};

use anyhow::{Context, Result, bail, ensure};

use super::wait::{bound, until};
use super::world::World;

/// A task to be.
#[derive(Debug)]
pub(crate) struct Task<'a> {
    world: &'a World,
    intent: &'static str,
    options: Vec<String>,
    stdin: Option<OwnedFd>,
}

impl<'a> Task<'a> {
    pub(crate) fn new(world: &'a World) -> Self {
        let options = ["--agent", "coder"].map(str::to_owned).to_vec();
        Self { world, intent: "fix-bug", options, stdin: None }
    }

    /// Another intent than the usual one, which may change its surroundings.
    pub(crate) fn intent(mut self, intent: &'static str) -> Self {
        self.intent = intent;
        self
    }

    pub(crate) fn option(mut self, name: &str, value: &str) -> Self {
        self.options.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Another agent than the usual one.
    pub(crate) fn agent(mut self, id: &str) -> Self {
        if let Some(agent) = self.options.get_mut(1) {
            id.clone_into(agent);
        }
        self
    }

    pub(crate) fn connect(self, label: &str) -> Self {
        self.option("--grant-connect", label)
    }

    pub(crate) fn read(self, label: &str) -> Self {
        self.option("--grant-read", label)
    }

    /// `seconds` of a plain host.
    pub(crate) fn ttl(self, seconds: u64) -> Self {
        let text = format!("{}s", bound(seconds).as_secs());
        self.option("--ttl", &text)
    }

    pub(crate) fn audit(self) -> Self {
        self.option("--mode", "audit")
    }

    pub(crate) fn stdin(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.stdin = Some(fd.into());
        self
    }

    /// The probe under this task.
    fn command(self, words: &[&str]) -> Command {
        let mut command = self.world.daemon.writ(&["run", "-v"]);
        command
            .args(&self.options)
            .args(["--intent", self.intent, "--"])
            .arg(self.world.machine.program("writ-probe"))
            .args(words);
        if let Some(fd) = self.stdin {
            command.stdin(fd);
        }
        command
    }

    pub(crate) fn run(self, words: &[&str]) -> Result<Ran> {
        let daemon = &self.world.daemon;
        run(self.command(words)).map_err(|error| daemon.with_log(&error))
    }

    /// A probe that does one action after the other.
    pub(crate) fn session(self) -> Result<Session> {
        Session::new(self.command(&["serve"]))
    }
}

/// What a program did, to its end and that of its descendants.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) lines: Vec<String>,
    pub(crate) stderr: String,
    pub(crate) status: ExitStatus,
}

impl Ran {
    /// The task's id, as `writ run -v` says it.
    pub(crate) fn task(&self) -> Result<&str> {
        let said = self.stderr.lines().find_map(|line| line.strip_prefix("writ: task "));
        said.with_context(|| format!("no task was opened: {}", self.stderr))
    }

    pub(crate) fn expect(&self, lines: &[&str]) -> Result<()> {
        ensure!(self.lines == lines, "{lines:?} was expected: {self:?}");
        Ok(())
    }

    /// `EPERM` and nothing else.
    pub(crate) fn expect_refused(&self) -> Result<()> {
        self.expect(&["errno EPERM"])
    }
}

/// Runs to the end of its output, which descendants share.
pub(crate) fn run(mut command: Command) -> Result<Ran> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stdout = reader(child.stdout.take());
    let stderr = reader(child.stderr.take());
    let output = stdout.recv_timeout(bound(60));
    let Ok(output) = output else {
        child.kill()?;
        child.wait()?;
        bail!("{command:?} did not end within {:?}", bound(60));
    };
    let stderr = stderr.recv_timeout(bound(10)).context("standard error is still open")?;
    let lines = output.lines().map(str::to_owned).collect();
    let status = until("the end of the program", 10, || Ok(child.try_wait()?))?;
    Ok(Ran { lines, stderr, status })
}

/// Reads everything on a thread of its own.
fn reader(stream: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let read = stream.map(|mut stream| stream.read_to_end(&mut text));
        if let Some(Ok(_)) = read {
            // The receiver may have given up.
            let _ = sender.send(String::from_utf8_lossy(&text).into_owned());
        }
    });
    receiver
}

/// A probe that does what it is told, line by line.
#[derive(Debug)]
pub(crate) struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Session {
    pub(crate) fn new(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("a pipe was asked for")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, stdin, lines })
    }

    /// What became of one action.
    pub(crate) fn ask(&mut self, words: &[&str]) -> Result<Vec<String>> {
        self.tell(words)?;
        self.answer().with_context(|| format!("no answer to {words:?}"))
    }

    /// What became of what it was told.
    pub(crate) fn answer(&mut self) -> Result<Vec<String>> {
        let mut answer = Vec::new();
        loop {
            let line = self.lines.recv_timeout(bound(30))?;
            if line == "." {
                return Ok(answer);
            }
            answer.push(line);
        }
    }

    /// Asks without waiting for what became of it.
    pub(crate) fn tell(&mut self, words: &[&str]) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the session has been closed")?;
        Ok(stdin.write_all(format!("{}\n", words.join(" ")).as_bytes())?)
    }

    pub(crate) fn expect(&mut self, words: &[&str], lines: &[&str]) -> Result<()> {
        let answer = self.ask(words)?;
        ensure!(answer == lines, "{words:?} gave {answer:?}, not {lines:?}");
        Ok(())
    }

    /// The task's id.
    pub(crate) fn task(&mut self) -> Result<String> {
        let id = self.ask(&["env", "WRIT_TASK"])?.concat();
        ensure!(id.starts_with("t-"), "WRIT_TASK is `{id}`");
        Ok(id)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it end.
    pub(crate) fn close(mut self) -> Result<ExitStatus> {
        drop(self.stdin.take());
        self.wait_for_end()
    }

    pub(crate) fn wait_for_end(&mut self) -> Result<ExitStatus> {
        until("the end of the session", 15, || Ok(self.child.try_wait()?))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended already; either way it is reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
