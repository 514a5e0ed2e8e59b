//! What a policy reads, found by walking its syntax tree. Whatever is not recognized counts as reading everything: new
//! syntax can cost caching, never correctness.

use std::collections::BTreeSet;
use std::sync::Arc;

use cedar_policy::pst::{BinaryOp, Clause, Expr, Literal, Var};
use cedar_policy::{EntityUid, Policy};

use super::time::{Clock, TimeAtom};

/// Which attributes of an endpoint policies read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) ip: bool,
    pub(super) port: bool,
    pub(super) proto: bool,
    pub(super) hosts: bool,
}

impl Attributes {
    const ALL: Self = Self { ip: true, port: true, proto: true, hosts: true };

    pub(super) fn union(self, other: Self) -> Self {
        Self {
            ip: self.ip || other.ip,
            port: self.port || other.port,
            proto: self.proto || other.proto,
            hosts: self.hosts || other.hosts,
        }
    }

    /// By name alone, whatever it is read from: more than needed is harmless.
    fn named(name: &str) -> Self {
        Self { ip: name == "ip", port: name == "port", proto: name == "proto", hosts: name == "hosts" }
    }
}

/// What a policy's conditions read.
#[derive(Clone, Debug, Default)]
pub(super) struct Reads {
    pub(super) attributes: Attributes,
    /// Labels whose place in the hierarchy is asked for, as in `Label::"a/b" in principal.mayRead`.
    pub(super) placed: BTreeSet<EntityUid>,
    /// Comparisons of a clock with something that does not change with time.
    pub(super) atoms: Vec<TimeAtom>,
    /// The day of the week.
    pub(super) calendar: bool,
    /// Something of the context in a shape that is none of the above, or unknown syntax.
    pub(super) event: bool,
}

impl Reads {
    /// What `policy` reads. A policy whose tree cannot be had reads everything.
    pub(super) fn of(policy: &Policy) -> Self {
        let mut reads = Self::default();
        match policy.to_pst() {
            Ok(tree) => {
                for clause in tree.body().clauses() {
                    match clause {
                        Clause::When(expr) | Clause::Unless(expr) => reads.walk(expr),
                    }
                }
            }
            Err(_) => reads.everything(),
        }
        reads
    }

    /// Whether any of it can change with time.
    pub(super) fn context(&self) -> bool {
        self.event || self.calendar || !self.atoms.is_empty()
    }

    fn everything(&mut self) {
        self.event = true;
        self.attributes = Attributes::ALL;
    }

    fn walk(&mut self, expr: &Expr) {
        if let Some(atom) = time_atom(expr) {
            self.atoms.push(atom);
            // The other side reads no context, but perhaps attributes.
            return self.walk_sides(expr);
        }
        match expr {
            Expr::GetAttr { attr, .. } if attr == "weekday" && is_environment(expr) => self.calendar = true,
            Expr::Var(Var::Context) => self.event = true,
            _ => self.walk_parts(expr),
        }
    }

    fn walk_sides(&mut self, comparison: &Expr) {
        for side in parts(comparison).unwrap_or_default() {
            if clock(side).is_none() {
                self.walk(side);
            }
        }
    }

    fn walk_parts(&mut self, expr: &Expr) {
        match expr {
            Expr::GetAttr { attr, .. } => self.attributes = self.attributes.union(Attributes::named(attr)),
            Expr::HasAttr { attrs, .. } => {
                for attr in attrs.iter() {
                    self.attributes = self.attributes.union(Attributes::named(attr));
                }
            }
            Expr::BinaryOp { op: BinaryOp::In, left, .. } => self.place(left),
            Expr::Is { expr, in_expr: Some(_), .. } => self.place(expr),
            _ => {}
        }
        match parts(expr) {
            Some(parts) => parts.into_iter().for_each(|part| self.walk(part)),
            None => self.everything(),
        }
    }

    /// Notes the labels written in what stands to the left of an `in`.
    fn place(&mut self, expr: &Expr) {
        if let Expr::Literal(Literal::EntityUID(uid)) = expr
            && uid.ty.to_string() == "Label"
            && let Ok(uid) = uid.to_string().parse()
        {
            self.placed.insert(uid);
        }
        for part in parts(expr).unwrap_or_default() {
            self.place(part);
        }
    }
}

/// The expressions directly inside `expr`; nothing if this kind of expression is not known.
fn parts(expr: &Expr) -> Option<Vec<&Expr>> {
    Some(match expr {
        Expr::Literal(_) | Expr::Var(_) => Vec::new(),
        Expr::UnaryOp { expr, .. }
        | Expr::GetAttr { expr, .. }
        | Expr::HasAttr { expr, .. }
        | Expr::Like { expr, .. } => vec![&**expr],
        Expr::BinaryOp { left, right, .. } => vec![&**left, &**right],
        Expr::Is { expr, in_expr, .. } => std::iter::once(expr).chain(in_expr).map(Arc::as_ref).collect(),
        Expr::IfThenElse { cond, then_expr, else_expr } => vec![&**cond, &**then_expr, &**else_expr],
        Expr::Set(items) => items.iter().map(Arc::as_ref).collect(),
        Expr::Record(fields) => fields.values().map(Arc::as_ref).collect(),
        _ => return None,
    })
}

/// Whether `expr` is `context.env.<something>`.
fn is_environment(expr: &Expr) -> bool {
    let Expr::GetAttr { expr: environment, .. } = expr else { return false };
    let Expr::GetAttr { expr: root, attr } = &**environment else { return false };
    attr == "env" && matches!(&**root, Expr::Var(Var::Context))
}

fn clock(expr: &Expr) -> Option<Clock> {
    let Expr::GetAttr { attr, .. } = expr else { return None };
    match attr.as_str() {
        "now" if is_environment(expr) => Some(Clock::Now),
        "localTime" if is_environment(expr) => Some(Clock::LocalTime),
        _ => None,
    }
}

/// A comparison of a clock with an expression that reads no context.
fn time_atom(expr: &Expr) -> Option<TimeAtom> {
    let Expr::BinaryOp { op, left, right } = expr else { return None };
    let (clock, bound, clock_is_left) = match (clock(left), clock(right)) {
        (Some(clock), None) => (clock, right, true),
        (None, Some(clock)) => (clock, left, false),
        _ => return None,
    };
    // `at`: the comparison changes when the clock reaches the bound. `after`: one millisecond later.
    let (at, after) = match (op, clock_is_left) {
        (BinaryOp::Less | BinaryOp::GreaterEq, true) | (BinaryOp::Greater | BinaryOp::LessEq, false) => (true, false),
        (BinaryOp::LessEq | BinaryOp::Greater, true) | (BinaryOp::GreaterEq | BinaryOp::Less, false) => (false, true),
        (BinaryOp::Eq | BinaryOp::NotEq, _) => (true, true),
        _ => return None,
    };
    if !is_static(bound) {
        return None;
    }
    TimeAtom::new(clock, bound, at, after)
}

fn is_static(expr: &Expr) -> bool {
    !matches!(expr, Expr::Var(Var::Context)) && parts(expr).is_some_and(|parts| parts.into_iter().all(is_static))
}

/// Whether `expr` depends on the request at all.
pub(super) fn is_constant(expr: &Expr) -> bool {
    !matches!(expr, Expr::Var(_)) && parts(expr).is_some_and(|parts| parts.into_iter().all(is_constant))
}
