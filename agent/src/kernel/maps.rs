//! Typed handles on the kernel's maps. Each thread has its own set: the file descriptors are duplicated, the maps shared.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use agent_common::Counter;
use agent_common::maps::{
    Client, ClientKey, ConnectKey, FileKey, Learned, Mark, Resolver, RowKey, Settings, SocketLabel, TaskState,
    UnixName, Usage, Verdict,
};
use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, SkStorage};
use bytemuck::Pod;

use super::Pins;

/// Why a map could not be used.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The object does not contain it, or with another shape.
    #[error("the eBPF object has no usable map `{0}`; run `cargo xtask build` again")]
    Unusable(&'static str),
    /// No room.
    #[error("the kernel map `{0}` is full")]
    Full(&'static str),
    /// The kernel refused.
    #[error("the kernel refuses to change the map `{0}`")]
    Refused(&'static str, #[source] aya::maps::MapError),
    /// No further file descriptor.
    #[error("cannot duplicate the descriptor of the map `{0}`; raise the limit of open files")]
    Descriptor(&'static str, #[source] std::io::Error),
}

/// Any plain value, in the shape that aya wants.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Wire<T>(T);

// SAFETY: `T: bytemuck::Pod` promises what `aya::Pod` asks: any bytes are a value, and a value is its bytes.
unsafe impl<T: Pod> aya::Pod for Wire<T> {}

/// A hash map (LRU or not).
pub struct Table<K: Pod, V: Pod> {
    name: &'static str,
    map: HashMap<MapData, Wire<K>, Wire<V>>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// The map that is pinned under this name; no LRU one.
    ///
    /// # Errors
    /// [`MapError`] if there is none, or it has another shape.
    pub fn pinned(pins: &Pins, name: &'static str) -> Result<Self, MapError> {
        let map = HashMap::try_from(Map::HashMap(pinned(pins, name)?)).map_err(|_| MapError::Unusable(name))?;
        Ok(Self { name, map })
    }

    fn open(ebpf: &Ebpf, name: &'static str, lru: bool) -> Result<Self, MapError> {
        let data = duplicate(ebpf, name)?;
        let map = if lru { Map::LruHashMap(data) } else { Map::HashMap(data) };
        let map = HashMap::try_from(map).map_err(|_| MapError::Unusable(name))?;
        Ok(Self { name, map })
    }

    /// The value of `key`, if any.
    pub fn get(&self, key: K) -> Option<V> {
        self.map.get(&Wire(key), 0).ok().map(|wire| wire.0)
    }

    /// Sets the value of `key`.
    ///
    /// # Errors
    /// [`MapError::Full`] where the kernel answers E2BIG, else [`MapError::Refused`].
    pub fn put(&mut self, key: K, value: V) -> Result<(), MapError> {
        self.map.insert(Wire(key), Wire(value), 0).map_err(|error| refused(self.name, error))
    }

    /// Sets the value of a `key` that has none.
    ///
    /// # Errors
    /// As [`Table::put`]; [`MapError::Refused`] if it has one.
    pub fn put_new(&mut self, key: K, value: V) -> Result<(), MapError> {
        const BPF_NOEXIST: u64 = 1;
        self.map.insert(Wire(key), Wire(value), BPF_NOEXIST).map_err(|error| refused(self.name, error))
    }

    /// Removes `key`; that it was not there is no error.
    pub fn remove(&mut self, key: K) {
        let _ = self.map.remove(&Wire(key));
    }

    /// At most so many keys, and none after `go_on` says no.
    pub fn keys_while(&self, most: usize, go_on: impl Fn() -> bool) -> Vec<K> {
        let keys = self.map.keys().filter_map(Result::ok).map(|wire| wire.0);
        keys.take(most).take_while(|_| go_on()).collect()
    }

    /// All keys, as far as they stand still.
    pub fn keys(&self) -> Vec<K> {
        self.map.keys().filter_map(Result::ok).map(|wire| wire.0).collect()
    }
}

fn refused(name: &'static str, error: aya::maps::MapError) -> MapError {
    match &error {
        aya::maps::MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(libc::E2BIG) => {
            MapError::Full(name)
        }
        _ => MapError::Refused(name, error),
    }
}

/// An array map.
pub struct Slots<V: Pod> {
    name: &'static str,
    map: Array<MapData, Wire<V>>,
}

impl<V: Pod> Slots<V> {
    /// The map that is pinned under this name.
    ///
    /// # Errors
    /// [`MapError`] if there is none, or it has another shape.
    pub fn pinned(pins: &Pins, name: &'static str) -> Result<Self, MapError> {
        let map = Array::try_from(Map::Array(pinned(pins, name)?)).map_err(|_| MapError::Unusable(name))?;
        Ok(Self { name, map })
    }

    fn open(ebpf: &Ebpf, name: &'static str) -> Result<Self, MapError> {
        let map = Array::try_from(Map::Array(duplicate(ebpf, name)?)).map_err(|_| MapError::Unusable(name))?;
        Ok(Self { name, map })
    }

    /// The value at `index`; zeroes beyond the end.
    pub fn get(&self, index: u32) -> V {
        self.map.get(&index, 0).map_or_else(|_| V::zeroed(), |wire| wire.0)
    }

    /// Sets the value at `index`.
    ///
    /// # Errors
    /// [`MapError::Refused`] beyond the end.
    pub fn put(&mut self, index: u32, value: V) -> Result<(), MapError> {
        self.map.set(index, Wire(value), 0).map_err(|error| MapError::Refused(self.name, error))
    }
}

fn pinned(pins: &Pins, name: &'static str) -> Result<MapData, MapError> {
    MapData::from_pin(pins.map(name)).map_err(|error| MapError::Refused(name, error))
}

/// The labels of sockets.
pub struct Labels {
    /// For the kernel's listings of sockets, which name a map by its descriptor.
    descriptor: OwnedFd,
    map: SkStorage<MapData, Wire<SocketLabel>>,
}

impl Labels {
    fn open(ebpf: &Ebpf, name: &'static str) -> Result<Self, MapError> {
        let map = SkStorage::try_from(Map::SkStorage(duplicate(ebpf, name)?)).map_err(|_| MapError::Unusable(name))?;
        Ok(Self { descriptor: descriptor(ebpf, name)?, map })
    }

    /// The label of an open socket, if it has one.
    pub fn get(&self, socket: &impl AsRawFd) -> Option<SocketLabel> {
        self.map.get(socket, 0).ok().map(|wire| wire.0)
    }
}

impl AsFd for Labels {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn duplicate(ebpf: &Ebpf, name: &'static str) -> Result<MapData, MapError> {
    MapData::from_fd(descriptor(ebpf, name)?).map_err(|error| MapError::Refused(name, error))
}

fn descriptor(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, MapError> {
    let data = match ebpf.map(name) {
        Some(
            Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::Array(data)
            | Map::PerCpuArray(data)
            | Map::SkStorage(data),
        ) => data,
        _ => return Err(MapError::Unusable(name)),
    };
    data.fd().as_fd().try_clone_to_owned().map_err(|error| MapError::Descriptor(name, error))
}

/// All maps that the daemon reads or writes. `agent-ebpf/src/maps.rs` says what each is.
pub struct Maps {
    /// tgid -> mark.
    pub processes: Table<u32, Mark>,
    /// Slot -> state.
    pub tasks: Slots<TaskState>,
    /// Slot -> counts.
    pub usage: Slots<Usage>,
    /// Destination -> verdict.
    pub connect: Table<ConnectKey, Verdict>,
    /// Class -> verdict.
    pub rows: Table<RowKey, Verdict>,
    /// File -> class.
    pub secrets: Table<FileKey, u32>,
    /// Directory -> class.
    pub directories: Table<FileKey, u32>,
    /// Name of a unix listener -> class, of names that the catalogue knows.
    pub unix_names: Table<UnixName, u32>,
    /// The same of names that somebody asked for.
    pub unix_asked: Table<UnixName, u32>,
    /// Network namespace -> where the daemon answers names.
    pub resolvers: Table<u64, Resolver>,
    /// Source of a question for names -> task.
    pub clients: Table<ClientKey, Client>,
    /// Files that the daemon opened last.
    pub learned: Slots<Learned>,
    /// The one settings value.
    pub settings: Slots<Settings>,
    /// Which set of programs acts.
    pub active: Slots<u32>,
    /// Marked processes; first contacts that wait.
    pub totals: Slots<i64>,
    /// Socket -> label.
    pub labels: Labels,
    counters: PerCpuArray<MapData, u64>,
}

impl Maps {
    /// A set of handles of its own.
    ///
    /// # Errors
    /// [`MapError`] if the object lacks a map or descriptors run out.
    pub fn open(ebpf: &Ebpf) -> Result<Self, MapError> {
        const COUNTERS: &str = "COUNTERS";
        let counters = PerCpuArray::try_from(Map::PerCpuArray(duplicate(ebpf, COUNTERS)?));
        Ok(Self {
            processes: Table::open(ebpf, "PROCESSES", false)?,
            tasks: Slots::open(ebpf, "TASKS")?,
            usage: Slots::open(ebpf, "USAGE")?,
            connect: Table::open(ebpf, "CONNECT", true)?,
            rows: Table::open(ebpf, "ROWS", true)?,
            secrets: Table::open(ebpf, "SECRETS", false)?,
            directories: Table::open(ebpf, "DIRECTORIES", false)?,
            unix_names: Table::open(ebpf, "UNIX_NAMES", false)?,
            unix_asked: Table::open(ebpf, "UNIX_ASKED", true)?,
            resolvers: Table::open(ebpf, "RESOLVERS", false)?,
            clients: Table::open(ebpf, "DNS_CLIENTS", true)?,
            learned: Slots::open(ebpf, "LEARNED")?,
            settings: Slots::open(ebpf, "SETTINGS")?,
            active: Slots::open(ebpf, "ACTIVE")?,
            totals: Slots::open(ebpf, "TOTALS")?,
            labels: Labels::open(ebpf, "LABELS")?,
            counters: counters.map_err(|_| MapError::Unusable(COUNTERS))?,
        })
    }

    /// The sum over CPUs of a named cause.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.get(&counter.code(), 0).map_or(0, |values| values.iter().sum())
    }
}

const _: () = assert!(size_of::<Wire<Verdict>>() == size_of::<Verdict>());
