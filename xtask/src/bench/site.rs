//! A site to measure on: a configuration, a secret and ordinary files, all in a temporary directory.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tempfile::TempDir;

/// A site whose tasks may do whatever their grant covers.
const GRANTS: &str = include_str!("../../../policies/examples/grants.cedar");

const REGISTRY: &str = "\
[[intent]]
id = \"measure\"

[[agent]]
id = \"bench\"
intents = [\"measure\"]
";

/// Directories and files; they go when this is dropped.
pub(super) struct Site(TempDir);

impl Site {
    /// A site with this many policies beside the few that it needs.
    pub(super) fn new(policies: usize) -> Result<Self> {
        let site = Self(tempfile::tempdir().context("cannot make a temporary directory")?);
        for directory in ["config/policies", "home", "elsewhere"] {
            fs::create_dir_all(site.path(directory))?;
        }
        let secrets = format!(
            "[[secret]]\nname = \"bench\"\nlabels = [\"secret/bench\"]\npaths = [\"{}\"]\n",
            site.secret().display()
        );
        let files = [
            ("config/agents.toml", REGISTRY),
            ("config/secrets.toml", secrets.as_str()),
            ("config/policies/grants.cedar", GRANTS),
            ("config/policies/many.cedar", &many(policies)),
            ("secret", "a secret\n"),
            ("elsewhere/ordinary", "an ordinary file\n"),
            ("beside", "another one\n"),
        ];
        for (name, content) in files {
            fs::write(site.path(name), content).with_context(|| format!("cannot write `{name}`"))?;
        }
        Ok(site)
    }

    /// A file of the catalogue.
    pub(super) fn secret(&self) -> PathBuf {
        self.path("secret")
    }

    /// A file that no catalogue speaks of.
    pub(super) fn ordinary(&self) -> PathBuf {
        self.path("elsewhere/ordinary")
    }

    /// Another one, in the directory of the secret.
    pub(super) fn beside(&self) -> PathBuf {
        self.path("beside")
    }

    /// Where the daemon listens.
    pub(super) fn socket(&self) -> PathBuf {
        self.path("run/writd.sock")
    }

    /// Where the daemon writes records.
    pub(super) fn records(&self) -> PathBuf {
        self.path("log/records.jsonl")
    }

    /// The daemon's command line.
    pub(super) fn flags(&self) -> Vec<(&'static str, PathBuf)> {
        vec![
            ("--config-dir", self.path("config")),
            ("--runtime-dir", self.path("run")),
            ("--state-dir", self.path("state")),
            ("--records", self.records()),
            ("--home", self.path("home")),
        ]
    }

    /// Where the daemon's own words go.
    pub(super) fn log(&self) -> PathBuf {
        self.path("writd.log")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Policies as a large site has them: teams with services and secrets of their own, and exceptions.
fn many(count: usize) -> String {
    let mut text = String::new();
    for number in 0..count {
        let _ = write!(text, "@id(\"site/{number}\")\n@reason(\"rule {number} of the site\")\n");
        let _ = match number % 4 {
            0 => write!(
                text,
                "permit (principal in AgentGroup::\"team-{number}\", action == Action::\"connect\", resource in \
                 Label::\"net/service-{number}\")\nwhen {{ resource.proto == \"tcp\" && resource.port == 443 }};\n"
            ),
            1 => write!(
                text,
                "permit (principal in AgentGroup::\"team-{number}\", action == Action::\"read\", resource in \
                 Label::\"secret/service-{number}\")\nwhen {{ principal has onBehalfOf && principal.depth < 3 }};\n"
            ),
            2 => write!(
                text,
                "forbid (principal in Intent::\"intent-{number}\", action == Action::\"connect\", resource)\nunless \
                 {{ resource in Label::\"net/service-{number}\" || resource.ip.isLoopback() }};\n"
            ),
            _ => write!(
                text,
                "forbid (principal, action == Action::\"connect\", resource in Label::\"net/service-{number}\")\nwhen \
                 {{ context.env.weekday > 5 && principal.touched.contains(Label::\"data/set-{number}\") }};\n"
            ),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_site_has_as_many_policies_as_asked() {
        let text = many(1000);
        assert_eq!(text.matches("@id(").count(), 1000);
        assert_eq!(text.matches("permit (").count(), 500);
        assert_eq!(many(0), "");
    }

    #[test]
    fn the_site_is_there_and_goes() {
        let site = Site::new(1).unwrap();
        let secret = site.secret();
        assert!(secret.is_file() && site.ordinary().is_file() && site.beside().is_file());
        drop(site);
        assert!(!secret.exists());
    }
}
