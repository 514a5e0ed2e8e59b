//! HTTP/JSON over the unix socket: what people and programs say to the daemon.
//!
//! The server turns each request into one [`Command`], hands it to the daemon's one loop and waits for the reply. It owns
//! no state and decides nothing but who may speak: uid 0.

pub mod command;
pub mod types;
pub mod words;

pub use command::{Command, Peer, Reply};
pub use types::{ErrorBody, ErrorCode, OpenTask, StatusView, TaskView};
