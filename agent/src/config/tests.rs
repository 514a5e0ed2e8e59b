//! Tests of the configuration.

use std::fs;

use clap::Parser;

use super::*;

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    flags: Flags,
}

fn flags(arguments: &[&str]) -> Flags {
    Command::try_parse_from([&["writd"], arguments].concat()).unwrap().flags
}

fn resolve(text: &str, arguments: &[&str]) -> Result<Config, ConfigError> {
    Config::resolve(&flags(arguments), Path::new("/etc/writ/writd.toml"), text, 2)
}

fn faults(text: &str) -> Vec<String> {
    resolve(text, &[]).unwrap_err().to_string().lines().map(str::to_owned).collect()
}

#[test]
fn nothing_said_gives_the_defaults() {
    let config = resolve("", &[]).unwrap();
    assert_eq!(config.config_dir, Path::new("/etc/writ"));
    assert_eq!(config.policies_dir, Path::new("/etc/writ/policies"));
    assert_eq!(config.secrets_file(), Path::new("/etc/writ/secrets.toml"));
    assert_eq!(config.runtime_dir, Path::new("/run/writ"));
    assert_eq!(config.state_dir, Path::new("/var/lib/writ"));
    assert_eq!(config.records, Path::new("/var/log/writ/records.jsonl"));
    assert!(!config.records_stdout);
    assert_eq!((config.require, config.mode), (Require::Any, Mode::Enforce));
    assert_eq!((config.hold_budget, config.stale_after), (Duration::from_millis(20), Duration::from_secs(3)));
    assert_eq!((config.default_ttl, config.max_ttl), (Duration::from_secs(1800), Duration::from_secs(86_400)));
    assert_eq!((config.max_outstanding.get(), config.max_contacts_per_second.get()), (64, 500));
    assert_eq!((config.homes, config.kernel_log), (Homes::Accounts(vec![]), LevelFilter::OFF));
}

#[test]
fn with_one_cpu_nothing_is_held_unless_the_file_says_so() {
    let file = Path::new("/etc/writ/writd.toml");
    let hold = |text: &str| Config::resolve(&Flags::default(), file, text, 1).unwrap().hold_budget;
    assert_eq!(hold(""), Duration::ZERO);
    assert_eq!(hold("hold_budget = '5ms'"), Duration::from_millis(5));
    assert_eq!(resolve("hold_budget = '0s'", &[]).unwrap().hold_budget, Duration::ZERO);
}

#[test]
fn the_file_is_heard_and_flags_go_before_it() {
    let text = "runtime_dir = '/r'\nstate_dir = '/s'\npolicies_dir = '/p'\nrecords = '/l'\nrecords_stdout = true\nrequire = 'reduced'\n\
        mode = 'audit'\nstale_after = '5s'\ndefault_ttl = '1h 30m'\nmax_ttl = '2h'\nmax_outstanding = 1\nmax_contacts_per_second = 7\nhomes = ['/srv/a']\nkernel_log = 'debug'\n";
    let config = resolve(text, &["--runtime-dir", "/flag", "--require", "full"]).unwrap();
    assert_eq!((config.runtime_dir.as_path(), config.state_dir.as_path()), (Path::new("/flag"), Path::new("/s")));
    assert_eq!((config.policies_dir.as_path(), config.records.as_path()), (Path::new("/p"), Path::new("/l")));
    assert!(config.records_stdout);
    assert_eq!((config.require, config.mode), (Require::Full, Mode::Audit));
    assert_eq!((config.default_ttl, config.max_ttl), (Duration::from_secs(5400), Duration::from_secs(7200)));
    assert_eq!((config.stale_after, config.max_outstanding.get()), (Duration::from_secs(5), 1));
    assert_eq!(config.max_contacts_per_second.get(), 7);
    assert_eq!(config.homes, Homes::Accounts(vec!["/srv/a".into()]));
    assert_eq!(config.kernel_log, LevelFilter::DEBUG);
}

#[test]
fn every_key_of_the_file_is_read() {
    let wrong: String = KEYS.iter().map(|key| format!("{key} = {{}}\n")).collect();
    let found = faults(&wrong);
    for key in KEYS {
        assert!(found.iter().any(|fault| fault.contains(&format!("`{key}` has"))), "{key}: {found:#?}");
    }
    assert_eq!(found.len(), KEYS.len());
}

#[test]
fn flags_only_homes_and_relative_paths() {
    let config = resolve("homes = ['/srv/a']", &["--home", "/h/a", "--home", "b", "--records", "r.jsonl"]).unwrap();
    let here = std::env::current_dir().unwrap();
    assert_eq!(config.homes, Homes::Only(vec!["/h/a".into(), here.join("b")]));
    assert_eq!(config.records, here.join("r.jsonl"));
    assert!(flags(&["--check"]).check);
    let empty = Flags { config_dir: Some(PathBuf::new()), ..Flags::default() };
    assert!(matches!(Config::load(&empty), Err(ConfigError::Path { .. })));
}

#[test]
fn a_short_longest_life_shortens_the_default() {
    assert_eq!(resolve("max_ttl = '5m'", &[]).unwrap().default_ttl, Duration::from_secs(300));
}

#[test]
fn every_fault_names_line_reason_and_next_step() {
    let text = "hold_buget = '5ms'\nhold_budget = '2s'\nstale_after = '1ms'\nmax_ttl = '1h'\ndefault_ttl = '2h'\n\
        max_outstanding = 0\nrecords = 'records.jsonl'\nrequire = 'most'\nmode = 'Audit'\nhomes = ['~']\nkernel_log = 'loud'\nrecords_stdout = 'yes'\n";
    let expected = [
        "/etc/writ/writd.toml:1:1: unknown key `hold_buget`; did you mean `hold_budget`?",
        "/etc/writ/writd.toml:2:15: `2s` is longer than `1s`, the most that is allowed here; shorten it",
        "/etc/writ/writd.toml:3:15: `1ms` is too short to tell a busy daemon from a lost one; write at least `500ms`",
        "/etc/writ/writd.toml:5:15: `2h` is longer than `1h`, the most that is allowed here; shorten it",
        "/etc/writ/writd.toml:6:19: `max_outstanding` has `0` where a whole number from 1 to 65536 is needed; write such a number",
        "/etc/writ/writd.toml:7:11: `records.jsonl` is not an absolute path; begin it with `/`",
        "/etc/writ/writd.toml:8:11: `most` is not known here; use one of `any`, `reduced`, `full`",
        "/etc/writ/writd.toml:9:8: `Audit` is not known here; use one of `enforce`, `audit`",
        "/etc/writ/writd.toml:10:10: `~` is not an absolute path; begin it with `/`",
        "/etc/writ/writd.toml:11:14: `loud` is not known here; use one of `off`, `error`, `warn`, `info`, `debug`, `trace`",
        "/etc/writ/writd.toml:12:18: `records_stdout` has `'yes'` where `true` or `false` is needed; write one of the two, without quotes",
    ];
    assert_eq!(faults(text), expected);
}

#[test]
fn absurd_lengths_of_time_are_refused() {
    for bad in ["-1s", "0s", "9999999h", "99999999999999999999s", "5", ""] {
        let found = faults(&format!("max_ttl = '{bad}'"));
        assert!(found.len() == 1 && found[0].contains(&format!("`{bad}`")), "{found:?}");
    }
}

#[test]
fn files_that_are_missing_malformed_or_unreadable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let here = flags(&["--config-dir", path]);
    assert_eq!(Config::load(&here).unwrap().config_dir, dir.path());
    fs::write(dir.path().join("writd.toml"), "mode = \n").unwrap();
    assert!(Config::load(&here).unwrap_err().to_string().contains("writd.toml:1:"));
    fs::write(dir.path().join("writd.toml"), b"mode = '\xff'").unwrap();
    assert!(matches!(Config::load(&here), Err(ConfigError::Read { .. })));
    let missing = Config::load(&flags(&["--config-dir", "/nowhere/writ"]));
    assert!(matches!(missing, Err(ConfigError::NoDirectory(_))));
}

#[test]
fn translations_are_ranges_by_name() {
    let text = "[[translation]]\nname = 'services'\nfrom = ['10.96.0.0/12']\nto = ['10.244.0.0/16', 'fd00:10::/64']\n";
    let translations = resolve(text, &[]).unwrap().translations;
    let [one] = &translations[..] else { panic!("{translations:?}") };
    assert_eq!((one.name.as_str(), one.from.len(), one.to.len()), ("services", 1, 2));
}

#[test]
fn faults_of_translations_are_named() {
    let text = "[[translation]]\nname = 'a'\nfrom = ['10.0.0.0/8']\nto = ['10.1.0.0/16']\n\
        [[translation]]\nname = 'b'\nfrom = ['10.2.0.0/16', 'nowhere']\nto = []\n";
    let expected = [
        "/etc/writ/writd.toml:5:1: the translation `b` has no `to`; list its ranges of addresses",
        "/etc/writ/writd.toml:7:9: `10.2.0.0/16` overlaps `10.0.0.0/8` in `from` of `a`; write each address once, in one translation",
        "/etc/writ/writd.toml:7:24: `nowhere` is neither an address nor a range of addresses; write `10.0.0.0/8`, `fc00::/7` or `192.0.2.1`",
    ];
    assert_eq!(faults(text), expected);
}
