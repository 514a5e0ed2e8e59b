//! Questions come in and answers go out: UDP and TCP of one network namespace, on a single thread.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use agent_common::maps::{ClientKey, FAMILY_V4, FAMILY_V6};
use bytemuck::Zeroable;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinSet, spawn_local};
use tokio::time::{sleep, timeout};

use super::service::{Asker, Authority, Service, Step};
use super::sockets::Sockets;

const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
/// Longest question that is taken. What is longer is none.
const MAX_QUESTION: usize = 4096;
/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(10);
/// Questions of one connection.
const MAX_PER_CONNECTION: usize = 256;
/// How long a socket is left alone that has failed.
const PAUSE: Duration = Duration::from_millis(10);

/// The sockets of one network namespace at work. Dropping it closes them.
pub struct Serving {
    _loops: JoinSet<()>,
}

impl Serving {
    /// Begins to answer. To be called within a [`tokio::task::LocalSet`].
    ///
    /// # Errors
    /// If the event loop cannot take a socket.
    pub fn start<A: Authority + 'static>(service: &Rc<Service<A>>, sockets: Sockets) -> io::Result<Self> {
        let mut loops = JoinSet::new();
        let netns = sockets.netns;
        for socket in sockets.udp {
            socket.set_nonblocking(true)?;
            let socket = Rc::new(UdpSocket::from_std(socket)?);
            loops.spawn_local(udp(Rc::clone(service), socket, netns));
        }
        for listener in sockets.tcp {
            listener.set_nonblocking(true)?;
            loops.spawn_local(tcp(Rc::clone(service), TcpListener::from_std(listener)?, netns));
        }
        Ok(Self { _loops: loops })
    }
}

async fn udp<A: Authority + 'static>(service: Rc<Service<A>>, socket: Rc<UdpSocket>, netns: u64) {
    let mut buffer = vec![0; MAX_QUESTION];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            sleep(PAUSE).await;
            continue;
        };
        let asker = service.authority().client(source(netns, peer, IPPROTO_UDP));
        match service.consider(asker, buffer.get(..length).unwrap_or_default(), None) {
            Step::Reply(answer) => send(&socket, answer, peer),
            Step::Forward(pending) => {
                let (service, socket) = (Rc::clone(&service), Rc::clone(&socket));
                spawn_local(async move { send(&socket, service.forward(pending).await, peer) });
            }
        }
    }
}

/// Who does not take it in time asks again.
fn send(socket: &UdpSocket, answer: Option<Vec<u8>>, peer: SocketAddr) {
    if let Some(bytes) = answer {
        let _ = socket.try_send_to(&bytes, peer);
    }
}

async fn tcp<A: Authority + 'static>(service: Rc<Service<A>>, listener: TcpListener, netns: u64) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        // A stranger's connection is closed unread.
        let Some(asker) = service.authority().client(source(netns, peer, IPPROTO_TCP)) else { continue };
        if service.begin(&asker) {
            let service = Rc::clone(&service);
            spawn_local(async move {
                // That it broke off is the asker's loss.
                let _ = connection(&service, stream, asker).await;
                service.end(&asker);
            });
        }
    }
}

async fn connection<A: Authority>(service: &Service<A>, mut stream: TcpStream, asker: Asker) -> io::Result<()> {
    for _ in 0..MAX_PER_CONNECTION {
        let question = timeout(IDLE, read(&mut stream)).await??;
        let answer = match service.consider(Some(asker), &question, Some(u16::MAX.into())) {
            Step::Reply(answer) => answer,
            Step::Forward(pending) => service.forward(pending).await,
        };
        let Some(answer) = answer else { return Ok(()) };
        let mut bytes = u16::try_from(answer.len()).unwrap_or(0).to_be_bytes().to_vec();
        bytes.extend(answer);
        timeout(IDLE, stream.write_all(&bytes)).await??;
    }
    Ok(())
}

async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_QUESTION {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut question = vec![0; length];
    stream.read_exact(&mut question).await?;
    Ok(question)
}

fn source(netns: u64, peer: SocketAddr, protocol: u8) -> ClientKey {
    let mut key = ClientKey { netns, port: peer.port(), protocol, ..ClientKey::zeroed() };
    match peer.ip() {
        IpAddr::V4(v4) => {
            key.family = FAMILY_V4;
            for (at, byte) in key.address.iter_mut().zip(v4.octets()) {
                *at = byte;
            }
        }
        IpAddr::V6(v6) => (key.family, key.address) = (FAMILY_V6, v6.octets()),
    }
    key
}
