//! Many destinations, each for the first time.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Barrier;

use crate::net::errno;
use crate::{Attempt, number};

/// Actions with an output of their own.
pub(super) fn special(words: &[&str]) -> Option<Attempt> {
    match *words {
        ["scan", from, count] => Some(scan(number(from), number(count), 1)),
        ["scan-at-once", from, threads] => Some(scan(number(from), number(threads), number(threads))),
        _ => None,
    }
}

/// Says how many of `count` addresses from `from` on could be connected to, and how many were refused.
fn scan(from: Ipv4Addr, count: u32, threads: u32) -> Attempt {
    let barrier = Barrier::new(threads as usize);
    let work = |thread: u32| {
        barrier.wait();
        let own = (thread..count).step_by(threads as usize);
        own.map(|step| connect(Ipv4Addr::from_bits(from.to_bits() + step))).collect::<Attempt<Vec<bool>>>()
    };
    let outcomes: Attempt<Vec<Vec<bool>>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        running.into_iter().map(|thread| thread.join().map_err(|_| nix::errno::Errno::ECHILD)?).collect()
    });
    let outcomes: Vec<bool> = outcomes?.concat();
    let through = outcomes.iter().filter(|&&through| through).count();
    println!("{through} through");
    println!("{} refused", outcomes.len() - through);
    Ok(())
}

/// Connecting a datagram socket sends nothing. Whether it was let through.
fn connect(to: Ipv4Addr) -> Attempt<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(|error| errno(&error))?;
    match socket.connect(SocketAddr::from((to, 9))) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(false),
        Err(error) => Err(errno(&error)),
    }
}
