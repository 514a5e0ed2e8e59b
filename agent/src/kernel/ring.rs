//! The two rings: drained whole, decoded, and waited for by their descriptors.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use agent_common::{DecodeError, Event};
use aya::Ebpf;
use aya::maps::{MapData, RingBuf};

use super::MapError;

/// A ring buffer that the kernel fills.
pub struct Ring(RingBuf<MapData>);

impl Ring {
    /// Takes the ring of that name out of the object.
    ///
    /// # Errors
    /// [`MapError::Unusable`] if there is none, or it was taken before.
    pub fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, MapError> {
        let map = ebpf.take_map(name).ok_or(MapError::Unusable(name))?;
        RingBuf::try_from(map).map(Self).map_err(|_| MapError::Unusable(name))
    }

    /// Hands over what is there, at most `limit` items. Returns how many it was: `limit` means that there may be more.
    pub fn drain(&mut self, limit: usize, mut each: impl FnMut(Result<Event, DecodeError>)) -> usize {
        let mut taken = 0;
        while taken < limit {
            let Some(item) = self.0.next() else { break };
            each(Event::decode(&item));
            taken += 1;
        }
        taken
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns its descriptor for as long as the borrow lives.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
