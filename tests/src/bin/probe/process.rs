//! What is about the process itself and its surroundings.

use std::io::Write;

use nix::sys::signal::{Signal, raise};

use crate::net::errno;
use crate::{Attempt, number, siege};

/// Actions with an output of their own.
pub(super) fn special(words: &[&str]) -> Option<Attempt> {
    Some(match *words {
        ["exit", code] => std::process::exit(number(code)),
        ["kill-self", signal] => match Signal::try_from(number::<i32>(signal)) {
            Ok(signal) => raise(signal),
            Err(error) => Err(error),
        },
        ["copy"] => copy(),
        ["env", name] => {
            println!("{}", std::env::var(name).unwrap_or_default());
            Ok(())
        }
        ["pid"] => {
            println!("{}", std::process::id());
            Ok(())
        }
        ["descriptors"] => descriptors(),
        ["siege", ref targets @ ..] => siege::siege(targets),
        _ => return None,
    })
}

/// Standard input to standard output.
fn copy() -> Attempt {
    let copied = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::stdout().lock());
    copied.and_then(|_| std::io::stdout().flush()).map_err(|error| errno(&error))
}

/// The open descriptors above 2, but for the one that lists them.
fn descriptors() -> Attempt {
    let entries = std::fs::read_dir("/proc/self/fd").map_err(|error| errno(&error))?;
    let open = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let count = open.filter(|&fd| fd > 2).count().saturating_sub(1);
    println!("{count}");
    Ok(())
}
