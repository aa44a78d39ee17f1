//! How a thread that does work for many (the writer of an audit device, the commits of a store) and those who wait for it deal
//! with each other in lots.
//!
//! A wake-up from another thread costs a system call each, one from the thread itself costs nothing; and work that is handed over one by
//! one costs more than the work. So each thread that serves connections has a task of its own for both: it is woken once and wakes those who wait
//! there ([`receipt`]), and it does a thing after whatever else is ready had its turn ([`later`]). It is nobody's request, so no
//! client can keep it from running. Threads without that task are woken for each, and do at once what would be done later.

use std::{
    cell::RefCell,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;

thread_local! {
    static HERE: RefCell<Option<Arc<Relay>>> = const { RefCell::new(None) };
}

type Thing = Box<dyn FnOnce() + Send>;

/// The task of one thread, as others see it.
#[derive(Default)]
struct Relay(Mutex<Work>);

#[derive(Default)]
struct Work {
    wakers: Vec<Waker>,
    things: Vec<Thing>,
    task: Option<Waker>,
    gone: bool,
}

impl Relay {
    /// Adds to the work; what is given back is to be done by the caller, since the task has ended.
    fn add(&self, mut wakers: Vec<Waker>, thing: Option<Thing>) -> (Vec<Waker>, Option<Thing>) {
        let mut work = self.0.lock();
        if work.gone {
            return (wakers, thing);
        }
        work.wakers.append(&mut wakers);
        work.things.extend(thing);
        let task = work.task.take();
        drop(work);
        if let Some(task) = task {
            task.wake();
        }
        (Vec::new(), None)
    }

    /// All there is to do, as soon as there is something.
    async fn next(&self) -> (Vec<Waker>, Vec<Thing>) {
        poll_fn(|context| {
            let mut work = self.0.lock();
            if work.wakers.is_empty() && work.things.is_empty() {
                work.task = Some(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready((std::mem::take(&mut work.wakers), std::mem::take(&mut work.things)))
        })
        .await
    }
}

/// Ends the relay of a thread: nothing is left undone.
struct Served(Arc<Relay>);

impl Drop for Served {
    fn drop(&mut self) {
        let mut work = self.0.0.lock();
        work.gone = true;
        let (wakers, things) = (std::mem::take(&mut work.wakers), std::mem::take(&mut work.things));
        drop(work);
        wakers.into_iter().for_each(Waker::wake);
        things.into_iter().for_each(|thing| thing());
        // The thread may be ending, and what belongs to it be gone already.
        let _ = HERE.try_with(|here| here.take());
    }
}

/// The task; it is to run on the thread that it serves for as long as that serves anybody.
pub async fn serve() {
    let relay = Arc::new(Relay::default());
    HERE.set(Some(Arc::clone(&relay)));
    let served = Served(relay);
    loop {
        let (wakers, mut things) = served.0.next().await;
        wakers.into_iter().for_each(Waker::wake);
        if !things.is_empty() {
            tokio::task::yield_now().await;
            // And what came meanwhile, which need not wait longer than these.
            things.append(&mut served.0.0.lock().things);
            things.into_iter().for_each(|thing| thing());
        }
    }
}

/// Does something after whatever else is ready on this thread has had its turn.
pub fn later(thing: impl FnOnce() + Send + 'static) {
    let left = match HERE.with_borrow(Clone::clone) {
        Some(relay) => relay.add(Vec::new(), Some(Box::new(thing))).1,
        None => return thing(),
    };
    if let Some(thing) = left {
        thing();
    }
}

/// The working thread's half. When it goes untold, [`Receipt`] answers `None`.
pub struct Teller<T>(Arc<Slot<T>>);

/// The half of who waits: a future of how it went.
pub struct Receipt<T>(Arc<Slot<T>>);

struct Slot<T>(Mutex<State<T>>);

struct State<T> {
    told: Option<Option<T>>,
    waits: Option<Sleeper>,
}

/// Who waits, and the relay of the thread where they do.
type Sleeper = (Option<Arc<Relay>>, Waker);

/// A pair of halves.
pub fn receipt<T>() -> (Teller<T>, Receipt<T>) {
    let slot = Arc::new(Slot(Mutex::new(State { told: None, waits: None })));
    (Teller(Arc::clone(&slot)), Receipt(slot))
}

impl<T> Teller<T> {
    /// Says how it went; [`wake`] is to be called with what this answers.
    pub fn tell(self, result: T) -> Told {
        self.settle(Some(result))
    }

    fn settle(&self, told: Option<T>) -> Told {
        let mut state = self.0.0.lock();
        state.told = Some(told);
        Told(state.waits.take())
    }
}

impl<T> Drop for Teller<T> {
    fn drop(&mut self) {
        if self.0.0.lock().told.is_none() {
            wake([self.settle(None)]);
        }
    }
}

/// Somebody who was told and perhaps sleeps.
pub struct Told(Option<Sleeper>);

/// Wakes all of them, with one wake-up for each thread that has a relay.
pub fn wake(told: impl IntoIterator<Item = Told>) {
    let mut lots: Vec<(Arc<Relay>, Vec<Waker>)> = Vec::new();
    for (relay, waker) in told.into_iter().filter_map(|told| told.0) {
        let Some(relay) = relay else {
            waker.wake();
            continue;
        };
        match lots.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &relay)) {
            Some((_, wakers)) => wakers.push(waker),
            None => lots.push((relay, vec![waker])),
        }
    }
    for (relay, wakers) in lots {
        relay.add(wakers, None).0.into_iter().for_each(Waker::wake);
    }
}

impl<T> Future for Receipt<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.0.lock();
        match state.told.take() {
            Some(told) => Poll::Ready(told),
            None => {
                state.waits = Some((HERE.with_borrow(Clone::clone), context.waker().clone()));
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::atomic::{AtomicUsize, Ordering},
        task::Wake,
    };

    use futures_util::poll;
    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    type Written = Receipt<io::Result<()>>;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn served<F: Future>(test: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let local = LocalSet::new();
        local.block_on(&runtime, async {
            spawn_local(serve());
            yield_now().await;
            test.await
        })
    }

    #[test]
    fn each_who_waits_is_woken_by_the_relay_whatever_the_others_do() {
        served(async {
            let bells: Vec<Arc<Bell>> = (0..5).map(|_| Arc::default()).collect();
            let (tellers, mut receipts): (Vec<_>, Vec<Written>) = (0..5).map(|_| receipt()).unzip();
            for (receipt, bell) in receipts.iter_mut().zip(&bells) {
                let waker = Waker::from(Arc::clone(bell));
                assert!(Pin::new(receipt).poll(&mut Context::from_waker(&waker)).is_pending());
            }
            // One has gone; and none of those that are woken is looked at again.
            receipts.pop();
            let telling = std::thread::spawn(|| {
                let told: Vec<Told> = tellers.into_iter().map(|teller| teller.tell(Ok(()))).collect();
                wake(told);
            });
            telling.join().unwrap();
            assert!(bells.iter().all(|bell| bell.0.load(Ordering::Relaxed) == 0), "only the relay was woken");
            yield_now().await;
            assert!(bells.iter().all(|bell| bell.0.load(Ordering::Relaxed) == 1));
            for receipt in receipts {
                assert!(receipt.await.unwrap().is_ok());
            }
        });
    }

    #[test]
    fn things_are_done_once_after_the_turn_of_what_is_ready_and_at_once_without_a_relay() {
        let done = Arc::new(AtomicUsize::new(0));
        let count = |done: &Arc<AtomicUsize>| {
            let done = Arc::clone(done);
            move || {
                done.fetch_add(1, Ordering::Relaxed);
            }
        };
        later(count(&done));
        assert_eq!(done.load(Ordering::Relaxed), 1);
        served(async {
            later(count(&done));
            later(count(&done));
            assert_eq!(done.load(Ordering::Relaxed), 1);
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            assert_eq!(done.load(Ordering::Relaxed), 3);
            later(count(&done));
        });
        // The relay has ended, and with it its thread's.
        assert_eq!(done.load(Ordering::Relaxed), 4);
        later(count(&done));
        assert_eq!(done.load(Ordering::Relaxed), 5);
    }

    #[tokio::test]
    async fn an_error_and_a_lost_writer_are_heard_at_once() {
        let (teller, mut heard): (_, Written) = receipt();
        wake([teller.tell(Err(io::ErrorKind::StorageFull.into()))]);
        assert!(matches!(poll!(&mut heard), Poll::Ready(Some(Err(_)))));
        let (teller, mut heard): (_, Written) = receipt();
        assert!(poll!(&mut heard).is_pending());
        drop(teller);
        assert!(heard.await.is_none());
    }

    #[test]
    fn nobody_sleeps_for_ever_on_several_threads() {
        let (tellers, told) = std::sync::mpsc::channel::<Teller<io::Result<()>>>();
        let writer = std::thread::spawn(move || {
            while let Ok(first) = told.recv() {
                let lot: Vec<Told> = std::iter::once(first).chain(told.try_iter()).map(|teller| teller.tell(Ok(()))).collect();
                wake(lot);
            }
        });
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let tellers = tellers.clone();
                scope.spawn(move || {
                    served(async {
                        let tasks: Vec<_> = (0..8)
                            .map(|task| {
                                let tellers = tellers.clone();
                                spawn_local(async move {
                                    for turn in 0..500 {
                                        let (teller, heard) = receipt();
                                        tellers.send(teller).unwrap();
                                        if (turn + task) % 7 == 0 {
                                            yield_now().await;
                                            drop(heard);
                                        } else {
                                            assert!(heard.await.unwrap().is_ok());
                                        }
                                    }
                                })
                            })
                            .collect();
                        for task in tasks {
                            task.await.unwrap();
                        }
                    });
                });
            }
        });
        drop(tellers);
        writer.join().unwrap();
    }
}
