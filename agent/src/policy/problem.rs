//! What is wrong with policies, said with file, line and caret.

use std::fmt;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, Severity, SourceSpan};

use super::source::PolicyText;

/// One thing that is wrong in a policy file, or worth a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file's name.
    pub file: String,
    /// The line, from 1, where there is one.
    pub line: Option<usize>,
    /// What is wrong, in one line.
    pub message: String,
    /// The whole report, over several lines: message, place, source with a caret, help.
    pub report: String,
}

/// Everything that is wrong with a set of policies. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct LoadErrors(Vec<Problem>);

impl LoadErrors {
    pub(super) fn unless_none(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self(problems)) }
    }

    pub(super) fn one(problem: Problem) -> Self {
        Self(vec![problem])
    }

    /// Each problem, in the order of files.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for LoadErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            f.write_str(&problem.report)?;
        }
        Ok(())
    }
}

impl Problem {
    /// What Cedar says about `file`.
    pub(super) fn from_cedar(file: &PolicyText, diagnostic: &dyn Diagnostic) -> Self {
        let line = labels(diagnostic).first().map(|label| line_of(&file.text, label.offset()));
        let source = NamedSource::new(&file.name, file.text.clone());
        let mut report = String::new();
        let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
            .with_links(false)
            .with_width(120)
            .without_cause_chain();
        if handler.render_report(&mut report, &InFile { diagnostic, source }).is_err() {
            report = format!("{}: {diagnostic}\n", file.name);
        }
        Self { file: file.name.clone(), line, message: diagnostic.to_string(), report }
    }

    /// What concerns no place in a file.
    pub(super) fn general(file: &str, message: String) -> Self {
        Self { file: file.to_owned(), line: None, report: format!("{file}: {message}\n"), message }
    }

    /// What we say about a place in `file`.
    pub(super) fn at(file: &PolicyText, span: SourceSpan, message: String, help: String) -> Self {
        let labels = vec![LabeledSpan::underline(span)];
        Self::from_cedar(file, &miette::MietteDiagnostic::new(message).with_labels(labels).with_help(help))
    }
}

/// The line, from 1, of a byte of `text`.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

fn labels(diagnostic: &dyn Diagnostic) -> Vec<LabeledSpan> {
    diagnostic.labels().into_iter().flatten().collect()
}

/// Cedar's diagnostics carry the source but not the file's name.
#[derive(Debug)]
struct InFile<'a> {
    diagnostic: &'a dyn Diagnostic,
    source: NamedSource<String>,
}

impl fmt::Display for InFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.diagnostic, f)
    }
}

impl std::error::Error for InFile<'_> {}

impl Diagnostic for InFile<'_> {
    fn severity(&self) -> Option<Severity> {
        self.diagnostic.severity()
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.diagnostic.help()
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(&self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.diagnostic.labels()
    }
}
