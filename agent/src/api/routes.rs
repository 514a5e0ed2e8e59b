//! The routes: from a request to a command, and from its answer to a response.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Extension, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};

use super::stream::Records;
use super::types::{ErrorBody, ErrorCode, OpenTask, WhoisQuery, WhoisView};
use super::{Command, Peer, Reply};

/// Largest request body, bytes.
pub(super) const MAX_BODY: usize = 256 << 10;

/// What every route needs.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) records: Records,
    /// Changes when the server is to go down.
    pub(super) closing: watch::Receiver<bool>,
    /// Who is served.
    pub(super) uid: u32,
    /// How long one request may take from its head to its answer's head.
    pub(super) time_limit: Duration,
}

/// All routes. Each request must carry its [`Peer`] as an extension.
pub(super) fn router(shared: Shared) -> Router {
    Router::new()
        .route("/v1/tasks", post(open_task).get(list_tasks))
        .route("/v1/tasks/{id}", get(get_task))
        .route("/v1/tasks/{id}/revoke", post(revoke_task))
        .route("/v1/status", get(status))
        .route("/v1/doctor", post(doctor))
        .route("/v1/labels", get(labels))
        .route("/v1/whois", get(whois))
        .route("/v1/reload", post(reload))
        .route("/v1/records", get(records))
        .fallback(no_route)
        .method_not_allowed_fallback(bad_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(shared.clone(), within_limits))
        .with_state(shared)
}

/// For who works for a task: the API could give it more than its task has.
pub(super) fn refusing_router() -> Router {
    Router::new().fallback(|| async { ErrorBody::inside_task() })
}

type Answer<T> = Result<Json<T>, ErrorBody>;

impl IntoResponse for ErrorBody {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self)).into_response()
    }
}

async fn open_task(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    body: Result<Bytes, BytesRejection>,
) -> Result<impl IntoResponse, ErrorBody> {
    let request: OpenTask = parse(body)?;
    let task = ask(&shared, |reply| Command::OpenTask { request, peer, reply }).await?;
    Ok((StatusCode::CREATED, task))
}

async fn list_tasks(State(shared): State<Shared>) -> Answer<super::types::TasksView> {
    ask(&shared, |reply| Command::ListTasks { reply }).await
}

async fn get_task(State(shared): State<Shared>, Path(id): Path<String>) -> Answer<super::types::TaskView> {
    ask(&shared, |reply| Command::GetTask { id, reply }).await
}

async fn revoke_task(State(shared): State<Shared>, Path(id): Path<String>) -> Answer<super::types::TaskView> {
    ask(&shared, |reply| Command::RevokeTask { id, reply }).await
}

async fn status(State(shared): State<Shared>) -> Answer<super::types::StatusView> {
    ask(&shared, |reply| Command::Status { reply }).await
}

async fn doctor(State(shared): State<Shared>) -> Answer<super::types::DoctorView> {
    ask(&shared, |reply| Command::Doctor { reply }).await
}

async fn labels(State(shared): State<Shared>) -> Answer<super::types::LabelsView> {
    ask(&shared, |reply| Command::Labels { reply }).await
}

async fn whois(State(shared): State<Shared>, query: Result<Query<WhoisQuery>, QueryRejection>) -> Answer<WhoisView> {
    let Query(query) = query.map_err(|error| {
        let message = format!("the request's query is not what this route takes: {}", error.body_text());
        ErrorBody::new(ErrorCode::BadRequest, message, "give `local` and `remote` as ADDRESS:PORT")
    })?;
    ask(&shared, |reply| Command::Whois { query, reply }).await
}

async fn reload(State(shared): State<Shared>) -> Answer<super::types::ReloadView> {
    ask(&shared, |reply| Command::Reload { reply }).await
}

async fn records(State(shared): State<Shared>) -> Response {
    let kind = [("content-type", "application/x-ndjson")];
    (kind, shared.records.body(shared.closing)).into_response()
}

async fn no_route(request: Request) -> ErrorBody {
    let message = format!("there is nothing at `{}`", request.uri().path());
    ErrorBody::new(
        ErrorCode::NoRoute,
        message,
        "see ARCHITECTURE.md for the routes; `writ` and `writd` should be of one version",
    )
}

async fn bad_method(request: Request) -> ErrorBody {
    let message = format!("`{}` does not take {}", request.uri().path(), request.method());
    ErrorBody::new(ErrorCode::BadMethod, message, "use GET to ask and POST to change")
}

/// Refuses strangers and ends what takes too long, reading the body included.
async fn within_limits(State(shared): State<Shared>, request: Request, next: Next) -> Result<Response, ErrorBody> {
    let peer = request.extensions().get::<Peer>().copied();
    if peer.is_none_or(|peer| peer.uid != shared.uid) {
        let uid = peer.map_or_else(|| "unknown".to_owned(), |peer| peer.uid.to_string());
        let message = format!("this socket serves uid {} only, and the caller's uid is {uid}", shared.uid);
        return Err(ErrorBody::new(ErrorCode::NotRoot, message, "run the command as root, for instance with `sudo`"));
    }
    let answer = tokio::time::timeout(shared.time_limit, next.run(request)).await;
    answer.map_err(|_| {
        let message = format!("the daemon did not answer within {:?}", shared.time_limit);
        ErrorBody::new(ErrorCode::Timeout, message, "look at the daemon's log: `journalctl -u writd`")
    })
}

/// Puts one command to the daemon's loop and waits for its answer.
async fn ask<T: Serialize>(shared: &Shared, command: impl FnOnce(Reply<T>) -> Command) -> Answer<T> {
    let (reply, answer) = oneshot::channel();
    shared.commands.send(command(reply)).await.map_err(|_| shutting_down())?;
    answer.await.map_err(|_| shutting_down())?.map(Json)
}

fn shutting_down() -> ErrorBody {
    ErrorBody::new(ErrorCode::ShuttingDown, "the daemon is going down", "try again when it is back")
}

fn parse<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, ErrorBody> {
    let body = body.map_err(|error| {
        let message = format!("the request's body could not be read: {}", error.body_text());
        ErrorBody::new(ErrorCode::BadBody, message, format!("send at most {MAX_BODY} bytes"))
    })?;
    serde_json::from_slice(&body).map_err(|error| {
        let message = format!("the request's body is not what this route takes: {error}");
        ErrorBody::new(ErrorCode::BadRequest, message, "correct it; `writ` and `writd` should be of one version")
    })
}
