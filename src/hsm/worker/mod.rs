//! `sos hsm-worker`: the process that loads the vendor's library, so that its crashes and hangs are not the server's.
//!
//! It is started with a socket as standard input, over which it gets its configuration, then the PIN, then calls. When the
//! socket closes, by the server's will or its death, it finishes the calls under way, takes no more, calls C_Finalize and
//! ends: a module may be rewriting its token in a call (see [`parent`]). Nothing secret ever stands in its arguments or environment. After a loss of the device
//! it logs in again once; when that does not help it says why and ends, and the server starts a new one: a fresh
//! process is the only re-initialisation that works with every module.

mod device;
mod ops;
mod output;
mod parent;
mod pool;
pub mod selftest;
mod template;
mod token;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, Signal};

use self::device::Device;
use self::output::Output;
use self::parent::Parent;
use self::pool::Pool;
use super::DownReason;
use super::ck_error::CkError;
use super::overwriting::Overwriting;
use super::proto::{self, Event, Failure, Frame, Hello, Lane, Op, Pin, Reply};
use super::raw::{self, LoadError, Module};
use crate::secret::SecretString;

/// Why this process cannot go on.
#[derive(Debug)]
pub struct Fatal {
    reason: DownReason,
    detail: String,
}

impl Fatal {
    fn new(reason: DownReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// Why an operation did not end well.
#[derive(Debug)]
pub enum Trouble {
    /// A PKCS#11 call failed; its kind decides.
    Ck(CkError),
    /// The token holds no such key, if the token is there at all.
    Missing(super::KeyId),
    /// The probe failed: the device or the login is gone.
    Lost,
    /// Decided.
    Failed(Failure),
}

impl From<CkError> for Trouble {
    fn from(error: CkError) -> Self {
        Trouble::Ck(error)
    }
}

/// The whole life of the worker process. To be called before anything has started a thread.
pub fn main() -> ExitCode {
    harden();
    raw::ignore_stop_signals();
    let Ok(stream) = io::stdin().as_fd().try_clone_to_owned().map(|fd: OwnedFd| UnixStream::from(fd)) else {
        return ExitCode::FAILURE;
    };
    let Ok(writer) = stream.try_clone() else { return ExitCode::FAILURE };
    let output = Arc::new(Output::new(writer));
    let Ok(watched) = stream.try_clone() else { return ExitCode::FAILURE };
    let mut reader = Overwriting::with_capacity(1 << 18, stream);
    match serve(&mut reader, watched, &output) {
        // A module's destructors may crash or hang with threads inside; there is nothing left to tidy up.
        Ok(()) => end(),
        Err(Fatal { reason, detail }) => {
            output.message(0, &Event::Down { reason, detail });
            end()
        }
    }
}

/// Ends this process without running the module's destructors. No call may be in flight, unless it hangs.
fn end() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    std::process::abort()
}

/// No core dumps: this process holds the PIN and plaintexts.
fn harden() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = rustix::process::setrlimit(Resource::Core, none);
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

fn serve(reader: &mut Overwriting<UnixStream>, watched: UnixStream, output: &Arc<Output>) -> Result<(), Fatal> {
    let Some(first) = next(reader)? else { return Ok(()) };
    let hello: Hello = first_message(&first)?;
    let module = load(&hello)?;
    // Not earlier: a library is loaded while there is one thread.
    let parent = Parent::watch(watched, || end());
    let parent = parent.map_err(|error| Fatal::new(DownReason::DeviceError, format!("no thread: {error}")))?;
    initialize(&module, &hello)?;
    let (slot, info) = token::choose(&module, &hello)?;
    output.message(0, &Event::Token { serial: info.serial.clone() });
    let Some(second) = next(reader)? else {
        let _ = module.finalize();
        return Ok(());
    };
    let pin = SecretString::new(first_message::<Pin<'_>>(&second)?.pin.to_string());
    drop(second);
    let device = Arc::new(Device::open(module, slot, info, &hello, pin)?);
    if parent.is_gone() {
        device.close();
        return Ok(());
    }
    let facts = selftest::run(&device, hello.seal_mechanism)?;
    let pool = Pool::start(Arc::clone(&device), &hello, facts.seal_mechanism, output.clone())?;
    output.message(0, &Event::Ready { facts, ways: pool.ways() });
    let ended = dispatch(reader, &pool, output);
    device.close();
    ended
}

fn load(hello: &Hello) -> Result<Module, Fatal> {
    Module::load(hello.lib.as_ref()).map_err(|error| match error {
        LoadError::Module(error) => Fatal::new(DownReason::DeviceError, error.to_string()),
        other => Fatal::new(DownReason::ModuleMissing, format!("{} cannot be loaded: {other}", hello.lib)),
    })
}

fn initialize(module: &Module, hello: &Hello) -> Result<(), Fatal> {
    module.initialize(hello.reserved.as_deref()).map_err(|error| {
        let hint = "is the module's own configuration there, and the token's storage readable for this user?";
        Fatal::new(DownReason::DeviceError, format!("{error}: {hint}"))
    })
}

/// Hands every call to the pool until the server closes the socket.
fn dispatch(reader: &mut Overwriting<UnixStream>, pool: &Pool, output: &Output) -> Result<(), Fatal> {
    while let Some(frame) = next(reader)? {
        let Some((header, body)) = proto::split_request(&frame) else { return Err(broken()) };
        if header.lane == Lane::Control {
            match proto::decode::<Op<'_>>(body) {
                Ok(Op::Running { call }) => output.message(header.call, &Reply::Running { millis: pool.running_millis(call) }),
                _ => output.message(header.call, &Reply::Failed(Failure::Unsupported("not a control call".into()))),
            }
            continue;
        }
        if !pool.push(header, frame) {
            output.message(header.call, &Reply::Failed(Failure::Overloaded));
        }
    }
    Ok(())
}

fn next(reader: &mut Overwriting<UnixStream>) -> Result<Option<Frame>, Fatal> {
    // An error on the socket means the same as its end: the server is gone.
    Ok(proto::read_frame(reader).unwrap_or(None))
}

fn first_message<'a, T: serde::Deserialize<'a>>(frame: &'a [u8]) -> Result<T, Fatal> {
    let (_, body) = proto::split_message(frame).ok_or_else(broken)?;
    proto::decode(body).map_err(|_| broken())
}

fn broken() -> Fatal {
    Fatal::new(DownReason::DeviceError, "the server's message does not decode")
}
