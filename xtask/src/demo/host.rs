//! The daemon of the demo, in a temporary directory with a home and its secrets. Dropping it leaves nothing behind.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::servers::Servers;
use super::wait::{self, STEP};
use crate::command::read;
use crate::repo;

/// What the secrets of the temporary home contain; nobody else has a reason to say it.
pub(super) const SECRET: &str = "TOP-SECRET";
/// Below the home; the shipped catalogue knows them all.
const SECRETS: [&str; 4] = [".ssh/id_ed25519", ".aws/credentials", ".env", ".netrc"];

/// A daemon may need so long to be ready, and to stop: an unoptimised one in a machine that is emulated.
const LIMIT: Duration = Duration::from_secs(60);

const AGENTS: &str = r#"
[[group]]
id = "engineering"

[[intent]]
id = "fix-build"
description = "change code until the build is green"

[[agent]]
id = "coder"
groups = ["engineering"]
owner = "alice"

[[user]]
id = "alice"
groups = ["engineering"]
"#;

/// An unoptimised daemon on a busy machine can need longer for its first answers than it is given by default.
const SETTINGS: &str = "hold_budget = \"200ms\"\n";

/// Fields are dropped in this order: the daemon stops, what ran away is ended, the directory goes.
pub(super) struct Host {
    daemon: Daemon,
    _orphans: Orphans,
    directory: TempDir,
}

impl Host {
    /// Lays out the directory, starts the daemon and waits until it is ready.
    pub(super) fn start(servers: &Servers) -> Result<Self> {
        let orphans = Orphans::adopt()?;
        let directory = tempfile::Builder::new().prefix("writ-demo-").tempdir().context("no temporary directory")?;
        lay_out(directory.path(), servers)?;
        let daemon = Daemon::start(directory.path())?;
        let mut host = Self { daemon, _orphans: orphans, directory };
        let ready = wait::until("it to answer", LIMIT, || {
            host.daemon.require_running()?;
            Ok(host.status().ok())
        });
        ready.with_context(|| format!("writd does not get ready:\n{}", host.daemon.said()))?;
        Ok(host)
    }

    /// The home directory that the daemon protects.
    pub(super) fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    /// The file to which the daemon appends its records.
    pub(super) fn records(&self) -> PathBuf {
        self.directory.path().join("records.jsonl")
    }

    /// The script that the agents run.
    pub(super) fn script(&self) -> PathBuf {
        self.directory.path().join("agent.sh")
    }

    /// `writ` with the daemon's socket.
    pub(super) fn writ<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut writ = Command::new(repo::binaries().join("writ"));
        writ.args(arguments).env("WRIT_SOCKET", self.directory.path().join("run/writd.sock"));
        writ
    }

    /// What `writ status` says.
    pub(super) fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&read(&mut self.writ(["status", "--output", "json"]))?)?)
    }
}

fn lay_out(root: &Path, servers: &Servers) -> Result<()> {
    let shipped = repo::at("policies/examples");
    for entry in fs::read_dir(&shipped).with_context(|| format!("cannot read `{}`", shipped.display()))? {
        let file = entry?;
        put(root, Path::new("config/policies").join(file.file_name()), &fs::read_to_string(file.path())?)?;
    }
    put(root, "config/writd.toml", SETTINGS)?;
    put(root, "config/agents.toml", AGENTS)?;
    put(root, "config/endpoints.toml", &endpoints(servers))?;
    put(root, "agent.sh", include_str!("agent.sh"))?;
    for secret in SECRETS {
        put(root, Path::new("home").join(secret), &format!("{SECRET} of {secret}\n"))?;
    }
    Ok(())
}

fn put(root: &Path, path: impl AsRef<Path>, content: &str) -> Result<()> {
    let path = root.join(path);
    let directory = path.parent().unwrap_or(root);
    let written = fs::create_dir_all(directory).and_then(|()| fs::write(&path, content));
    written.with_context(|| format!("cannot write `{}`", path.display()))
}

/// Labels for the demo's servers, so that a grant can name one and not the other.
fn endpoints(servers: &Servers) -> String {
    let entry = |name: &str, port: u16| {
        format!(
            "[[endpoint]]\nname = \"demo-{name}\"\nlabels = [\"net/internal/{name}\"]\n\
             cidrs = [\"127.0.0.1\", \"::1\"]\nports = [{port}]\n\n"
        )
    };
    [("web", servers.web), ("proxy", servers.proxy), ("echo", servers.echo)]
        .map(|(name, port)| entry(name, port))
        .concat()
}

struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    fn start(root: &Path) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        let log = root.join("writd.log");
        let output = File::create(&log).with_context(|| format!("cannot write `{}`", log.display()))?;
        let mut command = Command::new(repo::binaries().join("writd"));
        for (flag, path) in [
            ("--config-dir", "config"),
            ("--runtime-dir", "run"),
            ("--state-dir", "state"),
            ("--records", "records.jsonl"),
            ("--home", "home"),
        ] {
            command.arg(flag).arg(root.join(path));
        }
        // Nothing is to be left behind, however it ends.
        command.arg("--no-pin");
        // In a group of its own: Ctrl-C is for this program, which then stops the daemon in order.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let child = command.spawn().context("cannot start `writd`")?;
        Ok(Self { child, log })
    }

    fn require_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("it ended: {status}");
        }
        Ok(())
    }

    /// What it wrote to its log.
    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default().trim_end().to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(pid_of(&self.child), Signal::SIGTERM);
        end(&mut self.child, LIMIT);
    }
}

/// Waits for a child, which is killed when the time is over, and with it what is left of the process group that it leads.
pub(super) fn end(child: &mut Child, limit: Duration) {
    let deadline = Instant::now() + limit;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
        thread::sleep(STEP);
    }
    let _ = child.kill();
    let _ = killpg(pid_of(child), Signal::SIGKILL);
    let _ = child.wait();
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Processes whose parents have gone become children of this one, and go with it.
struct Orphans;

impl Orphans {
    fn adopt() -> Result<Self> {
        prctl::set_child_subreaper(true).context("cannot become the parent of orphans")?;
        Ok(Self)
    }
}

impl Drop for Orphans {
    fn drop(&mut self) {
        let own = std::process::id();
        // Each round makes orphans of those below; no agent of the demo starts others without end.
        for _ in 0..100 {
            let children = children_of(own);
            if children.is_empty() {
                return;
            }
            for child in children {
                let _ = kill(child, Signal::SIGKILL);
                let _ = nix::sys::wait::waitpid(child, None);
            }
        }
    }
}

fn children_of(parent: u32) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| parent_of(*pid) == Some(parent)).map(Pid::from_raw).collect()
}

fn parent_of(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_found() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        assert!(children_of(std::process::id()).contains(&pid_of(&child)));
        assert!(!children_of(child.id()).contains(&pid_of(&child)));
        end(&mut child, Duration::ZERO);
        assert!(!children_of(std::process::id()).contains(&pid_of(&child)));
    }
}
