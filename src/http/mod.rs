//! The front: the only module that knows actix. It decodes requests, hands them to the pipeline, writes answers.

pub mod aside;
mod cors;
pub mod decode;
pub mod errors;
pub mod limits;
pub mod surplus;
pub mod turns;

use std::{
    io,
    panic::AssertUnwindSafe,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use actix_web::{
    HttpRequest, HttpResponse,
    dev::{Payload, ServiceRequest, fn_service},
    http::{
        Method, StatusCode, Uri,
        header::{self, HeaderName, HeaderValue},
    },
    web,
};
use aside::{Aside, LARGE_BODY};
use bytes::Bytes;
use cors::Verdict;
use futures_util::{FutureExt, StreamExt};
use limits::{Limits, Received, SMALL_ANSWER, Share, Working};

use crate::{
    backup::Upload,
    core::{
        Core,
        envelope::{self, Answer},
        failure::{Failure, Kind},
        request::{Operation, Request},
        sys::snapshot::takes_upload,
        wanted::Wanted,
    },
    heavy,
};

/// Bodies over this many bytes are refused with 413 unless the listener says otherwise.
pub const MAX_BODY: u64 = 32 << 20;

/// How long the restore of a backup over HTTP may take.
const LONGEST_UPLOAD: Duration = Duration::from_secs(6 * 3600);
/// How long such a body may pause.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);

/// What a worker needs to answer.
#[derive(Clone)]
pub struct Front {
    /// The server behind it.
    pub core: Arc<Core>,
    /// Largest body in bytes.
    pub max_body: u64,
    /// Longest time that a client waits for an answer.
    pub max_duration: Duration,
    /// Whether requests need the header `X-Vault-Request: true`.
    pub require_request_header: bool,
    /// Whether `sys/metrics` answers without a token.
    pub open_metrics: bool,
    /// What all listeners together take on.
    pub limits: Arc<Limits>,
    /// Where large requests are worked on.
    pub aside: Arc<Aside>,
}

/// Registers the one handler that takes every path and verb.
pub fn configure(app: &mut web::ServiceConfig, front: Front) {
    let front = Rc::new(front);
    app.default_service(fn_service(move |request: ServiceRequest| {
        let front = Rc::clone(&front);
        async move {
            let (http, payload) = request.into_parts();
            let response = answer(&http, payload, &front).await;
            let mut request = ServiceRequest::from_request(http);
            forget(&mut request);
            Ok(request.into_response(response))
        }
    }));
}

/// Lets go of what a request says. actix keeps answered requests for later ones as they are, and with path and headers
/// the whole buffer that they were read into: the token and, of short requests, the body.
fn forget(request: &mut ServiceRequest) {
    request.headers_mut().clear();
    request.head_mut().uri = Uri::default();
    request.match_info_mut().get_mut().update(&Uri::default());
}

async fn answer(http: &HttpRequest, payload: Payload, front: &Front) -> HttpResponse {
    let share = match http.conn_data::<Rc<surplus::Taken>>() {
        // It was answered already, or is closed under way: nothing that it says is carried out.
        Some(taken) if taken.is_surplus() => return HttpResponse::ServiceUnavailable().force_close().finish(),
        Some(taken) => taken.share(),
        None => front.limits.share(http.peer_addr().map(|peer| peer.ip())),
    };
    let cors = match cors::check(http, front.core.cors.settings().as_deref()) {
        Verdict::Pass(headers) => headers,
        Verdict::Answer(answer) => return write(&share, answer, false),
    };
    let mut answer = match decode::without_empty_segments(http) {
        Some(place) => redirect(place),
        // A body that trickles in holds its connection no longer than a request may take.
        None => match within(front.max_duration, receive(http, payload, front, &share)).await {
            Some(Ok(taken)) => carry_out(front, taken).await,
            Some(Err(failure)) => refused(&failure),
            None => refused(&took_too_long(front.max_duration)),
        },
    };
    answer.headers.extend(cors);
    write(&share, answer, *http.method() == Method::HEAD)
}

/// A request that is all there, with what is counted of it until its work is done.
struct Taken {
    request: Request,
    kind: decode::BodyKind,
    body: Bytes,
    counted: (Received, Option<Working>),
}

/// Hands a request to the pipeline. When the client goes away or its time is over the work is still finished, so
/// that nothing stays half-done because someone closed a connection; what takes long in pieces asks whether it is still
/// [wanted](Wanted) and ends between two of them.
async fn carry_out(front: &Front, taken: Taken) -> Answer {
    let core = Arc::clone(&front.core);
    let Taken { mut request, kind, body, counted } = taken;
    // A body that is read while it arrives takes as long as it takes.
    let limit = if request.upload.is_some() { LONGEST_UPLOAD } else { front.max_duration };
    let large = body.len() > LARGE_BODY;
    let (wanted, _waiting) = Wanted::within(limit);
    request.wanted = wanted;
    let work = async move {
        let _counted = counted;
        match decode::body(kind, body) {
            Ok(body) => request.body = body,
            Err(failure) => request.flaw = Some(failure),
        }
        core.handle(request).await
    };
    // A defect in one request must not take the worker and its other connections with it.
    let work = AssertUnwindSafe(work).catch_unwind().map(|handled| handled.unwrap_or_else(|_| defect()));
    let done = if large {
        let Some(work) = front.aside.begin(work) else { return defect() };
        within(limit, work).await.map(|handled| handled.unwrap_or_else(|_| defect()))
    } else {
        within(limit, &mut Finish::new(Box::pin(work), &front.aside)).await
    };
    done.unwrap_or_else(|| refused(&took_too_long(limit)))
}

fn defect() -> Answer {
    refused(&Failure::listed(Kind::Internal, "internal error"))
}

/// What `work` gives, or `None` when it takes longer than `limit`. Most requests never wait; they need no timer.
async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    match std::future::poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await {
        Poll::Ready(result) => Some(result),
        Poll::Pending => tokio::time::timeout(limit, work).await.ok(),
    }
}

fn took_too_long(limit: Duration) -> Failure {
    Failure::unavailable(format!("the request took longer than max_request_duration ({} s)", limit.as_secs()))
}

type Work = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// A request's work, which goes on by itself when nobody waits for it any longer, and aside when it turns out to be long.
struct Finish<'a> {
    here: Option<Work>,
    aside: &'a Aside,
    moved: Option<tokio::task::JoinHandle<Answer>>,
}

impl<'a> Finish<'a> {
    fn new(work: Work, aside: &'a Aside) -> Self {
        Self { here: Some(work), aside, moved: None }
    }
}

impl Future for Finish<'_> {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        if let Some(work) = &mut self.here {
            match heavy::poll_movable(work.as_mut(), context) {
                (Poll::Ready(answer), _) => {
                    self.here = None;
                    return Poll::Ready(answer);
                }
                (Poll::Pending, false) => return Poll::Pending,
                (Poll::Pending, true) => {}
            }
        }
        if let Some(work) = self.here.take() {
            self.moved = self.aside.begin(work);
        }
        match &mut self.moved {
            Some(moved) => Pin::new(moved).poll(context).map(|done| done.unwrap_or_else(|_| defect())),
            // The server ends.
            None => Poll::Ready(defect()),
        }
    }
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        if let (Some(work), Ok(runtime)) = (self.here.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(work);
        }
    }
}

/// Takes a request in. What it counts as work begins when its body is there: one that does not come keeps nobody out.
async fn receive(http: &HttpRequest, payload: Payload, front: &Front, share: &Arc<Share>) -> Result<Taken, Failure> {
    if front.require_request_header && !decode::has_request_header(http) {
        return Err(Failure::plain(Kind::PreconditionFailed, "missing `X-Vault-Request` header"));
    }
    let mut request = decode::head(http, &front.core.audit.headers())?;
    request.open_metrics = front.open_metrics;
    let (mut received, mut body) = (share.body(), Bytes::new());
    let watching = is_watching(&request);
    if request.flaw.is_none() {
        if takes_upload(&request.path, request.operation) {
            request.upload = Some(upload(payload));
        } else if !watching {
            match collect(http, payload, front.max_body, &mut received).await {
                Ok(taken) => body = taken,
                // Load that is shed is not to make work.
                Err(failure) if failure.kind() == Kind::Unavailable => return Err(failure),
                Err(failure) => request.flaw = Some(failure),
            }
        }
    }
    let working = if watching { None } else { Some(share.work()?) };
    Ok(Taken { request, kind: decode::body_kind(http), body, counted: (received, working) })
}

/// Whether this is what supervisors and load balancers ask: it is answered whatever else there is to do.
fn is_watching(request: &Request) -> bool {
    request.operation == Operation::Read && matches!(request.path.as_str(), "sys/health" | "sys/seal-status" | "sys/leader")
}

/// A body that is read while it arrives, whatever its length. It is taken to its end also when nobody wants the rest, so
/// that the client comes to read its answer.
fn upload(mut payload: Payload) -> Upload {
    let (pieces, upload) = Upload::new();
    actix_web::rt::spawn(async move {
        let mut wanted = true;
        loop {
            let piece = match tokio::time::timeout(LONGEST_SILENCE, payload.next()).await {
                Ok(None) => return,
                Ok(Some(piece)) => piece.map_err(|error| io::Error::new(io::ErrorKind::ConnectionAborted, error.to_string())),
                Err(_elapsed) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("the client sent nothing for {} seconds", LONGEST_SILENCE.as_secs()),
                )),
            };
            let broken = piece.is_err();
            wanted = wanted && pieces.send(piece).await.is_ok();
            if broken {
                return;
            }
        }
    });
    upload
}

/// The whole body, or 413 as soon as it is known to be too large, or 503 when too much is being received already.
async fn collect(http: &HttpRequest, mut payload: Payload, limit: u64, received: &mut Received) -> Result<Bytes, Failure> {
    let too_large = || Failure::plain(Kind::TooLarge, format!("request body too large: the limit is {limit} bytes"));
    let declared = http.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    // No body is longer than that, so no buffer is.
    let longest = usize::try_from(declared.unwrap_or(limit)).unwrap_or(usize::MAX);
    let mut body = Vec::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| Failure::invalid(format!("the request's body broke off: {error}")))?;
        let length = body.len() + chunk.len();
        if u64::try_from(length).is_ok_and(|length| length > limit) {
            return Err(too_large());
        }
        if length > body.capacity() {
            // What is counted is the room that it takes, not the bytes in it.
            let room = (body.capacity() * 2).min(longest).max(length);
            received.grow(room - body.capacity())?;
            body.reserve_exact(room - body.len());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}

/// The same request, method and body, at another path.
fn redirect(place: String) -> Answer {
    Answer { headers: vec![(header::LOCATION.as_str().to_owned(), place)], ..Answer::json(307, Vec::new()) }
}

fn refused(failure: &Failure) -> Answer {
    Answer::json(errors::status(failure.kind()), envelope::errors(failure))
}

fn write(share: &Arc<Share>, mut answer: Answer, head: bool) -> HttpResponse {
    let large = !head && answer.body.len() > SMALL_ANSWER;
    let held = large.then(|| share.answer(std::mem::take(&mut answer.body))).transpose();
    let held = held.unwrap_or_else(|failure| {
        answer = refused(&failure);
        None
    });
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = HttpResponse::build(status);
    response.insert_header((header::CACHE_CONTROL, HeaderValue::from_static("no-store")));
    response.insert_header((header::CONTENT_TYPE, HeaderValue::from_static(answer.content_type)));
    for (name, value) in &answer.headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            response.append_header((name, value));
        }
    }
    if let Some(download) = answer.download {
        return response.streaming(futures_util::stream::unfold(download, |mut download| async move {
            download.next().await.map(|piece| (piece, download))
        }));
    }
    if let Some(held) = held {
        return response.body(held);
    }
    if head || answer.body.is_empty() { response.finish() } else { response.body(answer.body) }
}
