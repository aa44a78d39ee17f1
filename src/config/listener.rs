//! The `listener` stanzas.

use std::path::PathBuf;
use std::time::Duration;

use super::{Place, Warning, values};
use crate::hcl::{Block, Error, Reader};

/// Vault's limit for one request's body.
const DEFAULT_REQUEST_SIZE: u64 = 32 << 20;

/// Keys of Vault's listeners that change nothing here.
const ACCEPTED: [&str; 39] = [
    "type",
    "purpose",
    "role",
    "cluster_address",
    "tls_cipher_suites",
    "tls_prefer_server_cipher_suites",
    "tls_key_exchange_preferences",
    "tls_max_version",
    "tls_auto_reload",
    "tls_auto_reload_interval",
    "http_read_header_timeout",
    "http_read_timeout",
    "http_write_timeout",
    "http_idle_timeout",
    "proxy_protocol_behavior",
    "proxy_protocol_authorized_addrs",
    "x_forwarded_for_authorized_addrs",
    "x_forwarded_for_hop_skips",
    "x_forwarded_for_reject_not_present",
    "x_forwarded_for_reject_not_authorized",
    "profiling",
    "inflight_requests_logging",
    "cors_enabled",
    "cors_allowed_origins",
    "cors_allowed_headers",
    "cors_allow_credentials",
    "custom_response_headers",
    "disable_unauthed_rekey_endpoints",
    "disable_unauthed_generate_root_endpoints",
    "agent_api",
    "proxy_api",
    "enable_quit",
    "chroot_namespace",
    "redact_addresses",
    "redact_cluster_name",
    "redact_version",
    "disable_replication_status_endpoints",
    "disable_request_limiter",
    "disable_response_caching",
];

/// One place where clients connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listener {
    /// `listener "tcp"`.
    Tcp(TcpListener),
    /// `listener "unix"`.
    Unix(UnixListener),
}

/// `listener "tcp" { ... }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpListener {
    /// Where the stanza was written.
    pub place: Place,
    /// Host and port.
    pub address: String,
    /// Certificates; plain HTTP when absent.
    pub tls: Option<Tls>,
    /// Longest request body in bytes.
    pub max_request_size: u64,
    /// Longest time one request may take; the configuration's default when absent.
    pub max_request_duration: Option<Duration>,
    /// Most connections of one client address; 0 for as many as there are, and nearly as many when absent.
    pub max_connections_per_address: Option<u32>,
    /// Whether requests need the header `X-Vault-Request: true`.
    pub require_request_header: bool,
    /// Whether `sys/metrics` answers without a token: `telemetry { unauthenticated_metrics_access = true }`.
    pub open_metrics: bool,
}

impl TcpListener {
    /// Plain HTTP on `address` with Vault's limits.
    pub fn plain(address: impl Into<String>) -> Self {
        Self {
            place: Place::default(),
            address: address.into(),
            tls: None,
            max_request_size: DEFAULT_REQUEST_SIZE,
            max_request_duration: None,
            max_connections_per_address: None,
            require_request_header: false,
            open_metrics: false,
        }
    }
}

/// The TLS side of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the certificate chain.
    pub cert_file: PathBuf,
    /// PEM file with the private key.
    pub key_file: PathBuf,
    /// PEM file with the authorities of client certificates.
    pub client_ca_file: Option<PathBuf>,
    /// Refuse clients without a certificate of these authorities.
    pub require_client_cert: bool,
    /// Do not even ask for a client certificate.
    pub disable_client_certs: bool,
    /// Oldest protocol that is spoken.
    pub min_version: TlsVersion,
}

/// A TLS protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// `listener "unix" { ... }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixListener {
    /// Where the stanza was written.
    pub place: Place,
    /// The socket's path.
    pub address: PathBuf,
    /// The socket file's mode.
    pub mode: Option<u32>,
    /// Its owner, a name or a number.
    pub user: Option<String>,
    /// Its group, a name or a number.
    pub group: Option<String>,
    /// Longest request body in bytes.
    pub max_request_size: u64,
    /// Longest time one request may take; the configuration's default when absent.
    pub max_request_duration: Option<Duration>,
    /// Whether `sys/metrics` answers without a token.
    pub open_metrics: bool,
}

pub(super) fn read(top: Reader<'_>, warnings: &mut Vec<Warning>) -> Result<Vec<Listener>, Error> {
    top.blocks("listener")?.iter().map(|block| one(block, warnings)).collect()
}

fn one(block: &Block<'_>, warnings: &mut Vec<Warning>) -> Result<Listener, Error> {
    let kind = match block.label() {
        Some(label) => label.to_string(),
        None => block.body.string("type")?.unwrap_or_default(),
    };
    let at = block.label.map_or(block.at, |label| label.at);
    match kind.to_ascii_lowercase().as_str() {
        "tcp" => tcp(block, warnings).map(Listener::Tcp),
        "unix" => unix(block, warnings).map(Listener::Unix),
        other => Err(block.body.error(
            at,
            format!("listener {other:?} is not known: write listener \"tcp\" {{ ... }} or listener \"unix\" {{ ... }}"),
        )),
    }
}

fn tcp(block: &Block<'_>, warnings: &mut Vec<Warning>) -> Result<TcpListener, Error> {
    let used = [
        "address",
        "tls_disable",
        "tls_cert_file",
        "tls_key_file",
        "tls_client_ca_file",
        "tls_require_and_verify_client_cert",
        "tls_disable_client_certs",
        "tls_min_version",
        "max_request_size",
        "max_request_duration",
        "max_connections_per_address",
        "require_request_header",
        "telemetry",
    ];
    values::warn_of_others(block.body, "listener \"tcp\"", &used, &ACCEPTED, warnings);
    let tls = if block.body.bool("tls_disable")?.unwrap_or(false) { None } else { Some(tls(block)?) };
    Ok(TcpListener {
        place: Place::of(block),
        address: address(block)?,
        tls,
        max_request_size: request_size(block)?,
        max_request_duration: request_duration(block)?,
        max_connections_per_address: connections(block)?,
        require_request_header: block.body.bool("require_request_header")?.unwrap_or(false),
        open_metrics: open_metrics(block)?,
    })
}

fn address(block: &Block<'_>) -> Result<String, Error> {
    let Some(address) = values::text(block.body, "address")? else { return Ok("127.0.0.1:8200".into()) };
    let at = block.body.value("address")?.map(|value| value.at).unwrap_or_default();
    match address.rsplit_once(':') {
        Some((host, port))
            if port.parse::<u16>().is_ok() && (!host.contains(':') || host.starts_with('[') && host.ends_with(']')) =>
        {
            // Go listens on every interface when the host is left out.
            Ok(if host.is_empty() { format!("0.0.0.0:{port}") } else { address })
        }
        _ => Err(block.body.error(at, format!("address {address:?} has no host and port: write address = \"127.0.0.1:8200\""))),
    }
}

fn tls(block: &Block<'_>) -> Result<Tls, Error> {
    let file = |key: &'static str| -> Result<PathBuf, Error> {
        let missing = || {
            let message = format!(
                "this listener speaks TLS but has no {key}: write {key} = \"/etc/sos/...pem\", or tls_disable = true for plain HTTP"
            );
            block.body.error(block.at, message)
        };
        values::text(block.body, key)?.map(PathBuf::from).ok_or_else(missing)
    };
    let require_client_cert = block.body.bool("tls_require_and_verify_client_cert")?.unwrap_or(false);
    let disable_client_certs = block.body.bool("tls_disable_client_certs")?.unwrap_or(false);
    if require_client_cert && disable_client_certs {
        let message = "tls_require_and_verify_client_cert and tls_disable_client_certs exclude each other: keep one";
        return Err(block.body.error(block.at, message));
    }
    let version = |text: &str| match text {
        // The TLS library speaks nothing older than 1.2: who allows less still gets 1.2.
        "tls10" | "tls11" | "tls12" | "" => Some(TlsVersion::Tls12),
        "tls13" => Some(TlsVersion::Tls13),
        _ => None,
    };
    Ok(Tls {
        cert_file: file("tls_cert_file")?,
        key_file: file("tls_key_file")?,
        client_ca_file: values::text(block.body, "tls_client_ca_file")?.map(PathBuf::from),
        require_client_cert,
        disable_client_certs,
        min_version: values::one_of(block.body, "tls_min_version", version, "\"tls12\", \"tls13\"")?.unwrap_or_default(),
    })
}

fn unix(block: &Block<'_>, warnings: &mut Vec<Warning>) -> Result<UnixListener, Error> {
    let used = [
        "address",
        "tls_disable",
        "socket_mode",
        "socket_user",
        "socket_group",
        "max_request_size",
        "max_request_duration",
        "telemetry",
    ];
    values::warn_of_others(block.body, "listener \"unix\"", &used, &ACCEPTED, warnings);
    let missing = || block.body.error(block.at, "a unix listener needs its socket: write address = \"/run/sos/sos.sock\"");
    let octal = |text: &str| u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    Ok(UnixListener {
        place: Place::of(block),
        address: values::text(block.body, "address")?.map(PathBuf::from).ok_or_else(missing)?,
        mode: socket_mode(block, octal)?,
        user: values::text(block.body, "socket_user")?,
        group: values::text(block.body, "socket_group")?,
        max_request_size: request_size(block)?,
        max_request_duration: request_duration(block)?,
        open_metrics: open_metrics(block)?,
    })
}

/// As in Vault, the listener's own `telemetry` stanza says so.
fn open_metrics(block: &Block<'_>) -> Result<bool, Error> {
    let mut open = false;
    for telemetry in block.body.blocks("telemetry")? {
        open |= telemetry.body.bool("unauthenticated_metrics_access")?.unwrap_or(false);
    }
    Ok(open)
}

fn socket_mode(block: &Block<'_>, octal: impl Fn(&str) -> Option<u32>) -> Result<Option<u32>, Error> {
    let Some(value) = block.body.value("socket_mode")? else { return Ok(None) };
    let mode = match &value.kind {
        crate::hcl::Kind::Text(text) => octal(text),
        // Written without quotes and with a leading 0, HCL itself has read it as octal.
        crate::hcl::Kind::Int(mode) => u32::try_from(*mode).ok().filter(|mode| *mode <= 0o777),
        _ => None,
    };
    mode.map(Some).ok_or_else(|| block.body.error(value.at, "socket_mode must be a file mode: write socket_mode = \"0660\""))
}

fn request_size(block: &Block<'_>) -> Result<u64, Error> {
    Ok(values::size(block.body, "max_request_size")?.filter(|size| *size > 0).unwrap_or(DEFAULT_REQUEST_SIZE))
}

fn connections(block: &Block<'_>) -> Result<Option<u32>, Error> {
    let key = "max_connections_per_address";
    let Some(most) = block.body.int(key)? else { return Ok(None) };
    let at = block.body.value(key)?.map_or(block.at, |value| value.at);
    let wrong = |_| block.body.error(at, format!("{key} must be a number of connections: write {key} = 1000, or 0 for no bound"));
    u32::try_from(most).map(Some).map_err(wrong)
}

fn request_duration(block: &Block<'_>) -> Result<Option<Duration>, Error> {
    Ok(values::duration(block.body, "max_request_duration")?.filter(|limit| !limit.is_zero()))
}
