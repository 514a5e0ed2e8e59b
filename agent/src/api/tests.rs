//! The server and the client against a loop that answers from a script, over a real socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_common::{DaemonLoss, Mode, TaskStatus};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::{Stream, StreamExt};

use super::types::*;
use super::{BindError, Client, ClientError, Command, Peer, Records, bind, routes, server};

const BACKLOG: usize = 4;

struct Daemon {
    _directory: TempDir,
    socket: PathBuf,
    records: broadcast::Sender<Arc<str>>,
    peers: mpsc::UnboundedReceiver<Peer>,
    shutdown: Option<oneshot::Sender<()>>,
    server: JoinHandle<std::io::Result<()>>,
}

impl Daemon {
    fn start() -> Self {
        Self::serving(nix::unistd::geteuid().as_raw(), true)
    }

    fn serving(uid: u32, answers: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run/writd.sock");
        let listener = bind(&socket).unwrap();
        let (commands, inbox) = mpsc::channel(8);
        let (seen, peers) = mpsc::unbounded_channel();
        tokio::spawn(answer(inbox, seen, answers));
        let lines = broadcast::Sender::new(BACKLOG);
        let records = Records { lines: lines.clone(), missed: |count| format!("missed {count}").into() };
        let (shutdown, stop) = oneshot::channel();
        let stop = async { drop(stop.await) };
        let server =
            server::serve_for(uid, Duration::from_millis(200), listener, commands, records, Box::new(|_| true), stop);
        let server = tokio::spawn(server);
        Self { _directory: directory, socket, records: lines, peers, shutdown: Some(shutdown), server }
    }

    fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    async fn stop(mut self) {
        self.shutdown.take();
        self.server.await.unwrap().unwrap();
    }

    /// Sends `head` and `body` as they are and returns the status line's code and the body.
    async fn raw(&self, head: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        let length = body.len();
        let request =
            format!("{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
        // The server may answer and close before it has read the whole of too large a body.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

/// Plays the daemon's loop.
async fn answer(mut inbox: mpsc::Receiver<Command>, seen: mpsc::UnboundedSender<Peer>, answers: bool) {
    let mut kept = Vec::new();
    while let Some(command) = inbox.recv().await {
        if !answers {
            kept.push(command);
            continue;
        }
        match command {
            Command::OpenTask { request, peer, reply } => {
                let _ = seen.send(peer);
                drop(reply.send(Ok(TaskView { agent: request.agent, argv: request.argv, ..task() })));
            }
            Command::RevokeTask { id, reply } => {
                drop(reply.send(Ok(TaskView { id, status: TaskStatus::Revoked, ..task() })));
            }
            Command::GetTask { id, reply } => {
                drop(reply.send(Err(ErrorBody::new(ErrorCode::NoTask, format!("no task `{id}`"), "list them"))));
            }
            Command::ListTasks { reply } => drop(reply.send(Ok(TasksView { tasks: vec![task()] }))),
            Command::Status { reply } => drop(reply.send(Ok(status()))),
            Command::Doctor { reply } => drop(reply.send(Ok(doctor()))),
            Command::Labels { reply } => drop(reply.send(Ok(labels()))),
            Command::Whois { query, reply } => {
                let view = WhoisView { protocol: query.protocol, peer: query.remote, ..whois() };
                drop(
                    reply.send(
                        query
                            .local
                            .map(|address| WhoisView { address, ..view })
                            .ok_or_else(|| ErrorBody::new(ErrorCode::AmbiguousConnection, "several", "name both ends")),
                    ),
                );
            }
            Command::Reload { reply } => drop(reply.send(Ok(ReloadView { generation: 2, policies: 5 }))),
        }
    }
}

pub(crate) fn task() -> TaskView {
    TaskView {
        id: "t-0000000000001".into(),
        agent: "coder".into(),
        intent: "fix-bug".into(),
        goal: Some("make it green".into()),
        on_behalf_of: Some("alice".into()),
        chain: vec![],
        argv: vec!["sh".into(), "-c".into(), "make test".into()],
        grant_read: vec!["secret/npm".into()],
        grant_connect: vec!["net/loopback".into()],
        status: TaskStatus::Active,
        mode: Mode::Enforce,
        on_daemon_loss: DaemonLoss::Deny,
        started_at: 1_700_000_000_000,
        expires_at: 1_700_001_800_000,
        ended_at: None,
        processes: 2,
        socket_mark: 0x2_0000,
        counts: CountsView { allowed: 3, denied: 1, would_denied: 0 },
        slot: 0,
        epoch: 1,
    }
}

pub(crate) fn status() -> StatusView {
    let row = |path: &str, guard: &str, state, detail: &str| CoverageView {
        path: path.into(),
        guard: guard.into(),
        state,
        detail: detail.into(),
        absent: false,
        next: None,
    };
    StatusView {
        version: "0.1.0".into(),
        pid: 42,
        uptime_s: 3700,
        tier: "reduced".into(),
        generation: 1,
        policies: PoliciesView { count: 12, loaded_at: 1_700_000_000_000, last_error: None },
        coverage: vec![
            row("connect tcp4", "cgroup connect4", CoverageState::Enforced, "a canary was refused"),
            row("unix sockets", "none", CoverageState::NotCovered, "needs BPF LSM"),
        ],
        tasks: TaskTotals { active: 1, total: 9 },
        processes: 2,
        rates: RatesView { decisions_per_s: 12.5, denies_per_s: 0.0 },
        counters: [("allowed".to_owned(), 3), ("busy".to_owned(), 0)].into(),
        losses: [("upcall_ring_full".to_owned(), 0)].into(),
        records: RecordsView { path: "/var/log/writ/records.jsonl".into(), failing: None },
        memory_kib: 20_480,
    }
}

pub(crate) fn doctor() -> DoctorView {
    let row = |path: &str, state, detail: &str, next: Option<&str>| CoverageView {
        path: path.into(),
        guard: "lsm file_open".into(),
        state,
        detail: detail.into(),
        absent: false,
        next: next.map(str::to_owned),
    };
    DoctorView {
        sound: false,
        faults: vec!["secret open (the canary was not refused)".into()],
        tier: "reduced".into(),
        promised: "full".into(),
        version: "0.1.0".into(),
        pid: 42,
        heartbeat_ms: 40,
        hold_budget_ms: 20,
        canary: CanaryView { rounds: 9, restarts: 1, took_us: 700, age_ms: 3 },
        host: host(),
        coverage: vec![
            row("connect tcp4", CoverageState::Enforced, "a canary is refused every second", None),
            row("secret open", CoverageState::NotCovered, "the canary was not refused", Some("write 1 to it")),
        ],
    }
}

pub(crate) fn host() -> HostView {
    HostView {
        kernel: "6.12.1".into(),
        lsm: Some("lockdown,yama,bpf".into()),
        ftrace: Some(false),
        btf: true,
        cgroup2: Some("/sys/fs/cgroup".into()),
        bpffs: None,
        fanotify: Some(true),
        cpus: 2,
    }
}

pub(crate) fn labels() -> LabelsView {
    LabelsView { read: vec!["secret/npm".into()], connect: vec!["net/dns".into(), "net/loopback".into()] }
}

pub(crate) fn whois() -> WhoisView {
    WhoisView {
        protocol: crate::domain::Protocol::Tcp,
        side: Side::Remote,
        address: "10.0.0.9:40412".parse().unwrap(),
        peer: "10.0.0.5:443".parse().unwrap(),
        mark: 0x2_0000,
        process: Some(ProcessView { pid: 42, exe: Some("/usr/bin/curl".into()), comm: "curl".into(), uid: 1000 }),
        task: task(),
    }
}

fn request() -> OpenTask {
    OpenTask {
        agent: "coder".into(),
        intent: "fix-bug".into(),
        goal: None,
        on_behalf_of: None,
        grant_read: vec![],
        grant_connect: vec![],
        ttl: Some("30m".into()),
        mode: Some(Mode::Audit),
        on_daemon_loss: None,
        argv: vec!["sh".into()],
        mark: MarkTarget::Caller,
    }
}

async fn next(lines: &mut (impl Stream<Item = Result<String, ClientError>> + Unpin)) -> Option<String> {
    let line = tokio::time::timeout(Duration::from_secs(5), lines.next()).await.expect("a line in time");
    line.map(|line| line.unwrap())
}

#[tokio::test]
async fn each_call_reaches_the_loop_and_brings_its_answer_back() {
    let mut daemon = Daemon::start();
    let client = daemon.client();
    let opened = client.open_task(&request()).await.unwrap();
    assert_eq!(opened, TaskView { argv: vec!["sh".into()], ..task() });
    let peer = Peer { pid: std::process::id(), uid: nix::unistd::geteuid().as_raw() };
    assert_eq!(daemon.peers.recv().await, Some(peer));
    let revoked = client.revoke_task("t-1/..%?").await.unwrap();
    assert_eq!((revoked.id.as_str(), revoked.status), ("t-1/..%?", TaskStatus::Revoked));
    assert_eq!(client.tasks().await.unwrap().tasks, [task()]);
    assert_eq!(client.status().await.unwrap(), status());
    assert_eq!(client.labels().await.unwrap(), labels());
    assert_eq!(client.reload().await.unwrap(), ReloadView { generation: 2, policies: 5 });
    let protocol = crate::domain::Protocol::Udp;
    let query = WhoisQuery { local: Some("[2001:db8::1]:80".parse().unwrap()), remote: whois().peer, protocol };
    let found = client.whois(&query).await.unwrap();
    assert_eq!((Some(found.address), found.peer, found.protocol), (query.local, query.remote, protocol));
    assert!(client.whois(&WhoisQuery { local: None, ..query }).await.is_err());
    let refused = client.task("t-9").await.unwrap_err();
    assert_eq!(refused.to_string(), "no task `t-9`; list them");
    daemon.stop().await;
}

#[tokio::test]
async fn bad_requests_are_refused_each_with_its_own_status_and_next_step() {
    let daemon = Daemon::start();
    let good = serde_json::to_string(&request()).unwrap();
    let unknown = good.replacen('{', "{\"grants\": [], ", 1);
    let mode = good.replace("\"audit\"", "\"loose\"");
    let large = "x".repeat(routes::MAX_BODY + 1);
    let cases = [
        ("POST /v1/tasks", "{", 400, "bad_request", "EOF"),
        ("POST /v1/tasks", "{}", 400, "bad_request", "missing field `agent`"),
        ("POST /v1/tasks", &unknown, 400, "bad_request", "unknown field `grants`"),
        ("POST /v1/tasks", &mode, 400, "bad_request", "`loose` is none of `enforce`, `audit`"),
        ("POST /v1/tasks", &large, 413, "bad_body", "length limit exceeded"),
        ("GET /v1/tasks/t-9", "", 404, "no_task", "no task `t-9`"),
        ("GET /v1/whois?local=10.0.0.1:1", "", 400, "bad_request", "missing field `remote`"),
        ("GET /v1/whois?remote=10.0.0.1", "", 400, "bad_request", "invalid socket address"),
        ("GET /v1/whois?remote=10.0.0.1:1&port=2", "", 400, "bad_request", "unknown field `port`"),
        ("GET /v1/nothing", "", 404, "no_route", "nothing at `/v1/nothing`"),
        ("DELETE /v1/tasks", "", 405, "bad_method", "does not take DELETE"),
    ];
    for (head, body, status, code, message) in cases {
        let (got, answer) = daemon.raw(head, body).await;
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((got, answer["error"].as_str()), (status, Some(code)), "{head}: {answer}");
        assert!(answer["message"].as_str().unwrap().contains(message), "{head}: {answer}");
        assert!(!answer["next"].as_str().unwrap().is_empty(), "{head}: {answer}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn only_the_one_uid_is_served() {
    let daemon = Daemon::serving(nix::unistd::geteuid().as_raw() + 1, true);
    let Err(ClientError::Refused(refusal)) = daemon.client().status().await else { panic!("served a stranger") };
    assert_eq!(refusal.error, ErrorCode::NotRoot);
    let refused = daemon.client().records().await.err().unwrap();
    assert!(refused.to_string().contains("run the command as root"), "{refused}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_loop_that_does_not_answer_is_a_timeout() {
    let daemon = Daemon::serving(nix::unistd::geteuid().as_raw(), false);
    let Err(ClientError::Refused(refusal)) = daemon.client().open_task(&request()).await else { panic!("answered") };
    assert_eq!(refusal.error, ErrorCode::Timeout);
    daemon.stop().await;
}

#[tokio::test]
async fn records_stream_until_the_daemon_stops_and_lag_is_told() {
    let daemon = Daemon::start();
    let mut lines = Box::pin(daemon.client().records().await.unwrap());
    for n in 0..BACKLOG + 3 {
        // On this one-threaded runtime nobody reads before the next await: three lines are overwritten.
        daemon.records.send(format!("line {n}").into()).unwrap();
    }
    assert_eq!(next(&mut lines).await.unwrap(), "missed 3");
    assert_eq!(next(&mut lines).await.unwrap(), "line 3");
    for n in 4..BACKLOG + 3 {
        assert_eq!(next(&mut lines).await.unwrap(), format!("line {n}"));
    }
    daemon.records.send("last".into()).unwrap();
    let stopped = tokio::time::Instant::now();
    daemon.stop().await;
    assert!(stopped.elapsed() < Duration::from_secs(1), "a stream kept the server");
    assert_eq!(next(&mut lines).await.unwrap(), "last");
    assert_eq!(next(&mut lines).await, None);
}

#[tokio::test]
async fn a_reader_that_goes_is_forgotten() {
    let daemon = Daemon::start();
    let lines = daemon.client().records().await.unwrap();
    assert_eq!(daemon.records.receiver_count(), 1);
    drop(lines);
    let gone = async {
        while daemon.records.receiver_count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the subscription ends with its connection");
    daemon.stop().await;
}

#[tokio::test]
async fn an_absent_daemon_is_told_with_the_way_to_start_it() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("writd.sock");
    let error = Client::new(&socket).status().await.unwrap_err().to_string();
    let expected = format!("no daemon at `{}`: there is no such socket; start it", socket.display());
    assert!(error.starts_with(&expected), "{error}");
    drop(bind(&socket).unwrap());
    let error = Client::new(&socket).status().await.unwrap_err().to_string();
    assert!(error.contains("nobody listens on the socket"), "{error}");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_one_in_use_is_not() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("writ/writd.sock");
    drop(bind(&socket).unwrap());
    let listener = bind(&socket).expect("nobody listens any more");
    assert_eq!(std::fs::metadata(&socket).unwrap().mode() & 0o7777, 0o600);
    let inode = std::fs::metadata(&socket).unwrap().ino();
    let error = bind(&socket).unwrap_err();
    assert!(matches!(error, BindError::InUse(_)), "{error}");
    assert!(error.to_string().contains("writd.sock` is already in use"), "{error}");
    assert_eq!(std::fs::metadata(&socket).unwrap().ino(), inode);
    drop(listener);
    let file = directory.path().join("writ/file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(bind(&file), Err(BindError::NotASocket(_))));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let open = directory.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = bind(&open.join("writd.sock")).unwrap_err().to_string();
    assert!(error.contains("mode 777"), "{error}");
}
