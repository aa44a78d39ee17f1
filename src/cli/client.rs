//! The HTTP client behind the operator's commands: Vault's environment variables, headers and error texts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use ureq::Agent;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::Failure;
use super::output::Format;
use super::terminal::Terminal;
use crate::secret::SecretString;

const DEFAULT_ADDRESS: &str = "https://127.0.0.1:8200";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// The authorities that the system trusts, on the distributions that SOS runs on.
const SYSTEM_AUTHORITIES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// Flags of every command that talks to a server.
#[derive(Args, Debug, Default)]
pub(super) struct ClientArgs {
    /// Address of the server (or VAULT_ADDR)
    #[arg(long)]
    address: Option<String>,
    /// PEM file of the authority that signed the server's certificate (or VAULT_CACERT)
    #[arg(long)]
    ca_cert: Option<PathBuf>,
    /// PEM file with this client's certificate (or VAULT_CLIENT_CERT)
    #[arg(long)]
    client_cert: Option<PathBuf>,
    /// PEM file with this client's key (or VAULT_CLIENT_KEY)
    #[arg(long)]
    client_key: Option<PathBuf>,
    /// Do not check the server's certificate (or VAULT_SKIP_VERIFY)
    #[arg(long)]
    tls_skip_verify: bool,
    /// Shape of the output: table or json (or VAULT_FORMAT)
    #[arg(long)]
    format: Option<String>,
}

impl ClientArgs {
    /// The shape of the output.
    pub(super) fn format(&self, terminal: &Terminal<'_>) -> Result<Format, Failure> {
        let name = self.format.clone().or_else(|| terminal.variable("VAULT_FORMAT")).unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "" | "table" => Ok(Format::Table),
            "json" => Ok(Format::Json),
            _ => Err(Failure::usage(format!("Invalid output format: {name}; write -format=table or -format=json"))),
        }
    }

    /// A client for the server that the flags and the environment name.
    pub(super) fn client(&self, terminal: &Terminal<'_>) -> Result<Client, Failure> {
        let address = self.address.clone().or_else(|| terminal.variable("VAULT_ADDR")).unwrap_or_else(|| DEFAULT_ADDRESS.into());
        if !address.starts_with("http://") && !address.starts_with("https://") {
            return Err(Failure::usage(format!("the address {address:?} must begin with http:// or https://")));
        }
        let timeout = match terminal.variable("VAULT_CLIENT_TIMEOUT") {
            Some(text) => crate::wire::duration::parse_duration(&text)
                .map_err(|error| Failure::usage(format!("VAULT_CLIENT_TIMEOUT: {error}")))?,
            None => DEFAULT_TIMEOUT,
        };
        let agent = Agent::config_builder()
            .tls_config(self.tls(terminal)?)
            .http_status_as_error(false)
            .timeout_global(Some(timeout))
            .user_agent(concat!("sos/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Client { agent, address: address.trim_end_matches('/').to_string(), token: token(terminal) })
    }

    /// The same, where flags or environment name a server and there is a token for it.
    pub(super) fn named_client(&self, terminal: &Terminal<'_>) -> Result<Option<Client>, Failure> {
        if self.address.is_none() && terminal.variable("VAULT_ADDR").is_none() {
            return Ok(None);
        }
        Ok(Some(self.client(terminal)?).filter(|client| client.token.is_some()))
    }

    fn tls(&self, terminal: &Terminal<'_>) -> Result<TlsConfig, Failure> {
        let path = |flag: &Option<PathBuf>, name: &str| flag.clone().or_else(|| terminal.variable(name).map(PathBuf::from));
        let skip = match terminal.variable("VAULT_SKIP_VERIFY").as_deref() {
            None => false,
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
            Some(_) => return Err(Failure::usage("VAULT_SKIP_VERIFY must be true or false")),
        };
        let roots = match path(&self.ca_cert, "VAULT_CACERT") {
            Some(file) => authorities(&file)?,
            None => {
                SYSTEM_AUTHORITIES.iter().find_map(|file| authorities(&PathBuf::from(file)).ok()).unwrap_or(RootCerts::WebPki)
            }
        };
        let client_cert = match (path(&self.client_cert, "VAULT_CLIENT_CERT"), path(&self.client_key, "VAULT_CLIENT_KEY")) {
            (Some(cert), Some(key)) => Some(client_cert(&cert, &key)?),
            (None, None) => None,
            _ => return Err(Failure::usage("a client certificate needs both -client-cert and -client-key")),
        };
        Ok(TlsConfig::builder()
            .root_certs(roots)
            .client_cert(client_cert)
            .disable_verification(self.tls_skip_verify || skip)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .build())
    }
}

fn read_pem(file: &PathBuf) -> Result<zeroize::Zeroizing<Vec<u8>>, Failure> {
    let failed = |error| Failure::usage(format!("cannot read {}: {error}", file.display()));
    std::fs::read(file).map(zeroize::Zeroizing::new).map_err(failed)
}

fn certificates(file: &PathBuf) -> Result<Vec<Certificate<'static>>, Failure> {
    let pem = read_pem(file)?;
    let found: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    match found.is_empty() {
        true => Err(Failure::usage(format!("{} holds no certificate in PEM form", file.display()))),
        false => Ok(found),
    }
}

fn authorities(file: &PathBuf) -> Result<RootCerts, Failure> {
    Ok(RootCerts::Specific(Arc::new(certificates(file)?)))
}

fn client_cert(cert: &PathBuf, key: &PathBuf) -> Result<ClientCert, Failure> {
    let key = PrivateKey::from_pem(&read_pem(key)?)
        .map_err(|error| Failure::usage(format!("cannot use {}: {error}", key.display())))?;
    Ok(ClientCert::new_with_certs(&certificates(cert)?, key))
}

/// `VAULT_TOKEN`, else the file that logins write.
fn token(terminal: &Terminal<'_>) -> Option<SecretString> {
    let from_file = || {
        let home = terminal.variable("HOME")?;
        std::fs::read_to_string(PathBuf::from(home).join(".vault-token")).ok()
    };
    let token = terminal.variable("VAULT_TOKEN").or_else(from_file)?.trim().to_string();
    Some(SecretString::new(token)).filter(|token| !token.is_empty())
}

/// A connection to one server.
pub(super) struct Client {
    agent: Agent,
    address: String,
    token: Option<SecretString>,
}

/// Why a request brought no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("Error making API request.\n\nURL: {method} {url}\nCode: {code}. Errors:\n\n{errors}")]
    Refused { method: &'static str, url: String, code: u16, errors: String },
    #[error("cannot reach the server at {url}: {source}")]
    Unreachable { url: String, source: Box<ureq::Error> },
    #[error("the answer of {url} is not JSON")]
    NotJson { url: String },
}

impl Client {
    /// Whether requests carry a token.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.send("GET", path, None)
    }

    pub(super) fn put(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.send("PUT", path, Some(body))
    }

    pub(super) fn delete(&self, path: &str) -> Result<Value, ClientError> {
        self.send("DELETE", path, None)
    }

    /// A write that may take its time.
    pub(super) fn put_slowly(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let body = body.to_string();
        self.upload(path, &mut body.as_bytes())
    }

    /// A body of any length, read while it arrives.
    pub(super) fn download(&self, path: &str) -> Result<impl std::io::Read + use<>, ClientError> {
        let url = format!("{}/v1/{path}", self.address);
        let request = self.request("GET", &url).body(()).map_err(ureq::Error::from);
        let sent = request.and_then(|request| {
            let request = self.agent.configure_request(request).timeout_global(None).build();
            self.agent.run(request)
        });
        let unreachable = |source: ureq::Error| ClientError::Unreachable { url: url.clone(), source: Box::new(source) };
        let mut response = sent.map_err(unreachable)?;
        let code = response.status().as_u16();
        if !(200..300).contains(&code) {
            let text = response.body_mut().read_to_string().map_err(unreachable)?;
            return Err(ClientError::Refused { method: "GET", url, code, errors: errors_of(&text) });
        }
        Ok(response.into_body().into_reader())
    }

    /// Sends a body of any length.
    pub(super) fn upload(&self, path: &str, body: &mut dyn std::io::Read) -> Result<Value, ClientError> {
        let url = format!("{}/v1/{path}", self.address);
        let unreachable = |source: ureq::Error| ClientError::Unreachable { url: url.clone(), source: Box::new(source) };
        let request = self.request("POST", &url).body(ureq::SendBody::from_reader(body)).map_err(ureq::Error::from);
        let sent = request.and_then(|request| {
            let request = self.agent.configure_request(request).timeout_global(None).build();
            self.agent.run(request)
        });
        answer_of("POST", sent.map_err(unreachable)?, &url)
    }

    fn request(&self, method: &'static str, url: &str) -> ureq::http::request::Builder {
        let request = ureq::http::Request::builder().method(method).uri(url).header("X-Vault-Request", "true");
        match &self.token {
            Some(token) => request.header("X-Vault-Token", token.expose()),
            None => request,
        }
    }

    fn send(&self, method: &'static str, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let url = format!("{}/v1/{path}", self.address);
        let request = self.request(method, &url);
        let body = zeroize::Zeroizing::new(body.map(Value::to_string).unwrap_or_default());
        let unreachable = |source: ureq::Error| ClientError::Unreachable { url: url.clone(), source: Box::new(source) };
        let sent = match body.is_empty() {
            true => request.body(()).map_err(ureq::Error::from).and_then(|request| self.agent.run(request)),
            false => request.body(body.as_bytes()).map_err(ureq::Error::from).and_then(|request| self.agent.run(request)),
        };
        answer_of(method, sent.map_err(unreachable)?, &url)
    }
}

/// The JSON of an answer, or what the server refused.
fn answer_of(method: &'static str, mut response: ureq::http::Response<ureq::Body>, url: &str) -> Result<Value, ClientError> {
    let url = url.to_owned();
    let unreachable = |source: ureq::Error| ClientError::Unreachable { url: url.clone(), source: Box::new(source) };
    let code = response.status().as_u16();
    let text = zeroize::Zeroizing::new(response.body_mut().read_to_string().map_err(unreachable)?);
    if !(200..300).contains(&code) {
        return Err(ClientError::Refused { method, url, code, errors: errors_of(&text) });
    }
    match text.trim().is_empty() {
        true => Ok(Value::Null),
        false => serde_json::from_str(&text).map_err(|_| ClientError::NotJson { url }),
    }
}

/// The texts of an error reply, one per line behind a star.
fn errors_of(text: &str) -> String {
    let parsed: Option<Value> = serde_json::from_str(text).ok();
    let errors = parsed.as_ref().and_then(|value| value.get("errors")).and_then(Value::as_array);
    match errors {
        Some(errors) => errors.iter().filter_map(Value::as_str).map(|error| format!("* {error}")).collect::<Vec<_>>().join("\n"),
        None => text.trim().to_string(),
    }
}
