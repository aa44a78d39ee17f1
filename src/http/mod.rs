//! The front: the only module that knows actix. It decodes requests, hands them to the pipeline, writes answers.

pub mod decode;
pub mod errors;

use std::sync::Arc;

use actix_web::{
    HttpRequest, HttpResponse,
    http::{
        Method, StatusCode,
        header::{self, HeaderName, HeaderValue},
    },
    web,
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;

use crate::core::{
    Core,
    envelope::{self, Answer},
    failure::{Failure, Kind},
};

/// Bodies over this many bytes are refused with 413 unless the listener says otherwise.
pub const MAX_BODY: u64 = 32 << 20;

/// What a worker needs to answer.
#[derive(Clone)]
pub struct Front {
    /// The server behind it.
    pub core: Arc<Core>,
    /// Largest body in bytes.
    pub max_body: u64,
}

/// Registers the one handler that takes every path and verb.
pub fn configure(app: &mut web::ServiceConfig, front: Front) {
    app.app_data(web::Data::new(front)).default_service(web::to(answer));
}

async fn answer(http: HttpRequest, payload: web::Payload, front: web::Data<Front>) -> HttpResponse {
    let answer = match decode_request(&http, payload, &front).await {
        Ok(request) => front.core.handle(request).await,
        Err(failure) => refused(&failure),
    };
    write(answer, *http.method() == Method::HEAD)
}

async fn decode_request(
    http: &HttpRequest,
    payload: web::Payload,
    front: &Front,
) -> Result<crate::core::request::Request, Failure> {
    let mut request = decode::head(http)?;
    let bytes = collect(http, payload, front.max_body).await?;
    request.body = decode::body(http, bytes)?;
    Ok(request)
}

/// The whole body, or 413 as soon as it is known to be too large.
async fn collect(http: &HttpRequest, mut payload: web::Payload, limit: u64) -> Result<Bytes, Failure> {
    let too_large = || Failure::plain(Kind::TooLarge, format!("request body too large: the limit is {limit} bytes"));
    let declared = http.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| Failure::invalid(format!("the request's body broke off: {error}")))?;
        if u64::try_from(body.len() + chunk.len()).is_ok_and(|length| length > limit) {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

fn refused(failure: &Failure) -> Answer {
    Answer {
        status: errors::status(failure.kind()),
        content_type: "application/json",
        body: envelope::errors(failure),
        headers: Vec::new(),
    }
}

fn write(answer: Answer, head: bool) -> HttpResponse {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = HttpResponse::build(status);
    response.insert_header((header::CACHE_CONTROL, HeaderValue::from_static("no-store")));
    response.insert_header((header::CONTENT_TYPE, HeaderValue::from_static(answer.content_type)));
    for (name, value) in &answer.headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            response.append_header((name, value));
        }
    }
    if head || answer.body.is_empty() { response.finish() } else { response.body(answer.body) }
}
