//! The ABI's closed lists as the words that JSON carries: `#[serde(with = "words")]`, or `words::option` for an [`Option`].

use agent_common::{DaemonLoss, Mode, TaskStatus};
use serde::{Deserialize, Deserializer, Serializer, de};

/// A closed list whose values have a word each.
pub trait Word: Copy + 'static {
    /// Every value.
    const WORDS: &'static [Self];

    /// The value's word.
    fn word(self) -> &'static str;

    /// The value that `text` names.
    ///
    /// # Errors
    /// A sentence that quotes `text` and lists the words there are.
    fn from_word(text: &str) -> Result<Self, String> {
        let found = Self::WORDS.iter().copied().find(|value| value.word() == text);
        found.ok_or_else(|| {
            let words: Vec<String> = Self::WORDS.iter().map(|value| format!("`{}`", value.word())).collect();
            format!("`{text}` is none of {}", words.join(", "))
        })
    }
}

macro_rules! word {
    ($($name:ty),+) => { $(
        impl Word for $name {
            const WORDS: &'static [Self] = Self::ALL;

            fn word(self) -> &'static str {
                self.as_str()
            }
        }
    )+ };
}

word!(Mode, DaemonLoss, TaskStatus);

/// Writes the word.
///
/// # Errors
/// The serializer's.
pub fn serialize<T: Word, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(value.word())
}

/// Reads the word.
///
/// # Errors
/// If it is no word of the list.
pub fn deserialize<'de, T: Word, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    T::from_word(&text).map_err(de::Error::custom)
}

/// The same where the word may be absent.
pub mod option {
    use super::{Deserialize, Deserializer, Serializer, Word, de};

    /// Writes the word or `null`.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<T: Word, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.serialize_some(value.word()),
            None => serializer.serialize_none(),
        }
    }

    /// Reads the word or `null`.
    ///
    /// # Errors
    /// If it is no word of the list.
    pub fn deserialize<'de, T: Word, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| T::from_word(&text).map_err(de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_not_in_the_list_is_quoted_beside_those_that_are() {
        assert_eq!(Mode::from_word("audit"), Ok(Mode::Audit));
        assert_eq!(Mode::from_word("loose").unwrap_err(), "`loose` is none of `enforce`, `audit`");
    }
}
