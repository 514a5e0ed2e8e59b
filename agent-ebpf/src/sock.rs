//! The kernel's own `struct sock`, as LSM programs are given it.

use agent_common::Action;
use agent_common::maps::{ConnectKey, FAMILY_V4, FAMILY_V6};
use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use core::ffi::c_void;

use crate::hooks::net;
use crate::offsets::{self, address_of, member};

/// A `struct sock` that is not null.
#[derive(Clone, Copy)]
pub struct Sock(*const c_void);

impl Sock {
    /// The one behind a `struct socket`.
    ///
    /// # Safety
    /// `socket` must be a `socket` to the verifier.
    #[inline(always)]
    pub unsafe fn of(socket: *const c_void) -> Option<Self> {
        // SAFETY: as the caller promises.
        let sock: *const c_void = unsafe { member(socket, &offsets::socket__sk) };
        if sock.is_null() { None } else { Some(Self(sock)) }
    }

    /// For the helpers that take a socket.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut c_void {
        self.0.cast_mut()
    }

    /// Address family.
    #[inline(always)]
    pub fn family(self) -> u16 {
        // SAFETY: a `sock` begins with its `sock_common`.
        unsafe { member(self.0, &offsets::sock_common__skc_family) }
    }

    /// Whether it is of IPv4 or IPv6.
    #[inline(always)]
    pub fn is_inet(self) -> bool {
        let family = self.family();
        family == u16::from(FAMILY_V4) || family == u16::from(FAMILY_V6)
    }

    /// Fills in where it is bound, to be asked about as a place to listen at.
    #[inline(always)]
    pub fn bound(self, key: &mut ConnectKey) {
        key.action = Action::Listen.code();
        // SAFETY: as above.
        key.port = unsafe { member(self.0, &offsets::sock_common__skc_num) };
        self.fill(key, &offsets::sock_common__skc_rcv_saddr, &offsets::sock_common__skc_v6_rcv_saddr);
    }

    /// Fills in what it is connected to.
    #[inline(always)]
    pub fn peer(self, key: &mut ConnectKey) {
        key.action = Action::Connect.code();
        // SAFETY: as above.
        key.port = u16::from_be(unsafe { member(self.0, &offsets::sock_common__skc_dport) });
        self.fill(key, &offsets::sock_common__skc_daddr, &offsets::sock_common__skc_v6_daddr);
    }

    /// IP protocol number.
    #[inline(always)]
    pub fn protocol(self) -> u8 {
        // SAFETY: as above.
        unsafe { member::<u16>(self.0, &offsets::sock__sk_protocol) as u8 }
    }

    #[inline(always)]
    fn fill(self, key: &mut ConnectKey, v4: &Global<u64>, v6: &Global<u64>) {
        // SAFETY: members of a `sock`; a fault reads as an error.
        unsafe {
            key.protocol = self.protocol();
            if self.family() == u16::from(FAMILY_V4) {
                key.family = FAMILY_V4;
                key.address = bytemuck::cast([member::<u32>(self.0, v4), 0, 0, 0]);
            } else {
                let words = bpf_probe_read_kernel(address_of(self.0, v6).cast::<[u32; 4]>());
                net::set_bound_v6(key, words.unwrap_or_default());
            }
        }
    }
}
