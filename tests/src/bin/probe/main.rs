//! What an agent would do: one technique a run.
//!
//! `writ-probe WRAPPER.. ACTION ARGUMENTS`: each wrapper changes who acts (a child, a thread, a namespace), the action is
//! one attempt. Each attempt prints one line: `ok` or `errno NAME`. A wrapper that cannot be set up prints `setup NAME`.

mod dns;
mod doors;
mod files;
mod flow;
mod hands;
mod held;
mod lineage;
mod listen;
mod live;
mod net;
mod process;
mod scan;
mod session;
mod siege;
mod sockets;
mod surroundings;
mod unix;
mod uring;
mod wire;

use nix::errno::Errno;

/// What became of an attempt.
type Attempt<T = ()> = Result<T, Errno>;

/// What a session keeps between its actions.
#[derive(Default)]
struct State {
    flow: Option<std::os::fd::OwnedFd>,
    /// Unix sockets that are bound, and stay so.
    bound: Vec<std::os::fd::OwnedFd>,
    listener: Option<std::net::TcpListener>,
    live: Vec<std::os::fd::OwnedFd>,
    /// A file that was opened by an earlier action.
    held: Option<std::os::fd::OwnedFd>,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let ["serve"] = words[..] {
        return session::serve();
    }
    perform(&mut State::default(), &words);
}

/// Does what `words` say and prints what became of it.
fn perform(state: &mut State, words: &[&str]) {
    let wrapped = lineage::wrap(state, words).or_else(|| surroundings::wrap(state, words));
    match wrapped.or_else(|| process::special(words)).or_else(|| scan::special(words)) {
        Some(Ok(())) => {}
        Some(Err(error)) => println!("setup {error:?}"),
        None => say(attempt(state, words)),
    }
}

fn say(outcome: Attempt) {
    match outcome {
        Ok(()) => println!("ok"),
        Err(error) => println!("errno {error:?}"),
    }
}

fn attempt(state: &mut State, words: &[&str]) -> Attempt {
    let found = net::attempt(words).or_else(|| sockets::attempt(words)).or_else(|| unix::attempt(state, words));
    let found = found.or_else(|| dns::attempt(words));
    let found = found.or_else(|| files::attempt(words)).or_else(|| flow::attempt(state, words));
    let found = found.or_else(|| listen::attempt(state, words)).or_else(|| doors::attempt(words));
    let found = found.or_else(|| live::attempt(state, words)).or_else(|| wire::attempt(words));
    let found = found.or_else(|| hands::attempt(words)).or_else(|| held::attempt(state, words));
    found.unwrap_or_else(|| {
        eprintln!("writ-probe: `{}` is no action", words.join(" "));
        std::process::exit(64)
    })
}

/// A number among the words; a wrong one is a fault of the test.
fn number<T: std::str::FromStr>(word: &str) -> T {
    word.parse().unwrap_or_else(|_| {
        eprintln!("writ-probe: `{word}` is no number");
        std::process::exit(64)
    })
}
