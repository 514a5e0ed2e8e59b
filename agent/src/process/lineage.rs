//! Who started whom, among the processes that carry a mark.
//!
//! A process's ancestors are fixed when it is forked, as they were at that moment: that is the answer to "who started
//! this", and it stays true when a parent later becomes another program or goes away. Children of one parent share the
//! list, so a fork costs one entry.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use agent_common::event::{Actor, Executed, Exited, Forked};

use super::snapshot::{SnapshotError, ancestors, snapshot};
use crate::domain::Ancestor;

/// Ancestors kept per process, the nearest ones.
const DEPTH: usize = 16;

/// What is known of a marked process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// When it started: boot clock, nanoseconds; a clock tick coarse if it was adopted, 0 if its fork was not seen.
    pub start: u64,
    /// Its program: what was given to execve(2), which may be relative; procfs's answer if it was adopted.
    pub exe: Option<Arc<str>>,
    /// Its command name as last seen.
    pub comm: Arc<str>,
    /// Its real uid as last seen.
    pub uid: u32,
    /// Its cgroup v2 id as last seen; 0 if it was adopted and has not acted since.
    pub cgroup: u64,
    /// Path below the cgroup v2 root, where procfs told it rather than an id.
    pub cgroup_path: Option<Arc<str>>,
    /// The processes above it, nearest first.
    pub ancestors: Arc<[Ancestor]>,
    /// Index into `TASKS` of its task.
    pub slot: u32,
    /// The task's epoch.
    pub epoch: u32,
    /// Whether it is still there.
    pub alive: bool,
}

impl Known {
    fn update(&mut self, actor: &Actor) {
        self.uid = actor.uid;
        self.cgroup = actor.cgroup;
        self.cgroup_path = None;
    }
}

struct Entry {
    known: Known,
    /// What its children have above them, once it has children.
    for_children: Option<Arc<[Ancestor]>>,
}

/// The marked processes, by thread group id. Those that have gone stay for a while, for records that come late.
pub struct Lineage {
    entries: HashMap<u32, Entry>,
    gone: VecDeque<(u32, u64)>,
    max_entries: usize,
    max_gone: usize,
    refused: u64,
}

impl Lineage {
    /// Room for `max_entries` processes, of which at most `max_gone` that have gone.
    pub fn new(max_entries: usize, max_gone: usize) -> Self {
        Self { entries: HashMap::new(), gone: VecDeque::new(), max_entries, max_gone, refused: 0 }
    }

    /// Takes in a process whose fork was not seen, with its ancestors, from procfs.
    ///
    /// # Errors
    /// [`SnapshotError`] if it is gone or cannot be read.
    pub fn adopt(&mut self, pid: u32, slot: u32, epoch: u32) -> Result<(), SnapshotError> {
        let facts = snapshot(pid)?;
        let ancestors = ancestors(pid, DEPTH).into();
        let known = Known {
            start: facts.start,
            exe: facts.exe,
            comm: facts.comm,
            uid: facts.uid,
            cgroup: 0,
            cgroup_path: facts.cgroup,
            ancestors,
            slot,
            epoch,
            alive: true,
        };
        self.insert(pid, known);
        Ok(())
    }

    /// A marked process made another.
    pub fn forked(&mut self, event: &Forked) {
        let parent = self.seen(&event.actor);
        let known = Known {
            start: event.start,
            exe: parent.as_ref().and_then(|(known, _)| known.exe.clone()),
            comm: text(event.actor.comm()),
            uid: event.actor.uid,
            cgroup: event.actor.cgroup,
            cgroup_path: None,
            ancestors: parent.map_or_else(|| Arc::from([]), |(_, ancestors)| ancestors),
            slot: event.actor.slot,
            epoch: event.actor.epoch,
            alive: true,
        };
        self.insert(event.child, known);
    }

    /// A marked process became another program.
    pub fn executed(&mut self, event: &Executed) {
        self.seen(&event.actor);
        let Some(entry) = self.entries.get_mut(&event.actor.tgid) else { return };
        entry.known.exe = Some(text(event.path()));
        entry.known.comm = text(event.actor.comm());
        entry.for_children = None;
    }

    /// A marked process did anything at all: it may have become another user's or been moved to another cgroup.
    pub fn acted(&mut self, actor: &Actor) {
        if let Some(entry) = self.entries.get_mut(&actor.tgid) {
            entry.known.update(actor);
        }
    }

    /// The last thread of a marked process has gone.
    pub fn exited(&mut self, event: &Exited) {
        let Some(entry) = self.entries.get_mut(&event.actor.tgid) else { return };
        if !std::mem::replace(&mut entry.known.alive, false) {
            return;
        }
        self.gone.push_back((event.actor.tgid, entry.known.start));
        while self.gone.len() > self.max_gone {
            self.forget_oldest_gone();
        }
    }

    /// What is known of process `tgid`, also if it went a short while ago.
    pub fn get(&self, tgid: u32) -> Option<&Known> {
        self.entries.get(&tgid).map(|entry| &entry.known)
    }

    /// The living processes of a task, in no order: their ids and what is known of them.
    pub fn of_task(&self, slot: u32, epoch: u32) -> impl Iterator<Item = (u32, &Known)> {
        let all = self.entries.iter().map(|(&tgid, entry)| (tgid, &entry.known));
        all.filter(move |(_, known)| known.alive && (known.slot, known.epoch) == (slot, epoch))
    }

    /// How many processes there was no room for since this was last asked.
    pub fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }

    /// The acting process, with what its children have above them. One that was never heard of is taken in as it is.
    fn seen(&mut self, actor: &Actor) -> Option<(Known, Arc<[Ancestor]>)> {
        if !self.entries.get(&actor.tgid).is_some_and(|entry| entry.known.alive) {
            self.insert(actor.tgid, stranger(actor));
        }
        let entry = self.entries.get_mut(&actor.tgid)?;
        entry.known.update(actor);
        let known = entry.known.clone();
        let list = entry.for_children.get_or_insert_with(|| below(actor.tgid, &known)).clone();
        Some((known, list))
    }

    fn insert(&mut self, tgid: u32, known: Known) {
        if self.has_room_for(tgid) {
            self.entries.insert(tgid, Entry { known, for_children: None });
        } else {
            self.refused += 1;
        }
    }

    fn has_room_for(&mut self, tgid: u32) -> bool {
        if self.entries.contains_key(&tgid) {
            return true;
        }
        while self.entries.len() >= self.max_entries && !self.gone.is_empty() {
            self.forget_oldest_gone();
        }
        self.entries.len() < self.max_entries
    }

    /// An id that was recycled since belongs to a process that has not gone.
    fn forget_oldest_gone(&mut self) {
        let Some((tgid, start)) = self.gone.pop_front() else { return };
        if self.get(tgid).is_some_and(|known| !known.alive && known.start == start) {
            self.entries.remove(&tgid);
        }
    }
}

fn stranger(actor: &Actor) -> Known {
    let (slot, epoch) = (actor.slot, actor.epoch);
    Known {
        start: 0,
        exe: None,
        comm: text(actor.comm()),
        uid: actor.uid,
        cgroup: actor.cgroup,
        cgroup_path: None,
        ancestors: Arc::from([]),
        slot,
        epoch,
        alive: true,
    }
}

fn below(tgid: u32, known: &Known) -> Arc<[Ancestor]> {
    let parent = Ancestor { pid: tgid, start: known.start, exe: known.exe.clone(), comm: known.comm.clone() };
    std::iter::once(parent).chain(known.ancestors.iter().cloned()).take(DEPTH).collect()
}

fn text(bytes: &[u8]) -> Arc<str> {
    String::from_utf8_lossy(bytes).into()
}

#[cfg(test)]
mod tests {
    use agent_common::event::PATH_LEN;
    use bytemuck::Zeroable;

    use super::*;

    fn actor(tgid: u32, comm: &str) -> Actor {
        let mut actor = Actor { slot: 1, epoch: 2, tgid, tid: tgid, ..Actor::zeroed() };
        actor.comm[..comm.len()].copy_from_slice(comm.as_bytes());
        actor
    }

    fn fork(lineage: &mut Lineage, parent: u32, child: u32, start: u64) {
        lineage.forked(&Forked { child, start, actor: actor(parent, "sh"), ..Forked::zeroed() });
    }

    fn exec(lineage: &mut Lineage, tgid: u32, path: &[u8], comm: &str) {
        let mut bytes = [0; PATH_LEN];
        bytes[..path.len()].copy_from_slice(path);
        let path_len = path.len().try_into().unwrap();
        lineage.executed(&Executed { path_len, path: bytes, actor: actor(tgid, comm), ..Executed::zeroed() });
    }

    fn exit(lineage: &mut Lineage, tgid: u32) {
        lineage.exited(&Exited { actor: actor(tgid, "sh"), ..Exited::zeroed() });
    }

    fn above(lineage: &Lineage, tgid: u32) -> Vec<(u32, String)> {
        let known = lineage.get(tgid).unwrap();
        known.ancestors.iter().map(|up| (up.pid, up.exe.as_deref().unwrap_or("?").to_owned())).collect()
    }

    #[test]
    fn ancestors_are_as_they_were_when_they_forked() {
        let mut lineage = Lineage::new(100, 10);
        fork(&mut lineage, 1, 10, 5);
        exec(&mut lineage, 10, b"/bin/sh", "sh");
        fork(&mut lineage, 10, 20, 6);
        exec(&mut lineage, 10, b"/bin/other", "other");
        fork(&mut lineage, 10, 30, 7);
        exec(&mut lineage, 20, b"./rel\xff", "rel");
        exit(&mut lineage, 10);
        assert_eq!(above(&lineage, 20), [(10, "/bin/sh".to_owned()), (1, "?".to_owned())]);
        assert_eq!(above(&lineage, 30), [(10, "/bin/other".to_owned()), (1, "?".to_owned())]);
        let rel = lineage.get(20).unwrap();
        assert_eq!((rel.exe.as_deref(), &*rel.comm, rel.start), (Some("./rel\u{fffd}"), "rel", 6));
        assert_eq!(
            lineage.get(30).unwrap().exe.as_deref(),
            Some("/bin/other"),
            "a child begins as its parent's program"
        );
    }

    #[test]
    fn uid_and_cgroup_are_inherited_and_follow_what_a_process_does() {
        let mut lineage = Lineage::new(100, 10);
        let as_user = |tgid, uid, cgroup| Actor { uid, cgroup, ..actor(tgid, "sh") };
        let who = |lineage: &Lineage, tgid| lineage.get(tgid).map(|known| (known.uid, known.cgroup));
        lineage.forked(&Forked { child: 10, start: 5, actor: as_user(1, 1000, 7), ..Forked::zeroed() });
        assert_eq!((who(&lineage, 1), who(&lineage, 10)), (Some((1000, 7)), Some((1000, 7))));
        lineage.executed(&Executed { actor: as_user(10, 1001, 8), ..Executed::zeroed() });
        assert_eq!((who(&lineage, 1), who(&lineage, 10)), (Some((1000, 7)), Some((1001, 8))));
        lineage.acted(&as_user(1, 1002, 9));
        lineage.acted(&as_user(99, 1002, 9));
        assert_eq!((who(&lineage, 1), who(&lineage, 99)), (Some((1002, 9)), None));
    }

    #[test]
    fn depth_is_bounded_and_the_nearest_are_kept() {
        let mut lineage = Lineage::new(1000, 10);
        for pid in 1..100 {
            fork(&mut lineage, pid, pid + 1, u64::from(pid));
            exit(&mut lineage, pid);
        }
        let pids: Vec<u32> = above(&lineage, 100).into_iter().map(|(pid, _)| pid).collect();
        assert_eq!(pids, (84..100).rev().collect::<Vec<u32>>());
    }

    #[test]
    fn the_gone_stay_for_a_while_and_the_living_for_good() {
        let mut lineage = Lineage::new(100, 2);
        for pid in 10..14 {
            fork(&mut lineage, 1, pid, u64::from(pid));
            exit(&mut lineage, pid);
            exit(&mut lineage, pid);
        }
        let left: Vec<bool> = (10..14).map(|pid| lineage.get(pid).is_some()).collect();
        assert_eq!(left, [false, false, true, true]);
        assert!(lineage.get(1).unwrap().alive && !lineage.get(13).unwrap().alive);
        assert_eq!(lineage.of_task(1, 2).map(|(pid, _)| pid).collect::<Vec<u32>>(), [1]);
        assert_eq!(lineage.of_task(1, 3).count(), 0);
    }

    #[test]
    fn a_recycled_id_is_another_process() {
        let mut lineage = Lineage::new(100, 1);
        fork(&mut lineage, 1, 10, 5);
        exit(&mut lineage, 10);
        fork(&mut lineage, 1, 10, 9);
        fork(&mut lineage, 1, 11, 9);
        exit(&mut lineage, 11);
        let known = lineage.get(10).expect("the note of the earlier process must not remove the later one");
        assert!(known.alive && known.start == 9);
    }

    #[test]
    fn a_full_table_drops_the_gone_first_and_counts_whom_it_refuses() {
        let mut lineage = Lineage::new(3, 10);
        fork(&mut lineage, 1, 10, 5);
        fork(&mut lineage, 1, 11, 5);
        exit(&mut lineage, 10);
        fork(&mut lineage, 1, 12, 6);
        assert!(lineage.get(10).is_none() && lineage.get(12).is_some());
        assert_eq!(lineage.take_refused(), 0);
        fork(&mut lineage, 1, 13, 7);
        assert!(lineage.get(13).is_none() && lineage.entries.len() == 3);
        assert_eq!((lineage.take_refused(), lineage.take_refused()), (1, 0));
    }

    #[test]
    fn an_adopted_process_has_its_ancestors_from_procfs() {
        let mut lineage = Lineage::new(10, 10);
        let own = std::process::id();
        lineage.adopt(own, 4, 5).unwrap();
        let known = lineage.get(own).unwrap().clone();
        assert_eq!(known.exe.as_deref(), std::env::current_exe().unwrap().to_str());
        assert!(known.alive && known.start > 0 && !known.ancestors.is_empty());
        let facts = snapshot(own).unwrap();
        assert_eq!((known.uid, known.cgroup, &known.cgroup_path), (facts.uid, 0, &facts.cgroup));
        fork(&mut lineage, own, 1_000_000, known.start + 1);
        let child = lineage.get(1_000_000).unwrap();
        assert_eq!((child.ancestors[0].pid, &child.ancestors[1..]), (own, &known.ancestors[..]));
        lineage.acted(&Actor { uid: 65_534, cgroup: 7, ..actor(own, "x") });
        let known = lineage.get(own).unwrap();
        assert_eq!((known.uid, known.cgroup, &known.cgroup_path), (65_534, 7, &None), "the kernel's word is newer");
        assert!(lineage.adopt(u32::MAX, 4, 5).is_err());
    }
}
