//! `GET /v1/records`: lines as they are written, until the reader goes or the daemon stops.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use tokio::sync::{broadcast, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::wrappers::{BroadcastStream, WatchStream};

/// Where record lines come from.
#[derive(Clone, Debug)]
pub struct Records {
    /// To subscribe to: each item one JSON object without a line end.
    pub lines: broadcast::Sender<Arc<str>>,
    /// The line that tells a reader how many it was too slow for.
    pub missed: fn(u64) -> Arc<str>,
}

impl Records {
    /// A response body of all lines from now on. When `closing` changes it gives what is left and ends.
    pub(super) fn body(&self, closing: watch::Receiver<bool>) -> Body {
        Body::from_stream(Lines {
            lines: BroadcastStream::new(self.lines.subscribe()),
            missed: self.missed,
            closing: WatchStream::from_changes(closing),
        })
    }
}

struct Lines {
    lines: BroadcastStream<Arc<str>>,
    missed: fn(u64) -> Arc<str>,
    closing: WatchStream<bool>,
}

impl Stream for Lines {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let line = match Pin::new(&mut self.lines).poll_next(context) {
            Poll::Ready(Some(Ok(line))) => line,
            Poll::Ready(Some(Err(BroadcastStreamRecvError::Lagged(count)))) => (self.missed)(count),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => return Pin::new(&mut self.closing).poll_next(context).map(|_| None),
        };
        Poll::Ready(Some(Ok(Bytes::from(format!("{line}\n")))))
    }
}
