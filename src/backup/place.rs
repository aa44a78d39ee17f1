//! The folder of an embedded store while its content is exchanged.
//!
//! ```text
//! restore.new/       the store that is being built from a backup
//! restore.plan       JSON; from the moment it is there, the new store is the one that counts
//! before-restore/    what stood there before; kept until the next restore
//! ```
//! Several files have to change places, which no system call does at once. So the plan is written first, and every step
//! can be repeated: whoever finds a plan goes on with it, whoever finds a new store without one removes it.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::BackupError;
use crate::crashpoint::reach;
use crate::storage::{Folder, sync_folder};

const NEW: &str = "restore.new";
const PLAN: &str = "restore.plan";
const OLD: &str = "before-restore";

/// What was found of an interrupted restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Nothing.
    Nothing,
    /// A restore that had not got as far as the exchange was removed.
    Undone,
    /// An exchange that had begun was finished.
    Finished,
}

#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    format: u32,
    /// What leaves.
    old: Vec<String>,
    /// What takes its place.
    new: Vec<String>,
}

impl Plan {
    /// A plan as it was written. One that was damaged must not move anything: it may name the wrong files.
    fn parse(json: &[u8]) -> io::Result<Self> {
        let plan: Self = serde_json::from_slice(json).map_err(io::Error::other)?;
        match plan.format == 1 && plan.old.iter().chain(&plan.new).all(|name| is_of_store(name)) {
            true => Ok(plan),
            false => Err(io::Error::other(format!("{PLAN} names other files than a store has"))),
        }
    }
}

/// For the fuzz target: what is taken as a plan moves nothing but files of a store, and not to elsewhere.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz_plan(json: &[u8]) {
    if let Ok(plan) = Plan::parse(json) {
        for name in plan.old.iter().chain(&plan.new) {
            assert!(!name.is_empty() && !name.contains('/') && name != "." && name != "..", "{name:?} would be moved");
        }
    }
}

/// Finishes or undoes a restore that was interrupted, before the store in `folder` is opened.
pub fn settle_folder(folder: &Path) -> Result<Settled, BackupError> {
    if !folder.join(PLAN).exists() && !folder.join(NEW).exists() {
        return Ok(Settled::Nothing);
    }
    let _lock = Folder::open(folder)?;
    settle_locked(folder).map_err(BackupError::io(format!("settling the interrupted restore in {}", folder.display())))
}

fn settle_locked(folder: &Path) -> io::Result<Settled> {
    match fs::read(folder.join(PLAN)) {
        Ok(json) => {
            let plan = Plan::parse(&json)?;
            carry_out(folder, &plan, &mut |_| Ok(()))?;
            Ok(Settled::Finished)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => match fs::remove_dir_all(folder.join(NEW)) {
            Ok(()) => Ok(Settled::Undone),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Settled::Nothing),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// Where the new store is built.
pub(super) fn new_folder(folder: &Path) -> PathBuf {
    folder.join(NEW)
}

/// An empty folder for the new store, inside the store's own (which may be all that the process may write to).
pub(super) fn make_new(folder: &Path) -> Result<PathBuf, BackupError> {
    let new = folder.join(NEW);
    let made = match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => DirBuilder::new().recursive(true).mode(0o700).create(&new),
    };
    made.map_err(BackupError::io(format!("making the folder {}", new.display())))?;
    Ok(new)
}

/// Removes a new store that is not wanted after all.
pub(super) fn drop_new(folder: &Path) {
    let new = folder.join(NEW);
    if let Err(error) = fs::remove_dir_all(&new)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(folder = %new.display(), %error, "what is left of an unfinished restore could not be removed; the next start removes it");
    }
}

/// Puts the new store, which is complete and closed, into the place of the old one. The caller holds the folder's lock.
pub(super) fn exchange(folder: &Path) -> Result<PathBuf, BackupError> {
    let mut step = |step: &str| {
        reach(match step {
            "begin" => "restore-begin",
            "plan" => "restore-plan",
            "folder" => "restore-planned",
            "left" => "restore-left",
            "sync" => "restore-moved",
            "clean" => "restore-synced",
            "end" => "restore-cleaned",
            _ => "restore-moving",
        });
        Ok(())
    };
    exchange_by_steps(folder, &mut step)
        .map_err(BackupError::io(format!("putting the restored store into {}", folder.display())))?;
    Ok(folder.join(OLD))
}

/// `step` is told before each step; tests stop there as a kill would.
fn exchange_by_steps(folder: &Path, step: &mut dyn FnMut(&str) -> io::Result<()>) -> io::Result<()> {
    step("begin")?;
    match fs::remove_dir_all(folder.join(OLD)) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => sync_folder(folder)?,
    }
    step("plan")?;
    let plan = Plan { format: 1, old: store_files(folder)?, new: store_files(&folder.join(NEW))? };
    write_durably(&folder.join(PLAN), &serde_json::to_vec(&plan).map_err(io::Error::other)?)?;
    carry_out(folder, &plan, step)
}

fn carry_out(folder: &Path, plan: &Plan, step: &mut dyn FnMut(&str) -> io::Result<()>) -> io::Result<()> {
    let (new, old) = (folder.join(NEW), folder.join(OLD));
    step("folder")?;
    DirBuilder::new().recursive(true).mode(0o700).create(&old)?;
    for name in &plan.old {
        step(name)?;
        // What has left already may have been replaced already.
        if !old.join(name).exists() {
            rename_if_there(&folder.join(name), &old.join(name))?;
        }
    }
    step("left")?;
    // Were the second renames to become durable before the first, a restart would take the new files for the old ones.
    sync_folder(&old)?;
    sync_folder(folder)?;
    for name in &plan.new {
        step(name)?;
        rename_if_there(&new.join(name), &folder.join(name))?;
    }
    step("sync")?;
    sync_folder(&old)?;
    sync_folder(folder)?;
    step("clean")?;
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    step("end")?;
    fs::remove_file(folder.join(PLAN))?;
    sync_folder(folder)
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether a file of any embedded engine is called so.
fn is_of_store(name: &str) -> bool {
    let known = matches!(name, "db" | "conf" | "blobs" | "sos.redb" | "journal" | "acknowledged" | "current")
        || name.starts_with("snap.")
        || name.starts_with("generation-");
    known && !name.contains('/')
}

/// The files of any embedded engine, and none of the operator's.
fn store_files(folder: &Path) -> io::Result<Vec<String>> {
    let names: Vec<OsString> =
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<_>>()?;
    let mut names: Vec<String> =
        names.into_iter().filter_map(|name| name.into_string().ok()).filter(|name| is_of_store(name)).collect();
    names.sort();
    Ok(names)
}

/// Whether an embedded store lies in the folder.
pub(super) fn holds_store(folder: &Path) -> bool {
    store_files(folder).is_ok_and(|names| names.iter().any(|name| name == "db" || name == "sos.redb" || name == "current"))
}

/// Writes a file under a temporary name, syncs it, and gives it its name.
pub(super) fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file: File = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(folder) => sync_folder(folder),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{self, Kind, Options, StorageConfig};

    fn content(folder: &Path) -> Vec<(String, String)> {
        let read = |name: String| (name.clone(), fs::read_to_string(folder.join(&name)).unwrap());
        store_files(folder).unwrap().into_iter().map(read).collect()
    }

    /// A sled store, compacted once, with a backup folder of the operator's in it, and a new redb store.
    fn folder() -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("backups")).unwrap();
        for name in ["db", "conf", "snap.0001", "acknowledged", "current", "generation-3", "journal"] {
            fs::write(place.path().join(name), "old").unwrap();
        }
        fs::create_dir(place.path().join(NEW)).unwrap();
        for name in ["db", "sos.redb", "acknowledged", "journal", "lock"] {
            fs::write(place.path().join(NEW).join(name), "new").unwrap();
        }
        place
    }

    #[test]
    fn old_files_have_left_durably_before_new_ones_come() {
        let mut steps = Vec::new();
        exchange_by_steps(folder().path(), &mut |step: &str| {
            steps.push(step.to_owned());
            Ok(())
        })
        .unwrap();
        let at = |name: &str| steps.iter().position(|step| step == name).unwrap();
        let (left, new) = (at("left"), at("sos.redb"));
        assert!(steps[..left].iter().any(|step| step == "conf") && left < new, "{steps:?}");
    }

    #[test]
    fn an_exchange_killed_at_any_step_is_finished_or_undone() {
        let mut steps = 0;
        exchange_by_steps(folder().path(), &mut |_| {
            steps += 1;
            Ok(())
        })
        .unwrap();
        assert!(steps > 10, "{steps}");
        let (mut finished, mut undone) = (0, 0);
        for killed in 0..steps {
            let place = folder();
            let mut left = killed;
            let mut step = |_: &str| {
                if left == 0 {
                    return Err(io::Error::other("killed"));
                }
                left -= 1;
                Ok(())
            };
            exchange_by_steps(place.path(), &mut step).unwrap_err();
            let (names, word) = match settle_folder(place.path()).unwrap() {
                Settled::Finished => (["acknowledged", "db", "journal", "sos.redb"].as_slice(), "new"),
                Settled::Undone => {
                    (["acknowledged", "conf", "current", "db", "generation-3", "journal", "snap.0001"].as_slice(), "old")
                }
                Settled::Nothing => panic!("something was to settle after step {killed}"),
            };
            if word == "new" {
                finished += 1
            } else {
                undone += 1
            }
            let expected: Vec<_> = names.iter().map(|name| ((*name).to_owned(), word.to_owned())).collect();
            assert_eq!(content(place.path()), expected, "after step {killed}");
            assert!(!place.path().join(NEW).exists() && !place.path().join(PLAN).exists());
            assert!(place.path().join("backups").exists());
            assert_eq!(settle_folder(place.path()).unwrap(), Settled::Nothing);
            if word == "new" {
                assert_eq!(content(&place.path().join(OLD)).len(), 7);
            }
        }
        assert!(finished > 5 && undone > 1, "{finished} finished, {undone} undone");
    }

    /// What stayed behind would be taken for a part of the new store.
    #[tokio::test]
    async fn everything_that_a_store_makes_is_exchanged() {
        for kind in [Kind::Sled, Kind::Redb] {
            let place = tempfile::tempdir().unwrap();
            let config = StorageConfig { kind, path: Some(place.path().into()), options: Options::default() };
            for round in 0..2 {
                let store = storage::open(&config).unwrap();
                store.commit(storage::Txn::new().put(format!("k/{round}"), vec![7; 300_000])).await.unwrap();
            }
            let ours = store_files(place.path()).unwrap();
            let names = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let left: Vec<_> = names.filter(|name| !ours.contains(name) && name != "lock" && name != "reserve").collect();
            assert!(left.is_empty(), "{kind:?} also makes {left:?}");
        }
    }

    #[test]
    fn an_empty_folder_takes_the_new_store() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join(NEW)).unwrap();
        fs::write(place.path().join(NEW).join("db"), "new").unwrap();
        assert!(!holds_store(place.path()));
        exchange(place.path()).unwrap();
        assert_eq!(content(place.path()), [("db".to_owned(), "new".to_owned())]);
        assert!(holds_store(place.path()));
    }
}
