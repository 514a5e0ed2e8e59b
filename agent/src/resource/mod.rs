//! What is known of resources: which files are secrets, and what destinations and unix listeners are called. Three catalogues, each shipped
//! and extended by the site; no policy, no kernel maps, and no file is ever opened.

mod catalogue;
pub mod class;
pub mod endpoints;
mod findings;
pub mod homes;
pub mod hosts;
pub mod ledger;
mod pattern;
mod ranges;
pub mod scan;
pub mod secrets;
pub mod unix;
mod walk;

pub use class::{ClassTable, NO_CLASS};
pub use endpoints::Endpoints;
pub use findings::SEVERAL_NAMES;
pub use hosts::Carried;
pub use ledger::Ledger;
pub use scan::{Changes, Problem, ProblemKind, Protected, Scan};
pub use secrets::Secrets;
pub use unix::UnixListeners;
