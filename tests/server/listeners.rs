//! TLS, unix sockets and signals.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustix::process::Signal;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion, version};
use serde_json::json;

use crate::connections::tls_config;
use crate::support::{Place, eventually, exchange};

/// An authority whose certificates the tests use.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Certificate and key as PEM.
    fn issue(&self, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Adds a listener with a certificate of this authority to a configuration, and writes both.
    pub fn serve_tls(&self, place: &Place, config: &str) {
        install(place, self.issue(ExtendedKeyUsagePurpose::ServerAuth));
        place.configure(&format!("{config}\n{}", tls_stanza(place, "")));
    }
}

/// Asks for `sys/health` over TLS; answers the reply and the server's certificate.
fn ask(
    url: &str,
    authority: &Authority,
    versions: &[&'static SupportedProtocolVersion],
    identity: Option<(String, String)>,
) -> Result<(String, Vec<u8>), std::io::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap().with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap(),
    };
    let address = url.trim_start_matches("https://");
    let connection = ClientConnection::new(Arc::new(config), "127.0.0.1".try_into().unwrap()).unwrap();
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut stream = rustls::StreamOwned::new(connection, socket);
    stream.write_all(format!("GET /v1/sys/health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let answer = exchange(&mut stream);
    if answer.is_empty() {
        return Err(std::io::Error::other("no answer"));
    }
    let presented = stream.conn.peer_certificates().unwrap()[0].to_vec();
    Ok((answer, presented))
}

fn install(place: &Place, (certificate, key): (String, String)) {
    fs::write(place.path("cert.pem"), certificate).unwrap();
    fs::write(place.path("key.pem"), key).unwrap();
}

fn tls_listener(place: &Place, more: &str) -> String {
    format!("{}\n{}", place.storage_stanza("sled"), tls_stanza(place, more))
}

fn tls_stanza(place: &Place, more: &str) -> String {
    format!(
        "listener \"tcp\" {{\n address = \"127.0.0.1:0\"\n tls_cert_file = \"{}\"\n tls_key_file = \"{}\"\n {more}\n}}\n",
        place.path("cert.pem").display(),
        place.path("key.pem").display()
    )
}

/// The command of the container's health check against this server.
fn is_healthy(url: &str) -> bool {
    let file = include_str!("../../packaging/container/Containerfile");
    let command = file.split("HEALTHCHECK ").nth(1).unwrap().split_once("CMD ").unwrap().1;
    let command = command.split("\nENTRYPOINT").next().unwrap().replace("\\\n", " ");
    let command = command.replace("/usr/bin/sos", env!("CARGO_BIN_EXE_sos"));
    let command = command.replace("127.0.0.1:8200", url.split("//").nth(1).unwrap());
    let done = std::process::Command::new("/bin/sh").args(["-c", &command]).env_clear().status().unwrap();
    assert!(matches!(done.code(), Some(0 | 1)));
    done.success()
}

#[test]
fn the_containers_health_check_finds_sealed_servers_healthy_with_tls_and_without() {
    let (authority, place) = (Authority::new(), Place::shamir());
    let mut server = place.start();
    assert!(is_healthy(server.url()));
    server.init_shamir(1, 1);
    assert!(is_healthy(server.url()));
    let url = server.url().to_owned();
    server.terminate();
    assert!(!is_healthy(&url));
    install(&place, authority.issue(ExtendedKeyUsagePurpose::ServerAuth));
    place.configure(&tls_listener(&place, ""));
    assert!(is_healthy(place.start().url()));
}

#[test]
fn tls_versions_and_a_new_certificate_on_sighup() {
    let (authority, place) = (Authority::new(), Place::shamir());
    install(&place, authority.issue(ExtendedKeyUsagePurpose::ServerAuth));
    place.configure(&tls_listener(&place, "tls_min_version = \"tls13\""));
    let server = place.start();
    let url = server.url().to_string();
    assert!(url.starts_with("https://"));
    let (answer, first) = ask(&url, &authority, &[&version::TLS13], None).unwrap();
    assert!(answer.starts_with("HTTP/1.1 501"), "{answer}");
    assert!(ask(&url, &authority, &[&version::TLS12], None).is_err(), "TLS 1.2 is below tls_min_version");
    assert!(ask(&url, &Authority::new(), &[&version::TLS13], None).is_err(), "an unknown authority");

    install(&place, authority.issue(ExtendedKeyUsagePurpose::ServerAuth));
    server.signal(Signal::HUP);
    eventually("a new certificate", || ask(&url, &authority, &[&version::TLS13], None).unwrap().1 != first);

    // A broken file leaves the certificate in use.
    let (_, second) = ask(&url, &authority, &[&version::TLS13], None).unwrap();
    fs::write(place.path("cert.pem"), "nonsense").unwrap();
    server.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(ask(&url, &authority, &[&version::TLS13], None).unwrap().1, second);
    assert!(server.log().contains("the old ones stay in use"), "{}", server.log());
}

/// A handshake with this protocol alone, by a library that still speaks the old ones; the protocol it came to.
fn handshake(url: &str, version: openssl::ssl::SslVersion) -> Result<String, String> {
    use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
    let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
    connector.set_verify(SslVerifyMode::NONE);
    // The library itself refuses old protocols unless told to accept weak ciphers.
    connector.set_cipher_list("ALL:@SECLEVEL=0").unwrap();
    connector.set_min_proto_version(Some(version)).unwrap();
    connector.set_max_proto_version(Some(version)).unwrap();
    let socket = TcpStream::connect(url.trim_start_matches("https://")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let stream = connector.build().connect("localhost", socket).map_err(|error| error.to_string())?;
    Ok(stream.ssl().version_str().to_owned())
}

#[test]
fn nothing_older_than_tls_1_2_is_spoken() {
    use openssl::ssl::SslVersion;
    let (authority, place) = (Authority::new(), Place::shamir());
    install(&place, authority.issue(ExtendedKeyUsagePurpose::ServerAuth));
    // Also where the configuration would allow it.
    for more in ["", "tls_min_version = \"tls10\""] {
        place.configure(&tls_listener(&place, more));
        let server = place.start();
        for old in [SslVersion::TLS1, SslVersion::TLS1_1] {
            let refused = handshake(server.url(), old).unwrap_err();
            assert!(refused.contains("alert"), "refused by the server, not by this library: {more} {refused}");
        }
        assert_eq!(handshake(server.url(), SslVersion::TLS1_2).unwrap(), "TLSv1.2");
        assert_eq!(handshake(server.url(), SslVersion::TLS1_3).unwrap(), "TLSv1.3");
    }
}

/// One connection of HTTP/2 can hold any number of streams, each with memory of its own, and the HTTP library sets no bound.
#[test]
fn http_1_1_alone_is_spoken() {
    let (authority, place) = (Authority::new(), Place::shamir());
    authority.serve_tls(&place, &place.plain_config("sled"));
    let server = place.start();
    let secure = server.urls.iter().find(|url| url.starts_with("https://")).unwrap();
    let protocol = |offered: &[&[u8]]| -> std::io::Result<Option<Vec<u8>>> {
        let mut config = tls_config(&authority.pem(), b"");
        Arc::get_mut(&mut config).unwrap().alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
        let connection = ClientConnection::new(config, "127.0.0.1".try_into().unwrap()).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, TcpStream::connect(secure.trim_start_matches("https://"))?);
        stream.sock.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.flush()?;
        stream.write_all(b"GET /v1/sys/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let answer = exchange(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 501"), "{answer}");
        Ok(stream.conn.alpn_protocol().map(<[u8]>::to_vec))
    };
    // Clients that know both agree on the older one; a client that names nothing is served too.
    assert_eq!(protocol(&[b"h2", b"http/1.1"]).unwrap().unwrap(), b"http/1.1");
    assert_eq!(protocol(&[]).unwrap(), None);
    assert!(protocol(&[b"h2"]).is_err(), "nothing in common");
    // Begun without asking, with TLS or without, it is a bad request.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut stream = TcpStream::connect(server.url().trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(preface).unwrap();
    let answer = exchange(&mut stream);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[test]
fn client_certificates_are_required_and_verified() {
    let (authority, place) = (Authority::new(), Place::shamir());
    install(&place, authority.issue(ExtendedKeyUsagePurpose::ServerAuth));
    fs::write(place.path("ca.pem"), authority.pem()).unwrap();
    let more = format!("tls_client_ca_file = \"{}\"\n tls_require_and_verify_client_cert = true", place.path("ca.pem").display());
    place.configure(&tls_listener(&place, &more));
    let server = place.start();
    let both: &[&SupportedProtocolVersion] = &[&version::TLS12, &version::TLS13];
    assert!(ask(server.url(), &authority, both, None).is_err());
    let foreign = Authority::new().issue(ExtendedKeyUsagePurpose::ClientAuth);
    assert!(ask(server.url(), &authority, both, Some(foreign)).is_err());
    let own = authority.issue(ExtendedKeyUsagePurpose::ClientAuth);
    assert!(ask(server.url(), &authority, both, Some(own)).unwrap().0.starts_with("HTTP/1.1 501"));
}

/// The status line that a client with this certificate gets on a new connection, and whether it took up its last session.
fn ask_again(url: &str, config: &Arc<ClientConfig>) -> std::io::Result<(String, bool)> {
    let connection = ClientConnection::new(Arc::clone(config), "127.0.0.1".try_into().unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, TcpStream::connect(url.trim_start_matches("https://"))?);
    stream.sock.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /v1/sys/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let answer = exchange(&mut stream);
    if answer.is_empty() {
        return Err(std::io::Error::other("no answer"));
    }
    let resumed = stream.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
    Ok((answer.lines().next().unwrap_or_default().to_owned(), resumed))
}

#[test]
fn sighup_replaces_the_authorities_of_clients_and_ends_their_sessions() {
    let (authority, next, place) = (Authority::new(), Authority::new(), Place::shamir());
    install(&place, authority.issue(ExtendedKeyUsagePurpose::ServerAuth));
    fs::write(place.path("ca.pem"), authority.pem()).unwrap();
    let more = format!("tls_client_ca_file = \"{}\"\n tls_require_and_verify_client_cert = true", place.path("ca.pem").display());
    place.configure(&tls_listener(&place, &more));
    let server = place.start();
    let client = |issuer: &Authority, version: &'static SupportedProtocolVersion| {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
        let (certificate, key) = issuer.issue(ExtendedKeyUsagePurpose::ClientAuth);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
        let config = builder.with_root_certificates(roots).with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        );
        Arc::new(config.unwrap())
    };
    let old = [client(&authority, &version::TLS12), client(&authority, &version::TLS13)];
    let new = [client(&next, &version::TLS12), client(&next, &version::TLS13)];
    for config in &old {
        assert!(!ask_again(server.url(), config).unwrap().1);
        assert!(ask_again(server.url(), config).unwrap().1, "sessions are taken up again");
    }
    for config in &new {
        assert!(ask_again(server.url(), config).is_err());
    }
    // A file that cannot be read changes nothing.
    fs::write(place.path("ca.pem"), "nonsense").unwrap();
    server.signal(Signal::HUP);
    eventually("refused", || server.log().contains("the old ones stay in use"));
    assert!(ask_again(server.url(), &old[1]).is_ok());

    fs::write(place.path("ca.pem"), next.pem()).unwrap();
    server.signal(Signal::HUP);
    eventually("the new authority", || ask_again(server.url(), &new[1]).is_ok());
    assert!(ask_again(server.url(), &new[0]).is_ok());
    for config in &old {
        assert!(ask_again(server.url(), config).is_err(), "neither its certificate nor its session counts any longer");
    }
}

#[test]
fn a_unix_socket_beside_tcp() {
    let place = Place::shamir();
    let socket = place.path("sos.sock");
    place.configure(&format!(
        "{}listener \"unix\" {{ address = \"{}\" socket_mode = \"0660\" }}\n",
        place.plain_config("sled"),
        socket.display()
    ));
    for _ in 0..2 {
        let server = place.start();
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&socket).unwrap().permissions()) & 0o777;
        assert_eq!(mode, 0o660);
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(b"GET /v1/sys/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        assert!(exchange(&mut stream).starts_with("HTTP/1.1 501"));
        // The socket that a killed server leaves behind does not stop the next one.
        server.kill();
    }
}

#[test]
fn sighup_opens_audit_files_anew() {
    let place = Place::shamir();
    place.configure(&format!("{}audit_paths = [\"{}\"]\n", place.plain_config("sled"), place.path("").display()));
    let mut server = place.start();
    let made = server.init(1, 1);
    server.put("sys/unseal", json!({"key": made.shares[0]})).ok();
    let (current, rotated) = (place.path("audit.log"), place.path("audit.log.1"));
    server.put("sys/audit/file", json!({"type": "file", "options": {"file_path": current}})).ok();
    server.get("auth/token/lookup-self").ok();
    fs::rename(&current, &rotated).unwrap();
    server.signal(Signal::HUP);
    eventually("a new audit file", || {
        server.get("sys/mounts").ok();
        current.exists()
    });
    assert!(fs::read_to_string(&current).unwrap().contains("\"sys/mounts\""));
    assert!(fs::read_to_string(&rotated).unwrap().contains("\"auth/token/lookup-self\""));
}

#[test]
fn sigterm_finishes_requests_in_flight() {
    let place = Place::shamir();
    place.configure(&format!("{}pid_file = \"{}\"\n", place.plain_config("sled"), place.path("pid").display()));
    let server = place.start();
    assert_eq!(fs::read_to_string(place.path("pid")).unwrap().trim(), server.pid().to_string());
    let mut stream = TcpStream::connect(server.url().trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let body = r#"{"secret_shares":1,"secret_threshold":1}"#;
    let head = format!("PUT /v1/sys/init HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    // The server waits for the body; it comes after the signal.
    std::thread::sleep(Duration::from_millis(300));
    server.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(300));
    stream.write_all(body.as_bytes()).unwrap();
    let answer = exchange(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("root_token"), "{answer}");
    assert!(server.terminate() < Duration::from_secs(10));
    assert!(!place.path("pid").exists());
}

#[test]
fn sigterm_does_not_wait_for_the_silent() {
    let place = Place::shamir();
    let server = place.start();
    let mut stream = TcpStream::connect(server.url().trim_start_matches("http://")).unwrap();
    stream.write_all(b"PUT /v1/sys/init HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(server.terminate() < Duration::from_secs(10));
}
