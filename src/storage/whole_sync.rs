//! Makes sled sync its whole file where it would only hand a range of it to the disk.
//!
//! sled takes a write of its log for stable once `sync_file_range` has answered, and then uses the room of what that write
//! replaced again. But that call neither empties the disk's cache nor makes the file's length durable (sync_file_range(2),
//! "Warning"): after a power cut the old place can be overwritten and the new one empty, and a record that was acknowledged
//! long before is gone. A sync before each acknowledgement cannot mend that, as sled reuses room between two of them.
//!
//! Where the kernel does not know the call (ENOSYS), sled calls fsync instead. A seccomp filter gives it that answer.

use std::{collections::BTreeMap, env::consts::ARCH, sync::OnceLock};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter_all_threads};

/// From now on `sync_file_range` fails with ENOSYS in all threads of this process, and in the processes that it starts. The
/// filter also sets `no_new_privs` (seccomp(2)). Says once in the log when the kernel does not allow filters: then what sled
/// holds is safe against crashes, and against power cuts only on a disk that keeps its cache.
pub(super) fn refuse_sync_file_range() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        if let Err(why) = install() {
            tracing::warn!(
                %why,
                "the kernel takes no seccomp filter, so sled cannot be made to sync its whole file: a power cut may cost \
                 acknowledged writes on a disk whose cache is lost with the power. Allow seccomp(2), or use storage \"redb\""
            );
        }
    });
}

fn install() -> Result<(), String> {
    let arch = TargetArch::try_from(ARCH).map_err(|error| error.to_string())?;
    let refused = BTreeMap::from([(libc::SYS_sync_file_range, Vec::new())]);
    let enosys = u32::try_from(libc::ENOSYS).map_err(|error| error.to_string())?;
    let filter = SeccompFilter::new(refused, SeccompAction::Allow, SeccompAction::Errno(enosys), arch)
        .map_err(|error| error.to_string())?;
    let program = BpfProgram::try_from(filter).map_err(|error| error.to_string())?;
    apply_filter_all_threads(&program).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    #[test]
    fn a_filter_is_in_force_once_a_sled_store_was_opened() {
        let folder = tempfile::tempdir().expect("a folder");
        drop(super::super::Sled::open(folder.path(), super::super::Options::default()).expect("a store"));
        for task in fs::read_dir("/proc/self/task").expect("this process's threads") {
            let Ok(status) = fs::read_to_string(task.expect("a thread").path().join("status")) else { continue };
            let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:")).expect("a kernel with seccomp");
            assert_eq!(mode.trim(), "2", "{status}");
        }
    }
}
