//! Reads a guest's kernel log: a kernel that complained is a failure, whatever the command says.

/// What a kernel writes when something in it is wrong. Each begins at a word's beginning.
const COMPLAINTS: [&str; 16] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "RIP:",
    "Call Trace:",
    "Kernel panic",
    "general protection fault",
    "suspicious RCU",
    "lockdep",
    "possible recursive locking",
    "possible circular locking",
    "blocked for more than",
    "detected stall",
    "self-detected stall",
    "UBSAN:",
    "unregister_netdevice: waiting",
];

/// The lines of a kernel's log in which it complains.
pub(crate) fn complaints(log: &str) -> Vec<&str> {
    log.lines().filter(|line| COMPLAINTS.iter().any(|complaint| has_words(line, complaint))).collect()
}

/// The last `count` lines.
pub(crate) fn end(log: &str, count: usize) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

/// Whether the line has the words, not as the end of a longer word, as in `DEBUG:`.
fn has_words(line: &str, words: &str) -> bool {
    line.match_indices(words).any(|(at, _)| {
        let before = line.get(..at).and_then(|before| before.chars().next_back());
        !before.is_some_and(char::is_alphanumeric)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_found() {
        let lines = [
            "[    3.1] WARNING: CPU: 0 PID: 77 at kernel/bpf/verifier.c:1 bpf_check+0x1/0x2",
            "[    3.1] WARNING: suspicious RCU usage",
            "[    3.1] BUG: kernel NULL pointer dereference, address: 0000000000000008",
            "[    3.1] Oops: 0000 [#1] PREEMPT SMP NOPTI",
            "[    3.1] RIP: 0010:bpf_check+0x1/0x2",
            "[  242.1] INFO: task writd:77 blocked for more than 120 seconds.",
            "[   42.1] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "[   42.1] INFO: lockdep is turned off.",
            "[    1.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
            "[    9.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [writd:77]",
        ];
        for line in lines {
            assert_eq!(complaints(&format!("[ 0.1] Linux\n{line}\n")), [line]);
        }
    }

    #[test]
    fn other_lines_are_no_complaints() {
        let log = "[ 0.1] Linux version 6.12\n[ 0.2] DEBUG: x\n[ 0.3] writd[77]: segfault at 0 ip 0 sp 0 error 4\n\
                   [ 0.4] reboot: Power down";
        assert!(complaints(log).is_empty());
        assert!(complaints("").is_empty());
    }

    #[test]
    fn the_end_is_no_longer_than_the_log() {
        assert_eq!(end("a\nb\nc", 2), "b\nc");
        assert_eq!(end("a", 2), "a");
        assert_eq!(end("", 2), "");
    }
}
