//! The network namespaces in which names are answered: set up while the process that asks there first is held.
//!
//! As for upcalls, there is a thread on each CPU: a held process keeps its own, and whichever thread can run goes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use agent_common::event::{Actor, Ask};
use agent_common::maps::SLOT_DAEMON;
use tokio::sync::mpsc;

use super::threads::{Shared, for_each_cpu};
use crate::kernel::Maps;
use crate::names::{Sockets, TaskMark};
use crate::process::{network_namespace, network_namespace_id};

/// Questions that may wait.
const MAX_WAITING: usize = 256;
/// Namespaces that are served at most, the host's own left out, and of one task.
const MAX_NAMESPACES: usize = 200;
const MAX_OF_TASK: usize = 16;
/// How often the threads look whether they are to end.
const TURN: Duration = Duration::from_millis(100);

/// What waits, and what there is.
pub(super) struct Namespaces {
    waiting: Mutex<VecDeque<Ask>>,
    came: Condvar,
    known: Mutex<Known>,
    opened: mpsc::UnboundedSender<Sockets>,
}

struct Known {
    /// Set once the kernel side is loaded.
    maps: Option<Maps>,
    served: HashMap<u64, Served>,
}

struct Served {
    /// Device and inode.
    id: (u64, u64),
    /// The task that asked first.
    task: TaskMark,
    /// Whether nobody was in it when this was last looked at.
    deserted: bool,
}

impl Namespaces {
    /// Nothing yet. The sockets of what is opened come through the second value.
    pub(super) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Sockets>) {
        let (opened, sockets) = mpsc::unbounded_channel();
        let known = Mutex::new(Known { maps: None, served: HashMap::new() });
        (Arc::new(Self { waiting: Mutex::default(), came: Condvar::new(), known, opened }), sockets)
    }

    /// Somebody waits for a namespace to be served. If there is no room for the question, the wait ends in vain.
    pub(super) fn ask(&self, ask: &Ask) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < MAX_WAITING {
            waiting.push_back(*ask);
            self.came.notify_all();
        }
    }

    /// Closes what nobody has been in for two looks, and says which.
    pub(super) fn close_deserted(&self) -> Vec<u64> {
        let mut known = self.known();
        let Known { maps: Some(maps), served } = &mut *known else { return Vec::new() };
        if served.is_empty() {
            return Vec::new();
        }
        let inhabited = inhabited(maps);
        let mut gone = Vec::new();
        served.retain(|netns, served| {
            let before = std::mem::replace(&mut served.deserted, !inhabited.contains(&served.id));
            let goes = before && served.deserted;
            if goes {
                maps.resolvers.remove(*netns);
                gone.push(*netns);
            }
            !goes
        });
        gone
    }

    fn next(&self) -> Option<Ask> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.came.wait_timeout_while(waiting, TURN, |waiting| waiting.is_empty());
        let (mut waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        waiting.pop_front()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False if the thread is lost in another namespace.
    fn open(&self, ask: &Ask, home: &File) -> (io::Result<()>, bool) {
        let Actor { slot, epoch, tgid, tid, .. } = ask.actor;
        let mut known = self.known();
        let Known { maps: Some(maps), served } = &mut *known else { return (Ok(()), true) };
        let of_task = served.values().filter(|served| served.task == (slot, epoch)).count();
        if served.len() >= MAX_NAMESPACES || of_task >= MAX_OF_TASK {
            return (Err(io::Error::other("there are too many network namespaces")), true);
        }
        let namespace = match network_namespace(tgid, tid) {
            Ok(namespace) => namespace,
            Err(error) => return (Err(error), true),
        };
        // If it has gone, the number may be another's.
        let marked = maps.processes.get(tgid).is_some_and(|mark| (mark.slot, mark.epoch) == (slot, epoch));
        let id = namespace.metadata().map(|about| (about.dev(), about.ino())).unwrap_or_default();
        if !marked || served.values().any(|served| served.id == id) {
            return (Ok(()), true);
        }
        let (sockets, back) = Sockets::within(&namespace, home);
        let put = sockets.map(|sockets| {
            // The host's own is there already.
            if maps.resolvers.put_new(sockets.netns, sockets.ports()).is_ok() {
                served.insert(sockets.netns, Served { id, task: (slot, epoch), deserted: false });
                let _ = self.opened.send(sockets);
            }
        });
        (put, back)
    }
}

/// The network namespaces of marked processes.
fn inhabited(maps: &Maps) -> HashSet<(u64, u64)> {
    let marked = |pid: &u32| maps.processes.get(*pid).is_some_and(|mark| mark.slot != SLOT_DAEMON);
    maps.processes.keys().into_iter().filter(marked).filter_map(network_namespace_id).collect()
}

/// Starts the threads.
///
/// # Errors
/// If the system has no thread left, or no `/proc`.
pub(super) fn start(shared: &Shared, maps: Maps) -> io::Result<Vec<JoinHandle<()>>> {
    shared.namespaces.known().maps = Some(maps);
    for_each_cpu("namespaces", || {
        let (shared, home) = (shared.clone(), File::open("/proc/thread-self/ns/net"));
        move || {
            if let Ok(home) = home {
                run(&shared, &home);
            }
        }
    })
}

fn run(shared: &Shared, home: &File) {
    while !shared.stopping() {
        let Some(ask) = shared.namespaces.next() else { continue };
        let (opened, back) = shared.namespaces.open(&ask, home);
        if let Err(error) = opened {
            let pid = ask.actor.tgid;
            tracing::warn!(%error, pid, "a network namespace has no resolver; names are refused there");
        }
        if !back {
            tracing::error!("a thread cannot come back from a network namespace");
            return;
        }
    }
}
