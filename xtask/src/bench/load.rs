//! A running `writ-load`, which does what is to be measured.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

/// One process; it ends when this is dropped.
pub(super) struct Load {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Load {
    /// Starts it; the command may also be one that becomes it.
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the load")?;
        let output = child.stdout.take().context("the load has no output")?;
        Ok(Self { input: child.stdin.take(), output: BufReader::new(output), child })
    }

    /// Has one command carried out; the numbers of its answer.
    pub(super) fn ask(&mut self, command: &str) -> Result<Vec<u64>> {
        let input = self.input.as_mut().context("the load has no input")?;
        writeln!(input, "{command}").and_then(|()| input.flush()).context("the load has ended")?;
        let mut line = String::new();
        self.output.read_line(&mut line).context("the load does not answer")?;
        numbers(&line).with_context(|| format!("the load could not do `{command}`"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.input = None;
        // It ends with its input; what it ended with says nothing more.
        let _ = self.child.wait();
    }
}

/// The numbers of an answer: `ok` and numbers, or `error` and why.
fn numbers(line: &str) -> Result<Vec<u64>> {
    let Some(rest) = line.trim().strip_prefix("ok") else {
        bail!("it says `{}`", line.trim());
    };
    rest.split_whitespace().map(|word| word.parse().with_context(|| format!("`{word}` is no number"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::command;

    #[test]
    fn answers_are_numbers_or_an_error() {
        assert_eq!(numbers("ok 1 22 333\n").unwrap(), [1, 22, 333]);
        assert_eq!(numbers("ok\n").unwrap(), [] as [u64; 0]);
        assert!(numbers("ok 1 x\n").unwrap_err().to_string().contains("`x`"));
        assert!(numbers("error EPERM\n").unwrap_err().to_string().contains("`error EPERM`"));
        assert!(numbers("").is_err());
    }

    #[test]
    fn commands_are_answered_in_turn() {
        let mut load = Load::start(&mut command("sh", ["-c", "while read word n; do echo ok $n; done"])).unwrap();
        assert_eq!(load.ask("open 7").unwrap(), [7]);
        assert_eq!(load.ask("open 8").unwrap(), [8]);
    }
}
