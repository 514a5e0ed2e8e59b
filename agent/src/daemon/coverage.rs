//! What this host enforces, path by path: a value, made of what was attached and what the canary was refused.

use std::collections::BTreeMap;

use super::canary::{Attempt, Outcome};
use super::protect::Guarding;
use crate::api::types::{CoverageState, CoverageView};
use crate::kernel::lsm::BpfLsm;
use crate::record::{PathCoverage, Tier};

/// The coverage table.
pub(super) struct Coverage {
    pub(super) tier: Tier,
    pub(super) rows: Vec<CoverageView>,
}

/// Everything that the table is made of.
pub(super) struct Evidence<'a> {
    pub(super) canary: &'a BTreeMap<Attempt, Outcome>,
    pub(super) guarding: &'a Guarding,
    pub(super) lsm: &'a BpfLsm,
    /// Why the kernel would not have the LSM programs, if it would not.
    pub(super) lsm_refused: Option<&'a str>,
}

impl Coverage {
    /// Puts the table together.
    pub(super) fn new(evidence: &Evidence<'_>) -> Self {
        let kernel_reads = matches!(evidence.guarding, Guarding::Kernel);
        let full = kernel_reads && evidence.refused(Attempt::Secret) && !evidence.through(Attempt::PacketSocket);
        let tier = if full { Tier::Full } else { Tier::Reduced };
        Self { tier, rows: evidence.rows(full) }
    }

    /// What `--require reduced` wants and the host does not give.
    pub(super) fn missing(&self) -> Option<String> {
        let wanted =
            |row: &&CoverageView| row.state != CoverageState::Enforced && REQUIRED.contains(&row.path.as_str());
        let missing: Vec<String> =
            self.rows.iter().filter(wanted).map(|row| format!("{} ({})", row.path, row.detail)).collect();
        (!missing.is_empty()).then(|| format!("not enforced: {}", missing.join("; ")))
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

impl Evidence<'_> {
    fn refused(&self, attempt: Attempt) -> bool {
        self.canary.get(&attempt) == Some(&Outcome::Refused)
    }

    fn through(&self, attempt: Attempt) -> bool {
        self.canary.get(&attempt) == Some(&Outcome::Through)
    }

    fn rows(&self, full: bool) -> Vec<CoverageView> {
        let reads = match self.guarding {
            Guarding::Kernel => "lsm file_open",
            Guarding::Fanotify(_) => "fanotify permission events, while the daemon runs",
        };
        let mut rows = vec![
            self.proven("connect tcp4", "cgroup connect4", Attempt::Tcp4),
            self.proven("connect tcp6", "cgroup connect6", Attempt::Tcp6),
            self.proven("datagram udp4", "cgroup sendmsg4", Attempt::Udp4),
            self.proven("datagram udp6", "cgroup sendmsg6", Attempt::Udp6),
            self.proven("process lineage", "tracepoint sched_process_fork", Attempt::Forked),
            self.proven("raw sockets", "cgroup sock_create", Attempt::RawSocket),
            self.proven("flows of ended tasks", "cgroup_skb egress", Attempt::Egress),
            self.proven("secret open", reads, Attempt::Secret),
        ];
        rows.push(if full {
            self.proven("other socket families", "lsm socket_create", Attempt::PacketSocket)
        } else {
            self.without_lsm("other socket families", "packet, vsock and other sockets are not seen")
        });
        rows.extend(self.unix(full));
        rows.push(if full {
            row("fork beyond the limit", "lsm task_alloc", CoverageState::Enforced, "the fork fails")
        } else {
            let detail = "the fork succeeds, marked, and its parent is killed";
            row("fork beyond the limit", "tracepoint sched_process_fork", CoverageState::Enforced, detail)
        });
        rows.extend(self.not_covered());
        rows
    }

    fn unix(&self, full: bool) -> [CoverageView; 2] {
        if full {
            return [
                self.proven("unix streams", "lsm unix_stream_connect", Attempt::UnixStream),
                self.proven("unix datagrams", "lsm unix_may_send", Attempt::UnixDatagram),
            ];
        }
        let what = "who listens is not asked, so that other services can act for an agent";
        ["unix streams", "unix datagrams"].map(|path| self.without_lsm(path, what))
    }

    fn proven(&self, path: &str, guard: &str, attempt: Attempt) -> CoverageView {
        let (state, detail) = match self.canary.get(&attempt) {
            Some(Outcome::Refused) => (CoverageState::Enforced, "a canary was refused at start".to_owned()),
            Some(Outcome::Through) => (CoverageState::NotCovered, "the canary was not refused".to_owned()),
            Some(Outcome::Unavailable(cause)) => {
                (CoverageState::NotCovered, format!("this host cannot even do it unmarked: {cause}"))
            }
            Some(Outcome::Failed(cause)) => {
                (CoverageState::NotCovered, format!("the canary failed otherwise: {cause}"))
            }
            None => (CoverageState::NotCovered, "the canary did not try it".to_owned()),
        };
        row(path, guard, state, &detail)
    }

    fn without_lsm(&self, path: &str, what: &str) -> CoverageView {
        let why = match (self.lsm, self.lsm_refused) {
            (BpfLsm::NotListed(list), _) => {
                format!("`bpf` is not in the kernel's lsm list ({list}); boot with it there")
            }
            (_, Some(cause)) => cause.to_owned(),
            _ => "BPF LSM does not run here".to_owned(),
        };
        row(path, "none", CoverageState::NotCovered, &format!("{what}: {why}"))
    }

    /// What no guard of this version sees: said, so that nobody believes otherwise.
    fn not_covered(&self) -> Vec<CoverageView> {
        let none = |path: &str, detail: &str| row(path, "none", CoverageState::NotCovered, detail);
        vec![
            none(
                "unix sockets",
                "decided by who listens where BPF LSM works, not yet proven by a canary; else not seen",
            ),
            none("sockets connected elsewhere", "a connected socket passed in by an unmarked process may send"),
            none("listening and accepting", "inbound connections are not decided; their task's end is enforced"),
            none(
                "packets that leave for another address",
                "NAT, tunnels and routing headers are not checked on the wire",
            ),
            none("secrets read by other ways", "descriptors passed in, memory of other processes, raw disks"),
            none("the daemon itself", "a root agent can kill the daemon, and then nothing is enforced"),
        ]
    }
}

fn row(path: &str, guard: &str, state: CoverageState, detail: &str) -> CoverageView {
    CoverageView { path: path.to_owned(), guard: guard.to_owned(), state, detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kernel::Fanotify;

    fn all(outcome: &Outcome) -> BTreeMap<Attempt, Outcome> {
        Attempt::ALL.iter().map(|&attempt| (attempt, outcome.clone())).collect()
    }

    fn table(canary: &BTreeMap<Attempt, Outcome>, guarding: &Guarding) -> Coverage {
        Coverage::new(&Evidence { canary, guarding, lsm: &BpfLsm::Listed, lsm_refused: None })
    }

    fn state<'a>(coverage: &'a Coverage, path: &str) -> &'a CoverageView {
        coverage.rows.iter().find(|row| row.path == path).unwrap()
    }

    #[test]
    fn what_was_refused_is_enforced_and_nothing_else_is() {
        let full = table(&all(&Outcome::Refused), &Guarding::Kernel);
        assert_eq!((full.tier, full.missing()), (Tier::Full, None));
        let others = [Outcome::Through, Outcome::Unavailable("x".into()), Outcome::Failed("x".into())];
        for outcome in &others {
            let coverage = table(&all(outcome), &Guarding::Kernel);
            assert_eq!(coverage.tier, Tier::Reduced, "{outcome:?}");
            for path in REQUIRED {
                assert_eq!(state(&coverage, path).state, CoverageState::NotCovered, "{path}: {outcome:?}");
            }
        }
    }

    #[test]
    fn one_path_that_lets_through_is_named() {
        let mut canary = all(&Outcome::Refused);
        canary.insert(Attempt::Udp6, Outcome::Through);
        let missing = table(&canary, &Guarding::Kernel).missing().unwrap();
        assert_eq!(missing, "not enforced: datagram udp6 (the canary was not refused)");
    }

    #[test]
    fn without_bpf_lsm_the_table_says_why() {
        let Ok(group) = Fanotify::new() else { return };
        let (canary, guarding) = (all(&Outcome::Refused), Guarding::Fanotify(Arc::new(group)));
        let lsm = BpfLsm::NotListed("lockdown,yama".into());
        let coverage = Coverage::new(&Evidence { canary: &canary, guarding: &guarding, lsm: &lsm, lsm_refused: None });
        assert_eq!((coverage.tier, coverage.missing()), (Tier::Reduced, None));
        let row = state(&coverage, "other socket families");
        assert!(row.state == CoverageState::NotCovered && row.detail.contains("lockdown,yama"), "{}", row.detail);
    }
}
