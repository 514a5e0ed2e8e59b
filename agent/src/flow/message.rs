//! `sock_diag` in bytes: `include/uapi/linux/sock_diag.h`, `include/uapi/linux/inet_diag.h`. Decoding is total.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use agent_common::maps::SocketLabel;
use bytemuck::{AnyBitPattern, Pod, Zeroable};
use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlasIterator};

use super::Flow;
use crate::domain::Protocol;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

/// `INET_DIAG_REQ_SK_BPF_STORAGES`: the listing is to bring what these maps hold for each socket.
const REQUEST_STORAGES: u16 = 2;
/// `SK_DIAG_BPF_STORAGE_REQ_MAP_FD`.
const REQUEST_MAP: u16 = 1;
/// `INET_DIAG_INFO`: `struct tcp_info`.
const ANSWER_INFO: u16 = 2;
/// `INET_DIAG_MARK`: SO_MARK.
const ANSWER_MARK: u16 = 15;
/// `INET_DIAG_SK_BPF_STORAGES`, in it `SK_DIAG_BPF_STORAGE`, in it `SK_DIAG_BPF_STORAGE_MAP_VALUE`.
const ANSWER_STORAGES: [u16; 3] = [20, 1, 3];
/// Where `tcpi_bytes_acked` is in `struct tcp_info`, which only ever grows at its end.
const BYTES_ACKED: usize = 120;

/// `TCP_ESTABLISHED`, also of a UDP socket that is connected.
const ESTABLISHED: u8 = 1;
const SYN_RECV: u32 = 3;
const TIME_WAIT: u32 = 6;
const LISTEN: u8 = 10;
const NEW_SYN_RECV: u32 = 12;
/// States that are no sockets yet, or no longer: they have no label and hold nothing that a program could send.
const STATES: u32 = !(1 << SYN_RECV | 1 << TIME_WAIT | 1 << NEW_SYN_RECV);

/// `struct inet_diag_sockid`: addresses and ports in network byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
struct Id {
    local_port: [u8; 2],
    remote_port: [u8; 2],
    local: [u8; 16],
    remote: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct inet_diag_req_v2`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct RequestHead {
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: Id,
}

/// `struct inet_diag_msg`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct AnswerHead {
    family: u8,
    state: u8,
    timer: u8,
    retransmits: u8,
    id: Id,
    expires: u32,
    receive_queue: u32,
    write_queue: u32,
    uid: u32,
    inode: u32,
}

/// What names one socket to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    family: u8,
    protocol: Protocol,
    id: Id,
}

impl Connection {
    /// See [`Flow::cookie`].
    pub fn cookie(&self) -> u64 {
        let [low, high] = self.id.cookie;
        u64::from(high) << 32 | u64::from(low)
    }
}

/// A question or an order.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request {
    /// All sockets of a family and a protocol, with what the map behind the descriptor holds for each.
    List { family: u8, protocol: Protocol, labels: i32 },
    /// The end of one.
    Destroy(Connection),
}

impl Request {
    fn bytes(&self) -> Vec<u8> {
        let head =
            |family, protocol: Protocol| RequestHead { family, protocol: protocol.number(), ..Zeroable::zeroed() };
        match *self {
            Self::List { family, protocol, labels } => {
                let head = RequestHead { extensions: 1 << (ANSWER_INFO - 1), states: STATES, ..head(family, protocol) };
                let storages = attribute(REQUEST_STORAGES, &attribute(REQUEST_MAP, &labels.to_ne_bytes()));
                [bytemuck::bytes_of(&head), &storages].concat()
            }
            Self::Destroy(connection) => {
                let head =
                    RequestHead { states: u32::MAX, id: connection.id, ..head(connection.family, connection.protocol) };
                bytemuck::bytes_of(&head).to_vec()
            }
        }
    }
}

/// `struct nlattr` and its value, whose length is a multiple of four here.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    [length.to_ne_bytes().as_slice(), &kind.to_ne_bytes(), value].concat()
}

impl NetlinkSerializable for Request {
    fn message_type(&self) -> u16 {
        match self {
            Self::List { .. } => SOCK_DIAG_BY_FAMILY,
            Self::Destroy(_) => SOCK_DESTROY,
        }
    }

    fn buffer_len(&self) -> usize {
        self.bytes().len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let bytes = self.bytes();
        if let Some(place) = buffer.get_mut(..bytes.len()) {
            place.copy_from_slice(&bytes);
        }
    }
}

/// Why an answer of the kernel is no socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes than every answer has.
    #[error("an answer of sock_diag has {0} bytes only; please report it with `uname -r`")]
    Short(usize),
    /// Neither IPv4 nor IPv6.
    #[error("an answer of sock_diag is of address family {0}; please report it with `uname -r`")]
    Family(u8),
    /// Attributes that do not add up.
    #[error("an answer of sock_diag has broken attributes; please report it with `uname -r`")]
    Attributes,
}

/// The body of an answer, not looked at yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer(Vec<u8>);

impl NetlinkDeserializable for Answer {
    type Error = Infallible;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self(payload.to_vec()))
    }
}

impl Answer {
    /// The socket that it tells of; the protocol is that of the question.
    pub(super) fn flow(&self, protocol: Protocol) -> Result<Flow, DecodeError> {
        let short = DecodeError::Short(self.0.len());
        let (head, attributes) = self.0.split_at_checked(size_of::<AnswerHead>()).ok_or(short)?;
        let head: AnswerHead = read(head).ok_or(short)?;
        let id = head.id;
        let local = address(head.family, id.local, id.local_port)?;
        let remote = address(head.family, id.remote, id.remote_port)?;
        let listens = protocol == Protocol::Tcp && head.state == LISTEN;
        let connected = !listens && (protocol == Protocol::Tcp || head.state == ESTABLISHED);
        let mut flow = Flow {
            connection: Connection { family: head.family, protocol, id },
            protocol,
            local,
            remote: connected.then_some(remote),
            inode: head.inode.into(),
            listens,
            label: None,
            mark: 0,
            bytes_acked: None,
        };
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute.map_err(|_| DecodeError::Attributes)?;
            match attribute.kind() {
                ANSWER_MARK => flow.mark = read(attribute.value()).unwrap_or(0),
                ANSWER_INFO => flow.bytes_acked = attribute.value().get(BYTES_ACKED..).and_then(read),
                kind if kind == ANSWER_STORAGES[0] => flow.label = storage(attribute.value())?,
                _ => {}
            }
        }
        Ok(flow)
    }
}

/// What the one map that was asked for holds for the socket.
fn storage(storages: &[u8]) -> Result<Option<SocketLabel>, DecodeError> {
    let [_, one, value] = ANSWER_STORAGES;
    let Some(storage) = find(storages, one)? else { return Ok(None) };
    Ok(find(storage, value)?.and_then(read))
}

fn find(attributes: &[u8], kind: u16) -> Result<Option<&[u8]>, DecodeError> {
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute.map_err(|_| DecodeError::Attributes)?;
        if attribute.kind() == kind {
            let length = attribute.value_length();
            let start = attribute.into_inner().get(4..).unwrap_or_default();
            return Ok(start.get(..length));
        }
    }
    Ok(None)
}

/// The value at the beginning of `bytes`.
fn read<T: AnyBitPattern>(bytes: &[u8]) -> Option<T> {
    Some(bytemuck::pod_read_unaligned(bytes.get(..size_of::<T>())?))
}

/// IPv4-mapped addresses as IPv4, which is what packets carry.
fn address(family: u8, address: [u8; 16], port: [u8; 2]) -> Result<SocketAddr, DecodeError> {
    let [a, b, c, d, ..] = address;
    let address = match i32::from(family) {
        libc::AF_INET => IpAddr::from(Ipv4Addr::new(a, b, c, d)),
        libc::AF_INET6 => IpAddr::from(Ipv6Addr::from(address)).to_canonical(),
        _ => return Err(DecodeError::Family(family)),
    };
    Ok(SocketAddr::new(address, u16::from_be_bytes(port)))
}

const _: () = {
    assert!(size_of::<RequestHead>() == 56);
    assert!(size_of::<AnswerHead>() == 72);
};

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(family: i32, state: u8, attributes: &[u8]) -> Answer {
        let mut id = Id { local_port: [0x1f, 0x90], remote_port: [1, 187], cookie: [7, 1], ..Zeroable::zeroed() };
        id.local[..4].copy_from_slice(&[127, 0, 0, 1]);
        id.remote[..4].copy_from_slice(&[10, 0, 0, 5]);
        let family = u8::try_from(family).unwrap();
        let head = AnswerHead { family, state, id, ..Zeroable::zeroed() };
        Answer([bytemuck::bytes_of(&head), attributes].concat())
    }

    fn labelled() -> (SocketLabel, Vec<u8>) {
        let label = SocketLabel { slot: 3, epoch: 9, tgid: 4242, ..Zeroable::zeroed() };
        let [storages, one, value] = ANSWER_STORAGES;
        let id = attribute(2, &5_u32.to_ne_bytes());
        let value = attribute(value, bytemuck::bytes_of(&label));
        let mut info = vec![0; 224];
        info[BYTES_ACKED..BYTES_ACKED + 8].copy_from_slice(&77_u64.to_ne_bytes());
        let attributes = [
            attribute(ANSWER_MARK, &0x2_0000_u32.to_ne_bytes()),
            attribute(99, &[1, 2, 3, 4]),
            attribute(ANSWER_INFO, &info),
            attribute(storages, &attribute(one, &[id, value].concat())),
        ];
        (label, attributes.concat())
    }

    #[test]
    fn a_socket_comes_with_its_label_mark_and_bytes() {
        let (label, attributes) = labelled();
        let flow = answer(libc::AF_INET, ESTABLISHED, &attributes).flow(Protocol::Tcp).unwrap();
        assert_eq!(flow.local, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(flow.remote, Some("10.0.0.5:443".parse().unwrap()));
        assert_eq!((flow.label, flow.mark, flow.bytes_acked), (Some(label), 0x2_0000, Some(77)));
        assert_eq!(flow.cookie(), 1 << 32 | 7);
    }

    #[test]
    fn what_is_not_connected_has_no_other_end() {
        let listening = answer(libc::AF_INET, LISTEN, &[]).flow(Protocol::Tcp).unwrap();
        assert!(listening.listens && listening.remote.is_none());
        let unconnected = answer(libc::AF_INET, 7, &[]).flow(Protocol::Udp).unwrap();
        assert!(!unconnected.listens && unconnected.remote.is_none() && unconnected.label.is_none());
    }

    #[test]
    fn mapped_addresses_are_those_of_the_packets() {
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 1, 2, 3];
        assert_eq!(address(10, mapped, [0, 80]).unwrap(), "10.1.2.3:80".parse().unwrap());
        assert_eq!(address(1, mapped, [0, 80]), Err(DecodeError::Family(1)));
    }

    #[test]
    fn every_prefix_is_a_socket_or_an_error() {
        let (_, attributes) = labelled();
        let whole = answer(libc::AF_INET, ESTABLISHED, &attributes).0;
        for length in 0..whole.len() {
            let flow = Answer(whole[..length].to_vec()).flow(Protocol::Tcp);
            assert_eq!(flow.is_err() && length < 72, length < 72, "{length}: {flow:?}");
            assert!(flow.is_err() || flow.unwrap().label.is_none(), "{length}");
        }
    }

    #[test]
    fn attributes_that_lie_about_their_length_are_errors() {
        for length in [0_u16, 1, 3, 200, u16::MAX] {
            let broken = [length.to_ne_bytes(), 15_u16.to_ne_bytes(), [1, 2], [3, 4]].concat();
            let flow = answer(libc::AF_INET, ESTABLISHED, &broken).flow(Protocol::Tcp);
            assert_eq!(flow, Err(DecodeError::Attributes), "{length}");
        }
        let short = attribute(ANSWER_MARK, &[]);
        assert_eq!(answer(libc::AF_INET, ESTABLISHED, &short).flow(Protocol::Tcp).unwrap().mark, 0);
    }

    #[test]
    fn requests_are_what_the_kernel_takes() {
        let list = Request::List { family: 2, protocol: Protocol::Udp, labels: 5 };
        let bytes = list.bytes();
        assert_eq!((bytes.len(), list.buffer_len(), list.message_type()), (56 + 12, 68, 20));
        assert_eq!(bytes[..4], [2, 17, 2, 0]);
        assert_eq!(bytes[56..], [12, 0, 2, 0, 8, 0, 1, 0, 5, 0, 0, 0]);
        let connection = answer(libc::AF_INET, ESTABLISHED, &[]).flow(Protocol::Tcp).unwrap().connection;
        let destroy = Request::Destroy(connection);
        assert_eq!((destroy.bytes().len(), destroy.message_type()), (56, 21));
        assert_eq!(destroy.bytes()[8..56], *bytemuck::bytes_of(&connection.id));
    }
}
