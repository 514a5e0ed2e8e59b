//! What the catalogue of unix listeners knows, and what it refuses.

use super::*;

const OWN: &str = r#"
[[listener]]
name = "exact"
labels = ["net/unix/test/exact"]
paths = ["/run/exact.sock", "~/own.sock"]
[[listener]]
name = "glob"
labels = ["net/unix/test/glob"]
paths = ["/run/user/*/bus", "/run/ex*.sock", "~/.dir/**/s"]
abstract = ["/tmp/dbus-*", "x"]
"#;

fn own() -> UnixListeners {
    UnixListeners::load(OWN, None, &[PathBuf::from("/home/a"), PathBuf::from("/srv/b")]).unwrap()
}

fn labels(listeners: &UnixListeners, name: &[u8]) -> String {
    listeners.labels_of(name).iter().map(Label::as_str).collect::<Vec<_>>().join(" ")
}

#[test]
fn names_are_known_by_the_bound_path() {
    let listeners = own();
    for (name, expected) in [
        (&b"/run/user/1000/bus"[..], "net/unix/test/glob"),
        (b"/var/run/user/1000/bus", "net/unix/test/glob"),
        (b"/run//user/./1000/bus", "net/unix/test/glob"),
        (b"/run/user/1000/x/bus", UNKNOWN),
        (b"/run/user/../user/1000/bus", UNKNOWN),
        (b"run/user/1000/bus", UNKNOWN),
        (b"/run/exact.sock", "net/unix/test/exact net/unix/test/glob"),
        (b"/home/a/own.sock", "net/unix/test/exact"),
        (b"/srv/b/.dir/x/y/s", "net/unix/test/glob"),
        (b"/home/c/own.sock", UNKNOWN),
        (b"\0/tmp/dbus-aB/c", "net/unix/test/glob"),
        (b"\0x\0\0\0", "net/unix/test/glob"),
        (b"\0xy", UNKNOWN),
        (b"x", UNKNOWN),
        (b"\0", UNKNOWN),
        (b"/tmp/dbus-aB", UNKNOWN),
        (b"/\xff\xfe", UNKNOWN),
        (b"", UNNAMED),
    ] {
        assert_eq!(labels(&listeners, name), expected, "{}", name.escape_ascii());
    }
}

#[test]
fn what_is_spelled_out_is_known_before_anybody_asks() {
    let listeners = own();
    let both = class_of(&listeners.labels_of(b"/run/exact.sock"));
    let mut exact: Vec<(&[u8], u32)> = listeners.exact().collect();
    exact.sort_unstable();
    let own = class_of(&one("net/unix/test/exact"));
    assert_eq!(
        exact,
        [
            (&b"/home/a/own.sock"[..], own),
            (b"/run/exact.sock", both),
            (b"/srv/b/own.sock", own),
            (b"/var/run/exact.sock", both),
        ]
    );
}

#[test]
fn classes_are_numbers_of_labels_alone() {
    assert_eq!([UNKNOWN, AGENT, UNNAMED].map(|label| class_of(&one(label))), [UNIX_UNKNOWN, UNIX_AGENT, UNIX_UNNAMED]);
    // Written down, since another daemon may have put it into the kernel's maps.
    assert_eq!(class_of(&one("net/unix/container/docker")), 1_136_766_026);
    let shipped = UnixListeners::load(SHIPPED, None, &[]).unwrap();
    let sets: HashSet<&Arc<LabelSet>> = shipped.classes().map(|(_, labels)| labels).collect();
    assert_eq!(sets.len(), shipped.classes().count(), "two sets of labels share a number");
    assert!(shipped.classes().all(|(class, labels)| class == class_of(labels) && class & CLASS_UNIX != 0));
}

#[test]
fn the_shipped_catalogue_knows_what_agents_reach_for() {
    let homes = [PathBuf::from("/home/a")];
    let listeners = UnixListeners::load(SHIPPED, None, &homes).unwrap();
    for (name, label) in [
        (&b"/run/docker.sock"[..], "net/unix/container/docker"),
        (b"/var/run/docker.sock", "net/unix/container/docker"),
        (b"/run/user/1000/podman/podman.sock", "net/unix/container/podman"),
        (b"/run/containerd/containerd.sock.ttrpc", "net/unix/container/containerd"),
        (b"/run/systemd/private", "net/unix/init/systemd"),
        (b"/run/user/1000/systemd/private", "net/unix/init/systemd"),
        (b"/run/systemd/notify", "net/unix/init/notify"),
        (b"/run/dbus/system_bus_socket", "net/unix/dbus/system"),
        (b"/run/user/0/bus", "net/unix/dbus/session"),
        (b"\0/tmp/dbus-Xy12", "net/unix/dbus/session"),
        (b"/run/systemd/resolve/io.systemd.Resolve", "net/unix/resolver/systemd"),
        (b"/var/run/nscd/socket", "net/unix/resolver/nscd"),
        (b"/run/systemd/journal/dev-log", "net/unix/log/syslog"),
        (b"/run/systemd/journal/stdout", "net/unix/log/journal"),
        (b"/tmp/ssh-AbC/agent.123", "net/unix/agent-socket/ssh"),
        (b"/home/a/.gnupg/S.gpg-agent", "net/unix/agent-socket/gpg"),
        (b"/tmp/.X11-unix/X0", "net/unix/display/x11"),
        (b"\0/tmp/.X11-unix/X0", "net/unix/display/x11"),
        (b"/tmp/tmux-1000/default", "net/unix/terminal/tmux"),
        (b"/run/user/1000/vscode-ipc-12ab.sock", "net/unix/editor/vscode"),
        (b"/var/run/postgresql/.s.PGSQL.5432", "net/unix/database/postgres"),
        (b"/run/writ/writd.sock", "net/unix/writ"),
    ] {
        assert_eq!(labels(&listeners, name), label, "{}", name.escape_ascii());
        assert!(listeners.labels().contains(&label.parse::<Label>().unwrap()));
    }
    assert!(
        ["net", "net/unix", UNKNOWN, AGENT]
            .iter()
            .all(|label| listeners.labels().contains(&label.parse::<Label>().unwrap()))
    );
}

#[test]
fn every_fault_is_named() {
    let text = r#"
[[listener]]
name = "bad"
labels = ["net/unix/x"]
paths = ["run/x", "/run/[x"]
abstract = ["@x"]
[[listener]]
name = "empty"
labels = ["net/unix/x"]
"#;
    let errors = UnixListeners::load("", Some((Path::new("unix.toml"), text)), &[]).unwrap_err().to_string();
    for part in ["unix.toml:5:", "`run/x`", "`/run/[x`", "`@x`", "names no listener"] {
        assert!(errors.contains(part), "{part} is not in {errors}");
    }
}
