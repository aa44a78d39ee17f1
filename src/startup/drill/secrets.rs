//! Secrets of the KV mounts: read from the rebuilt server and compared with the running one, in memory only.

use serde_json::Value;
use time::OffsetDateTime;

use super::live::{Live, Rebuilt, Unasked};
use super::sample::{Drawn, Sample};
use super::{DrillError, Progress, Report, Step};
use crate::wire::time::parse_rfc3339;

/// What a KV mount keeps.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Version 1.
    Plain,
    /// Version 2; versions may be deleted from some time on.
    Versioned {
        /// The time.
        now: OffsetDateTime,
    },
}

pub(super) async fn open(
    rebuilt: &Rebuilt,
    live: Option<&dyn Live>,
    mount: &str,
    kind: Kind,
    sample: Sample,
    report: &mut Report,
    progress: Progress<'_>,
) -> Result<(), DrillError> {
    let base = match kind {
        Kind::Versioned { .. } => format!("{mount}metadata/"),
        Kind::Plain => mount.to_owned(),
    };
    let mut drawn = Drawn::new(sample);
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for name in rebuilt.list(&format!("{base}{folder}")).await.map_err(DrillError::Server)? {
            let path = format!("{folder}{name}");
            if path.ends_with('/') {
                folders.push(path);
            } else {
                drawn.offer(path);
            }
        }
    }
    for name in drawn.names() {
        match kind {
            Kind::Versioned { now } => open_versions(rebuilt, live, mount, &name, now, report).await,
            Kind::Plain => {
                let path = format!("{mount}{name}");
                let live = live.map(|live| Ok(live.read(&escaped(&path))?.and_then(|answer| answer.get("data").cloned())));
                // A secret without versions may have been written since: other data is no failure.
                judge(rebuilt.read(&path, &[]).await, live, false, &path, report);
            }
        }
        progress(Step::Opened(report.secrets.opened));
    }
    Ok(())
}

async fn open_versions(
    rebuilt: &Rebuilt,
    live: Option<&dyn Live>,
    mount: &str,
    name: &str,
    now: OffsetDateTime,
    report: &mut Report,
) {
    let metadata = match rebuilt.read(&format!("{mount}metadata/{name}"), &[]).await {
        Ok(metadata) => metadata,
        Err(error) => return report.fail(format!("{mount}{name}: {error}")),
    };
    let versions = metadata.get("versions").and_then(Value::as_object).cloned().unwrap_or_default();
    for (version, facts) in versions {
        let destroyed = facts.get("destroyed").and_then(Value::as_bool).unwrap_or(false);
        if destroyed || is_deleted(&facts, now) {
            continue;
        }
        let path = format!("{mount}data/{name}");
        let value = |answer: Value| answer.get("data").cloned();
        let opened = rebuilt.read(&path, &[("version", version.clone())]).await.map(|data| value(data).unwrap_or(Value::Null));
        let live = live.map(|live| {
            let answer = live.read(&format!("{}?version={version}", escaped(&path)))?;
            Ok(answer.and_then(|answer| answer.get("data").cloned()).and_then(value))
        });
        judge(opened, live, true, &format!("{path} v{version}"), report);
    }
}

/// Whether a version was deleted; a time that is yet to come (`delete_version_after`) deletes nothing now.
fn is_deleted(facts: &Value, now: OffsetDateTime) -> bool {
    let time = facts.get("deletion_time").and_then(Value::as_str).unwrap_or_default();
    !time.is_empty() && parse_rfc3339(time).is_none_or(|time| time <= now)
}

/// `live` is the running server's value: `None` without a running server, `Some(Ok(None))` when it has none.
fn judge(
    opened: Result<Value, String>,
    live: Option<Result<Option<Value>, Unasked>>,
    immutable: bool,
    name: &str,
    report: &mut Report,
) {
    report.secrets.tried += 1;
    let value = match opened {
        Ok(value) if !value.is_null() => value,
        Ok(_) => return report.fail(format!("{name}: it opens to nothing")),
        Err(error) => return report.fail(format!("{name}: {error}")),
    };
    report.secrets.opened += 1;
    match live {
        None => {}
        Some(Err(unasked)) => {
            report.secrets.unasked += 1;
            report.could_not_ask(unasked);
        }
        Some(Ok(Some(theirs))) if theirs == value => report.secrets.same += 1,
        Some(Ok(Some(_))) if immutable => report.fail(format!("{name}: it opens to something else than the running server has")),
        Some(Ok(_)) => report.secrets.moved += 1,
    }
}

/// A path as it goes into a URL.
pub(super) fn escaped(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.' | b'~');
    path.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_deletion_that_has_come_deletes() {
        let now = parse_rfc3339("2026-11-27T12:00:00Z").unwrap();
        for (time, deleted) in
            [("", false), ("2026-12-27T12:00:00.5Z", false), ("2026-11-27T12:00:00Z", true), ("2020-01-01T00:00:00Z", true)]
        {
            assert_eq!(is_deleted(&json!({"deletion_time": time}), now), deleted, "{time}");
        }
    }
}
