//! The threads: each owns one session and takes one call after the other.
//!
//! Thread 0 takes the slow calls (what makes, finds, wraps or destroys objects), so that a key generation does not
//! hold up decryptions; the others take the fast ones. Where sessions run side by side, or there is only one, thread 0
//! helps out with fast calls too.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    fast: Condvar,
    slow: Condvar,
    limit: usize,
    slow_helps: bool,
    running: Vec<Running>,
    started: Instant,
}

#[derive(Default)]
struct Queues {
    fast: VecDeque<Job>,
    slow: VecDeque<Job>,
    fast_idle: usize,
}

/// What a thread is executing.
#[derive(Default)]
struct Running {
    /// Call id, 0 for none.
    call: AtomicU64,
    /// Since when, in milliseconds after the pool's start.
    since: AtomicU64,
}

struct Job {
    call: u64,
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
        let shared = Arc::new(Shared {
            slow_helps: device.quirks.parallel || sessions.len() == 1,
            device,
            output,
            seal_mechanism,
            queues: Mutex::default(),
            fast: Condvar::new(),
            slow: Condvar::new(),
            limit: hello.queue.max(1),
            running: sessions.iter().map(|_| Running::default()).collect(),
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
        let job = Job { call: header.call, expires, frame };
        let shared = &self.shared;
        let mut queues = shared.queues.lock();
        if queues.fast.len() + queues.slow.len() >= shared.limit {
            return false;
        }
        if header.lane == Lane::Slow {
            queues.slow.push_back(job);
            drop(queues);
            shared.slow.notify_one();
        } else {
            queues.fast.push_back(job);
            let all_busy = queues.fast_idle == 0;
            drop(queues);
            if all_busy && shared.slow_helps {
                shared.slow.notify_one();
            } else {
                shared.fast.notify_one();
            }
        }
        true
    }

    /// For how long a thread has been executing this call; `None` when none is.
    pub fn running_millis(&self, call: u64) -> Option<u64> {
        let running = self.shared.running.iter().find(|running| running.call.load(Ordering::Acquire) == call)?;
        Some(self.shared.millis().saturating_sub(running.since.load(Ordering::Acquire)))
    }

    /// Into how many calls a batch is best split: one where sessions only get in each other's way.
    pub fn ways(&self) -> usize {
        if self.shared.device.quirks.parallel { self.shared.running.len() } else { 1 }
    }
}

impl Shared {
    fn work(&self, index: usize, mut owned: Owned) {
        loop {
            let job = self.take(index);
            // Nobody waits for a call whose time is up.
            if job.expires <= Instant::now() {
                continue;
            }
            if let Some(running) = self.running.get(index) {
                running.since.store(self.millis(), Ordering::Release);
                running.call.store(job.call, Ordering::Release);
            }
            let answer = self.execute(&mut owned, &job);
            if let Some(running) = self.running.get(index) {
                running.call.store(0, Ordering::Release);
            }
            match answer {
                Ok(frame) => self.output.send(frame),
                Err(failure) => self.output.message(job.call, &Reply::Failed(failure)),
            }
        }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn take(&self, index: usize) -> Job {
        let mut queues = self.queues.lock();
        loop {
            if index == 0 {
                if let Some(job) = queues.slow.pop_front() {
                    return job;
                }
                if self.slow_helps
                    && let Some(job) = queues.fast.pop_front()
                {
                    return job;
                }
                self.slow.wait(&mut queues);
            } else {
                if let Some(job) = queues.fast.pop_front() {
                    return job;
                }
                queues.fast_idle += 1;
                self.fast.wait(&mut queues);
                queues.fast_idle -= 1;
            }
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
                    if let Err(Fatal { reason, detail }) = self.device.recover(generation) {
                        self.output.message(0, &Event::Down { reason, detail });
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
            sessions: self.running.len(),
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

/// Whether the failed function works on data that a caller may have spoilt.
fn blames_input(error: &CkError) -> bool {
    matches!(error.function, "C_Decrypt" | "C_UnwrapKey")
}
