//! Cross-origin requests: which pages a browser may let talk to the server.

use actix_web::{
    HttpRequest,
    http::{Method, header},
};

use super::refused;
use crate::core::{
    cors::CorsSettings,
    envelope::Answer,
    failure::{Failure, Kind},
};

/// Verbs that a page may ask for.
const METHODS: [&str; 8] = ["DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT", "LIST", "SCAN"];

/// What is done with a request.
pub(super) enum Verdict {
    /// It goes on; its answer gets these headers.
    Pass(Vec<(String, String)>),
    /// It is answered here.
    Answer(Answer),
}

/// Looks at a request's origin; requests without one, and all while CORS is off, pass.
pub(super) fn check(http: &HttpRequest, settings: Option<&CorsSettings>) -> Verdict {
    let text = |name: header::HeaderName| http.headers().get(name).and_then(|value| value.to_str().ok());
    let (Some(settings), Some(origin)) = (settings, text(header::ORIGIN).filter(|origin| !origin.is_empty())) else {
        return Verdict::Pass(Vec::new());
    };
    if !settings.allows(origin) {
        return Verdict::Answer(refused(&Failure::plain(Kind::Denied, "origin not allowed")));
    }
    let mut headers = vec![("Access-Control-Allow-Origin".to_owned(), origin.to_owned()), ("Vary".into(), "Origin".into())];
    if settings.allow_credentials {
        headers.push(("Access-Control-Allow-Credentials".into(), "true".into()));
    }
    if *http.method() != Method::OPTIONS {
        return Verdict::Pass(headers);
    }
    let wanted = text(header::ACCESS_CONTROL_REQUEST_METHOD).unwrap_or("");
    if !METHODS.contains(&wanted) {
        return Verdict::Answer(refused(&Failure::silent(Kind::UnsupportedOperation)));
    }
    headers.push(("Access-Control-Allow-Methods".into(), METHODS.join(",")));
    headers.push(("Access-Control-Allow-Headers".into(), settings.allowed_headers.join(",")));
    headers.push(("Access-Control-Max-Age".into(), "300".into()));
    Verdict::Answer(Answer { headers, ..Answer::json(200, Vec::new()) })
}
