use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

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
}

#[test]
fn a_file_has_the_labels_of_every_entry_that_speaks_of_it() {
    let home = Home::new();
    let key = home.file("d/key");
    home.file("d/other");
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
    assert_eq!(labels(&key), "data/pii secret/a secret/b secret/c");
    assert_eq!(labels(&second), labels(&key), "one file has one class, whatever its names");
    assert_eq!(labels(&home.path("d/other")), "data/pii secret/a");
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
    assert_eq!(paths(&changes.directories), [home.path("d"), sub.parent().unwrap().to_owned()]);
    assert!(changes.watch.contains(&home.path("later")));

    fs::remove_dir_all(home.path("d")).unwrap();
    let last = secrets.scan(&mut table);
    assert_eq!(last.changes_since(&after).gone.len(), 2);
    assert_eq!(last.problems, []);
}

#[test]
fn places_that_do_not_exist_yet_are_watched_from_the_nearest_that_does() {
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
