//! The daemon as its clients see it: one request, one connection.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio_stream::Stream;

use super::types::{
    DoctorView, ErrorBody, LabelsView, OpenTask, ReloadView, StatusView, TaskView, TasksView, WhoisQuery, WhoisView,
};

/// How long to wait for an answer: longer than the server gives its loop.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// Most bytes of record lines that are kept back: far more than any line has.
const MAX_PENDING: usize = 4 << 20;

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no daemon at `{}`: {cause}; start it with `systemctl start writd` or `writd`, or name its socket with \
         `--socket`",
        socket.display()
    )]
    NoDaemon {
        /// Where it was sought.
        socket: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// The socket is closed to this user.
    #[error(
        "no permission to speak to the daemon at `{}`; run the command as root, for instance with `sudo`",
        .0.display()
    )]
    Permission(PathBuf),
    /// The daemon said no.
    #[error(transparent)]
    Refused(#[from] ErrorBody),
    /// The connection broke or the answer cannot be read.
    #[error("the daemon at `{}` broke off: {cause}; look at its log with `journalctl -u writd`", socket.display())]
    Broken {
        /// Whose connection.
        socket: PathBuf,
        /// What went wrong.
        cause: String,
    },
}

/// A daemon at the other end of a unix socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The daemon that listens at `socket`. Nothing is connected yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Where the daemon is sought.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Opens a task whose first process is the calling one: it is marked when this returns.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn open_task(&self, request: &OpenTask) -> Result<TaskView, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| self.broken(&error))?;
        self.post("/v1/tasks", body).await
    }

    /// Takes a task back. `id` may be a unique beginning.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke_task(&self, id: &str) -> Result<TaskView, ClientError> {
        self.post(&format!("/v1/tasks/{}/revoke", segment(id)), Vec::new()).await
    }

    /// One task. `id` may be a unique beginning.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn task(&self, id: &str) -> Result<TaskView, ClientError> {
        self.get(&format!("/v1/tasks/{}", segment(id))).await
    }

    /// All tasks.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn tasks(&self) -> Result<TasksView, ClientError> {
        self.get("/v1/tasks").await
    }

    /// How the daemon is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self) -> Result<StatusView, ClientError> {
        self.get("/v1/status").await
    }

    /// The coverage table, measured for this answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn doctor(&self) -> Result<DoctorView, ClientError> {
        self.post("/v1/doctor", Vec::new()).await
    }

    /// Which labels a grant may name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn labels(&self) -> Result<LabelsView, ClientError> {
        self.get("/v1/labels").await
    }

    /// Who has a connection.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn whois(&self, query: &WhoisQuery) -> Result<WhoisView, ClientError> {
        // An address has no letter that a query would need escaped.
        let local = query.local.map(|local| format!("local={local}&")).unwrap_or_default();
        self.get(&format!("/v1/whois?{local}remote={}&protocol={}", query.remote, query.protocol.as_str())).await
    }

    /// Makes the daemon read policies, registry and catalogues again.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn reload(&self) -> Result<ReloadView, ClientError> {
        self.post("/v1/reload", Vec::new()).await
    }

    /// The record lines from now on, without their line ends, until the daemon stops.
    ///
    /// # Errors
    /// [`ClientError`] if there is no stream; an item is an error if it breaks, and is then the last.
    pub async fn records(&self) -> Result<impl Stream<Item = Result<String, ClientError>> + use<>, ClientError> {
        let answer = self.limited(self.send(Method::GET, "/v1/records", Vec::new())).await?;
        Ok(Lines { client: self.clone(), answer: Some(answer), begun: Vec::new() })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, Vec::new()).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: Vec<u8>) -> Result<T, ClientError> {
        self.call(Method::POST, path, body).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<T, ClientError> {
        self.limited(async {
            let answer = self.send(method, path, body).await?;
            serde_json::from_slice(&self.whole(answer).await?).map_err(|error| self.broken(&error))
        })
        .await
    }

    /// Sends one request and waits for the head of its answer, which is one of success.
    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Answer, ClientError> {
        let request = Request::builder().method(method).uri(path).header("host", "writd");
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| self.broken(&error))?;
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        let mut driver = JoinSet::new();
        driver.spawn(async {
            // What breaks the connection also breaks the request or the body that waits for it, which report it.
            let _ = connection.await;
        });
        let response = sender.send_request(request).await.map_err(|error| self.broken(&error))?;
        let (status, answer) = (response.status(), Answer { body: response.into_body(), _driver: driver });
        if status.is_success() { Ok(answer) } else { Err(self.refusal(answer).await) }
    }

    async fn whole(&self, answer: Answer) -> Result<Bytes, ClientError> {
        let Answer { body, _driver } = answer;
        let collected = body.collect().await.map_err(|error| self.broken(&error))?;
        Ok(collected.to_bytes())
    }

    async fn refusal(&self, answer: Answer) -> ClientError {
        match self.whole(answer).await.map(|body| serde_json::from_slice::<ErrorBody>(&body)) {
            Ok(Ok(refusal)) => ClientError::Refused(refusal),
            Ok(Err(error)) => self.broken(&error),
            Err(error) => error,
        }
    }

    async fn limited<T>(&self, call: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        let answer = tokio::time::timeout(ANSWER_LIMIT, call).await;
        answer.unwrap_or_else(|_| Err(self.broken(&format!("no answer within {ANSWER_LIMIT:?}"))))
    }

    fn unreachable(&self, error: &io::Error) -> ClientError {
        match error.kind() {
            // The guard of unix sockets, which comes before the daemon's own answer.
            _ if error.raw_os_error() == Some(libc::EPERM) => ClientError::Refused(ErrorBody::inside_task()),
            io::ErrorKind::PermissionDenied => ClientError::Permission(self.socket.clone()),
            io::ErrorKind::NotFound => self.no_daemon("there is no such socket"),
            io::ErrorKind::ConnectionRefused => self.no_daemon("nobody listens on the socket"),
            _ => self.no_daemon(&error.to_string()),
        }
    }

    fn no_daemon(&self, cause: &str) -> ClientError {
        ClientError::NoDaemon { socket: self.socket.clone(), cause: cause.to_owned() }
    }

    fn broken(&self, cause: &dyn fmt::Display) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), cause: cause.to_string() }
    }
}

/// An answer's body and the task that reads it off the socket, which ends with it.
struct Answer {
    body: Incoming,
    _driver: JoinSet<()>,
}

struct Lines {
    client: Client,
    /// `None` once the stream has ended.
    answer: Option<Answer>,
    /// What came of the next line so far.
    begun: Vec<u8>,
}

impl Lines {
    fn take_line(&mut self) -> Option<String> {
        let end = self.begun.iter().position(|&byte| byte == b'\n')?;
        let rest = self.begun.split_off(end + 1);
        let line = std::mem::replace(&mut self.begun, rest);
        Some(String::from_utf8_lossy(line.trim_ascii_end()).into_owned())
    }

    fn end(&mut self, error: ClientError) -> Poll<Option<Result<String, ClientError>>> {
        self.answer = None;
        Poll::Ready(Some(Err(error)))
    }
}

impl Stream for Lines {
    type Item = Result<String, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(line) = self.take_line() {
                return Poll::Ready(Some(Ok(line)));
            }
            let Some(answer) = self.answer.as_mut() else { return Poll::Ready(None) };
            match ready!(Pin::new(&mut answer.body).poll_frame(context)) {
                None => self.answer = None,
                Some(Ok(frame)) => self.begun.extend(frame.into_data().unwrap_or_default()),
                Some(Err(error)) => {
                    let error = self.client.broken(&error);
                    return self.end(error);
                }
            }
            if self.begun.len() > MAX_PENDING {
                let error = self.client.broken(&format!("a record line is longer than {MAX_PENDING} bytes"));
                return self.end(error);
            }
        }
    }
}

/// `text` as one segment of a path.
fn segment(text: &str) -> String {
    let escaped = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    });
    escaped.collect()
}
