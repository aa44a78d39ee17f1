//! Backups as files in a folder: complete under their final name or not there, private, verified, and not too many.
//!
//! `sos-<cluster name>-<UTC time>-<commit>.sosbackup`; while one is written it ends in `.part`.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufWriter, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    BackupError, Contents, Header, Reader, Source,
    retention::{self, Found, Strange},
};
use crate::storage::sync_folder;

/// How names of backups end.
pub const ENDING: &str = "sosbackup";
const BEGINNING: &str = "sos-";
const UNFINISHED: &str = "part";

/// A file that gets its name only when it is complete; dropped before, it is removed.
pub struct Unfinished {
    path: PathBuf,
    temporary: PathBuf,
    named: bool,
}

impl Unfinished {
    /// Makes the file (0600) beside its final place, and locks it as long as it is written.
    pub fn create(path: &Path) -> Result<(BufWriter<File>, Self), BackupError> {
        let temporary = unfinished(path);
        let making = || format!("making {}", temporary.display());
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&temporary);
        let file = file.map_err(BackupError::io(making()))?;
        if is_locked(&file) {
            return Err(BackupError::Busy(format!("{} is being written by another process", temporary.display())));
        }
        // Not every file has a length to cut: a pipe, a device.
        if file.metadata().is_ok_and(|meta| meta.len() > 0) {
            file.set_len(0).map_err(BackupError::io(making()))?;
        }
        Ok((BufWriter::with_capacity(1 << 18, file), Self { path: path.to_owned(), temporary, named: false }))
    }

    /// Syncs the file and, when it reads back whole, gives it its name.
    pub fn finish(mut self, out: BufWriter<File>) -> Result<Contents, BackupError> {
        let doing = || format!("writing {}", self.temporary.display());
        let file = out.into_inner().map_err(|error| BackupError::io(doing())(error.into_error()))?;
        file.sync_all().map_err(BackupError::io(doing()))?;
        // What is verified must come from the disk and not from memory; where the advice is not taken, it is as good as can be.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        drop(file);
        let contents = verify(&self.temporary)?;
        fs::rename(&self.temporary, &self.path).map_err(BackupError::io(format!("naming {}", self.path.display())))?;
        self.named = true;
        if let Some(folder) = self.path.parent() {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            sync_folder(folder).map_err(BackupError::io(format!("syncing {}", folder.display())))?;
        }
        Ok(contents)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.named
            && let Err(error) = fs::remove_file(&self.temporary)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(file = %self.temporary.display(), %error, "an unfinished backup could not be removed");
        }
    }
}

/// Reads a whole backup.
pub fn verify(path: &Path) -> Result<Contents, BackupError> {
    Reader::new(open(path)?).read(|_| Ok(()), |_| Ok(()))
}

/// Opens a backup for reading.
pub fn open(path: &Path) -> Result<File, BackupError> {
    File::open(path).map_err(BackupError::io(format!("opening {}", path.display())))
}

/// The head of a backup alone.
pub fn head(path: &Path) -> Result<Header, BackupError> {
    let mut found = None;
    let stopped = Reader::new(open(path)?).read(
        |header| {
            found = Some(header.clone());
            Err(BackupError::Busy(String::new()))
        },
        |_| Ok(()),
    );
    match (found, stopped) {
        (Some(header), _) => Ok(header),
        (None, Err(error)) => Err(error),
        (None, Ok(contents)) => Ok(contents.header),
    }
}

/// Where a backup is written before it gets its name.
pub fn unfinished(path: &Path) -> PathBuf {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".");
    temporary.push(UNFINISHED);
    PathBuf::from(temporary)
}

/// Locks a file; whether somebody else has done so. File systems without locks answer no.
fn is_locked(file: &File) -> bool {
    matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock))
}

/// Makes the folder of scheduled backups (0700) when it is missing, and removes what an earlier process left unfinished; what
/// another one is writing now is locked and stays.
pub fn prepare(folder: &Path) -> Result<(), BackupError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(BackupError::io(format!("making the folder {}", folder.display())))?;
    let unfinished = format!(".{ENDING}.{UNFINISHED}");
    let all = ending_in(folder, &unfinished).map_err(BackupError::io(format!("reading {}", folder.display())))?;
    for path in all {
        let named = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(BEGINNING));
        if !named || OpenOptions::new().write(true).open(&path).is_ok_and(|file| is_locked(&file)) {
            continue;
        }
        tracing::warn!(file = %path.display(), "an unfinished backup of an earlier run is removed");
        fs::remove_file(&path).map_err(BackupError::io(format!("removing {}", path.display())))?;
    }
    Ok(())
}

/// Writes a backup into the folder, verifies it, and removes the oldest of the same cluster so that `keep` are left; also what
/// else lies there and was left alone.
pub fn write(source: Source, folder: &Path, keep: usize) -> Result<((PathBuf, Contents), Vec<Strange>), BackupError> {
    let path = folder.join(name_of(source.header()));
    let (out, unfinished) = Unfinished::create(&path)?;
    let (out, ..) = source.write(out, |_| {}).map_err(|error| with_folder(error, folder))?;
    let contents = unfinished.finish(out).map_err(|error| with_folder(error, folder))?;
    let written = Found { file: path, header: contents.header.clone() };
    let strange = retention::retire(folder, &written, keep).unwrap_or_else(|error| {
        tracing::error!(%error, "old backups cannot be looked through; none was removed");
        Vec::new()
    });
    Ok(((written.file, contents), strange))
}

fn with_folder(error: BackupError, folder: &Path) -> BackupError {
    match error {
        BackupError::Io { doing, source } if source.kind() == ErrorKind::StorageFull => BackupError::Io {
            doing: format!(
                "{doing} in {} (the disk is full; no backup was made and the earlier ones are kept)",
                folder.display()
            ),
            source,
        },
        other => other,
    }
}

/// Finished backups by the times in their names, whoever's they are.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let mut found = ending_in(folder, &format!(".{ENDING}")).map_err(BackupError::io(format!("reading {}", folder.display())))?;
    found.sort_by_key(|path| time_in(path));
    Ok(found)
}

fn ending_in(folder: &Path, ending: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.ends_with(ending)) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Time and commit in a name, which sort as the backups do; the cluster's name before them does not.
fn time_in(path: &Path) -> (String, u64) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut parts = name.split('.').next().unwrap_or_default().rsplitn(3, '-');
    let commit = parts.next().and_then(|commit| commit.parse().ok()).unwrap_or(0);
    (parts.next().unwrap_or_default().to_owned(), commit)
}

/// The name of a backup's file.
pub fn name_of(header: &Header) -> String {
    let plain = |text: &str| -> String {
        text.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '_' }).take(40).collect()
    };
    let time: String = header.created.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    format!("{BEGINNING}{}-{time}-{}.{ENDING}", plain(&header.cluster_name), header.sequence)
}

/// Copies a stream into a new file; it gets its name when it was read back whole.
pub fn save(mut input: impl io::Read, path: &Path, mut progress: impl FnMut(u64)) -> Result<Contents, BackupError> {
    let (mut out, unfinished) = Unfinished::create(path)?;
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0;
    loop {
        let count = input.read(&mut buffer).map_err(BackupError::io("receiving the backup"))?;
        let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else { break };
        out.write_all(piece).map_err(BackupError::io(format!("writing {}", path.display())))?;
        total += u64::try_from(count).unwrap_or(0);
        progress(total);
    }
    unfinished.finish(out)
}
