//! What becomes of one question: whose it is, whether they may ask it, what the answer is.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use agent_common::maps::ClientKey;
use agent_common::{Effect, Reason, Source};
use hickory_proto::op::{Message, ResponseCode};

use super::TaskMark;
use super::answer::{Answer, encode, filter, reply};
use super::limits::{Limits, Rate};
use super::question::{Fault, Header, Question};
use super::upstream::Upstream;
use crate::domain::LabelSet;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// For which task.
    pub task: TaskMark,
    /// Thread group that made the socket.
    pub tgid: u32,
    /// Whether two tasks ask from there, so that nobody knows whose question it is.
    pub conflict: bool,
    /// Whether refusals are recorded and let through.
    pub audit: bool,
    /// Why the task may ask nothing more, if so.
    pub over: Option<Reason>,
}

/// Whether a task may ask for a name.
#[derive(Clone, Debug)]
pub struct Permission {
    /// `Allow`; `WouldDeny` goes through too.
    pub effect: Effect,
    /// Why.
    pub reason: Reason,
    /// The number under which records find the policies.
    pub detail: u32,
    /// Which policy set answered.
    pub generation: u32,
    /// What the catalogue calls the name.
    pub labels: Arc<LabelSet>,
    /// Whether it may have a private address.
    pub private: bool,
    /// Whether the catalogue spells it out.
    pub spelt_out: bool,
}

/// What is recorded of a question.
#[derive(Debug)]
pub struct Said<'a> {
    /// The host's name; empty if there is none to tell.
    pub name: &'a Arc<str>,
    /// Such as `AAAA`.
    pub record_type: Arc<str>,
    /// What came of it.
    pub effect: Effect,
    /// Why.
    pub reason: Reason,
    /// Who decided.
    pub source: Source,
    /// What policy said, if it was asked.
    pub permission: Option<&'a Permission>,
    /// When the question came.
    pub came: Instant,
}

/// What the resolver must be told of tasks, policy and catalogue, and what it tells.
pub trait Authority {
    /// Whose questions come from there; nobody's if no marked process asks from there.
    fn client(&self, from: ClientKey) -> Option<Asker>;
    /// Whether the task may ask for a name.
    fn permits(&self, asker: &Asker, name: &str) -> Permission;
    /// Whether an address is one that only some names may have.
    fn is_private(&self, address: IpAddr) -> bool;
    /// Notes what the task is about to be told. It returns once the kernel holds no verdict that this changes.
    fn learn(&self, asker: &Asker, name: &Arc<str>, addresses: &[IpAddr], ttl: u32);
    /// Hands over what is to be recorded.
    fn record(&self, asker: &Asker, said: Said<'_>);
}

/// The resolver without its sockets.
pub struct Service<A> {
    authority: A,
    upstream: Upstream,
    limits: RefCell<Limits>,
}

/// What a question comes to before anybody else is asked.
pub enum Step {
    /// This is sent back; nothing at all for what is no question.
    Reply(Option<Vec<u8>>),
    /// Servers are to be asked.
    Forward(Pending),
}

/// A question that may be asked.
pub struct Pending {
    asker: Asker,
    question: Question,
    permission: Permission,
    size: usize,
    came: Instant,
    /// Whether it was recorded already: audit mode lets through what it would have refused.
    recorded: bool,
}

impl<A: Authority> Service<A> {
    /// A resolver for what `authority` lets through.
    pub fn new(authority: A, upstream: Upstream, rate: Rate) -> Self {
        Self { authority, upstream, limits: RefCell::new(Limits::new(rate)) }
    }

    /// What it was made with.
    pub fn authority(&self) -> &A {
        &self.authority
    }

    /// Whether a further connection of the task is taken.
    pub(super) fn begin(&self, asker: &Asker) -> bool {
        self.limits.borrow_mut().begin(asker.task, Instant::now())
    }

    pub(super) fn end(&self, asker: &Asker) {
        self.limits.borrow_mut().end(asker.task);
    }

    /// Looks at one message. `size` is what can be sent back where the asker does not say: TCP's messages.
    pub fn consider(&self, asker: Option<Asker>, bytes: &[u8], size: Option<usize>) -> Step {
        let came = Instant::now();
        let Some(asker) = asker else { return Step::Reply(refused(bytes)) };
        match Question::read(bytes) {
            Ok(question) => self.of_question(asker, question, size, came),
            Err(fault) => {
                // What is wrong is rated too: it costs a record.
                let within = self.limits.borrow_mut().take(asker.task, came);
                let Fault { answer, reason, name, record_type } = fault;
                let reason = if within { reason } else { Reason::RateLimited };
                let (effect, source, permission) = (Effect::Deny, Source::Structural, None);
                self.authority
                    .record(&asker, Said { name: &name, record_type, effect, reason, source, permission, came });
                Step::Reply(answer.and_then(|message| message.to_vec().ok()))
            }
        }
    }

    fn of_question(&self, asker: Asker, question: Question, size: Option<usize>, came: Instant) -> Step {
        let size = size.unwrap_or(question.size.into());
        let mut recorded = false;
        if let Some(reason) = self.structural(&asker, &question, came) {
            self.refuse(&asker, &question, reason, None, came);
            if !asker.audit {
                return Step::Reply(encode(&reply(&question, ResponseCode::Refused), size));
            }
            recorded = true;
        }
        let permission = self.authority.permits(&asker, &question.name);
        let mut pending = Pending { asker, question, permission, size, came, recorded };
        if pending.permission.effect == Effect::Deny {
            let reason = pending.permission.reason;
            return self.refused(&pending, reason, Source::Upcall);
        }
        if !pending.permission.spelt_out
            && !self.limits.borrow_mut().may_choose(asker.task, &pending.question.name, came)
        {
            if !asker.audit {
                return self.refused(&pending, Reason::RateLimited, Source::Structural);
            }
            pending.recorded |= !self.say(&pending, Effect::WouldDeny, Reason::RateLimited, Source::Structural);
        }
        if !self.limits.borrow_mut().begin(asker.task, came) {
            return self.refused(&pending, Reason::Busy, Source::Structural);
        }
        Step::Forward(pending)
    }

    /// What needs no policy to be refused.
    fn structural(&self, asker: &Asker, question: &Question, came: Instant) -> Option<Reason> {
        if asker.over.is_some() {
            return asker.over;
        }
        if asker.conflict {
            return Some(Reason::Undecidable);
        }
        if !self.limits.borrow_mut().take(asker.task, came) {
            return Some(Reason::RateLimited);
        }
        (!question.is_for_addresses()).then_some(Reason::UnsupportedPath)
    }

    fn refuse(
        &self,
        asker: &Asker,
        question: &Question,
        reason: Reason,
        permission: Option<&Permission>,
        came: Instant,
    ) {
        let effect = if asker.audit { Effect::WouldDeny } else { Effect::Deny };
        let (name, record_type, source) = (&question.name, question.record_type(), Source::Structural);
        self.authority.record(asker, Said { name, record_type, effect, reason, source, permission, came });
    }

    fn refused(&self, pending: &Pending, reason: Reason, source: Source) -> Step {
        self.say(pending, Effect::Deny, reason, source);
        Step::Reply(encode(&reply(&pending.question, ResponseCode::Refused), pending.size))
    }

    /// Records what comes of a question, unless it was. Always false.
    fn say(&self, pending: &Pending, effect: Effect, reason: Reason, source: Source) -> bool {
        if !pending.recorded {
            let Pending { asker, question, permission, came, .. } = pending;
            let (name, record_type, came) = (&question.name, question.record_type(), *came);
            let permission = Some(permission);
            self.authority.record(asker, Said { name, record_type, effect, reason, source, permission, came });
        }
        false
    }

    /// Asks the servers and makes the answer.
    pub async fn forward(&self, pending: Pending) -> Option<Vec<u8>> {
        let answer = self.upstream.ask(&pending.question.query).await;
        self.limits.borrow_mut().end(pending.asker.task);
        let failed = |reason| (reason, ResponseCode::ServFail);
        let message = match answer.map_err(failed).and_then(|answer| self.judge(&pending, &answer)) {
            Ok(message) => message,
            Err((reason, code)) => {
                self.say(&pending, Effect::Deny, reason, Source::Structural);
                reply(&pending.question, code)
            }
        };
        encode(&message, pending.size)
    }

    /// What of the servers' answer is given to the task, which is noted before.
    fn judge(&self, pending: &Pending, answer: &Message) -> Result<Message, (Reason, ResponseCode)> {
        let Pending { asker, question, permission, .. } = pending;
        let lenient = permission.private || asker.audit;
        let is_private = |address| !lenient && self.authority.is_private(address);
        let filtered = filter(question, answer, &is_private).map_err(|reason| (reason, ResponseCode::ServFail))?;
        let Answer { message, addresses, ttl, private, emptied, found } = filtered;
        if emptied && !private.is_empty() {
            return Err((Reason::PrivateAnswer, ResponseCode::Refused));
        }
        if !found && !permission.spelt_out {
            self.limits.borrow_mut().was_missing(asker.task, &question.name, Instant::now());
        }
        if !addresses.is_empty() {
            self.authority.learn(asker, &question.name, &addresses, ttl);
        }
        if !private.is_empty() {
            self.refuse(asker, question, Reason::PrivateAnswer, Some(permission), pending.came);
        } else if asker.audit && !permission.private && addresses.iter().any(|a| self.authority.is_private(*a)) {
            self.refuse(asker, question, Reason::PrivateAnswer, Some(permission), pending.came);
            return Ok(message);
        }
        self.say(pending, permission.effect, permission.reason, Source::Upcall);
        Ok(message)
    }
}

/// To somebody who is no task's.
fn refused(bytes: &[u8]) -> Option<Vec<u8>> {
    Header::read(bytes)?.refused()?.to_vec().ok()
}
