//! The records that wait for one device, and who wakes its writer.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::device::DeviceError;
use crate::relay::{self, Teller};

/// Records that wait for one device, besides those that its writer has taken.
const QUEUE: usize = 1024;
/// So many are not kept waiting for others any longer.
const ENOUGH: usize = 64;

/// What a writer is to do.
pub enum Job {
    /// Append a line, and say how it went.
    Write(Vec<u8>, Teller<std::io::Result<()>>),
    /// Open the file anew.
    Reopen,
}

/// A device's end: when it goes, the writer ends after what waits.
#[derive(Debug)]
pub struct Sender(Arc<Queue>);

/// The writer's end: when it goes, nothing is taken any longer.
pub struct Receiver(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: Vec<Job>,
    /// The writer waits for a wake-up.
    sleeps: bool,
    /// The first job of those that wait is going to be announced.
    led: bool,
    /// What waits may be taken.
    announced: bool,
    /// The device or the writer is gone.
    closed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("jobs", &self.jobs.len()).field("closed", &self.closed).finish_non_exhaustive()
    }
}

/// A queue with its two ends.
pub fn channel() -> (Sender, Receiver) {
    let queue = Arc::new(Queue::default());
    (Sender(Arc::clone(&queue)), Receiver(queue))
}

impl Sender {
    /// Puts a job at the end. Its writer takes it when those that are ready beside it were put behind it, even if it is awake: else it
    /// would take them one by one, and a write for each is dearer than the wait.
    ///
    /// # Errors
    /// [`DeviceError::Full`] and [`DeviceError::Gone`].
    pub fn push(&self, job: Job) -> Result<(), DeviceError> {
        let mut state = self.0.state.lock();
        if state.closed {
            return Err(DeviceError::Gone);
        }
        if state.jobs.len() >= QUEUE {
            return Err(DeviceError::Full);
        }
        state.jobs.push(job);
        if state.jobs.len() >= ENOUGH {
            self.0.announce(&mut state);
        }
        let leads = !std::mem::replace(&mut state.led, true);
        drop(state);
        if leads {
            let queue = Arc::clone(&self.0);
            relay::later(move || queue.announce_waiting());
        }
        Ok(())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Receiver {
    /// What waits, in its order, as soon as there is something; `None` when the device is gone and nothing is left.
    pub fn take(&self) -> Option<Vec<Job>> {
        let mut state = self.0.state.lock();
        while !state.announced {
            if state.closed {
                // Nobody is left who could announce what was put last.
                break;
            }
            state.sleeps = true;
            self.0.changed.wait(&mut state);
        }
        if state.jobs.is_empty() {
            return None;
        }
        (state.sleeps, state.led, state.announced) = (false, false, false);
        Some(std::mem::take(&mut state.jobs))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.close();
        // Who waits for these hears that the writer is gone.
        let left = std::mem::take(&mut self.0.state.lock().jobs);
        drop(left);
    }
}

impl Queue {
    fn announce(&self, state: &mut State) {
        state.announced = true;
        if std::mem::take(&mut state.sleeps) {
            self.changed.notify_one();
        }
    }

    /// Lets the writer take what waits; all of it may have been announced before, and be on its way.
    fn announce_waiting(&self) {
        let mut state = self.state.lock();
        if !state.jobs.is_empty() {
            self.announce(&mut state);
        }
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.sleeps = false;
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;
    use crate::relay::receipt;

    fn write(queue: &Sender, text: &str) -> Result<(), DeviceError> {
        queue.push(Job::Write(text.as_bytes().to_vec(), receipt().0))
    }

    fn text(jobs: Vec<Job>) -> String {
        let lines = jobs.into_iter().map(|job| match job {
            Job::Write(line, _) => String::from_utf8(line).unwrap(),
            Job::Reopen => "|".into(),
        });
        lines.collect()
    }

    /// A writer on a thread of its own that gives back what it took, lot by lot.
    fn writer(jobs: Receiver) -> std::sync::mpsc::Receiver<String> {
        let (lots, taken) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            while let Some(lot) = jobs.take() {
                lots.send(text(lot)).unwrap();
            }
        });
        taken
    }

    fn sleeping(queue: &Sender) {
        while !queue.0.state.lock().sleeps {
            std::thread::yield_now();
        }
    }

    /// Runs on a thread with a relay, as those are that serve connections.
    fn served<F: Future>(test: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let local = LocalSet::new();
        local.block_on(&runtime, async {
            spawn_local(relay::serve());
            yield_now().await;
            test.await
        })
    }

    #[test]
    fn a_sleeping_writer_is_woken_once_for_all_that_came_beside_the_first() {
        let (queue, jobs) = channel();
        let taken = writer(jobs);
        served(async {
            for _ in 0..100 {
                sleeping(&queue);
                write(&queue, "a").unwrap();
                write(&queue, "b").unwrap();
                queue.push(Job::Reopen).unwrap();
                // Another task that is ready.
                yield_now().await;
                write(&queue, "c").unwrap();
                assert!(queue.0.state.lock().sleeps, "it was woken before the others had their turn");
                let lot = loop {
                    match taken.try_recv() {
                        Ok(lot) => break lot,
                        Err(_) => tokio::time::sleep(std::time::Duration::from_micros(100)).await,
                    }
                };
                assert_eq!(lot, "ab|c");
            }
        });
        drop(queue);
        assert!(taken.recv().is_err());
    }

    #[test]
    fn many_are_not_kept_waiting() {
        let (queue, jobs) = channel();
        let taken = writer(jobs);
        served(async {
            sleeping(&queue);
            (0..ENOUGH).for_each(|_| write(&queue, "x").unwrap());
            // No other task has had a turn.
            assert_eq!(taken.recv().unwrap().len(), ENOUGH);
        });
    }

    #[test]
    fn nothing_is_left_behind_whatever_the_order() {
        let (queue, jobs) = channel();
        let taken = writer(jobs);
        let queue = &queue;
        std::thread::scope(|scope| {
            for with_relay in [false, true, false, true] {
                scope.spawn(move || {
                    let asking = async {
                        for _ in 0..2000 {
                            let (teller, written) = receipt();
                            queue.push(Job::Write(b"x".to_vec(), teller)).unwrap();
                            // The writer of this test drops it: what counts is that it was taken.
                            assert!(written.await.is_none());
                        }
                    };
                    if with_relay {
                        served(asking);
                    } else {
                        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(asking);
                    }
                });
            }
        });
        let total: usize = std::iter::from_fn(|| taken.try_recv().ok()).map(|lot| lot.len()).sum();
        assert!(total >= 8000 - 4, "{total}");
    }

    #[test]
    fn is_bounded_and_says_when_its_writer_is_gone() {
        let (queue, jobs) = channel();
        for _ in 0..QUEUE {
            write(&queue, "x").unwrap();
        }
        assert!(matches!(write(&queue, "x"), Err(DeviceError::Full)));
        drop(jobs);
        assert!(matches!(write(&queue, "x"), Err(DeviceError::Gone)));
    }
}
