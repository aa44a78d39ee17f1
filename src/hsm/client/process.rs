//! The worker process as the server sees it: a child with a socket as standard input.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::HsmConfig;

/// A running worker; it is killed and reaped when this is dropped.
pub struct Process {
    child: Option<Child>,
}

impl Process {
    /// Starts a worker and gives our end of its socket.
    pub fn start(config: &HsmConfig) -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let program = match &config.worker {
            Some(program) => program.clone(),
            None => own_program()?,
        };
        let child = Command::new(program)
            .arg("hsm-worker")
            .envs(config.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()?;
        Ok((Self { child: Some(child) }, ours))
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // SIGKILL, because a hung vendor library cannot be asked.
        let _ = child.kill();
        // Waiting can take long when the library is inside the kernel, so nobody waits for it here.
        let _ = std::thread::Builder::new().name("hsm-reaper".into()).spawn(move || child.wait());
    }
}

/// The same program as the one that runs, even when its file was replaced meanwhile.
fn own_program() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() }
}
