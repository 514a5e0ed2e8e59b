//! Attaching: which program guards what, tried one by one on this kernel.

use std::fs::File;
use std::os::fd::AsFd;

use aya::programs::links::{FdLink, LinkError};
use aya::programs::{
    BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, CgroupSockAddr, CgroupSockopt,
    CgroupSysctl, Lsm, Program, ProgramError, SockOps,
};
use aya::{Btf, Ebpf};

use super::link::Link;

/// One program and what it guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Guard {
    /// A marked process's child is marked before it runs.
    Fork,
    /// A marked process became another program.
    Exec,
    /// The last thread of a marked process has gone.
    Exit,
    /// Fails a fork that could not be marked (BPF LSM).
    TaskAlloc,
    /// Labels sockets and refuses kinds that policy has no word for.
    SockCreate,
    /// Refuses address families that policy has no word for (BPF LSM).
    SocketCreate,
    /// IPv4 connect.
    Connect4,
    /// IPv6 connect.
    Connect6,
    /// IPv4 datagrams of unconnected sockets.
    Sendmsg4,
    /// IPv6 datagrams of unconnected sockets.
    Sendmsg6,
    /// Packets of tasks that are over, and those that leave for where nothing was decided.
    Egress,
    /// Asks ahead for sockets that listen.
    Listening,
    /// Waiting for connections (BPF LSM).
    SocketListen,
    /// Socket options that would get packets past the rest.
    Setsockopt,
    /// Connecting sockets that a task did not make, or of kinds that no other guard sees (BPF LSM).
    SocketConnect,
    /// Sending on them (BPF LSM).
    SocketSendmsg,
    /// Accepting on them (BPF LSM).
    SocketAccept,
    /// Taking them in (BPF LSM).
    FileReceive,
    /// Who answered a question for names: IPv4.
    Recvmsg4,
    /// The same for IPv6.
    Recvmsg6,
    /// Whom a socket that asks for names is connected to: IPv4.
    Getpeername4,
    /// The same for IPv6.
    Getpeername6,
    /// Opening secret files (BPF LSM).
    FileOpen,
    /// Reading those that are open already (BPF LSM).
    FilePermission,
    /// Mapping them (BPF LSM).
    MmapFile,
    /// Taking them in (BPF LSM).
    SecretReceive,
    /// Links to secrets, and to what is the daemon's (BPF LSM).
    InodeLink,
    /// Renaming them (BPF LSM).
    InodeRename,
    /// Removing what is the daemon's (BPF LSM).
    InodeUnlink,
    /// The same for directories (BPF LSM).
    InodeRmdir,
    /// New files where the daemon's are (BPF LSM).
    InodeCreate,
    /// New directories there (BPF LSM).
    InodeMkdir,
    /// New symlinks there (BPF LSM).
    InodeSymlink,
    /// New nodes and sockets there (BPF LSM).
    InodeMknod,
    /// Cutting the daemon's files short (BPF LSM).
    PathTruncate,
    /// Memory and descriptors of processes that are not the task's (BPF LSM).
    PtraceAccess,
    /// Signals to the daemon (BPF LSM).
    TaskKill,
    /// Its scheduling (BPF LSM).
    TaskSetscheduler,
    /// Its priority (BPF LSM).
    TaskSetnice,
    /// Its limits (BPF LSM).
    TaskSetrlimit,
    /// bpf(2) (BPF LSM).
    Bpf,
    /// Labels unix sockets (BPF LSM).
    UnixLabel,
    /// Has the name of a unix socket that is connected to looked up in time (BPF LSM).
    UnixConnect,
    /// The same for datagrams; and nothing is sent on unix sockets by tasks that are over (BPF LSM).
    UnixSend,
    /// Connections to unix sockets, by who listens (BPF LSM).
    UnixStream,
    /// Datagrams to unix sockets, by who receives (BPF LSM).
    UnixDatagram,
    /// Capabilities (BPF LSM).
    Capable,
    /// New user namespaces (BPF LSM).
    UserNamespace,
    /// io_uring and userfaultfd (BPF LSM).
    AnonymousInode,
    /// New tun and tap devices (BPF LSM).
    TunCreate,
    /// Tun and tap devices that are there (BPF LSM).
    TunOpen,
    /// Kernel settings below /proc/sys.
    Sysctl,
}

#[derive(Clone, Copy)]
enum Kind {
    TracePoint,
    Cgroup,
    Lsm,
}

impl Guard {
    /// Every guard in the order of attaching: lineage and labels before what relies on them.
    pub const ALL: [Self; 52] = [
        Self::Exit,
        Self::TaskAlloc,
        Self::Fork,
        Self::Exec,
        Self::SockCreate,
        Self::SocketCreate,
        Self::Recvmsg4,
        Self::Recvmsg6,
        Self::Getpeername4,
        Self::Getpeername6,
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::Egress,
        Self::Listening,
        Self::SocketListen,
        Self::Setsockopt,
        Self::SocketConnect,
        Self::SocketSendmsg,
        Self::SocketAccept,
        Self::FileReceive,
        Self::FileOpen,
        Self::FilePermission,
        Self::MmapFile,
        Self::SecretReceive,
        Self::InodeLink,
        Self::InodeRename,
        Self::InodeUnlink,
        Self::InodeRmdir,
        Self::InodeCreate,
        Self::InodeMkdir,
        Self::InodeSymlink,
        Self::InodeMknod,
        Self::PathTruncate,
        Self::UnixLabel,
        Self::UnixConnect,
        Self::UnixSend,
        Self::UnixStream,
        Self::UnixDatagram,
        Self::Sysctl,
        Self::PtraceAccess,
        Self::TaskKill,
        Self::TaskSetscheduler,
        Self::TaskSetnice,
        Self::TaskSetrlimit,
        Self::Bpf,
        Self::Capable,
        Self::UserNamespace,
        Self::AnonymousInode,
        Self::TunCreate,
        Self::TunOpen,
    ];

    /// The program's name in the object.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Fork => "sched_process_fork",
            Self::Exec => "sched_process_exec",
            Self::Exit => "sched_process_exit",
            Self::TaskAlloc => "task_alloc",
            Self::SockCreate => "sock_create",
            Self::SocketCreate => "socket_create",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::Egress => "egress",
            Self::Listening => "listening",
            Self::SocketListen => "socket_listen",
            Self::Setsockopt => "setsockopt",
            Self::SocketConnect => "socket_connect",
            Self::SocketSendmsg => "socket_sendmsg",
            Self::SocketAccept => "socket_accept",
            Self::FileReceive => "file_receive",
            Self::Recvmsg4 => "recvmsg4",
            Self::Recvmsg6 => "recvmsg6",
            Self::Getpeername4 => "getpeername4",
            Self::Getpeername6 => "getpeername6",
            Self::FileOpen => "file_open",
            Self::FilePermission => "file_permission",
            Self::MmapFile => "mmap_file",
            Self::SecretReceive => "secret_receive",
            Self::InodeLink => "inode_link",
            Self::InodeRename => "inode_rename",
            Self::InodeUnlink => "inode_unlink",
            Self::InodeRmdir => "inode_rmdir",
            Self::InodeCreate => "inode_create",
            Self::InodeMkdir => "inode_mkdir",
            Self::InodeSymlink => "inode_symlink",
            Self::InodeMknod => "inode_mknod",
            Self::PathTruncate => "path_truncate",
            Self::PtraceAccess => "ptrace_access_check",
            Self::TaskKill => "task_kill",
            Self::TaskSetscheduler => "task_setscheduler",
            Self::TaskSetnice => "task_setnice",
            Self::TaskSetrlimit => "task_setrlimit",
            Self::Bpf => "bpf",
            Self::UnixLabel => "unix_label",
            Self::UnixConnect => "unix_connect",
            Self::UnixSend => "unix_send",
            Self::UnixStream => "unix_stream",
            Self::UnixDatagram => "unix_datagram",
            Self::Capable => "capable",
            Self::UserNamespace => "userns_create",
            Self::AnonymousInode => "inode_init_security_anon",
            Self::TunCreate => "tun_dev_create",
            Self::TunOpen => "tun_dev_open",
            Self::Sysctl => "sysctl",
        }
    }

    /// What it hooks on to. Several LSM programs may share a hook, so theirs have names of their own.
    const fn hook(self) -> &'static str {
        match self {
            Self::SecretReceive => "file_receive",
            Self::UnixLabel => "socket_post_create",
            Self::UnixConnect => "socket_connect",
            Self::UnixSend => "socket_sendmsg",
            Self::UnixStream => "unix_stream_connect",
            Self::UnixDatagram => "unix_may_send",
            other => other.program(),
        }
    }

    const fn kind(self) -> Kind {
        match self {
            Self::Fork | Self::Exec | Self::Exit => Kind::TracePoint,
            Self::TaskAlloc
            | Self::SocketCreate
            | Self::SocketListen
            | Self::SocketConnect
            | Self::SocketSendmsg
            | Self::SocketAccept
            | Self::FileReceive
            | Self::FileOpen
            | Self::FilePermission
            | Self::MmapFile
            | Self::SecretReceive
            | Self::InodeLink
            | Self::InodeRename
            | Self::InodeUnlink
            | Self::InodeRmdir
            | Self::InodeCreate
            | Self::InodeMkdir
            | Self::InodeSymlink
            | Self::InodeMknod
            | Self::PathTruncate
            | Self::PtraceAccess
            | Self::TaskKill
            | Self::TaskSetscheduler
            | Self::TaskSetnice
            | Self::TaskSetrlimit
            | Self::Bpf
            | Self::UnixLabel
            | Self::UnixConnect
            | Self::UnixSend
            | Self::UnixStream
            | Self::UnixDatagram
            | Self::Capable
            | Self::UserNamespace
            | Self::AnonymousInode
            | Self::TunCreate
            | Self::TunOpen => Kind::Lsm,
            _ => Kind::Cgroup,
        }
    }

    /// Whether the guard needs BPF LSM; the others are had on every host.
    pub const fn needs_lsm(self) -> bool {
        matches!(self.kind(), Kind::Lsm)
    }
}

/// Why a program could not be loaded or attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The object does not contain it.
    #[error("the eBPF object has no program `{0}`; run `cargo xtask build` again")]
    NoProgram(&'static str),
    /// The kernel would not have it.
    #[error("this kernel refuses the program `{program}`")]
    Refused {
        /// Program.
        program: &'static str,
        /// The kernel's answer, with the verifier's last words if it had any.
        #[source]
        source: Box<ProgramError>,
    },
    /// It cannot outlive the daemon.
    #[error("the program `{program}` cannot be pinned; start with `--no-pin` to go without")]
    Pin {
        /// Program.
        program: &'static str,
        /// The kernel's answer.
        #[source]
        source: Box<aya::pin::PinError>,
    },
}

/// What came of attaching: a guard is in force, or the reason why it is not.
pub type Guards = Vec<(Guard, Result<(), AttachError>)>;

/// Attaches the program of one guard. Dropping what is returned detaches it.
pub(super) fn attach(ebpf: &mut Ebpf, btf: &Btf, cgroup: &File, guard: Guard) -> Result<Link, AttachError> {
    let name = guard.program();
    let program = ebpf.program_mut(name).ok_or(AttachError::NoProgram(name))?;
    let result = match guard.kind() {
        Kind::TracePoint => attach_tracepoint(program, guard.hook(), btf).map(Link::Named),
        Kind::Lsm => attach_lsm(program, guard.hook(), btf).map(Link::Named),
        Kind::Cgroup => attach_cgroup(program, cgroup),
    };
    result.map_err(|error| AttachError::Refused { program: name, source: Box::new(without_empty_log(error)) })
}

/// A kernel that refuses before it verifies leaves no log: then its error alone says all there is.
fn without_empty_log(error: ProgramError) -> ProgramError {
    match error {
        ProgramError::LoadError { io_error, verifier_log } if verifier_log.to_string().is_empty() => {
            ProgramError::IOError(io_error)
        }
        other => other,
    }
}

fn attach_tracepoint(program: &mut Program, hook: &str, btf: &Btf) -> Result<FdLink, ProgramError> {
    let program: &mut BtfTracePoint = program.try_into()?;
    program.load(hook, btf)?;
    let id = program.attach()?;
    program.take_link(id).map(FdLink::from)
}

fn attach_lsm(program: &mut Program, hook: &str, btf: &Btf) -> Result<FdLink, ProgramError> {
    let program: &mut Lsm = program.try_into()?;
    program.load(hook, btf)?;
    let id = program.attach()?;
    program.take_link(id).map(FdLink::from)
}

/// `Single` is right: cgroup links are attached beside others whatever this says, and `AllowMultiple` is refused with links.
const MODE: CgroupAttachMode = CgroupAttachMode::Single;

fn attach_cgroup(program: &mut Program, cgroup: &File) -> Result<Link, ProgramError> {
    match program {
        Program::CgroupSock(program) => attach_sock(program, cgroup).map(Link::Named),
        Program::CgroupSockAddr(program) => attach_sock_addr(program, cgroup).map(Link::Named),
        Program::CgroupSkb(program) => attach_skb(program, cgroup).map(Link::Named),
        Program::SockOps(program) => attach_sock_ops(program, cgroup).map(Link::Named),
        Program::CgroupSysctl(program) => attach_sysctl(program, cgroup),
        Program::CgroupSockopt(program) => attach_sockopt(program, cgroup),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn attach_sock(program: &mut CgroupSock, cgroup: &File) -> Result<FdLink, ProgramError> {
    program.load()?;
    let id = program.attach(cgroup, MODE)?;
    as_link(FdLink::try_from(program.take_link(id)?))
}

fn attach_sock_addr(program: &mut CgroupSockAddr, cgroup: &File) -> Result<FdLink, ProgramError> {
    program.load()?;
    let id = program.attach(cgroup, MODE)?;
    as_link(FdLink::try_from(program.take_link(id)?))
}

fn attach_skb(program: &mut CgroupSkb, cgroup: &File) -> Result<FdLink, ProgramError> {
    program.load()?;
    let id = program.attach(cgroup, CgroupSkbAttachType::Egress, MODE)?;
    as_link(FdLink::try_from(program.take_link(id)?))
}

fn attach_sock_ops(program: &mut SockOps, cgroup: &File) -> Result<FdLink, ProgramError> {
    program.load()?;
    let id = program.attach(cgroup, MODE)?;
    as_link(FdLink::try_from(program.take_link(id)?))
}

fn attach_sockopt(program: &mut CgroupSockopt, cgroup: &File) -> Result<Link, ProgramError> {
    program.load()?;
    Link::setsockopt(program.fd()?.as_fd(), cgroup)
}

/// Kernels before 5.7 attach without a link; none that has the rest does.
fn as_link(link: Result<FdLink, LinkError>) -> Result<FdLink, ProgramError> {
    link.map_err(|error| ProgramError::IOError(std::io::Error::other(error)))
}

fn attach_sysctl(program: &mut CgroupSysctl, cgroup: &File) -> Result<Link, ProgramError> {
    program.load()?;
    Link::sysctl(program.fd()?.as_fd(), cgroup)
}
