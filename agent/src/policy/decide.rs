//! The decision: Cedar's authorizer for every task of the chain, and our rules about what failed.

use std::cell::OnceCell;

use cedar_policy::{
    AuthorizationError, Context, Decision as Answer, Entities, EntityUid, PolicyId, PolicySet, Request,
};

use super::class::Class;
use super::time::Moment;
use super::{Hop, Policies, Prepared, Rule, entity};
use crate::domain::{Decision, Effect, Lifetime, PolicyRef, Reason, Shadow, UnixMillis};

/// What one set of policies says about one task of the chain, or about all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    effect: Effect,
    reason: Reason,
    policies: Vec<PolicyRef>,
    hop: usize,
}

/// What is asked of every task of the chain.
struct Question<'a> {
    policies: &'a Policies,
    store: Entities,
    action: EntityUid,
    resource: EntityUid,
    /// The resource's labels and all above them.
    labels: Vec<EntityUid>,
    moment: Moment,
    context: OnceCell<Option<Context>>,
}

/// Both readings of one hop: without and with the audited policies.
struct HopAnswer {
    enforced: Verdict,
    all: Verdict,
    lifetime: Lifetime,
}

impl Policies {
    /// What the policies say about `task` and a resource of `class` at an instant. A task or class that other policies
    /// made is denied with reason `Error`.
    pub fn decide(&self, task: &Prepared, class: &Class, at: UnixMillis) -> Decision {
        let question = (task.policies == self.id && class.policies == self.id)
            .then(|| Question::new(self, task, class, at))
            .flatten();
        match question {
            Some(question) => question.of_chain(&task.hops),
            None => undecidable(),
        }
    }
}

fn undecidable() -> Decision {
    let Verdict { effect, reason, policies, hop } = Verdict::deny(Reason::Error, Vec::new());
    Decision { effect, reason, policies, hop, shadow: None, lifetime: Lifetime::Ask }
}

impl<'a> Question<'a> {
    fn new(policies: &'a Policies, task: &Prepared, class: &Class, at: UnixMillis) -> Option<Self> {
        let labels = entity::closed(&class.labels);
        let resource = entity::resource(class, labels.clone()).ok()?;
        let uid = resource.uid();
        Some(Self {
            policies,
            store: task.store.clone().add_entities([resource], None).ok()?,
            action: entity::action(&class.kind),
            resource: uid,
            labels: labels.into_iter().collect(),
            moment: Moment::new(at, &policies.zone),
            context: OnceCell::new(),
        })
    }

    /// The first denial up the chain decides, for the enforced policies and for all of them alike.
    fn of_chain(&self, hops: &[Hop]) -> Decision {
        let mut lifetime = Lifetime::Forever;
        let (mut enforced, mut all) = (None, None);
        for (number, hop) in hops.iter().enumerate() {
            let answer = self.of_hop(hop);
            lifetime = lifetime.min(answer.lifetime);
            follow(&mut enforced, answer.enforced, number);
            follow(&mut all, answer.all, number);
            if is_denied(enforced.as_ref()) && is_denied(all.as_ref()) {
                break;
            }
        }
        let (Some(enforced), Some(all)) = (enforced, all) else { return undecidable() };
        let Verdict { effect, reason, policies, hop } = enforced;
        let shadow =
            (all.effect != effect).then_some(Shadow { effect: all.effect, reason: all.reason, policies: all.policies });
        Decision { effect, reason, policies, hop, shadow, lifetime }
    }

    fn of_hop(&self, hop: &Hop) -> HopAnswer {
        let candidates = self.candidates(hop);
        let in_force: Vec<&Rule> = candidates.iter().copied().filter(|rule| !self.has_expired(rule)).collect();
        let reads_context = in_force.iter().any(|rule| rule.reads.context());
        let Some(request) = self.request(hop, reads_context) else { return HopAnswer::undecidable() };
        let lifetime =
            candidates.iter().map(|rule| self.lifetime(rule, &request)).fold(Lifetime::Forever, Lifetime::min);
        let all = self.ask(&request, &in_force);
        let enforcing: Vec<&Rule> = in_force.iter().copied().filter(|rule| !rule.annotations.audit).collect();
        let enforced = if enforcing.len() == in_force.len() { all.clone() } else { self.ask(&request, &enforcing) };
        HopAnswer { enforced, all, lifetime }
    }

    fn candidates(&self, hop: &Hop) -> Vec<&'a Rule> {
        let Some((_, by_resource)) = hop.rules.iter().find(|(action, _)| *action == self.action) else {
            return Vec::new();
        };
        let keys = self.labels.iter().cloned().map(Some).chain([None]);
        let mut numbers: Vec<usize> = keys.filter_map(|key| by_resource.get(&key)).flatten().copied().collect();
        numbers.sort_unstable();
        numbers.into_iter().filter_map(|number| self.policies.rules.get(number)).collect()
    }

    /// An expired permit no longer permits; an expired forbid still forbids.
    fn has_expired(&self, rule: &Rule) -> bool {
        rule.permits && rule.annotations.expires.is_some_and(|end| self.moment.has_reached(end))
    }

    fn lifetime(&self, rule: &Rule, request: &Request) -> Lifetime {
        let of_conditions = self.moment.lifetime(&rule.reads, request, &self.store);
        match rule.annotations.expires {
            Some(end) if rule.permits => of_conditions.min(self.moment.until(end)),
            _ => of_conditions,
        }
    }

    /// Without a context if nothing reads it: making one costs as much as a policy or two.
    fn request(&self, hop: &Hop, reads_context: bool) -> Option<Request> {
        let context = match reads_context {
            true => self.context.get_or_init(|| self.moment.context()).clone()?,
            false => Context::empty(),
        };
        Request::new(hop.principal.clone(), self.action.clone(), self.resource.clone(), context, None).ok()
    }

    fn ask(&self, request: &Request, rules: &[&Rule]) -> Verdict {
        // Without them, a condition on an attribute fails and a forbid would vanish.
        let known = |uid: Option<&EntityUid>| uid.is_some_and(|uid| self.store.get(uid).is_some());
        if !known(request.principal()) || !known(request.resource()) {
            return Verdict::deny(Reason::MissingEntity, Vec::new());
        }
        let Ok(set) = PolicySet::from_policies(rules.iter().map(|rule| rule.policy.clone())) else {
            return Verdict::deny(Reason::Error, Vec::new());
        };
        let response = self.policies.authorizer.is_authorized(request, &set, &self.store);
        let determining: Vec<&PolicyId> = response.diagnostics().reason().collect();
        let failed: Vec<&PolicyId> = response.diagnostics().errors().map(failed_policy).collect();
        Verdict::from_answer(response.decision(), &pick(rules, &determining), &pick(rules, &failed))
    }
}

fn failed_policy(error: &AuthorizationError) -> &PolicyId {
    match error {
        AuthorizationError::PolicyEvaluationError(error) => error.policy_id(),
    }
}

fn pick<'a>(rules: &[&'a Rule], ids: &[&PolicyId]) -> Vec<&'a Rule> {
    rules.iter().copied().filter(|rule| ids.contains(&rule.policy.id())).collect()
}

fn is_denied(verdict: Option<&Verdict>) -> bool {
    verdict.is_some_and(|verdict| verdict.effect == Effect::Deny)
}

/// Carries the verdict of the chain so far on to the next hop: a denial stays, and of allows the task's own.
fn follow(so_far: &mut Option<Verdict>, next: Verdict, hop: usize) {
    if so_far.is_none() || (next.effect == Effect::Deny && !is_denied(so_far.as_ref())) {
        *so_far = Some(Verdict { hop, ..next });
    }
}

impl Verdict {
    fn deny(reason: Reason, policies: Vec<PolicyRef>) -> Self {
        Self { effect: Effect::Deny, reason, policies, hop: 0 }
    }

    /// Cedar skips a policy that fails. For a forbid that would be an open door, so it denies. A permit that fails only
    /// does not permit, but where nothing else does it is the reason.
    fn from_answer(answer: Answer, determining: &[&Rule], failed: &[&Rule]) -> Self {
        let references = |rules: &[&Rule]| rules.iter().map(|rule| rule.annotations.reference.clone()).collect();
        if answer == Answer::Deny && !determining.is_empty() {
            return Self::deny(Reason::Policy, references(determining));
        }
        let failed_forbids: Vec<&Rule> = failed.iter().copied().filter(|rule| !rule.permits).collect();
        if !failed_forbids.is_empty() {
            return Self::deny(Reason::Error, references(&failed_forbids));
        }
        match answer {
            Answer::Allow => {
                Self { effect: Effect::Allow, reason: Reason::Policy, policies: references(determining), hop: 0 }
            }
            Answer::Deny if failed.is_empty() => Self::deny(Reason::NoPermit, Vec::new()),
            Answer::Deny => Self::deny(Reason::Error, references(failed)),
        }
    }
}

impl HopAnswer {
    fn undecidable() -> Self {
        let verdict = Verdict::deny(Reason::Error, Vec::new());
        Self { enforced: verdict.clone(), all: verdict, lifetime: Lifetime::Ask }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::tz::TimeZone;

    use super::super::{PolicyText, shipped};
    use super::*;
    use crate::domain::{AgentFacts, IntentFacts, LabelSet, TaskFacts, TaskId};

    fn policies(text: &str) -> Policies {
        let site = PolicyText { name: "site.cedar".to_owned(), text: text.to_owned() };
        Policies::load(&shipped(), &[site], TimeZone::UTC).unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn labels(label: &str) -> Arc<LabelSet> {
        Arc::new(LabelSet::from([label.parse().unwrap()]))
    }

    fn task() -> TaskFacts {
        TaskFacts {
            id: TaskId::from_text("t"),
            agent: AgentFacts { id: "a".into(), groups: vec!["g".into()], owner: None },
            intent: IntentFacts { id: "i".into(), parents: Vec::new() },
            goal: None,
            on_behalf_of: None,
            parent: None,
            assurance: 1,
            may_read: LabelSet::clone(&labels("secret")),
            may_connect: LabelSet::new(),
            touched: LabelSet::new(),
            expires_at: 0,
        }
    }

    const PERMIT: &str = r#"@id("p") permit (principal, action == Action::"read", resource);"#;

    #[test]
    fn a_missing_task_or_resource_is_denied() {
        let policies = policies(PERMIT);
        let prepared = policies.prepare(&task()).unwrap();
        let class = policies.secret_class(&labels("secret/x"));
        let question = || Question::new(&policies, &prepared, &class, 0).unwrap();
        assert_eq!(question().of_chain(&prepared.hops).effect, Effect::Allow);
        let resource = question().resource;
        for missing in [prepared.hops[0].principal.clone(), resource] {
            let mut question = question();
            question.store = question.store.remove_entities([missing]).unwrap();
            let decision = question.of_chain(&prepared.hops);
            assert_eq!((decision.effect, decision.reason), (Effect::Deny, Reason::MissingEntity));
        }
    }

    #[test]
    fn a_task_or_class_of_other_policies_is_denied() {
        let (old, new) = (policies(PERMIT), policies(PERMIT));
        let of = |policies: &Policies| (policies.prepare(&task()).unwrap(), policies.secret_class(&labels("secret/x")));
        let ((old_task, old_class), (new_task, new_class)) = (of(&old), of(&new));
        assert_eq!(new.decide(&new_task, &new_class, 0).effect, Effect::Allow);
        for (task, class) in [(&old_task, &new_class), (&new_task, &old_class)] {
            let decision = new.decide(task, class, 0);
            assert_eq!(
                (decision.effect, decision.reason, decision.lifetime),
                (Effect::Deny, Reason::Error, Lifetime::Ask)
            );
        }
    }

    #[test]
    fn facts_that_are_no_entities_name_the_task() {
        let mut facts = task();
        facts.intent.parents.push(IntentFacts { id: "j".into(), parents: vec![facts.intent.clone()] });
        let error = policies(PERMIT).prepare(&facts).unwrap_err();
        assert!(error.to_string().contains("task `t`"), "{error}");
    }

    #[test]
    fn where_tasks_know_an_agent_differently_the_younger_counts() {
        let policies =
            policies(r#"@id("p") permit (principal in AgentGroup::"g", action == Action::"read", resource);"#);
        let class = policies.secret_class(&labels("secret/x"));
        let mut child = TaskFacts { id: TaskId::from_text("child"), parent: Some(Arc::new(task())), ..task() };
        assert_eq!(policies.decide(&policies.prepare(&child).unwrap(), &class, 0).effect, Effect::Allow);
        child.agent.groups.clear();
        assert_eq!(policies.decide(&policies.prepare(&child).unwrap(), &class, 0).effect, Effect::Deny);
    }

    #[test]
    fn the_authorizer_is_given_only_policies_whose_scope_can_match() {
        let policies = policies(
            r#"@id("any") permit (principal, action, resource is Secret);
            @id("group") permit (principal in AgentGroup::"g", action in Action::"access", resource is Secret);
            @id("other group") permit (principal in AgentGroup::"h", action == Action::"read", resource);
            @id("above") permit (principal is Task in Agent::"a", action in [Action::"read"], resource in Label::"secret");
            @id("beside") permit (principal, action == Action::"read", resource in Label::"secret/y");
            @id("connect") permit (principal, action == Action::"connect", resource);"#,
        );
        let prepared = policies.prepare(&task()).unwrap();
        let question = Question::new(&policies, &prepared, &policies.secret_class(&labels("secret/x")), 0).unwrap();
        let candidates = question.candidates(&prepared.hops[0]);
        let ids: Vec<&str> = candidates.iter().map(|rule| &*rule.annotations.reference.id).collect();
        assert_eq!(ids, ["baseline/read-beyond-grant", "baseline/delegation-depth", "any", "group", "above"]);
    }
}
