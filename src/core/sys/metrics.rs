//! `sys/metrics`: figures for monitoring, in Vault's JSON or for Prometheus.
//!
//! <https://developer.hashicorp.com/vault/api-docs/system/metrics>. Answers without a token only on listeners whose `telemetry`
//! stanza says `unauthenticated_metrics_access = true`; those answer while sealed too. Names: docs/operating.md.

use std::fmt::Write;

use serde::Serialize;
use time::OffsetDateTime;

use super::{
    System,
    status::{READY, hsms, status},
};
use crate::{
    core::{
        Core,
        engine::Call,
        failure::Failure,
        reply::{Body, Reply},
        route::{Access, Route},
    },
    op,
    wire::time::parse_rfc3339,
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[Route {
    patterns: &["metrics"],
    access: Access::Token,
    help: "Shows figures for monitoring; format=prometheus in Prometheus' text form.",
    exists: None,
    operations: &[op!(Read, "Figures for monitoring", read, MetricsParams)],
}];

crate::params! {
    /// Query of `sys/metrics`.
    struct MetricsParams {
        /// `prometheus`, or JSON when it is empty.
        format: String,
    }
}

/// Whether a figure can go down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
}

/// One figure.
struct Metric {
    /// Dotted, as in Vault's JSON; Prometheus gets underscores.
    name: &'static str,
    help: &'static str,
    kind: Kind,
    /// A label and its value beside the cluster's name.
    label: Option<(&'static str, String)>,
    value: f64,
}

async fn read(system: &System, call: &Call<'_>, params: MetricsParams) -> Result<Reply, Failure> {
    let core = system.core()?;
    let metrics = collect(&core, call.now).await?;
    let cluster = core.seal.seal_record().ok().flatten().map(|record| record.cluster_name).unwrap_or_default();
    match params.format.as_str() {
        "prometheus" => {
            let bytes = prometheus(&metrics, &cluster).into_bytes();
            Ok(Reply { body: Body::Bare { content_type: "text/plain; version=0.0.4", bytes }, ..Reply::default() })
        }
        "" => Reply::bare(&Json::of(&metrics, &cluster, call.now)),
        other => Err(Failure::invalid(format!("metric response format {other:?} unknown"))),
    }
}

#[allow(clippy::cast_precision_loss, clippy::as_conversions)] // metrics are floating-point numbers by definition
fn float(value: u64) -> f64 {
    value as f64
}

async fn collect(core: &Core, now: OffsetDateTime) -> Result<Vec<Metric>, Failure> {
    let mut metrics = Vec::new();
    let mut add = |name, help, kind, label: Option<(&'static str, String)>, value: f64| {
        metrics.push(Metric { name, help, kind, label, value });
    };
    let (gauge, counter) = (Kind::Gauge, Kind::Counter);
    let truth = |value: bool| f64::from(u8::from(value));
    let open = core.active().is_ok();
    add("vault.core.unsealed", "Whether the server is unsealed", gauge, None, truth(open));
    add("vault.core.active", "Whether the server answers requests", gauge, None, truth(open));
    for hsm in hsms(core) {
        add("sos.hsm.ready", "Whether the HSM can be used", gauge, Some(("hsm", hsm.name)), truth(hsm.state == READY));
    }
    let (failed, shed) = core.auth_failures.totals();
    let shed = shed + core.strangers.totals().1;
    add("sos.auth.failures.total", "Failed authentications since the start", counter, None, float(failed));
    add("sos.auth.shed.total", "Requests answered 429 because their address had too many", counter, None, float(shed));
    let status = status(core, now).await?;
    if let Some(store) = &status.store {
        add("sos.store.sequence", "The last commit of the store", counter, None, float(store.sequence));
        if let (Some(size), Some(free), Some(watermark)) = (store.disk_size, store.disk_free, store.disk_watermark) {
            add("sos.store.disk.size.bytes", "Size of the store's file system", gauge, None, float(size));
            add("sos.store.disk.free.bytes", "Bytes free on the store's file system", gauge, None, float(free));
            add("sos.store.disk.watermark.bytes", "Bytes below which writes are refused", gauge, None, float(watermark));
        }
    }
    if let Some(barrier) = &status.barrier {
        add("sos.barrier.term", "Term of the store's encryption key", gauge, None, float(barrier.term.into()));
        add("sos.barrier.encryptions", "Encryptions under that term", gauge, None, float(barrier.encryptions));
        add("sos.barrier.max.encryptions", "Encryptions after which it is replaced", gauge, None, float(barrier.max_operations));
        let worn = u64::try_from(status.worn_keys.len()).unwrap_or(u64::MAX);
        add("sos.transit.worn.versions", "Transit key versions near the bound of their encryptions", gauge, None, float(worn));
    }
    if let Some(backup) = &status.backup {
        let last = backup.last.as_deref().and_then(parse_rfc3339).map_or(0, |last| last.unix_timestamp());
        let last = float(u64::try_from(last).unwrap_or(0));
        add("sos.backup.last.success.timestamp.seconds", "When the last good backup was taken, 0 for never", gauge, None, last);
        add("sos.backup.overdue", "Whether the last good backup is too old", gauge, None, truth(backup.overdue));
        add("sos.backup.successes.total", "Good backups since the start", counter, None, float(backup.successes));
        add("sos.backup.failures.total", "Failed backups since the start", counter, None, float(backup.failures));
    }
    if let Some(created) = status.restored.as_ref().and_then(|restored| parse_rfc3339(&restored.created)) {
        let at = float(u64::try_from(created.unix_timestamp()).unwrap_or(0));
        add("sos.restored.from.timestamp.seconds", "When the backup was taken that the store comes from", gauge, None, at);
    }
    for (name, help, value) in process() {
        add(name, help, gauge, None, value);
    }
    Ok(metrics)
}

/// Figures of the process, by the names that Prometheus clients use.
fn process() -> Vec<(&'static str, &'static str, f64)> {
    let mut found = Vec::new();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    if let Some(kilobytes) = resident {
        found.push(("process.resident.memory.bytes", "Memory of the server process", float(kilobytes.saturating_mul(1024))));
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        found.push(("process.open.fds", "Open files of the server process", float(u64::try_from(open.count()).unwrap_or(0))));
    }
    found
}

fn prometheus(metrics: &[Metric], cluster: &str) -> String {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let mut text = String::new();
    let mut last = "";
    for metric in metrics {
        let name = metric.name.replace('.', "_");
        // Writing to a String cannot fail.
        if last != metric.name {
            let kind = if metric.kind == Kind::Gauge { "gauge" } else { "counter" };
            let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}", metric.help);
            last = metric.name;
        }
        let _ = write!(text, "{name}{{cluster=\"{}\"", escaped(cluster));
        if let Some((label, value)) = &metric.label {
            let _ = write!(text, ",{label}=\"{}\"", escaped(value));
        }
        let _ = writeln!(text, "}} {}", metric.value);
    }
    text
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Json<'a> {
    timestamp: String,
    gauges: Vec<Gauge<'a>>,
    points: [(); 0],
    counters: Vec<Counter<'a>>,
    samples: [(); 0],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Gauge<'a> {
    name: &'a str,
    value: f64,
    labels: serde_json::Value,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Counter<'a> {
    name: &'a str,
    count: f64,
    sum: f64,
    labels: serde_json::Value,
}

impl<'a> Json<'a> {
    fn of(metrics: &'a [Metric], cluster: &str, now: OffsetDateTime) -> Self {
        let labels = |metric: &Metric| {
            let mut labels = serde_json::json!({ "cluster": cluster });
            if let Some((label, value)) = &metric.label {
                labels[*label] = value.as_str().into();
            }
            labels
        };
        let (gauges, counters): (Vec<_>, Vec<_>) = metrics.iter().partition(|metric| metric.kind == Kind::Gauge);
        let (date, time) = (now.date(), now.time());
        let (hour, minute, second) = time.as_hms();
        Self {
            timestamp: format!("{date} {hour:02}:{minute:02}:{second:02} +0000 UTC"),
            gauges: gauges.iter().map(|m| Gauge { name: m.name, value: m.value, labels: labels(m) }).collect(),
            points: [],
            counters: counters
                .iter()
                .map(|m| Counter { name: m.name, count: m.value, sum: m.value, labels: labels(m) })
                .collect(),
            samples: [],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::unsealed_core;

    #[tokio::test]
    async fn figures_have_a_name_a_kind_and_a_cluster() {
        let core = unsealed_core().await;
        let metrics = collect(&core, core.clock.now()).await.unwrap();
        let text = prometheus(&metrics, "a \"b\"");
        assert!(text.contains("# TYPE vault_core_unsealed gauge\nvault_core_unsealed{cluster=\"a \\\"b\\\"\"} 1\n"), "{text}");
        assert!(text.contains("# TYPE sos_store_sequence counter\n"), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.rsplit_once(' ').is_some_and(|(_, value)| value.parse::<f64>().is_ok()), "{line}");
        }
        let json = serde_json::to_value(Json::of(&metrics, "c", core.clock.now())).unwrap();
        assert_eq!(json["Gauges"][0]["Name"], "vault.core.unsealed");
        assert_eq!(json["Gauges"][0]["Labels"]["cluster"], "c");
        assert_eq!(json["Counters"][0]["Name"], "sos.auth.failures.total");
        core.seal.seal().await.unwrap();
        let sealed = prometheus(&collect(&core, core.clock.now()).await.unwrap(), "c");
        assert!(sealed.contains("vault_core_unsealed{cluster=\"c\"} 0\n"), "{sealed}");
    }
}
