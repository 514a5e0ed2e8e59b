//! Every map: key, value, who writes, who reads, and what happens when it is full.

use agent_common::Counter;
use agent_common::maps::{
    Client, ClientKey, ConnectKey, FileKey, LEARNED_FILES, Learned, MAX_CLIENTS, MAX_CONNECT, MAX_PROCESSES,
    MAX_RESOLVERS, MAX_ROWS, MAX_SECRETS, MAX_TASKS, MAX_TRANSLATIONS, MAX_UNIX_ASKED, MAX_UNIX_NAMES, Mark, Resolver,
    RowKey, SLOT_CANARY, Settings, SocketLabel, TaskState, UnixName, Usage, Verdict,
};
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;

/// tgid -> mark. Written by the daemon (first process of a task) and by the lineage programs; read by every program.
/// Preallocated, so that an insert cannot fail for want of memory. The lineage programs stop forks at
/// `Settings::max_marks`, before it is full.
#[btf_map]
pub static PROCESSES: HashMap<u32, Mark, { MAX_PROCESSES as usize }> = HashMap::new();

/// Slot -> state. Written by the daemon, read by every program. Cannot be full: the daemon opens no task without a slot.
#[btf_map]
pub static TASKS: Array<TaskState, { MAX_TASKS as usize }> = Array::new();

/// Slot -> counts. Written by the programs (atomically), read by the daemon.
#[btf_map]
pub static USAGE: Array<Usage, { MAX_TASKS as usize }> = Array::new();

/// Destination -> verdict. Written by the daemon, read by the network programs. Full: the least recently used verdict
/// goes, which costs another upcall.
#[btf_map]
pub static CONNECT: LruHashMap<ConnectKey, Verdict, { MAX_CONNECT as usize }> = LruHashMap::new();

/// Class -> verdict. Written by the daemon, read by the programs that guard files, unix sockets and facilities. Full: as for `CONNECT`.
#[btf_map]
pub static ROWS: LruHashMap<RowKey, Verdict, { MAX_ROWS as usize }> = LruHashMap::new();

/// Protected file -> class; under inode 0, which no file has, a device that has any. Written by the daemon, which reports what
/// does not fit; read by the file programs.
#[btf_map]
pub static SECRETS: HashMap<FileKey, u32, { MAX_SECRETS as usize }> = HashMap::new();

/// Protected directory -> class of everything below it. As `SECRETS`.
#[btf_map]
pub static DIRECTORIES: HashMap<FileKey, u32, { MAX_SECRETS as usize }> = HashMap::new();

/// Name of a unix listener that the catalogue knows -> class. Written by the daemon, which leaves out what does not fit: such a name
/// is asked for like any other.
#[btf_map]
pub static UNIX_NAMES: HashMap<UnixName, u32, { MAX_UNIX_NAMES as usize }> = HashMap::new();

/// Name of a unix socket that a task asked for -> class. Written by the daemon. Full: as for `CONNECT`; a map of its own, since
/// tasks choose these names.
#[btf_map]
pub static UNIX_ASKED: LruHashMap<UnixName, u32, { MAX_UNIX_ASKED as usize }> = LruHashMap::new();

/// Network namespace -> where the daemon answers names there. Written by the daemon, which keeps within its bounds; read by the
/// program that leads questions there.
#[btf_map]
pub static RESOLVERS: HashMap<u64, Resolver, { MAX_RESOLVERS as usize }> = HashMap::new();

/// Source of a question for names -> task. Written by `egress`, read by the daemon. Full: the least recently used goes, and
/// its question is refused.
#[btf_map]
pub static DNS_CLIENTS: LruHashMap<ClientKey, Client, { MAX_CLIENTS as usize }> = LruHashMap::new();

/// Files that the daemon opened, as the kernel knows them. Reset by the daemon, filled by `file_open`; what does not fit
/// is counted in `Learned::count`, which the daemon compares.
#[btf_map]
pub static LEARNED: Array<Learned, 1> = Array::new();

/// One value. Written by the daemon.
#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();

/// The number of the set of programs that acts (see `instance.rs`). Written by the daemon.
#[btf_map]
pub static ACTIVE: Array<u32, 1> = Array::new();

/// Index 0: marked processes that were forked by marked ones; 1: first contacts that wait. Written by the programs (atomically).
#[btf_map]
pub static TOTALS: Array<i64, 2> = Array::new();

/// Questions to the daemon. Full: the question is refused, reason `upcall_lost`, and counted.
#[btf_map]
pub static UPCALLS: RingBuf<[u8; 0], { 256 * 1024 }> = RingBuf::new();

/// What happened. Full: the record is lost and counted per effect; the verdict stands.
#[btf_map]
pub static RECORDS: RingBuf<[u8; 0], { 4 * 1024 * 1024 }> = RingBuf::new();

/// One counter per named cause.
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();

/// Addresses (IPv4 as IPv4-mapped) that tasks connect to and that the host translates -> the operator's translation. Written by
/// the daemon when it starts, which refuses more than fit; read by `egress`.
#[btf_map]
pub static TRANSLATE_FROM: LpmTrie<[u8; 16], u32, { MAX_TRANSLATIONS as usize }> = LpmTrie::new();

/// Addresses that packets then leave for -> the operator's translation. As `TRANSLATE_FROM`.
#[btf_map]
pub static TRANSLATE_TO: LpmTrie<[u8; 16], u32, { MAX_TRANSLATIONS as usize }> = LpmTrie::new();

/// The label of a socket. Written by `sock_create`, cloned to accepted sockets by the kernel; read by the network programs.
#[btf_map]
pub static LABELS: SocketLabels = SocketLabels::new();

const _: () = assert!(LEARNED_FILES == 4);

/// A socket storage map with `BPF_F_CLONE`, which aya's own wrapper does not offer.
#[repr(C)]
pub struct SocketLabels {
    r#type: *const [i32; 24],
    key: *const i32,
    value: *const SocketLabel,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC | BPF_F_CLONE],
}

const BPF_F_NO_PREALLOC: usize = 1;
const BPF_F_CLONE: usize = 1 << 9;

// SAFETY: the fields are placeholders for the loader and are never read.
unsafe impl Sync for SocketLabels {}

impl SocketLabels {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The socket's label, if it has one.
    #[inline(always)]
    pub fn get(&self, socket: *mut core::ffi::c_void) -> Option<&'static mut SocketLabel> {
        self.storage(socket, core::ptr::null_mut(), 0)
    }

    /// Gives a new socket its label.
    #[inline(always)]
    pub fn set(&self, socket: *mut core::ffi::c_void, label: &mut SocketLabel) -> bool {
        const CREATE: u64 = 1;
        self.storage(socket, core::ptr::from_mut(label).cast(), CREATE).is_some()
    }

    #[inline(always)]
    fn storage(
        &self,
        socket: *mut core::ffi::c_void,
        value: *mut core::ffi::c_void,
        flags: u64,
    ) -> Option<&'static mut SocketLabel> {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the verifier checks map, socket and value; what comes back is null or lives as long as the socket.
        unsafe {
            aya_ebpf::helpers::generated::bpf_sk_storage_get(map, socket, value, flags).cast::<SocketLabel>().as_mut()
        }
    }
}

/// As [`count`], but for the daemon's canary, which nobody wants to hear of.
#[inline(always)]
pub fn count_for(slot: u32, counter: Counter) {
    if slot != SLOT_CANARY {
        count(counter);
    }
}

/// Adds one to a named cause on this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter.code()) {
        // SAFETY: a per-CPU slot; programs of one CPU do not interleave within this addition except by preemption, which
        // the kernel prevents for a CPU's own map value by disabling migration and counting with a single add.
        unsafe { core::ptr::write_volatile(value, core::ptr::read_volatile(value).wrapping_add(1)) }
    }
}
