//! TLS of a listener: certificates from files, read again on SIGHUP without dropping connections.

use std::{fmt, path::Path, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use thiserror::Error;

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

/// The certificate of a listener, exchangeable while it serves.
pub struct Certificate {
    tls: Tls,
    current: ArcSwap<CertifiedKey>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificate")
    }
}

impl Certificate {
    /// Reads the files once.
    pub fn load(tls: &Tls) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self { tls: tls.clone(), current: ArcSwap::from_pointee(read(tls)?) }))
    }

    /// Reads the files again; on failure the old certificate stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.current.store(Arc::new(read(&self.tls)?));
        Ok(())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
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
    let builder = match (&tls.client_ca_file, tls.disable_client_certs) {
        (Some(path), false) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("tls_client_ca_file", path)? {
                roots.add(certificate).map_err(|error| settings(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
            let verifier = if tls.require_client_cert { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| settings(&error))?)
        }
        _ if tls.require_client_cert => {
            return Err(TlsError::Settings(
                "tls_require_and_verify_client_cert needs tls_client_ca_file, the authorities to verify against".into(),
            ));
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(builder.with_cert_resolver(certificate))
}
