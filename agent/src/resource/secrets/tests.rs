//! Tests of the secrets catalogue.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::domain::Label;
use crate::resource::class::NO_CLASS;
use crate::resource::{ProblemKind, Protected};

/// A home directory to fill.
struct Home {
    dir: TempDir,
}

impl Home {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        path
    }

    fn link(&self, name: &str, target: impl AsRef<Path>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, &path).unwrap();
        path
    }

    fn load(&self, site: &str) -> Secrets {
        Secrets::load("", Some((Path::new("secrets.toml"), site)), &[self.path("")]).unwrap()
    }

    fn scan(&self, site: &str) -> Scan {
        self.load(site).scan(&mut ClassTable::default())
    }

    /// The names below the home, directories with a slash behind.
    fn names(&self, scan: &Scan) -> Vec<String> {
        let name = |found: &Protected| {
            let relative = found.path.strip_prefix(self.path("")).unwrap_or(&found.path);
            relative.to_string_lossy().into_owned()
        };
        scan.files.iter().map(name).chain(scan.directories.iter().map(|found| name(found) + "/")).collect()
    }
}

fn entry(body: &str) -> String {
    format!("[[secret]]\nname = 'e'\nlabels = ['secret/e']\n{body}\n")
}

fn faults(site: &str) -> Vec<String> {
    let found = Secrets::load(SHIPPED, Some((Path::new("secrets.toml"), site)), &["/home/a".into()]);
    found.unwrap_err().0.iter().map(ToString::to_string).collect()
}

#[test]
fn the_shipped_catalogue_protects_what_it_promises() {
    let home = Home::new();
    let secrets = [
        ".ssh/id_ed25519",
        ".ssh/deploy",
        ".aws/credentials",
        ".config/gcloud/credentials.db",
        ".azure/token",
        ".kube/config",
        ".docker/config.json",
        ".npmrc",
        ".pypirc",
        ".git-credentials",
        ".netrc",
        ".config/google-chrome/Default/Login Data",
        ".config/chromium/Profile 1/Cookies-journal",
        ".mozilla/firefox/abc.default/logins.json",
        ".config/BraveSoftware/Brave-Browser/Default/Cookies",
        ".config/microsoft-edge/Default/Network/Cookies",
        ".env",
        "app/.env.local",
        "work/app/.env",
        ".bash_history",
        ".pgpass",
        ".my.cnf",
        ".terraform.d/credentials.tfrc.json",
        ".vault-token",
        ".config/gh/hosts.yml",
        ".claude/.credentials.json",
        ".codex/auth.json",
        ".password-store/x.gpg",
        ".gnupg/private-keys-v1.d/a.key",
    ];
    let free = [".ssh/id_ed25519.pub", ".ssh/known_hosts", ".ssh/config", "app/.env.example", ".bashrc", "notes.txt"];
    let (secrets, free) = (secrets.map(|name| home.file(name)), free.map(|name| home.file(name)));
    let catalogue = Secrets::load(SHIPPED, None, &[home.path("")]).unwrap();
    let mut table = ClassTable::default();
    let scan = catalogue.scan(&mut table);
    for path in &secrets {
        assert_ne!(scan.class_of(path), NO_CLASS, "{}", path.display());
        assert_eq!(catalogue.class_of_path(path, &mut table), scan.class_of(path), "{}", path.display());
    }
    for path in &free {
        assert_eq!(scan.class_of(path), NO_CLASS, "{}", path.display());
        assert_eq!(catalogue.class_of_path(path, &mut table), NO_CLASS, "{}", path.display());
    }
    for path in ["/etc/shadow", "/etc/ssl/private/x.pem", "/etc/letsencrypt/archive/a/privkey1.pem"] {
        assert_ne!(catalogue.class_of_path(Path::new(path), &mut table), NO_CLASS, "{path}");
    }
    assert!(catalogue.labels().iter().all(|label| label.as_str().starts_with("secret")));
    assert!(catalogue.labels().contains(&"secret/cloud".parse::<Label>().unwrap()));
}

#[test]
fn paths_globs_and_directories_are_found() {
    let home = Home::new();
    for name in ["a.key", "b.key", "b.txt", "x/a.key", "d/f", "d/e/g", "d/e/h/i", ".p"] {
        home.file(name);
    }
    let scan = home.scan(&entry("paths = ['~/.p', '~/absent']\nglobs = ['~/*.key']\ndirectories = ['~/d', '~/gone']"));
    assert_eq!(home.names(&scan), [".p", "a.key", "b.key", "d/", "d/e/", "d/e/h/"]);
    assert_eq!(scan.problems, []);
}

#[test]
fn two_stars_mean_any_depth_and_one_star_only_one_name() {
    let home = Home::new();
    for name in ["w/.env", "w/a/.env", "w/a/b/.env", "w/a/b/env", "v/.env", "v/a/.env"] {
        home.file(name);
    }
    let scan = home.scan(&entry("globs = ['~/w/**/.env', '~/v/*/.env']"));
    assert_eq!(home.names(&scan), ["v/a/.env", "w/.env", "w/a/.env", "w/a/b/.env"]);
}

#[test]
fn a_directory_is_no_match_of_a_glob_but_protects_below_as_a_path() {
    let home = Home::new();
    home.file("id_old/key");
    home.file("config.json/x");
    let scan = home.scan(&entry("globs = ['~/id_*']\npaths = ['~/config.json']"));
    assert_eq!(home.names(&scan), ["config.json/"]);
}

#[test]
fn excludes_take_out_names_paths_and_sub_directories() {
    let home = Home::new();
    for name in ["k/a", "k/a.pub", "k/b", "d/f", "d/cache/f", "d/cache/deep/f", "d/x.pub", "w/skip/.env", "w/keep/.env"]
    {
        home.file(name);
    }
    let site = entry(
        "globs = ['~/k/*', '~/w/**/.env']\ndirectories = ['~/d']\nexclude = ['*.pub', '~/k/b', 'cache', 'skip', '/*/*/nothing']",
    );
    let scan = home.scan(&site);
    assert_eq!(home.names(&scan), ["k/a", "w/keep/.env", "d/"]);
    let secrets = home.load(&site);
    let mut table = ClassTable::default();
    let mut class = |name: &str| secrets.class_of_path(&home.path(name), &mut table);
    assert_eq!(
        [class("k/a.pub"), class("k/b"), class("w/skip/.env"), class("d/cache/f"), class("d/cache/deep/f")],
        [0; 5]
    );
    // A file in a protected directory could be renamed to an excluded name: it stays protected.
    assert_eq!([class("k/a"), class("w/keep/.env"), class("d/f"), class("d/x.pub")], [1; 4]);
}

#[test]
fn excludes_do_not_concern_names_that_the_catalogue_spells_out() {
    let home = Home::new();
    home.file("build/k/a");
    home.file("build/d/f");
    let site = entry("globs = ['~/build/k/*']\ndirectories = ['~/build/d']\nexclude = ['build']");
    assert_eq!(home.names(&home.scan(&site)), ["build/k/a", "build/d/"]);
    let class = home.load(&site).class_of_path(&home.path("build/d/f"), &mut ClassTable::default());
    assert_eq!(class, 1);
    let site = entry("globs = ['~/build/k/a']\npaths = ['~/build/d/f']\nexclude = ['a', 'f']");
    assert!(home.scan(&site).files.is_empty(), "the last name is always matched against excludes");
}

#[test]
fn a_file_has_the_labels_of_every_entry_that_speaks_of_it() {
    let home = Home::new();
    let key = home.file("d/key");
    home.file("d/other");
    let alone = home.file("d/kk");
    let second = home.path("hard");
    fs::hard_link(&key, &second).unwrap();
    let site = "[[secret]]\nname = 'a'\nlabels = ['secret/a', 'data/pii']\ndirectories = ['~/d']\n\
        [[secret]]\nname = 'b'\nlabels = ['secret/b']\nglobs = ['~/d/k*']\n\
        [[secret]]\nname = 'c'\nlabels = ['secret/c']\npaths = ['~/hard']\n";
    let mut table = ClassTable::default();
    let scan = home.load(site).scan(&mut table);
    let labels = |path: &Path| {
        let labels = table.labels(scan.class_of(path)).unwrap();
        labels.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(labels(&key), "data/pii secret/a secret/b secret/c secret/several-names");
    assert_eq!(labels(&second), labels(&key), "one file has one class, whatever its names");
    assert_eq!(labels(&home.path("d/other")), "data/pii secret/a");
    assert_eq!(labels(&alone), "data/pii secret/a secret/b", "one name is not several");
    let secrets = home.load(site);
    assert_eq!(secrets.entries_of_path(&key).map(|name| name.to_string()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn a_catalogued_link_protects_what_it_leads_to() {
    let home = Home::new();
    let (file, dir) = (home.file("real/netrc"), home.path("real/gnupg"));
    home.file("real/gnupg/sub/key");
    home.link(".netrc", &file);
    home.link(".gnupg", &dir);
    home.link("keys/id", "../real/netrc");
    home.link("dangling", "nowhere");
    home.link("loop", "loop");
    let scan = home
        .scan(&entry("paths = ['~/.netrc', '~/dangling', '~/loop']\nglobs = ['~/keys/*']\ndirectories = ['~/.gnupg']"));
    assert_eq!(home.names(&scan), ["real/netrc", "real/gnupg/", "real/gnupg/sub/"]);
    assert_eq!(scan.problems.len(), 1, "{:?}", scan.problems);
    assert_eq!(scan.problems[0].path, home.path("loop"));
    assert!(scan.watch.contains(&home.path("real")) && scan.watch.contains(&home.path("")), "{:?}", scan.watch);
}

/// As an agent would lay it. Only root can give its own away; anybody else's is not root's anyway.
fn not_roots(path: &Path) {
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::lchown(path, Some(1000), Some(1000)).unwrap();
    }
}

#[test]
fn an_agent_cannot_add_a_label_to_a_secret_by_a_link() {
    let home = Home::new();
    let (aws, gpg, own) = (home.file("aws/credentials"), home.file("gnupg/key"), home.file("own"));
    for (index, target) in [&aws, &gpg, &own].into_iter().enumerate() {
        not_roots(target);
        not_roots(&home.link(&format!("app{index}/.env"), target));
    }
    not_roots(&home.path("gnupg"));
    not_roots(&home.link("env", home.path("gnupg")));
    let site = "[[secret]]\nname = 'env'\nlabels = ['secret/env']\nglobs = ['~/*/.env']\ndirectories = ['~/env']\n\
        [[secret]]\nname = 'aws'\nlabels = ['secret/aws']\npaths = ['~/aws/credentials']\n\
        [[secret]]\nname = 'gpg'\nlabels = ['secret/gpg']\ndirectories = ['~/gnupg']\n";
    let mut table = ClassTable::default();
    let scan = home.load(site).scan(&mut table);
    let labels =
        |path: &Path| Vec::from_iter(table.labels(scan.class_of(path)).unwrap().iter().map(ToString::to_string));
    assert_eq!([labels(&aws), labels(&gpg), labels(&own)], [["secret/aws"], ["secret/gpg"], ["secret/env"]]);
    assert_eq!(labels(&home.path("gnupg/not-there-yet")), ["secret/gpg"]);
    assert_eq!(scan.problems, []);
}

#[test]
fn a_link_to_what_belongs_to_somebody_else_is_not_followed() {
    let home = Home::new();
    let link = home.link(".netrc", "/bin/sh");
    not_roots(&link);
    let scan = home.scan(&entry("paths = ['~/.netrc']"));
    assert_eq!((scan.files.len(), scan.problems.len()), (0, 1));
    assert_eq!(scan.problems[0].kind, ProblemKind::ForeignLink(link));
}

#[test]
fn a_file_moved_out_of_a_protected_directory_was_known_by_itself() {
    let home = Home::new();
    let inside = home.file("d/e/key");
    let scan = home.scan(&entry("directories = ['~/d']"));
    assert_eq!(scan.inside.iter().map(|found| &found.path).collect::<Vec<_>>(), [&inside]);
    assert_eq!(scan.inside[0].class, scan.class_of(&home.path("d/e/new")));
}

#[test]
fn no_walk_goes_through_a_link_and_those_that_lead_out_are_told() {
    let home = Home::new();
    let outside = home.file("outside/secret");
    home.file("d/inside");
    home.file("covered");
    let out = home.link("d/out", home.path("outside"));
    let file = home.link("d/file", &outside);
    home.link("d/in", "inside");
    home.link("d/up", "..");
    home.link("d/covered", home.path("covered"));
    home.link("w/sub", home.path("outside"));
    let scan =
        home.scan(&entry("directories = ['~/d']\nglobs = ['~/w/*/secret', '~/w/**/secret']\npaths = ['~/covered']"));
    assert_eq!(home.names(&scan), ["covered", "d/"]);
    let told: Vec<_> = scan.problems.iter().map(|problem| problem.path.clone()).collect();
    assert_eq!(told, [file, out, home.path("d/up")]);
    assert_eq!(scan.problems[0].kind, ProblemKind::LeadsOut(outside));
    let text = scan.problems[0].to_string();
    assert!(text.contains("`e`") && text.contains("d/file") && text.contains("catalogue that path too"), "{text}");
}

#[test]
fn names_need_not_be_utf8() {
    let home = Home::new();
    let (name, dir) = (OsStr::from_bytes(b"id_\xff\xfe"), OsStr::from_bytes(b"d/\xe9"));
    let (key, inside) = (home.file(name), home.file(Path::new(dir).join("f")));
    let site = entry("globs = ['~/id_*']\ndirectories = ['~/d']");
    let mut table = ClassTable::default();
    let scan = home.load(&site).scan(&mut table);
    assert_eq!((scan.class_of(&key), scan.class_of(&inside)), (1, 1));
    assert_eq!(home.load(&site).class_of_path(&key, &mut table), 1);
}

#[test]
fn pipes_are_told_and_sockets_passed_over() {
    let home = Home::new();
    let pipe = home.path(".env");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(home.path("agent.sock")).unwrap();
    let scan = home.scan(&entry("globs = ['~/*', '~/.env']"));
    assert_eq!(home.names(&scan), [] as [&str; 0]);
    assert!(scan.problems.iter().all(|p| p.path == pipe && p.kind == ProblemKind::NotAFile("named pipe")));
    assert!(!scan.problems.is_empty());
}

#[test]
fn walks_are_bounded_and_say_so() {
    let home = Home::new();
    for name in ["a/1", "a/2", "a/3", "a/4", "b/1", "d/d/d/d/f"] {
        home.file(name);
    }
    let secrets = home.load(&entry("globs = ['~/a/*', '~/b/*']\ndirectories = ['~/d']"));
    let scan = secrets.scan_within(Limits { names: 3, depth: 2, problems: 1 }, &mut ClassTable::default());
    // Sub-directories come first; each pattern has a budget of its own, so that one full directory hides no other.
    assert_eq!(scan.files.len(), 3 + 1);
    assert_eq!(home.names(&scan)[4..], ["d/", "d/d/", "d/d/d/"]);
    assert_eq!((scan.problems.len(), scan.problems_left_out), (1, 1));
    assert_eq!(scan.problems[0].kind, ProblemKind::TooDeep(2));
}

#[test]
fn a_rescan_tells_new_replaced_and_vanished_files() {
    let home = Home::new();
    let (kept, gone) = (home.file("k/kept"), home.file("k/gone"));
    let secrets = home.load(&entry("globs = ['~/k/*', '~/later/*']\ndirectories = ['~/d']"));
    let mut table = ClassTable::default();
    let before = secrets.scan(&mut table);
    assert!(secrets.scan(&mut table).changes_since(&before).is_empty());

    let temporary = home.file("k.tmp");
    fs::rename(&temporary, &kept).unwrap();
    fs::remove_file(&gone).unwrap();
    let new = home.file("later/new");
    let sub = home.file("d/sub/x");
    let after = secrets.scan(&mut table);
    let changes = after.changes_since(&before);
    let paths = |list: &[Protected]| list.iter().map(|found| found.path.clone()).collect::<Vec<_>>();
    assert_eq!(paths(&changes.files), [kept.clone(), new]);
    assert_eq!(paths(&changes.gone), [gone, kept]);
    assert_eq!(paths(&changes.inside), std::slice::from_ref(&sub));
    assert_eq!(paths(&changes.directories), [home.path("d"), sub.parent().unwrap().to_owned()]);
    assert!(changes.watch.contains(&home.path("later")));

    fs::remove_dir_all(home.path("d")).unwrap();
    let last = secrets.scan(&mut table);
    assert_eq!(last.changes_since(&after).gone.len(), 3);
    assert_eq!(last.problems, []);
}

#[test]
fn every_directory_on_the_way_is_watched() {
    let home = Home::new();
    home.file("there/x");
    let scan =
        home.scan(&entry("paths = ['~/.aws/credentials']\nglobs = ['~/there/sub/*']\ndirectories = ['~/gone/a/b']"));
    assert!(scan.watch.contains(&home.path("")) && scan.watch.contains(&home.path("there")), "{:?}", scan.watch);
}

#[test]
fn classes_keep_their_numbers_through_reloads() {
    let home = Home::new();
    let (a, b) = (home.file("a"), home.file("b"));
    let mut table = ClassTable::default();
    let one = |name: &str| format!("[[secret]]\nname = '{name}'\nlabels = ['secret/{name}']\npaths = ['~/{name}']\n");
    let first = home.load(&one("a")).scan(&mut table);
    let second = home.load(&(one("b") + &one("a"))).scan(&mut table);
    assert_eq!((first.class_of(&a), second.class_of(&a), second.class_of(&b)), (1, 1, 2));
}

#[test]
fn a_site_disables_and_replaces_shipped_entries() {
    let site = "disable = ['ssh-keys']\n[[secret]]\nname = 'ssh-keys'\nlabels = ['secret/own']\npaths = ['/k']\n";
    let secrets = Secrets::load(SHIPPED, Some((Path::new("s"), site)), &["/home/a".into()]).unwrap();
    let mut table = ClassTable::default();
    assert_eq!(secrets.class_of_path(Path::new("/home/a/.ssh/id_rsa"), &mut table), NO_CLASS);
    assert_eq!(secrets.class_of_path(Path::new("/k"), &mut table), 1);
}

#[test]
fn every_fault_names_line_reason_and_next_step() {
    let site = "disable = ['ssh-kyes']\n\n[[secret]]\nname = 'x'\nlabels = ['Secret']\nglobs = ['/*/.env', '**/.env', '/a/[b/c]', '/a/**/b/**/c', '/a/**', 'x']\n\
        [[secret]]\nlabels = ['secret/y']\npaths = ['~root/x', '/a/../b', '/a*', '/', \"/a\\u0000b\"]\n\
        [[secret]]\nname = 'aws'\nlable = ['secret/z']\nexclude = ['a/b', '']\n[[secrets]]\n";
    let expected = [
        "secrets.toml:1:12: no shipped entry is named `ssh-kyes`; did you mean `ssh-keys`?",
        "secrets.toml:5:11: `Secret` is not a label; use lower-case",
        "secrets.toml:6:10: `/*/.env` would search the whole file system; begin it with a directory",
        "secrets.toml:6:21: `**/.env` is not an absolute path; begin it with",
        "secrets.toml:6:32: `/a/[b/c]` is not a glob (unclosed character class",
        "secrets.toml:6:44: `/a/**/b/**/c` has `**` more than once; write one entry per place",
        "secrets.toml:6:60: `/a/**` ends in `**`; list the directory under `directories`",
        "secrets.toml:6:69: `x` is not an absolute path",
        "secrets.toml:7:1: the key `name` is missing; add",
        "secrets.toml:9:10: `~root/x` is not an absolute path",
        "secrets.toml:9:21: `/a/../b` has a `..`",
        "secrets.toml:9:32: `/a*` has a wildcard; list it under `globs`",
        "secrets.toml:9:39: `/` would search the whole file system",
        "secrets.toml:9:44: `/a\0b` has a `..` or a NUL",
        "secrets.toml:10:1: the entry has no `labels`; add",
        "secrets.toml:10:1: the entry protects nothing; add at least one",
        "secrets.toml:11:8: an entry named `aws` exists already; choose another name",
        "secrets.toml:12:1: unknown key `lable`; did you mean `labels`?",
        "secrets.toml:13:12: `a/b` is neither one name nor an absolute path",
        "secrets.toml:13:19: `` is neither one name nor an absolute path",
        "secrets.toml:14:3: unknown key `secrets`; did you mean `secret`?",
    ];
    let found = faults(site);
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\n{expected}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

/// A few short names, so that patterns often match.
fn tree() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[ab]{1,2}(/[ab]{1,2}){0,3}", 0..12)
}

fn pattern_text() -> impl Strategy<Value = String> {
    let part = || prop_oneof!["[ab]{1,2}", Just("*".to_owned()), Just("a*".to_owned()), Just("{a,bb}".to_owned())];
    let parts = prop::collection::vec(part(), 1..4);
    (parts, prop::option::of(0_usize..3)).prop_map(|(mut parts, deep)| {
        if let Some(at) = deep.filter(|at| *at < parts.len()) {
            parts.insert(at, "**".to_owned());
        }
        parts.join("/")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// The scan, the catalogue's words alone and globset's reading of the whole glob agree on every file.
    #[test]
    fn scan_words_and_globset_agree(
        names in tree(),
        globs in prop::collection::vec(pattern_text(), 1..3),
        exclude in prop::option::of("[ab]{1,2}"),
    ) {
        let home = Home::new();
        for name in &names {
            let path = home.path(name);
            // A name may already be a file where a directory is needed, or the other way round.
            if fs::create_dir_all(path.parent().unwrap()).is_ok() && !path.exists() {
                fs::write(path, "").unwrap();
            }
        }
        let list = globs.iter().map(|glob| format!("'~/{glob}'")).collect::<Vec<_>>().join(",");
        let out = exclude.iter().map(|name| format!("exclude = ['{name}']")).collect::<String>();
        let secrets = home.load(&entry(&format!("globs = [{list}]\n{out}")));
        let mut table = ClassTable::default();
        let scan = secrets.scan(&mut table);
        let whole: Vec<_> = globs.iter().map(|glob| {
            let fixed = glob.split('/').take_while(|name| name.chars().all(char::is_alphabetic)).count();
            let matcher = globset::GlobBuilder::new(glob).literal_separator(true).build().unwrap().compile_matcher();
            (matcher, fixed.min(glob.split('/').count() - 1))
        }).collect();
        for name in names.iter().filter(|name| home.path(name).is_file()) {
            let taken_out = |fixed: usize| name.split('/').skip(fixed).any(|part| Some(part) == exclude.as_deref());
            let naive = whole.iter().any(|(matcher, fixed)| matcher.is_match(name) && !taken_out(*fixed));
            let path = home.path(name);
            prop_assert_eq!(scan.class_of(&path) != NO_CLASS, naive, "{} {:?}", name, globs);
            prop_assert_eq!(secrets.class_of_path(&path, &mut table), scan.class_of(&path), "{} {:?}", name, globs);
        }
    }

    #[test]
    fn no_catalogue_panics(text in "([a-c]|\\[|\\]|=|\"|'|\n| |\\{|\\}|,|\\*|\\?|/|~|\\.|ä|globs|labels|secret|exclude){0,60}") {
        let _ = Secrets::load("", Some((Path::new("x"), &text)), &["/h".into()]);
        let _ = Secrets::load("", Some((Path::new("x"), &entry(&format!("globs = ['{text}']\nexclude = ['{text}']")))), &["/h".into()]);
    }
}
