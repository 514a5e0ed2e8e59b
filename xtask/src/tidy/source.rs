//! A Rust file with its code, its comments and its strings told apart.

use super::Finding;

/// A file of the repository. `code` and `comments` have the lines and columns of the file, with blanks for what is
/// neither; what stands in string literals is in neither.
pub(super) struct Source {
    /// From the root of the repository.
    pub(super) path: String,
    pub(super) text: String,
    pub(super) code: String,
    pub(super) comments: String,
}

impl Source {
    pub(super) fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let (code, comments) = split(&text);
        Self { path: path.into(), text, code, comments }
    }

    /// The code before the unit tests.
    pub(super) fn code_without_tests(&self) -> &str {
        self.code.split("#[cfg(test)]\nmod ").next().unwrap_or_default()
    }

    /// A finding at a byte offset of this file.
    pub(super) fn finding(&self, offset: usize, what: impl Into<String>) -> Finding {
        let before = self.text.bytes().take(offset);
        let line = 1 + before.filter(|byte| *byte == b'\n').count();
        Finding { path: self.path.clone(), line, what: what.into() }
    }

    /// A finding about the whole file.
    pub(super) fn finding_in_whole(&self, what: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line: 0, what: what.into() }
    }
}

/// The identifiers of `code`, each with its byte offset.
pub(super) fn identifiers(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.split(move |c| !is_part(c)).filter(|word| !word.is_empty()).map(|word| (offset_in(code, word), word))
}

/// Where `part`, a slice of `whole`, begins in it.
pub(super) fn offset_in(whole: &str, part: &str) -> usize {
    part.as_ptr() as usize - whole.as_ptr() as usize
}

/// Cuts the text into code, comments and strings.
fn split(text: &str) -> (String, String) {
    let (mut code, mut comments) = (String::new(), String::new());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (kind, length) = token(rest, first, code.chars().next_back());
        let (part, after) = rest.split_at(length.min(rest.len()));
        code.push_str(&if kind == Kind::Code { part.to_owned() } else { blank(part) });
        comments.push_str(&if kind == Kind::Comment { part.to_owned() } else { blank(part) });
        rest = after;
    }
    (code, comments)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Comment,
    Text,
}

/// What begins here and how many bytes it has.
fn token(rest: &str, first: char, before: Option<char>) -> (Kind, usize) {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    match first {
        '/' if rest.starts_with("//") => (Kind::Comment, rest.find('\n').unwrap_or(rest.len())),
        '/' if rest.starts_with("/*") => (Kind::Comment, rest.find("*/").map_or(rest.len(), |end| end + 2)),
        '"' => (Kind::Text, quoted_length(rest, '"')),
        'r' if !in_word && raw_length(rest).is_some() => (Kind::Text, raw_length(rest).unwrap_or(1)),
        '\'' if is_character(rest) => (Kind::Text, quoted_length(rest, '\'')),
        _ => (Kind::Code, first.len_utf8()),
    }
}

/// Tells a character literal from a lifetime.
fn is_character(rest: &str) -> bool {
    rest.starts_with("'\\") || rest.chars().nth(2) == Some('\'')
}

fn quoted_length(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + c.len_utf8();
        }
        escaped = c == '\\' && !escaped;
    }
    rest.len()
}

/// The length of a raw string, if one begins here.
fn raw_length(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix('r')?;
    let body = after.trim_start_matches('#');
    let hashes = after.len() - body.len();
    let content = body.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(content.find(&end).map_or(rest.len(), |at| 1 + hashes + 1 + at + end.len()))
}

/// As many bytes, with the line breaks and nothing else.
fn blank(text: &str) -> String {
    text.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_comments_are_no_code() {
        let source =
            Source::new("x.rs", "a(\"b // \\\" c\"); // d \"e\"\nf(r#\"g\"h\"#, '\"', 'x'); /* i\nj */ k::<'l>()");
        let words: Vec<&str> = identifiers(&source.code).map(|(_, word)| word).collect();
        assert_eq!(words, ["a", "f", "k", "l"]);
        let comments: Vec<&str> = identifiers(&source.comments).map(|(_, word)| word).collect();
        assert_eq!(comments, ["d", "e", "i", "j"]);
    }

    #[test]
    fn offsets_are_those_of_the_file() {
        let source = Source::new("x.rs", "\"ä\"\n/* ü */ word");
        let (offset, _) = identifiers(&source.code).next().unwrap();
        assert_eq!(source.text.get(offset..), Some("word"));
        assert_eq!(source.finding(offset, "").line, 2);
    }

    #[test]
    fn a_lifetime_or_an_open_string_ends_nothing_early() {
        let source = Source::new("x.rs", "fn a<'b>(c: &'b str) {} \"open");
        assert_eq!(identifiers(&source.code).last(), Some((16, "str")));
    }
}
