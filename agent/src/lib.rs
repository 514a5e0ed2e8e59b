//! Writ: decides what each AI agent's task may reach, and enforces it in the kernel.
//!
//! `ARCHITECTURE.md` says how the modules fit together and what each must not know.

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod decision;
pub mod domain;
pub mod flow;
pub mod kernel;
pub mod names;
pub mod policy;
pub mod process;
pub mod record;
pub mod resource;
pub mod task;
