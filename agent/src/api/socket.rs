//! The socket's place in the file system.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use tokio::net::UnixListener;

/// Why the socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there.
    #[error(
        "the socket `{}` is already in use: another daemon listens on it; stop that one first \
         (`systemctl stop writd`), or choose another `--socket`",
        .0.display()
    )]
    InUse(PathBuf),
    /// Something else is there.
    #[error("`{}` is there and is not a socket; remove it, or choose another `--socket`", .0.display())]
    NotASocket(PathBuf),
    /// Others than root could replace the socket.
    #[error(
        "the directory `{}` of the socket may be written by others than root (owner {uid}, mode {mode:o}); \
         `chown root` and `chmod 755` it, or choose another `--socket`",
        path.display()
    )]
    OpenDirectory {
        /// The directory.
        path: PathBuf,
        /// Who owns it.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// The system refused.
    #[error(
        "cannot {what} `{}`; check that the daemon runs as root and that the file system is writable",
        path.display()
    )]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Listens on a socket at `path` that only root may connect to (mode 0600), in a directory that only root may write.
/// A missing directory is made (mode 0755); a socket that nobody listens on any more is replaced.
///
/// # Errors
/// [`BindError`]; a socket that is in use is left alone. Must be called within a tokio runtime.
pub fn bind(path: &Path) -> Result<UnixListener, BindError> {
    let failed = |what, source| BindError::Io { what, path: path.to_owned(), source };
    prepare_directory(path)?;
    remove_stale(path)?;
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(BindError::InUse(path.to_owned())),
        other => other.map_err(|error| failed("listen on", error))?,
    };
    // Between bind and chmod the socket has the umask's mode; the server asks the kernel for each peer's uid anyway.
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|error| failed("set the mode of", error))?;
    Ok(listener)
}

fn prepare_directory(path: &Path) -> Result<(), BindError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |what, source| BindError::Io { what, path: directory.to_owned(), source };
    let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
    made.map_err(|error| failed("make the directory", error))?;
    let meta = fs::metadata(directory).map_err(|error| failed("look at the directory", error))?;
    let ours = meta.uid() == 0 || meta.uid() == nix::unistd::geteuid().as_raw();
    if ours && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(BindError::OpenDirectory { path: directory.to_owned(), uid: meta.uid(), mode: meta.mode() & 0o7777 })
}

/// Removes a socket only once connect(2) has shown that nobody listens on it.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |what, source| BindError::Io { what, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", error)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match probe(path) {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(|error| failed("remove the stale socket", error)),
        Err(Errno::ENOENT) => Ok(()),
        // `EAGAIN` is a full backlog; whatever else it is, somebody may well be there.
        Ok(()) | Err(_) => Err(BindError::InUse(path.to_owned())),
    }
}

/// connect(2) that does not wait for room in the backlog of a daemon that hangs.
fn probe(path: &Path) -> nix::Result<()> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
}
