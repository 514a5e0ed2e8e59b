//! Loading: resolve offsets, set constants, load, fill maps, attach last.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use agent_common::maps::{Mark, SLOT_DAEMON, Settings};
use aya::{Btf, Ebpf, EbpfLoader, VerifierLogLevel};
use ipnet::IpNet;

use super::abi::Abi;
use super::attach::{self, AttachError, Guard, Guards};
use super::btf::{self, BtfError};
use super::cgroup::{self, CgroupError};
use super::link::Link;
use super::pin::Tenure;
use super::{MapError, Maps, PinError, Pins, Ring, log, offsets, translate};

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
    /// What should outlive the daemon cannot.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The embedded object is broken.
    #[error("cannot read the embedded eBPF object; run `cargo xtask build` again")]
    Object(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The daemon would free itself.
    #[error("writd was started by a process of a task; start it from outside of tasks")]
    Marked,
}

/// The loaded object. Dropping it detaches everything that is not pinned.
pub struct Kernel {
    ebpf: Ebpf,
    /// Attached as long as these, or the names under which they are pinned, are there.
    links: Vec<Link>,
    pins: Option<Tenure>,
    /// Set when the programs go, for the thread that prints their lines.
    gone: Arc<AtomicBool>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

/// What [`Kernel::load`] needs beside the object.
pub struct Setup {
    /// What the programs go by.
    pub settings: Settings,
    /// aya-log's level: 0 is off.
    pub log_level: u8,
    /// Where everything is pinned; `None`: nothing outlives the daemon.
    pub pins: Option<Pins>,
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
    /// Loads the object into the kernel, over the maps that are pinned already, and fills its settings; attaches nothing.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(object: &[u8], setup: Setup) -> Result<Loaded, LoadError> {
        let Setup { settings, log_level, pins } = setup;
        let abi = Abi::of(object).map_err(|error| LoadError::Object(Box::new(error)))?;
        let pins = pins.map(|pins| Tenure::begin(pins, &abi.layout)).transpose()?;
        let instance = pins.as_ref().map_or(1, Tenure::instance);
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
        loader.override_global("INSTANCE", &instance, true);
        for name in pins.iter().flat_map(|_| &abi.maps) {
            loader.map_pin_path(name, pins.as_ref().map_or_else(Default::default, |own| own.pins().map(name)));
        }
        let mut ebpf = loader.load(object).map_err(|error| LoadError::Refused(Box::new(error)))?;
        let gone = Arc::new(AtomicBool::new(false));
        if log_level > 0 {
            log::follow(&mut ebpf, Arc::clone(&gone));
        }
        let mut maps = Maps::open(&ebpf)?;
        own_up(&mut maps, settings)?;
        let upcalls = Ring::take(&mut ebpf, "UPCALLS")?;
        let records = Ring::take(&mut ebpf, "RECORDS")?;
        let kernel = Self { ebpf, links: Vec::new(), pins, gone };
        Ok(Loaded { kernel, layout: Layout(btf), maps, upcalls, records })
    }

    /// Says which addresses the host translates: ranges that tasks connect to, and ranges that packets then leave for, each with
    /// the number of its translation.
    ///
    /// # Errors
    /// [`LoadError::Map`].
    pub fn translate(&mut self, from: &[(IpNet, u32)], to: &[(IpNet, u32)]) -> Result<(), LoadError> {
        translate::write(&mut self.ebpf, "TRANSLATE_FROM", from)?;
        Ok(translate::write(&mut self.ebpf, "TRANSLATE_TO", to)?)
    }

    /// Whether programs of an earlier daemon were acting when this was loaded.
    pub fn taken_over(&self) -> bool {
        self.pins.as_ref().is_some_and(Tenure::taken_over)
    }

    /// Puts this set of programs in force in the place of those that were, in one store, and detaches them.
    ///
    /// # Errors
    /// [`LoadError`]; before anything is detached if the store fails.
    pub fn take_effect(&mut self, maps: &mut Maps) -> Result<(), LoadError> {
        let instance = self.pins.as_ref().map_or(1, Tenure::instance);
        maps.active.put(0, instance)?;
        if let Some(own) = &self.pins {
            own.pins().detach_all_but(instance)?;
        }
        Ok(())
    }

    /// From now on what is pinned outlives this. True if anything is.
    pub fn stay(&mut self) -> bool {
        self.pins.as_mut().map(Tenure::stay).is_some()
    }

    /// Another set of map handles, for another thread.
    ///
    /// # Errors
    /// [`MapError::Descriptor`] if descriptors run out.
    pub fn maps(&self) -> Result<Maps, MapError> {
        Maps::open(&self.ebpf)
    }

    /// Tries to attach each guard of `wanted`. None of them acts before [`Kernel::take_effect`].
    ///
    /// # Errors
    /// [`LoadError`] if there is nothing to attach to.
    pub fn attach(&mut self, layout: &Layout, wanted: &[Guard]) -> Result<Guards, LoadError> {
        let cgroup = cgroup::root()?;
        if let Some(own) = &self.pins {
            own.pins().add_instance(own.instance())?;
        }
        let results = wanted.iter().map(|&guard| (guard, self.attach_one(layout, &cgroup, guard)));
        Ok(results.collect())
    }

    fn attach_one(&mut self, layout: &Layout, cgroup: &File, guard: Guard) -> Result<(), AttachError> {
        let program = guard.program();
        let link = attach::attach(&mut self.ebpf, &layout.0, cgroup, guard)?;
        let link = match &self.pins {
            Some(own) => own
                .pins()
                .pin(own.instance(), program, link)
                .map_err(|source| AttachError::Pin { program, source: Box::new(source) })?,
            None => link,
        };
        self.links.push(link);
        Ok(())
    }
}

/// Says whose settings hold. The last sign of life of an earlier daemon stays until there is one of this daemon's.
fn own_up(maps: &mut Maps, settings: Settings) -> Result<(), LoadError> {
    let pid = std::process::id();
    if maps.processes.get(pid).is_some_and(|mark| mark.slot != SLOT_DAEMON) {
        return Err(LoadError::Marked);
    }
    let heartbeat = Some(maps.settings.get(0).heartbeat).filter(|&last| last > 0).unwrap_or(settings.heartbeat);
    maps.settings.put(0, Settings { heartbeat, ..settings })?;
    Ok(maps.processes.put(pid, Mark { slot: SLOT_DAEMON, epoch: 0, start: 0 })?)
}
