//! A daemon on a site of the bench's own, started and stopped between rounds.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::load::Load;
use super::site::Site;
use crate::command::{command, run};
use crate::repo;

/// Enough for a guest, too.
const START_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(1);

/// Where the optimised programs are.
pub(super) struct Programs(PathBuf);

impl Programs {
    /// Those that a release build of this clone makes.
    pub(super) fn built() -> Self {
        Self(repo::binaries().with_file_name("release"))
    }

    /// Those in `directory`.
    pub(super) fn at(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// One of them.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A load that belongs to no task.
    pub(super) fn unmarked(&self) -> Result<Load> {
        Load::start(&mut Command::new(self.path("writ-load")))
    }
}

/// What the daemon says of itself, as far as it is of interest here.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    pub(super) tier: String,
    pub(super) memory_kib: u64,
    pub(super) policies: PolicyCount,
}

/// Of the policy set in force.
#[derive(Debug, Deserialize)]
pub(super) struct PolicyCount {
    pub(super) count: usize,
}

#[derive(Debug, Deserialize)]
struct Tasks {
    tasks: Vec<Task>,
}

#[derive(Debug, Deserialize)]
struct Task {
    id: String,
    status: String,
}

/// A daemon that answers. It stops when this is dropped.
pub(super) struct Daemon<'a> {
    running: Running,
    programs: &'a Programs,
    site: &'a Site,
    /// From its start to its first answer.
    pub(super) ready_after: Duration,
    /// Its first answer.
    pub(super) status: Status,
}

impl<'a> Daemon<'a> {
    /// Starts it and waits until it answers, which it does once every path is proven.
    pub(super) fn start(programs: &'a Programs, site: &'a Site) -> Result<Self> {
        let log = File::create(site.log()).context("cannot write the daemon's log")?;
        let mut writd = Command::new(programs.path("writd"));
        for (flag, path) in site.flags() {
            writd.arg(flag).arg(path);
        }
        writd.arg("--no-pin").stdin(Stdio::null()).stderr(log);
        let started = Instant::now();
        let mut running = Running(writd.spawn().context("cannot start writd")?);
        let status = running.first_answer(site, started)?;
        Ok(Self { running, programs, site, ready_after: started.elapsed(), status })
    }

    /// A load that belongs to a task which may read the site's secret and connect to loopback.
    pub(super) fn marked(&self) -> Result<Load> {
        let mut writ = Command::new(self.programs.path("writ"));
        writ.arg("--socket").arg(self.site.socket()).args(["run", "--agent", "bench", "--intent", "measure"]);
        writ.args(["--grant-read", "secret/bench", "--grant-connect", "net/loopback", "--"]);
        Load::start(writ.arg(self.programs.path("writ-load")))
    }

    /// What it says now.
    pub(super) fn status(&self) -> Result<Status> {
        ask(&self.site.socket(), "/v1/status")
    }

    /// The id of the one task that is active.
    pub(super) fn active_task(&self) -> Result<String> {
        let tasks: Tasks = ask(&self.site.socket(), "/v1/tasks")?;
        let active = tasks.tasks.into_iter().find(|task| task.status == "active");
        Ok(active.context("no task is active")?.id)
    }

    /// Processor time of all its threads, in nanoseconds.
    pub(super) fn processor_time(&self) -> Result<u64> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.running.0.id())).context("the daemon has gone")?;
        let times = tasks.map(|task| {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).context("no time in `schedstat`")
        });
        times.sum()
    }
}

/// The process, which is stopped in any case.
struct Running(Child);

impl Running {
    fn first_answer(&mut self, site: &Site, started: Instant) -> Result<Status> {
        loop {
            match ask(&site.socket(), "/v1/status") {
                Ok(status) => return Ok(status),
                Err(error) if started.elapsed() > START_LIMIT => return Err(error.context("writd does not get ready")),
                Err(_) => sleep(POLL),
            }
            if let Some(status) = self.0.try_wait()? {
                bail!("writd ended with {status}: {}", fs::read_to_string(site.log()).unwrap_or_default().trim());
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Asked to end, it detaches what it attached. If that cannot be asked, the kernel does it all the same.
        if run(&mut command("kill", ["-TERM", &self.0.id().to_string()])).is_err() {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

fn ask<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: writ\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    body(&answer)
}

/// The body of an HTTP answer that says 200.
fn body<T: DeserializeOwned>(answer: &str) -> Result<T> {
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(serde_json::from_str(body)?),
        _ => bail!("the daemon answers `{}`", answer.lines().next().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_good_answer_is_a_status() {
        let json = r#"{"tier":"full","memory_kib":4096,"policies":{"count":7,"loaded_at":1},"rates":{}}"#;
        let status: Status = body(&format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{json}")).unwrap();
        assert_eq!((status.tier.as_str(), status.memory_kib, status.policies.count), ("full", 4096, 7));
        let error = body::<Status>("HTTP/1.1 504 Gateway Timeout\r\n\r\n{}").unwrap_err();
        assert!(error.to_string().contains("504"), "{error}");
        assert!(body::<Status>("").is_err());
        assert!(body::<Status>("HTTP/1.1 200 OK\r\n\r\n{").is_err());
    }
}
