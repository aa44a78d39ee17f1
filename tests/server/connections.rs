//! Connections that stay open over many requests: HTTP/1.1 with and without TLS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(40);

/// A connection over which one request after the other goes.
pub trait Talk {
    /// One request under `/v1/`; status and body, JSON null where it is empty.
    fn ask(&mut self, method: &str, path: &str, token: &str, body: &Value) -> (u16, Value);

    /// A request that must succeed; its data.
    #[track_caller]
    fn done(&mut self, method: &str, path: &str, token: &str, body: &Value) -> Value {
        let (status, answer) = self.ask(method, path, token, body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer["data"].clone()
    }
}

pub fn tls_config(authority: &str, protocol: &[u8]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config)
}

/// HTTP/1.1.
pub struct Http1<S> {
    stream: S,
    host: String,
}

fn socket(address: &str) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A plain connection to `http://…`.
pub fn plain(url: &str) -> Http1<TcpStream> {
    let host = url.trim_start_matches("http://").to_owned();
    Http1 { stream: socket(&host), host }
}

/// A connection to `https://…`.
pub fn tls(url: &str, authority: &str) -> Http1<StreamOwned<ClientConnection, TcpStream>> {
    let host = url.trim_start_matches("https://").to_owned();
    let connection = ClientConnection::new(tls_config(authority, b"http/1.1"), "127.0.0.1".try_into().unwrap()).unwrap();
    Http1 { stream: StreamOwned::new(connection, socket(&host)), host }
}

impl<S: Read + Write> Talk for Http1<S> {
    fn ask(&mut self, method: &str, path: &str, token: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = format!(
            "{method} /v1/{path} HTTP/1.1\r\nHost: {}\r\nX-Vault-Token: {token}\r\nContent-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        self.stream.write_all(head.as_bytes()).unwrap();
        self.stream.write_all(body.as_bytes()).unwrap();
        self.stream.flush().unwrap();
        let mut answer = Vec::new();
        let head = loop {
            if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
                break answer.drain(..end + 4).collect::<Vec<u8>>();
            }
            self.more(&mut answer);
        };
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let len = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |len| len.parse().unwrap());
        while answer.len() < len {
            self.more(&mut answer);
        }
        assert!(!head.contains("connection: close"), "the connection is to stay open: {head}");
        (status, serde_json::from_slice(&answer).unwrap_or(Value::Null))
    }
}

impl<S: Read> Http1<S> {
    fn more(&mut self, answer: &mut Vec<u8>) {
        let mut piece = [0; 4096];
        let len = self.stream.read(&mut piece).unwrap();
        assert!(len > 0, "the server closed the connection after {}", String::from_utf8_lossy(answer));
        answer.extend_from_slice(&piece[..len]);
    }
}
