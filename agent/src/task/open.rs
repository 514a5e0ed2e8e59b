//! From what was asked for to the facts of a task: every name looked up, every bound kept.

use std::sync::Arc;
use std::time::Duration;

use agent_common::{DaemonLoss, Mode};

use super::registry::{Registry, RegistryError};
use crate::domain::duration::{DurationError, parse_duration};
use crate::domain::label::LabelError;
use crate::domain::toml_text::did_you_mean;
use crate::domain::{AgentFacts, IntentFacts, Label, LabelSet, UserFacts};

/// Longest goal in bytes: it is repeated in records.
pub const MAX_GOAL_LEN: usize = 1024;
/// Most labels in one grant.
pub const MAX_GRANT_LABELS: usize = 256;

/// What somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskRequest {
    /// Id of a registered agent.
    pub agent: String,
    /// Id of a registered intent.
    pub intent: String,
    /// Free text: logged, never matched.
    pub goal: Option<String>,
    /// Id of a registered user.
    pub on_behalf_of: Option<String>,
    /// How sure the caller is of the agent's identity; see [`crate::domain::TaskFacts::assurance`].
    pub assurance: u8,
    /// Labels that the task may read.
    pub grant_read: Vec<String>,
    /// Labels that the task may connect to.
    pub grant_connect: Vec<String>,
    /// How long it may run, such as `30m`; [`Limits::default_ttl`] if absent.
    pub ttl: Option<String>,
    /// Whether denials block.
    pub mode: Mode,
    /// What a first contact gets while the daemon is lost.
    pub on_daemon_loss: DaemonLoss,
    /// The command it is opened for: logged, never matched.
    pub argv: Vec<String>,
}

/// The labels that the catalogues have.
#[derive(Clone, Copy, Debug)]
pub struct KnownLabels<'a> {
    /// Of secrets.
    pub read: &'a LabelSet,
    /// Of endpoints.
    pub connect: &'a LabelSet,
}

/// How long tasks may run, and the bits by which their sockets are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For a request that names none.
    pub default_ttl: Duration,
    /// The longest that a request may name.
    pub max_ttl: Duration,
    /// The bits of SO_MARK that are writ's; 0 for none.
    pub socket_mark_mask: u32,
}

impl Limits {
    /// The value of SO_MARK for an agent's number, laid into the bits that are writ's from the lowest up. `None` if it has more
    /// bits than there are.
    pub(super) fn socket_mark(&self, number: u32) -> Option<u32> {
        let (mut value, mut rest) = (0, number);
        for bit in (0..u32::BITS).map(|bit| 1 << bit).filter(|bit| self.socket_mark_mask & bit != 0) {
            value |= if rest & 1 == 1 { bit } else { 0 };
            rest >>= 1;
        }
        (rest == 0).then_some(value)
    }
}

impl Default for Limits {
    /// One hour; one week.
    fn default() -> Self {
        Self {
            default_ttl: Duration::from_secs(3600),
            max_ttl: Duration::from_secs(7 * 24 * 3600),
            socket_mark_mask: 0,
        }
    }
}

/// Why a task was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Agent, intent or user that the registry does not have.
    #[error(transparent)]
    Unknown(#[from] RegistryError),
    /// The registry names the agent's intents, and this is none of them.
    #[error(
        "agent `{agent}` may not run for intent `{intent}`; use one of {allowed}, or add it to the agent's `intents`"
    )]
    IntentNotAllowed {
        /// Agent id.
        agent: String,
        /// Intent id.
        intent: String,
        /// What the registry allows, quoted.
        allowed: String,
    },
    /// A granted text that is no label.
    #[error(transparent)]
    BadLabel(#[from] LabelError),
    /// A label that nothing in the catalogue has.
    #[error("no {what} has the label `{label}`; {near}`writ labels` lists those that can be granted")]
    UnknownLabel {
        /// `secret` or `endpoint`.
        what: &'static str,
        /// The label.
        label: Label,
        /// `did you mean ..? `, or nothing.
        near: String,
    },
    /// More labels than a grant holds.
    #[error("a grant of {0} labels is longer than {MAX_GRANT_LABELS}; grant a label above them instead")]
    TooManyLabels(usize),
    /// A goal that is too long.
    #[error("a goal of {0} bytes is longer than {MAX_GOAL_LEN}; shorten it")]
    GoalTooLong(usize),
    /// A time to live that is malformed or out of bounds.
    #[error("the ttl {0}")]
    Ttl(#[from] DurationError),
    /// The agent's number has no room in the bits of SO_MARK that are writ's.
    #[error(
        "the `socket_mark` {number} of agent `{agent}` has no room in the mask {mask:#x}; widen `socket_mark_mask` in \
         writd.toml, or give a smaller number"
    )]
    SocketMark {
        /// Agent id.
        agent: String,
        /// Its number.
        number: u32,
        /// The mask.
        mask: u32,
    },
    /// Every slot is taken.
    #[error("all {0} task slots are taken; end a task first: `writ task list` shows them, `writ task revoke` ends one")]
    Full(usize),
}

/// A request whose every part is known and within bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    pub(super) agent: AgentFacts,
    pub(super) intent: IntentFacts,
    pub(super) goal: Option<Arc<str>>,
    pub(super) on_behalf_of: Option<UserFacts>,
    pub(super) may_read: LabelSet,
    pub(super) may_connect: LabelSet,
    pub(super) ttl: Duration,
}

impl Resolved {
    /// Looks every name up and checks every bound.
    ///
    /// # Errors
    /// The first of [`OpenError`] that applies, except [`OpenError::Full`].
    pub(super) fn new(
        request: &TaskRequest,
        registry: &Registry,
        known: KnownLabels<'_>,
        limits: Limits,
    ) -> Result<Self, OpenError> {
        let on_behalf_of = request.on_behalf_of.as_deref().map(|id| registry.user(id)).transpose()?;
        Ok(Self {
            agent: registry.agent(&request.agent)?,
            intent: intent(request, registry)?,
            goal: goal(request)?,
            on_behalf_of,
            may_read: grant("secret", &request.grant_read, known.read)?,
            may_connect: grant("endpoint", &request.grant_connect, known.connect)?,
            ttl: ttl(request, limits)?,
        })
    }
}

fn intent(request: &TaskRequest, registry: &Registry) -> Result<IntentFacts, OpenError> {
    let facts = registry.intent(&request.intent)?;
    match registry.intents_of(&request.agent) {
        Some(allowed) if !allowed.contains(&facts.id) => Err(OpenError::IntentNotAllowed {
            agent: request.agent.clone(),
            intent: request.intent.clone(),
            allowed: allowed.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", "),
        }),
        _ => Ok(facts),
    }
}

fn goal(request: &TaskRequest) -> Result<Option<Arc<str>>, OpenError> {
    match request.goal.as_deref() {
        Some(goal) if goal.len() > MAX_GOAL_LEN => Err(OpenError::GoalTooLong(goal.len())),
        goal => Ok(goal.map(Arc::from)),
    }
}

fn ttl(request: &TaskRequest, limits: Limits) -> Result<Duration, OpenError> {
    match request.ttl.as_deref() {
        Some(text) => Ok(parse_duration(text, limits.max_ttl)?),
        None => Ok(limits.default_ttl),
    }
}

fn grant(what: &'static str, texts: &[String], known: &LabelSet) -> Result<LabelSet, OpenError> {
    if texts.len() > MAX_GRANT_LABELS {
        return Err(OpenError::TooManyLabels(texts.len()));
    }
    texts.iter().map(|text| known_label(what, text.parse()?, known)).collect()
}

/// A label may be granted if something has it or a label below it.
fn known_label(what: &'static str, label: Label, known: &LabelSet) -> Result<Label, OpenError> {
    if known.iter().any(|other| label.covers(other)) {
        return Ok(label);
    }
    let candidates: LabelSet = known.iter().flat_map(|other| other.ancestors().chain([other.clone()])).collect();
    let near = did_you_mean(label.as_str(), candidates.iter().map(Label::as_str));
    let near = near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
    Err(OpenError::UnknownLabel { what, label, near })
}
