//! TLS of a listener: certificates and the authorities of clients from files, read again on SIGHUP without dropping connections.

use std::{fmt, path::Path, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, ResolvesServerCert, danger::ClientCertVerifier},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use thiserror::Error;

use super::client_authorities::{Authorities, ClientAuthorities, Sessions};
use crate::config::{Tls, TlsVersion};

/// Why a listener has no TLS.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read or holds no PEM of the right kind.
    #[error("{what} {path}: {reason}")]
    File {
        /// Which setting.
        what: &'static str,
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key do not fit, or the settings contradict each other.
    #[error("the TLS settings cannot be used: {0}")]
    Settings(String),
}

/// The certificate of a listener and the authorities of its clients, exchangeable while it serves.
pub struct Certificate {
    tls: Tls,
    current: ArcSwap<CertifiedKey>,
    clients: Option<Arc<ClientAuthorities>>,
    sessions: Arc<Sessions>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificate")
    }
}

impl Certificate {
    /// Reads the files once.
    pub fn load(tls: &Tls) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self {
            tls: tls.clone(),
            current: ArcSwap::from_pointee(read(tls)?),
            clients: Authorities::read(tls, None)?.map(|first| Arc::new(ClientAuthorities::new(first))),
            sessions: Arc::default(),
        }))
    }

    /// Reads the files again, for the handshakes from now on; on failure all that was read before stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        let current = read(&self.tls)?;
        let authorities = Authorities::read(&self.tls, self.clients.as_deref())?;
        self.current.store(Arc::new(current));
        if let (Some(clients), Some(authorities)) = (&self.clients, authorities) {
            clients.replace(authorities);
            self.sessions.forget();
        }
        Ok(())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

pub(super) fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |reason: String| TlsError::File { what, path: path.display().to_string(), reason };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?.collect();
    let found = found.map_err(|error| wrong(error.to_string()))?;
    if found.is_empty() { Err(wrong("there is no certificate in it".into())) } else { Ok(found) }
}

fn read(tls: &Tls) -> Result<CertifiedKey, TlsError> {
    let chain = certificates("tls_cert_file", &tls.cert_file)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key_file).map_err(|error| TlsError::File {
        what: "tls_key_file",
        path: tls.key_file.display().to_string(),
        reason: error.to_string(),
    })?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| {
        TlsError::Settings(format!("{} does not fit {}: {error}", tls.key_file.display(), tls.cert_file.display()))
    })
}

/// The server side of a listener's TLS.
pub fn server_config(tls: &Tls, certificate: Arc<Certificate>) -> Result<ServerConfig, TlsError> {
    let versions: &[_] = match tls.min_version {
        TlsVersion::Tls12 => &[&TLS12, &TLS13],
        TlsVersion::Tls13 => &[&TLS13],
    };
    let settings = |error: &dyn fmt::Display| TlsError::Settings(error.to_string());
    let builder =
        ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions).map_err(|error| settings(&error))?;
    let builder = match &certificate.clients {
        Some(clients) => builder.with_client_cert_verifier(Arc::clone(clients) as Arc<dyn ClientCertVerifier>),
        None => builder.with_no_client_auth(),
    };
    let sessions = Arc::clone(&certificate.sessions);
    let mut config = builder.with_cert_resolver(certificate);
    config.session_storage = sessions;
    Ok(config)
}
