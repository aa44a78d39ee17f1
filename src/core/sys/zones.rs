//! `sys/sos/zones`: the zones that Transit mounts belong to, and their master keys.

use time::Duration;

use super::System;
use crate::{
    core::{
        Core,
        engine::Call,
        failure::{Failure, Kind},
        reply::Reply,
        route::{Access, Route},
    },
    op,
    wire::field::{NoParams, Seconds},
    zones::{ZoneError, wire::ZoneResponse},
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[
    Route {
        patterns: &["sos/zones/?"],
        access: Access::Sudo,
        help: "Lists the zones.",
        exists: None,
        operations: &[op!(List, "List zones", list, NoParams), op!(Read, "List zones", list, NoParams)],
    },
    Route {
        patterns: &["sos/zones/{name}"],
        access: Access::Sudo,
        help: "Makes, changes or reads a zone. Zones cannot be deleted: their keys are needed for old backups.",
        exists: None,
        operations: &[
            op!(Read, "Read a zone", read, NameParams),
            op!(Write, "Make a zone or set its rotation period", write, WriteParams),
            op!(Delete, "Not supported", delete, NameParams),
        ],
    },
    Route {
        patterns: &["sos/zones/{name}/rotate"],
        access: Access::Sudo,
        help: "Gives the zone a new master key and moves everything under it in the background.",
        exists: None,
        operations: &[op!(Write, "Rotate the zone master key", rotate, NameParams)],
    },
];

crate::params! {
    /// A zone.
    struct NameParams {
        /// Name of the zone.
        name: String,
    }
}

crate::params! {
    /// A zone to make or to change.
    struct WriteParams {
        /// Name of the zone.
        name: String,
        /// Age after which the master key is rotated; 0 for never.
        rotation_period: Option<Seconds>,
    }
}

/// The shortest period of rotation. Each rotation leaves an object on the HSM for ever.
const SHORTEST_PERIOD: Duration = Duration::HOUR;

/// A zone that is asked for by its own path and not there is a 404.
fn at_path(error: ZoneError) -> Failure {
    match error {
        ZoneError::Unknown(_) => Failure::plain(Kind::NotFound, error.to_string()),
        other => other.into(),
    }
}

async fn list(system: &System, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    let zones = system.core()?.services.zones.clone();
    let names = tokio::task::spawn_blocking(move || zones.list());
    Reply::keys(names.await.map_err(Failure::internal)??)
}

async fn read(system: &System, _: &Call<'_>, params: NameParams) -> Result<Reply, Failure> {
    Reply::data(&ZoneResponse::from(system.core()?.services.zones.read(&params.name).map_err(at_path)?))
}

async fn write(system: &System, call: &Call<'_>, params: WriteParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    let zones = &core.services.zones;
    let period = params.rotation_period.map(|seconds| Duration::seconds(seconds.0));
    if period.is_some_and(|period| period != Duration::ZERO && period < SHORTEST_PERIOD) {
        return Err(Failure::invalid("rotation_period must be 0 for never, or an hour or more: old master keys stay on the HSM"));
    }
    if zones.exists(&params.name)? {
        if let Some(period) = period {
            zones.set_rotation_period(&params.name, period).await?;
        }
    } else {
        zones.create(&params.name, period.unwrap_or(Duration::ZERO), call.now).await?;
    }
    Reply::data(&ZoneResponse::from(zones.read(&params.name)?))
}

async fn delete(_: &System, _: &Call<'_>, params: NameParams) -> Result<Reply, Failure> {
    let text = "zones cannot be deleted: their master keys are needed for everything ever wrapped under them, also in backups";
    Err(Failure::invalid(format!("zone {:?}: {text}", params.name)))
}

async fn rotate(system: &System, call: &Call<'_>, params: NameParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    core.services.zones.rotate(&params.name, call.now).await.map_err(at_path)?;
    core.rewrap_zone(&params.name);
    Reply::data(&ZoneResponse::from(core.services.zones.read(&params.name)?))
}

impl Core {
    /// Starts to move what is wrapped under old master keys of a zone to the current one, and says in the log on which mounts.
    /// Whatever keeps it from being done now is tried again at every tick, also after a restart.
    fn rewrap_zone(&self, zone: &str) {
        self.services.transit.follow_rotations(&self.services.zones);
        let Ok(active) = self.active() else { return };
        for mounted in active.router.all() {
            let option = mounted.entry.options.get("zone").map_or("default", String::as_str);
            if mounted.entry.kind == "transit" && option == zone {
                tracing::info!(%zone, mount = %mounted.entry.full_path(), "the keys of this mount are to be wrapped under the new master key");
            }
        }
    }
}
