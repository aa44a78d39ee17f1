//! Flushes of sled, and letting go of an instance, so that nobody waits for ever.
//!
//! A flush can wait for ever for a write that has failed: sled wakes it on one path of a failing write and not on the other. A second
//! flush sees the error and wakes the first, so one is sent after a flush that takes long. Where the file of a large value could not be
//! written there is no error to see: sled keeps the value's place in its log reserved, and no flush of that instance ends any more.
//!
//! Whoever drops the last handle of an instance flushes too, out of reach of any help. So an instance is flushed first (once its error is
//! known, later flushes see it at once), and dropped on a thread of its own, for which others wait only so long.
//!
//! A flush that does not end holds up more than its own instance: all instances of a process share one lock, which a flush holds for reading and a
//! batch takes for writing, so that the next batch waits for a copy's flush, and every read for that batch. Only the end of the process helps
//! then: it ends when an instance has not let go of its files, or a copy's flush has not ended, after [`GIVE_UP`]. Nothing acknowledged is lost by that.

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use sled::Db;

use crate::{crashpoint::patience, storage::backend::guarded};

/// A flush that takes longer is looked after.
const LONG_FLUSH: Duration = Duration::from_millis(250);

/// What takes longer to let go of its files keeps others from opening them, or holds up everything.
const GIVE_UP: Duration = Duration::from_secs(25);

/// The process's exit status then, so that a supervisor starts it again.
const STUCK: i32 = 75;

pub(super) fn give_up_after() -> Duration {
    patience(GIVE_UP)
}

/// Ends the process: a store that neither works nor can be opened again serves nobody.
pub(super) fn give_up() -> ! {
    tracing::error!(
        "sled failed and does not let go of its files, so that they cannot be opened again and others may wait for it for ever: the \
         process ends with status {STUCK} and is to be started anew; nothing that was acknowledged is lost by that"
    );
    std::process::exit(STUCK)
}

/// The flushes under way, and what must end; a thread looks after them.
#[derive(Default)]
pub(super) struct Flushing {
    now: Mutex<Vec<Flush>>,
    must_end: Mutex<Vec<(Instant, Weak<()>)>>,
    /// A read of the store's instance has failed: where that was a page that it tidied up into a large value's file, no flush ends any more.
    met_error: AtomicBool,
}

struct Flush {
    db: Db,
    since: Instant,
    /// When the next look is due.
    patience: Duration,
}

impl Flushing {
    pub(super) fn start() -> io::Result<Arc<Self>> {
        let flushing = Arc::new(Self::default());
        let watched = Arc::downgrade(&flushing);
        thread::Builder::new().name("sled-flush".into()).spawn(move || {
            loop {
                thread::sleep(LONG_FLUSH);
                let Some(flushing) = watched.upgrade() else { return };
                if flushing.longest() > give_up_after() {
                    give_up();
                }
                for flush in flushing.now.lock().iter_mut().filter(|flush| flush.since.elapsed() >= flush.patience) {
                    // On a disk that is slow and has not failed the second waits like the first: seldom, then.
                    flush.patience *= 2;
                    let db = flush.db.clone();
                    let _ = thread::Builder::new().name("sled-flush".into()).spawn(move || db.flush());
                }
            }
        })?;
        Ok(flushing)
    }

    pub(super) fn flush(&self, db: &Db) -> Result<(), ::sled::Error> {
        let since = Instant::now();
        self.now.lock().push(Flush { db: db.clone(), since, patience: LONG_FLUSH });
        let flushed = db.flush();
        // Of several that began at once any will do: all are of the same patience.
        let mut now = self.now.lock();
        if let Some(at) = now.iter().position(|flush| flush.since == since) {
            let over = now.swap_remove(at);
            drop(now);
            drop(over);
        }
        flushed.map(|_| ())
    }

    /// As [`Flushing::flush`], of a copy: others wait for it to end.
    pub(super) fn flush_copy(&self, db: &Db) -> Result<(), ::sled::Error> {
        let _until_it_ends = self.must_end();
        self.flush(db)
    }

    /// Has the process ended when what is answered lives for too long.
    fn must_end(&self) -> Arc<()> {
        let alive = Arc::new(());
        self.must_end.lock().push((Instant::now(), Arc::downgrade(&alive)));
        alive
    }

    /// Whether a read of the store's instance has failed.
    pub(super) fn met_error(&self, met: bool) {
        if self.met_error.load(Ordering::Relaxed) != met {
            self.met_error.store(met, Ordering::Relaxed);
        }
    }

    /// For how long the oldest of what must end has been at it. A flush of the store itself is given all the time that a slow disk takes,
    /// unless its instance is known to have failed.
    fn longest(&self) -> Duration {
        let mut waited_for = self.must_end.lock();
        waited_for.retain(|(_, alive)| alive.strong_count() > 0);
        let longest = waited_for.iter().map(|(since, _)| since.elapsed()).max().unwrap_or_default();
        if !self.met_error.load(Ordering::Relaxed) {
            return longest;
        }
        self.now.lock().iter().map(|flush| flush.since.elapsed()).max().unwrap_or_default().max(longest)
    }

    /// Flushes an instance and lets go of it, together with what else holds it.
    pub(super) fn close<T: Send + 'static>(self: &Arc<Self>, db: Db, held: T) -> Closing {
        let (over, waiting) = mpsc::channel();
        let flushing = Arc::clone(self);
        let until_it_ends = self.must_end();
        let close = move || {
            let _ = guarded(|| Ok(flushing.flush(&db)?));
            drop(held);
            let _ = guarded(|| {
                drop(db);
                Ok(())
            });
            drop(until_it_ends);
            let _ = over.send(());
        };
        // Where no thread can be had the closure is dropped here, and with it the instance.
        let _ = thread::Builder::new().name("sled-close".into()).spawn(close);
        Closing { over: waiting, since: Instant::now() }
    }
}

/// An instance that is being let go of.
pub(super) struct Closing {
    over: mpsc::Receiver<()>,
    since: Instant,
}

impl Closing {
    /// Waits until it is over, at most so long; whether it is.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        !matches!(self.over.recv_timeout(patience), Err(RecvTimeoutError::Timeout))
    }

    /// Since when it is waited for.
    pub(super) fn since(&self) -> Instant {
        self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_closes_waits_only_so_long_and_flushes_are_looked_after_one_by_one() {
        let place = tempfile::tempdir().unwrap();
        let open = |name: &str| ::sled::Config::new().path(place.path().join(name)).flush_every_ms(None).open().unwrap();
        let flushing = Flushing::start().unwrap();
        let (one, two) = (open("one"), open("two"));
        one.insert("k", "v").unwrap();
        two.insert("k", "v").unwrap();
        flushing.flush(&one).unwrap();
        assert!(flushing.now.lock().is_empty());
        // Something that takes its time to go stands for a flush that does not end.
        struct Slow(mpsc::Receiver<()>);
        impl Drop for Slow {
            fn drop(&mut self) {
                let _ = self.0.recv();
            }
        }
        let (go, wait) = mpsc::channel::<()>();
        let stuck = flushing.close(one, Slow(wait));
        assert!(!stuck.wait(Duration::from_millis(20)));
        assert!(flushing.close(two, ()).wait(Duration::from_secs(10)), "another does not wait for it");
        assert!(flushing.longest() >= Duration::from_millis(20));
        drop(go);
        assert!(stuck.wait(Duration::from_secs(10)));
        assert_eq!(flushing.longest(), Duration::ZERO);
        assert_eq!(open("one").get("k").unwrap().unwrap(), "v");
    }
}
