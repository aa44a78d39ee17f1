//! A file that records are appended to, and the rules of where it may be.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::fd::AsRawFd,
    os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Component, Path, PathBuf},
};

use rustix::fs::OFlags;
use thiserror::Error;

use super::options::{FileOptions, Sink};

/// Why a path may not be written to.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// Not a plain absolute path.
    #[error("file_path must be an absolute path without \"..\", or \"stdout\"")]
    Shape,
    /// Outside of what the configuration allows.
    #[error("file_path {0:?} is not allowed: audit files must lie under audit_paths of the server's configuration")]
    Outside(PathBuf),
    /// Something with that name is not a file to append to.
    #[error("{path:?} cannot be an audit file: {reason}")]
    Unfit {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The operating system refuses.
    #[error("{path:?} cannot be opened: {source}")]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A sink with its file, opened when it is first needed and again after [`Target::close`].
#[derive(Debug)]
pub struct Target {
    options: FileOptions,
    allowed: Vec<String>,
    file: Option<File>,
    /// A record was cut off half-way: the next one starts on a line of its own.
    torn: bool,
}

impl Target {
    /// Where a device with `options` writes.
    pub fn new(options: FileOptions, allowed: Vec<String>) -> Self {
        Self { options, allowed, file: None, torn: false }
    }

    /// Forgets the open file, so that the next record goes to whatever has its name then (log rotation). Whether that ends in
    /// half a line is looked at when it is opened.
    pub fn close(&mut self) {
        self.file = None;
        self.torn = false;
    }

    /// Forgets the open file after a failed write, but not that the last line may be cut off.
    pub fn close_after_failure(&mut self) {
        self.file = None;
    }

    /// Appends records; they have reached the operating system when this returns. After an error so many bytes of them have
    /// as the second part says.
    pub fn append(&mut self, lines: &[u8]) -> (io::Result<()>, usize) {
        let mut rest = lines;
        let result = self.write(&mut rest);
        (result, lines.len() - rest.len())
    }

    /// Writes `rest` and takes away from its front what was written.
    fn write(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        if self.options.sink == Sink::Stdout {
            permitted(Path::new("stdout"), &self.allowed).map_err(io::Error::other)?;
            let mut stdout = io::stdout().lock();
            stdout.write_all(rest).and_then(|()| stdout.flush())?;
            *rest = &[];
            return Ok(());
        }
        self.open()?;
        let Some(file) = &mut self.file else { return Err(io::Error::other("the audit file is not open")) };
        if self.torn {
            file.write_all(b"\n")?;
            self.torn = false;
        }
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    let (done, left) = rest.split_at_checked(written).unwrap_or((rest, &[]));
                    self.torn = done.last() != Some(&b'\n');
                    *rest = left;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        if let (None, Sink::File(path)) = (&self.file, &self.options.sink) {
            let file = open(path, self.options.mode, &self.allowed).map_err(io::Error::other)?;
            self.adopt(file);
        }
        Ok(())
    }

    /// Goes on in an open file.
    fn adopt(&mut self, file: File) {
        self.torn |= ends_torn(&file);
        self.file = Some(file);
    }
}

/// For the fuzz target: whatever a file holds, what was there stays, and the next record stands on a line of its own.
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::expect_used)] // a file in memory
pub(super) fn fuzz_end(before: &[u8]) {
    use std::io::Read;
    let file = File::from(rustix::fs::memfd_create("audit", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory"));
    let mut read = file.try_clone().expect("a descriptor");
    (&file).write_all(before).expect("memory");
    let options = FileOptions {
        sink: Sink::File(PathBuf::from("/audit")),
        mode: None,
        log_raw: false,
        hmac_accessor: true,
        elide_list_responses: false,
    };
    let mut target = Target::new(options, Vec::new());
    target.adopt(file);
    target.append(b"{\"a\":1}\n").0.expect("memory");
    let mut after = Vec::new();
    std::io::Seek::rewind(&mut read).and_then(|()| read.read_to_end(&mut after)).expect("memory");
    assert_eq!(after.get(..before.len()), Some(before), "what was there changed");
    let torn = before.last().is_some_and(|last| *last != b'\n');
    assert_eq!(after.get(before.len()..), Some(if torn { &b"\n{\"a\":1}\n"[..] } else { &b"{\"a\":1}\n"[..] }));
}

/// Whether the last line was cut off, by a process that was killed, a power cut or a full disk. Who may append to a file may not
/// be allowed to read it; then a line break is written all the same, because an empty line costs no record.
fn ends_torn(file: &File) -> bool {
    let Ok(found) = file.metadata() else { return true };
    if !found.is_file() || found.len() == 0 {
        return false;
    }
    let mut last = [0];
    // The same file, whatever its name leads to by now; it was opened for appending alone.
    let read =
        File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).and_then(|file| file.read_exact_at(&mut last, found.len() - 1));
    read.is_err() || last != *b"\n"
}

/// Checks a path and opens it. Nothing but appending is asked for, and the last name is never followed as a link.
fn open(path: &Path, mode: Option<u32>, allowed: &[String]) -> Result<File, PlaceError> {
    let path = place(path, allowed)?;
    let failed = |source| PlaceError::Open { path: path.clone(), source };
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(mode.unwrap_or(0o600))
        // A FIFO without a reader is an error at once instead of a wait without end.
        .custom_flags(i32::try_from(flags.bits()).unwrap_or_default())
        .open(&path)
        .map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    let unfit = |reason| Err(PlaceError::Unfit { path: path.clone(), reason });
    let kind = found.file_type();
    if !(kind.is_file() || kind.is_fifo() || kind.is_char_device()) {
        return unfit("it is not a file");
    }
    if kind.is_file() {
        if found.nlink() > 1 {
            return unfit("it has other names (hard links)");
        }
        if found.permissions().mode() & 0o111 != 0 {
            return unfit("it is executable");
        }
        if let Some(mode) = mode
            && found.permissions().mode() & 0o7777 != mode
        {
            file.set_permissions(std::fs::Permissions::from_mode(mode)).map_err(failed)?;
        }
    }
    // The writer has a thread of its own, so a slow reader of a FIFO may block it.
    let flags = rustix::fs::fcntl_getfl(&file).map_err(|error| failed(error.into()))?;
    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
    Ok(file)
}

/// The real path of a file that may be written to; missing folders inside the allowed ones are made.
fn place(path: &Path, allowed: &[String]) -> Result<PathBuf, PlaceError> {
    let plain = path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !plain || path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(PlaceError::Shape);
    }
    if allowed.iter().any(|entry| Path::new(entry) == path) && !path.is_dir() {
        return Ok(path.to_owned());
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Err(PlaceError::Shape) };
    let existing = folder.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let failed = |source| PlaceError::Open { path: path.to_owned(), source };
    let real = existing.canonicalize().map_err(failed)?;
    permitted(&real, allowed).map_err(|_| PlaceError::Outside(path.to_owned()))?;
    let rest = folder.strip_prefix(existing).unwrap_or(Path::new(""));
    let real = real.join(rest);
    if !rest.as_os_str().is_empty() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&real).map_err(failed)?;
    }
    Ok(real.join(name))
}

/// Whether a real path is one of the allowed ones or inside one of them.
fn permitted(real: &Path, allowed: &[String]) -> Result<(), PlaceError> {
    let inside = allowed.iter().any(|entry| {
        let entry = Path::new(entry);
        real == entry || entry.canonicalize().is_ok_and(|entry| entry.is_dir() && real.starts_with(entry))
    });
    if inside { Ok(()) } else { Err(PlaceError::Outside(real.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(path: &Path, allowed: &Path) -> Result<File, PlaceError> {
        open(path, Some(0o600), &[allowed.to_str().unwrap().to_owned()])
    }

    #[test]
    fn files_are_private_and_folders_are_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/audit.log");
        opened(&path, folder.path()).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(path.parent().unwrap().metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    }

    fn target(path: &Path, folder: &Path) -> Target {
        let options = FileOptions {
            sink: Sink::File(path.to_owned()),
            mode: Some(0o600),
            log_raw: false,
            hmac_accessor: true,
            elide_list_responses: false,
        };
        Target::new(options, vec![folder.to_str().unwrap().to_owned()])
    }

    #[test]
    fn a_line_that_an_earlier_process_left_half_written_takes_no_record_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        for (before, after) in [
            ("", "{\"a\":1}\n"),
            ("{\"b\":2}\n", "{\"b\":2}\n{\"a\":1}\n"),
            ("{\"b\":2}\n{\"c\":", "{\"b\":2}\n{\"c\":\n{\"a\":1}\n"),
        ] {
            std::fs::write(&path, before).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            let mut target = target(&path, folder.path());
            target.append(b"{\"a\":1}\n").0.unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), after);
            // Also after the file was exchanged under the open one, and after a failure.
            std::fs::write(&path, before).unwrap();
            target.close();
            target.append(b"{\"a\":1}\n").0.unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), after);
            target.close_after_failure();
            target.append(b"{\"d\":4}\n").0.unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{after}{{\"d\":4}}\n"));
        }
    }

    #[test]
    fn nothing_outside_and_nothing_through_links() {
        let outside = tempfile::tempdir().unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("way-out")).unwrap();
        std::fs::write(outside.path().join("target"), "").unwrap();
        std::os::unix::fs::symlink(outside.path().join("target"), folder.path().join("link")).unwrap();
        for path in [
            outside.path().join("x"),
            folder.path().join("way-out/x"),
            folder.path().join("way-out/new/x"),
            folder.path().join("link"),
            folder.path().join("../x"),
            folder.path().to_owned(),
            "relative".into(),
        ] {
            assert!(opened(&path, folder.path()).is_err(), "{path:?}");
        }
        assert!(!outside.path().join("new").exists());
    }

    #[test]
    fn executables_and_hard_links_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("run.sh");
        std::fs::write(&script, "").unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(opened(&script, folder.path()), Err(PlaceError::Unfit { .. })));
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        std::fs::hard_link(&file, folder.path().join("second")).unwrap();
        assert!(matches!(opened(&file, folder.path()), Err(PlaceError::Unfit { .. })));
    }

    #[test]
    fn a_fifo_without_a_reader_fails_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        assert!(matches!(opened(&path, folder.path()), Err(PlaceError::Open { .. })));
    }
}
