//! Certificates of `-dev-tls`: an authority and a server certificate made for one run, in a folder that goes with it.

use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::StartError;
use crate::config::{Listener, Tls, TlsVersion};

/// The files of one run.
pub struct DevCertificates {
    folder: PathBuf,
}

impl DevCertificates {
    /// Makes the files and lets every TCP listener use them.
    pub fn make(listeners: &mut [Listener]) -> Result<Self, StartError> {
        let folder = std::env::temp_dir().join(format!("sos-dev-tls-{}", hex::encode(crate::secret::random_array::<8>())));
        let failed = |source| StartError::System { what: "the folder for -dev-tls cannot be made", source };
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
        let made = Self { folder };
        made.write().map_err(|reason| StartError::Settings(format!("-dev-tls: {reason}")))?;
        for listener in listeners {
            if let Listener::Tcp(tcp) = listener {
                tcp.tls = Some(Tls {
                    cert_file: made.folder.join("vault-cert.pem"),
                    key_file: made.folder.join("vault-key.pem"),
                    client_ca_file: None,
                    require_client_cert: false,
                    disable_client_certs: true,
                    min_version: TlsVersion::Tls12,
                });
            }
        }
        Ok(made)
    }

    /// The file that clients must trust.
    pub fn authority(&self) -> PathBuf {
        self.folder.join("vault-ca.pem")
    }

    fn write(&self) -> Result<(), String> {
        let text = |error: rcgen::Error| error.to_string();
        let mut authority = CertificateParams::new(Vec::new()).map_err(text)?;
        authority.distinguished_name.push(DnType::CommonName, "SOS development authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority_key = KeyPair::generate().map_err(text)?;
        let authority_certificate = authority.self_signed(&authority_key).map_err(text)?;
        let issuer = Issuer::new(authority, authority_key);

        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let mut server = CertificateParams::new(names).map_err(text)?;
        server.distinguished_name.push(DnType::CommonName, "localhost");
        let key = KeyPair::generate().map_err(text)?;
        let certificate = server.signed_by(&key, &issuer).map_err(text)?;
        for (name, content) in [
            ("vault-ca.pem", authority_certificate.pem()),
            ("vault-cert.pem", certificate.pem()),
            ("vault-key.pem", key.serialize_pem()),
        ] {
            private_file(&self.folder.join(name), content.as_bytes()).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

impl Drop for DevCertificates {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "the folder of -dev-tls could not be removed");
        }
    }
}

fn private_file(path: &Path, content: &[u8]) -> std::io::Result<()> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content)
}
