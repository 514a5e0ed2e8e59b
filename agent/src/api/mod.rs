//! HTTP/JSON over the unix socket: what people and programs say to the daemon.
//!
//! The server turns each request into one [`Command`], hands it to the daemon's one loop and waits for the reply. It owns
//! no state and decides nothing but who may speak: uid 0.

pub mod client;
pub mod command;
mod routes;
pub mod server;
pub mod socket;
mod stream;
pub mod types;
pub mod words;

pub use client::{Client, ClientError};
pub use command::{Command, Peer, Reply};
pub use server::{Admits, serve};
pub use socket::{BindError, bind};
pub use stream::Records;
pub use types::{ErrorBody, ErrorCode, OpenTask, StatusView, TaskView};

#[cfg(test)]
pub(crate) mod tests;
