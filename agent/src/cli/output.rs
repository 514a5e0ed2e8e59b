//! Printing: text or JSON, to a standard output that may go away.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

use super::exit::Failure;

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    Text,
    /// The daemon's answer as one line of JSON.
    Json,
}

impl Output {
    /// Prints `answer`: `text` gives its form for people.
    pub(super) fn show<T: Serialize>(self, answer: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        let text = match self {
            Self::Text => text(answer),
            Self::Json => serde_json::to_string(answer).map_err(Failure::Json)? + "\n",
        };
        write_to(&mut io::stdout().lock(), &text)
    }
}

/// Says something to whoever reads standard error, if anybody does.
pub(super) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "writ: {text}");
}

/// A reader that has gone, such as `head`, has what it wanted.
fn write_to(out: &mut impl Write, text: &str) -> Result<(), Failure> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error_and_a_full_disk_is() {
        assert!(write_to(&mut Broken(io::ErrorKind::BrokenPipe), "x").is_ok());
        assert!(matches!(write_to(&mut Broken(io::ErrorKind::StorageFull), "x"), Err(Failure::Output(_))));
    }
}
