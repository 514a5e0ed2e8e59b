//! Packets: nobody is held, since they leave in soft interrupts too. What the kernel has no verdict for is put to the daemon, and
//! the answer serves the packets that come later.

use agent_common::event::{HELD_AUDIT, HELD_WIRE};
use agent_common::maps::{ConnectKey, TaskState};
use agent_common::{Effect, Reason, Source};

use super::{Key, Question, ask, by_verdict, daemon_lost, is_lost, now};
use crate::maps::SETTINGS;
use crate::record::{Outcome, Who, structural};

/// Nanoseconds before a further packet of a socket makes a question.
const ASK_INTERVAL: u64 = 10_000_000;

/// What the kernel can say of a packet. Nobody is held: packets leave in soft interrupts too.
pub enum Flow {
    /// It goes, and so do others until then (boot clock, nanoseconds; 0: look each time).
    Goes(u64),
    /// It is refused.
    Stays(Outcome),
    /// The daemon was asked: the answer serves those that come later.
    Asked,
}

/// Decides one packet of a task that is not over. With `audit`, what there is no verdict for goes, and the daemon records what would
/// have been. `asked` is when a packet of the same socket last made a question.
#[inline(always)]
pub fn decide_packet(
    who: &impl Who,
    task: &TaskState,
    key: &ConnectKey,
    audit: bool,
    asked: &mut u64,
    time: u64,
) -> Flow {
    let lost = SETTINGS.get(0).is_none_or(|settings| is_lost(settings, time));
    match key.verdict() {
        Some(verdict) if verdict.flow_not_after >= time => {
            let outcome = by_verdict(&verdict, Source::Cache);
            if outcome.effect == Effect::Allow { Flow::Goes(outcome.flow_not_after) } else { Flow::Stays(outcome) }
        }
        _ if lost && !audit => {
            let outcome = daemon_lost(task);
            if outcome.effect == Effect::Allow { Flow::Goes(0) } else { Flow::Stays(outcome) }
        }
        _ if time.saturating_sub(*asked) < ASK_INTERVAL => {
            if audit {
                Flow::Goes(0)
            } else {
                Flow::Asked
            }
        }
        _ => {
            *asked = time;
            let question = Question { who, key, what: key, generation: key.generation, time };
            match (ask(&question, if audit { HELD_AUDIT } else { HELD_WIRE }), audit) {
                (false, _) => Flow::Stays(structural(Effect::Deny, Reason::UpcallLost)),
                (true, true) => Flow::Goes(0),
                (true, false) => Flow::Asked,
            }
        }
    }
}

/// Asks ahead of time for what will be needed in a moment, without waiting.
#[inline(always)]
pub fn ask_ahead(who: &impl Who, key: &ConnectKey) {
    let question = Question { who, key, what: key, generation: key.generation, time: now() };
    ask(&question, HELD_WIRE);
}
