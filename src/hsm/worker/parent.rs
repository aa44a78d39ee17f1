//! Notices when the server has closed its end of the socket, also while the threads are inside the module.
//!
//! A server that ends or is killed leaves the worker in the middle of whatever it does. SoftHSM truncates and rewrites its
//! token's file at each C_Login: a process that were killed there would leave an empty one. So the calls under way are
//! finished; but nobody is left to kill this process when one of them hangs, so it does that itself.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

/// What the calls under way may take once the server is gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// The server at the other end of the socket.
pub struct Parent {
    gone: Arc<AtomicBool>,
}

impl Parent {
    /// Starts the thread that watches `stream`; `outlived` is called when this process outlives the server for too long.
    pub fn watch(stream: UnixStream, outlived: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let gone = Arc::new(AtomicBool::new(false));
        let found = Arc::clone(&gone);
        thread::Builder::new().name("hsm-parent".into()).spawn(move || {
            wait_for_end(&stream);
            found.store(true, Ordering::Release);
            thread::sleep(PATIENCE);
            outlived();
        })?;
        Ok(Self { gone })
    }

    /// Whether it has closed its end.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }
}

/// Returns when the other end is closed. What waits to be read does not matter: a hang-up is told without being asked for.
fn wait_for_end(stream: &UnixStream) {
    loop {
        let mut watched = [PollFd::new(stream, PollFlags::empty())];
        match poll(&mut watched, None) {
            Ok(_) if watched.iter().any(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR)) => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                // It cannot be watched; the reading thread still notices, and so does the server that waits.
                tracing::debug!(%error, "the server's end of the socket cannot be watched");
                loop {
                    thread::park();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_end_is_noticed_behind_what_waits_to_be_read_and_not_before() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"unread").unwrap();
        let parent = Parent::watch(ours, || {}).unwrap();
        thread::sleep(Duration::from_millis(50));
        assert!(!parent.is_gone());
        drop(theirs);
        for _ in 0..200 {
            if parent.is_gone() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("the end was not noticed");
    }
}
