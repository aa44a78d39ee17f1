//! Where large requests are worked on, and requests whose answers are large. Parsing, hashing and redacting tens of megabytes takes a thread tenths of a second;
//! the threads that serve connections have thousands of others waiting, so this is done on threads of its own. What is small
//! stays where it came in: a change of threads costs more than the work.

use std::{future::Future, io, sync::Arc};

use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
};

use crate::{heavy, stack};

/// Bodies over this size are worked on aside.
pub const LARGE_BODY: usize = heavy::LARGE;

/// The threads.
#[derive(Debug)]
pub struct Aside(Option<Runtime>);

impl Aside {
    /// Starts as many threads.
    pub fn start(threads: usize) -> io::Result<Arc<Self>> {
        let runtime = Builder::new_multi_thread().worker_threads(threads).thread_name("large-requests").enable_all().build()?;
        Ok(Arc::new(Self(Some(runtime))))
    }

    /// Begins the work, which goes on when nobody waits for it. The stack is overwritten wherever it pauses.
    pub fn begin<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<JoinHandle<T>> {
        self.0.as_ref().map(|runtime| runtime.spawn(stack::overwriting(work)))
    }
}

impl Drop for Aside {
    /// The end of the server does not wait here: requests in flight have had their time.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
