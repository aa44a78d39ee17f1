//! Telling systemd how the server is (`sd_notify(3)`): ready, alive, stopping. Without systemd nothing is told.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    sync::Arc,
    time::Duration,
};

use crate::core::Core;

/// How often the state is told where no watchdog asks for more.
const CALM: Duration = Duration::from_secs(10);

/// Whoever started the server and wants to be told.
pub struct Supervisor {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// The one that the environment names (`NOTIFY_SOCKET`, `WATCHDOG_USEC`).
    pub fn from_environment(variable: &dyn Fn(&str) -> Option<String>) -> Option<Self> {
        let name = variable("NOTIFY_SOCKET")?;
        let ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog = variable("WATCHDOG_USEC").filter(|_| ours).and_then(|text| text.parse().ok());
        match Self::connect(&name, watchdog.map(Duration::from_micros)) {
            Ok(supervisor) => Some(supervisor),
            Err(error) => {
                tracing::warn!(%error, socket = %name, "the supervisor cannot be told that the server is ready");
                None
            }
        }
    }

    fn connect(name: &str, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address, watchdog: watchdog.filter(|period| !period.is_zero()) })
    }

    /// Sends one state, several lines at most.
    pub fn tell(&self, state: &str) {
        if let Err(error) = self.socket.send_to_addr(state.as_bytes(), &self.address) {
            tracing::debug!(%error, "the supervisor could not be told");
        }
    }

    /// Says that the server listens, and from then on that it is alive: as long as the async workers run and the core
    /// answers. Ends never; to be spawned.
    pub async fn keep_told(self: Arc<Self>, core: Arc<Core>) {
        self.tell("READY=1");
        let pause = self.watchdog.map_or(CALM, |period| (period / 3).min(CALM));
        loop {
            let state = match core.seal.status() {
                Ok(status) => match status.sealed_reason {
                    None => "unsealed and serving".to_owned(),
                    Some(reason) => format!("sealed: {reason}"),
                },
                Err(error) => format!("the seal cannot be read: {error}"),
            };
            self.tell(&format!("WATCHDOG=1\nSTATUS={}", state.replace('\n', " ")));
            tokio::time::sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::unsealed_core;

    #[tokio::test]
    async fn ready_once_then_alive_again_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = tokio::net::UnixDatagram::bind(&path).unwrap();
        let variable = |name: &str| match name {
            "NOTIFY_SOCKET" => Some(path.display().to_string()),
            "WATCHDOG_USEC" => Some("60000".into()),
            _ => None,
        };
        let supervisor = Arc::new(Supervisor::from_environment(&variable).unwrap());
        let told = tokio::spawn(Arc::clone(&supervisor).keep_told(unsealed_core().await));
        let mut seen = Vec::new();
        for _ in 0..4 {
            let mut buffer = [0; 200];
            let length = tokio::time::timeout(Duration::from_secs(20), socket.recv(&mut buffer)).await.unwrap().unwrap();
            seen.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        told.abort();
        assert_eq!(seen[0], "READY=1");
        assert!(seen[1..].iter().all(|state| state == "WATCHDOG=1\nSTATUS=unsealed and serving"), "{seen:?}");
    }

    #[test]
    fn without_systemd_nothing_is_told() {
        assert!(Supervisor::from_environment(&|_| None).is_none());
    }

    #[test]
    fn an_abstract_socket_is_found_too() {
        let name = format!("sos-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let supervisor = Supervisor::connect(&format!("@{name}"), None).unwrap();
        supervisor.tell("STOPPING=1");
        let mut buffer = [0; 20];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"STOPPING=1");
    }
}
