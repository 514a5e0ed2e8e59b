//! The thread that looks at connections: those that a task has and may not have any more are destroyed, and those that somebody
//! asks about are found.
//!
//! It asks the kernel and waits for it, which neither the main loop nor a decision thread may do. Nothing rests on it but how soon
//! a program is told: the kernel's programs let nothing out on such a connection from the moment at which its task was over or
//! its verdict changed.
//!
//! What is to be cut is read off the kernel's own tables and not handed over: a look finds everything that is due, however many
//! orders for it came, and none can be lost.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use agent_common::maps::{ConnectKey, SLOT_CANARY, SLOT_DAEMON, SocketLabel};
use agent_common::{Action, TaskStatus};
use tokio::sync::mpsc;

use super::protect::chain;
use super::snapshot::address;
use super::threads::{Shared, endpoint_class, now, over};
use crate::api::types::{WhoisQuery, WhoisView};
use crate::api::{ErrorBody, ErrorCode, Reply};
use crate::decision::{Rows, TaskKey};
use crate::domain::resource::canonical as canonical_ip;
use crate::domain::{Effect, Mode, Protocol, Reason};
use crate::flow::{Diag, DiagError, Flow};
use crate::kernel::Maps;
use crate::policy::Class;
use crate::process::{held_sockets, net_namespaces};

/// A look was ordered since some task is over.
const OVER: u8 = 1;
/// A look was ordered since policy, or what it rests on, may say something else of connections.
const POLICY: u8 = 2;

/// Orders that may wait; looks need no place, only questions do.
const ORDERS: usize = 64;
/// News that may wait for the main loop.
const NEWS: usize = 256;
/// How long the thread waits before it looks whether it is to end.
const TURN: Duration = Duration::from_millis(100);
/// A listing is no snapshot: what it missed is found by the next. Looks end when one finds nothing more.
const ROUNDS: usize = 4;
/// Connections that one question may find.
const MAX_FOUND: usize = 16;

enum Order {
    /// See [`Flows::due`].
    Look,
    /// Somebody wants to know who has a connection.
    Who(WhoisQuery, Reply<WhoisView>),
}

/// What the thread has found.
pub(super) enum FlowNews {
    /// Connections that were cut.
    Cut(Vec<Cut>),
    /// Connections that were asked for; those of tasks only.
    Found(WhoisQuery, Vec<Flow>, Reply<WhoisView>),
}

/// A connection that its task may not have any more.
pub(super) struct Cut {
    pub(super) flow: Flow,
    pub(super) label: SocketLabel,
    pub(super) reason: Reason,
    /// The number of the policies behind it.
    pub(super) detail: u32,
    /// `Deny`, or `WouldDeny` in audit mode, in which it was left alone.
    pub(super) effect: Effect,
    /// Whether it is destroyed, and what went wrong.
    pub(super) destroyed: Result<bool, String>,
}

/// Orders to the thread.
#[derive(Clone)]
pub(super) struct Flows {
    due: Arc<AtomicU8>,
    orders: SyncSender<Order>,
}

impl Flows {
    /// A task is over: its connections are to end.
    pub(super) fn task_over(&self) {
        self.order(OVER);
    }

    /// Verdicts may have changed: connections whose destination is not allowed any more are to end.
    pub(super) fn verdicts_changed(&self) {
        self.order(POLICY);
    }

    fn order(&self, what: u8) {
        self.due.fetch_or(what, Ordering::AcqRel);
        // A full queue will wake the thread as well.
        let _ = self.orders.try_send(Order::Look);
    }

    /// Has a connection looked for; the answer comes as [`FlowNews::Found`], or at once if it cannot be had.
    pub(super) fn who(&self, asked: WhoisQuery, reply: Reply<WhoisView>) {
        if let Err(TrySendError::Full(Order::Who(_, reply)) | TrySendError::Disconnected(Order::Who(_, reply))) =
            self.orders.try_send(Order::Who(asked, reply))
        {
            let error = ErrorBody::new(ErrorCode::Busy, "too many connections are being looked for", "try again");
            drop(reply.send(Err(error)));
        }
    }
}

/// Starts the thread.
///
/// # Errors
/// If the system has no thread left.
pub(super) fn start(shared: Shared, maps: Maps) -> io::Result<(Flows, mpsc::Receiver<FlowNews>, JoinHandle<()>)> {
    let (orders, received) = sync_channel(ORDERS);
    let (news, told) = mpsc::channel(NEWS);
    let due = Arc::new(AtomicU8::new(0));
    let rows = Rows::new(Arc::clone(&shared.details), shared.patience);
    let mut worker = Worker {
        shared,
        maps,
        rows,
        due: Arc::clone(&due),
        orders: received,
        news,
        known: HashSet::new(),
        failing: None,
    };
    let thread = thread::Builder::new().name("flows".into()).spawn(move || worker.run())?;
    Ok((Flows { due, orders }, told, thread))
}

struct Worker {
    shared: Shared,
    maps: Maps,
    rows: Rows<Class>,
    due: Arc<AtomicU8>,
    orders: Receiver<Order>,
    news: mpsc::Sender<FlowNews>,
    /// What was dealt with and is still there: an audited connection, or a socket that outlives its connection.
    known: HashSet<(u64, Option<SocketAddr>)>,
    /// Why sockets could not be listed when this was last tried.
    failing: Option<String>,
}

impl Worker {
    fn run(&mut self) {
        while !self.shared.stopping() {
            match self.orders.recv_timeout(TURN) {
                Ok(Order::Look) => {}
                Ok(Order::Who(asked, reply)) => self.find(asked, reply),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            }
            match self.due.swap(0, Ordering::AcqRel) {
                0 => {}
                due => self.look(due),
            }
        }
    }

    fn look(&mut self, due: u8) {
        let mut seen = HashSet::new();
        for _ in 0..ROUNDS {
            let cuts = self.round(due, &mut seen);
            let again = cuts.iter().any(|cut| cut.destroyed == Ok(true));
            if !cuts.is_empty() {
                self.tell(FlowNews::Cut(cuts));
            }
            if !again {
                break;
            }
        }
        if self.failing.is_none() {
            self.known.retain(|(cookie, _)| seen.contains(cookie));
        }
    }

    /// Cuts what one listing of every namespace shows.
    fn round(&mut self, due: u8, seen: &mut HashSet<u64>) -> Vec<Cut> {
        let mut cuts = Vec::new();
        for (mut diag, flows) in self.listings(due) {
            for flow in flows {
                let Some(label) = flow.label.filter(|label| label.slot != SLOT_CANARY) else { continue };
                seen.insert(flow.cookie());
                cuts.extend(self.cut(&mut diag, flow, label, due));
            }
        }
        cuts
    }

    fn cut(&mut self, diag: &mut Diag, flow: Flow, label: SocketLabel, due: u8) -> Option<Cut> {
        let (reason, detail, mode) = self.verdict(&flow, &label, due)?;
        if !self.known.insert((flow.cookie(), flow.remote)) {
            return None;
        }
        // What is left of a socket whose connection is cut is not told of again.
        self.known.insert((flow.cookie(), None));
        let effect = if mode == Mode::Audit { Effect::WouldDeny } else { Effect::Deny };
        let destroyed = match effect {
            Effect::Deny => match diag.destroy(flow.connection) {
                Ok(()) => Ok(true),
                // It ended by itself, in between.
                Err(DiagError::Gone) => return None,
                Err(error) => Err(chain(&error)),
            },
            _ => Ok(false),
        };
        Some(Cut { flow, label, reason, detail, effect, destroyed })
    }

    /// Why a connection is to end, the number of the policies behind that, and its task's mode.
    fn verdict(&mut self, flow: &Flow, label: &SocketLabel, due: u8) -> Option<(Reason, u32, Mode)> {
        let (at, state) = (now(), self.maps.tasks.get(label.slot));
        let same = state.epoch == label.epoch;
        // As the program on the way out sees it: what belongs to no task any more is enforced.
        let mode = if same { Mode::from_code(state.mode) } else { None }.unwrap_or(Mode::Enforce);
        if let Some(reason) = over(&state, label.epoch, at.boot) {
            let drains = same && state.status == TaskStatus::Draining.code() && at.boot < state.deadline;
            return (!drains).then_some((reason, 0, mode));
        }
        if due & POLICY == 0 {
            return None;
        }
        let key = destination(flow, label)?;
        let snapshot = self.shared.snapshot.load_full();
        let task = snapshot.task(label.slot, label.epoch)?;
        // Connections outlive the name under which they were opened.
        let hosts = snapshot.names.remembered((label.slot, label.epoch), canonical_ip(address(&key)));
        let class = endpoint_class(&snapshot, &key, &hosts)?;
        let task = TaskKey { slot: label.slot, epoch: label.epoch, generation: task.generation };
        let answer = self.rows.answer(&*snapshot, task, class, at);
        let denied = answer.decision.effect == Effect::Deny;
        denied.then_some((answer.decision.reason, answer.verdict.detail, mode))
    }

    /// The sockets of each network namespace that a process of a task is in, the host's first.
    fn listings(&mut self, due: u8) -> Vec<(Diag, Vec<Flow>)> {
        let marked = self.processes(due);
        let namespaces = net_namespaces(marked.iter().copied());
        let opened = std::iter::once(Diag::open()).chain(namespaces.iter().map(|file| Diag::open_in(file.as_fd())));
        let listed: Vec<Result<(Diag, Vec<Flow>), DiagError>> = opened.map(|diag| list(diag?, &self.maps)).collect();
        self.note_failure(listed.iter().find_map(|listed| listed.as_ref().err()).map(|error| chain(error)));
        let mut listed: Vec<(Diag, Vec<Flow>)> = listed.into_iter().flatten().collect();
        self.label_held(&marked, listed.iter_mut().flat_map(|(_, flows)| flows));
        listed
    }

    /// The processes of tasks; of those that are over, if nothing but that is due.
    fn processes(&self, due: u8) -> Vec<u32> {
        let at = now().boot;
        let wanted = |pid: &u32| {
            self.maps.processes.get(*pid).filter(|mark| mark.slot != SLOT_DAEMON).is_some_and(|mark| {
                due & POLICY != 0 || over(&self.maps.tasks.get(mark.slot), mark.epoch, at).is_some()
            })
        };
        self.maps.processes.keys().into_iter().filter(wanted).collect()
    }

    /// The kernel brings no labels with UDP sockets: those that processes of tasks hold are asked for by their descriptors.
    fn label_held<'a>(&self, marked: &[u32], flows: impl Iterator<Item = &'a mut Flow>) {
        let bare = flows.filter(|flow| flow.protocol == Protocol::Udp && flow.label.is_none());
        let mut bare: HashMap<u64, &mut Flow> = bare.map(|flow| (flow.inode, flow)).collect();
        let mut held = marked.iter().flat_map(|pid| held_sockets(*pid));
        while let Some(socket) = (!bare.is_empty()).then(|| held.next()).flatten() {
            if let Some(flow) = bare.remove(&socket.inode) {
                flow.label = socket.take().and_then(|socket| self.maps.labels.get(&socket));
            }
        }
    }

    /// Says in the log when listing begins to fail and when it works again.
    fn note_failure(&mut self, failing: Option<String>) {
        match (&self.failing, &failing) {
            (None, Some(error)) => {
                tracing::warn!("connections of tasks that are over send nothing, and cannot be destroyed: {error}");
            }
            (Some(_), None) => tracing::info!("connections can be listed again"),
            _ => {}
        }
        self.failing = failing;
    }

    fn find(&mut self, asked: WhoisQuery, reply: Reply<WhoisView>) {
        let listings = self.listings(OVER | POLICY);
        if let Some(error) = &self.failing {
            let error = ErrorBody::new(ErrorCode::NoListing, error.clone(), "see the daemon's log");
            drop(reply.send(Err(error)));
            return;
        }
        let all = listings.into_iter().flat_map(|(_, flows)| flows);
        let (labelled, others): (Vec<Flow>, Vec<Flow>) =
            all.filter(|flow| is_asked(&asked, flow)).partition(|flow| flow.label.is_some());
        if labelled.is_empty() {
            drop(reply.send(Err(nobody(&asked, others.is_empty()))));
        } else {
            self.tell(FlowNews::Found(asked, labelled.into_iter().take(MAX_FOUND).collect(), reply));
        }
    }

    /// Waits for room, for as long as there is somebody to take it.
    fn tell(&self, news: FlowNews) {
        let mut news = news;
        while !self.shared.stopping() {
            match self.news.try_send(news) {
                Err(mpsc::error::TrySendError::Full(back)) => news = back,
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => return,
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn list(mut diag: Diag, maps: &Maps) -> Result<(Diag, Vec<Flow>), DiagError> {
    let flows = diag.flows(maps.labels.as_fd())?;
    Ok((diag, flows))
}

fn nobody(asked: &WhoisQuery, nothing: bool) -> ErrorBody {
    if nothing {
        let message = format!("there is no connection {asked} on this host");
        ErrorBody::new(ErrorCode::NoConnection, message, "`ss -tun` shows the connections there are")
    } else {
        let message = format!("the connection {asked} belongs to no agent");
        ErrorBody::new(ErrorCode::NoAgent, message, "nothing is to be told of it")
    }
}

/// What was decided last for a connection that the task opened. Without it nothing has left, and the program on the way out asks
/// before anything does.
fn destination(flow: &Flow, label: &SocketLabel) -> Option<ConnectKey> {
    let key = label.ticket.key;
    let decided = flow.remote.is_some() && label.writers == 0 && key.generation != 0;
    (decided && key.action == Action::Connect.code()).then_some(key)
}

/// Whether a socket is one end of what was asked for: each side names the two ends in its own order.
fn is_asked(asked: &WhoisQuery, flow: &Flow) -> bool {
    let Some(remote) = flow.remote.filter(|_| flow.protocol == asked.protocol) else { return false };
    let (far, own) = (canonical(asked.remote), flow.local);
    match asked.local.map(canonical) {
        Some(near) => (near, far) == (own, remote) || (far, near) == (own, remote),
        None => own == far || remote == far,
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
