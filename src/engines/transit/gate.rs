//! What batches and keys of many versions may take at once, over all Transit mounts.
//!
//! The items of a batch cost memory beside the request's bytes: its answer grows by some hundred bytes each, whereas an item
//! can be sent in three. So there is a bound for one batch and one for all together, of which those of moderate length have a
//! part of their own. What is admitted is worked on in pieces that take turns, so that nobody waits for the whole of another:
//! batches in windows (those that need the HSM and those that do not apart), keys of many versions in slices of time. Between two
//! pieces it is looked whether the answer is still wanted, and whether it can come in time at all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit},
};

use super::rsa_in_hsm::AT_ONCE;
use crate::{
    barrier::View,
    core::{engine::Call, failure::Failure, wanted::Wanted},
};

/// Items of one batch. A body of the usual largest size, full of wrapped 32-byte keys, holds fewer.
pub const MAX_ITEMS: usize = 500_000;

/// A batch up to this length costs no more than a single request does, and waits for nobody.
const SMALL: usize = 256;

/// A batch up to this length does not wait for longer ones to end.
const MODERATE: usize = 32 * 1024;

/// Items of all batches of moderate length that are worked on at once in the same place.
const ALL_MODERATE: usize = 8 * MODERATE;

/// Items of all longer batches that are worked on at once in the same place.
const ALL_LONG: usize = 2 * MAX_ITEMS;

/// Windows that are worked on at once in the same place.
const WINDOWS: usize = 8;

/// Operations on private keys in the HSM that batches and changes of keys have under way at once, at most.
const PRIVATE: usize = 2 * AT_ONCE;

/// With so many it begins. How many an HSM can take tells how long they take: they wait for its sessions as part of their time, and
/// so does what is asked beside them, whose deadline counts that.
const PRIVATE_AT_FIRST: usize = 4;

/// An operation that ends sooner lets one more be under way.
const QUICK: Duration = Duration::from_millis(500);

/// One that takes longer halves how many may be. It is some calls to the HSM, each of which may take 10 s.
const SLOW: Duration = Duration::from_secs(2);

/// A key of so many versions is a small one: what is done for all of them takes a processor seconds at most.
pub const FEW_VERSIONS: usize = 16;

/// Small keys that are read or written as a whole at once.
const SMALL_KEYS: usize = 16;

/// Other keys for which that was begun.
const LARGE_KEYS: usize = 8;

/// Of those, so many are worked on at a time.
const LARGE_KEYS_AT_WORK: usize = 2;

/// How long a large key is worked on before others get their turn.
const SLICE: Duration = Duration::from_millis(100);

/// How long work must have taken to tell how long the rest of it takes.
const MEASURE: Duration = Duration::from_millis(250);
/// So many judgements in a row, each over as much work, are believed.
const SURE: u32 = 3;

/// The bounds.
pub struct Gate {
    software: Lanes,
    hsm: Lanes,
    private: Turns,
    /// Keys whose versions are moved now.
    moving: AtomicU32,
    small_keys: Arc<Semaphore>,
    large_keys: Arc<Semaphore>,
    large_keys_at_work: Arc<Semaphore>,
}

/// What there is for batches that are worked on in the same place.
struct Lanes {
    moderate: Semaphore,
    long: Semaphore,
    windows: Semaphore,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { moderate: Semaphore::new(ALL_MODERATE), long: Semaphore::new(ALL_LONG), windows: Semaphore::new(WINDOWS) }
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            software: Lanes::default(),
            hsm: Lanes::default(),
            private: Turns::default(),
            moving: AtomicU32::new(0),
            small_keys: Arc::new(Semaphore::new(SMALL_KEYS)),
            large_keys: Arc::new(Semaphore::new(LARGE_KEYS)),
            large_keys_at_work: Arc::new(Semaphore::new(LARGE_KEYS_AT_WORK)),
        }
    }
}

/// Where the items of a batch are worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this process.
    Here,
    /// In the HSM.
    Hsm,
}

/// What long work asks between two pieces.
#[derive(Clone, Default)]
pub struct Going {
    wanted: Wanted,
    view: Option<View>,
}

impl Going {
    /// For a request to a mount with these records.
    pub fn of(call: &Call<'_>, view: &View) -> Self {
        Self { wanted: call.request.wanted.clone(), view: Some(view.clone()) }
    }

    /// For work at a mount with these records whose outcome is always wanted.
    #[cfg(test)]
    pub fn at(view: &View) -> Self {
        Self { wanted: Wanted::default(), view: Some(view.clone()) }
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// 503 when nobody waits for the answer any longer, or the server was sealed.
    pub fn check(&self) -> Result<(), Failure> {
        if self.view.as_ref().is_some_and(View::is_sealed) {
            return Err(Failure::unavailable("Vault is sealed"));
        }
        self.wanted.check()
    }

    async fn turn<T, E: std::error::Error + Send + Sync + 'static>(
        &self,
        turn: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure> {
        let turn = self.wanted.turn(turn).await?.map_err(Failure::internal)?;
        self.check().map(|()| turn)
    }
}

/// Work in pieces of the same kind, and how long it takes.
struct Pace {
    pieces: usize,
    done: usize,
    worked: Duration,
    /// Both as of the last judgement, and how many judgements in a row were that it is too much.
    judged: (usize, Duration),
    doubts: u32,
}

impl Pace {
    fn of(pieces: usize) -> Self {
        Self { pieces, done: 0, worked: Duration::ZERO, judged: (0, Duration::ZERO), doubts: 0 }
    }

    /// How many pieces fit into the time that there was, if not all do. It is told when that was so each time of [`SURE`], by what
    /// was done since the time before: the first pieces have costs of their own, and others may have been in the way for a moment.
    fn fitting(&mut self, left: Option<Duration>) -> Option<usize> {
        let (done, worked) = (self.done - self.judged.0, self.worked.saturating_sub(self.judged.1));
        if worked < MEASURE || done == 0 || self.pieces == 0 {
            return None;
        }
        self.judged = (self.done, self.worked);
        let (left, count) = (left?.as_nanos(), |pieces: usize| u128::try_from(pieces).unwrap_or(u128::MAX));
        let each = (worked.as_nanos() / count(done)).max(1);
        if each.saturating_mul(count(self.pieces.saturating_sub(self.done))) <= left {
            self.doubts = 0;
            return None;
        }
        self.doubts += 1;
        if self.doubts < SURE { None } else { usize::try_from(count(self.done) + left / each).ok() }
    }
}

/// A window that is worked on.
struct Window<'a> {
    _turn: SemaphorePermit<'a>,
    began: Instant,
    items: usize,
    /// How many were worked on in the same place when it began, itself among them.
    beside: u32,
}

/// A batch on its way.
pub struct Pass<'a> {
    gate: &'a Gate,
    going: Going,
    place: Place,
    pace: Pace,
    room: Option<SemaphorePermit<'a>>,
    window: Option<Window<'a>>,
}

impl Pass<'_> {
    /// Says where the items are worked on, before the first window.
    pub fn goes_to(&mut self, place: Place) {
        self.place = place;
    }

    /// Ends the window before, and waits until the next one, of so many items, may be worked on.
    ///
    /// # Errors
    /// 503 when nobody waits for the answer any longer; 400 when it cannot come in time.
    pub async fn window(&mut self, items: usize) -> Result<(), Failure> {
        if let Some(Window { began, items, beside, .. }) = self.window.take() {
            // Its share of the time: what takes longer only because of others is not refused, it may be late.
            self.pace.worked += began.elapsed() / beside.max(1);
            self.pace.done += items;
        }
        if self.pace.pieces <= SMALL || items == 0 {
            return Ok(());
        }
        self.going.check()?;
        if let Some(fit) = self.pace.fitting(self.going.wanted.left()) {
            return Err(Failure::invalid(format!(
                "the batch has {} items, of which about {fit} can be processed within max_request_duration; send them in several requests",
                self.pace.pieces
            )));
        }
        let lanes = match self.place {
            Place::Here => &self.gate.software,
            Place::Hsm => &self.gate.hsm,
        };
        if self.room.is_none() {
            let room = if self.pace.pieces <= MODERATE { &lanes.moderate } else { &lanes.long };
            let items = u32::try_from(self.pace.pieces).unwrap_or(u32::MAX);
            self.room = Some(self.going.turn(room.acquire_many(items)).await?);
        }
        let turn = self.going.turn(lanes.windows.acquire()).await?;
        let beside = u32::try_from(WINDOWS.saturating_sub(lanes.windows.available_permits())).unwrap_or(1);
        self.window = Some(Window { _turn: turn, began: Instant::now(), items, beside });
        Ok(())
    }
}

impl Gate {
    /// A batch of so many items, to be worked on here unless it says otherwise.
    ///
    /// # Errors
    /// 400 when it is longer than any may be.
    pub fn admit(&self, items: usize, going: Going) -> Result<Pass<'_>, Failure> {
        if items > MAX_ITEMS {
            return Err(Failure::invalid(format!(
                "batch_input has more than the {MAX_ITEMS} items that one request takes; send them in several requests"
            )));
        }
        Ok(Pass { gate: self, going, place: Place::Here, pace: Pace::of(items), room: None, window: None })
    }

    /// Does what keeps a processor busy for all versions of a key, on a thread where nobody waits for it. What is told to be small
    /// does not wait for what is not.
    pub async fn whole_key<T: Send + 'static>(
        &self,
        small: bool,
        going: Going,
        work: impl FnOnce(&mut Job) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (begun, at_work) = match small {
            true => (&self.small_keys, None),
            false => (&self.large_keys, Some(Arc::clone(&self.large_keys_at_work))),
        };
        let begun = going.turn(Arc::clone(begun).acquire_owned()).await?;
        let turn = match &at_work {
            Some(at_work) => Some(going.turn(Arc::clone(at_work).acquire_owned()).await?),
            None => None,
        };
        let mut job = Job { going, at_work, turn, began: Instant::now(), from: Duration::ZERO, pace: Pace::of(0), _begun: begun };
        tokio::task::spawn_blocking(move || work(&mut job)).await.map_err(Failure::internal)?
    }

    /// The turn of one of many operations on a private key in the HSM.
    pub async fn private(&self) -> Result<PrivateTurn<'_>, Failure> {
        let permit = self.private.permits.acquire().await.map_err(Failure::internal)?;
        Ok(PrivateTurn { turns: &self.private, permit: Some(permit), began: Instant::now() })
    }

    /// The same for as long as the answer is waited for.
    ///
    /// # Errors
    /// 503 when it is not any longer, or the server was sealed.
    pub async fn private_while(&self, going: &Going) -> Result<PrivateTurn<'_>, Failure> {
        let turn = going.wanted.turn(self.private()).await??;
        going.check().map(|()| turn)
    }

    /// Begins to move so many versions of a key to where they are to be kept.
    pub fn move_versions(&self, versions: usize, going: &Going) -> Moving<'_> {
        self.moving.fetch_add(1, Ordering::Relaxed);
        Moving { gate: self, going: going.clone(), pace: Pace::of(versions), last: Instant::now() }
    }
}

/// The versions of a key that is restored or gets another level, on their way.
pub struct Moving<'a> {
    gate: &'a Gate,
    going: Going,
    pace: Pace,
    /// When the last one came.
    last: Instant,
}

impl Moving<'_> {
    /// To be called after each version, before anything of it is kept.
    ///
    /// # Errors
    /// 503 when nobody waits for the answer any longer or the server was sealed; 400 when it cannot come in time.
    pub fn moved(&mut self) -> Result<(), Failure> {
        self.going.check()?;
        self.pace.done += 1;
        // Its share of the time: what takes longer only because of others is not refused, it may be late.
        self.pace.worked += self.last.elapsed() / self.gate.moving.load(Ordering::Relaxed).max(1);
        self.last = Instant::now();
        if let Some(fit) = self.pace.fitting(self.going.wanted.left()) {
            return Err(Failure::invalid(format!(
                "the key has {} versions to wrap, of which about {fit} can be done within max_request_duration; trim it to fewer, or raise max_request_duration",
                self.pace.pieces
            )));
        }
        Ok(())
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.gate.moving.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Turns of operations in the HSM: as many at once as it gets done in good time.
struct Turns {
    permits: Semaphore,
    allowed: Mutex<Allowed>,
}

struct Allowed {
    count: usize,
    /// Turns beyond that which have not ended yet.
    beyond: usize,
    /// When it was last made less.
    since: Option<Instant>,
}

impl Default for Turns {
    fn default() -> Self {
        let allowed = Allowed { count: PRIVATE_AT_FIRST, beyond: 0, since: None };
        Self { permits: Semaphore::new(PRIVATE_AT_FIRST), allowed: Mutex::new(allowed) }
    }
}

impl Turns {
    /// Learns of a turn that took so long; tells whether another may take its place.
    fn ended(&self, began: Instant, now: Instant) -> bool {
        let took = now.saturating_duration_since(began);
        let mut allowed = self.allowed.lock();
        // Turns that were already under way tell nothing of how fewer do.
        let is_news = allowed.since.is_none_or(|since| began >= since);
        if took > SLOW && is_news {
            let count = (allowed.count / 2).max(1);
            allowed.beyond += allowed.count - count;
            allowed.count = count;
            allowed.since = Some(now);
        } else if took < QUICK && allowed.count < PRIVATE {
            allowed.count += 1;
            match allowed.beyond {
                0 => self.permits.add_permits(1),
                _ => allowed.beyond -= 1,
            }
        }
        let ends = allowed.beyond > 0;
        allowed.beyond -= usize::from(ends);
        !ends
    }
}

/// The turn of an operation; dropped when it is done.
pub struct PrivateTurn<'a> {
    turns: &'a Turns,
    permit: Option<SemaphorePermit<'a>>,
    began: Instant,
}

impl Drop for PrivateTurn<'_> {
    fn drop(&mut self) {
        let goes_on = self.turns.ended(self.began, Instant::now());
        if let Some(permit) = self.permit.take()
            && !goes_on
        {
            permit.forget();
        }
    }
}

/// The time that this thread has had a processor.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// What is done for all versions of a key, on a thread of its own.
pub struct Job {
    going: Going,
    at_work: Option<Arc<Semaphore>>,
    turn: Option<OwnedSemaphorePermit>,
    /// When its turn began.
    began: Instant,
    /// The processor's time that this thread had when the work began.
    from: Duration,
    pace: Pace,
    _begun: OwnedSemaphorePermit,
}

impl Job {
    /// Says how many versions there are.
    pub fn expect(&mut self, versions: usize) {
        self.pace = Pace::of(versions);
        self.from = processor_time();
    }

    /// As [`Job::expect`] where it is found out on the way.
    pub fn expect_once(&mut self, versions: usize) {
        if self.pace.pieces == 0 {
            self.expect(versions);
        }
    }

    /// To be called before each version: lets others have their turn.
    ///
    /// # Errors
    /// 503 when nobody waits for the answer any longer or the server was sealed; 400 when it cannot come in time.
    pub fn version(&mut self) -> Result<(), Failure> {
        self.going.check()?;
        // What takes longer only because of others is not refused, it may be late.
        self.pace.worked = processor_time().saturating_sub(self.from);
        if let Some(fit) = self.pace.fitting(self.going.wanted.left()) {
            return Err(Failure::invalid(format!(
                "the key has {} versions, of which about {fit} can be processed within max_request_duration; trim it to fewer, or raise max_request_duration",
                self.pace.pieces
            )));
        }
        self.pace.done += 1;
        if let Some(at_work) = &self.at_work
            && self.began.elapsed() >= SLICE
        {
            self.turn = None;
            let turn = self.going.turn(Arc::clone(at_work).acquire_owned());
            self.turn = Some(Handle::current().block_on(turn)?);
            self.began = Instant::now();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::failure::Kind;

    fn going() -> Going {
        Going::default()
    }

    #[tokio::test]
    async fn what_reads_a_whole_key_holds_up_nobody() {
        let gate = Gate::default();
        // Ends only because others go on beside it, on this runtime's only thread.
        let (go, wait) = std::sync::mpsc::channel();
        let work = gate.whole_key(true, going(), move |_| wait.recv().map_err(Failure::internal));
        let beside = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            go.send(7)
        };
        let (done, sent) = tokio::join!(work, beside);
        sent.unwrap();
        assert_eq!(done.unwrap(), 7);
    }

    #[tokio::test]
    async fn small_keys_do_not_wait_for_large_ones_and_large_ones_take_turns() {
        let gate = Gate::default();
        let (stop, stopped) = (Arc::new(std::sync::atomic::AtomicBool::new(false)), std::sync::atomic::Ordering::Relaxed);
        let endless = || {
            let stop = Arc::clone(&stop);
            gate.whole_key(false, going(), move |job| {
                while !stop.load(stopped) {
                    job.version()?;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(())
            })
        };
        // As many as may be worked on at a time, and they end only after the others have.
        let others = async {
            gate.whole_key(true, going(), |_| Ok(())).await.unwrap();
            gate.whole_key(false, going(), |_| Ok(())).await.unwrap();
            stop.store(true, stopped);
        };
        let (one, two, ()) = tokio::join!(endless(), endless(), others);
        one.and(two).unwrap();
    }

    #[tokio::test]
    async fn what_is_not_wanted_any_longer_or_cannot_come_in_time_ends_between_two_versions() {
        let gate = Gate::default();
        let work = |wanted: Wanted, versions: usize| {
            gate.whole_key(false, Going { wanted, view: None }, move |job| {
                job.expect(versions);
                for _ in 0..versions {
                    job.version()?;
                    let from = processor_time();
                    while processor_time() < from + Duration::from_millis(20) {}
                }
                Ok(())
            })
        };
        let (wanted, waiting) = Wanted::within(Duration::from_secs(3600));
        let beside = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(waiting);
        };
        let (ended, ()) = tokio::join!(work(wanted, 10_000), beside);
        assert_eq!(ended.unwrap_err().kind(), Kind::Unavailable);
        let (wanted, _waiting) = Wanted::within(Duration::from_secs(20));
        let refused = work(wanted.clone(), 10_000).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Invalid);
        assert!(refused.text().starts_with("the key has 10000 versions, of which about "), "{}", refused.text());
        assert!(wanted.check().is_ok());
    }

    #[tokio::test]
    async fn keys_that_cannot_be_moved_in_time_are_refused_by_what_a_version_takes() {
        let gate = Gate::default();
        let move_all = async |versions: usize, wanted: Wanted| {
            let mut moving = gate.move_versions(versions, &Going { wanted, view: None });
            for _ in 0..versions {
                tokio::time::sleep(Duration::from_millis(20)).await;
                moving.moved()?;
            }
            Ok::<_, Failure>(())
        };
        let (wanted, waiting) = Wanted::within(Duration::from_secs(20));
        let refused = move_all(10_000, wanted.clone()).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Invalid);
        assert!(refused.text().starts_with("the key has 10000 versions to wrap, of which about "));
        move_all(50, wanted.clone()).await.unwrap();
        assert_eq!(gate.moving.load(Ordering::Relaxed), 0);
        drop(waiting);
        assert_eq!(move_all(1, wanted).await.unwrap_err().kind(), Kind::Unavailable);
    }

    /// An HSM of one session, which does everything after the other: no turn waits long for those before it.
    #[test]
    fn an_hsm_has_as_many_operations_under_way_as_it_gets_done_in_good_time() {
        let longest_of = |each: Duration| {
            let (turns, start) = (Turns::default(), Instant::now());
            let mut free = start;
            let mut under_way = std::collections::VecDeque::new();
            let (mut longest, mut most) = (Duration::ZERO, 0);
            for done in 0..400 {
                let now = free;
                while let Ok(permit) = turns.permits.try_acquire() {
                    permit.forget();
                    under_way.push_back(now);
                }
                most = most.max(under_way.len());
                let Some(began) = under_way.pop_front() else { panic!("nothing is under way") };
                free = now + each;
                // The first ones find out.
                if done >= 40 {
                    longest = longest.max(free - began);
                }
                if turns.ended(began, free) {
                    turns.permits.add_permits(1);
                }
            }
            (longest, most)
        };
        let (longest, most) = longest_of(Duration::from_micros(100));
        assert!(most == PRIVATE && longest < QUICK, "{most} {longest:?}");
        for millis in [20, 150, 450, 1500] {
            let each = Duration::from_millis(millis);
            let (longest, most) = longest_of(each);
            assert!(longest <= (SLOW + each).max(2 * each) && most < PRIVATE, "{each:?}: {longest:?}, {most}");
        }
        let (longest, _) = longest_of(Duration::from_secs(5));
        assert_eq!(longest, Duration::from_secs(5), "one after the other");
    }

    #[test]
    fn how_much_fits_is_told_when_it_was_too_much_several_times_in_a_row() {
        let mut pace = Pace::of(1000);
        let mut judge = |done, millis, left| {
            pace.done += done;
            pace.worked += Duration::from_millis(millis);
            pace.fitting(Some(Duration::from_secs(left)))
        };
        // Too little to tell, then a first piece with costs of its own.
        assert_eq!(judge(1, 100, 0), None);
        assert_eq!(judge(0, 900, 9), None);
        // That was it: 10 ms each.
        assert_eq!(judge(50, 500, 20), None);
        assert_eq!(judge(49, 490, 7), None);
        assert_eq!(judge(50, 500, 6), None);
        assert_eq!(judge(50, 500, 5), Some(200 + 500));
        let mut endless = Pace { done: 10, worked: Duration::from_secs(100), ..Pace::of(1000) };
        assert!((0..5).all(|_| endless.fitting(None).is_none()));
    }

    #[tokio::test]
    async fn batches_take_turns_by_windows_and_those_on_the_hsm_apart() {
        let gate = Gate::default();
        let begun = async |count: usize, place: Place| {
            let mut pass = gate.admit(count, going()).unwrap();
            pass.goes_to(place);
            pass.window(count.min(1024)).await.unwrap();
            pass
        };
        let mut held = Vec::new();
        for _ in 0..WINDOWS {
            held.push(begun(SMALL + 1, Place::Hsm).await);
        }
        let mut waiting = Box::pin(begun(2 * 1024, Place::Hsm));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        // Small ones wait for nobody, nor do those in the other place.
        drop((begun(SMALL, Place::Hsm).await, begun(MAX_ITEMS, Place::Here).await));
        // Another one's next window comes after the first one of who waited.
        let mut first = held.remove(0);
        let mut next = Box::pin(first.window(1));
        assert!(futures_util::poll!(&mut next).is_pending());
        drop(waiting.await);
        next.await.unwrap();
    }

    #[tokio::test]
    async fn long_batches_are_bounded_together_and_moderate_ones_do_not_wait_for_them() {
        let gate = Gate::default();
        let begun = async |count: usize| {
            let mut pass = gate.admit(count, going()).unwrap();
            pass.window(1024).await.unwrap();
            pass
        };
        let held = (begun(MAX_ITEMS).await, begun(MAX_ITEMS).await);
        let mut third = Box::pin(begun(MODERATE + 1));
        assert!(futures_util::poll!(&mut third).is_pending());
        drop((begun(SMALL + 1).await, begun(MODERATE).await));
        drop(held);
        third.await;
        assert_eq!(gate.admit(MAX_ITEMS + 1, going()).err().unwrap().kind(), Kind::Invalid);
    }

    #[tokio::test]
    async fn batches_that_nobody_waits_for_end_at_the_next_window_and_in_the_queue() {
        let gate = Gate::default();
        let (wanted, waiting) = Wanted::within(Duration::from_secs(3600));
        let mut pass = gate.admit(10_000, Going { wanted, view: None }).unwrap();
        pass.window(1024).await.unwrap();
        drop(waiting);
        assert_eq!(pass.window(1024).await.unwrap_err().kind(), Kind::Unavailable);
        let mut held = [gate.admit(MAX_ITEMS, going()).unwrap(), gate.admit(MAX_ITEMS, going()).unwrap()];
        for pass in &mut held {
            pass.window(1024).await.unwrap();
        }
        let (wanted, _waiting) = Wanted::within(Duration::from_millis(20));
        let mut late = gate.admit(MAX_ITEMS, Going { wanted, view: None }).unwrap();
        assert_eq!(late.window(1024).await.unwrap_err().kind(), Kind::Unavailable);
    }
}
