//! The records that wait for one device, and who wakes its writer.
//!
//! How many wait is bounded by their bytes alone: requests in flight are bounded where they come in, and each of them finds room for its
//! records however many come at once, unless these are far larger than records are.

use std::{
    sync::Arc,
    thread::{self, ThreadId},
};

use parking_lot::{Condvar, Mutex};

use super::device::DeviceError;
use crate::relay::{self, Teller};

/// Bytes of records that one device has not yet written. All requests that may be in flight (`http::limits`) with both of their records
/// find room for 6 KiB each; most need less than one.
pub const MOST_BYTES: usize = 128 << 20;
/// What a record costs beside its text.
const RECORD_COST: usize = 256;
/// So many are not kept waiting for others any longer.
const ENOUGH: usize = 64;

/// A line to append, and who is told how it went.
pub struct Record {
    /// The line.
    pub line: Vec<u8>,
    /// Who waits for it.
    pub teller: Teller<std::io::Result<()>>,
}

impl Record {
    /// The bytes that it holds.
    pub fn cost(&self) -> usize {
        self.line.capacity() + RECORD_COST
    }
}

/// A device's end: when it goes, the writer ends after what waits.
#[derive(Debug)]
pub struct Sender(Arc<Queue>);

/// The writer's end: when it goes, nothing is taken any longer.
pub struct Receiver(Arc<Queue>);

#[derive(Debug)]
struct Queue {
    most_bytes: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    records: Vec<Record>,
    /// What these cost, and those that the writer has taken and not yet written.
    bytes: usize,
    /// The file is to be opened anew. Not a record among others: it is never too much, and no record after it goes to the old file.
    reopen: bool,
    /// The writer waits for a wake-up.
    sleeps: bool,
    /// Counts what the writer took: those that wait are announced as this lot.
    lot: u64,
    /// The threads that are going to announce it. Each that puts something into it does, for any other may be busy for long.
    leaders: Vec<ThreadId>,
    /// What waits may be taken.
    announced: bool,
    /// The device or the writer is gone.
    closed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("records", &self.records.len()).field("closed", &self.closed).finish_non_exhaustive()
    }
}

/// A queue for so many bytes of records, with its two ends.
pub fn channel(most_bytes: usize) -> (Sender, Receiver) {
    let queue = Arc::new(Queue { most_bytes, state: Mutex::default(), changed: Condvar::new() });
    (Sender(Arc::clone(&queue)), Receiver(queue))
}

impl Sender {
    /// Puts a record at the end. Its writer takes it when those that are ready beside it on one of the threads were put behind it, even if
    /// it is awake: else it would take them one by one, and a write for each is dearer than the wait.
    ///
    /// # Errors
    /// [`DeviceError::Full`] and [`DeviceError::Gone`].
    pub fn push(&self, record: Record) -> Result<(), DeviceError> {
        let mut state = self.0.state.lock();
        if state.closed {
            return Err(DeviceError::Gone);
        }
        if state.bytes >= self.0.most_bytes {
            return Err(DeviceError::Full);
        }
        state.bytes += record.cost();
        state.records.push(record);
        if state.records.len() >= ENOUGH {
            self.0.announce(&mut state);
        }
        let here = thread::current().id();
        let leads = !state.leaders.contains(&here);
        if leads {
            state.leaders.push(here);
        }
        let lot = state.lot;
        drop(state);
        if leads {
            let queue = Arc::clone(&self.0);
            relay::later(move || queue.announce_lot(lot));
        }
        Ok(())
    }

    /// Lets the writer open its file anew before it writes the next record, at once when it has nothing to do.
    pub fn reopen(&self) {
        let mut state = self.0.state.lock();
        state.reopen = true;
        self.0.wake(&mut state);
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Receiver {
    /// What waits, in its order, as soon as there is something, or [`Receiver::reopens`]; `None` when the device is gone and nothing is left.
    pub fn take(&self) -> Option<Vec<Record>> {
        let mut state = self.0.state.lock();
        // Once it is closed nobody is left who could announce what was put last.
        while !(state.announced || state.reopen || state.closed) {
            state.sleeps = true;
            self.0.changed.wait(&mut state);
        }
        if state.records.is_empty() && !state.reopen {
            return None;
        }
        (state.sleeps, state.announced) = (false, false);
        state.lot += 1;
        state.leaders.clear();
        Some(std::mem::take(&mut state.records))
    }

    /// Whether the file is to be opened anew; said once.
    pub fn reopens(&self) -> bool {
        std::mem::take(&mut self.0.state.lock().reopen)
    }

    /// Makes room for others: records of this cost are written.
    pub fn written(&self, cost: usize) {
        let mut state = self.0.state.lock();
        state.bytes = state.bytes.saturating_sub(cost);
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.close();
        // Who waits for these hears that the writer is gone.
        let left = std::mem::take(&mut self.0.state.lock().records);
        drop(left);
    }
}

impl Queue {
    fn announce(&self, state: &mut State) {
        state.announced = true;
        self.wake(state);
    }

    fn wake(&self, state: &mut State) {
        if std::mem::take(&mut state.sleeps) {
            self.changed.notify_one();
        }
    }

    /// Lets the writer take what waits. Another thread may have announced it before; what came after that has leaders of its own.
    fn announce_lot(&self, lot: u64) {
        let mut state = self.state.lock();
        if state.lot == lot {
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
        queue.push(Record { line: text.as_bytes().to_vec(), teller: receipt().0 })
    }

    fn text(records: Vec<Record>) -> String {
        records.into_iter().map(|record| String::from_utf8(record.line).unwrap()).collect()
    }

    /// A writer on a thread of its own that gives back what it took, lot by lot.
    fn writer(waiting: Receiver) -> std::sync::mpsc::Receiver<String> {
        let (lots, taken) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            while let Some(lot) = waiting.take() {
                let reopened = if waiting.reopens() { "|" } else { "" };
                waiting.written(lot.iter().map(Record::cost).sum());
                lots.send(format!("{reopened}{}", text(lot))).unwrap();
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
        let (queue, waiting) = channel(MOST_BYTES);
        let taken = writer(waiting);
        served(async {
            for _ in 0..100 {
                sleeping(&queue);
                write(&queue, "a").unwrap();
                write(&queue, "b").unwrap();
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
                assert_eq!(lot, "abc");
            }
        });
        drop(queue);
        assert!(taken.recv().is_err());
    }

    #[test]
    fn a_thread_that_is_busy_keeps_no_other_threads_records_waiting() {
        let (queue, waiting) = channel(MOST_BYTES);
        let taken = writer(waiting);
        served(async {
            sleeping(&queue);
            write(&queue, "slow").unwrap();
            // This thread does not come to its relay before the other's records are taken.
            let queue = &queue;
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    served(async {
                        write(queue, ",quick").unwrap();
                        yield_now().await;
                        write(queue, ",too").unwrap();
                        assert!(queue.0.state.lock().sleeps, "the others had no turn");
                        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                        assert_eq!(taken.recv_timeout(std::time::Duration::from_secs(10)).unwrap(), "slow,quick,too");
                    });
                });
            });
        });
    }

    #[test]
    fn who_comes_late_with_an_announcement_does_not_part_the_next_lot() {
        let (queue, waiting) = channel(MOST_BYTES);
        let taken = writer(waiting);
        let queue = Arc::new(queue);
        served(async {
            sleeping(&queue);
            write(&queue, "a").unwrap();
            let other = Arc::clone(&queue);
            std::thread::spawn(move || write(&other, "b").unwrap()).join().unwrap();
            assert_eq!(taken.recv().unwrap(), "ab", "a thread without a relay announces at once");
            sleeping(&queue);
            let other = Arc::clone(&queue);
            let (put, is_put) = std::sync::mpsc::channel();
            let (go, goes) = std::sync::mpsc::channel::<()>();
            let busy = std::thread::spawn(move || {
                served(async {
                    write(&other, "c").unwrap();
                    put.send(()).unwrap();
                    goes.recv().unwrap();
                    write(&other, "d").unwrap();
                });
            });
            is_put.recv().unwrap();
            // The turn of this thread's relay, which has the first lot to announce.
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            assert!(queue.0.state.lock().sleeps, "the second lot was announced by one who put nothing into it");
            go.send(()).unwrap();
            busy.join().unwrap();
            assert_eq!(taken.recv().unwrap(), "cd");
        });
    }

    #[test]
    fn many_are_not_kept_waiting() {
        let (queue, waiting) = channel(MOST_BYTES);
        let taken = writer(waiting);
        served(async {
            sleeping(&queue);
            (0..ENOUGH).for_each(|_| write(&queue, "x").unwrap());
            // No other task has had a turn.
            assert_eq!(taken.recv().unwrap().len(), ENOUGH);
        });
    }

    #[test]
    fn nothing_is_left_behind_whatever_the_order() {
        let (queue, waiting) = channel(MOST_BYTES);
        let taken = writer(waiting);
        let queue = &queue;
        std::thread::scope(|scope| {
            for with_relay in [false, true, false, true] {
                scope.spawn(move || {
                    let asking = async {
                        for _ in 0..2000 {
                            let (teller, written) = receipt();
                            queue.push(Record { line: b"x".to_vec(), teller }).unwrap();
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
    fn is_bounded_by_bytes_until_they_are_written_and_says_when_its_writer_is_gone() {
        let (queue, waiting) = channel(100 * (RECORD_COST + 1));
        for _ in 0..100 {
            write(&queue, "x").unwrap();
        }
        assert!(matches!(write(&queue, "x"), Err(DeviceError::Full)));
        let taken = waiting.take().unwrap();
        assert!(matches!(write(&queue, "x"), Err(DeviceError::Full)), "what is being written counts");
        waiting.written(taken.first().unwrap().cost());
        write(&queue, "x").unwrap();
        assert!(matches!(write(&queue, "x"), Err(DeviceError::Full)));
        waiting.written(taken.iter().skip(1).map(Record::cost).sum());
        // One that is longer than all there is room for is taken too: it is the next one that is not.
        write(&queue, &"x".repeat(100_000)).unwrap();
        assert!(matches!(write(&queue, "x"), Err(DeviceError::Full)));
        drop(waiting);
        assert!(matches!(write(&queue, "x"), Err(DeviceError::Gone)));
    }

    #[test]
    fn all_requests_that_may_be_in_flight_find_room_for_both_records() {
        let (queue, waiting) = channel(MOST_BYTES);
        let line = "x".repeat(6 << 10);
        for _ in 0..20_000 {
            write(&queue, &line).unwrap();
        }
        assert_eq!(waiting.take().unwrap().len(), 20_000);
    }

    #[test]
    fn a_reopening_is_heard_however_full_the_queue_is_and_whether_or_not_the_writer_sleeps() {
        let (queue, waiting) = channel(1);
        write(&queue, "x").unwrap();
        assert!(matches!(write(&queue, "x"), Err(DeviceError::Full)));
        queue.reopen();
        // While the writer is at something else.
        let lot = waiting.take().unwrap();
        assert!(lot.len() == 1 && waiting.reopens() && !waiting.reopens());
        queue.reopen();
        assert!(matches!(write(&queue, "x"), Err(DeviceError::Full)), "nothing is written yet");
        assert!(waiting.reopens(), "between two writes of one lot");
        waiting.written(lot.iter().map(Record::cost).sum());
        let taken = writer(waiting);
        sleeping(&queue);
        queue.reopen();
        assert_eq!(taken.recv().unwrap(), "|", "at once, without a record");
        drop(queue);
        assert!(taken.recv().is_err());
    }
}
