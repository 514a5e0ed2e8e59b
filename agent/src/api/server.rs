//! Accepting connections and serving each until it ends or the server goes down.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::routes::{Shared, refusing_router, router};
use super::{Command, Peer, Records};

/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 128;
/// How long a connection may take to send a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// Connections that are told at once why they are not served; more are dropped.
const MAX_REFUSED: usize = 8;
/// How long a request may take from its head to its answer's head.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How long connections may take to end once the server goes down.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// How long to wait after accept(2) failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Tells who is served. It is asked before anything is read, for each connection.
pub type Admits = Box<dyn Fn(Peer) -> bool + Send + Sync>;

/// Serves uid 0 on `listener` until `shutdown` resolves, then lets connections end for at most two seconds. Whom `admits`
/// does not admit is told so and takes nobody's place.
///
/// # Errors
/// If the listener is unusable for good.
pub async fn serve(
    listener: UnixListener,
    commands: mpsc::Sender<Command>,
    records: Records,
    admits: Admits,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    serve_for(0, REQUEST_LIMIT, listener, commands, records, admits, shutdown).await
}

pub(super) async fn serve_for(
    uid: u32,
    time_limit: Duration,
    listener: UnixListener,
    commands: mpsc::Sender<Command>,
    records: Records,
    admits: Admits,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let (close, closing) = watch::channel(false);
    let routes = router(Shared { commands, records, closing: closing.clone(), uid, time_limit });
    let mut connections = Connections { admits, routes, closing, served: JoinSet::new(), refused: JoinSet::new() };
    let ended = connections.accept_until(shutdown, &listener).await;
    drop(listener);
    close.send_replace(true);
    drain(connections.served).await;
    ended
}

struct Connections {
    admits: Admits,
    routes: Router,
    closing: watch::Receiver<bool>,
    served: JoinSet<()>,
    /// Apart, so that an agent's connections do not keep an operator from revoking its task.
    refused: JoinSet<()>,
}

impl Connections {
    async fn accept_until(&mut self, shutdown: impl Future<Output = ()>, listener: &UnixListener) -> io::Result<()> {
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                Some(_) = self.served.join_next() => {}
                Some(_) = self.refused.join_next() => {}
                accepted = listener.accept(), if self.served.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) => self.take(stream),
                    Err(error) if is_passing(&error) => tokio::time::sleep(ACCEPT_PAUSE).await,
                    Err(error) => return Err(error),
                },
            }
        }
    }

    fn take(&mut self, stream: UnixStream) {
        let Ok(peer) = peer(&stream) else { return };
        if (self.admits)(peer) {
            self.served.spawn(serve_one(stream, peer, self.routes.clone(), self.closing.clone()));
        } else if self.refused.len() < MAX_REFUSED {
            self.refused.spawn(serve_one(stream, peer, refusing_router(), self.closing.clone()));
        }
    }
}

/// Whether accept(2) may succeed later on the same listener.
fn is_passing(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    matches!(code, Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::ECONNABORTED | libc::EINTR))
}

async fn serve_one(stream: UnixStream, peer: Peer, routes: Router, mut closing: watch::Receiver<bool>) {
    let service = TowerToHyperService::new(routes.layer(Extension(peer)));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // A connection that breaks is the client's business: there is nobody to tell.
        _ = connection.as_mut() => return,
        _ = closing.wait_for(|closing| *closing) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

fn peer(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default();
    Ok(Peer { pid, uid: credentials.uid() })
}

async fn drain(mut connections: JoinSet<()>) {
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_LIMIT, all).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "connections were cut: they did not end within {DRAIN_LIMIT:?}"
        );
        connections.shutdown().await;
    }
}
