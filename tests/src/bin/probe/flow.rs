//! A flow that stays open between the actions of a session.

use nix::errno::Errno;

use crate::lineage::in_child_doing;
use crate::net::{address, connect, send, socket_for};
use crate::{Attempt, State, say};

pub(super) fn attempt(state: &mut State, words: &[&str]) -> Option<Attempt> {
    Some(match *words {
        ["flow-tcp", to] => open(state, to, libc::SOCK_STREAM),
        ["flow-udp", to] => open(state, to, libc::SOCK_DGRAM),
        ["flow-send", text] => match &state.flow {
            Some(fd) => send(fd, text.as_bytes()),
            None => Err(Errno::ENOTCONN),
        },
        ["flow-send-in-child", text] => match &state.flow {
            Some(fd) => in_child_doing(|| say(send(fd, text.as_bytes()))),
            None => Err(Errno::ENOTCONN),
        },
        _ => return None,
    })
}

fn open(state: &mut State, to: &str, kind: i32) -> Attempt {
    let to = address(to);
    let fd = socket_for(to, kind)?;
    connect(&fd, to)?;
    state.flow = Some(fd);
    Ok(())
}
