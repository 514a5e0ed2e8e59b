//! Boots a guest in QEMU, bounded in time, and judges how it ended.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::guest::Guest;
use super::kernel::Kernel;
use super::log;
use crate::command::command;
use crate::{repo, stream};

/// The security modules of a guest; what Debian's kernels have by default, made explicit.
pub(crate) const LSM: &str = "landlock,lockdown,yama,integrity,apparmor,bpf";

/// A virtual machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) kernel: Kernel,
    /// The kernel's `lsm=` list.
    pub(crate) lsm: String,
    pub(crate) cpus: u32,
    /// In MiB.
    pub(crate) memory: u32,
    pub(crate) limit: Duration,
    /// More words for the kernel's command line.
    pub(crate) append: Vec<String>,
    /// More arguments for QEMU.
    pub(crate) qemu: Vec<String>,
}

/// How a guest ended.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) verdict: Verdict,
    /// What the command wrote.
    pub(crate) output: String,
    /// The end of the kernel's log, for a verdict that is the kernel's.
    pub(crate) log: String,
    /// Where the whole log is, until the next guest with this kernel.
    pub(crate) log_file: PathBuf,
    pub(crate) duration: Duration,
}

/// What a guest's run is worth.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The command ended with this status and the kernel had nothing to complain about.
    Status(u8),
    /// The kernel complained, with these lines.
    Complaint(Vec<String>),
    /// The guest ended without saying how the command ended.
    Silent,
    TimedOut,
}

impl Verdict {
    /// The status for a shell: the command's own, or one that `timeout` and friends use.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Status(status) => *status,
            Self::TimedOut => 124,
            Self::Complaint(_) | Self::Silent => 125,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(0) => formatter.write_str("ok"),
            Self::Status(status) => write!(formatter, "failed: the command ended with status {status}"),
            Self::Complaint(lines) => {
                write!(formatter, "failed: the kernel complained: {}", lines.first().map_or("", String::as_str))
            }
            Self::Silent => formatter.write_str("failed: the guest ended without reporting a status"),
            Self::TimedOut => formatter.write_str("failed: the guest did not end in time"),
        }
    }
}

impl Machine {
    /// A machine as tests use it.
    pub(crate) fn new(kernel: Kernel) -> Self {
        let limit = Duration::from_secs(120);
        Self { kernel, lsm: LSM.to_owned(), cpus: 2, memory: 1024, limit, append: Vec::new(), qemu: Vec::new() }
    }

    /// Boots the guest and waits for its end.
    pub(crate) fn run(&self, guest: &Guest) -> Result<Ending> {
        let work = tempfile::tempdir().context("cannot make a temporary directory")?;
        guest.write(&self.kernel, &work.path().join("initramfs"))?;
        let started = Instant::now();
        let streamed = stream::run(&mut self.qemu(work.path()), self.limit)?;
        let read = |name: &str| -> String {
            let bytes = std::fs::read(work.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let log = read("log");
        let log_file = repo::lab().join(format!("{}.log", self.kernel.name));
        std::fs::write(&log_file, &log).with_context(|| format!("cannot write `{}`", log_file.display()))?;
        let verdict = judge(streamed.status.is_some(), &read("status"), &log);
        Ok(Ending { verdict, output: streamed.output, log: log::end(&log, 40), log_file, duration: started.elapsed() })
    }

    /// QEMU with three serial ports: the kernel's log, the command's output, its status.
    fn qemu(&self, work: &Path) -> Command {
        let mut qemu = command("qemu-system-x86_64", ["-M", "q35", "-accel", self.accelerator(), "-cpu", "max"]);
        qemu.args(["-smp", &self.cpus.to_string(), "-m", &self.memory.to_string()]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        qemu.arg("-kernel").arg(self.kernel.vmlinux()).arg("-initrd").arg(work.join("initramfs"));
        qemu.args(["-append", &self.command_line()]);
        qemu.arg("-serial").arg(to_file(work, "log"));
        qemu.args(["-chardev", "stdio,id=output,signal=off", "-serial", "chardev:output"]);
        qemu.arg("-serial").arg(to_file(work, "status")).args(&self.qemu);
        qemu
    }

    /// Only emulation counts instructions.
    fn accelerator(&self) -> &'static str {
        if self.qemu.iter().any(|argument| argument == "-icount") { "tcg" } else { accelerator() }
    }

    /// Level 5 shows warnings, which `quiet` would hide from the log that is judged.
    fn command_line(&self) -> String {
        let fixed = "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off cryptomgr.notests";
        [&[fixed.to_owned(), format!("lsm={}", self.lsm)], self.append.as_slice()].concat().join(" ")
    }
}

fn to_file(work: &Path, name: &str) -> OsString {
    let mut port = OsString::from("file:");
    port.push(work.join(name));
    port
}

/// KVM where the processor offers it; other modules that offer `/dev/kvm` do not run a stock kernel reliably.
fn accelerator() -> &'static str {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let real = ["/sys/module/kvm_intel", "/sys/module/kvm_amd"].iter().any(|module| Path::new(module).exists());
    if device.is_ok() && real { "kvm" } else { "tcg,thread=single" }
}

/// A kernel's complaint outweighs all else: what the command says after one is worth nothing.
fn judge(in_time: bool, status: &str, log: &str) -> Verdict {
    let complaints = log::complaints(log);
    if !complaints.is_empty() {
        return Verdict::Complaint(complaints.into_iter().map(|line| line.trim().to_owned()).collect());
    }
    match status.trim().parse() {
        Ok(status) => Verdict::Status(status),
        Err(_) if in_time => Verdict::Silent,
        Err(_) => Verdict::TimedOut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_quiet_kernel_counts() {
        assert_eq!(judge(true, "3\n", "[ 0.1] Linux"), Verdict::Status(3));
        assert_eq!(judge(true, "0\r\n", ""), Verdict::Status(0));
    }

    #[test]
    fn a_complaint_outweighs_a_status() {
        let verdict = judge(true, "0\n", "[ 1.0] WARNING: CPU: 0 PID: 1 at x.c:1\n");
        assert_eq!(verdict.exit_code(), 125);
        assert!(matches!(verdict, Verdict::Complaint(lines) if lines.len() == 1));
    }

    #[test]
    fn silence_fails() {
        assert_eq!(judge(true, "", ""), Verdict::Silent);
        assert_eq!(judge(true, "garbage", ""), Verdict::Silent);
        assert_eq!(judge(false, "", ""), Verdict::TimedOut);
        assert_eq!((Verdict::Silent.exit_code(), Verdict::TimedOut.exit_code()), (125, 124));
    }
}
