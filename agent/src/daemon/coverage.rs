//! What this host enforces, path by path: a value, made of what was attached and what the canary was refused last.

use std::path::PathBuf;

use super::attempt::{Attempt, Outcome};
use super::canary::Outcomes;
use super::protect::Guarding;
use crate::api::types::{CoverageState, CoverageView};
use crate::kernel::lsm::BpfLsm;
use crate::record::{CoverageChanged, PathChange, PathCoverage, Tier};

/// What holds as long as the daemon runs.
pub(super) struct Facts {
    pub(super) guarding: Guarding,
    pub(super) lsm: BpfLsm,
    /// Why the kernel would not have the LSM programs, if it would not.
    pub(super) lsm_refused: Option<String>,
    /// Where programs and maps are pinned, if they are.
    pub(super) pins: Option<PathBuf>,
    /// Whether `sendfile` and `splice` to a socket are a send that guards see (fs/splice.c: splice_to_socket, since 6.5).
    pub(super) splice_is_seen: bool,
}

/// The coverage table.
pub(super) struct Coverage {
    pub(super) tier: Tier,
    /// What it was at the start: the host can give that much.
    pub(super) promised: Tier,
    pub(super) rows: Vec<CoverageView>,
    facts: Facts,
    canary: Outcomes,
}

impl Coverage {
    /// Puts the table together.
    pub(super) fn new(facts: Facts, canary: Outcomes) -> Self {
        let (tier, rows) = table(&facts, &canary);
        Self { tier, promised: tier, rows, facts, canary }
    }

    /// Takes in what the canary has seen last, and says what is different now.
    pub(super) fn update(&mut self, canary: Outcomes) -> Option<CoverageChanged> {
        let (tier, rows) = table(&self.facts, &canary);
        let before = std::mem::replace(&mut self.rows, rows);
        let from = std::mem::replace(&mut self.tier, tier);
        self.canary = canary;
        let changed = before.iter().zip(&self.rows).filter(|(before, now)| before.state != now.state);
        let paths: Vec<PathChange> = changed.map(|(before, now)| change(before, now)).collect();
        (from != tier || !paths.is_empty()).then_some(CoverageChanged { from, to: tier, paths })
    }

    /// What `--require reduced` wants and the host does not give.
    pub(super) fn missing(&self) -> Option<String> {
        let missing: Vec<String> = self.broken(&REQUIRED).collect();
        (!missing.is_empty()).then(|| format!("not enforced: {}", missing.join("; ")))
    }

    /// What the tier promises, that of the start included, and what is not kept.
    pub(super) fn faults(&self) -> Vec<String> {
        let less = self.promised == Tier::Full && self.tier != Tier::Full;
        let tier = less.then(|| "the full tier was given at the start and is not any more".to_owned());
        let lsm: &[&str] = if self.promised == Tier::Full { &WITH_LSM } else { &[] };
        tier.into_iter().chain(self.broken(&REQUIRED)).chain(self.broken(&ALSO)).chain(self.broken(lsm)).collect()
    }

    fn broken<'a>(&'a self, promised: &'a [&str]) -> impl Iterator<Item = String> + 'a {
        let kept = |row: &&CoverageView| {
            row.state == CoverageState::Enforced || (row.absent && !REQUIRED.contains(&&*row.path))
        };
        let rows = self.rows.iter().filter(|row| promised.contains(&row.path.as_str()));
        rows.filter(move |row| !kept(row)).map(|row| format!("{} ({})", row.path, row.detail))
    }

    /// For the record.
    pub(super) fn paths(&self) -> Vec<PathCoverage> {
        let path = |row: &CoverageView| PathCoverage {
            path: row.path.clone(),
            state: row.state.as_str().to_owned(),
            detail: Some(row.detail.clone()),
        };
        self.rows.iter().map(path).collect()
    }
}

fn change(before: &CoverageView, now: &CoverageView) -> PathChange {
    PathChange {
        path: now.path.clone(),
        from: before.state.as_str().to_owned(),
        to: now.state.as_str().to_owned(),
        detail: now.detail.clone(),
    }
}

/// Paths without which the daemon does not start where `--require reduced` or more is given.
const REQUIRED: [&str; 8] = [
    "connect tcp4",
    "connect tcp6",
    "datagram udp4",
    "datagram udp6",
    "process lineage",
    "raw sockets",
    "flows of ended tasks",
    "secret open",
];

/// What every tier promises beside, where the host has it at all.
const ALSO: [&str; 2] = ["kernel settings", "names"];

/// What the full tier promises beside, where the host has it at all.
const WITH_LSM: [&str; 17] = [
    "unix streams",
    "unix datagrams",
    "listening",
    "other socket families",
    "netlink",
    "io_uring",
    "userfaultfd",
    "user namespaces",
    "capabilities",
    "tun and tap devices",
    "sockets made elsewhere",
    "secrets opened elsewhere",
    "memory of other processes",
    "the daemon's process",
    "BPF objects",
    "the daemon's files",
    "kernel files and raw disks",
];

/// Without BPF LSM, where it runs not.
const UNIX: &str = "who listens is not asked, so that other services can act for an agent";

fn table(facts: &Facts, canary: &Outcomes) -> (Tier, Vec<CoverageView>) {
    let proven = |attempt: Attempt| matches!(canary.get(&attempt), Some(Outcome::Refused | Outcome::Unavailable(_)));
    let lsm = Attempt::ALL.into_iter().filter(|attempt| attempt.needs_lsm()).all(proven);
    let secret = canary.get(&Attempt::Secret) == Some(&Outcome::Refused);
    let kernel = matches!(facts.guarding, Guarding::Kernel);
    let table = Table { facts, canary };
    (if kernel && secret && lsm { Tier::Full } else { Tier::Reduced }, table.rows(kernel))
}

struct Table<'a> {
    facts: &'a Facts,
    canary: &'a Outcomes,
}

impl Table<'_> {
    fn rows(&self, lsm: bool) -> Vec<CoverageView> {
        let reads = match self.facts.guarding {
            Guarding::Kernel => "lsm file_open",
            Guarding::Fanotify(_) => "fanotify permission events, while the daemon runs",
        };
        let mut rows = vec![
            self.proven("connect tcp4", "cgroup connect4", Attempt::Tcp4),
            self.proven("connect tcp6", "cgroup connect6", Attempt::Tcp6),
            self.proven("datagram udp4", "cgroup sendmsg4", Attempt::Udp4),
            self.proven("datagram udp6", "cgroup sendmsg6", Attempt::Udp6),
            self.proven("raw sockets", "cgroup sock_create", Attempt::RawSocket),
            self.proven("flows of ended tasks", "cgroup_skb egress", Attempt::Egress),
            self.proven("packets for another address", "cgroup_skb egress", Attempt::Egress),
            self.proven("process lineage", "tracepoint sched_process_fork", Attempt::Forked),
            self.proven("secret open", reads, Attempt::Secret),
            self.proven("kernel settings", "cgroup sysctl", Attempt::Setting),
            self.proven("names", "cgroup connect4 to sendmsg6, resolver", Attempt::Name),
        ];
        rows.extend(self.side_doors(lsm));
        rows.push(if lsm {
            self.proven("listening", "lsm socket_listen, cgroup_skb egress", Attempt::Listen)
        } else {
            let detail = "a socket may listen, and its answers are dropped on the wire: not proven by a canary";
            row("listening", "cgroup_skb egress", CoverageState::Observed, detail)
        });
        rows.push(if lsm {
            row("fork beyond the limit", "lsm task_alloc", CoverageState::Enforced, "the fork fails")
        } else {
            let detail = "the fork succeeds, marked, and its parent is killed";
            row("fork beyond the limit", "tracepoint sched_process_fork", CoverageState::Enforced, detail)
        });
        if lsm && !self.facts.splice_is_seen {
            let detail = "this kernel asks nobody about `sendfile` and `splice` to a socket (before 6.5)";
            rows.push(row("sendfile to sockets made elsewhere", "none", CoverageState::NotCovered, detail));
        }
        rows.push(self.loss_of_the_daemon());
        rows.extend(not_covered());
        rows
    }

    fn loss_of_the_daemon(&self) -> CoverageView {
        let (path, reads) = ("loss of the daemon", matches!(self.facts.guarding, Guarding::Fanotify(_)));
        let Some(pins) = &self.facts.pins else {
            let detail = "nothing is pinned, so that all guards go with the daemon";
            let next = Some("set `pin_dir` in the configuration, and leave `--no-pin` out".to_owned());
            return CoverageView { next, ..row(path, "none", CoverageState::NotCovered, detail) };
        };
        let but = if reads { "; secrets are open until it is back" } else { "" };
        let detail = format!("what was decided holds, what is new is refused{but}");
        row(path, &format!("pinned below {}", pins.display()), CoverageState::Enforced, &detail)
    }

    /// What only BPF LSM sees.
    fn side_doors(&self, lsm: bool) -> Vec<CoverageView> {
        let doors = [
            (
                "other socket families",
                "socket_create",
                Attempt::PacketSocket,
                "packet, vsock and other sockets are not seen",
            ),
            (
                "netlink",
                "socket_create",
                Attempt::Netlink,
                "routes, firewalls and modules can be reached by who has CAP_NET_ADMIN",
            ),
            (
                "io_uring",
                "inode_init_security_anon",
                Attempt::IoUring,
                "rings can be made; what they connect and send is decided as everything else",
            ),
            ("unix streams", "unix_stream_connect", Attempt::UnixStream, UNIX),
            ("unix datagrams", "unix_may_send", Attempt::UnixDatagram, UNIX),
            ("userfaultfd", "inode_init_security_anon", Attempt::Userfaultfd, "handlers can be made"),
            (
                "user namespaces",
                "userns_create",
                Attempt::UserNamespace,
                "they can be made; what is connected from there is decided",
            ),
            ("capabilities", "capable", Attempt::Capability, "a root agent has them"),
            (
                "tun and tap devices",
                "capable, tun_dev_create, tun_dev_open",
                Attempt::Capability,
                "a root agent can make them",
            ),
            (
                "sockets made elsewhere",
                "socket_connect to socket_sendmsg, file_receive",
                Attempt::ForeignSocket,
                "a connected socket passed in by an unmarked process may send",
            ),
            (
                "secrets opened elsewhere",
                "file_permission, mmap_file, file_receive",
                Attempt::HeldSecret,
                "a descriptor passed in or opened in time can be read, as far as fanotify does not see it",
            ),
            (
                "memory of other processes",
                "ptrace_access_check",
                Attempt::Memory,
                "processes of the same user, or all those of a root agent, can be read and changed",
            ),
            (
                "the daemon's process",
                "task_kill, task_setscheduler, task_setnice, task_setrlimit",
                Attempt::Signal,
                "a root agent can kill it, which ends nothing that is pinned",
            ),
            ("BPF objects", "bpf, file_open", Attempt::Bpf, "a root agent can detach what is pinned"),
            (
                "the daemon's files",
                "file_open, inode_create to inode_unlink, path_truncate",
                Attempt::OwnFile,
                "a root agent can change its configuration and policies, and unlink what it pinned",
            ),
            (
                "kernel files and raw disks",
                "file_open",
                Attempt::KernelFile,
                "a root agent can use them: the cgroup tree, debugfs, block devices",
            ),
        ];
        let door = |(path, guard, attempt, without): (&str, &str, Attempt, &str)| {
            if lsm { self.proven(path, &format!("lsm {guard}"), attempt) } else { self.without_lsm(path, without) }
        };
        doors.into_iter().map(door).collect()
    }

    fn proven(&self, path: &str, guard: &str, attempt: Attempt) -> CoverageView {
        let (state, detail) = match self.canary.get(&attempt) {
            Some(Outcome::Refused) if attempt.is_cheap() => {
                (CoverageState::Enforced, "a canary is refused every second".to_owned())
            }
            Some(Outcome::Refused) => (CoverageState::Enforced, "a canary was refused".to_owned()),
            Some(Outcome::Through) => (CoverageState::NotCovered, "the canary was not refused".to_owned()),
            Some(Outcome::Unavailable(cause)) => {
                (CoverageState::NotCovered, format!("this host cannot even do it unmarked: {cause}"))
            }
            Some(Outcome::Failed(cause)) => {
                (CoverageState::NotCovered, format!("the canary failed otherwise: {cause}"))
            }
            None => (CoverageState::NotCovered, "the canary did not try it".to_owned()),
        };
        let absent = matches!(self.canary.get(&attempt), Some(Outcome::Unavailable(_)));
        let next = (state != CoverageState::Enforced && !absent).then(|| advice(guard).to_owned());
        CoverageView { absent, next, ..row(path, guard, state, &detail) }
    }

    fn without_lsm(&self, path: &str, what: &str) -> CoverageView {
        let (why, next) = match (&self.facts.lsm, &self.facts.lsm_refused) {
            (BpfLsm::NotListed(list), _) => {
                (format!("`bpf` is not in the kernel's lsm list ({list})"), format!("boot with `lsm={list},bpf`"))
            }
            (_, Some(cause)) => {
                (cause.clone(), "use a kernel that lets BPF LSM programs run (CONFIG_BPF_LSM=y)".to_owned())
            }
            _ => (
                "BPF LSM does not run here".to_owned(),
                "use a kernel with CONFIG_BPF_LSM=y, and boot with `bpf` in `lsm=`".to_owned(),
            ),
        };
        let next = Some(next);
        CoverageView { next, ..row(path, "none", CoverageState::NotCovered, &format!("{what}: {why}")) }
    }
}

/// What to do about a path that was proven once, or should be.
fn advice(guard: &str) -> &'static str {
    if guard.starts_with("lsm ") {
        "write 1 to /proc/sys/kernel/ftrace_enabled, without which BPF LSM does not run, and see the daemon's log"
    } else {
        "see the daemon's log, and start it again with WRIT_LOG=debug"
    }
}

/// What no guard of this version sees: said, so that nobody believes otherwise.
fn not_covered() -> Vec<CoverageView> {
    let none = |path: &str, detail: &str| row(path, "none", CoverageState::NotCovered, detail);
    vec![none("plants", "what an agent writes may be run later by who is no task: shell start-up files, units, hooks")]
}

fn row(path: &str, guard: &str, state: CoverageState, detail: &str) -> CoverageView {
    let (path, guard, detail) = (path.to_owned(), guard.to_owned(), detail.to_owned());
    CoverageView { path, guard, state, detail, absent: false, next: None }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kernel::Fanotify;

    fn all(outcome: &Outcome) -> Outcomes {
        Attempt::ALL.iter().map(|&attempt| (attempt, outcome.clone())).collect()
    }

    fn kernel() -> Facts {
        let pins = Some("/sys/fs/bpf/writ".into());
        Facts { guarding: Guarding::Kernel, lsm: BpfLsm::Listed, lsm_refused: None, pins, splice_is_seen: true }
    }

    fn find<'a>(coverage: &'a Coverage, path: &str) -> &'a CoverageView {
        coverage.rows.iter().find(|row| row.path == path).unwrap()
    }

    #[test]
    fn what_was_refused_is_enforced_and_nothing_else_is() {
        let full = Coverage::new(kernel(), all(&Outcome::Refused));
        assert_eq!((full.tier, full.missing()), (Tier::Full, None));
        assert_eq!(full.faults(), Vec::<String>::new());
        let others = [Outcome::Through, Outcome::Unavailable("x".into()), Outcome::Failed("x".into())];
        for outcome in &others {
            let coverage = Coverage::new(kernel(), all(outcome));
            assert_eq!(coverage.tier, Tier::Reduced, "{outcome:?}");
            for path in REQUIRED.iter().chain(&ALSO).chain(&WITH_LSM) {
                assert_eq!(find(&coverage, path).state, CoverageState::NotCovered, "{path}: {outcome:?}");
            }
        }
    }

    #[test]
    fn one_path_that_lets_through_is_named() {
        let mut canary = all(&Outcome::Refused);
        canary.insert(Attempt::Udp6, Outcome::Through);
        let missing = Coverage::new(kernel(), canary).missing().unwrap();
        assert_eq!(missing, "not enforced: datagram udp6 (the canary was not refused)");
    }

    #[test]
    fn the_full_tier_goes_with_any_of_its_guards_and_comes_back() {
        for attempt in Attempt::ALL.into_iter().filter(|attempt| attempt.needs_lsm()).chain([Attempt::Secret]) {
            let mut coverage = Coverage::new(kernel(), all(&Outcome::Refused));
            assert_eq!(coverage.update(all(&Outcome::Refused)), None);
            let mut canary = all(&Outcome::Refused);
            canary.insert(attempt, Outcome::Through);
            let change = coverage.update(canary).unwrap();
            assert_eq!((change.from, change.to), (Tier::Full, Tier::Reduced), "{attempt:?}");
            assert!(change.paths.iter().all(|path| path.from == "enforced" && path.to == "not_covered"));
            assert!(!change.paths.is_empty() && coverage.faults().len() > change.paths.len(), "{attempt:?}");
            let change = coverage.update(all(&Outcome::Refused)).unwrap();
            assert_eq!((change.from, change.to), (Tier::Reduced, Tier::Full), "{attempt:?}");
            assert!(coverage.faults().is_empty());
        }
    }

    #[test]
    fn what_the_host_lacks_is_no_fault_and_takes_no_tier() {
        let mut canary = all(&Outcome::Refused);
        canary.insert(Attempt::IoUring, Outcome::Unavailable("Function not implemented".into()));
        canary.insert(Attempt::Setting, Outcome::Unavailable("Read-only file system".into()));
        let coverage = Coverage::new(kernel(), canary);
        assert_eq!((coverage.tier, coverage.faults().len()), (Tier::Full, 0));
        assert!(find(&coverage, "io_uring").absent);
    }

    #[test]
    fn what_a_dead_daemon_leaves_is_said() {
        let pinned = Coverage::new(kernel(), all(&Outcome::Refused));
        assert_eq!(find(&pinned, "loss of the daemon").state, CoverageState::Enforced);
        let alone = Coverage::new(Facts { pins: None, ..kernel() }, all(&Outcome::Refused));
        let row = find(&alone, "loss of the daemon");
        assert!(row.state == CoverageState::NotCovered && row.next.is_some(), "{}", row.detail);
    }

    #[test]
    fn what_an_older_kernel_does_not_ask_about_is_a_row() {
        let path = "sendfile to sockets made elsewhere";
        let older = Coverage::new(Facts { splice_is_seen: false, ..kernel() }, all(&Outcome::Refused));
        assert_eq!(find(&older, path).state, CoverageState::NotCovered);
        let newer = Coverage::new(kernel(), all(&Outcome::Refused));
        assert!(newer.rows.iter().all(|row| row.path != path));
    }

    #[test]
    fn without_bpf_lsm_the_table_says_why_and_what_to_do() {
        let Ok(group) = Fanotify::new() else { return };
        let facts = Facts {
            guarding: Guarding::Fanotify(Arc::new(group)),
            lsm: BpfLsm::NotListed("lockdown,yama".into()),
            ..kernel()
        };
        let coverage = Coverage::new(facts, all(&Outcome::Refused));
        assert_eq!((coverage.tier, coverage.missing(), coverage.faults().len()), (Tier::Reduced, None, 0));
        for path in WITH_LSM.into_iter().filter(|path| *path != "listening") {
            let row = find(&coverage, path);
            assert!(row.state == CoverageState::NotCovered && row.detail.contains("lockdown,yama"), "{}", row.detail);
            assert_eq!(row.next.as_deref(), Some("boot with `lsm=lockdown,yama,bpf`"));
        }
    }
}
