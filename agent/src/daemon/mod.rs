//! The closed list of inputs and the one loop that owns all state.

mod snapshot;
mod threads;
