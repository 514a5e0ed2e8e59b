//! A real `writd`, with directories of its own, that leaves nothing behind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::machine::Machine;
use super::options::Options;
use super::pins::BpfFs;
use super::record::{self, Record};
use super::run::{Ran, run};
use super::wait::until;

/// What went wrong while something was cleaned up, where no test could fail for it any more.
static LEFT_BEHIND: Mutex<Vec<String>> = Mutex::new(Vec::new());

pub(crate) fn left_behind() -> Vec<String> {
    LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A directory tree of one daemon.
#[derive(Debug)]
pub(crate) struct Place {
    /// A BPF file system of its own, for daemons that pin: what is pinned there goes with it at the latest. Before the directory,
    /// which cannot be removed while something is mounted below it.
    bpffs: Option<BpfFs>,
    directory: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("writ-test-").tempdir()?;
        set_mode(directory.path(), 0o755)?;
        let place = Self { bpffs: None, directory };
        for name in ["etc/policies", "run", "state", "home"] {
            std::fs::create_dir_all(place.path(name))?;
        }
        Ok(place)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, content).with_context(|| format!("cannot write `{}`", path.display()))
    }

    /// Mounts a BPF file system, and returns where a daemon is to pin.
    pub(crate) fn with_bpffs(mut self) -> Result<Self> {
        self.bpffs = Some(BpfFs::mount(&self.path("bpf"))?);
        Ok(self)
    }

    pub(crate) fn pins(&self) -> PathBuf {
        self.path("bpf/writ")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run/writd.sock")
    }

    /// The command that starts a daemon here.
    pub(crate) fn command(&self, machine: &Machine, options: &Options) -> Result<Command> {
        self.write("etc/writd.toml", &options.settings())?;
        for (name, content) in &options.files {
            self.write(&format!("etc/{name}"), content)?;
        }
        let mut command = Command::new(machine.program("writd"));
        for (flag, name) in [
            ("--config-dir", "etc"),
            ("--runtime-dir", "run"),
            ("--state-dir", "state"),
            ("--records", "records.jsonl"),
            ("--home", "home"),
        ] {
            command.arg(flag).arg(self.path(name));
        }
        if options.pinned {
            command.arg("--pin-dir").arg(options.pin_dir.as_ref().unwrap_or(&self.pins()));
        } else {
            command.arg("--no-pin");
        }
        command.args(&options.arguments).stdin(Stdio::null());
        Ok(command)
    }

    /// `writd detach` with further arguments.
    pub(crate) fn detach(&self, machine: &Machine, arguments: &[&str]) -> Result<Ran> {
        let mut command = Command::new(machine.program("writd"));
        command.arg("detach");
        for (flag, name) in [
            ("--config-dir", "etc"),
            ("--runtime-dir", "run"),
            ("--state-dir", "state"),
            ("--records", "records.jsonl"),
        ] {
            command.arg(flag).arg(self.path(name));
        }
        command.arg("--pin-dir").arg(self.pins()).args(arguments).stdin(Stdio::null());
        run(command)
    }
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}

#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) place: Place,
    machine: Machine,
    options: Options,
    child: Child,
    /// Times that it was ready before.
    ready: usize,
}

impl Daemon {
    /// Starts it and waits until it is ready.
    pub(crate) fn start(machine: &Machine, place: Place, options: &Options) -> Result<Self> {
        let child = spawn(machine, &place, options)?;
        let mut daemon = Self { place, machine: machine.clone(), options: options.clone(), child, ready: 0 };
        daemon.wait_until_ready()?;
        Ok(daemon)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        until("the daemon's readiness", 20, || self.is_ready()).map_err(|error| self.with_log(&error))
    }

    fn is_ready(&mut self) -> Result<Option<()>> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the daemon ended with {status}");
        }
        Ok((self.times_ready()? > self.ready && self.place.socket().exists()).then_some(()))
    }

    fn times_ready(&self) -> Result<usize> {
        Ok(self.records()?.iter().filter(|record| record.kind() == "daemon_ready").count())
    }

    /// Ends it without a word.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to go; what is pinned stays.
    pub(crate) fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        until("the daemon's end after SIGTERM", 15, || Ok(self.child.try_wait()?))
    }

    /// Starts another one where this one was, which has gone.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.start_again()?;
        self.wait_until_ready()
    }

    /// The same, without waiting for it.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        self.ready = self.times_ready()?;
        self.child = spawn(&self.machine, &self.place, &self.options)?;
        Ok(())
    }

    pub(crate) fn records(&self) -> Result<Vec<Record>> {
        record::read(&self.place.path("records.jsonl"))
    }

    /// The first record that `is_it`.
    pub(crate) fn record(&self, what: &str, is_it: impl Fn(&Record) -> bool) -> Result<Record> {
        let found = until(&format!("a record of {what}"), 15, || Ok(self.records()?.into_iter().find(&is_it)));
        found.map_err(|error| self.with_records(&error))
    }

    fn with_records(&self, error: &anyhow::Error) -> anyhow::Error {
        let records = self.records().unwrap_or_default();
        let of_note = records.iter().filter(|record| !record.kind().starts_with("process_"));
        let last: Vec<String> = of_note.rev().take(4).map(Record::short).collect();
        self.with_log(&anyhow::anyhow!("{error}\nthe last records:\n{}", last.join("\n")))
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.place.path("stderr.log")).unwrap_or_default()
    }

    pub(crate) fn with_log(&self, error: &anyhow::Error) -> anyhow::Error {
        let log = self.log();
        let last: Vec<&str> = log.lines().rev().take(15).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        anyhow::anyhow!("{error:#}\nthe daemon's log:\n{}", last.join("\n"))
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid(), signal)?)
    }

    /// Stops it in its tracks, and returns once every thread stands.
    pub(crate) fn freeze(&self) -> Result<Frozen> {
        self.signal(Signal::SIGSTOP)?;
        let frozen = Frozen(self.pid());
        until("the daemon's standstill", 5, || self.stands().map(|stands| stands.then_some(())))?;
        Ok(frozen)
    }

    fn stands(&self) -> Result<bool> {
        for entry in std::fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let stat = std::fs::read_to_string(entry?.path().join("stat"))?;
            if !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(crate) fn writ(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.machine.program("writ"));
        command.arg("--socket").arg(self.place.socket()).args(arguments).stdin(Stdio::null());
        command
    }

    /// The JSON answer of a verb.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.writ(&[&["--output", "json"], arguments].concat()).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`writ {}` failed: {error}", arguments.join(" "));
        serde_json::from_slice(&output.stdout).context("the answer is no JSON")
    }

    pub(crate) fn status(&self) -> Result<Value> {
        self.ask(&["status"])
    }

    pub(crate) fn counter(&self, name: &str) -> Result<u64> {
        let status = self.status()?;
        let value = status.pointer(&format!("/counters/{name}")).and_then(Value::as_u64);
        value.with_context(|| format!("status has no counter `{name}`: {status}"))
    }

    /// Asks it to go and waits until it has gone, with everything that was its own.
    pub(crate) fn stop(mut self) -> Result<ExitStatus> {
        self.end()
    }

    fn end(&mut self) -> Result<ExitStatus> {
        let status = self.end_process()?;
        if self.options.pinned {
            let detached = self.place.detach(&self.machine, &[])?;
            ensure!(detached.status.success() && !self.place.pins().exists(), "not detached: {detached:?}");
        }
        Ok(status)
    }

    fn end_process(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        // In case a test left it stopped.
        let _ = self.signal(Signal::SIGCONT);
        self.signal(Signal::SIGTERM)?;
        let ended = until("the daemon's end after SIGTERM", 15, || Ok(self.child.try_wait()?));
        if ended.is_err() {
            self.child.kill()?;
            self.child.wait()?;
        }
        let status = ended.map_err(|error| self.with_log(&error))?;
        ensure!(!self.place.socket().exists(), "the daemon has gone and left its socket");
        self.machine.check_no_daemon()?;
        Ok(status)
    }
}

fn spawn(machine: &Machine, place: &Place, options: &Options) -> Result<Child> {
    let log = File::options().create(true).append(true).open(place.path("stderr.log"))?;
    let mut command = place.command(machine, options)?;
    command.stdout(Stdio::null()).stderr(log);
    command.spawn().context("cannot start writd")
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{error:#}"));
        }
    }
}

/// A stopped daemon, which goes on when this is dropped.
#[derive(Debug)]
pub(crate) struct Frozen(Pid);

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = kill(self.0, Signal::SIGCONT) {
            LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner).push(format!("cannot wake the daemon: {error}"));
        }
    }
}
