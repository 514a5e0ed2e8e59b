//! Annotations: a closed list with closed values. Cedar itself takes any, so a misspelt `@mode` would silently enforce.

use std::collections::HashMap;
use std::sync::Arc;

use cedar_policy::Policy;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::domain::{PolicyRef, UnixMillis};

enum Values {
    Text,
    OneOf(&'static [&'static str]),
    Date,
}

const KNOWN: &[(&str, Values)] = &[
    ("id", Values::Text),
    ("mode", Values::OneOf(&["enforce", "audit"])),
    ("severity", Values::OneOf(&["low", "medium", "high", "critical"])),
    ("on_deny", Values::OneOf(&["block", "freeze", "kill", "revoke"])),
    ("reason", Values::Text),
    ("advice", Values::Text),
    ("owner", Values::Text),
    ("expires", Values::Date),
];

/// What the annotations of a policy say, in words that the daemon acts upon.
#[derive(Clone, Debug)]
pub(super) struct Annotations {
    pub(super) reference: PolicyRef,
    /// `@mode("audit")`.
    pub(super) audit: bool,
    /// The end of the day of `@expires`.
    pub(super) expires: Option<UnixMillis>,
}

/// A wrong annotation: what, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub(super) message: String,
    pub(super) help: String,
}

/// Reads a policy's annotations, or says all that is wrong with them.
pub(super) fn read(policy: &Policy, zone: &TimeZone) -> Result<Annotations, Vec<Complaint>> {
    // Asking a policy for one annotation by name parses the name each time.
    let written: HashMap<&str, &str> = policy.annotations().collect();
    let mut complaints: Vec<Complaint> = written.iter().filter_map(|(name, value)| check(name, value).err()).collect();
    complaints.sort_by(|a, b| a.message.cmp(&b.message));
    let Some(id) = written.get("id") else {
        complaints.push(Complaint {
            message: "a policy has no `@id`".to_owned(),
            help: "write `@id(\"...\")` above it; records name the policy by it".to_owned(),
        });
        return Err(complaints);
    };
    if !complaints.is_empty() {
        return Err(complaints);
    }
    let text = |name| written.get(name).map(|text| Arc::from(*text));
    Ok(Annotations {
        reference: PolicyRef { id: Arc::from(*id), reason: text("reason"), advice: text("advice") },
        audit: written.get("mode") == Some(&"audit"),
        expires: written.get("expires").and_then(|day| end_of_day(day, zone)),
    })
}

fn check(name: &str, value: &str) -> Result<(), Complaint> {
    let Some((_, values)) = KNOWN.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = KNOWN.iter().map(|(known, _)| *known).collect();
        return Err(Complaint { message: format!("unknown annotation `@{name}`"), help: suggest(name, &names, "@") });
    };
    let complaint = |message: String, help: String| Err(Complaint { message, help });
    match values {
        Values::Text if value.trim().is_empty() => {
            complaint(format!("`@{name}` is empty"), format!("write `@{name}(\"...\")`, or leave it out"))
        }
        Values::OneOf(allowed) if !allowed.contains(&value) => {
            complaint(format!("`@{name}` cannot be `{value}`"), suggest(value, allowed, ""))
        }
        Values::Date if value.parse::<Date>().is_err() || value.len() != "2026-12-31".len() => complaint(
            format!("`@{name}` cannot be `{value}`"),
            "write the last day on which the policy holds, such as `2026-12-31`".to_owned(),
        ),
        _ => Ok(()),
    }
}

fn suggest(word: &str, known: &[&str], prefix: &str) -> String {
    let word = word.to_lowercase();
    let near = known.iter().map(|name| (strsim::damerau_levenshtein(&word, name), name)).min();
    let all: Vec<String> = known.iter().map(|name| format!("`{prefix}{name}`")).collect();
    match near {
        Some((distance, name)) if distance <= 2 => format!("did you mean `{prefix}{name}`?"),
        _ => format!("it is one of {}", all.join(", ")),
    }
}

/// The first instant of the day after.
fn end_of_day(day: &str, zone: &TimeZone) -> Option<UnixMillis> {
    let next = day.parse::<Date>().ok()?.tomorrow().ok()?;
    Some(next.to_zoned(zone.clone()).ok()?.timestamp().as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(annotations: &str) -> Vec<Complaint> {
        let policy = Policy::parse(None, format!("{annotations} permit (principal, action, resource);")).unwrap();
        read(&policy, &TimeZone::UTC).err().unwrap_or_default()
    }

    #[test]
    fn what_is_on_the_list_passes() {
        assert_eq!(
            complaints(
                r#"@id("a") @mode("audit") @severity("low") @on_deny("kill") @reason("r") @advice("a") @owner("o") @expires("2026-12-31")"#
            ),
            []
        );
    }

    #[test]
    fn a_misspelt_annotation_or_value_is_named_with_the_nearest() {
        let [complaint] = &complaints(r#"@id("a") @moed("audit")"#)[..] else { panic!("one complaint") };
        assert_eq!((&*complaint.message, &*complaint.help), ("unknown annotation `@moed`", "did you mean `@mode`?"));
        let [complaint] = &complaints(r#"@id("a") @mode("Audit")"#)[..] else { panic!("one complaint") };
        assert_eq!((&*complaint.message, &*complaint.help), ("`@mode` cannot be `Audit`", "did you mean `audit`?"));
        assert_eq!(complaints(r#"@id("a") @on_deny("explode") @reason @expires("soon")"#).len(), 3);
        assert_eq!(complaints(r#"@owner("o")"#)[0].message, "a policy has no `@id`");
    }

    #[test]
    fn a_policy_holds_through_the_day_on_which_it_expires() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let end: jiff::Timestamp = "2026-12-31T23:00:00Z".parse().unwrap();
        assert_eq!(end_of_day("2026-12-31", &zone), Some(end.as_millisecond()));
    }
}
