//! Backups by schedule.

use std::{sync::Arc, time::Duration};

use super::StartError;
use crate::{
    backup::Schedule,
    config::Config,
    core::{Core, sys::snapshot},
};

/// How often it is looked whether one is due, and the pause after one that failed.
const LOOK: Duration = Duration::from_secs(1);
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// Tells the core when and where backups are to be made.
pub fn plan(core: &Core, config: &Config) -> Result<(), StartError> {
    let Some(backup) = &config.backup else { return Ok(()) };
    let schedule =
        Schedule { folder: backup.folder.clone(), interval: backup.interval, keep: backup.keep, warn_after: backup.warn_after };
    // A store that cannot be read says so elsewhere.
    let cluster = core.seal.seal_record().ok().flatten().map(|record| record.cluster_id);
    core.backups.plan(schedule, cluster.as_deref()).map_err(|error| {
        StartError::Settings(format!("the backup stanza cannot be obeyed: {error}; make its folder writable, or name another"))
    })
}

/// Makes backups when they are due, as long as the server is unsealed. Ends never; to be spawned at start.
pub async fn run(core: Arc<Core>) {
    let Some(interval) = core.backups.schedule().map(|schedule| schedule.interval) else { return };
    loop {
        tokio::time::sleep(LOOK).await;
        if core.active().is_ok()
            && core.backups.is_due(core.clock.now())
            && core.backups.write(snapshot::source(&core)).await.is_err()
        {
            tokio::time::sleep(AFTER_FAILURE.min(interval)).await;
        }
    }
}
