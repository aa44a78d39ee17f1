//! Listeners: TCP with or without TLS, and unix sockets.

use std::{
    io,
    net::{TcpListener, ToSocketAddrs},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
    sync::Arc,
    time::Duration,
};

use actix_tls::accept::max_concurrent_tls_connect;
use actix_web::dev::{Server, ServerHandle};
use thiserror::Error;

use super::{
    serving::{READER_PATIENCE, Serving},
    tls::{self, Certificate, TlsError},
};
use crate::{
    config::{self, Listener, Place},
    core::Core,
    http::{
        self, Front,
        aside::Aside,
        limits::{Limits, PerAddress},
        surplus::Places,
    },
};

/// Connections that wait to be accepted: a whole rack comes back at once after a power loss.
const BACKLOG: i32 = 4096;

/// Descriptors that connections leave to the store, the audit devices and the HSM's worker.
const KEPT_DESCRIPTORS: u64 = 256;

/// Most connections of one worker, whatever the limit of descriptors.
const MAX_CONNECTIONS: u64 = 25_000;

/// Time that requests in flight get on SIGTERM.
const DRAIN_SECONDS: u64 = 8;

/// Why a listener could not be opened.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The address is taken, not ours or malformed.
    #[error(
        "{place}: cannot listen on {address}: {source}; is another server running there, or is the address not of this machine?"
    )]
    Bind {
        /// Where the listener stands.
        place: Place,
        /// What the configuration says.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// Its TLS settings do not work.
    #[error("{place}: listener {address}: {source}")]
    Tls {
        /// Where the listener stands.
        place: Place,
        /// What the configuration says.
        address: String,
        /// Why not.
        source: TlsError,
    },
    /// The owner or mode of a unix socket cannot be set.
    #[error("{place}: listener {address}: {reason}")]
    Socket {
        /// Where the listener stands.
        place: Place,
        /// The socket's path.
        address: String,
        /// Why not.
        reason: String,
    },
}

/// Whether the TCP listeners could be opened now and their certificates loaded. Opening them is for later, when there is
/// something that answers.
pub fn check(listeners: &[Listener]) -> Result<(), ListenError> {
    let mut bound = Bound { listeners: Vec::new(), certificates: Vec::new() };
    for listener in listeners {
        if let Listener::Tcp(tcp) = listener {
            bound.tcp(tcp)?;
        }
    }
    Ok(())
}

/// All listeners, bound and ready to serve.
pub struct Bound {
    listeners: Vec<One>,
    certificates: Vec<Arc<Certificate>>,
}

struct One {
    socket: Socket,
    max_body: u64,
    max_duration: Option<Duration>,
    per_address: PerAddress,
    require_request_header: bool,
    open_metrics: bool,
    /// What to tell people: `http://127.0.0.1:8200`.
    url: String,
}

enum Socket {
    Tcp(TcpListener),
    Tls(TcpListener, Box<rustls::ServerConfig>),
    Unix(UnixListener),
}

impl Bound {
    /// Opens every listener of the configuration.
    pub fn bind(listeners: &[Listener]) -> Result<Self, ListenError> {
        let mut bound = Self { listeners: Vec::new(), certificates: Vec::new() };
        for listener in listeners {
            let one = match listener {
                Listener::Tcp(tcp) => bound.tcp(tcp)?,
                Listener::Unix(unix) => One {
                    socket: Socket::Unix(unix_socket(unix)?),
                    max_body: unix.max_request_size,
                    max_duration: unix.max_request_duration,
                    per_address: PerAddress::Share,
                    require_request_header: false,
                    open_metrics: unix.open_metrics,
                    url: format!("unix://{}", unix.address.display()),
                },
            };
            bound.listeners.push(one);
        }
        Ok(bound)
    }

    fn tcp(&mut self, tcp: &config::TcpListener) -> Result<One, ListenError> {
        let address = tcp.address.clone();
        let failed = |source| ListenError::Bind { place: tcp.place.clone(), address: address.clone(), source };
        let socket = bind_tcp(&address).map_err(failed)?;
        let local = socket.local_addr().map_err(failed)?;
        let one = |socket, scheme: &str| One {
            socket,
            max_body: tcp.max_request_size,
            max_duration: tcp.max_request_duration,
            per_address: match tcp.max_connections_per_address {
                None => PerAddress::Share,
                Some(0) => PerAddress::Most(usize::MAX),
                Some(most) => PerAddress::Most(usize::try_from(most).unwrap_or(usize::MAX)),
            },
            require_request_header: tcp.require_request_header,
            open_metrics: tcp.open_metrics,
            url: format!("{scheme}://{local}"),
        };
        let Some(settings) = &tcp.tls else { return Ok(one(Socket::Tcp(socket), "http")) };
        let wrong = |source| ListenError::Tls { place: tcp.place.clone(), address: address.clone(), source };
        let certificate = Certificate::load(settings).map_err(wrong)?;
        let config = tls::server_config(settings, Arc::clone(&certificate)).map_err(wrong)?;
        self.certificates.push(certificate);
        Ok(one(Socket::Tls(socket, Box::new(config)), "https"))
    }

    /// Where clients connect.
    pub fn urls(&self) -> Vec<String> {
        self.listeners.iter().map(|one| one.url.clone()).collect()
    }

    /// The certificates, for SIGHUP.
    pub fn certificates(&self) -> Vec<Arc<Certificate>> {
        self.certificates.clone()
    }

    /// Starts serving; the returned servers run when they are awaited or spawned.
    pub fn serve(self, core: &Arc<Core>, default_duration: Duration) -> io::Result<Vec<(Server, ServerHandle)>> {
        let workers = std::thread::available_parallelism().map_or(2, |cores| cores.get());
        let all_workers = workers * self.listeners.len().max(1);
        let connections = connections_per_worker(all_workers);
        let largest_body = self.listeners.iter().map(|one| one.max_body).max().unwrap_or(http::MAX_BODY);
        let limits = Limits::new(largest_body, served(connections * all_workers));
        let aside = Aside::start(workers)?;
        // Handshakes that do not come to an end have three seconds; the default would let some hundred of them hold up all others.
        max_concurrent_tls_connect(connections);
        self.listeners
            .into_iter()
            .map(|one| {
                let front = Front {
                    core: Arc::clone(core),
                    max_body: one.max_body,
                    max_duration: one.max_duration.unwrap_or(default_duration),
                    require_request_header: one.require_request_header,
                    open_metrics: one.open_metrics,
                    limits: Arc::clone(&limits),
                    aside: Arc::clone(&aside),
                };
                let places = Places::new(Arc::clone(&limits), served(connections * workers), one.per_address);
                let builder = actix_server::Server::build()
                    .workers(workers)
                    .disable_signals()
                    .max_concurrent_connections(connections)
                    .shutdown_timeout(DRAIN_SECONDS);
                let serving = Serving { front, places, stopping: builder.graceful_shutdown_signal() };
                let server = match one.socket {
                    Socket::Tcp(socket) => builder.listen("tcp", socket, move || serving.plain())?,
                    Socket::Tls(socket, config) => builder.listen("tls", socket, move || serving.encrypted((*config).clone()))?,
                    Socket::Unix(socket) => builder.listen_uds("unix", socket, move || serving.unix())?,
                };
                let server = server.run();
                let handle = server.handle();
                Ok((server, handle))
            })
            .collect()
    }
}

/// Binds with the address reusable, so that a restart does not wait for old connections.
fn bind_tcp(address: &str) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the address names no host and port, as in 127.0.0.1:8200");
    for candidate in address.to_socket_addrs()? {
        match TcpListener::bind(candidate) {
            Ok(socket) => {
                socket.set_nonblocking(true)?;
                let patience = u32::try_from(READER_PATIENCE.as_millis()).unwrap_or(u32::MAX);
                // Both are advice of which the server can do without; accepted connections inherit the second.
                let set = rustix::net::listen(&socket, BACKLOG)
                    .and_then(|()| rustix::net::sockopt::set_tcp_user_timeout(&socket, patience));
                if let Err(error) = set {
                    tracing::debug!(%error, "the backlog or the patience with slow readers stays the system's");
                }
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Of so many connections that may be open, how many are served. The rest is for telling those beyond that they are too many.
fn served(open: usize) -> usize {
    open - open / 8
}

/// How many connections each of so many workers takes, so that descriptors never run out for the work behind the connections.
fn connections_per_worker(workers: usize) -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = descriptors.saturating_sub(KEPT_DESCRIPTORS.min(descriptors / 2));
    let workers = u64::try_from(workers).unwrap_or(u64::MAX);
    usize::try_from((room / workers).clamp(1, MAX_CONNECTIONS)).unwrap_or(1)
}

fn unix_socket(unix: &config::UnixListener) -> Result<UnixListener, ListenError> {
    let path = &unix.address;
    let address = path.display().to_string();
    remove_stale(path)
        .and_then(|()| UnixListener::bind(path))
        .map_err(|source| ListenError::Bind { place: unix.place.clone(), address: address.clone(), source })
        .and_then(|socket| {
            let failed = |error: io::Error| ListenError::Socket {
                place: unix.place.clone(),
                address: address.clone(),
                reason: error.to_string(),
            };
            socket.set_nonblocking(true).map_err(failed)?;
            let mode = unix.mode.unwrap_or(0o600);
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
            let id = |name: &Option<String>, file: &str| name.as_deref().map(|name| lookup(name, file)).transpose();
            let user = id(&unix.user, "/etc/passwd").map_err(failed)?;
            let group = id(&unix.group, "/etc/group").map_err(failed)?;
            if user.is_some() || group.is_some() {
                std::os::unix::fs::chown(path, user, group).map_err(failed)?;
            }
            Ok(socket)
        })
}

/// A socket file that nobody listens on is left over from a crash; one with a listener stays.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::Error::from(io::ErrorKind::AddrInUse)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

/// A user or group by number or by name.
fn lookup(name: &str, file: &str) -> io::Result<u32> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    std::fs::read_to_string(file)?
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
        })
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{name:?} is not in {file}")))
}
