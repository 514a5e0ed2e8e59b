//! What a daemon is started with.

use std::path::{Path, PathBuf};

use super::wait::slowness;

#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Lines of `writd.toml`.
    settings: Vec<String>,
    /// Tables of `writd.toml`, which come after its plain lines.
    tables: Vec<String>,
    /// Further files of the configuration directory: path, content.
    pub(crate) files: Vec<(String, String)>,
    /// Further arguments.
    pub(crate) arguments: Vec<String>,
    /// Whether what is attached outlives the daemon.
    pub(crate) pinned: bool,
    /// Where it is pinned, if not in the daemon's own place.
    pub(crate) pin_dir: Option<PathBuf>,
}

impl Options {
    pub(crate) fn setting(mut self, line: &str) -> Self {
        self.settings.push(line.to_owned());
        self
    }

    pub(crate) fn last(mut self, table: &str) -> Self {
        self.tables.push(table.to_owned());
        self
    }

    pub(crate) fn file(mut self, path: &str, content: &str) -> Self {
        self.files.push((path.to_owned(), content.to_owned()));
        self
    }

    pub(crate) fn pinned(mut self) -> Self {
        self.pinned = true;
        self
    }

    pub(crate) fn pinned_at(mut self, dir: &Path) -> Self {
        self.pin_dir = Some(dir.to_owned());
        self.pinned()
    }

    pub(crate) fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// The text of `writd.toml`. A busy host may keep the daemon from answering for longer than the default hold, and these
    /// tests ask what is decided, not how soon.
    pub(crate) fn settings(&self) -> String {
        let mut lines = self.settings.clone();
        if !lines.iter().any(|line| line.starts_with("hold_budget")) {
            let budget = if slowness() > 1 { "1s" } else { "200ms" };
            lines.push(format!("hold_budget = \"{budget}\""));
        }
        lines.extend(self.tables.iter().cloned());
        lines.push(String::new());
        lines.join("\n")
    }
}

pub(crate) const AGENTS: &str = r#"
[[group]]
id = "coding"
[[intent]]
id = "fix-bug"
[[intent]]
id = "review"
[[intent]]
id = "sandbox"
[[intent]]
id = "administer"
[[user]]
id = "alice"
[[agent]]
id = "coder"
groups = ["coding"]
owner = "alice"
[[agent]]
id = "other"
intents = ["review"]
"#;

pub(crate) const SECRETS: &str = r#"
[[secret]]
name = "test-file"
labels = ["secret/test/file"]
paths = ["~/file.key"]
[[secret]]
name = "test-glob"
labels = ["secret/test/glob"]
globs = ["~/keys/*.pem"]
[[secret]]
name = "test-directory"
labels = ["secret/test/directory"]
directories = ["~/vault"]
"#;

/// Where tests meet a marked process: under the label that most tasks are granted.
pub(crate) const UNIX: &str = r#"
[[listener]]
name = "test-meeting"
labels = ["test/open"]
paths = ["/**/meeting.sock"]
[[listener]]
name = "test-open"
labels = ["net/unix/test/open"]
paths = ["/**/open-*"]
abstract = ["writ-test-open-*"]
[[listener]]
name = "test-erroring"
labels = ["net/unix/test/erroring"]
paths = ["/**/erroring-*"]
[[listener]]
name = "test-shut"
labels = ["net/unix/test/shut"]
paths = ["/**/shut-*"]
abstract = ["writ-test-shut-*"]
"#;

pub(crate) const POLICIES: &str = r#"
@id("test/read")
@reason("the grant covers the secret")
permit (principal, action == Action::"read", resource) when { resource in principal.mayRead };

@id("test/connect")
@reason("the grant covers the endpoint")
permit (principal, action == Action::"connect", resource) when { resource in principal.mayConnect };

@id("test/unix")
@reason("the grant covers who listens")
permit (principal, action == Action::"connect_unix", resource) when { resource in principal.mayConnect };

@id("test/unix-erroring")
forbid (principal, action == Action::"connect_unix", resource in Label::"net/unix/test/erroring")
when { principal.assurance * 9223372036854775807 * 2 > 0 };

@id("test/unix-shut")
forbid (principal, action == Action::"connect_unix", resource in Label::"net/unix/test/shut");

@id("test/listen")
permit (principal, action == Action::"listen", resource)
when { resource in Label::"net/loopback" || resource in principal.mayConnect };

// A grant of this label stands for the leave to route.
@id("test/routes")
permit (principal, action == Action::"use", resource in Label::"kernel/source_routing")
when { principal.mayConnect.contains(Label::"test/routes") };

@id("test/start")
permit (principal, action in [Action::"start", Action::"delegate"], resource);

// What most tests need to bring a process into the surroundings that they ask about.
@id("test/surroundings")
permit (principal in Intent::"fix-bug", action == Action::"use", resource)
when { resource in [
    Label::"kernel/io_uring", Label::"kernel/user_namespace", Label::"kernel/sysctl", Label::"kernel/cap_sys_admin",
    Label::"kernel/cap_net_admin", Label::"kernel/cap_checkpoint_restore", Label::"kernel/cap_dac_read_search",
    Label::"kernel/kernel_files"
] };

@id("test/sandbox")
permit (principal in Intent::"sandbox", action == Action::"use", resource in Label::"kernel/user_namespace");

@id("test/administer")
permit (principal in Intent::"administer", action == Action::"use", resource in Label::"kernel");

@id("test/shut")
@reason("this endpoint is shut for everybody")
forbid (principal, action == Action::"connect", resource in Label::"test/shut");

@id("test/audited")
@mode("audit")
@reason("soon to be shut")
forbid (principal, action == Action::"connect", resource in Label::"test/audited");

@id("test/erroring")
forbid (principal, action == Action::"connect", resource in Label::"test/erroring")
when { resource.port * 9223372036854775807 > 0 };
"#;
