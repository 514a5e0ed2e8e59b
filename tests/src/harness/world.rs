//! A daemon with everything around it: servers under labels, a home with secrets, policies.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, anyhow};

use super::daemon::{Daemon, Place};
use super::dns::{self, NameServer};
use super::machine::Machine;
use super::options::{AGENTS, Options, POLICIES, SECRETS, UNIX};
use super::record::Record;
use super::run::{Ran, Session, Task, run};
use super::server::{Servers, endpoint};

/// Labels of the servers.
pub(crate) const OPEN: &str = "test/open";
pub(crate) const MORE: &str = "test/more";
pub(crate) const SHUT: &str = "test/shut";
pub(crate) const AUDITED: &str = "test/audited";
pub(crate) const ERRORING: &str = "test/erroring";

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) machine: Machine,
    pub(crate) daemon: Daemon,
    /// Granted by the tests that want to.
    pub(crate) open: Servers,
    /// A second set like it, under a label of its own.
    pub(crate) more: Servers,
    pub(crate) shut: Servers,
    pub(crate) audited: Servers,
    pub(crate) erroring: Servers,
    /// Whom the daemon asks for names.
    pub(crate) names: NameServer,
}

impl World {
    pub(crate) fn new(machine: &Machine, options: Options) -> Result<Self> {
        let place = if options.pinned { Place::new()?.with_bpffs()? } else { Place::new()? };
        fill_home(&place)?;
        let [open, more, shut, audited, erroring] =
            [Servers::new()?, Servers::new()?, Servers::new()?, Servers::new()?, Servers::new()?];
        let labelled = [(&open, OPEN), (&more, MORE), (&shut, SHUT), (&audited, AUDITED), (&erroring, ERRORING)];
        let mut endpoints = String::new();
        for (servers, label) in labelled {
            endpoints += &servers.catalogue(label)?;
        }
        // Nobody is there: the label stands for something else (see `POLICIES`).
        endpoints += &endpoint("test/routes", "tcp", ([192, 0, 2, 1], 1).into());
        place.write("etc/agents.toml", AGENTS)?;
        place.write("etc/secrets.toml", SECRETS)?;
        place.write("etc/unix.toml", UNIX)?;
        endpoints += dns::CATALOGUE;
        place.write("etc/endpoints.toml", &endpoints)?;
        place.write("etc/policies/test.cedar", POLICIES)?;
        let names = NameServer::new()?;
        let daemon = Daemon::start(machine, place, &options.setting(&names.setting()))?;
        Ok(Self { machine: machine.clone(), daemon, open, more, shut, audited, erroring, names })
    }

    pub(crate) fn task(&self) -> Task<'_> {
        Task::new(self)
    }

    /// The probe without a task.
    fn unmarked_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.machine.program("writ-probe"));
        command.args(words).stdin(Stdio::null());
        command
    }

    pub(crate) fn unmarked(&self, words: &[&str]) -> Result<Ran> {
        run(self.unmarked_command(words))
    }

    pub(crate) fn unmarked_session(&self) -> Result<Session> {
        Session::new(self.unmarked_command(&["serve"]))
    }

    /// A file of the home.
    pub(crate) fn home(&self, name: &str) -> String {
        self.home_path(name).to_string_lossy().into_owned()
    }

    pub(crate) fn home_path(&self, name: &str) -> PathBuf {
        self.daemon.place.path("home").join(name)
    }

    /// The decision on one action of a task.
    pub(crate) fn decision(&self, task: &str, action: &str, effect: &str, reason: &str) -> Result<Record> {
        self.daemon.record(&format!("{action} {effect} {reason} of {task}"), |record| {
            record.task() == task && record.is_decision(action, effect, reason)
        })
    }

    /// Something that happened to a task.
    pub(crate) fn event(&self, task: &str, kind: &str) -> Result<Record> {
        self.daemon.record(&format!("{kind} of {task}"), |record| record.task() == task && record.kind() == kind)
    }
}

fn fill_home(place: &Place) -> Result<()> {
    for (name, content) in [
        ("file.key", "secret"),
        ("plain.txt", "plain"),
        ("keys/one.pem", "secret"),
        ("keys/one.pub", "plain"),
        ("vault/inside", "secret"),
        ("vault/deep/er", "secret"),
        ("elsewhere/empty", ""),
    ] {
        place.write(&format!("home/{name}"), content)?;
    }
    let home = place.path("home");
    std::os::unix::fs::symlink("file.key", home.join("symlink"))?;
    std::fs::hard_link(home.join("file.key"), home.join("hardlink"))?;
    Ok(())
}

/// How many of them are shown.
const REFUSALS: usize = 3;

/// What tests are given: the machine, and a world that most of them share.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) machine: Machine,
    shared: Mutex<Shared>,
}

#[derive(Debug, Default)]
enum Shared {
    #[default]
    NotYet,
    Running(Arc<World>),
    Failed(String),
}

impl Lab {
    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine, shared: Mutex::default() }
    }

    /// The world that tests share which leave it as it was.
    pub(crate) fn shared(&self) -> Result<Arc<World>> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*shared, Shared::NotYet) {
            *shared = match World::new(&self.machine, Options::default()) {
                Ok(world) => Shared::Running(Arc::new(world)),
                Err(error) => Shared::Failed(format!("{error:#}")),
            };
        }
        match &*shared {
            Shared::Running(world) => Ok(world.clone()),
            Shared::Failed(error) => Err(anyhow!("{error}")),
            Shared::NotYet => Err(anyhow!("the shared world was not made")),
        }
    }

    /// A world of the test's own. The shared one goes, so that one daemon runs at a time.
    pub(crate) fn own(&self, options: Options) -> Result<World> {
        self.close();
        World::new(&self.machine, options)
    }

    /// The last refusals that the shared world recorded, for who must find out why a test failed.
    pub(crate) fn refusals(&self) -> Vec<String> {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let Shared::Running(world) = &*shared else { return Vec::new() };
        let records = world.daemon.records().unwrap_or_default();
        let refused = records.iter().rev().filter(|record| record.text("/effect") == "deny");
        refused.take(REFUSALS).map(|record| record.0.to_string()).collect()
    }

    /// Ends the shared world.
    pub(crate) fn close(&self) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Shared::Running(_) = *shared {
            *shared = Shared::NotYet;
        }
    }
}
