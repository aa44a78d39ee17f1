//! The threads: each owns one session and takes one call after the other.
//!
//! Thread 0 takes the slow calls (what makes, finds, wraps or destroys objects), so that a key generation does not
//! hold up decryptions; thread 1 takes the long ones (RSA generation), so that they do not hold up the slow ones; the
//! others take the fast ones. With fewer than three sessions the slow thread takes the long calls, with one all. Where
//! sessions run side by side the slow and the long thread help out with fast calls.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cryptoki_sys::*;
use parking_lot::{Condvar, Mutex};

use super::device::{Current, Device};
use super::ops::{self, Call};
use super::output::Output;
use super::{Fatal, Trouble};
use crate::hsm::ck_error::{CkError, Kind};
use crate::hsm::proto::{self, Event, Failure, Frame, Header, Hello, Lane, Op, Reply};
use crate::hsm::raw::Session;
use crate::hsm::{DownReason, Mechanism};

/// How often an operation is tried in all.
const ATTEMPTS: usize = 3;

/// The pool.
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    device: Arc<Device>,
    output: Arc<Output>,
    seal_mechanism: Mechanism,
    queues: Mutex<Queues>,
    limit: usize,
    threads: Vec<Thread>,
    started: Instant,
}

/// What a thread takes, by falling preference, and how it is woken.
struct Thread {
    lanes: &'static [Lane],
    wake: Condvar,
    running: Running,
}

#[derive(Default)]
struct Queues {
    fast: VecDeque<Job>,
    slow: VecDeque<Job>,
    long: VecDeque<Job>,
    /// Which threads wait for a call.
    idle: Vec<bool>,
}

impl Queues {
    /// The next job of one of these lanes. They take turns: none waits for as long as another has work.
    fn next(&mut self, lanes: &[Lane], last: Option<Lane>) -> Option<Job> {
        let behind = last.and_then(|last| lanes.iter().position(|lane| *lane == last)).map_or(0, |at| at + 1);
        let (before, after) = lanes.split_at_checked(behind)?;
        after.iter().chain(before).find_map(|lane| self.of(*lane).pop_front())
    }

    fn of(&mut self, lane: Lane) -> &mut VecDeque<Job> {
        match lane {
            Lane::Slow => &mut self.slow,
            Lane::Long => &mut self.long,
            Lane::Fast | Lane::Control => &mut self.fast,
        }
    }

    fn len(&self) -> usize {
        self.fast.len() + self.slow.len() + self.long.len()
    }
}

/// The lanes of each thread of a pool. A lane that no thread prefers is taken by the slow one.
fn lanes(threads: usize, parallel: bool) -> Vec<&'static [Lane]> {
    let roles: [&'static [Lane]; 3] = match (threads, parallel) {
        (0 | 1, _) => [&[Lane::Slow, Lane::Fast, Lane::Long], &[], &[]],
        (2, false) => [&[Lane::Slow, Lane::Long], &[Lane::Fast], &[]],
        (2, true) => [&[Lane::Slow, Lane::Fast, Lane::Long], &[Lane::Fast], &[]],
        (_, false) => [&[Lane::Slow], &[Lane::Long], &[Lane::Fast]],
        (_, true) => [&[Lane::Slow, Lane::Fast], &[Lane::Long, Lane::Fast], &[Lane::Fast]],
    };
    (0..threads).map(|index| roles.get(index).or(roles.last()).copied().unwrap_or_default()).collect()
}

/// What a thread is executing.
#[derive(Default)]
struct Running {
    /// Call id, 0 for none.
    call: AtomicU64,
    /// Whether it is of the long lane.
    long: AtomicBool,
    /// Since when, in milliseconds after the pool's start.
    since: AtomicU64,
}

struct Job {
    call: u64,
    lane: Lane,
    expires: Instant,
    frame: Frame,
}

/// A thread's session and the generation that it belongs to.
struct Owned {
    session: Session,
    generation: u64,
}

impl Pool {
    /// Opens the sessions and starts the threads; a token with fewer sessions to give gets fewer threads.
    pub fn start(device: Arc<Device>, hello: &Hello, seal_mechanism: Mechanism, output: Arc<Output>) -> Result<Self, Fatal> {
        // One session of those configured is the keeper's.
        let wanted = hello.max_sessions.map_or(device.quirks.sessions, |max| max.saturating_sub(1)).clamp(1, 256);
        let mut sessions = Vec::new();
        for _ in 0..wanted {
            match device.module.open_session(device.slot) {
                Ok(session) => sessions.push(Owned { session, generation: device.current().generation }),
                Err(error) if sessions.is_empty() => return Err(Fatal::new(DownReason::DeviceError, error.to_string())),
                Err(error) => {
                    tracing::warn!(%error, wanted, opened = sessions.len(), "the HSM gives fewer sessions than wanted");
                    break;
                }
            }
        }
        let lanes = lanes(sessions.len(), device.quirks.parallel);
        let shared = Arc::new(Shared {
            device,
            output,
            seal_mechanism,
            queues: Mutex::new(Queues { idle: vec![false; lanes.len()], ..Queues::default() }),
            limit: hello.queue.max(1),
            threads: lanes.into_iter().map(|lanes| Thread { lanes, wake: Condvar::new(), running: Running::default() }).collect(),
            started: Instant::now(),
        });
        for (index, owned) in sessions.into_iter().enumerate() {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("hsm-{index}"));
            let started = thread.spawn(move || shared.work(index, owned));
            started.map_err(|error| Fatal::new(DownReason::DeviceError, format!("no thread: {error}")))?;
        }
        Ok(Self { shared })
    }

    /// Queues a call; `false` when too many wait already.
    pub fn push(&self, header: Header, frame: Frame) -> bool {
        let expires = Instant::now() + Duration::from_millis(header.millis.into());
        let job = Job { call: header.call, lane: header.lane, expires, frame };
        let shared = &self.shared;
        let mut queues = shared.queues.lock();
        if queues.len() >= shared.limit {
            return false;
        }
        queues.of(header.lane).push_back(job);
        // Of the threads that wait, one for which such calls come first; its place is marked here, so that the next call
        // wakes another.
        let takes = |thread: &Thread| thread.lanes.iter().position(|lane| *lane == header.lane);
        let waiting = shared.threads.iter().zip(&queues.idle).enumerate().filter(|(_, (_, idle))| **idle);
        let best = waiting.filter_map(|(index, (thread, _))| Some((takes(thread)?, index))).min();
        if let Some((_, index)) = best
            && let Some(thread) = shared.threads.get(index)
        {
            if let Some(idle) = queues.idle.get_mut(index) {
                *idle = false;
            }
            drop(queues);
            thread.wake.notify_one();
        }
        true
    }

    /// For how long a thread has been executing this call; `None` when none is.
    ///
    /// A call that runs beside the generation of an RSA key may be waiting for it inside the module (some take one lock for
    /// everything), so its time counts as none.
    pub fn running_millis(&self, call: u64) -> Option<u64> {
        let mut running = self.shared.threads.iter().map(|thread| &thread.running);
        let found = running.clone().find(|running| running.call.load(Ordering::Acquire) == call)?;
        let long = |running: &Running| running.long.load(Ordering::Acquire) && running.call.load(Ordering::Acquire) != 0;
        if !long(found) && running.any(long) {
            return Some(0);
        }
        Some(self.shared.millis().saturating_sub(found.since.load(Ordering::Acquire)))
    }

    /// Into how many calls a batch is best split: one where sessions only get in each other's way.
    pub fn ways(&self) -> usize {
        if self.shared.device.quirks.parallel { self.shared.threads.len() } else { 1 }
    }
}

impl Shared {
    fn work(&self, index: usize, mut owned: Owned) {
        let Some(thread) = self.threads.get(index) else { return };
        let mut last = None;
        loop {
            let job = self.take(index, thread, last);
            last = Some(job.lane);
            // Nobody waits for a call whose time is up.
            if job.expires <= Instant::now() {
                continue;
            }
            thread.running.since.store(self.millis(), Ordering::Release);
            thread.running.long.store(job.lane == Lane::Long, Ordering::Release);
            thread.running.call.store(job.call, Ordering::Release);
            let answer = self.execute(&mut owned, &job);
            thread.running.call.store(0, Ordering::Release);
            match answer {
                Ok(frame) => self.output.send(frame),
                Err(failure) => self.output.message(job.call, &Reply::Failed(failure)),
            }
        }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn take(&self, index: usize, thread: &Thread, last: Option<Lane>) -> Job {
        let mut queues = self.queues.lock();
        loop {
            if let Some(job) = queues.next(thread.lanes, last) {
                if let Some(idle) = queues.idle.get_mut(index) {
                    *idle = false;
                }
                return job;
            }
            if let Some(idle) = queues.idle.get_mut(index) {
                *idle = true;
            }
            thread.wake.wait(&mut queues);
        }
    }

    fn execute(&self, owned: &mut Owned, job: &Job) -> Result<Frame, Failure> {
        let (_, body) = proto::split_request(&job.frame).ok_or(Failure::BadInput("a call without header".into()))?;
        let op: Op<'_> = proto::decode(body).map_err(|error| ops::undecodable(&error))?;
        let mut attempt = 1;
        loop {
            let current = self.device.current();
            let generation = current.generation;
            let result = self.attempt(owned, &current, job.call, &op);
            let next = match result {
                Ok(frame) => return Ok(frame),
                Err(trouble) => self.judge(owned, &current, trouble, attempt),
            };
            drop(current);
            match next {
                Next::Fail(failure) => return Err(failure),
                Next::Again => {}
                Next::Recover => {
                    if let Err(lost) = self.device.recover(generation) {
                        let Fatal { reason, detail } = &lost.why;
                        self.output.message(0, &Event::Down { reason: *reason, detail: detail.clone() });
                        super::end();
                    }
                }
            }
            attempt += 1;
        }
    }

    fn attempt(&self, owned: &mut Owned, current: &Current, id: u64, op: &Op<'_>) -> Result<Frame, Trouble> {
        if owned.generation != current.generation {
            // The old session went with the old login; its number may be in use again, so it is not closed.
            *owned = Owned { session: self.device.module.open_session(self.device.slot)?, generation: current.generation };
        }
        let call = Call {
            device: &self.device,
            current,
            session: owned.session,
            sessions: self.threads.len(),
            seal_mechanism: self.seal_mechanism,
            id,
        };
        ops::run(&call, op)
    }

    /// What comes after a failure. Only a failed probe leads to [`Next::Recover`], which concerns all callers.
    fn judge(&self, owned: &mut Owned, current: &Current, trouble: Trouble, attempt: usize) -> Next {
        let error = match trouble {
            Trouble::Failed(failure) => return Next::Fail(failure),
            Trouble::Lost if attempt < ATTEMPTS => return Next::Recover,
            Trouble::Lost => return Next::Fail(unavailable("the HSM does not pass the probe".into())),
            Trouble::Missing(id) => {
                // SoftHSM finds nothing, without an error, when its token or its login is gone.
                let healthy = self.device.healthy(current, owned.session);
                return if healthy || attempt >= ATTEMPTS { Next::Fail(Failure::KeyMissing(id)) } else { Next::Recover };
            }
            Trouble::Ck(error) => error,
        };
        let last = attempt >= ATTEMPTS;
        match error.kind() {
            Kind::BadInput => Next::Fail(Failure::BadInput(error.to_string())),
            // So SoftHSM speaks of an object that was destroyed after its handle was found: it looks as if it had no attributes.
            Kind::Unsupported if attempt == 1 && speaks_of_the_key(&error) => {
                self.device.forget_all(current);
                Next::Again
            }
            Kind::Unsupported => Next::Fail(Failure::Unsupported(error.to_string())),
            Kind::SessionCount => Next::Fail(Failure::Overloaded),
            _ if last => Next::Fail(self.final_verdict(owned, current, error)),
            Kind::Handle if attempt == 1 => {
                self.device.forget_all(current);
                Next::Again
            }
            Kind::Session => self.renew(owned),
            Kind::Login | Kind::NotInitialized | Kind::PinRefused | Kind::PinLocked => Next::Recover,
            Kind::Handle | Kind::Ambiguous => {
                if !self.device.healthy(current, owned.session) {
                    return Next::Recover;
                }
                if blames_input(&error) && error.rv == CKR_GENERAL_ERROR {
                    return Next::Fail(Failure::BadInput(error.to_string()));
                }
                self.renew(owned)
            }
        }
    }

    /// After the last attempt: what fails every time on a healthy token is the input's fault where input can be bad.
    fn final_verdict(&self, owned: &Owned, current: &Current, error: CkError) -> Failure {
        if blames_input(&error) && self.device.healthy(current, owned.session) {
            Failure::BadInput(error.to_string())
        } else {
            unavailable(error.to_string())
        }
    }

    /// Goes on with a new session.
    fn renew(&self, owned: &mut Owned) -> Next {
        let _ = self.device.module.close_session(owned.session);
        match self.device.module.open_session(self.device.slot) {
            Ok(session) => {
                owned.session = session;
                Next::Again
            }
            Err(_) => Next::Recover,
        }
    }
}

enum Next {
    Again,
    Recover,
    Fail(Failure),
}

fn unavailable(detail: String) -> Failure {
    Failure::Unavailable { reason: DownReason::DeviceError, detail }
}

/// Whether a function is refused for what the key is.
fn speaks_of_the_key(error: &CkError) -> bool {
    matches!(error.rv, CKR_KEY_TYPE_INCONSISTENT | CKR_KEY_FUNCTION_NOT_PERMITTED)
}

/// Whether the failed function works on data that a caller may have spoilt.
fn blames_input(error: &CkError) -> bool {
    matches!(error.function, "C_Decrypt" | "C_UnwrapKey")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_has_a_thread_and_generations_do_not_hold_up_the_rest() {
        for parallel in [false, true] {
            for threads in 1..6 {
                let lanes = lanes(threads, parallel);
                assert_eq!(lanes.len(), threads);
                for lane in [Lane::Fast, Lane::Slow, Lane::Long] {
                    assert!(lanes.iter().any(|thread| thread.contains(&lane)), "{threads} {lane:?}");
                }
                if threads >= 2 {
                    assert!(lanes.iter().any(|thread| !thread.contains(&Lane::Long) && thread.contains(&Lane::Fast)));
                }
                if threads >= 3 {
                    assert!(lanes.iter().any(|thread| !thread.contains(&Lane::Long) && thread.contains(&Lane::Slow)));
                }
            }
        }
    }

    #[test]
    fn lanes_of_one_thread_take_turns() {
        let mut queues = Queues::default();
        for lane in [Lane::Slow, Lane::Fast, Lane::Long] {
            for call in 0..3 {
                queues.of(lane).push_back(Job { call, lane, expires: Instant::now(), frame: Frame::default() });
            }
        }
        queues.of(Lane::Long).clear();
        let mut last = None;
        let mut took = Vec::new();
        while let Some(job) = queues.next(&[Lane::Slow, Lane::Fast, Lane::Long], last) {
            took.push((job.lane, job.call));
            last = Some(job.lane);
        }
        let turns = [Lane::Slow, Lane::Fast];
        assert_eq!(took, (0..3).flat_map(|call| turns.map(|lane| (lane, call))).collect::<Vec<_>>());
        queues.of(Lane::Fast).push_back(Job { call: 9, lane: Lane::Fast, expires: Instant::now(), frame: Frame::default() });
        assert!(queues.next(&[Lane::Slow], last).is_none(), "another thread's");
        assert!(queues.next(&[Lane::Fast], last).is_some());
    }
}
