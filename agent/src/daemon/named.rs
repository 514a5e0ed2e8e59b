//! The names that a verdict rests on.

use agent_common::Action;
use agent_common::event::{Actor, Ask, HELD_WIRE};
use agent_common::maps::ConnectKey;

use super::snapshot::{Snapshot, address};
use crate::decision::Instant;
use crate::domain::resource::canonical;
use crate::kernel::Maps;
use crate::names;

/// What the task knows its destination by. Noted, since a name that comes later takes this verdict along.
pub(super) fn names_of(maps: &mut Maps, snapshot: &Snapshot, ask: &Ask, now: Instant) -> names::Known {
    let Actor { slot, epoch, .. } = ask.actor;
    if Action::from_code(ask.action) != Some(Action::Connect) || snapshot.task(slot, epoch).is_none() {
        return names::Known::nothing();
    }
    let key = ConnectKey { slot, epoch, generation: ask.generation, ..ask.object.connect };
    let (known, gone) = snapshot.names.known_for((slot, epoch), canonical(address(&key)), key, now.boot);
    if let Some(gone) = gone {
        maps.connect.remove(gone);
    }
    if ask.held == HELD_WIRE && known.hosts.is_empty() {
        // A flow that may have been opened under a name which has ended since: the answer serves no new connection.
        let hosts = snapshot.names.remembered((slot, epoch), canonical(address(&key)));
        let until = if hosts.is_empty() { u64::MAX } else { now.boot.saturating_sub(1) };
        return names::Known { hosts, until };
    }
    known
}
