//! How far long work is: a bar on a terminal, now and then a line where nobody watches.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// Time between two lines.
const PAUSE: Duration = Duration::from_secs(10);

/// The progress of one piece of work, on the error output.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    doing: &'static str,
    total: Option<u64>,
    said: Cell<Instant>,
    done: Cell<u64>,
}

impl Progress {
    /// Work that is counted in bytes.
    pub(super) fn bytes(doing: &'static str, total: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
            let template = match total {
                Some(_) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                None => "{msg} {spinner} {bytes} {bytes_per_sec}",
            };
            ProgressStyle::with_template(template)
                .map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
                .with_message(doing)
        });
        Self { bar, doing, total, said: Cell::new(Instant::now()), done: Cell::new(0) }
    }

    /// So many bytes are done.
    pub(super) fn set(&self, done: u64) {
        self.done.set(done);
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None if self.said.get().elapsed() >= PAUSE => {
                self.said.set(Instant::now());
                let of = self.total.map(|total| format!(" of {}", HumanBytes(total))).unwrap_or_default();
                // Nobody is left to tell when this fails.
                let _ = writeln!(std::io::stderr(), "{}: {}{of}", self.doing, HumanBytes(done));
            }
            None => {}
        }
    }

    /// The work is done.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
