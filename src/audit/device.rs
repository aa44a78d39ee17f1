//! A device: a bounded queue and a thread that writes, so that a slow disk never holds up the server beyond a deadline.
//!
//! Waking that thread costs more than a record does. So it is woken for the first record of an empty queue when the others
//! that are ready on the same worker have theirs beside it ([`crate::relay`]).

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use futures_util::poll;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    file::Target,
    options::{FileOptions, OptionError},
    queue::{self, MOST_BYTES, Record},
    salt::Salt,
};
use crate::relay::{self, Receipt, Teller, receipt};

/// Bytes of records that are written together, when so many wait.
const TOGETHER: usize = 256 << 10;
/// How long a record may take. A device that is stuck for longer refuses new ones at once.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// Why a device did not take a record.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// More bytes of records wait than the queue holds.
    #[error("its queue is full: records come faster than it writes them")]
    Full,
    /// The write before this one has not come back.
    #[error("it has been stuck for {0:?}")]
    Stuck(Duration),
    /// The record was not written in time.
    #[error("it did not write the record in time")]
    Late,
    /// The write failed.
    #[error(transparent)]
    Write(#[from] io::Error),
    /// Its thread cannot be started or has ended.
    #[error("its writer is gone")]
    Gone,
}

/// A device as it is stored below `core/audit/<uuid>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// Names the record.
    pub uuid: String,
    /// Path with a trailing slash.
    pub path: String,
    /// `file`.
    pub kind: String,
    /// For people.
    pub description: String,
    /// Options as they came.
    pub options: BTreeMap<String, String>,
    /// Shown only.
    pub local: bool,
}

/// A record on its way to a device's file.
pub struct Sent(Result<Receipt<io::Result<()>>, DeviceError>);

/// An enabled device.
#[derive(Debug)]
pub struct Device {
    /// What was enabled.
    pub record: DeviceRecord,
    /// Its options in types.
    pub options: FileOptions,
    /// The key of its HMACs.
    pub salt: Salt,
    queue: queue::Sender,
    health: Arc<Health>,
}

/// What the writer and those who wait for it tell each other.
#[derive(Debug)]
struct Health {
    path: String,
    epoch: Instant,
    /// Since when the writer has been at one record, in milliseconds after `epoch`; 0 when it is idle.
    since: AtomicU64,
    failing: AtomicBool,
}

impl Health {
    /// Logs when the device starts to fail and when it works again, not every record in between.
    fn note(&self, error: Option<&(dyn std::error::Error + 'static)>) {
        match error {
            None if self.failing.swap(false, Ordering::Relaxed) => {
                tracing::info!(device = %self.path, "the audit device works again");
            }
            Some(error) if !self.failing.swap(true, Ordering::Relaxed) => {
                tracing::error!(device = %self.path, error, "the audit device does not take records");
            }
            _ => {}
        }
    }

    fn start(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(now.max(1), Ordering::Relaxed);
    }

    fn stop(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    fn stuck(&self) -> Option<Duration> {
        let since = self.since.load(Ordering::Relaxed);
        let busy = self.epoch.elapsed().saturating_sub(Duration::from_millis(since));
        (since != 0 && busy > DEADLINE).then_some(busy)
    }
}

impl Device {
    /// Starts a device's writer; its file is opened with the first record.
    ///
    /// # Errors
    /// [`OptionError`] for options that cannot be used.
    pub fn start(record: DeviceRecord, salt: Salt, allowed: &[String]) -> Result<Arc<Self>, OptionError> {
        let options = FileOptions::parse(&record.options)?;
        let (queue, waiting) = queue::channel(MOST_BYTES);
        let health = Arc::new(Health {
            path: record.path.clone(),
            epoch: Instant::now(),
            since: AtomicU64::new(0),
            failing: AtomicBool::new(false),
        });
        let target = Target::new(options.clone(), allowed.to_vec());
        let writer = Arc::clone(&health);
        // Without a thread every record fails with `Gone`, which says it.
        if let Err(error) = std::thread::Builder::new().name("audit".into()).spawn(move || write(target, &waiting, &writer)) {
            tracing::error!(%error, "the writer of an audit device cannot be started");
        }
        Ok(Arc::new(Self { record, options, salt, queue, health }))
    }

    /// Puts a record into the queue at once, whoever waits for it later: every device gets every record.
    pub fn send(&self, line: Vec<u8>) -> Sent {
        if let Some(stuck) = self.health.stuck() {
            return Sent(Err(DeviceError::Stuck(stuck)));
        }
        let (teller, written) = receipt();
        Sent(self.queue.push(Record { line, teller }).map(|()| written))
    }

    /// Waits for a record, at most until the deadline.
    pub async fn written(&self, Sent(sent): Sent) -> Result<(), DeviceError> {
        let result = match sent {
            Err(error) => Err(error),
            Ok(mut written) => {
                let heard = match poll!(&mut written) {
                    Poll::Ready(heard) => Ok(heard),
                    Poll::Pending => tokio::time::timeout(DEADLINE, written).await,
                };
                match heard {
                    Err(_) => Err(DeviceError::Late),
                    Ok(None) => Err(DeviceError::Gone),
                    Ok(Some(result)) => return Ok(result?),
                }
            }
        };
        if let Err(error) = &result {
            self.health.note(Some(error));
        }
        result
    }

    /// Closes the file, however much waits for it; the next record opens it again.
    pub fn reopen(&self) {
        self.queue.reopen();
    }
}

/// Who waits for a record, and where it ends among those that are written together.
type Waiting = (usize, Teller<io::Result<()>>);

/// The writer's thread; it ends with the device. Records that wait are written together.
fn write(mut target: Target, queue: &queue::Receiver, health: &Health) {
    let mut lines = Vec::new();
    while let Some(records) = queue.take() {
        health.start();
        let mut records = records.into_iter().peekable();
        loop {
            if queue.reopens() {
                target.close();
            }
            if records.peek().is_none() {
                break;
            }
            let mut waiting: Vec<Waiting> = Vec::new();
            let mut cost = 0;
            while lines.len() < TOGETHER
                && let Some(record) = records.next()
            {
                cost += record.cost();
                lines.extend_from_slice(&record.line);
                waiting.push((lines.len(), record.teller));
            }
            let (result, written) = target.append(&lines);
            health.note(result.as_ref().err().map(|error| error as &(dyn std::error::Error + 'static)));
            if result.is_err() {
                // What was replaced or repaired meanwhile is found by opening it anew.
                target.close_after_failure();
            }
            queue.written(cost);
            answer(waiting, &result, written);
            // The next one of the same lot is begun now.
            health.start();
            lines.clear();
            lines.shrink_to(TOGETHER);
        }
        health.stop();
    }
}

/// Tells each who waits whether the whole record was written.
fn answer(waiting: Vec<Waiting>, result: &io::Result<()>, written: usize) {
    let told: Vec<_> = waiting
        .into_iter()
        .map(|(end, teller)| {
            teller.tell(match result {
                Err(error) if end > written => Err(io::Error::new(error.kind(), error.to_string())),
                _ => Ok(()),
            })
        })
        .collect();
    relay::wake(told);
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::audit::options::FileOptions;

    fn target(path: &std::path::Path) -> Target {
        let options = BTreeMap::from([("file_path".to_owned(), path.to_str().unwrap().to_owned())]);
        Target::new(FileOptions::parse(&options).unwrap(), vec![path.parent().unwrap().to_str().unwrap().to_owned()])
    }

    fn health() -> Health {
        Health { path: "x/".into(), epoch: Instant::now(), since: AtomicU64::new(0), failing: AtomicBool::new(false) }
    }

    #[test]
    fn records_that_wait_are_written_in_order_and_each_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let (queue, jobs) = queue::channel(MOST_BYTES);
        let mut waiting = Vec::new();
        let mut expected = String::new();
        for number in 0..500 {
            let line = format!("{number}{}\n", "z".repeat(1000));
            expected.push_str(&line);
            let (teller, written) = receipt();
            queue.push(Record { line: line.into_bytes(), teller }).unwrap();
            waiting.push(written);
            if number == 250 {
                queue.reopen();
            }
        }
        drop(queue);
        write(target(&path), &jobs, &health());
        for written in waiting {
            assert!(written.now_or_never().unwrap().unwrap().is_ok());
        }
        assert!(std::fs::read_to_string(&path).unwrap() == expected);
    }

    #[test]
    fn after_a_failure_only_those_hear_of_success_whose_record_is_whole() {
        let (sent, heard): (Vec<_>, Vec<_>) = [10, 20, 30]
            .map(|end| {
                let (teller, written) = receipt();
                ((end, teller), written)
            })
            .into_iter()
            .unzip();
        answer(sent, &Err(io::ErrorKind::StorageFull.into()), 25);
        let told: Vec<bool> = heard.into_iter().map(|written| written.now_or_never().unwrap().unwrap().is_ok()).collect();
        assert_eq!(told, [true, true, false]);
    }
}
