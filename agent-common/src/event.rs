//! What travels through the rings `UPCALLS` and `RECORDS`, and its total decoding.

use bytemuck::{AnyBitPattern, Pod, Zeroable};
use core::fmt;

use crate::maps::{ConnectKey, FileKey};

/// First word of every event.
pub const KIND_ASK: u32 = 1;
/// See [`Decided`].
pub const KIND_DECIDED: u32 = 2;
/// See [`Forked`].
pub const KIND_FORKED: u32 = 3;
/// See [`Executed`].
pub const KIND_EXECUTED: u32 = 4;
/// See [`Exited`].
pub const KIND_EXITED: u32 = 5;

/// Longest path that [`Executed`] carries.
pub const PATH_LEN: usize = 256;
/// Longest name that [`Object`] carries: a file's, cut there, or a whole `sun_path`, which has at most 108 bytes.
pub const NAME_LEN: usize = 128;

/// [`Ask::held`]: nobody waits and the action went through: the daemon writes the record (audit mode).
pub const HELD_AUDIT: u8 = 0;
/// [`Ask::held`]: a process waits for the answer.
pub const HELD_WAITS: u8 = 1;
/// [`Ask::held`]: nobody waits, the action was refused: the answer serves the retry.
pub const HELD_REFUSED: u8 = 2;
/// [`Ask::held`]: nobody waits, a packet was dropped: the answer serves those that follow, even one that is good only once.
pub const HELD_WIRE: u8 = 3;

/// Who acts: the calling process as the kernel saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Actor {
    /// Index into `TASKS`.
    pub slot: u32,
    /// The task's epoch.
    pub epoch: u32,
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// Effective uid is not at hand in every program type: this is the real uid.
    pub uid: u32,
    /// Always 0.
    pub pad: u32,
    /// cgroup v2 id.
    pub cgroup: u64,
    /// `task_struct.comm`, NUL padded.
    pub comm: [u8; 16],
}

/// What is acted upon. `action` tells which part is set; the rest is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Object {
    /// `Connect`, `Send`, `Resolve`: the destination; `Listen`: where is listened.
    pub connect: ConnectKey,
    /// `Send`: the destination that was decided, where the packet's own is another.
    pub decided: ConnectKey,
    /// `Read`: the file.
    pub file: FileKey,
    /// `Read`: the protected directory above the file, where it is protected by one; else 0.
    pub directory: FileKey,
    /// `Read`: the last component of the path; `ConnectUnix`: the listener's own name, with a leading NUL where it is abstract;
    /// `Use`: the setting. Cut at [`NAME_LEN`], NUL padded.
    pub name: [u8; NAME_LEN],
    /// `Read`, `ConnectUnix`, `Use`: the class (see [`crate::maps::RowKey`]).
    pub class: u32,
    /// `Socket`: address family; `ConnectUnix`: bytes of `name` in use.
    pub family: u32,
    /// `Socket`: type, such as `SOCK_RAW`.
    pub socket_type: u32,
    /// `Socket`: protocol.
    pub protocol: u32,
}

/// `UPCALLS`: a verdict that the kernel does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ask {
    /// [`KIND_ASK`].
    pub kind: u32,
    /// A [`crate::Action`].
    pub action: u8,
    /// [`HELD_AUDIT`], [`HELD_WAITS`], [`HELD_REFUSED`] or [`HELD_WIRE`].
    pub held: u8,
    /// Always 0.
    pub pad: u16,
    /// The task's generation: part of the key under which the answer is looked for.
    pub generation: u32,
    /// Always 0.
    pub pad2: u32,
    /// When, boot clock, nanoseconds.
    pub time: u64,
    /// Who.
    pub actor: Actor,
    /// What.
    pub object: Object,
}

/// `RECORDS`: a decision that the kernel has carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Decided {
    /// [`KIND_DECIDED`].
    pub kind: u32,
    /// A [`crate::Action`].
    pub action: u8,
    /// A [`crate::Effect`].
    pub effect: u8,
    /// A [`crate::Reason`].
    pub reason: u8,
    /// A [`crate::Source`].
    pub source: u8,
    /// When, boot clock, nanoseconds.
    pub time: u64,
    /// From the question to the verdict, nanoseconds.
    pub latency: u32,
    /// [`crate::maps::Verdict::detail`].
    pub detail: u32,
    /// The task's generation.
    pub generation: u32,
    /// Always 0.
    pub pad: u32,
    /// Who.
    pub actor: Actor,
    /// What.
    pub object: Object,
}

/// `RECORDS`: a marked process made another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Forked {
    /// [`KIND_FORKED`].
    pub kind: u32,
    /// The new process.
    pub child: u32,
    /// When, boot clock, nanoseconds.
    pub time: u64,
    /// `task_struct.start_boottime` of the new process, nanoseconds.
    pub start: u64,
    /// The process that called fork.
    pub actor: Actor,
}

/// `RECORDS`: a marked process became another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Executed {
    /// [`KIND_EXECUTED`].
    pub kind: u32,
    /// Bytes of `path` in use.
    pub path_len: u32,
    /// When, boot clock, nanoseconds.
    pub time: u64,
    /// Who.
    pub actor: Actor,
    /// `linux_binprm.filename`, as given to execve(2), cut at [`PATH_LEN`].
    pub path: [u8; PATH_LEN],
}

/// `RECORDS`: the last thread of a marked process has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Exited {
    /// [`KIND_EXITED`].
    pub kind: u32,
    /// Always 0.
    pub pad: u32,
    /// When, boot clock, nanoseconds.
    pub time: u64,
    /// Marked processes of this task that are left.
    pub remaining: i64,
    /// Who.
    pub actor: Actor,
}

/// One decoded item of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A question.
    Ask(Ask),
    /// An answer that took effect.
    Decided(Decided),
    /// A new process.
    Forked(Forked),
    /// A new program.
    Executed(Executed),
    /// A process gone.
    Exited(Exited),
}

/// Why some bytes are not an [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Fewer bytes than the kind's size; both are given.
    Short {
        /// Bytes given.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// The first word is no known kind.
    Kind(u32),
    /// A code is outside its closed list.
    Code {
        /// Which field.
        field: &'static str,
        /// What it held.
        value: u32,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { have, need } => write!(f, "event of {have} bytes where {need} are needed"),
            Self::Kind(kind) => write!(f, "unknown event kind {kind}"),
            Self::Code { field, value } => write!(f, "unknown {field} code {value}"),
        }
    }
}

impl core::error::Error for DecodeError {}

impl Event {
    /// When, boot clock, nanoseconds.
    pub const fn time(&self) -> u64 {
        match self {
            Self::Ask(event) => event.time,
            Self::Decided(event) => event.time,
            Self::Forked(event) => event.time,
            Self::Executed(event) => event.time,
            Self::Exited(event) => event.time,
        }
    }

    /// Decodes one ring item. Bytes beyond the kind's size are ignored: the kernel pads ring items.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are too few or hold an unknown kind or code.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let kind: u32 = read(bytes)?;
        match kind {
            KIND_ASK => read(bytes).and_then(checked_ask).map(Self::Ask),
            KIND_DECIDED => read(bytes).and_then(checked_decided).map(Self::Decided),
            KIND_FORKED => read(bytes).map(Self::Forked),
            KIND_EXECUTED => read(bytes).and_then(checked_executed).map(Self::Executed),
            KIND_EXITED => read(bytes).map(Self::Exited),
            other => Err(DecodeError::Kind(other)),
        }
    }
}

fn read<T: AnyBitPattern>(bytes: &[u8]) -> Result<T, DecodeError> {
    let need = size_of::<T>();
    let short = DecodeError::Short { have: bytes.len(), need };
    let head = bytes.get(..need).ok_or(short)?;
    bytemuck::try_pod_read_unaligned(head).map_err(|_| short)
}

fn code<T>(field: &'static str, value: u8, decode: fn(u8) -> Option<T>) -> Result<(), DecodeError> {
    let known = decode(value).map(|_| ());
    known.ok_or(DecodeError::Code { field, value: u32::from(value) })
}

fn checked_ask(ask: Ask) -> Result<Ask, DecodeError> {
    code("action", ask.action, crate::Action::from_code)?;
    Ok(ask)
}

fn checked_decided(decided: Decided) -> Result<Decided, DecodeError> {
    code("action", decided.action, crate::Action::from_code)?;
    code("effect", decided.effect, crate::Effect::from_code)?;
    code("reason", decided.reason, crate::Reason::from_code)?;
    code("source", decided.source, crate::Source::from_code)?;
    Ok(decided)
}

fn checked_executed(executed: Executed) -> Result<Executed, DecodeError> {
    if executed.path_len as usize > PATH_LEN {
        return Err(DecodeError::Code { field: "path_len", value: executed.path_len });
    }
    Ok(executed)
}

impl Executed {
    /// The path's bytes, which need not be UTF-8.
    pub fn path(&self) -> &[u8] {
        self.path.get(..self.path_len as usize).unwrap_or(&self.path)
    }
}

impl Actor {
    /// The command name without its padding.
    pub fn comm(&self) -> &[u8] {
        until_nul(&self.comm)
    }
}

impl Object {
    /// `ConnectUnix`: the listener's own name; empty if it has none.
    pub fn unix_name(&self) -> &[u8] {
        let length = (self.family as usize).min(crate::maps::UNIX_NAME_LEN);
        self.name.get(..length).unwrap_or(&self.name)
    }

    /// The file name without its padding.
    pub fn name(&self) -> &[u8] {
        until_nul(&self.name)
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    bytes.get(..end).unwrap_or(bytes)
}

const _: () = {
    assert!(size_of::<Actor>() == 48);
    assert!(size_of::<Object>() == 256);
    assert!(size_of::<Ask>() == 328);
    assert!(size_of::<Decided>() == 336);
    assert!(size_of::<Forked>() == 72);
    assert!(size_of::<Executed>() == 320);
    assert!(size_of::<Exited>() == 72);
};
