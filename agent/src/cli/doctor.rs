//! `writ doctor`: what is enforced right now, measured; without a daemon, what the host could give.

use super::exit::Failure;
use super::output::Output;
use super::table::{cut, pairs, plain, table};
use super::{block_on, output};
use crate::api::types::{CoverageState, CoverageView, DoctorView, HostView};
use crate::api::{Client, ClientError};
use crate::kernel::host::host;

/// Longest reason in the table, characters; JSON has all of it.
const MAX_WHY: usize = 100;

/// Prints what the daemon measured.
///
/// # Errors
/// [`Failure::Unsound`] if less is enforced than the tier promises; [`ClientError::NoDaemon`] without a daemon, after the host
/// was described.
pub(super) fn examine(client: &Client, output: Output) -> Result<(), Failure> {
    match block_on(client.doctor()) {
        Ok(view) => {
            output.show(&view, text)?;
            if view.sound { Ok(()) } else { Err(Failure::Unsound(view.faults.len())) }
        }
        Err(failure @ Failure::Daemon(ClientError::NoDaemon { .. })) => {
            output.show(&HostView::from(host()), without_daemon)?;
            output::say("nothing is enforced: no daemon runs");
            Err(failure)
        }
        Err(other) => Err(other),
    }
}

fn text(view: &DoctorView) -> String {
    let mut parts = vec![pairs(&daemon(view)), pairs(&facts(&view.host)), coverage(&view.coverage)];
    let advice = advice(&view.coverage);
    if !advice.is_empty() {
        parts.push(advice);
    }
    parts.push(conclusion(view));
    parts.join("\n")
}

fn daemon(view: &DoctorView) -> Vec<(&'static str, String)> {
    let canary = &view.canary;
    let tier = if view.tier == view.promised {
        plain(&view.tier)
    } else {
        format!("{} (it was {} when the daemon started)", plain(&view.tier), plain(&view.promised))
    };
    vec![
        ("daemon", format!("writd {} (pid {})", plain(&view.version), view.pid)),
        ("tier", tier),
        (
            "deciding",
            format!(
                "last heard of {} ms ago; first contacts are held for {} ms",
                view.heartbeat_ms, view.hold_budget_ms
            ),
        ),
        (
            "canary",
            format!("{} rounds, {} restarts, the last took {} us", canary.rounds, canary.restarts, canary.took_us),
        ),
    ]
}

fn facts(host: &HostView) -> Vec<(&'static str, String)> {
    let lsm = match &host.lsm {
        Some(list) if list.split(',').any(|name| name == "bpf") => plain(list),
        Some(list) => format!("{} (no bpf: the full tier needs it)", plain(list)),
        None => "unknown (/sys/kernel/security/lsm cannot be read)".to_owned(),
    };
    let found = |place: &Option<String>| place.as_deref().map_or_else(|| "not mounted".to_owned(), plain);
    let yes = |there: bool| if there { "yes" } else { "no" }.to_owned();
    let known = |there: Option<bool>| there.map_or_else(|| "only root can tell".to_owned(), yes);
    vec![
        ("kernel", plain(&host.kernel)),
        ("lsm", lsm),
        ("ftrace_enabled", host.ftrace.map_or_else(|| "not on this kernel".to_owned(), yes)),
        ("BTF", yes(host.btf)),
        ("cgroup v2", found(&host.cgroup2)),
        ("bpffs", found(&host.bpffs)),
        ("fanotify", known(host.fanotify)),
        ("CPUs", host.cpus.to_string()),
    ]
}

fn coverage(rows: &[CoverageView]) -> String {
    let rows = rows.iter().map(|row| {
        let state = if row.absent { "not on this host".to_owned() } else { row.state.as_str().replace('_', " ") };
        vec![plain(&row.path), state, plain(&row.guard), cut(&plain(&row.detail), MAX_WHY)]
    });
    table(&["PATH", "COVERAGE", "GUARD", "WHY"], &rows.collect::<Vec<_>>())
}

/// Each advice once, with the paths that it would help.
fn advice(rows: &[CoverageView]) -> String {
    let mut advice: Vec<(&str, Vec<&str>)> = Vec::new();
    for row in rows.iter().filter(|row| row.state != CoverageState::Enforced) {
        let Some(next) = row.next.as_deref() else { continue };
        match advice.iter_mut().find(|(known, _)| *known == next) {
            Some((_, paths)) => paths.push(&row.path),
            None => advice.push((next, vec![&row.path])),
        }
    }
    if advice.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> =
        advice.into_iter().map(|(next, paths)| vec![plain(next), plain(&paths.join(", "))]).collect();
    table(&["NEXT", "FOR"], &rows)
}

fn conclusion(view: &DoctorView) -> String {
    if view.sound {
        return format!("everything that the {} tier promises is enforced\n", plain(&view.tier));
    }
    view.faults.iter().map(|fault| format!("NOT ENFORCED: {}\n", plain(fault))).collect()
}

fn without_daemon(host: &HostView) -> String {
    let listed = host.lsm.as_ref().is_some_and(|list| list.split(',').any(|name| name == "bpf"));
    let missing =
        [(host.btf, "BTF"), (host.cgroup2.is_some(), "cgroup v2"), (host.fanotify != Some(false), "fanotify")];
    let missing: Vec<&str> = missing.into_iter().filter(|(there, _)| !there).map(|(_, what)| what).collect();
    let could = match (missing.is_empty(), listed && host.ftrace != Some(false)) {
        (false, _) => format!("none: this kernel lacks {}", missing.join(", ")),
        (true, true) => "full, if its programs are really run: the daemon finds out".to_owned(),
        (true, false) => "reduced; for the full tier boot with `bpf` in `lsm=`".to_owned(),
    };
    let mut lines = facts(host);
    lines.push(("tier to be had", could));
    pairs(&lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::{doctor, host};

    #[test]
    fn what_is_broken_stands_at_the_end() {
        let expected = "\
daemon:   writd 0.1.0 (pid 42)
tier:     reduced (it was full when the daemon started)
deciding: last heard of 40 ms ago; first contacts are held for 20 ms
canary:   9 rounds, 1 restarts, the last took 700 us

kernel:         6.12.1
lsm:            lockdown,yama,bpf
ftrace_enabled: no
BTF:            yes
cgroup v2:      /sys/fs/cgroup
bpffs:          not mounted
fanotify:       yes
CPUs:           2

PATH          COVERAGE     GUARD          WHY
connect tcp4  enforced     lsm file_open  a canary is refused every second
secret open   not covered  lsm file_open  the canary was not refused

NEXT           FOR
write 1 to it  secret open

NOT ENFORCED: secret open (the canary was not refused)
";
        assert_eq!(text(&doctor()), expected);
    }

    #[test]
    fn a_sound_host_is_told_in_one_line() {
        let mut view = doctor();
        (view.sound, view.faults, view.tier) = (true, Vec::new(), "full".into());
        view.coverage.pop();
        let text = text(&view);
        assert!(text.ends_with("\neverything that the full tier promises is enforced\n"), "{text}");
        assert!(text.contains("tier:     full\n") && !text.contains("NEXT"), "{text}");
    }

    #[test]
    fn without_a_daemon_the_host_says_what_it_could_give() {
        let could = |host: &HostView| without_daemon(host).lines().last().unwrap_or_default().to_owned();
        let mut one = host();
        one.ftrace = Some(true);
        assert!(could(&one).contains("full, if"), "{}", could(&one));
        one.lsm = Some("yama".into());
        assert!(could(&one).contains("reduced; "), "{}", could(&one));
        one.btf = false;
        assert!(could(&one).contains("none: this kernel lacks BTF"), "{}", could(&one));
    }
}
