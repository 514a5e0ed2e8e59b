//! From texts to policies that can be decided with: parsed, renamed by `@id`, linted and strictly validated.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cedar_policy::{
    Authorizer, Effect, Entity, EntityUid, ParseErrors, Policy, PolicyId, PolicySet, Schema, Template, ValidationMode,
    Validator,
};
use jiff::tz::TimeZone;
use miette::{Diagnostic, SourceSpan};

use super::annotation::{self, Annotations};
use super::entity;
use super::index::Index;
use super::problem::{LoadErrors, Problem, line_of};
use super::reads::{Attributes, Reads};
use super::source::PolicyText;
use super::{Policies, Rule};

static LOADED: AtomicU64 = AtomicU64::new(0);

/// A policy and where it stands.
struct Parsed<'a> {
    file: &'a PolicyText,
    span: SourceSpan,
    policy: Policy,
    annotations: Annotations,
}

impl Policies {
    /// Reads, checks and indexes policies. Of `shipped`, one file is the schema (`.cedarschema`); the policies of the
    /// others may only forbid. `zone` is what local time, weekdays and `@expires` mean.
    ///
    /// # Errors
    /// Everything that is wrong in any of the files.
    pub fn load(shipped: &[PolicyText], site: &[PolicyText], zone: TimeZone) -> Result<Self, LoadErrors> {
        let (schemas, baseline): (Vec<_>, Vec<_>) =
            shipped.iter().partition(|file| file.name.ends_with(".cedarschema"));
        let schema = read_schema(&schemas)?;
        let mut problems = Vec::new();
        let mut parsed = Vec::new();
        for file in baseline {
            let policies = parse(file, &zone, &mut problems);
            problems.extend(policies.iter().filter_map(permits));
            parsed.extend(policies);
        }
        for file in site {
            parsed.extend(parse(file, &zone, &mut problems));
        }
        problems.extend(parsed.iter().filter_map(names_a_resource));
        let parsed = unique(parsed, &mut problems);
        let mut warnings = validate(&schema, &parsed, &mut problems);
        let place =
            |problem: &Problem| (shipped.iter().chain(site).position(|file| file.name == problem.file), problem.line);
        problems.sort_by_key(place);
        warnings.sort_by_key(place);
        LoadErrors::unless_none(problems)?;
        assemble(schema, parsed, warnings, zone).map_err(LoadErrors::one)
    }
}

fn read_schema(files: &[&PolicyText]) -> Result<Schema, LoadErrors> {
    let [file] = files else {
        let message = format!("there are {} schemas among the shipped policies, not 1", files.len());
        return Err(LoadErrors::one(Problem::general("shipped", message)));
    };
    match Schema::from_cedarschema_str(&file.text) {
        Ok((schema, _)) => Ok(schema),
        Err(error) => Err(LoadErrors::one(Problem::from_cedar(file, &error))),
    }
}

/// The policies of one file, in its order, under their own ids.
fn parse<'a>(file: &'a PolicyText, zone: &TimeZone, problems: &mut Vec<Problem>) -> Vec<Parsed<'a>> {
    let set: PolicySet = match file.text.parse() {
        Ok(set) => set,
        Err(errors) => {
            let errors: ParseErrors = errors;
            problems.extend(errors.iter().map(|error| Problem::from_cedar(file, error)));
            return Vec::new();
        }
    };
    problems.extend(set.templates().map(|template| refused_template(file, template)));
    let mut policies: Vec<(SourceSpan, &Policy)> = set.policies().map(|policy| (span(policy), policy)).collect();
    policies.sort_by_key(|(span, _)| span.offset());
    policies.into_iter().filter_map(|(span, policy)| lint(file, span, policy, zone, problems)).collect()
}

fn lint<'a>(
    file: &'a PolicyText,
    span: SourceSpan,
    policy: &Policy,
    zone: &TimeZone,
    problems: &mut Vec<Problem>,
) -> Option<Parsed<'a>> {
    match annotation::read(policy, zone) {
        Ok(annotations) => {
            let policy = policy.new_id(PolicyId::new(&annotations.reference.id));
            Some(Parsed { file, span, policy, annotations })
        }
        Err(complaints) => {
            problems.extend(complaints.into_iter().map(|wrong| Problem::at(file, span, wrong.message, wrong.help)));
            None
        }
    }
}

/// Where a policy stands in its file. Cedar offers this only on a hidden type, which the exact version pin keeps.
fn span(policy: &Policy) -> SourceSpan {
    policy.as_ref().loc().map_or_else(|| SourceSpan::from(0..0), |loc| loc.span)
}

fn refused_template(file: &PolicyText, template: &Template) -> Problem {
    let span = template.as_ref().loc().map_or_else(|| SourceSpan::from(0..0), |loc| loc.span);
    let message = "a policy has a slot such as `?principal`, so it is a template".to_owned();
    Problem::at(file, span, message, "name an agent, a group, an intent or a label instead".to_owned())
}

fn permits(parsed: &Parsed<'_>) -> Option<Problem> {
    (parsed.policy.effect() == Effect::Permit).then(|| {
        let message = format!("the shipped policy `{}` permits", parsed.annotations.reference.id);
        let help = "what ships is always in force and may only forbid; permits belong to a site".to_owned();
        Problem::at(parsed.file, parsed.span, message, help)
    })
}

/// Resources have no names of their own in Cedar: a class stands for many.
fn names_a_resource(parsed: &Parsed<'_>) -> Option<Problem> {
    let named = |uid: &EntityUid| matches!(uid.type_name().basename(), "Secret" | "Endpoint" | "Program");
    let uid = parsed.policy.entity_literals().into_iter().find(named)?;
    let message = format!("`{}` names the resource `{uid}`", parsed.annotations.reference.id);
    let help = "policies tell resources apart by label (`resource in Label::\"...\"`) and attribute".to_owned();
    Some(Problem::at(parsed.file, parsed.span, message, help))
}

/// Drops policies whose id is taken.
fn unique<'a>(parsed: Vec<Parsed<'a>>, problems: &mut Vec<Problem>) -> Vec<Parsed<'a>> {
    let mut places: HashMap<Arc<str>, (&PolicyText, SourceSpan)> = HashMap::new();
    let mut kept = Vec::with_capacity(parsed.len());
    for policy in parsed {
        let id = &policy.annotations.reference.id;
        if let Some((file, span)) = places.get(id) {
            let message = format!("there is another policy with `@id(\"{id}\")`");
            let first = format!("{}:{}", file.name, line_of(&file.text, span.offset()));
            let help = format!("rename one; the first is at {first}");
            problems.push(Problem::at(policy.file, policy.span, message, help));
            continue;
        }
        places.insert(Arc::clone(id), (policy.file, policy.span));
        kept.push(policy);
    }
    kept
}

/// Strict validation. Returns Cedar's warnings.
fn validate(schema: &Schema, parsed: &[Parsed<'_>], problems: &mut Vec<Problem>) -> Vec<Problem> {
    let mut set = PolicySet::new();
    for policy in parsed {
        if let Err(error) = set.add(policy.policy.clone()) {
            problems.push(Problem::from_cedar(policy.file, &error));
        }
    }
    let files: HashMap<&PolicyId, &PolicyText> = parsed.iter().map(|p| (p.policy.id(), p.file)).collect();
    let result = Validator::new(schema.clone()).validate(&set, ValidationMode::Strict);
    let problem = |id: &PolicyId, diagnostic: &dyn Diagnostic| match files.get(id) {
        Some(file) => Problem::from_cedar(file, diagnostic),
        None => Problem::general(id.as_ref(), diagnostic.to_string()),
    };
    problems.extend(result.validation_errors().map(|error| problem(error.policy_id(), error)));
    result.validation_warnings().map(|warning| problem(warning.policy_id(), warning)).collect()
}

fn assemble(
    schema: Schema,
    parsed: Vec<Parsed<'_>>,
    warnings: Vec<Problem>,
    zone: TimeZone,
) -> Result<Policies, Problem> {
    let actions = schema.action_entities().map_err(|error| Problem::general("shipped", error.to_string()))?;
    let index = Index::new(parsed.iter().map(|parsed| &parsed.policy), &actions);
    let rules: Vec<Rule> = parsed.into_iter().map(Rule::from).collect();
    let attributes = rules.iter().fold(Attributes::default(), |all, rule| all.union(rule.reads.attributes));
    let placed: BTreeSet<&EntityUid> = rules.iter().flat_map(|rule| &rule.reads.placed).collect();
    let labels: Vec<Entity> = placed.into_iter().map(|uid| entity::label(uid.id().unescaped())).collect();
    Ok(Policies {
        id: LOADED.fetch_add(1, Ordering::Relaxed),
        authorizer: Authorizer::new(),
        schema,
        zone,
        rules,
        index,
        attributes,
        labels,
        warnings,
    })
}

impl From<Parsed<'_>> for Rule {
    fn from(parsed: Parsed<'_>) -> Self {
        Self {
            reads: Reads::of(&parsed.policy),
            permits: parsed.policy.effect() == Effect::Permit,
            file: parsed.file.name.as_str().into(),
            annotations: parsed.annotations,
            policy: parsed.policy,
        }
    }
}
