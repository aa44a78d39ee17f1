//! Everything outside Transit: paths and headers, JSON and form bodies, HCL, tokens, stored records, backups of the store,
//! the worker's frames.

use std::cell::RefCell;

use actix_web::{
    http::{Method, Uri},
    test::TestRequest,
};
use bytes::Bytes;

use super::server::{Server, assert_no_defect, base64, quoted, with};
use crate::{
    backup::fuzzing as backup,
    config,
    core::{
        policy::{AccessRequest, Acl, parse},
        request::{Operation, Request},
    },
    engines::transit::fuzzing as transit,
    hcl as language,
    hsm::{KeyKind, der, proto},
    http::decode,
    seal, storage,
};

/// The first byte chooses the verb; then a URI, and on further lines header values. Reads are answered by a server.
pub fn paths(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    let mut lines = text.split('\n');
    let Ok(uri) = lines.next().unwrap_or_default().parse::<Uri>() else { return };
    let verbs = ["GET", "POST", "PUT", "DELETE", "LIST", "SCAN", "PATCH", "HEAD", "OPTIONS"];
    let verb = verbs[usize::from(*choice) % verbs.len()];
    let Ok(method) = Method::from_bytes(verb.as_bytes()) else { return };
    let mut http = TestRequest::default().uri(&uri.to_string()).method(method);
    for (name, value) in HEADERS.iter().zip(lines) {
        if let Ok(value) = actix_web::http::header::HeaderValue::from_str(value) {
            http = http.insert_header((*name, value));
        }
    }
    let http = http.to_http_request();
    if let Some(place) = decode::without_empty_segments(&http) {
        // A redirect leads to a place that is not redirected again.
        let again = TestRequest::default().uri(&place).to_http_request();
        assert!(place.parse::<Uri>().is_ok() && decode::without_empty_segments(&again).is_none(), "{place}");
        return;
    }
    let Ok(request) = decode::head(&http, &std::collections::BTreeMap::new()) else { return };
    assert!(!request.path.split('/').any(|segment| segment == ".."), "{}", request.path);
    with(
        |_| (),
        |server| {
            let reads = matches!(request.operation, Operation::Read | Operation::List | Operation::Scan | Operation::Help);
            let path = request.path.clone();
            let answer = if reads && request.token.is_none() { server.send_as_root(request) } else { server.send(request) };
            assert_no_defect(&path, &answer);
            // Without a root token nothing that writes is answered but logins and the like.
            assert!(reads || answer.status != 204 || path.starts_with("sys/"), "{path} was written without a token");
        },
    );
}

const HEADERS: [&str; 6] =
    ["content-type", "x-vault-wrap-ttl", "x-vault-namespace", "x-vault-token", "authorization", "x-vault-wrap-format"];

/// Where bodies go. Nothing among them seals the server or makes an RSA key.
const WRITES: [(Operation, &str); 40] = [
    (Operation::Update, "kv2/data/a"),
    (Operation::Patch, "kv2/data/a"),
    (Operation::Update, "kv2/metadata/a"),
    (Operation::Patch, "kv2/metadata/a"),
    (Operation::Update, "kv2/config"),
    (Operation::Update, "kv2/delete/a"),
    (Operation::Update, "kv2/undelete/a"),
    (Operation::Update, "kv2/destroy/a"),
    (Operation::Update, "kv1/a"),
    (Operation::Update, "cubbyhole/a"),
    (Operation::Update, "auth/token/create"),
    (Operation::Update, "auth/token/create-orphan"),
    (Operation::Update, "auth/token/roles/r"),
    (Operation::Update, "auth/token/lookup"),
    (Operation::Update, "auth/token/lookup-accessor"),
    (Operation::Update, "auth/token/renew"),
    (Operation::Update, "auth/token/revoke-accessor"),
    (Operation::Update, "sys/policies/acl/p"),
    (Operation::Update, "sys/mounts/other"),
    (Operation::Update, "sys/mounts/kv2/tune"),
    (Operation::Update, "sys/wrapping/wrap"),
    (Operation::Update, "sys/wrapping/lookup"),
    (Operation::Update, "sys/capabilities"),
    (Operation::Update, "sys/capabilities-self"),
    (Operation::Update, "sys/tools/hash"),
    (Operation::Update, "sys/tools/random"),
    (Operation::Update, "sys/leases/lookup"),
    (Operation::Update, "sys/config/cors"),
    (Operation::Update, "sys/rotate/config"),
    (Operation::Update, "sys/remount"),
    (Operation::Update, "sys/audit/a"),
    (Operation::Update, "sys/sos/zones/z"),
    (Operation::Update, "sys/generate-root/attempt"),
    (Operation::Update, "sys/generate-root/update"),
    (Operation::Update, "sys/unseal"),
    (Operation::Update, "transit/keys/ec/config"),
    (Operation::Update, "transit/keys/ec/set-certificate"),
    (Operation::Update, "transit/keys/ec/csr"),
    (Operation::Update, "transit/keys/ec/trim"),
    (Operation::Update, "transit/random"),
];

/// The first byte chooses the endpoint, the second the content type; the rest is the body.
pub fn bodies(data: &[u8]) {
    let [choice, kind, body @ ..] = data else { return };
    let (operation, path) = WRITES[usize::from(*choice) % WRITES.len()];
    let kinds = ["application/json", "application/merge-patch+json", "application/x-www-form-urlencoded", ""];
    let http = TestRequest::post().insert_header(("content-type", kinds[usize::from(kind & 3)])).to_http_request();
    let Ok(body) = decode::body(decode::body_kind(&http), Bytes::copy_from_slice(body)) else { return };
    let prepare = |server: &Server| {
        server.must("transit/keys/ec", r#"{"type":"ecdsa-p256"}"#);
        server.must("kv2/data/a", r#"{"data":{"a":{"b":[1,2.50,"x"]},"c":null}}"#);
    };
    with(prepare, |server| {
        server.try_out(operation, path, &body);
        for path in ["kv2/data/a", "kv2/metadata/a", "kv1/a", "cubbyhole/a"] {
            server.try_out(Operation::Read, path, b"");
        }
    });
}

/// The first byte chooses between a policy, a configuration and the bare language.
pub fn hcl(data: &[u8]) {
    let Some((choice, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    match choice % 3 {
        0 => {
            if let Ok(document) = language::parse("fuzzed", text) {
                assert_eq!(language::parse("fuzzed", text), Ok(document));
            }
        }
        1 => {
            let Ok(policy) = parse("fuzzed", text) else { return };
            let paths: Vec<String> = policy.rules.iter().map(|rule| rule.path.clone()).collect();
            let acl = Acl::new(&[std::sync::Arc::new(policy)]);
            for path in paths.iter().map(String::as_str).chain(["", "a", "a/b/c/", "sys/mounts"]) {
                let request = AccessRequest { path, operation: Operation::Update, parameters: &(), wrap_ttl: None };
                let access = acl.check(&request);
                assert!(!access.allowed || acl.capabilities(path).contains(&"update"), "{path}");
                acl.sees_inside(path);
            }
        }
        _ => {
            let _ = config::from_text(text);
        }
    }
}

thread_local! {
    /// A batch token and a wrapping token as JWT of this thread's server.
    static ISSUED: RefCell<[String; 2]> = const { RefCell::new([String::new(), String::new()]) };
}

fn issue(server: &Server) {
    let member = |answer: &[u8], outer: &str, inner: &str| {
        let parsed: serde_json::Value = serde_json::from_slice(answer).unwrap_or_default();
        parsed[outer][inner].as_str().unwrap_or_default().to_owned()
    };
    let batch = server.must("auth/token/create", r#"{"type":"batch","policies":["default"],"ttl":"1h"}"#);
    let mut request = Request::internal(Operation::Update, "sys/wrapping/wrap", r#"{"a":"b"}"#);
    request.wrap_ttl = Some(std::time::Duration::from_secs(3600));
    request.wrap_as_jwt = true;
    let wrapped = server.send_as_root(request);
    let issued = [member(&batch.body, "auth", "client_token"), member(&wrapped.body, "wrap_info", "token")];
    assert!(issued.iter().all(|token| !token.is_empty()), "no tokens were issued");
    ISSUED.set(issued);
}

/// The text with edits: each three bytes are a place (two bytes) and what is put there.
fn edited(text: &str, edits: &[u8]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for edit in edits.chunks_exact(3) {
        let place = usize::from(u16::from_be_bytes([edit[0], edit[1]])) % bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(place) {
            *byte = edit[2] & 0x7f;
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// The first byte chooses where a text is a token, and whether it is the input or an edited token of the server.
pub fn tokens(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    with(issue, |server| {
        let text = String::from_utf8_lossy(rest);
        let [batch, jwt] = ISSUED.with_borrow(Clone::clone);
        let with_token = |token: &str, path: &str| {
            let answer = server.send_with(token, Request::internal(Operation::Read, path, ""));
            assert_no_defect(path, &answer);
            answer.status
        };
        match choice % 7 {
            0 => assert_eq!(with_token(&text, "auth/token/lookup-self"), 403),
            1 => {
                let token = edited(&batch, rest);
                assert!(token == batch || with_token(&token, "auth/token/lookup-self") == 403, "{token} is taken for {batch}");
            }
            2 => {
                let token = edited(&jwt, rest);
                let body = format!(r#"{{"token":{}}}"#, quoted(&token));
                let answer = server.try_out(Operation::Update, "sys/wrapping/lookup", body.as_bytes());
                assert!(token == jwt || answer.status >= 400, "{token} is taken for {jwt}");
            }
            3 => {
                for path in ["sys/wrapping/unwrap", "sys/wrapping/rewrap", "sys/wrapping/lookup", "auth/token/lookup"] {
                    let body = format!(r#"{{"token":{}}}"#, quoted(&text));
                    let answer = server.try_out(Operation::Update, path, body.as_bytes());
                    // Without a token in the body this one looks up the caller.
                    let caller = path == "auth/token/lookup" && text.is_empty();
                    assert!(caller || answer.status >= 400, "{path} takes {text:?}");
                }
            }
            4 => {
                let body = format!(r#"{{"accessor":{}}}"#, quoted(&text));
                server.try_out(Operation::Update, "auth/token/lookup-accessor", body.as_bytes());
                let body = format!(r#"{{"encoded_token":{0},"otp":{0}}}"#, quoted(&text));
                server.try_out(Operation::Update, "sys/decode-token", body.as_bytes());
            }
            5 => {
                // A share of the key, in hexadecimal or base64.
                let body = format!(r#"{{"key":{},"nonce":""}}"#, quoted(&text));
                server.try_out(Operation::Update, "sys/generate-root/attempt", b"{}");
                server.try_out(Operation::Update, "sys/generate-root/update", body.as_bytes());
                let _ = seal::combine_shares(&text.split(' ').map(|share| share.to_owned().into()).collect::<Vec<_>>());
            }
            _ => {
                let body = format!(r#"{{"lease_id":{0},"increment":{0}}}"#, quoted(&text));
                server.try_out(Operation::Update, "sys/leases/lookup", body.as_bytes());
                server.try_out(Operation::Update, "sys/leases/renew", body.as_bytes());
            }
        }
    });
}

/// The first byte chooses what the rest is stored as; then the server reads it. Damage is an error, never a panic.
pub fn records(data: &[u8]) {
    let Some((choice, record)) = data.split_first() else { return };
    match choice % 12 {
        0 => storage::fuzzing::frame(record),
        1 => crate::barrier::fuzzing::record(record),
        2 => crate::barrier::fuzzing::keyring(record),
        3 => seal::fuzzing::record(record),
        4 => crate::core::tokens::fuzzing::entry(record),
        choice => with(|_| (), |server| stored(server, choice, record)),
    }
}

fn stored(server: &Server, choice: u8, record: &[u8]) {
    let read = |paths: &[(Operation, &str)]| {
        for (operation, path) in paths {
            server.ask(
                *operation,
                path,
                br#"{"data":{"a":1},"versions":[1],"type":"ecdsa-p256","plaintext":"eA==","input":"eA=="}"#,
            );
        }
    };
    use Operation::{Delete, List, Patch, Read, Update};
    match choice {
        5 | 6 => {
            // A key's record, and in the second form the record of its first version too.
            let (key, version) = match choice {
                5 => (record, None),
                _ => split(record),
            };
            server.plant("kv2", &crate::engines::kv2::record::key_path("x"), key);
            if let Some(version) = version {
                server.plant("kv2", &crate::engines::kv2::record::version_path("x", 1), version);
            }
            read(&[
                (Read, "kv2/data/x"),
                (Read, "kv2/metadata/x"),
                (Patch, "kv2/data/x"),
                (Update, "kv2/metadata/x"),
                (Update, "kv2/data/x"),
                (Update, "kv2/delete/x"),
                (Update, "kv2/undelete/x"),
                (Update, "kv2/destroy/x"),
                (List, "kv2/metadata/"),
                (Delete, "kv2/data/x"),
                (Delete, "kv2/metadata/x"),
            ]);
        }
        7 => {
            server.plant("kv1", "x", record);
            read(&[(Read, "kv1/x"), (Update, "kv1/x"), (Delete, "kv1/x")]);
        }
        8 => {
            server.plant("", "sys/policy/x", record);
            read(&[(Read, "sys/policies/acl/x"), (List, "sys/policies/acl/"), (Delete, "sys/policies/acl/x")]);
        }
        9 => {
            server.plant("", "sos/zones/x", record);
            read(&[(Read, "sys/sos/zones/x"), (List, "sys/sos/zones/"), (Update, "sys/sos/zones/x/rotate")]);
            server.plant("", "sos/zones/x", b"");
        }
        _ => {
            let (key, version) = split(record);
            let name = format!("x{}", server.served());
            server.plant("transit", &format!("key/{name}"), key);
            if let (Some(version), Ok(parsed)) = (version, serde_json::from_slice::<serde_json::Value>(key)) {
                let uid = parsed["uid"].as_str().filter(|uid| !uid.is_empty() && !uid.contains(['/', '.', '\0']));
                if let Some(uid) = uid.filter(|uid| uid.is_ascii() && !uid.bytes().any(|byte| byte.is_ascii_control())) {
                    server.plant("transit", &format!("material/{uid}/1"), version);
                }
            }
            let path = |path: &str| path.replace('*', &name);
            for (operation, pattern) in [
                (Read, "transit/keys/*"),
                (Update, "transit/encrypt/*"),
                (Update, "transit/sign/*"),
                (Update, "transit/hmac/*"),
                (Read, "transit/export/hmac-key/*"),
                (Read, "transit/export/encryption-key/*"),
                (Read, "transit/export/signing-key/*"),
                (Read, "transit/backup/*"),
                (Update, "transit/keys/*/csr"),
                (Update, "transit/keys/*/rotate"),
                (Delete, "transit/keys/*"),
            ] {
                // Making an RSA key takes seconds and reads nothing.
                let makes_rsa = pattern.ends_with("/rotate") && String::from_utf8_lossy(key).contains("rsa-");
                if !makes_rsa {
                    read(&[(operation, &path(pattern))]);
                }
            }
            server.remove("transit", &format!("key/{name}"));
        }
    }
}

/// Two records with a zero byte between them.
fn split(data: &[u8]) -> (&[u8], Option<&[u8]>) {
    match data.iter().position(|byte| *byte == 0xff) {
        Some(at) => (&data[..at], data.get(at + 1..)),
        None => (data, None),
    }
}

/// The first byte chooses: a whole archive, an archive of ours with edits, a tar file, or the parts of an archive.
pub fn snapshots(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    match choice % 7 {
        0 => backup::archive(rest),
        1 => backup::edited(rest),
        2 => backup::tarred(rest),
        3 => backup::framed(rest),
        4 => backup::head(rest),
        5 => backup::chunk(rest),
        _ => backup::seal(rest),
    }
}

/// The first byte chooses: any bytes as a file of the journal, whole records with any content, or a journal of ours with damage.
pub fn journal(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    match choice % 4 {
        0 => storage::fuzzing::journal_file(rest),
        1 => storage::fuzzing::journal_framed(rest),
        _ => storage::fuzzing::journal_edited(rest),
    }
}

/// The small files beside the store. The first byte chooses: the note of the last acknowledged version, the note of the current
/// generation, the plan of an exchange, the end of an audit file.
pub fn files(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    match choice % 4 {
        0 => storage::fuzzing::mark(rest),
        1 => storage::fuzzing::current(rest),
        2 => backup::plan(rest),
        _ => crate::audit::fuzz_end(rest),
    }
}

/// The first byte chooses: frames between server and worker, attributes of a module's keys, DER of other programs.
pub fn worker(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    match choice % 9 {
        0 => {
            if let Some((header, body)) = proto::split_request(rest)
                && let Ok(op) = proto::decode::<proto::Op<'_>>(body)
            {
                let _ = (op.lane(), op.repeatable());
                // What was read writes to a frame that reads back.
                let frame = proto::request(header, &op);
                assert!(frame.is_ok_and(|frame| proto::split_request(&frame[4..]).is_some()));
            }
        }
        1 => {
            if let Some((call, body)) = proto::split_message(rest)
                && let Ok(reply) = proto::decode::<proto::Reply<'_>>(body)
            {
                assert!(proto::message(call, &reply).is_ok());
            }
        }
        2 => {
            if let Some((_, body)) = proto::split_message(rest) {
                let _ = proto::decode::<proto::Hello>(body).is_ok();
                let _ = proto::decode::<proto::Pin<'_>>(body).is_ok();
                let _ = proto::decode::<proto::Event>(body).is_ok();
            }
        }
        3 => {
            // A claimed length beyond the input is only waited for, not trusted; large ones would only cost time here.
            if rest.get(2..4).is_none_or(|high| high == [0, 0]) {
                let _ = proto::read_frame(&mut &*rest).is_ok();
            }
        }
        4 => {
            if let Some(key) = der::parse_rsa(rest) {
                let written = der::rsa(key);
                assert_eq!(der::parse_rsa(&written), Some(key), "an RSA key changes when it is written");
            }
        }
        5 => {
            for kind in [KeyKind::EcP256, KeyKind::EcP384, KeyKind::EcP521, KeyKind::Ed25519, KeyKind::Aes256] {
                let _ = der::elliptic(kind, rest);
            }
        }
        6 => transit::certificates(&String::from_utf8_lossy(rest)),
        7 => transit::certificates(&transit::pem_of(&base64(rest))),
        _ => {
            // CKA_MODULUS and CKA_PUBLIC_EXPONENT as a module gives them, with or without zeroes in front.
            let Some((len, rest)) = rest.split_first() else { return };
            let (exponent, modulus) = rest.split_at(usize::from(*len).min(rest.len()));
            let number = |bytes: &[u8]| bytes.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<u8>>();
            let written = der::rsa(der::RsaPublic { modulus, exponent });
            let read = der::parse_rsa(&written).map(|key| (number(key.modulus), number(key.exponent)));
            // DER of two bytes of length.
            assert!(written.len() > 0xff00 || read == Some((number(modulus), number(exponent))), "an RSA key changes");
        }
    }
}
