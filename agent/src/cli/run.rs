//! `writ run`: opens a task and becomes the command.
//!
//! The daemon marks this very process, by the id that the kernel gives for the other end of the connection, and answers
//! once it has read the mark back. Then this process executes the command in its own place: no wrapper is left, so exit
//! status, signals, terminal and job control are the command's own, and there was no moment in which it ran unmarked.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use agent_common::{DaemonLoss, Mode};
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::block_on;
use super::exit::Failure;
use super::output::say;
use crate::api::Client;
use crate::api::types::{MarkTarget, OpenTask, TaskView};
use crate::api::words::Word;
use crate::domain::duration::{DurationError, parse_duration};

/// Where the command finds its task's id.
pub const TASK_VARIABLE: &str = "WRIT_TASK";
/// Bytes of the command that records get to see; the command itself is not cut.
const MAX_ARGV: usize = 8 << 10;

/// The options of `writ run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Who runs: the id of a registered agent
    #[arg(long, value_name = "ID")]
    agent: String,
    /// What for: the id of a registered intent
    #[arg(long, value_name = "ID")]
    intent: String,
    /// What the task is to achieve, in free words: logged, never matched
    #[arg(long, value_name = "TEXT")]
    goal: Option<String>,
    /// The registered user on whose behalf it runs
    #[arg(long, value_name = "USER")]
    on_behalf_of: Option<String>,
    /// Labels that the task may read; repeat or part by commas (`writ labels` lists them)
    #[arg(long, value_name = "LABEL", value_delimiter = ',')]
    grant_read: Vec<String>,
    /// Labels that the task may connect to; repeat or part by commas (`writ labels` lists them)
    #[arg(long, value_name = "LABEL", value_delimiter = ',')]
    grant_connect: Vec<String>,
    /// How long it may run, such as 30m [default: the daemon's]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = ttl)]
    ttl: Option<String>,
    /// Whether denials block or are only recorded [default: the daemon's]
    #[arg(long, value_name = "MODE", value_parser = word::<Mode>())]
    mode: Option<Mode>,
    /// What a first contact gets while the daemon is lost [default: the daemon's]
    #[arg(long, value_name = "EFFECT", value_parser = word::<DaemonLoss>())]
    on_daemon_loss: Option<DaemonLoss>,
    /// Say the task's id on standard error
    #[arg(short, long)]
    verbose: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Returns only if the command was not started.
pub(super) fn run(args: RunArgs, client: &Client) -> Result<(), Failure> {
    let (program, rest) = args.command.split_first().map(|(program, rest)| (program.clone(), rest.to_vec())).unzip();
    let (program, rest) = (program.unwrap_or_default(), rest.unwrap_or_default());
    let name = program.to_string_lossy().into_owned();
    let verbose = args.verbose;
    let task =
        open(args, client).map_err(|cause| Failure::NotStarted { command: name.clone(), cause: cause.into() })?;
    if verbose {
        say(&format!("task {}", task.id));
    }
    // `exec` also undoes what the Rust runtime did to SIGPIPE, so that the command gets the default back.
    let error = Command::new(&program).args(rest).env(TASK_VARIABLE, task.id).exec();
    Err(not_executed(&program, error))
}

fn open(args: RunArgs, client: &Client) -> Result<TaskView, Failure> {
    require_one_thread()?;
    close_on_exec()?;
    let request = request(args);
    // The runtime is gone when this returns; what it had open was marked close-on-exec when it was made.
    block_on(client.open_task(&request))
}

fn request(args: RunArgs) -> OpenTask {
    OpenTask {
        agent: args.agent,
        intent: args.intent,
        goal: args.goal,
        on_behalf_of: args.on_behalf_of,
        grant_read: args.grant_read,
        grant_connect: args.grant_connect,
        ttl: args.ttl,
        mode: args.mode,
        on_daemon_loss: args.on_daemon_loss,
        argv: shown(&args.command),
        mark: MarkTarget::Caller,
    }
}

/// As many whole arguments as fit, and `...` for the others.
fn shown(command: &[OsString]) -> Vec<String> {
    let mut room = MAX_ARGV;
    let mut shown = Vec::new();
    for argument in command {
        let text = argument.to_string_lossy();
        let Some(left) = room.checked_sub(text.len() + 1) else {
            shown.push("...".to_owned());
            break;
        };
        room = left;
        shown.push(text.into_owned());
    }
    shown
}

/// A thread of this process, brought by a preloaded library, could have opened what the command then inherits.
fn require_one_thread() -> Result<(), Failure> {
    const THREADS: &str = "/proc/self/task";
    let threads = fs::read_dir(THREADS).map_err(|cause| Failure::Proc { path: THREADS.into(), cause })?.count();
    if threads == 1 { Ok(()) } else { Err(Failure::Threads(threads)) }
}

/// Sees to it that the command inherits descriptors 0, 1 and 2 and no other: a socket that was connected before the mark
/// is not judged by it.
fn close_on_exec() -> Result<(), Failure> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: the call takes three integers and only sets a flag on open descriptors; no memory is involved.
    let result = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(Failure::Descriptors(io::Error::last_os_error())) }
}

/// The system says "not found" of a missing interpreter too: a path that is there tells the two apart.
fn not_executed(program: &OsStr, cause: io::Error) -> Failure {
    let command = program.to_string_lossy().into_owned();
    let is_there = || command.contains('/') && Path::new(program).exists();
    match cause.kind() {
        io::ErrorKind::NotFound if is_there() => Failure::NoInterpreter(command),
        io::ErrorKind::NotFound => Failure::NotFound(command),
        _ => Failure::NotExecutable { command, cause },
    }
}

/// Refuses what no daemon takes; how long is too long the daemon knows.
fn ttl(text: &str) -> Result<String, DurationError> {
    parse_duration(text, Duration::MAX).map(|_| text.to_owned())
}

fn word<T: Word + Send + Sync>() -> impl TypedValueParser<Value = T> {
    let words = T::WORDS.iter().map(|value| value.word());
    PossibleValuesParser::new(words).try_map(|text| T::from_word(&text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(words: &[&str]) -> Result<RunArgs, String> {
        let words = [&["run", "--agent", "coder", "--intent", "fix-bug"], words].concat();
        Line::try_parse_from(words).map(|line| line.run).map_err(|error| error.to_string())
    }

    #[test]
    fn every_option_reaches_the_request() {
        let line = "--goal green --on-behalf-of alice --grant-read a/b,c --grant-read d --grant-connect net/dns \
                    --ttl 1h30m --mode audit --on-daemon-loss allow -v -- sh -c --ttl";
        let words: Vec<&str> = line.split_whitespace().collect();
        let args = parse(&words).unwrap();
        assert!(args.verbose);
        let expected = OpenTask {
            agent: "coder".into(),
            intent: "fix-bug".into(),
            goal: Some("green".into()),
            on_behalf_of: Some("alice".into()),
            grant_read: vec!["a/b".into(), "c".into(), "d".into()],
            grant_connect: vec!["net/dns".into()],
            ttl: Some("1h30m".into()),
            mode: Some(Mode::Audit),
            on_daemon_loss: Some(DaemonLoss::Allow),
            argv: vec!["sh".into(), "-c".into(), "--ttl".into()],
            mark: MarkTarget::Caller,
        };
        assert_eq!(request(args), expected);
    }

    #[test]
    fn bad_values_are_refused_before_the_daemon_is_asked() {
        let cases = [
            (["--ttl", "-5m", "--", "sh"], "`-5m` is negative"),
            (["--ttl", "0s", "--", "sh"], "`0s` is no time at all"),
            (["--ttl", "99999999999999999999h", "--", "sh"], "is not a length of time"),
            (["--mode", "loose", "--", "sh"], "[possible values: enforce, audit]"),
            (["--mode", "audti", "--", "sh"], "'audit'"),
            (["--on-daemon-loss", "maybe", "--", "sh"], "[possible values: deny, allow]"),
        ];
        for (words, expected) in cases {
            let error = parse(&words).unwrap_err();
            assert!(error.contains(expected), "{error}\nlacks {expected}");
        }
        assert!(parse(&[]).unwrap_err().contains("<COMMAND>"));
        assert!(parse(&["sh"]).is_err(), "the command comes after `--`");
    }

    #[test]
    fn a_missing_interpreter_is_not_a_missing_command() {
        let said = |program: &Path| {
            let error = Command::new(program).spawn().unwrap_err();
            let failure = not_executed(program.as_os_str(), error);
            (failure.code(), failure.to_string())
        };
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        fs::write(&script, "#!/no/such/interpreter\n").unwrap();
        assert_eq!(said(&script).0, 126, "it has no permission to be executed");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let (code, text) = said(&script);
        assert!(code == 126 && text.contains("its interpreter was not found; see its first line"), "{code} {text}");
        let (code, text) = said(&directory.path().join("other"));
        assert!(code == 127 && text.contains("was not found; check its name"), "{code} {text}");
        assert_eq!(said(Path::new("no-such-command-of-writ")).0, 127);
    }

    #[test]
    fn a_long_command_is_cut_between_arguments_for_records() {
        let long = "x".repeat(MAX_ARGV / 2);
        let command: Vec<OsString> = [long.as_str(), "a", long.as_str(), "b"].map(OsString::from).to_vec();
        assert_eq!(shown(&command), [long.as_str(), "a", "..."]);
    }
}
