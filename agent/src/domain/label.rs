//! Labels: lower-case paths such as `secret/ssh/key` or `net/llm/openai`, the words in which grants and policies speak.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest label in bytes.
pub const MAX_LABEL_LEN: usize = 128;

/// One label. It stands for itself and everything below it: who is granted `secret/ssh` may read `secret/ssh/key`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(Arc<str>);

/// Several labels, in order.
pub type LabelSet = BTreeSet<Label>;

/// Why a text is not a label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Nothing there.
    #[error("a label is empty; write a path such as `secret/ssh/key`")]
    Empty,
    /// Longer than [`MAX_LABEL_LEN`].
    #[error("label `{0}...` is longer than {MAX_LABEL_LEN} bytes; shorten it")]
    TooLong(String),
    /// A character or an empty segment that labels do not have.
    #[error("`{0}` is not a label; use lower-case letters, digits, `.`, `_` and `-` in segments parted by `/`")]
    Malformed(String),
}

impl Label {
    /// The label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The labels above this one, nearest first: `a/b/c` gives `a/b`, `a`.
    pub fn ancestors(&self) -> impl Iterator<Item = Label> + '_ {
        self.0.rmatch_indices('/').map(|(end, _)| Label(Arc::from(self.0.get(..end).unwrap_or_default())))
    }

    /// Whether this label is `other` or lies above it.
    pub fn covers(&self, other: &Label) -> bool {
        other.0.strip_prefix(&*self.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

fn is_segment(segment: &str) -> bool {
    !segment.is_empty()
        && segment.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(LabelError::Empty);
        }
        if text.len() > MAX_LABEL_LEN {
            return Err(LabelError::TooLong(text.chars().take(32).collect()));
        }
        if !text.split('/').all(is_segment) {
            return Err(LabelError::Malformed(text.to_owned()));
        }
        Ok(Self(Arc::from(text)))
    }
}

impl TryFrom<String> for Label {
    type Error = LabelError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.0.as_ref().to_owned()
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestors_are_nearest_first() {
        let label: Label = "a/b/c".parse().unwrap();
        let above: Vec<String> = label.ancestors().map(String::from).collect();
        assert_eq!(above, ["a/b", "a"]);
    }

    #[test]
    fn a_label_covers_itself_and_what_is_below_but_no_mere_prefix() {
        let ssh: Label = "secret/ssh".parse().unwrap();
        assert!(ssh.covers(&ssh));
        assert!(ssh.covers(&"secret/ssh/key".parse().unwrap()));
        assert!(!ssh.covers(&"secret/sshd".parse().unwrap()));
        assert!(!ssh.covers(&"secret".parse().unwrap()));
    }

    #[test]
    fn malformed_labels_are_named() {
        for bad in ["", "/a", "a/", "a//b", "A", "a b", "ä", &"x".repeat(129)] {
            assert!(bad.parse::<Label>().is_err(), "{bad:?}");
        }
        let error = "Secret/x".parse::<Label>().unwrap_err().to_string();
        assert!(error.contains("`Secret/x`"), "{error}");
    }
}
