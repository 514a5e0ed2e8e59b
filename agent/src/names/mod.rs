//! Names: the daemon's own resolver for marked processes, and what each task came to know by it.
//!
//! It asks nobody but the host's own resolvers, and knows neither policy nor catalogue: the daemon tells it what a task may
//! ask for.

pub mod answer;
mod limits;
pub mod question;
mod server;
mod service;
mod sockets;
mod table;
mod upstream;

pub use limits::Rate;
pub use question::Question;
pub use server::Serving;
pub use service::{Asker, Authority, Pending, Permission, Said, Service, Step};
pub use sockets::Sockets;
pub use table::{Deciding, Known, Names, TaskMark};
pub use upstream::{Upstream, name_servers};
