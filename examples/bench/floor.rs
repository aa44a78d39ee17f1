//! The yardsticks: actix-web under the product's own settings, behind which there is nothing.
//!
//! ```text
//! /bare/<n>/…       takes the body to its end and answers n bytes
//! /parsing/<n>/…    parses the body as JSON first, as Transit must
//! ```
//! One default service takes every path, as in the product: no router, no extractors. The first two segments are all that is
//! looked at; the rest is there so that requests are as long as those that the product gets. The answers have the product's
//! two headers and come from static memory.

use std::{borrow::Cow, time::Duration};

use actix_web::{
    App, HttpResponse, HttpServer,
    dev::{Payload, ServiceRequest, fn_service},
    http::header::{self, HeaderValue},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::Deserialize;

use super::Outcome;

/// Larger answers than any row has.
static ANSWER: [u8; 1 << 20] = [b'x'; 1 << 20];

/// The members that Transit requests have.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Body<'a> {
    #[serde(borrow)]
    plaintext: Cow<'a, str>,
    #[serde(borrow)]
    ciphertext: Cow<'a, str>,
    #[serde(borrow)]
    input: Cow<'a, str>,
    #[serde(borrow)]
    batch_input: Vec<Body<'a>>,
}

impl Body<'_> {
    /// Bytes of text, so that the parsing is not optimised away.
    fn len(&self) -> usize {
        let own = self.plaintext.len() + self.ciphertext.len() + self.input.len();
        own + self.batch_input.iter().map(Body::len).sum::<usize>()
    }
}

/// What a path asks for: whether to parse, and the bytes to answer.
fn asked(path: &str) -> Option<(bool, Bytes)> {
    let (parse, rest) = match path.strip_prefix("/bare/") {
        Some(rest) => (false, rest),
        None => (true, path.strip_prefix("/parsing/")?),
    };
    let bytes: usize = rest.split('/').next()?.parse().ok()?;
    Some((parse, Bytes::from_static(ANSWER.get(..bytes)?)))
}

async fn answer(path: &str, mut payload: Payload) -> HttpResponse {
    let Some((parse, bytes)) = asked(path) else { return HttpResponse::NotFound().finish() };
    let mut body = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        match chunk {
            Ok(chunk) => body.extend_from_slice(&chunk),
            Err(_) => return HttpResponse::BadRequest().finish(),
        }
    }
    if parse {
        match serde_json::from_slice::<Body<'_>>(&body) {
            Ok(parsed) => drop(std::hint::black_box(parsed.len())),
            Err(_) => return HttpResponse::BadRequest().finish(),
        }
    }
    std::hint::black_box(&body);
    let mut response = HttpResponse::Ok();
    response.insert_header((header::CACHE_CONTROL, HeaderValue::from_static("no-store")));
    response.insert_header((header::CONTENT_TYPE, HeaderValue::from_static("application/json")));
    response.body(bytes)
}

/// Serves until it is killed.
pub fn serve(address: &str, tls: Option<(&str, &str)>) -> Outcome {
    let workers = std::thread::available_parallelism().map_or(2, |cores| cores.get());
    // As `src/startup/listen.rs` and `src/http/mod.rs` have it.
    let server = HttpServer::new(|| {
        App::new().default_service(fn_service(|request: ServiceRequest| async {
            let (http, payload) = request.into_parts();
            let response = answer(http.path(), payload).await;
            Ok(ServiceRequest::from_request(http).into_response(response))
        }))
    })
    .workers(workers)
    .keep_alive(Duration::from_secs(120))
    .client_request_timeout(Duration::from_secs(30));
    let server = match tls {
        None => server.bind(address)?,
        Some((cert, key)) => {
            let chain = CertificateDer::pem_file_iter(cert)?.collect::<Result<Vec<_>, _>>()?;
            // Two libraries in this program bring their own; it must be told which.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            let config = rustls::ServerConfig::builder().with_no_client_auth();
            server.bind_rustls_0_23(address, config.with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?)?
        }
    };
    actix_web::rt::System::new().block_on(server.run())?;
    Ok(serde_json::Value::Null)
}
