//! The daemon's configuration: `writd.toml` and the command line, resolved once into values that are all there.

mod fields;
#[cfg(test)]
mod tests;
mod translation;

use std::io::{self, ErrorKind};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fields::{parse_hold, parse_level, parse_max_ttl, parse_mode, parse_path, parse_require, parse_stale};
use tracing::level_filters::LevelFilter;

pub use translation::Translation;

use crate::domain::Mode;
use crate::domain::duration::parse_duration;
use crate::domain::text_file::read_text;
use crate::domain::toml_text::{Reader, Table, TextErrors};

const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/writ";
const MAX_OUTSTANDING: i64 = 65_536;
const MAX_PROCESSES: i64 = 61_440;
const DEFAULT_PROCESSES: NonZeroU32 = NonZeroU32::new(61_440).unwrap();
const DEFAULT_OUTSTANDING: NonZeroU32 = NonZeroU32::MIN.saturating_add(63);
const MAX_CONTACTS: i64 = 1_000_000;
const DEFAULT_CONTACTS: NonZeroU32 = NonZeroU32::MIN.saturating_add(499);

const KEYS: &[&str] = &[
    "runtime_dir",
    "state_dir",
    "pin_dir",
    "policies_dir",
    "records",
    "records_stdout",
    "require",
    "mode",
    "hold_budget",
    "stale_after",
    "default_ttl",
    "max_ttl",
    "max_outstanding",
    "max_contacts_per_second",
    "max_processes",
    "homes",
    "kernel_log",
    "translation",
];

/// The least coverage that the daemon starts with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Require {
    /// Whatever this host can give.
    #[default]
    Any,
    /// Connections enforced in the kernel, secret reads at least by fanotify.
    Reduced,
    /// BPF LSM active and proven.
    Full,
}

/// Where home directories are known from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Homes {
    /// The passwd database and `/home`, and these as well.
    Accounts(Vec<PathBuf>),
    /// Only these (`--home`): for tests and demonstrations.
    Only(Vec<PathBuf>),
}

/// What the command line of `writd` can say. Flags go before the file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// Directory of writd.toml, policies and catalogues [default: /etc/writ]
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// Directory of the socket [default: /run/writ]
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// Directory of what outlives the daemon [default: /var/lib/writ]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory on a BPF file system of what the kernel keeps without the daemon [default: /sys/fs/bpf/writ]
    #[arg(long, value_name = "DIR")]
    pub pin_dir: Option<PathBuf>,
    /// Enforce only as long as the daemon runs
    #[arg(long, conflicts_with = "pin_dir")]
    pub no_pin: bool,
    /// File to which records are appended [default: /var/log/writ/records.jsonl]
    #[arg(long, value_name = "FILE")]
    pub records: Option<PathBuf>,
    /// Write records to standard output too
    #[arg(long)]
    pub records_stdout: bool,
    /// Refuse to start with less coverage than this
    #[arg(long, value_enum, value_name = "TIER")]
    pub require: Option<Require>,
    /// Check configuration, policies and catalogues, and exit
    #[arg(long)]
    pub check: bool,
    /// A home directory; replaces those of the host's accounts, can be given several times
    #[arg(long = "home", value_name = "DIR")]
    pub homes: Vec<PathBuf>,
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Directory of `writd.toml`, policies and catalogues.
    pub config_dir: PathBuf,
    /// Directory of the socket.
    pub runtime_dir: PathBuf,
    /// Directory of what outlives the daemon.
    pub state_dir: PathBuf,
    /// Directory of what the kernel keeps without the daemon; `None`: nothing.
    pub pin_dir: Option<PathBuf>,
    /// Directory of the site's policies.
    pub policies_dir: PathBuf,
    /// File to which records are appended.
    pub records: PathBuf,
    /// Whether records go to standard output too.
    pub records_stdout: bool,
    /// The least coverage to start with.
    pub require: Require,
    /// The mode of tasks that say none.
    pub mode: Mode,
    /// How long a first contact is held at most; zero on a host with one CPU, where holding would keep the daemon from
    /// answering.
    pub hold_budget: Duration,
    /// Without a heartbeat for so long, the daemon counts as lost.
    pub stale_after: Duration,
    /// Time to live of tasks that say none.
    pub default_ttl: Duration,
    /// Longest time to live that a task may have.
    pub max_ttl: Duration,
    /// First contacts of one task that may wait at the same time.
    pub max_outstanding: NonZeroU32,
    /// First contacts that one task may have in a second; more are refused without asking the daemon.
    pub max_contacts_per_second: NonZeroU32,
    /// Processes of tasks that may be alive at the same time, all tasks together; a fork beyond it does not survive.
    pub max_processes: NonZeroU32,
    /// Where home directories are known from.
    pub homes: Homes,
    /// How much the kernel programs log for debugging.
    pub kernel_log: LevelFilter,
    /// Where this host translates addresses.
    pub translations: Vec<Translation>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// `writd.toml` has faults.
    #[error(transparent)]
    Text(#[from] TextErrors),
    /// The file is there and cannot be read.
    #[error("cannot read `{}`; make it a file that root can read, or remove it", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// `--config-dir` names no directory.
    #[error("`{}` is not a directory; create it, or give another `--config-dir`", .0.display())]
    NoDirectory(PathBuf),
    /// A flag's path cannot be made absolute.
    #[error("`{}` is no usable path; give an absolute one", path.display())]
    Path {
        /// What was given.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

impl Config {
    /// Reads `writd.toml` in the configuration directory; without that file the defaults hold.
    ///
    /// # Errors
    /// [`ConfigError`], with every fault of the file.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let config_dir = flag_path(flags.config_dir.as_deref())?.unwrap_or_else(|| "/etc/writ".into());
        if flags.config_dir.is_some() && !config_dir.is_dir() {
            return Err(ConfigError::NoDirectory(config_dir));
        }
        let file = config_dir.join("writd.toml");
        let text = read_if_there(&file)?;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self::resolve(flags, &file, &text, cpus)
    }

    /// The site's secrets catalogue, which need not be there.
    pub fn secrets_file(&self) -> PathBuf {
        self.config_dir.join("secrets.toml")
    }

    /// The site's endpoints catalogue, which need not be there.
    pub fn endpoints_file(&self) -> PathBuf {
        self.config_dir.join("endpoints.toml")
    }

    /// The site's catalogue of unix listeners, which need not be there.
    pub fn unix_file(&self) -> PathBuf {
        self.config_dir.join("unix.toml")
    }

    /// The registry of agents, which need not be there.
    pub fn agents_file(&self) -> PathBuf {
        self.config_dir.join("agents.toml")
    }

    fn resolve(flags: &Flags, file: &Path, text: &str, cpus: usize) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(file, text);
        let document = reader.parse();
        let root = reader.root(&document);
        reader.check_keys(root, KEYS);
        let config_dir = file.parent().unwrap_or(Path::new("/")).to_owned();
        let (default_ttl, max_ttl) = read_ttls(&mut reader, root);
        let outstanding = reader.integer(root, "max_outstanding", 1..=MAX_OUTSTANDING);
        let contacts = reader.integer(root, "max_contacts_per_second", 1..=MAX_CONTACTS);
        let processes = reader.integer(root, "max_processes", 1..=MAX_PROCESSES);
        let pin_dir = read_pin_dir(&mut reader, root, flags)?;
        let mut path = |key: &str, flag: &Option<PathBuf>, default: PathBuf| -> Result<PathBuf, ConfigError> {
            let own = reader.parsed(root, key, parse_path);
            Ok(flag_path(flag.as_deref())?.or(own).unwrap_or(default))
        };
        let config = Self {
            runtime_dir: path("runtime_dir", &flags.runtime_dir, "/run/writ".into())?,
            state_dir: path("state_dir", &flags.state_dir, "/var/lib/writ".into())?,
            records: path("records", &flags.records, "/var/log/writ/records.jsonl".into())?,
            pin_dir,
            policies_dir: path("policies_dir", &None, config_dir.join("policies"))?,
            config_dir,
            records_stdout: reader.boolean(root, "records_stdout").unwrap_or(false) || flags.records_stdout,
            require: flags.require.or(reader.parsed(root, "require", parse_require)).unwrap_or_default(),
            mode: reader.parsed(root, "mode", parse_mode).unwrap_or(Mode::Enforce),
            hold_budget: reader.parsed(root, "hold_budget", parse_hold).unwrap_or_else(|| default_hold(cpus)),
            stale_after: reader.parsed(root, "stale_after", parse_stale).unwrap_or(Duration::from_secs(3)),
            default_ttl,
            max_ttl,
            max_processes: processes.and_then(to_non_zero).unwrap_or(DEFAULT_PROCESSES),
            max_outstanding: outstanding.and_then(to_non_zero).unwrap_or(DEFAULT_OUTSTANDING),
            max_contacts_per_second: contacts.and_then(to_non_zero).unwrap_or(DEFAULT_CONTACTS),
            homes: read_homes(&mut reader, root, &flags.homes)?,
            kernel_log: reader.parsed(root, "kernel_log", parse_level).unwrap_or(LevelFilter::OFF),
            translations: translation::read(&mut reader, root),
        };
        reader.finish()?;
        Ok(config)
    }
}

fn read_if_there(file: &Path) -> Result<String, ConfigError> {
    match read_text(file) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(ConfigError::Read { file: file.to_owned(), source }),
    }
}

/// The time to live that tasks have and the longest that they may have.
fn read_ttls(reader: &mut Reader<'_>, root: Table<'_>) -> (Duration, Duration) {
    let max = reader.parsed(root, "max_ttl", parse_max_ttl).unwrap_or(Duration::from_secs(24 * 3600));
    let default = reader.parsed(root, "default_ttl", |text| parse_duration(text, max));
    (default.unwrap_or(Duration::from_secs(1800)).min(max), max)
}

/// `--no-pin` and an empty `pin_dir` say that nothing is to outlive the daemon.
fn read_pin_dir(reader: &mut Reader<'_>, root: Table<'_>, flags: &Flags) -> Result<Option<PathBuf>, ConfigError> {
    let own =
        reader.parsed(root, "pin_dir", |text| if text.is_empty() { Ok(PathBuf::new()) } else { parse_path(text) });
    let flag = flag_path(flags.pin_dir.as_deref())?;
    let dir = flag.or(own).unwrap_or_else(|| DEFAULT_PIN_DIR.into());
    Ok((!flags.no_pin && !dir.as_os_str().is_empty()).then_some(dir))
}

fn read_homes(reader: &mut Reader<'_>, root: Table<'_>, only: &[PathBuf]) -> Result<Homes, ConfigError> {
    let extra = reader.parsed_list(root, "homes", parse_path);
    if only.is_empty() {
        return Ok(Homes::Accounts(extra));
    }
    let only: Result<Vec<_>, _> = only.iter().map(|home| flag_path(Some(home))).collect();
    Ok(Homes::Only(only?.into_iter().flatten().collect()))
}

/// With one CPU, a held process would keep the daemon from answering it.
fn default_hold(cpus: usize) -> Duration {
    if cpus > 1 { Duration::from_millis(20) } else { Duration::ZERO }
}

fn flag_path(path: Option<&Path>) -> Result<Option<PathBuf>, ConfigError> {
    let absolute =
        |path: &Path| std::path::absolute(path).map_err(|source| ConfigError::Path { path: path.to_owned(), source });
    path.map(absolute).transpose()
}

fn to_non_zero(number: i64) -> Option<NonZeroU32> {
    u32::try_from(number).ok().and_then(NonZeroU32::new)
}
