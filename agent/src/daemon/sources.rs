//! What the daemon reads: policies, registry and catalogues. Read whole or not at all, at start and on each reload.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::tz::TimeZone;

use super::DaemonError;
use super::threads::now;
use crate::config::{Config, Homes};
use crate::domain::text_file::read_text;
use crate::policy::{self, Policies};
use crate::resource::{Endpoints, Secrets, UnixListeners, endpoints, homes, secrets, unix};
use crate::task::Registry;

/// One reading.
pub(super) struct Sources {
    pub(super) registry: Registry,
    pub(super) secrets: Arc<Secrets>,
    pub(super) endpoints: Arc<Endpoints>,
    pub(super) unix: Arc<UnixListeners>,
    pub(super) policies: Arc<Policies>,
}

impl Sources {
    /// Reads everything.
    ///
    /// # Errors
    /// The first source with faults, with all of its faults.
    pub(super) fn read(config: &Config) -> Result<Self, DaemonError> {
        Ok(Self {
            registry: registry(&config.agents_file())?,
            secrets: Arc::new(secrets(config)?),
            endpoints: Arc::new(endpoints(&config.endpoints_file())?),
            unix: Arc::new(unix_listeners(config)?),
            policies: Arc::new(policies(&config.policies_dir)?),
        })
    }

    /// Logs what is not wrong but deserves a look.
    pub(super) fn warn(&self) {
        for problem in self.policies.warnings(now().millis()) {
            tracing::warn!("{}", problem.report.trim_end());
        }
    }
}

fn registry(file: &Path) -> Result<Registry, DaemonError> {
    match read_if_there(file)? {
        Some(text) => Ok(Registry::load(file, &text)?),
        None => Ok(Registry::empty(file)),
    }
}

fn secrets(config: &Config) -> Result<Secrets, DaemonError> {
    let homes = all_homes(config);
    let file = config.secrets_file();
    let site = read_if_there(&file)?;
    Ok(Secrets::load(secrets::SHIPPED, site.as_deref().map(|text| (file.as_path(), text)), &homes)?)
}

fn all_homes(config: &Config) -> Vec<PathBuf> {
    match &config.homes {
        Homes::Only(homes) => homes.clone(),
        Homes::Accounts(extra) => {
            homes::discover(&fs::read("/etc/passwd").unwrap_or_default(), Path::new("/home"), extra)
        }
    }
}

fn unix_listeners(config: &Config) -> Result<UnixListeners, DaemonError> {
    let file = config.unix_file();
    let site = read_if_there(&file)?;
    let site = site.as_deref().map(|text| (file.as_path(), text));
    Ok(UnixListeners::load(unix::SHIPPED, site, &all_homes(config))?)
}

fn endpoints(file: &Path) -> Result<Endpoints, DaemonError> {
    let site = read_if_there(file)?;
    Ok(Endpoints::load(endpoints::SHIPPED, site.as_deref().map(|text| (file, text)))?)
}

fn policies(directory: &Path) -> Result<Policies, DaemonError> {
    let site = policy::read_dir(directory)?;
    Ok(Policies::load(&policy::shipped(), &site, TimeZone::system())?)
}

fn read_if_there(file: &Path) -> Result<Option<String>, DaemonError> {
    match read_text(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DaemonError::Read(file.to_owned(), error)),
    }
}
