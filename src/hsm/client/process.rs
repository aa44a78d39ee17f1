//! The worker process as the server sees it: a child with a socket as standard input.
//!
//! A worker that works is never killed: some modules rewrite their token in the middle of a call (SoftHSM does at C_Login),
//! and what a killed process left of it may be no token any more. It is asked to end by closing its socket; it finishes
//! the call under way, calls C_Finalize and ends. SIGKILL is for the one that hangs.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::HsmConfig;

/// How long a worker that was asked to end may take for the call under way; then it is killed.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(5);

/// Counts what must have ended before the client has: workers, and the thread that starts them.
pub struct Living(watch::Sender<usize>);

impl Living {
    /// One more, until this is dropped.
    pub fn begin(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

/// A running worker. When this is dropped, our end of its socket must be closed: it is given time to end, killed when it
/// does not, and reaped.
pub struct Process {
    child: Option<Child>,
    living: Option<Living>,
}

impl Process {
    /// Starts a worker and gives our end of its socket.
    pub fn start(config: &HsmConfig, count: &watch::Sender<usize>) -> io::Result<(Self, UnixStream)> {
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
        Ok((Self { child: Some(child), living: Some(Living::begin(count)) }, ours))
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Kills it, because it hangs: a hung vendor library cannot be asked.
    pub fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let living = self.living.take();
        // Nobody is kept waiting here. Without the thread the worker ends all the same, only unreaped.
        let _ = thread::Builder::new().name("hsm-reaper".into()).spawn(move || {
            if !ends_by_itself(&mut child) {
                tracing::warn!(pid = child.id(), "the HSM's worker hangs and is killed");
                let _ = child.kill();
            }
            drop(living);
            // Takes long when the library is inside the kernel.
            let _ = child.wait();
        });
    }
}

fn ends_by_itself(child: &mut Child) -> bool {
    let asked = Instant::now();
    while asked.elapsed() < PATIENCE {
        match child.try_wait() {
            Ok(None) => thread::sleep(LOOK),
            Ok(Some(_)) | Err(_) => return true,
        }
    }
    false
}

/// The same program as the one that runs, even when its file was replaced meanwhile.
fn own_program() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() }
}
