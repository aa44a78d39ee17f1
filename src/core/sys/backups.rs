//! `sys/sos/backups`: backups in the server's own folder, and whether a backup is authentic.

use serde::Serialize;

use super::{System, snapshot::source};
use crate::{
    backup::{BackupError, BackupKey, Made, Seal, files},
    core::{
        engine::Call,
        failure::Failure,
        reply::Reply,
        route::{Access, Route},
    },
    op,
    wire::{field::NoParams, time::rfc3339},
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[
    Route {
        patterns: &["sos/backups/?"],
        access: Access::Sudo,
        help: "Shows the backups in the configured folder, or makes one there now.",
        exists: None,
        operations: &[op!(Read, "Show the backups", show, NoParams), op!(Write, "Make a backup", make, NoParams)],
    },
    Route {
        patterns: &["sos/backups/verify"],
        access: Access::Sudo,
        help: "Tells whether a backup is authentic, by the digest and code at its end.",
        exists: None,
        operations: &[op!(Write, "Check the end of a backup", verify, VerifyParams).computing()],
    },
];

crate::params! {
    /// The end of a backup.
    struct VerifyParams {
        /// Kind of the code.
        algorithm: String,
        /// SHA-256 of the list of checksums, in hexadecimal.
        digest: String,
        /// The code over the digest, in hexadecimal.
        code: String,
    }
}

#[derive(Serialize)]
struct Backup {
    file: String,
    created: String,
    sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<u64>,
}

impl Backup {
    fn of(made: &Made) -> Self {
        let file = made.file.display().to_string();
        Self { file, created: rfc3339(made.created), sequence: made.sequence, records: made.records }
    }
}

#[derive(Serialize)]
struct Backups {
    folder: String,
    interval: u64,
    keep: usize,
    backups: Vec<String>,
    last: Option<Backup>,
    last_failure: Option<String>,
    warning: Option<String>,
}

async fn show(system: &System, call: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    let Some(schedule) = core.backups.schedule().cloned() else {
        return Err(Failure::invalid("no backups are configured: write backup { folder = \"...\" }"));
    };
    let state = core.backups.state();
    let folder = schedule.folder.clone();
    let listed = tokio::task::spawn_blocking(move || files::list(&folder)).await.map_err(Failure::internal)??;
    Reply::data(&Backups {
        folder: schedule.folder.display().to_string(),
        interval: schedule.interval.as_secs(),
        keep: schedule.keep,
        backups: listed.iter().map(|file| file.display().to_string()).collect(),
        last: state.last.as_ref().map(Backup::of),
        last_failure: state.failure,
        warning: core.backups.warning(call.now),
    })
}

async fn make(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    let made = core.backups.write(source(&core)).await?;
    Reply::data(&Backup::of(&made))
}

async fn verify(system: &System, _: &Call<'_>, params: VerifyParams) -> Result<Reply, Failure> {
    #[derive(Serialize)]
    struct Verdict {
        authentic: bool,
    }
    let core = system.core()?;
    let seal = Seal { algorithm: params.algorithm, digest: params.digest, code: params.code };
    let authentic = match BackupKey::read(&core.barrier)? {
        None => false,
        Some(key) => match seal.check(&key) {
            Ok(()) => true,
            Err(BackupError::NotAuthentic) => false,
            Err(error) => return Err(error.into()),
        },
    };
    Reply::data(&Verdict { authentic })
}
