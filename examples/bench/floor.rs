//! The yardstick: an actix-web server with the product's own settings that does nothing but HTTP.
//!
//! `/floor/<n>/…` takes the body, parses it when it is JSON, and answers n bytes under the same headers as the product does.

use std::{borrow::Cow, time::Duration};

use actix_web::{App, HttpResponse, HttpServer, http::header, web};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::Deserialize;

use super::Outcome;

/// The members that Transit requests have; others (KV) are passed over.
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

async fn answer(path: web::Path<(usize, String)>, body: web::Bytes) -> HttpResponse {
    if !body.is_empty() {
        match serde_json::from_slice::<Body<'_>>(&body) {
            Ok(parsed) => drop(std::hint::black_box(parsed.len())),
            Err(_) => return HttpResponse::BadRequest().finish(),
        }
    }
    let mut response = HttpResponse::Ok();
    response.insert_header((header::CACHE_CONTROL, "no-store")).insert_header((header::CONTENT_TYPE, "application/json"));
    match path.0 {
        0 => HttpResponse::NoContent().finish(),
        bytes => response.body(vec![b'x'; bytes]),
    }
}

/// Serves until it is killed.
pub fn serve(address: &str, tls: Option<(&str, &str)>) -> Outcome {
    let workers = std::thread::available_parallelism().map_or(2, |cores| cores.get());
    let server = HttpServer::new(|| {
        App::new().app_data(web::PayloadConfig::new(32 << 20)).route("/floor/{bytes}/{rest:.*}", web::to(answer))
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
