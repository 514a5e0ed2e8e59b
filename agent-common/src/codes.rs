//! Closed lists that cross between kernel and daemon as small integers.

macro_rules! codes {
    ($(#[$meta:meta])* $name:ident: $repr:ty { $($(#[$vmeta:meta])* $variant:ident = $value:literal $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr($repr)]
        pub enum $name { $($(#[$vmeta])* $variant = $value,)+ }

        impl $name {
            /// Every value, in the order of its code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The value behind a code, if there is one.
            pub const fn from_code(code: $repr) -> Option<Self> {
                match code { $($value => Some(Self::$variant),)+ _ => None }
            }

            /// The integer that crosses between kernel and daemon.
            pub const fn code(self) -> $repr { self as $repr }

            /// The word that records and the command line use.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

codes! {
    /// What a task wanted to do.
    Action: u8 {
        /// Open a connection or send a datagram.
        Connect = 1 "connect",
        /// Open a secret file.
        Read = 2 "read",
        /// Create a socket.
        Socket = 3 "socket",
        /// Send on a socket that exists already.
        Send = 4 "send",
        /// Wait for connections.
        Listen = 5 "listen",
        /// Connect or send to a unix socket.
        ConnectUnix = 6 "connect_unix",
        /// Use a facility of the kernel that opens side doors: see [`Facility`].
        Use = 7 "use",
        /// Ask what addresses a name has.
        Resolve = 8 "resolve",
        /// Take in a descriptor that another process passes on.
        Receive = 9 "receive",
    }
}

codes! {
    /// What came of it.
    Effect: u8 {
        /// It went through.
        Allow = 1 "allow",
        /// It was refused.
        Deny = 2 "deny",
        /// Audit mode: it went through, and would have been refused.
        WouldDeny = 3 "would_deny",
    }
}

codes! {
    /// Why, in one word.
    Reason: u8 {
        /// A policy permitted or forbade it.
        Policy = 1 "policy",
        /// No policy permits it.
        NoPermit = 2 "no_permit",
        /// The task has ended.
        Ended = 3 "ended",
        /// The task's deadline has passed.
        Expired = 4 "expired",
        /// The task was revoked.
        Revoked = 5 "revoked",
        /// The daemon did not answer within the hold budget.
        Timeout = 6 "timeout",
        /// Too many first contacts were waiting already.
        Busy = 7 "busy",
        /// A policy failed to evaluate.
        Error = 8 "error",
        /// The task or the resource is not known to the policy engine.
        MissingEntity = 9 "missing_entity",
        /// The daemon has not been heard of for too long.
        DaemonLost = 10 "daemon_lost",
        /// The socket was not made by this task.
        ForeignSocket = 11 "foreign_socket",
        /// Policy has no word for this kind of socket.
        UnsupportedPath = 12 "unsupported_path",
        /// The question could not be handed to the daemon.
        UpcallLost = 13 "upcall_lost",
        /// The kernel program could not tell what is being asked for.
        Undecidable = 14 "undecidable",
        /// The packet would leave for another address than the one that was decided.
        Rerouted = 15 "rerouted",
        /// The question is not what its protocol says it must be.
        Malformed = 16 "malformed",
        /// The task asks more often, or for more, than it may.
        RateLimited = 17 "rate_limited",
        /// The name's address is one that this name may not have: loopback, private or metadata.
        PrivateAnswer = 18 "private_answer",
        /// It would blind or disable the enforcement.
        Tamper = 19 "tamper",
    }
}

codes! {
    /// Where a verdict came from.
    Source: u8 {
        /// The kernel's verdict map.
        Cache = 1 "cache",
        /// The daemon, while the process was held.
        Upcall = 2 "upcall",
        /// The kernel alone: task state, deadline, or a limit.
        Structural = 3 "structural",
        /// The daemon, after the fact (audit mode).
        After = 4 "after",
    }
}

codes! {
    /// Where a task stands.
    TaskStatus: u32 {
        /// The slot belongs to no task.
        Free = 0 "free",
        /// Running.
        Active = 1 "active",
        /// Its last process has gone, or it was closed.
        Ended = 2 "ended",
        /// Taken back by an operator.
        Revoked = 3 "revoked",
        /// Its deadline has passed. The kernel needs no such note: it compares the deadline itself.
        Expired = 4 "expired",
        /// Its last process has gone; what its TCP connections hold may still leave until the deadline.
        Draining = 5 "draining",
    }
}

codes! {
    /// Whether denials are enforced.
    Mode: u32 {
        /// Denials block.
        Enforce = 0 "enforce",
        /// Denials are recorded as `would_deny` and let through.
        Audit = 1 "audit",
    }
}

codes! {
    /// What a first contact gets while the daemon is lost.
    DaemonLoss: u32 {
        /// Deny, reason `daemon_lost`.
        Deny = 0 "deny",
        /// Allow, and record it.
        Allow = 1 "allow",
    }
}

codes! {
    /// What a task may use only where policy says so, since it opens a way around other guards.
    Facility: u32 {
        /// io_uring instances.
        IoUring = 1 "io_uring",
        /// userfaultfd(2), which stops the kernel in the middle of a copy.
        Userfaultfd = 2 "userfaultfd",
        /// New user namespaces, and with them all capabilities inside.
        UserNamespace = 3 "user_namespace",
        /// Socket options that make packets leave for other addresses than they are sent to.
        SourceRouting = 4 "source_routing",
        /// SO_MARK, by which gateways tell tasks apart.
        SocketMark = 5 "socket_mark",
        /// Kernel settings below /proc/sys.
        Sysctl = 6 "sysctl",
        /// Network devices that end in a process.
        Tun = 7 "tun",
        /// Programs, maps and links of bpf(2), by which the enforcement itself works: no policy can permit them.
        BpfObjects = 8 "bpf",
        /// Memory, registers, environment and descriptors of processes that are not the task's.
        ForeignProcess = 9 "foreign_process",
        /// Files by which the kernel is told what to do: sysfs, debugfs, the cgroup tree and their like.
        KernelFiles = 10 "kernel_files",
        /// Block devices and physical memory: what lies there is read behind the file systems' back.
        RawDevice = 11 "raw_device",
        /// The daemon's own configuration, policies, state, records and pins: no policy can permit them.
        Enforcement = 12 "enforcement",
        /// CAP_DAC_READ_SEARCH.
        DacReadSearch = 0x102 "cap_dac_read_search",
        /// CAP_NET_ADMIN.
        NetAdmin = 0x10c "cap_net_admin",
        /// CAP_NET_RAW.
        NetRaw = 0x10d "cap_net_raw",
        /// CAP_SYS_MODULE.
        SysModule = 0x110 "cap_sys_module",
        /// CAP_SYS_RAWIO.
        SysRawio = 0x111 "cap_sys_rawio",
        /// CAP_SYS_PTRACE.
        SysPtrace = 0x113 "cap_sys_ptrace",
        /// CAP_SYS_ADMIN.
        SysAdmin = 0x115 "cap_sys_admin",
        /// CAP_SYS_BOOT.
        SysBoot = 0x116 "cap_sys_boot",
        /// CAP_PERFMON.
        Perfmon = 0x126 "cap_perfmon",
        /// CAP_BPF.
        Bpf = 0x127 "cap_bpf",
        /// CAP_CHECKPOINT_RESTORE.
        CheckpointRestore = 0x128 "cap_checkpoint_restore",
    }
}

codes! {
    /// Named causes that the kernel counts per CPU.
    Counter: u32 {
        /// Decisions that ended in `allow`.
        Allowed = 0 "allowed",
        /// Decisions that ended in `deny`.
        Denied = 1 "denied",
        /// Decisions that ended in `would_deny`.
        WouldDenied = 2 "would_denied",
        /// Questions put to the daemon.
        Upcalls = 3 "upcalls",
        /// First contacts that ran out of hold budget.
        Timeouts = 4 "timeouts",
        /// First contacts refused because too many were waiting.
        Busy = 5 "busy",
        /// Questions lost because the upcall ring was full.
        UpcallRingFull = 6 "upcall_ring_full",
        /// Records of an allowed action lost because the record ring was full.
        RecordLostAllow = 7 "record_lost_allow",
        /// Records of a denied action lost because the record ring was full.
        RecordLostDeny = 8 "record_lost_deny",
        /// Records of an action that audit mode let through, lost because the record ring was full.
        RecordLostWouldDeny = 9 "record_lost_would_deny",
        /// Process events lost because the record ring was full.
        LifecycleLost = 10 "lifecycle_lost",
        /// Forks that failed or died because no further process could be marked.
        MarksFull = 11 "marks_full",
        /// Sockets that could not be given their label, and were refused.
        LabelFailed = 12 "label_failed",
        /// Packets dropped because their task is over.
        PacketsDropped = 13 "packets_dropped",
        /// Verdicts found in the kernel's map.
        CacheHits = 14 "cache_hits",
        /// First contacts refused because the daemon was lost.
        DaemonLost = 15 "daemon_lost",
        /// Path walks that ran out of steps before they reached a root.
        WalkTooDeep = 16 "walk_too_deep",
        /// Packets dropped because the kernel held no verdict for where they go; the answer serves the next one.
        WireMisses = 17 "wire_misses",
        /// Packets dropped because they would leave for another address than the one that was decided.
        Rerouted = 18 "rerouted",
        /// First contacts refused because their task had too many in a second.
        RateLimited = 19 "rate_limited",
    }
}
