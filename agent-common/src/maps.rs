//! Keys and values of the maps. `agent-ebpf/src/maps.rs` says who writes and reads each.

use bytemuck::{Pod, Zeroable};

/// `PROCESSES`: the mark of a process, by thread group id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Mark {
    /// Index into `TASKS`.
    pub slot: u32,
    /// Which of the slot's tasks: a mark of an earlier one is `ended`.
    pub epoch: u32,
    /// `task_struct.start_boottime` of the group leader in nanoseconds, 0 where the daemon set the mark.
    pub start: u64,
}

/// [`Mark::slot`] of the daemon itself: never governed, never inherited; its opens feed `LEARNED`.
pub const SLOT_DAEMON: u32 = u32::MAX;

/// `TASKS`: what the kernel must know of a task. Written by the daemon alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TaskState {
    /// End of life on the boot clock, nanoseconds.
    pub deadline: u64,
    /// A [`crate::TaskStatus`].
    pub status: u32,
    /// A [`crate::Mode`].
    pub mode: u32,
    /// Which of the slot's tasks this is.
    pub epoch: u32,
    /// Part of every verdict's key: a new number makes all older verdicts of this task unreachable.
    pub generation: u32,
    /// A [`crate::DaemonLoss`].
    pub on_daemon_loss: u32,
    /// SO_MARK for this task's sockets; 0 for none.
    pub socket_mark: u32,
}

/// `USAGE`: what the kernel counts per task slot. Written by the kernel alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Usage {
    /// Marked processes alive.
    pub processes: i64,
    /// First contacts waiting for the daemon.
    pub outstanding: i64,
    /// First contacts in `second`.
    pub contacts: i64,
    /// The second that `contacts` counts for: the boot clock in units of 2^30 nanoseconds.
    pub second: u64,
}

/// IPv4 or IPv6, as `AF_INET` and `AF_INET6` number them on Linux.
pub const FAMILY_V4: u8 = 2;
/// See [`FAMILY_V4`].
pub const FAMILY_V6: u8 = 10;

/// `CONNECT` key: one endpoint for one task under one generation, to connect to or to listen at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct ConnectKey {
    /// Index into `TASKS`.
    pub slot: u32,
    /// The task's epoch.
    pub epoch: u32,
    /// The task's generation.
    pub generation: u32,
    /// Port, host byte order.
    pub port: u16,
    /// IP protocol number: 6 or 17.
    pub protocol: u8,
    /// [`FAMILY_V4`] or [`FAMILY_V6`]; an IPv4-mapped IPv6 address is keyed as IPv4.
    pub family: u8,
    /// Network byte order; IPv4 in the first four bytes, the rest 0.
    pub address: [u8; 16],
    /// The code of [`crate::Action::Connect`], [`crate::Action::Listen`] or [`crate::Action::Resolve`].
    pub action: u8,
    /// Always 0.
    pub pad: [u8; 7],
}

/// `ROWS` key: one class for one task under one generation.
///
/// Classes of secrets count from 1; those of unix listeners have [`CLASS_UNIX`] set; a facility is [`CLASS_FACILITY`] with the
/// code of a [`crate::Facility`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct RowKey {
    /// Index into `TASKS`.
    pub slot: u32,
    /// The task's epoch.
    pub epoch: u32,
    /// The task's generation.
    pub generation: u32,
    /// What policy can tell apart.
    pub class: u32,
}

/// Set in classes of unix listeners. With nothing else it stands for a name that has not been classified yet.
pub const CLASS_UNIX: u32 = 1 << 30;
/// The class of sockets that another task listens on.
pub const UNIX_AGENT: u32 = CLASS_UNIX | 1;
/// The class of sockets without a name that no task made.
pub const UNIX_UNNAMED: u32 = CLASS_UNIX | 2;
/// The class of names that the catalogue does not know.
pub const UNIX_UNKNOWN: u32 = CLASS_UNIX | 3;
/// Set in classes of facilities.
pub const CLASS_FACILITY: u32 = 1 << 31;
/// The class of what is the daemon's own: its configuration, policies, state, records and pins.
pub const CLASS_DAEMON: u32 = CLASS_FACILITY | crate::Facility::Enforcement.code();
/// Stands in `DIRECTORIES` for a directory that has something of the daemon's below it: its name must stay.
pub const CLASS_ABOVE: u32 = 1 << 29;

/// `UNIX_NAMES` and `UNIX_ASKED` key: the name that somebody bound a unix socket to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct UnixName {
    /// A path, or a name with a leading NUL; the rest is 0.
    pub name: [u8; UNIX_NAME_LEN],
    /// Bytes in use, a path's terminating NUL not among them. To an abstract name every NUL counts.
    pub length: u32,
}

/// Longest name of a unix socket: `sockaddr_un.sun_path`.
pub const UNIX_NAME_LEN: usize = 108;

/// `SECRETS` and `DIRECTORIES` key: a file as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct FileKey {
    /// `super_block.s_dev`, which on btrfs and overlayfs is not what stat(2) says.
    pub device: u64,
    /// `inode.i_ino`.
    pub inode: u64,
}

/// `CONNECT` and `ROWS` value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Verdict {
    /// Last instant at which it may be used, on the boot clock in nanoseconds; `u64::MAX` for ever.
    pub not_after: u64,
    /// The same for connections that are established already: they outlive the name under which they were opened.
    pub flow_not_after: u64,
    /// The daemon's number for the policies behind it; 0 for none.
    pub detail: u32,
    /// A [`crate::Effect`]: what policy says; the task's mode is applied by the kernel.
    pub effect: u8,
    /// A [`crate::Reason`].
    pub reason: u8,
    /// 1: for the process that is waiting now, not for the next one.
    pub once: u8,
    /// Always 0.
    pub pad: u8,
}

/// `LABELS`: the label of a socket (`sk_storage`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SocketLabel {
    /// Index into `TASKS`.
    pub slot: u32,
    /// The task's epoch.
    pub epoch: u32,
    /// Thread group that made the socket.
    pub tgid: u32,
    /// A bit for each reason, by its code, for which packets of this socket were recorded: one record a socket and reason,
    /// the packets are counted. [`RECORDED_TRANSLATION`] and [`RECORDED_LISTEN`] are bits of their own.
    pub recorded: u32,
    /// Network namespace (`bpf_get_netns_cookie`).
    pub netns: u64,
    /// Writers of the ticket at work: one writes, others leave it.
    pub writers: u64,
    /// Counts the tickets written: a reader that sees it change reads nothing.
    pub version: u64,
    /// When a packet of this socket last made a question, boot clock, nanoseconds.
    pub asked: u64,
    /// What was decided last on this socket; an action of 0 is no ticket.
    pub ticket: Ticket,
    /// The name server that was asked, where the daemon's own answers in its place.
    pub server: Server,
}

/// Set in [`SocketLabel::recorded`] once packets left for a translated address.
pub const RECORDED_TRANSLATION: u32 = 1 << 31;
/// Set in [`SocketLabel::recorded`] once it was recorded that the socket may listen.
pub const RECORDED_LISTEN: u32 = 1 << 30;

/// What a socket's packets may leave for without another look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ticket {
    /// The endpoint; its action tells whether the socket connects, listens, or asks for names.
    pub key: ConnectKey,
    /// [`Verdict::flow_not_after`].
    pub not_after: u64,
}

/// The address of a name server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Server {
    /// As [`ConnectKey::address`].
    pub address: [u8; 16],
    /// Host byte order.
    pub port: u16,
    /// [`FAMILY_V4`] or [`FAMILY_V6`]; 0 for none.
    pub family: u8,
    /// Always 0.
    pub pad: [u8; 5],
}

/// `RESOLVERS` value: where the daemon answers names in one network namespace, on 127.0.0.1 and ::1. Ports in host byte order;
/// 0 where it does not listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Resolver {
    /// UDP, 127.0.0.1.
    pub udp4: u16,
    /// TCP, 127.0.0.1.
    pub tcp4: u16,
    /// UDP, ::1.
    pub udp6: u16,
    /// TCP, ::1.
    pub tcp6: u16,
}

/// `DNS_CLIENTS` key: where questions for names come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct ClientKey {
    /// Network namespace (`bpf_get_netns_cookie`).
    pub netns: u64,
    /// As [`ConnectKey::address`].
    pub address: [u8; 16],
    /// Host byte order.
    pub port: u16,
    /// IP protocol number: 6 or 17.
    pub protocol: u8,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// Always 0.
    pub pad: u32,
}

/// `DNS_CLIENTS` value: whose they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Client {
    /// Index into `TASKS`.
    pub slot: u32,
    /// The task's epoch.
    pub epoch: u32,
    /// Thread group that made the socket.
    pub tgid: u32,
    /// 1: two tasks sent from there at the same time, so that a question could be either's.
    pub conflict: u32,
    /// When, boot clock, nanoseconds.
    pub time: u64,
}

/// `SETTINGS`: one value, written by the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Settings {
    /// Last sign of life of the decision thread, boot clock, nanoseconds.
    pub heartbeat: u64,
    /// A heartbeat older than this, in nanoseconds, means that the daemon is lost.
    pub stale_after: u64,
    /// How long a first contact is held, nanoseconds; 0 never holds.
    pub hold_budget: u64,
    /// First contacts that may wait at once, all tasks together.
    pub max_holders: u32,
    /// First contacts that may wait at once for one task.
    pub max_outstanding: u32,
    /// First contacts of one task in a second: more would take the daemon from the others.
    pub max_contacts: u32,
    /// Marked processes at most; a fork beyond it does not survive.
    pub max_marks: u32,
    /// The daemon thread whose opens feed `LEARNED` (a thread id).
    pub learner: u32,
    /// Always 0.
    pub pad: u32,
}

/// `LEARNED`: files that the daemon opened last, as the kernel knows them.
///
/// An overlayfs open shows two: the overlay's inode, then the real one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Learned {
    /// How many of `files` are set since the daemon last reset this to 0.
    pub count: u64,
    /// In the order of the opens.
    pub files: [FileKey; LEARNED_FILES],
}

/// Length of [`Learned::files`].
pub const LEARNED_FILES: usize = 4;

/// Slots of `TASKS` and `USAGE`: tasks alive at once.
pub const MAX_TASKS: u32 = 4096;
/// [`Mark::slot`] of the canary, the last slot: what it is refused is no task's doing.
pub const SLOT_CANARY: u32 = MAX_TASKS - 1;
/// Marked processes that `PROCESSES` holds.
pub const MAX_PROCESSES: u32 = 65_536;
/// What `Settings::max_marks` leaves free in `PROCESSES`: forks under way on all CPUs when the limit is met.
pub const MARK_RESERVE: u32 = 4096;
/// Capacity of `CONNECT`.
pub const MAX_CONNECT: u32 = 65_536;
/// Capacity of `ROWS`.
pub const MAX_ROWS: u32 = 65_536;
/// Capacity of `SECRETS` and of `DIRECTORIES`.
pub const MAX_SECRETS: u32 = 65_536;
/// Capacity of `TRANSLATE_FROM` and of `TRANSLATE_TO`.
pub const MAX_TRANSLATIONS: u32 = 1024;
/// Capacity of `UNIX_NAMES`.
pub const MAX_UNIX_NAMES: u32 = 16_384;
/// Capacity of `UNIX_ASKED`.
pub const MAX_UNIX_ASKED: u32 = 4096;

impl UnixName {
    /// From the bytes of a name; `None` if there are none, or too many.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut name = [0; UNIX_NAME_LEN];
        name.get_mut(..bytes.len())?.copy_from_slice(bytes);
        (!bytes.is_empty()).then_some(Self { name, length: bytes.len() as u32 })
    }

    /// The bytes in use.
    pub fn bytes(&self) -> &[u8] {
        self.name.get(..self.length as usize).unwrap_or(&self.name)
    }
}
/// Capacity of `RESOLVERS`: network namespaces in which names are answered.
pub const MAX_RESOLVERS: u32 = 256;
/// Capacity of `DNS_CLIENTS`.
pub const MAX_CLIENTS: u32 = 16_384;

const _: () = {
    assert!(size_of::<Mark>() == 16);
    assert!(size_of::<TaskState>() == 32);
    assert!(size_of::<Usage>() == 32);
    assert!(size_of::<ConnectKey>() == 40);
    assert!(size_of::<RowKey>() == 16);
    assert!(size_of::<FileKey>() == 16);
    assert!(size_of::<Verdict>() == 24);
    assert!(size_of::<UnixName>() == 112);
    assert!(size_of::<SocketLabel>() == 120);
    assert!(size_of::<Ticket>() == 48);
    assert!(size_of::<Settings>() == 48);
    assert!(size_of::<Learned>() == 72);
    assert!(size_of::<Resolver>() == 8);
    assert!(size_of::<ClientKey>() == 32);
    assert!(size_of::<Client>() == 24);
};
