//! The report as text.

use std::fmt::Write;

use super::Report;
use super::capacity::Capacity;
use super::guest::Counted;
use super::host::Host;
use super::revoke::Revoked;
use super::stats::{Distribution, Summary};
use super::targets::Target;

/// All of it, the targets last.
pub(super) fn render(report: &Report) -> String {
    let mut text = format!("\n{} rounds, {}\n", report.rounds, report.machine);
    text += &host(&report.host);
    text += &capacity(&report.capacity);
    for counted in &report.guests {
        text += &guest(counted);
    }
    for skip in &report.skipped {
        let _ = writeln!(text, "\nskipped: {skip}");
    }
    text + &targets(&report.targets)
}

fn host(host: &Host) -> String {
    let mut text = format!(
        "\nwhole operations on this host, tier {}; ns as median (min to max), ratio to the same with the daemon off\n",
        host.tier
    );
    for cost in &host.costs {
        let (off, on) = (nanoseconds(cost.off), nanoseconds(cost.on));
        let Summary { median, min, max } = cost.ratio;
        let _ = writeln!(
            text,
            "{:26} {:14} off {off:28} on {on:28} ratio {median:.3} ({min:.3} to {max:.3})",
            cost.operation,
            cost.process.name()
        );
    }
    let contacts = &host.contacts;
    text += "\nfirst contacts, microseconds\n";
    text += &distribution("connect()", contacts.connect);
    text += &distribution("held, by the records", contacts.held);
    let _ = writeln!(text, "{:22} {}", "not answered in time", contacts.refused);
    text
}

fn nanoseconds(summary: Summary) -> String {
    format!("{:.0} ({:.0} to {:.0})", summary.median, summary.min, summary.max)
}

fn distribution(name: &str, of: Distribution) -> String {
    let Distribution { count, p50, p90, p99, max } = of;
    format!("{name:22} p50 {p50:.2}  p90 {p90:.2}  p99 {p99:.2}  max {max:.2}  of {count}\n")
}

fn capacity(capacity: &Capacity) -> String {
    let mut text = format!("\nthe daemon with {} policies, median (min to max)\n", capacity.policies);
    let rows = [
        ("ready after", capacity.ready, "ms"),
        ("memory when ready", capacity.memory, "MiB"),
        ("memory later", capacity.memory_later, "MiB"),
        ("processor while idle", capacity.idle, "% of one"),
    ];
    for (name, Summary { median, min, max }, unit) in rows {
        let _ = writeln!(text, "{name:22} {median:.2} ({min:.2} to {max:.2}) {unit}");
    }
    text
}

pub(super) fn guest(counted: &Counted) -> String {
    let mut text = format!(
        "\ninstructions on kernel {}, tier {}\n{:26} {:>10} {:>12} {:>12}\n",
        counted.kernel, counted.tier, "operation", "off", "unmarked", "marked"
    );
    for row in &counted.operations {
        let added = |on: f64| format!("{:+.0}", on - row.off);
        let (unmarked, marked) = (added(row.unmarked), added(row.marked));
        let _ = writeln!(text, "{:26} {:>10.0} {unmarked:>12} {marked:>12}", row.operation, row.off);
    }
    text
}

/// Of each number of connections.
pub(super) fn revoked(revoked: &[Revoked]) -> String {
    let mut text = "\nfrom the call that revokes a task, milliseconds\n".to_owned();
    for of in revoked {
        let _ = writeln!(text, "{} connections, {} rounds", of.flows, of.rounds);
        text += &distribution("  to the last byte", of.last_byte);
        text += &distribution("  to the answer", of.answered);
    }
    text
}

pub(super) fn targets(targets: &[Target]) -> String {
    let mut text = "\ntargets\n".to_owned();
    for Target { name, limit, measured, unit, met } in targets {
        let word = if *met { "met" } else { "missed" };
        let _ = writeln!(text, "{word:7} {name}: {measured:.3} {unit} (below {limit} {unit})");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::guest::Instructions;

    #[test]
    fn a_guest_shows_what_is_added() {
        let row = Instructions { operation: "read".to_owned(), off: 1000.4, unmarked: 1190.4, marked: 1000.0 };
        let counted = Counted { kernel: "6.12".to_owned(), tier: "full".to_owned(), operations: vec![row] };
        let text = guest(&counted);
        assert!(text.ends_with("read                             1000         +190           -0\n"), "{text}");
    }

    #[test]
    fn targets_are_met_or_missed() {
        let target = |met| Target { name: "p50".to_owned(), limit: 60.0, measured: 28.25, unit: "us", met };
        let text = targets(&[target(true), target(false)]);
        assert!(text.contains("\nmet     p50: 28.250 us (below 60 us)\nmissed  p50: "), "{text}");
    }
}
