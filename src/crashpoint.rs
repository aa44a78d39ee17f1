//! Named points at which a test ends the process as a power cut would, and faults that a test plants.
//!
//! Both exist in builds with debug assertions only. A release build has neither: there [`reach`] is empty and
//! [`sync_is_skipped`] is false, whatever the environment says.
//!
//! - `SOS_CRASH_AT=<name>` or `<name>:<n>`: the process ends by SIGKILL when it passes the point for the n-th time.
//! - `SOS_GIVE_UP_AFTER=<milliseconds>`: how long a store that does not let go of its files is waited for.
//! - `SOS_PLANT_FAULT=skip-sync`: the stores acknowledge without syncing. The tests of durability must find this.

use std::time::Duration;

#[cfg(debug_assertions)]
mod debug {
    use std::{
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering},
        },
        time::Duration,
    };

    /// The point at which to end, and how often it has yet to be passed.
    struct Target {
        name: String,
        left: AtomicU64,
    }

    static TARGET: LazyLock<Option<Target>> = LazyLock::new(|| {
        let text = std::env::var("SOS_CRASH_AT").ok()?;
        let (name, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some(Target { name: name.to_owned(), left: AtomicU64::new(times.parse().unwrap_or(1)) })
    });

    static SKIP: LazyLock<bool> = LazyLock::new(|| std::env::var("SOS_PLANT_FAULT").is_ok_and(|fault| fault == "skip-sync"));

    static PATIENCE: LazyLock<Option<Duration>> =
        LazyLock::new(|| std::env::var("SOS_GIVE_UP_AFTER").ok()?.parse().ok().map(Duration::from_millis));

    pub fn reach(name: &str) {
        let Some(target) = TARGET.as_ref() else { return };
        if target.name == name && target.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // Nothing more may happen in this thread until the signal has arrived.
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
    }

    pub fn patience() -> Option<Duration> {
        *PATIENCE
    }

    pub fn sync_is_skipped() -> bool {
        *SKIP
    }
}

/// Passes a named point.
#[inline]
pub fn reach(_name: &'static str) {
    #[cfg(debug_assertions)]
    debug::reach(_name);
}

/// How long something is waited for that should take no time at all, unless a test says otherwise.
#[inline]
pub fn patience(usual: Duration) -> Duration {
    #[cfg(debug_assertions)]
    return debug::patience().unwrap_or(usual);
    #[cfg(not(debug_assertions))]
    usual
}

/// Whether a test has the stores acknowledge what they did not sync.
#[inline]
pub fn sync_is_skipped() -> bool {
    #[cfg(debug_assertions)]
    return debug::sync_is_skipped();
    #[cfg(not(debug_assertions))]
    false
}
