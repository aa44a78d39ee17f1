//! The authorities of client certificates, exchangeable while a listener serves.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    server::{
        ServerSessionMemoryCache, StoresServerSessions, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::tls::{TlsError, certificates, provider};
use crate::config::Tls;

/// Sessions that clients may take up again: the TLS library's own number.
const SESSIONS: usize = 256;

/// What is in use of `tls_client_ca_file`.
#[derive(Clone)]
pub(super) struct Authorities {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Their names, by which clients choose among their certificates. The TLS library takes them by a reference for as long as
    /// the listener lives; other ones after a reload stay in memory until the end, some hundred bytes each time.
    names: &'static [DistinguishedName],
}

impl Authorities {
    /// Reads the file, if the settings ask for client certificates.
    pub(super) fn read(tls: &Tls, before: Option<&ClientAuthorities>) -> Result<Option<Self>, TlsError> {
        let settings = |error: &dyn fmt::Display| TlsError::Settings(error.to_string());
        let Some(path) = tls.client_ca_file.as_ref().filter(|_| !tls.disable_client_certs) else {
            if tls.require_client_cert {
                return Err(settings(
                    &"tls_require_and_verify_client_cert needs tls_client_ca_file, the authorities to verify against",
                ));
            }
            return Ok(None);
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates("tls_client_ca_file", path)? {
            roots.add(certificate).map_err(|error| settings(&error))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        let verifier = if tls.require_client_cert { verifier } else { verifier.allow_unauthenticated() };
        let verifier = verifier.build().map_err(|error| settings(&error))?;
        let names = verifier.root_hint_subjects();
        let known = before
            .map(|before| before.0.load().names)
            .filter(|known| known.iter().map(AsRef::as_ref).eq(names.iter().map(AsRef::<[u8]>::as_ref)));
        let names = known.unwrap_or_else(|| Vec::leak(names.to_vec()));
        Ok(Some(Self { verifier, names }))
    }
}

/// The verifier of a listener.
pub(super) struct ClientAuthorities(ArcSwap<Authorities>);

impl ClientAuthorities {
    pub(super) fn new(first: Authorities) -> Self {
        Self(ArcSwap::from_pointee(first))
    }

    /// Puts others in their place, for the handshakes from now on.
    pub(super) fn replace(&self, authorities: Authorities) {
        self.0.store(Arc::new(authorities));
    }
}

impl fmt::Debug for ClientAuthorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientAuthorities")
    }
}

impl ClientCertVerifier for ClientAuthorities {
    fn client_auth_mandatory(&self) -> bool {
        self.0.load().verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.load().names
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.load().verifier.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.load().verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.load().verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.load().verifier.supported_verify_schemes()
    }
}

/// Sessions that clients may take up again. One that is taken up is not verified anew, so they end with the authorities that
/// they were verified by.
#[derive(Debug)]
pub(super) struct Sessions(ArcSwap<ServerSessionMemoryCache>);

impl Default for Sessions {
    fn default() -> Self {
        Self(ArcSwap::new(ServerSessionMemoryCache::new(SESSIONS)))
    }
}

impl Sessions {
    /// Forgets all of them: the next handshake of each client is a full one.
    pub(super) fn forget(&self) {
        self.0.store(ServerSessionMemoryCache::new(SESSIONS));
    }
}

impl StoresServerSessions for Sessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.0.load().put(key, value)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.load().get(key)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.load().take(key)
    }

    fn can_cache(&self) -> bool {
        true
    }
}
