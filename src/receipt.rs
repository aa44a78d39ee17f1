//! How a thread that does work for many (the writer of an audit device, the commits of a store) tells those who wait, many at once.
//!
//! A wake-up from another thread costs a system call each, one from the thread itself costs nothing. So of those who wait on the
//! same thread it wakes one, and that one wakes the others.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    thread::ThreadId,
};

use parking_lot::Mutex;

/// The working thread's half. When it goes untold, [`Receipt`] answers `None`.
pub struct Teller<T>(Arc<Slot<T>>);

/// The half of who waits: a future of how it went.
pub struct Receipt<T>(Arc<Slot<T>>);

struct Slot<T>(Mutex<State<T>>);

struct State<T> {
    told: Option<Option<T>>,
    waits: Option<(ThreadId, Waker)>,
    /// Who is to be woken by the one who waits here.
    others: Vec<Waker>,
    /// Nobody waits here any longer.
    gone: bool,
}

/// A pair of halves.
pub fn receipt<T>() -> (Teller<T>, Receipt<T>) {
    let state = State { told: None, waits: None, others: Vec::new(), gone: false };
    let slot = Arc::new(Slot(Mutex::new(state)));
    (Teller(Arc::clone(&slot)), Receipt(slot))
}

impl<T> Teller<T> {
    /// Says how it went; [`wake`] is to be called with what this answers.
    pub fn tell(self, result: T) -> Told<T> {
        self.settle(Some(result))
    }

    fn settle(&self, told: Option<T>) -> Told<T> {
        let mut state = self.0.0.lock();
        state.told = Some(told);
        Told(state.waits.take().map(|(thread, waker)| (thread, waker, Arc::clone(&self.0))))
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
pub struct Told<T>(Option<(ThreadId, Waker, Arc<Slot<T>>)>);

/// Those of one thread.
type Sleepers<T> = Vec<(Waker, Arc<Slot<T>>)>;

/// Wakes all of them, with one wake-up for each thread.
pub fn wake<T>(told: impl IntoIterator<Item = Told<T>>) {
    let mut threads: Vec<(ThreadId, Sleepers<T>)> = Vec::new();
    for (thread, waker, slot) in told.into_iter().filter_map(|told| told.0) {
        match threads.iter_mut().find(|(known, _)| *known == thread) {
            Some((_, sleepers)) => sleepers.push((waker, slot)),
            None => threads.push((thread, vec![(waker, slot)])),
        }
    }
    for (_, mut sleepers) in threads {
        while let Some((waker, slot)) = sleepers.pop() {
            let mut state = slot.0.lock();
            if state.gone {
                continue;
            }
            state.others.extend(sleepers.drain(..).map(|(waker, _)| waker));
            drop(state);
            waker.wake();
        }
    }
}

impl<T> Future for Receipt<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.0.lock();
        let others = std::mem::take(&mut state.others);
        let answer = match state.told.take() {
            Some(told) => Poll::Ready(told),
            None => {
                state.waits = Some((std::thread::current().id(), context.waker().clone()));
                Poll::Pending
            }
        };
        drop(state);
        others.into_iter().for_each(Waker::wake);
        answer
    }
}

impl<T> Drop for Receipt<T> {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.gone = true;
        let others = std::mem::take(&mut state.others);
        drop(state);
        others.into_iter().for_each(Waker::wake);
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

    use super::*;

    type Written = Receipt<io::Result<()>>;
    /// Who waits, with a bell.
    type Waiting = (Written, Arc<Bell>);

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn rung(bell: &Arc<Bell>) -> usize {
        bell.0.load(Ordering::Relaxed)
    }

    fn ask(receipt: &mut Written, bell: &Arc<Bell>) -> Poll<Option<io::Result<()>>> {
        Pin::new(receipt).poll(&mut Context::from_waker(&Waker::from(Arc::clone(bell))))
    }

    /// Five who wait on this thread, each with a bell.
    fn waiting() -> (Vec<Teller<io::Result<()>>>, Vec<Waiting>) {
        let (tellers, mut receipts): (Vec<_>, Vec<_>) =
            (0..5).map(|_| receipt()).map(|(teller, receipt)| (teller, (receipt, Arc::new(Bell::default())))).unzip();
        assert!(receipts.iter_mut().all(|(receipt, bell)| ask(receipt, bell).is_pending()));
        (tellers, receipts)
    }

    fn tell_all(tellers: Vec<Teller<io::Result<()>>>) {
        let told: Vec<Told<_>> = tellers.into_iter().map(|teller| teller.tell(Ok(()))).collect();
        wake(told);
    }

    #[test]
    fn one_is_woken_and_wakes_the_others() {
        let (tellers, mut receipts) = waiting();
        tell_all(tellers);
        assert_eq!(receipts.iter().map(|(_, bell)| rung(bell)).sum::<usize>(), 1);
        let at = receipts.iter().position(|(_, bell)| rung(bell) == 1).unwrap();
        let (mut first, bell) = receipts.remove(at);
        assert!(matches!(ask(&mut first, &bell), Poll::Ready(Some(Ok(())))));
        for (receipt, bell) in &mut receipts {
            assert_eq!(rung(bell), 1);
            assert!(matches!(ask(receipt, bell), Poll::Ready(Some(Ok(())))));
        }
    }

    #[test]
    fn who_goes_away_wakes_the_others_all_the_same() {
        let (tellers, mut receipts) = waiting();
        tell_all(tellers);
        let at = receipts.iter().position(|(_, bell)| rung(bell) == 1).unwrap();
        drop(receipts.remove(at));
        assert!(receipts.iter().all(|(_, bell)| rung(bell) == 1));
    }

    #[test]
    fn who_has_gone_is_not_chosen() {
        let (tellers, mut receipts) = waiting();
        let told: Vec<Told<_>> = tellers.into_iter().map(|teller| teller.tell(Ok(()))).collect();
        drop(receipts.split_off(2));
        wake(told);
        assert_eq!(receipts.iter().map(|(_, bell)| rung(bell)).sum::<usize>(), 1);
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
                let lot: Vec<Told<_>> = std::iter::once(first).chain(told.try_iter()).map(|teller| teller.tell(Ok(()))).collect();
                wake(lot);
            }
        });
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let tellers = tellers.clone();
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    let local = tokio::task::LocalSet::new();
                    local.block_on(&runtime, async {
                        let tasks: Vec<_> = (0..8)
                            .map(|task| {
                                let tellers = tellers.clone();
                                tokio::task::spawn_local(async move {
                                    for turn in 0..500 {
                                        let (teller, heard) = receipt();
                                        tellers.send(teller).unwrap();
                                        if (turn + task) % 7 == 0 {
                                            tokio::task::yield_now().await;
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
