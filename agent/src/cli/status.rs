//! `writ status`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::table::{cut, pairs, plain, table, time};
use crate::api::types::StatusView;
use crate::domain::duration::format_duration;

/// Longest reason in the table, characters; JSON has all of it.
const MAX_WHY: usize = 100;

pub(super) fn text(status: &StatusView) -> String {
    [pairs(&summary(status)), coverage(status), numbers("COUNTER", &status.counters), losses(status)].join("\n")
}

fn summary(status: &StatusView) -> Vec<(&'static str, String)> {
    let StatusView { version, pid, policies, tasks, processes, rates, .. } = status;
    let up = format_duration(Duration::from_secs(status.uptime_s));
    let mut lines = vec![
        ("daemon", format!("writd {} (pid {pid}), up {up}, {} KiB", plain(version), status.memory_kib)),
        ("tier", plain(&status.tier)),
        (
            "policies",
            format!("{}, generation {}, loaded {}", policies.count, status.generation, time(policies.loaded_at)),
        ),
        ("tasks", format!("{} active, {} opened, {processes} processes", tasks.active, tasks.total)),
        ("rates", format!("{:.1} decisions/s, {:.1} denials/s", rates.decisions_per_s, rates.denies_per_s)),
        ("records", records(status)),
    ];
    if let Some(error) = &policies.last_error {
        let error: Vec<String> = error.lines().map(plain).collect();
        lines.push(("last reload", format!("refused, the set above stays in force: {}", error.join("\n    "))));
    }
    lines
}

fn records(status: &StatusView) -> String {
    match &status.records.failing {
        Some(error) => format!("NOT WRITTEN: {}", plain(error)),
        None => format!("written to {}", plain(&status.records.path)),
    }
}

fn coverage(status: &StatusView) -> String {
    let rows = status.coverage.iter().map(|row| {
        let why = cut(&plain(&row.detail), MAX_WHY);
        vec![plain(&row.path), row.state.as_str().replace('_', " "), plain(&row.guard), why]
    });
    table(&["PATH", "COVERAGE", "GUARD", "WHY"], &rows.collect::<Vec<_>>())
}

fn losses(status: &StatusView) -> String {
    match status.losses.values().all(|&count| count == 0) {
        true => "nothing was lost\n".to_owned(),
        false => numbers("LOST", &status.losses),
    }
}

/// Those that are not 0.
fn numbers(head: &str, numbers: &BTreeMap<String, u64>) -> String {
    let rows = numbers.iter().filter(|(_, count)| **count > 0);
    table(&[head, "COUNT"], &rows.map(|(name, count)| vec![plain(name), count.to_string()]).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::status;

    #[test]
    fn a_healthy_daemon_fits_on_a_screen() {
        let expected = "\
daemon:   writd 0.1.0 (pid 42), up 1h 1m 40s, 20480 KiB
tier:     reduced
policies: 12, generation 1, loaded 2023-11-14T22:13:20Z
tasks:    1 active, 9 opened, 2 processes
rates:    12.5 decisions/s, 0.0 denials/s
records:  written to /var/log/writ/records.jsonl

PATH          COVERAGE     GUARD            WHY
connect tcp4  enforced     cgroup connect4  a canary was refused
unix sockets  not covered  none             needs BPF LSM

COUNTER  COUNT
allowed  3

nothing was lost
";
        assert_eq!(text(&status()), expected);
    }

    #[test]
    fn a_long_reason_is_cut() {
        let mut status = status();
        status.coverage[0].detail = "ä".repeat(100);
        assert!(text(&status).contains(&format!("  {}\n", "ä".repeat(100))));
        status.coverage[0].detail = "ä".repeat(101);
        assert!(text(&status).contains(&format!("  {}…\n", "ä".repeat(100))));
    }

    #[test]
    fn a_refused_reload_and_losses_are_shown() {
        let mut status = status();
        status.policies.last_error = Some("site.cedar:3: no such attribute\n  3 | permit".into());
        status.losses.insert("upcall_ring_full".into(), 8);
        status.records.failing = Some("`/r`: No space left on device (os error 28)".into());
        let text = text(&status);
        assert!(text.contains("\nrecords:     NOT WRITTEN: `/r`: No space left on device (os error 28)\n"), "{text}");
        assert!(
            text.contains("refused, the set above stays in force: site.cedar:3: no such attribute\n      3 | permit")
        );
        assert!(text.contains("\nLOST              COUNT\nupcall_ring_full  8\n"), "{text}");
    }
}
