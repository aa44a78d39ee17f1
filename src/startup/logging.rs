//! Log lines on standard error or into a file; the level can change while the server runs.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tracing_subscriber::{EnvFilter, Layer, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::config::{LogFormat, LogLevel};

type Handle = reload::Handle<EnvFilter, tracing_subscriber::Registry>;

/// What SIGHUP changes of the log.
pub struct Log {
    filter: Handle,
    file: Option<LogFile>,
}

impl Log {
    /// Starts logging. A second start in one process (tests) keeps the first.
    pub fn start(level: LogLevel, format: LogFormat, file: Option<&Path>) -> io::Result<Self> {
        let (filter, handle) = reload::Layer::new(filter(level));
        let file = file.map(LogFile::open).transpose()?;
        let target = file.clone();
        let writer = move || -> Box<dyn Write> {
            match &target {
                Some(file) => Box::new(file.clone()),
                None => Box::new(io::stderr()),
            }
        };
        let layer = match format {
            LogFormat::Json => fmt::layer().json().with_writer(writer).boxed(),
            LogFormat::Standard => fmt::layer().with_ansi(false).with_target(false).with_writer(writer).boxed(),
        };
        if tracing_subscriber::registry().with(filter).with(layer).try_init().is_err() {
            tracing::debug!("logging was started before");
        }
        Ok(Self { filter: handle, file })
    }

    /// Changes the level and opens the log file again, after it was moved away.
    pub fn reload(&self, level: LogLevel) {
        if let Err(error) = self.filter.reload(filter(level)) {
            tracing::warn!(%error, "the log level stays as it is");
        }
        if let Some(file) = &self.file
            && let Err(error) = file.reopen()
        {
            tracing::error!(path = %file.path.display(), %error, "the log file could not be opened again; the old one stays in use");
        }
    }
}

/// Our own events at `level`; libraries only from warnings on, unless everything is wanted.
fn filter(level: LogLevel) -> EnvFilter {
    let level = level.as_str();
    let libraries = if level == "trace" {
        "debug"
    } else if level == "error" {
        "error"
    } else {
        "warn"
    };
    // actix reports every client that sends no proper HTTP as an error; anybody could fill the log with that.
    let http = if level == "trace" { "debug" } else { "off" };
    EnvFilter::new(format!("{libraries},actix_http={http},sos={level}"))
}

#[derive(Clone)]
struct LogFile {
    path: PathBuf,
    file: Arc<Mutex<File>>,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: Arc::new(Mutex::new(append(path)?)) })
    }

    fn reopen(&self) -> io::Result<()> {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = append(&self.path)?;
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}
