//! Loading: resolve offsets, set constants, load, fill maps, attach last.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use agent_common::maps::{Mark, SLOT_DAEMON, Settings};
use aya::{Btf, Ebpf, EbpfLoader, VerifierLogLevel};

use super::attach::{self, Guard, Guards};
use super::btf::{self, BtfError};
use super::cgroup::{self, CgroupError};
use super::{MapError, Maps, Ring, log, offsets};

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why the kernel side could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No type information.
    #[error("cannot read `{VMLINUX}`: this kernel has no BTF; use a kernel built with CONFIG_DEBUG_INFO_BTF=y")]
    NoBtf(#[source] io::Error),
    /// Type information that this cannot use.
    #[error(
        "cannot use `{VMLINUX}`: this kernel's layout is not one that writ knows; please report it with `uname -r`"
    )]
    Btf(#[from] BtfError),
    /// No cgroup v2.
    #[error("cannot find the cgroup v2 root")]
    Cgroup(#[from] CgroupError),
    /// The kernel refused the object's maps.
    #[error("the kernel refuses writ's maps; the daemon needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (run it as root)")]
    Refused(#[source] Box<aya::EbpfError>),
    /// aya could not parse the kernel's BTF.
    #[error("cannot parse `{VMLINUX}`")]
    AyaBtf(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A map is missing or cannot be written.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// The loaded object. Dropping it detaches everything.
pub struct Kernel {
    ebpf: Ebpf,
    /// Set when the programs go, for the thread that prints their lines.
    gone: Arc<AtomicBool>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

/// The kernel's type information, parsed: tens of MiB, needed until everything is attached.
pub struct Layout(Btf);

/// What loading gives.
pub struct Loaded {
    /// For [`Kernel::attach`]; to be dropped after it.
    pub layout: Layout,
    /// The object.
    pub kernel: Kernel,
    /// Handles for the main loop.
    pub maps: Maps,
    /// Questions.
    pub upcalls: Ring,
    /// What happened.
    pub records: Ring,
}

impl Kernel {
    /// Loads the object into the kernel and fills its settings; attaches nothing.
    ///
    /// `log_level` is aya-log's: 0 is off.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(object: &[u8], settings: Settings, log_level: u8) -> Result<Loaded, LoadError> {
        let vmlinux = std::fs::read(VMLINUX).map_err(LoadError::NoBtf)?;
        let offsets = offsets::resolve(&btf::Btf::parse(&vmlinux)?)?;
        let btf =
            Btf::parse(&vmlinux, aya::Endianness::default()).map_err(|error| LoadError::AyaBtf(Box::new(error)))?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf)).verifier_log_level(VerifierLogLevel::STATS);
        for (name, value) in &offsets {
            loader.override_global(name, value, true);
        }
        loader.override_global("AYA_LOG_LEVEL", &log_level, false);
        let mut ebpf = loader.load(object).map_err(|error| LoadError::Refused(Box::new(error)))?;
        let gone = Arc::new(AtomicBool::new(false));
        if log_level > 0 {
            log::follow(&mut ebpf, Arc::clone(&gone));
        }
        let mut maps = Maps::open(&ebpf)?;
        maps.settings.put(0, settings)?;
        maps.processes.put(std::process::id(), Mark { slot: SLOT_DAEMON, epoch: 0, start: 0 })?;
        let upcalls = Ring::take(&mut ebpf, "UPCALLS")?;
        let records = Ring::take(&mut ebpf, "RECORDS")?;
        Ok(Loaded { kernel: Self { ebpf, gone }, layout: Layout(btf), maps, upcalls, records })
    }

    /// Another set of map handles, for another thread.
    ///
    /// # Errors
    /// [`MapError::Descriptor`] if descriptors run out.
    pub fn maps(&self) -> Result<Maps, MapError> {
        Maps::open(&self.ebpf)
    }

    /// Tries to attach each guard of `wanted`.
    ///
    /// # Errors
    /// [`LoadError`] if there is nothing to attach to.
    pub fn attach(&mut self, layout: &Layout, wanted: &[Guard]) -> Result<Guards, LoadError> {
        let cgroup = cgroup::root()?;
        Ok(attach::attach(&mut self.ebpf, &layout.0, &cgroup, wanted))
    }
}
