//! HTTP to [`Request`]: verbs, paths, headers and bodies as Vault's clients send them.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::Duration,
};

use actix_web::{
    HttpRequest,
    http::{
        Method,
        header::{self, HeaderName},
    },
};
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::{
    core::{
        failure::{Failure, Kind},
        request::{Operation, Request, request_id},
        wanted::Wanted,
    },
    secret::SecretString,
    wire::duration::{self, DurationError},
};

// Made once: every name that is looked up as text is parsed anew.
static TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
static NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
static VAULT_REQUEST: HeaderName = HeaderName::from_static("x-vault-request");
static WRAP_TTL: HeaderName = HeaderName::from_static("x-vault-wrap-ttl");
static WRAP_FORMAT: HeaderName = HeaderName::from_static("x-vault-wrap-format");
/// The one header of Vault's that may come several times; this server has no use for it.
static INDEX: HeaderName = HeaderName::from_static("x-vault-index");

/// Reads everything but the body, so that a bad request is refused before its body is taken. Only `recorded` headers
/// (names in lower case) are kept.
///
/// # Errors
/// For what cannot be told from other requests: a path that is none, an unknown verb. What else is wrong is the request's
/// [flaw](Request::flaw).
pub fn head(http: &HttpRequest, recorded: &BTreeMap<String, bool>) -> Result<Request, Failure> {
    let path = path(http.uri().path())?;
    let query = query(http.query_string());
    let (operation, path) = operation(http, path, &query)?;
    let wrap_ttl = check(http, operation, &query).and_then(|()| wrap_ttl(http));
    // These choose the operation; no endpoint is to see them as parameters.
    let query = query.into_iter().filter(|(name, _)| !matches!(name.as_str(), "list" | "scan" | "help")).collect();
    let peer = http.peer_addr();
    Ok(Request {
        id: request_id(),
        operation,
        path,
        body: Bytes::new(),
        query,
        token: token(http),
        wrap_ttl: *wrap_ttl.as_ref().unwrap_or(&None),
        wrap_as_jwt: text(http, &WRAP_FORMAT).is_some_and(|format| format.eq_ignore_ascii_case("jwt")),
        remote: peer.map(|peer| peer.ip()),
        remote_port: peer.map_or(0, |peer| peer.port()),
        upload: None,
        wanted: Wanted::default(),
        open_metrics: false,
        headers: headers(http, recorded),
        flaw: wrap_ttl.err(),
    })
}

/// Whether the client says that it means to talk to a Vault, which a browser led astray does not.
pub fn has_request_header(http: &HttpRequest) -> bool {
    text(http, &VAULT_REQUEST).is_some_and(|value| value == "true")
}

/// Where a request with empty path segments belongs: the same without them. Policies name paths without them, so
/// `secret//a` must not be another way to `secret/a`.
pub fn without_empty_segments(http: &HttpRequest) -> Option<String> {
    let raw = http.uri().path();
    // What most requests look like: nothing is encoded and no segment empty.
    if !raw.contains('%') && !raw.contains("//") {
        return None;
    }
    const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
    let decoded = percent_decode_str(raw.strip_prefix("/v1/")?).decode_utf8().ok()?;
    if !decoded.starts_with('/') && !decoded.contains("//") {
        return None;
    }
    let mut clean = decoded.split('/').filter(|segment| !segment.is_empty()).collect::<Vec<_>>().join("/");
    if decoded.ends_with('/') && !clean.is_empty() {
        clean.push('/');
    }
    let clean = utf8_percent_encode(&clean, KEPT);
    Some(match http.uri().query() {
        Some(query) => format!("/v1/{clean}?{query}"),
        None => format!("/v1/{clean}"),
    })
}

/// The decoded path below `/v1/`.
fn path(raw: &str) -> Result<String, Failure> {
    let Some(raw) = raw.strip_prefix("/v1/") else {
        return Err(Failure::silent(Kind::UnsupportedPath));
    };
    if !is_encoded(raw) {
        return Err(Failure::invalid("the path holds a % that does not begin a percent-encoded byte: write %25"));
    }
    let decoded = percent_decode_str(raw).decode_utf8();
    let path = decoded.map_err(|error| Failure::invalid("the path is not valid UTF-8").caused_by(error))?;
    if path.split('/').any(|segment| segment == ".." || segment == ".") {
        return Err(Failure::invalid("relative paths not supported"));
    }
    if path.is_empty() {
        return Err(Failure::silent(Kind::UnsupportedPath));
    }
    if path.chars().any(char::is_control) {
        return Err(Failure::invalid("control characters are not supported in paths"));
    }
    Ok(path.into_owned())
}

/// Whether every `%` stands before two hexadecimal digits.
fn is_encoded(path: &str) -> bool {
    path.split('%').skip(1).all(|rest| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit()))
}

/// In the order given: of what chooses the operation the first counts, as in Vault.
fn query(raw: &str) -> Vec<(String, String)> {
    pairs(raw).filter(|(name, _)| !name.is_empty()).collect()
}

/// Names and values of a query string or form body.
fn pairs(raw: &str) -> impl Iterator<Item = (String, String)> + '_ {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    raw.split('&').filter(|pair| !pair.is_empty()).map(move |pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    })
}

/// The operation of a verb. Lists act on the path with a trailing slash, whichever way they are asked for.
fn operation(http: &HttpRequest, path: String, query: &[(String, String)]) -> Result<(Operation, String), Failure> {
    let value = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let folder = |path: String| if path.ends_with('/') { path } else { format!("{path}/") };
    match http.method().as_str() {
        "GET" => {
            if value("help").is_some_and(|help| help != "0" && help != "false") {
                return Ok((Operation::Help, path));
            }
            match (switch(value("list")), switch(value("scan"))) {
                (Ok(true), Ok(false)) => Ok((Operation::List, folder(path))),
                (Ok(false), Ok(true)) => Ok((Operation::Scan, folder(path))),
                // Both, or what cannot be read: see `check`.
                _ => Ok((Operation::Read, path)),
            }
        }
        "HEAD" if path == "sys/health" => Ok((Operation::Read, path)),
        "POST" | "PUT" => Ok((Operation::Update, path)),
        "DELETE" => Ok((Operation::Delete, path)),
        "LIST" => Ok((Operation::List, folder(path))),
        "SCAN" => Ok((Operation::Scan, folder(path))),
        "PATCH" => Ok((Operation::Patch, path)),
        _ => Err(Failure::silent(Kind::UnsupportedOperation)),
    }
}

/// What is wrong with the form of a request.
fn check(http: &HttpRequest, operation: Operation, query: &[(String, String)]) -> Result<(), Failure> {
    if *http.method() == Method::GET && operation != Operation::Help {
        let value = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let (list, scan) = (switch(value("list"))?, switch(value("scan"))?);
        if list && scan {
            return Err(Failure::silent(Kind::Invalid));
        }
    }
    if operation == Operation::Patch {
        check_patch_type(http)?;
    }
    check_headers(http)?;
    check_namespace(http)
}

/// Headers that would change what a request means, were they taken for absent or only one of two values looked at.
fn check_headers(http: &HttpRequest) -> Result<(), Failure> {
    for (name, value) in http.headers() {
        let own = name.as_str().starts_with("x-vault-");
        if !own && *name != header::AUTHORIZATION && *name != header::CONTENT_TYPE {
            continue;
        }
        if value.to_str().is_err() {
            return Err(Failure::invalid(format!(
                "the header {name} holds other bytes than visible ASCII characters: leave them out"
            )));
        }
        if own && *name != INDEX && http.headers().get(name).is_some_and(|first| first != value) {
            return Err(Failure::invalid(format!("the header {name} came twice with different values: send it once")));
        }
    }
    Ok(())
}

/// `list=true` as Go's `strconv.ParseBool` reads it; anything else is an error without a text.
fn switch(value: Option<&str>) -> Result<bool, Failure> {
    match value {
        None | Some("") => Ok(false),
        Some("1" | "t" | "T" | "TRUE" | "true" | "True") => Ok(true),
        Some("0" | "f" | "F" | "FALSE" | "false" | "False") => Ok(false),
        Some(_) => Err(Failure::silent(Kind::Invalid)),
    }
}

fn check_patch_type(http: &HttpRequest) -> Result<(), Failure> {
    let given = text(http, &header::CONTENT_TYPE).unwrap_or("");
    let essence = given.split(';').next().unwrap_or("").trim();
    if essence.is_empty() {
        return Err(Failure::invalid("PATCH requires Content-Type of application/merge-patch+json, none provided"));
    }
    if !essence.eq_ignore_ascii_case("application/merge-patch+json") {
        let text = format!("PATCH requires Content-Type of application/merge-patch+json, provided {essence}");
        return Err(Failure::plain(Kind::UnsupportedMediaType, text));
    }
    Ok(())
}

/// Only the root namespace exists; clients send the header empty or as `root`.
fn check_namespace(http: &HttpRequest) -> Result<(), Failure> {
    match text(http, &NAMESPACE).map(|name| name.trim_matches('/')) {
        None | Some("" | "root") => Ok(()),
        Some(name) => Err(Failure::invalid(format!("namespaces are not supported by this server: no namespace {name:?}"))),
    }
}

/// `X-Vault-Token`, or else `Authorization: Bearer`.
fn token(http: &HttpRequest) -> Option<SecretString> {
    let own = text(http, &TOKEN).map(str::trim).filter(|token| !token.is_empty());
    let bearer = || {
        let value = text(http, &header::AUTHORIZATION)?;
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
    };
    own.or_else(bearer).map(|token| SecretString::new(token.to_owned()))
}

fn wrap_ttl(http: &HttpRequest) -> Result<Option<Duration>, Failure> {
    let Some(value) = text(http, &WRAP_TTL).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let ttl = duration::parse_duration(value).map_err(|error| {
        let reason = match error {
            DurationError::Negative(_) => "requested wrap ttl cannot be negative".to_owned(),
            other => other.to_string(),
        };
        Failure::invalid(format!("error parsing X-Vault-Wrap-TTL header: {reason}"))
    })?;
    Ok((!ttl.is_zero()).then_some(ttl))
}

/// The recorded headers, but for those that carry tokens.
fn headers(http: &HttpRequest, recorded: &BTreeMap<String, bool>) -> Vec<(String, String)> {
    if recorded.is_empty() {
        return Vec::new();
    }
    http.headers()
        .iter()
        .filter(|(name, _)| recorded.contains_key(name.as_str()) && *name != header::AUTHORIZATION && *name != TOKEN)
        .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

fn text<'a>(http: &'a HttpRequest, name: &HeaderName) -> Option<&'a str> {
    http.headers().get(name)?.to_str().ok()
}

/// How a request's body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// Not at all: reading requests have none.
    Ignored,
    /// As it came.
    Raw,
    /// JSON, which clients send under all sorts of types.
    Json,
    /// A form; JSON where it looks like that.
    Form,
}

/// How the body of this request is read.
pub fn body_kind(http: &HttpRequest) -> BodyKind {
    match http.method().as_str() {
        // As in Vault: parameters of these are those of the query, and no policy looks into a body of theirs.
        "GET" | "LIST" | "SCAN" | "DELETE" => BodyKind::Ignored,
        "HEAD" => BodyKind::Raw,
        _ if text(http, &header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded")) => {
            BodyKind::Form
        }
        _ => BodyKind::Json,
    }
}

/// Form bodies become JSON objects of strings, and values of the same name one with commas; every other type is taken as JSON.
pub fn body(kind: BodyKind, bytes: Bytes) -> Result<Bytes, Failure> {
    if kind == BodyKind::Ignored {
        return Ok(Bytes::new());
    }
    if kind == BodyKind::Raw || bytes.is_empty() {
        return Ok(bytes);
    }
    let looks_like_json = bytes.iter().find(|byte| !byte.is_ascii_whitespace()).is_some_and(|byte| *byte == b'{');
    if kind == BodyKind::Json || looks_like_json {
        if nested_too_deeply(&bytes) {
            return Err(Failure::invalid("failed to parse JSON input: exceeded max depth"));
        }
        return Ok(bytes);
    }
    if bytes.len() > MAX_FORM {
        let text = format!("request body too large: a form holds at most {MAX_FORM} bytes; send JSON instead");
        return Err(Failure::plain(Kind::TooLarge, text));
    }
    let raw = std::str::from_utf8(&bytes).map_err(|error| Failure::invalid("the form is not valid UTF-8").caused_by(error))?;
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in pairs(raw) {
        match fields.entry(name) {
            Entry::Vacant(entry) => drop(entry.insert(value)),
            // As in Vault: what takes a list takes it with commas too.
            Entry::Occupied(mut entry) => {
                let joined = entry.get_mut();
                joined.push(',');
                joined.push_str(&value);
            }
        }
    }
    serde_json::to_vec(&fields).map(Bytes::from).map_err(Failure::internal)
}

/// Forms longer than this are refused: their fields are taken apart before anybody looks at the token, and where they are few
/// bytes each they take thirty times as much as the form. Nobody sends longer ones; the same as JSON may be longer.
const MAX_FORM: usize = 1 << 20;

/// Objects and lists inside each other that Go's decoder, and with it Vault and its clients, still takes.
const MAX_DEPTH: usize = 10_000;

/// Whether `json` is nested deeper than any client could read again. Text that is no JSON may give either answer.
fn nested_too_deeply(json: &[u8]) -> bool {
    if json.len() <= MAX_DEPTH {
        return false;
    }
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => depth += 1,
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn empty_segments_are_redirected_however_they_are_written() {
        let place = |uri: &str| without_empty_segments(&TestRequest::with_uri(uri).to_http_request());
        for (uri, clean) in [
            ("/v1//sys/health", "/v1/sys/health"),
            ("/v1/kv//a/b?list=true", "/v1/kv/a/b?list=true"),
            ("/v1/kv/a%2F%2fb", "/v1/kv/a/b"),
            ("/v1/kv///a%0d%0ab//", "/v1/kv/a%0D%0Ab/"),
            ("/v1///", "/v1/"),
        ] {
            assert_eq!(place(uri).as_deref(), Some(clean), "{uri}");
        }
        for uri in ["/v1/kv/a", "/v1/kv/a/", "/v1/", "/ui//", "/v1/kv/a?b=//"] {
            assert_eq!(place(uri), None, "{uri}");
        }
    }

    #[test]
    fn of_forms_repeated_names_are_joined_and_bodies_of_reading_requests_ignored() {
        let read = |kind, bytes: &'static [u8]| body(kind, Bytes::from_static(bytes)).unwrap();
        assert_eq!(read(BodyKind::Form, b"a=1&b=x+y&a=2&a="), r#"{"a":"1,2,","b":"x y"}"#);
        for (verb, kind) in [("GET", BodyKind::Ignored), ("LIST", BodyKind::Ignored), ("SCAN", BodyKind::Ignored)]
            .into_iter()
            .chain([("DELETE", BodyKind::Ignored), ("PUT", BodyKind::Json), ("PATCH", BodyKind::Json)])
        {
            let http = TestRequest::default().method(Method::from_bytes(verb.as_bytes()).unwrap()).to_http_request();
            assert_eq!(body_kind(&http), kind, "{verb}");
        }
        assert!(read(BodyKind::Ignored, br#"{"version": 2}"#).is_empty());
        let long = |length: usize| body(BodyKind::Form, Bytes::from("a&".repeat(length / 2))).map_err(|failure| failure.kind());
        assert_eq!(long(MAX_FORM).unwrap().len(), r#"{"a":""}"#.len() + MAX_FORM / 2 - 1);
        assert_eq!(long(MAX_FORM + 2), Err(Kind::TooLarge));
    }

    #[test]
    fn paths_hold_no_control_characters_and_no_way_up() {
        for raw in ["/v1/kv/a%00b", "/v1/kv/a%0ab", "/v1/kv/%7f", "/v1/kv/../sys", "/v1/kv/%2e%2e/sys"] {
            assert_eq!(path(raw).unwrap_err().kind(), Kind::Invalid, "{raw}");
        }
        for raw in ["/v1/kv/%", "/v1/kv/a%2", "/v1/kv/a%zzb"] {
            assert!(path(raw).unwrap_err().text().ends_with("write %25"), "{raw}");
        }
        assert_eq!(path("/v1/kv/100%25").unwrap(), "kv/100%");
        assert_eq!(path("/v1/kv/sch%C3%B6n").unwrap(), "kv/sch\u{f6}n");
    }

    #[test]
    fn headers_that_cannot_be_read_or_contradict_each_other_are_a_flaw() {
        use actix_web::http::header::HeaderValue;
        let flaw = |headers: &[(&'static str, &'static [u8])]| {
            let mut http = TestRequest::with_uri("/v1/kv/a");
            for (name, value) in headers {
                http = http.append_header((*name, HeaderValue::from_bytes(value).unwrap()));
            }
            let request = head(&http.to_http_request(), &BTreeMap::new()).unwrap();
            assert_eq!(request.path, "kv/a");
            request.flaw.map(|failure| (failure.kind(), failure.text().to_owned()))
        };
        for header in
            ["X-Vault-Wrap-TTL", "X-Vault-Namespace", "X-Vault-Token", "X-Vault-Whatever", "Authorization", "Content-Type"]
        {
            let (kind, text) = flaw(&[(header, b"60s\xa0")]).unwrap();
            assert_eq!(kind, Kind::Invalid);
            let start = format!("the header {} holds other bytes", header.to_ascii_lowercase());
            assert!(text.starts_with(&start), "{text}");
        }
        for (header, first, second) in [
            ("X-Vault-Namespace", &b"root"[..], &b"other"[..]),
            ("X-Vault-Wrap-TTL", b"", b"60s"),
            ("X-Vault-Token", b"hvs.a", b"hvs.b"),
        ] {
            let (kind, text) = flaw(&[(header, first), (header, second)]).unwrap();
            assert_eq!(kind, Kind::Invalid);
            assert!(text.contains("came twice with different values"), "{text}");
            assert!(!text.contains("hvs."), "{text}");
        }
        assert_eq!(flaw(&[("X-Vault-Token", b"hvs.a"), ("X-Vault-Token", b"hvs.a")]), None);
        assert_eq!(flaw(&[("X-Vault-Index", b"a"), ("X-Vault-Index", b"b"), ("User-Agent", b"\xe4")]), None);
    }

    #[test]
    fn what_is_wrong_in_form_keeps_path_token_and_operation() {
        let read =
            |http: TestRequest| head(&http.insert_header((TOKEN.clone(), "hvs.a")).to_http_request(), &BTreeMap::new()).unwrap();
        for (http, operation, kind) in [
            (TestRequest::with_uri("/v1/kv/a?list=yes"), Operation::Read, Kind::Invalid),
            (TestRequest::with_uri("/v1/kv/a?scan=yes"), Operation::Read, Kind::Invalid),
            (TestRequest::with_uri("/v1/kv/a?list=true&scan=true"), Operation::Read, Kind::Invalid),
            (TestRequest::with_uri("/v1/kv/a").method(Method::PATCH), Operation::Patch, Kind::Invalid),
            (TestRequest::with_uri("/v1/kv/a").insert_header((NAMESPACE.clone(), "other")), Operation::Read, Kind::Invalid),
            (TestRequest::with_uri("/v1/kv/a").insert_header((WRAP_TTL.clone(), "abc")), Operation::Read, Kind::Invalid),
        ] {
            let request = read(http);
            assert_eq!((request.path.as_str(), request.operation), ("kv/a", operation));
            assert!(request.token.is_some());
            assert_eq!(request.flaw.map(|flaw| flaw.kind()), Some(kind));
        }
        let list = read(TestRequest::with_uri("/v1/kv/a?list=true"));
        assert!(list.flaw.is_none() && list.operation == Operation::List && list.path == "kv/a/");
    }

    #[test]
    fn only_true_nesting_counts_as_depth() {
        let nested = |levels: usize| format!("{}1{}", "{\"a\":[".repeat(levels / 2), "]}".repeat(levels / 2));
        assert!(!nested_too_deeply(nested(MAX_DEPTH).as_bytes()));
        assert!(nested_too_deeply(nested(MAX_DEPTH + 2).as_bytes()));
        let text = format!("{{\"a\":\"\\\"{}\"}}", "[".repeat(MAX_DEPTH * 2));
        assert!(!nested_too_deeply(text.as_bytes()));
        assert!(!nested_too_deeply("[],".repeat(MAX_DEPTH).as_bytes()));
    }
}
