//! Which backups of a folder are kept. Nothing is judged by its name alone: a file is removed only when its head can be read,
//! is of this very cluster, and says the name that the file has. Everything else in the folder is somebody else's.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use time::OffsetDateTime;

use super::{BackupError, Header, files};

/// A backup whose head was read.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its file.
    pub file: PathBuf,
    /// Its head.
    pub header: Header,
}

impl Found {
    /// Commits first: they go on whatever a clock says.
    fn age(&self) -> (u64, OffsetDateTime) {
        (self.header.sequence, self.header.created().unwrap_or(OffsetDateTime::UNIX_EPOCH))
    }
}

/// A file of the folder that is left alone, and why.
pub type Strange = (PathBuf, String);

/// The backups that the cluster wrote into `folder`, oldest first, and what else lies there under a backup's ending.
pub fn of_cluster(folder: &Path, cluster_id: &str) -> Result<(Vec<Found>, Vec<Strange>), BackupError> {
    let (mut found, mut strange) = (Vec::new(), Vec::new());
    for file in files::list(folder)? {
        // Opening a pipe would wait for whoever writes into it.
        if !file.metadata().is_ok_and(|meta| meta.is_file()) {
            strange.push((file, "it is not a file".to_owned()));
            continue;
        }
        match files::head(&file) {
            Ok(header) if header.cluster_id != cluster_id => {
                strange.push((file, format!("it is of another cluster, {:?} ({})", header.cluster_name, header.cluster_id)));
            }
            Ok(header) if file.file_name().is_none_or(|name| name != files::name_of(&header).as_str()) => {
                strange.push((file, "it does not have the name that this server gives".to_owned()));
            }
            Ok(header) => found.push(Found { file, header }),
            Err(error) => strange.push((file, error.to_string())),
        }
    }
    found.sort_by_key(Found::age);
    Ok((found, strange))
}

/// Removes the oldest backups of the cluster so that `keep` are left, `written` always among them. Those with later commits than
/// it come from a line of the store that a restore gave up: they take no place, and stay until the commits have passed
/// them. Answers what was left alone.
pub fn retire(folder: &Path, written: &Found, keep: usize) -> Result<Vec<Strange>, BackupError> {
    let (mut found, mut strange) = of_cluster(folder, &written.header.cluster_id)?;
    found.retain(|backup| backup.file != written.file);
    let (earlier, later): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|backup| backup.header.sequence <= written.header.sequence);
    let given_up = |backup: Found| (backup.file, "it has commits that this store gave up in a restore".to_owned());
    strange.extend(later.into_iter().map(given_up));
    let beside = keep.saturating_sub(1);
    for old in earlier.iter().take(earlier.len().saturating_sub(beside)) {
        match fs::remove_file(&old.file) {
            Ok(()) => tracing::info!(file = %old.file.display(), "an old backup was removed"),
            // The new one is there all the same.
            Err(error) => tracing::error!(file = %old.file.display(), %error, "an old backup cannot be removed"),
        }
    }
    Ok(strange)
}

/// Files that were named in the log; each is named once.
#[derive(Default)]
pub struct Named(Mutex<HashSet<PathBuf>>);

impl Named {
    /// Says once of each file that it is left alone; answers how many were new.
    pub fn name(&self, strange: Vec<Strange>) -> usize {
        let mut named = self.0.lock();
        named.retain(|file| strange.iter().any(|(path, _)| path == file));
        let mut new = 0;
        for (file, why) in strange {
            if named.insert(file.clone()) {
                new += 1;
                tracing::warn!(file = %file.display(), why, "a file in the folder of backups is left alone: it is neither counted nor removed");
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backup::{BackupKey, Source, Writer, tests::header},
        barrier::{Barrier, Txn},
        secret::SecretBytes,
        storage::{self, InMem},
        wire::time::{parse_rfc3339, rfc3339},
    };
    use std::{os::unix::fs::PermissionsExt, sync::Arc};

    async fn barrier() -> Barrier {
        let barrier = Barrier::new(Arc::new(InMem::open().unwrap()));
        let root = SecretBytes::new(vec![7; 32]);
        barrier.initialize(&root, storage::Txn::new(), Txn::new(), OffsetDateTime::UNIX_EPOCH).await.unwrap();
        barrier
    }

    fn head(sequence: u64, cluster: &str, created: &str) -> Header {
        Header { created: rfc3339(parse_rfc3339(created).unwrap()), ..header(sequence, cluster) }
    }

    /// A backup of these facts, under the name that the server gives it.
    async fn put(folder: &Path, header: Header) -> Found {
        let key = BackupKey::open(&barrier().await).await.unwrap();
        let (bytes, ..) = Writer::new(Vec::new(), &header).unwrap().finish(&key).unwrap();
        let file = folder.join(files::name_of(&header));
        fs::write(&file, bytes).unwrap();
        Found { file, header }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn what_is_strange_stays_and_takes_no_place() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path();
        for (name, content) in [
            ("sos-nightly.sosbackup", "hello\n"),
            ("sos-name-20300101T000000Z-9.sosbackup", "cut short"),
            ("sos-name-20310101T000000Z-10.sosbackup", ""),
            ("notes.txt", "mine"),
        ] {
            fs::write(folder.join(name), content).unwrap();
        }
        put(folder, head(99, "other", "2026-01-01T00:00:00Z")).await;
        let renamed = put(folder, head(1, "c", "2020-01-01T00:00:00Z")).await;
        fs::rename(renamed.file, folder.join("sos-before-upgrade.sosbackup")).unwrap();
        fs::create_dir(folder.join("sos-folder.sosbackup")).unwrap();
        let strange = names(folder);
        let mut ours = Vec::new();
        let named = Named::default();
        for sequence in 11..16 {
            let written = put(folder, head(sequence, "c", "2026-01-01T00:00:00Z")).await;
            ours.push(written.file.file_name().unwrap().to_str().unwrap().to_owned());
            let left = retire(folder, &written, 3).unwrap();
            assert_eq!(named.name(left), if sequence == 11 { 6 } else { 0 }, "each is named once");
        }
        let mut expected = [strange.as_slice(), &ours[2..]].concat();
        expected.sort();
        assert_eq!(names(folder), expected);
    }

    #[tokio::test]
    async fn commits_decide_and_not_a_clock_that_ran_ahead() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path();
        put(folder, head(1, "c", "2031-01-01T00:00:00Z")).await;
        put(folder, head(2, "c", "1970-01-01T00:00:10Z")).await;
        put(folder, head(3, "c", "1970-01-01T00:00:20Z")).await;
        let written = put(folder, head(4, "c", "1970-01-01T00:00:01Z")).await;
        assert!(retire(folder, &written, 2).unwrap().is_empty());
        let (left, strange) = of_cluster(folder, "c").unwrap();
        assert_eq!(left.iter().map(|found| found.header.sequence).collect::<Vec<_>>(), [3, 4]);
        assert!(strange.is_empty());
    }

    #[tokio::test]
    async fn the_one_just_written_stays_and_so_does_a_line_that_was_given_up() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path();
        for sequence in [100, 101] {
            put(folder, head(sequence, "c", "2026-01-01T00:00:00Z")).await;
        }
        for sequence in [50, 51, 52] {
            let written = put(folder, head(sequence, "c", "2026-01-02T00:00:00Z")).await;
            assert_eq!(retire(folder, &written, 1).unwrap().len(), 2);
            assert!(written.file.exists());
        }
        let left = || of_cluster(folder, "c").unwrap().0.iter().map(|found| found.header.sequence).collect::<Vec<_>>();
        assert_eq!(left(), [52, 100, 101]);
        let written = put(folder, head(200, "c", "2026-01-03T00:00:00Z")).await;
        retire(folder, &written, 2).unwrap();
        assert_eq!(left(), [101, 200]);
    }

    #[tokio::test]
    async fn an_old_one_that_cannot_be_removed_does_not_undo_the_new_one() {
        if rustix::process::geteuid().is_root() {
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let folder = place.path();
        put(folder, head(1, "c", "2026-01-01T00:00:00Z")).await;
        let written = put(folder, head(2, "c", "2026-01-01T00:00:00Z")).await;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o500)).unwrap();
        let done = retire(folder, &written, 1);
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(done.unwrap().is_empty());
    }

    #[tokio::test]
    async fn written_backups_are_kept_by_number() {
        let place = tempfile::tempdir().unwrap();
        let barrier = barrier().await;
        for sequence in 1..5 {
            let key = BackupKey::open(&barrier).await.unwrap();
            let snapshot = barrier.raw().snapshot().await.unwrap();
            let head = head(snapshot.version().max(sequence), "c", &format!("2026-01-0{sequence}T00:00:00Z"));
            let (written, strange) = files::write(Source::of(head, key, snapshot), place.path(), 2).unwrap();
            assert!(written.0.exists() && strange.is_empty());
        }
        assert_eq!(names(place.path()).len(), 2);
    }
}
