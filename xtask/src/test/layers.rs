//! How each layer is run: cargo's tests, the privileged suite on this host, and the same suite in a guest.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::results::{Counts, Layer};
use crate::command::{command, exists, progress, run};
use crate::lab::guest::Guest;
use crate::lab::kernel::Kernel;
use crate::lab::machine::{LSM, Machine, Verdict};
use crate::lab::modules;
use crate::{repo, setup, stream, vm};

/// Compilation included.
const UNITS_LIMIT: Duration = Duration::from_secs(40 * 60);
const HOST_LIMIT: Duration = Duration::from_secs(15 * 60);

/// How many times slower an emulated processor is, at most.
const SLOWNESS: u32 = 15;
const GUEST_LIMIT: Duration = Duration::from_secs(60 * 60);

/// What the suite needs, itself included.
const PROGRAMS: [&str; 4] = ["writ-tests", "writ-probe", "writd", "writ"];

/// Beginnings of the names of tests that meet what the tiers do differently (which tier is found, opens through fanotify,
/// kinds of sockets, listening), and of one test each for connections, datagrams and forks. The boot without `bpf` in
/// `lsm=` runs these where the host has run the whole reduced tier.
const BY_TIER: &str = "input::,kinds::,listen::,secrets::,reload::entry_taken_out,reload::read_verdicts,net::tcp4,net::udp4,\
                       lineage::no_unmarked_child";

/// Modules that a host loads by itself when somebody asks for what they do: the listing of sockets, kinds of sockets and
/// devices, translation of addresses.
const MODULES: [&str; 12] = [
    "tcp_diag",
    "udp_diag",
    "tun",
    "sctp",
    "dccp_ipv4",
    "vsock_loopback",
    "algif_hash",
    "xfrm_user",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_redir",
];

/// Programs of others that tests run where they find them.
const FOREIGN_PROGRAMS: [&str; 2] = ["/usr/bin/getent", "/usr/bin/curl"];

/// Where their copies for guests are, in the lab.
const STRIPPED: &str = "binaries";

/// What a machine is declared to offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Tier {
    /// BPF LSM works.
    Full,
    /// It does not.
    Reduced,
}

impl fmt::Display for Tier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Full => "full",
            Self::Reduced => "reduced",
        })
    }
}

/// What all layers share.
pub(crate) struct Plan {
    filter: Option<String>,
    /// The tier in which the whole suite runs on this host, if it does.
    host: Option<Tier>,
    /// Where `writd`, `writ` and the suite are.
    binaries: PathBuf,
}

impl Plan {
    /// Builds all that runs: units, the daemon and the privileged suite. In one call, since cargo compiles what they share
    /// anew for each selection of packages that asks for other features of it.
    pub(crate) fn new(filter: Option<String>, host: Option<Tier>) -> Result<Self> {
        progress("building units, daemon and privileged suite");
        run(&mut command("cargo", ["build", "--quiet", "--workspace", "--all-targets"]))?;
        Ok(Self { filter, host, binaries: repo::binaries() })
    }

    /// Unit and property tests of every crate.
    pub(crate) fn units(&self) -> Result<Layer> {
        progress("unit and property tests");
        let started = Instant::now();
        let mut cargo = command("cargo", ["test", "--workspace", "--no-fail-fast"]);
        cargo.args(&self.filter);
        let streamed = stream::run(&mut cargo, UNITS_LIMIT)?;
        let mut layer = Layer::new("units", Counts::from_cargo(&streamed.output), started.elapsed());
        match streamed.status {
            None => layer.fail("cargo test did not end in time"),
            Some(status) if !status.success() => layer.fail("cargo test failed"),
            Some(_) => {}
        }
        Ok(self.judged(layer))
    }

    /// The privileged suite on this host. A user who is not root has not tested anything, so that is a failure.
    pub(crate) fn on_host(&self, tier: Tier) -> Result<Layer> {
        let name = format!("host, {tier}");
        let started = Instant::now();
        if !setup::is_root()? {
            let mut layer = Layer::new(&name, Counts::default(), started.elapsed());
            layer.fail("the privileged suite needs root: run this as root, or with --vm-only");
            return Ok(layer);
        }
        progress(format!("privileged suite on this host, tier {tier}"));
        let mut suite = Command::new(self.binaries.join("writ-tests"));
        suite.args(self.arguments(tier)).env("WRIT_BIN_DIR", &self.binaries);
        let streamed = stream::run(&mut suite, HOST_LIMIT)?;
        let mut layer = Layer::of_suite(&name, &streamed.output, started.elapsed());
        match streamed.status {
            None => layer.fail("the suite did not end in time"),
            Some(status) if !status.success() => layer.fail("the suite failed"),
            Some(_) => {}
        }
        Ok(self.judged(layer))
    }

    /// The privileged suite in a virtual machine; the reduced tier is a boot without `bpf` in `lsm=`. Its output is shown
    /// whole at the end, since other machines run at the same time.
    pub(crate) fn guest(&self, kernel: Kernel, tier: Tier) -> Result<Layer> {
        let part = self.part(tier);
        let name = format!("{}, {tier}{}", kernel.name, if part.is_some() { ", part" } else { "" });
        progress(format!("privileged suite on kernel {name}"));
        let lsm = match tier {
            Tier::Full => LSM.to_owned(),
            Tier::Reduced => without_bpf(LSM),
        };
        let log = format!("{}-{tier}", kernel.name);
        let modules = modules_of(&kernel)?;
        let machine = Machine { lsm, limit: GUEST_LIMIT, name: log, live: false, ..Machine::new(kernel) };
        let ending = machine.run(&Guest { modules, ..self.in_guest(tier) })?;
        println!("\nprivileged suite on kernel {name}\n{}", ending.output.trim_end());
        vm::report(&machine, &ending);
        let mut layer = Layer::of_suite(&name, &ending.output, ending.duration);
        if ending.verdict != Verdict::Status(0) {
            layer.fail(&ending.verdict.to_string());
        }
        Ok(self.judged(layer))
    }

    fn in_guest(&self, tier: Tier) -> Guest {
        let binaries = repo::lab().join(STRIPPED);
        let suite = binaries.join("writ-tests").to_string_lossy().into_owned();
        let foreign = FOREIGN_PROGRAMS.map(PathBuf::from);
        let files = [binaries.clone(), repo::at("policies")].into_iter().chain(foreign);
        let only = self.part(tier).map_or_else(Vec::new, |part| vec!["--only".to_owned(), part.to_owned()]);
        Guest {
            command: [vec![suite], self.arguments(tier), only].concat(),
            environment: vec![
                ("WRIT_BIN_DIR".to_owned(), binaries.to_string_lossy().into_owned()),
                ("WRIT_TEST_SLOW".to_owned(), SLOWNESS.to_string()),
            ],
            files: files.filter(|path| path.exists()).collect(),
            ..Guest::default()
        }
    }

    /// The tests that a guest of this tier runs, if not all: the host runs the rest of the reduced tier.
    fn part(&self, tier: Tier) -> Option<&'static str> {
        (tier == Tier::Reduced && self.host == Some(Tier::Reduced)).then_some(BY_TIER)
    }

    /// Makes copies for the guests without debug information, which would only fill their memory.
    pub(crate) fn strip(&self) -> Result<()> {
        let directory = repo::lab().join(STRIPPED);
        std::fs::create_dir_all(&directory).with_context(|| format!("cannot make `{}`", directory.display()))?;
        for name in PROGRAMS {
            strip(&self.binaries.join(name), &directory.join(name))?;
        }
        Ok(())
    }

    fn arguments(&self, tier: Tier) -> Vec<String> {
        let tier = ["--tier".to_owned(), tier.to_string()];
        tier.into_iter().chain(self.filter.clone()).collect()
    }

    /// A layer that ran nothing has shown nothing, unless a filter asked for that.
    fn judged(&self, mut layer: Layer) -> Layer {
        if self.filter.is_none() && layer.counts.total() == 0 {
            layer.fail("no test ran");
        }
        layer
    }
}

/// Those of [`MODULES`] that the kernel comes with.
fn modules_of(kernel: &Kernel) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for name in MODULES {
        if modules::offers(kernel, name)? {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    if exists("strip") {
        return run(command("strip", ["--strip-debug", "-o"]).arg(to).arg(from));
    }
    std::fs::copy(from, to).with_context(|| format!("cannot copy `{}`", from.display()))?;
    Ok(())
}

fn without_bpf(lsm: &str) -> String {
    lsm.split(',').filter(|name| *name != "bpf").collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bpf_is_left_out() {
        assert_eq!(without_bpf("landlock,bpf,yama"), "landlock,yama");
        assert!(LSM.split(',').any(|name| name == "bpf"));
    }

    #[test]
    fn only_what_the_host_has_run_is_left_out() {
        let part = |host, tier| Plan { filter: None, host, binaries: PathBuf::new() }.part(tier).is_some();
        assert!(part(Some(Tier::Reduced), Tier::Reduced));
        for (host, tier) in
            [(None, Tier::Reduced), (Some(Tier::Full), Tier::Reduced), (Some(Tier::Reduced), Tier::Full)]
        {
            assert!(!part(host, tier));
        }
    }

    #[test]
    fn a_layer_that_ran_nothing_fails_without_a_filter() {
        let plan =
            |filter: Option<&str>| Plan { filter: filter.map(ToOwned::to_owned), host: None, binaries: PathBuf::new() };
        let empty = || Layer::new("x", Counts::default(), Duration::ZERO);
        assert!(!plan(None).judged(empty()).is_good());
        assert!(plan(Some("x")).judged(empty()).is_good());
    }
}
