//! Secrets of the KV mounts: read from the rebuilt server and compared with the running one, in memory only.

use serde_json::Value;

use super::live::{Live, Rebuilt};
use super::sample::{Drawn, Sample};
use super::{DrillError, Progress, Report, Step};

pub(super) async fn open(
    rebuilt: &Rebuilt,
    live: Option<&dyn Live>,
    mount: &str,
    versioned: bool,
    sample: Sample,
    report: &mut Report,
    progress: Progress<'_>,
) -> Result<(), DrillError> {
    let base = if versioned { format!("{mount}metadata/") } else { mount.to_owned() };
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
        if versioned {
            open_versions(rebuilt, live, mount, &name, report).await;
        } else {
            let path = format!("{mount}{name}");
            let live = live.map(|live| live.read(&path).and_then(|answer| answer.get("data").cloned()));
            // A secret without versions may have been written since: other data is no failure.
            judge(rebuilt.read(&path, &[]).await, live, false, &path, report);
        }
        progress(Step::Opened(report.secrets.opened));
    }
    Ok(())
}

async fn open_versions(rebuilt: &Rebuilt, live: Option<&dyn Live>, mount: &str, name: &str, report: &mut Report) {
    let metadata = match rebuilt.read(&format!("{mount}metadata/{name}"), &[]).await {
        Ok(metadata) => metadata,
        Err(error) => return report.fail(format!("{mount}{name}: {error}")),
    };
    let versions = metadata.get("versions").and_then(Value::as_object).cloned().unwrap_or_default();
    for (version, facts) in versions {
        let destroyed = facts.get("destroyed").and_then(Value::as_bool).unwrap_or(false);
        let deleted = facts.get("deletion_time").and_then(Value::as_str).is_some_and(|time| !time.is_empty());
        if destroyed || deleted {
            continue;
        }
        let path = format!("{mount}data/{name}");
        let value = |answer: Value| answer.get("data").cloned();
        let opened = rebuilt.read(&path, &[("version", version.clone())]).await.map(|data| value(data).unwrap_or(Value::Null));
        let live = live.map(|live| {
            let answer = live.read(&format!("{}?version={version}", escaped(&path)))?;
            answer.get("data").cloned().and_then(value)
        });
        judge(opened, live, true, &format!("{path} v{version}"), report);
    }
}

/// `live` is the running server's value: `None` without a running server, `Some(None)` when it has none.
fn judge(opened: Result<Value, String>, live: Option<Option<Value>>, immutable: bool, name: &str, report: &mut Report) {
    report.secrets.tried += 1;
    let value = match opened {
        Ok(value) if !value.is_null() => value,
        Ok(_) => return report.fail(format!("{name}: it opens to nothing")),
        Err(error) => return report.fail(format!("{name}: {error}")),
    };
    report.secrets.opened += 1;
    match live {
        None => {}
        Some(Some(theirs)) if theirs == value => report.secrets.same += 1,
        Some(Some(_)) if immutable => report.fail(format!("{name}: it opens to something else than the running server has")),
        Some(_) => report.secrets.moved += 1,
    }
}

/// A path as it goes into a URL.
pub(super) fn escaped(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.' | b'~');
    path.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
