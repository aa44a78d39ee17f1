//! Keeps a worker running: starts it, hands it the PIN, watches it, kills it when it hangs (and only then), and starts the
//! next one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::Shared;
use super::link::Pending;
use super::process::Process;
use crate::hsm::overwriting::Overwriting;
use crate::hsm::pin::fingerprint;
use crate::hsm::proto::{self, Event, Frame, Header, Hello, Lane, Op, Pin, Reply};
use crate::hsm::{DownReason, HsmError, Status};
use crate::secret::SecretString;

/// Pause before the second try; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// A worker that served this long starts the count of failures anew.
const SETTLED: Duration = Duration::from_secs(10);
/// How long the worker's reading thread may take to say whether a call is being executed.
const CONTROL_PATIENCE: Duration = Duration::from_secs(1);
/// How many overdue calls are asked about at once.
const SUSPECTS: usize = 64;

/// How a worker ended.
struct End {
    reason: DownReason,
    detail: String,
    /// When it became ready, if it did.
    ready: Option<Instant>,
    /// Whether the worker itself says that the HSM is not usable; otherwise it crashed or hung, and the next one may do.
    told: bool,
    /// Whether it hangs, so that it can only be killed.
    hung: bool,
}

impl End {
    fn new(reason: DownReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), ready: None, told: true, hung: false }
    }

    fn crashed(detail: impl Into<String>) -> Self {
        Self { told: false, ..Self::new(DownReason::DeviceError, detail) }
    }

    fn hung(detail: impl Into<String>) -> Self {
        Self { hung: true, ..Self::crashed(detail) }
    }
}

/// Runs worker after worker, for ever; the caller drops this future to end it.
pub async fn supervise(shared: Arc<Shared>) {
    let mut failures = 0_u32;
    // Not the PIN itself, which is in this process only until the worker has it.
    let mut refused: Option<[u8; 32]> = None;
    let mark = |pin: &SecretString| fingerprint(shared.memory.as_ref(), pin, "");
    loop {
        let end = match shared.config.pin.read() {
            Err(error) => End::new(DownReason::PinMissing, error.to_string()),
            Ok(pin) if refused == Some(mark(&pin)) => {
                // Still the PIN that was refused: the token is left alone.
                pause(&shared, failures).await;
                failures = failures.saturating_add(1);
                continue;
            }
            Ok(pin) => {
                let tried = mark(&pin);
                let end = run(&shared, pin).await;
                refused = (end.reason == DownReason::PinRefused).then_some(tried);
                end
            }
        };
        if end.ready.is_some_and(|ready| ready.elapsed() > SETTLED) {
            failures = 0;
        }
        let at_once = !end.told && end.ready.is_some() && failures == 0;
        let error = HsmError::Unavailable { reason: end.reason, detail: end.detail.clone() };
        tracing::warn!(reason = end.reason.word(), detail = %end.detail, "the HSM is not usable");
        failures = failures.saturating_add(1);
        if at_once {
            shared.status.send_replace(Status::Starting);
            shared.link.lock().disconnect(true, &error);
        } else {
            shared.status.send_replace(Status::Down { reason: end.reason, detail: end.detail });
            shared.link.lock().disconnect(false, &error);
            pause(&shared, failures - 1).await;
        }
    }
}

async fn pause(shared: &Shared, failures: u32) {
    let pause = FIRST_PAUSE.saturating_mul(1 << failures.min(16)).min(shared.config.max_backoff);
    tokio::time::sleep(pause).await;
}

/// The life of one worker.
async fn run(shared: &Shared, pin: SecretString) -> End {
    let started = Process::start(&shared.config, &shared.living).and_then(|(process, stream)| {
        stream.set_nonblocking(true)?;
        Ok((process, UnixStream::from_std(stream)?))
    });
    let (mut process, stream) = match started {
        Ok(started) => started,
        Err(error) => return End::new(DownReason::DeviceError, format!("the worker process cannot be started: {error}")),
    };
    tracing::debug!(pid = process.id(), "HSM worker started");
    let (reader, mut writer) = stream.into_split();
    let mut reader = Overwriting::with_capacity(1 << 18, reader);
    let handshake = timeout(shared.config.start_deadline, handshake(shared, &pin, &mut reader, &mut writer));
    let (facts, ways) = match handshake.await {
        Ok(Ok(facts)) => facts,
        Ok(Err(end)) => return end,
        Err(_) => {
            process.kill();
            return End::new(DownReason::DeviceError, "the module did not get ready in time");
        }
    };
    drop(pin);
    tracing::info!(token = %facts.label, serial = %facts.serial, module = %facts.module, "the HSM is ready");
    let (out, outgoing) = mpsc::unbounded_channel();
    shared.batches.split(ways);
    shared.link.lock().connect(out);
    shared.status.send_replace(Status::Ready(Arc::new(facts)));
    let ready = Instant::now();
    let end = tokio::select! {
        end = read_replies(shared, &mut reader) => end,
        end = write_calls(outgoing, &mut writer) => end,
        end = watch_time(shared) => end,
    };
    if end.hung {
        process.kill();
    }
    End { ready: Some(ready), ..end }
}

/// Configuration, token, PIN, self-test.
async fn handshake(
    shared: &Shared,
    pin: &SecretString,
    reader: &mut Overwriting<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
) -> Result<(crate::hsm::TokenFacts, usize), End> {
    write_message(writer, &hello(shared)).await?;
    let serial = match read_event(reader).await? {
        Event::Token { serial } => serial,
        Event::Down { reason, detail } => return Err(End::new(reason, detail)),
        Event::Ready { .. } => return Err(End::crashed("the worker is ready without a PIN")),
    };
    let mark = fingerprint(shared.memory.as_ref(), pin, &serial);
    if shared.memory.is_refused(&mark) {
        let detail = "the token refused this PIN before; it is not tried again until it changes";
        return Err(End::new(DownReason::PinRefused, detail));
    }
    write_message(writer, &Pin { pin: pin.expose() }).await?;
    match read_event(reader).await? {
        Event::Ready { facts, ways } => Ok((facts, ways)),
        Event::Down { reason, detail } => {
            if reason == DownReason::PinRefused {
                shared.memory.remember(&mark);
            }
            Err(End::new(reason, detail))
        }
        Event::Token { .. } => Err(End::crashed("the worker asks for the PIN twice")),
    }
}

fn hello(shared: &Shared) -> Hello {
    let config = &shared.config;
    Hello {
        lib: config.lib.to_string_lossy().into_owned(),
        slot: config.slot,
        token_label: config.token_label.clone(),
        token_serial: config.token_serial.clone(),
        max_sessions: config.max_sessions,
        seal_mechanism: config.seal_mechanism,
        reserved: config.reserved.clone(),
        key_cache: config.key_cache,
        queue: config.queue,
    }
}

async fn write_message<T: serde::Serialize>(writer: &mut OwnedWriteHalf, message: &T) -> Result<(), End> {
    let frame = proto::message(0, message).map_err(|error| End::crashed(error.to_string()))?;
    // A worker that is gone already may have said why: the reader tells.
    let _ = writer.write_all(&frame).await;
    Ok(())
}

async fn read_event(reader: &mut Overwriting<OwnedReadHalf>) -> Result<Event, End> {
    let frame = read_frame(reader).await?;
    event(&frame)
}

fn event(frame: &Frame) -> Result<Event, End> {
    let (_, body) = proto::split_message(frame).ok_or_else(|| End::crashed("a frame without header"))?;
    proto::decode(body).map_err(|error| End::crashed(error.to_string()))
}

async fn read_frame(reader: &mut Overwriting<OwnedReadHalf>) -> Result<Frame, End> {
    let lost = |_| End::crashed("the worker process ended");
    let len = reader.read_u32_le().await.map_err(lost)? as usize;
    if len > proto::MAX_FRAME {
        return Err(End::crashed("the worker sends nonsense"));
    }
    let mut frame = Frame::new(vec![0; len]);
    reader.read_exact(&mut frame).await.map_err(lost)?;
    Ok(frame)
}

async fn read_replies(shared: &Shared, reader: &mut Overwriting<OwnedReadHalf>) -> End {
    loop {
        let frame = match read_frame(reader).await {
            Ok(frame) => frame,
            Err(end) => return end,
        };
        match proto::split_message(&frame).map(|(call, _)| call) {
            None => return End::crashed("a frame without header"),
            Some(0) => match event(&frame) {
                Ok(Event::Down { reason, detail }) => return End::new(reason, detail),
                Ok(_) => {}
                Err(end) => return end,
            },
            Some(call) => shared.link.lock().complete(call, Ok(frame)),
        }
    }
}

/// Writes what waits in one go: many small calls share a system call.
async fn write_calls(mut outgoing: mpsc::UnboundedReceiver<Arc<Frame>>, writer: &mut OwnedWriteHalf) -> End {
    while let Some(frame) = outgoing.recv().await {
        let Ok(next) = outgoing.try_recv() else {
            if writer.write_all(&frame).await.is_err() {
                return gone().await;
            }
            continue;
        };
        let mut gathered = Frame::new(Vec::with_capacity(GATHER));
        gathered.extend_from_slice(&frame);
        gathered.extend_from_slice(&next);
        while gathered.len() < GATHER / 2 {
            let Ok(next) = outgoing.try_recv() else { break };
            gathered.extend_from_slice(&next);
        }
        if writer.write_all(&gathered).await.is_err() {
            return gone().await;
        }
    }
    End::crashed("the client ends")
}

/// How much is gathered into one write.
const GATHER: usize = 1 << 16;

/// The worker does not take calls any more. It may have said why, so the reader is given the last word.
async fn gone() -> End {
    tokio::time::sleep(CONTROL_PATIENCE).await;
    End::crashed("the worker process ended")
}

/// Ends overdue calls, finds out whether one of them is stuck in the module, and asks a quiet worker for a sign of life.
async fn watch_time(shared: &Shared) -> End {
    let tick = (shared.config.deadline / 10).clamp(Duration::from_millis(10), Duration::from_millis(250));
    let mut last_health = Instant::now();
    let mut suspects = Vec::new();
    loop {
        tokio::time::sleep(tick).await;
        suspects.extend(shared.link.lock().expire(Instant::now()));
        if is_stuck(shared, &mut suspects).await {
            return End::hung("the module did not answer in time; the worker was killed");
        }
        if last_health.elapsed() >= shared.config.health_interval {
            last_health = Instant::now();
            // Its answer does not matter: a lost device makes the worker say so, a hang makes this call overdue.
            let _ = send(shared, &Op::Probe, shared.config.deadline);
        }
    }
}

/// Whether one of the overdue calls sticks in the module. Most of them have just waited too long in the queue, and one
/// that was begun late gets its time: it stays among the suspects, the others are struck off.
async fn is_stuck(shared: &Shared, suspects: &mut Vec<u64>) -> bool {
    let asked: Vec<_> = suspects
        .drain(..)
        .take(SUSPECTS)
        // The answer must come in time whatever the deadline of calls is.
        .filter_map(|call| Some((call, send(shared, &Op::Running { call }, CONTROL_PATIENCE * 2)?)))
        .collect();
    let limit = u64::try_from((shared.config.deadline * 3 / 4).as_millis()).unwrap_or(u64::MAX);
    let all = async {
        for (call, answer) in asked {
            let Ok(Ok(frame)) = answer.await else { return true };
            let reply = proto::split_message(&frame).and_then(|(_, body)| proto::decode::<Reply<'_>>(body).ok());
            match reply {
                Some(Reply::Running { millis: Some(millis) }) if millis >= limit => return true,
                Some(Reply::Running { millis: Some(_) }) => suspects.push(call),
                _ => {}
            }
        }
        false
    };
    timeout(CONTROL_PATIENCE, all).await.unwrap_or(true)
}

fn send(shared: &Shared, op: &Op<'_>, patience: Duration) -> Option<oneshot::Receiver<super::link::Answer>> {
    let id = shared.next_call();
    let lane = if matches!(op, Op::Probe) { Lane::Slow } else { op.lane() };
    let header = Header { call: id, lane, millis: u32::try_from(patience.as_millis()).unwrap_or(u32::MAX) };
    let frame = Arc::new(proto::request(header, op).ok()?);
    let (answer, receiver) = oneshot::channel();
    let pending = Pending { answer, expires: Instant::now() + patience, repeat: None };
    shared.link.lock().send(id, frame, pending).ok()?;
    Some(receiver)
}
