//! `sos recovery drill`: the loss of HSM and machine, rehearsed with the shares.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};

use super::Failure;
use super::client::{Client, ClientArgs, ClientError};
use super::output::{self, Format};
use super::progress::Progress;
use super::shares;
use super::terminal::Terminal;
use crate::backup::{Header, Origin, Target, Wait, files};
use crate::config;
use crate::startup::drill::{Count, Drill, DrillError, Folder, Live, Report, Sample, Step, Token, Unasked};
use crate::startup::hsm;
use crate::storage::{self, Kind, StorageConfig};

/// Commands of `recovery`.
#[derive(Subcommand, Debug)]
pub(super) enum RecoveryCommand {
    /// Rebuild everything from a backup and the escrow shares on an empty token, open a sample, and clean up
    ///
    /// Exit code: 0 everything came back, 3 the same but something would be lost for good, 2 something did not come back,
    /// 1 the drill could not be held.
    Drill(DrillArgs),
}

/// Flags of `recovery drill`.
#[derive(Args, Debug)]
pub(super) struct DrillArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// A backup file; without it one is taken from the running server
    #[arg(long, value_name = "FILE")]
    backup: Option<PathBuf>,
    /// How many secrets and Transit keys of each mount are opened, with all their versions
    #[arg(long, value_name = "N", default_value_t = 100)]
    sample: usize,
    /// Open every secret and every Transit key
    #[arg(long)]
    all: bool,
    /// Where the temporary folder is made
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Configuration with the seal stanza of an empty token to rebuild on; without it a SoftHSM token is made and thrown away
    #[arg(long, value_name = "PATH")]
    config: Vec<PathBuf>,
    /// Name of that seal stanza, where there are several
    #[arg(long, value_name = "NAME")]
    seal: Option<String>,
    /// `-` reads the shares from the standard input, one a line; without it you are asked for them
    #[arg(value_parser = ["-"])]
    keys: Option<String>,
}

pub(super) fn run(command: &RecoveryCommand, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    match command {
        RecoveryCommand::Drill(args) => drill(args, terminal),
    }
}

fn drill(args: &DrillArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let format = args.client.format(terminal)?;
    let token = token(args)?;
    let client = match args.backup {
        Some(_) => args.client.named_client(terminal)?,
        None => Some(args.client.client(terminal)?),
    };
    let parent = args.folder.clone().unwrap_or_else(std::env::temp_dir);
    let folder = Folder::make(&parent)
        .map_err(|error| Failure::usage(format!("no temporary folder can be made in {}: {error}", parent.display())))?;
    let backup = match (&args.backup, &client) {
        (Some(file), _) => file.clone(),
        (None, Some(client)) => take_backup(client, folder.path())?,
        (None, None) => return Err(Failure::usage("name a server with -address or VAULT_ADDR, or a backup with -backup")),
    };
    let header = files::head(&backup).map_err(|error| Failure::usage(super::server::chain(&error)))?;
    let shares = match &args.keys {
        Some(_) => shares::from_input(terminal)?,
        None => shares::asked(header.needs.threshold.into(), terminal)?,
    };
    let live = client.filter(|client| is_same_cluster(client, &header, terminal)).map(Running);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let copy = copy_of(&backup, folder.path(), runtime.handle())?;
    let drill = Drill {
        copy,
        shares: &shares,
        token,
        sample: if args.all { Sample::All } else { Sample::Some(args.sample) },
        live: live.as_ref().map(|live| live as &dyn Live),
    };
    let mut shown = Shown::default();
    let mut show = |step: Step| shown.step(&step);
    let report = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let stop = async {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        };
        drill.run(&mut show, stop).await.map_err(could_not)
    });
    shown.end();
    let report = report?;
    match format {
        Format::Json => terminal.print(output::json(&as_json(&report, &header))?)?,
        Format::Table => terminal.print(in_words(&report, &header, live.is_some()))?,
    }
    Ok(match (report.is_good(), report.loses()) {
        (false, _) => 2,
        (true, true) => 3,
        (true, false) => 0,
    })
}

fn could_not(error: DrillError) -> Failure {
    Failure::usage(format!("the drill could not be held: {}", super::server::chain(&error)))
}

/// The token that the flags name.
fn token(args: &DrillArgs) -> Result<Token, Failure> {
    if args.config.is_empty() {
        return Ok(Token::ThrowAway);
    }
    let loaded = config::load(&args.config, &config::process_environment);
    let (config, _) = loaded.map_err(|error| Failure::usage(super::server::chain(&error)))?;
    let mut fitting = config.seals.iter().filter(|seal| args.seal.as_ref().is_none_or(|name| *name == seal.name));
    match (fitting.next(), fitting.next()) {
        (Some(seal), None) => Ok(Token::Given(Box::new(hsm::config(seal)))),
        (None, _) => Err(Failure::usage("the configuration has no such seal \"pkcs11\" stanza")),
        (Some(_), Some(_)) => Err(Failure::usage("the configuration has several seal stanzas: choose one with -seal=NAME")),
    }
}

fn take_backup(client: &Client, folder: &Path) -> Result<PathBuf, Failure> {
    let file = folder.join("copy");
    let body = client.download("sys/storage/raft/snapshot").map_err(|error| Failure::request("taking a backup", error))?;
    let progress = Progress::bytes("receiving", None);
    files::save(body, &file, |done| progress.set(done)).map_err(|error| Failure::usage(super::server::chain(&error)))?;
    progress.finish();
    Ok(file)
}

/// Another cluster's server says nothing about this one's keys.
fn is_same_cluster(client: &Client, header: &Header, terminal: &mut Terminal<'_>) -> bool {
    let status = client.get("sys/seal-status").unwrap_or(Value::Null);
    let same = status.get("cluster_id").and_then(Value::as_str) == Some(&header.cluster_id);
    if !same {
        terminal.complain("The server is sealed or of another cluster: nothing is compared with it.");
    }
    same
}

fn copy_of(backup: &Path, folder: &Path, runtime: &tokio::runtime::Handle) -> Result<Arc<dyn storage::Storage>, Failure> {
    let failed =
        |error: &dyn std::error::Error| Failure::usage(format!("the backup cannot be used: {}", super::server::chain(error)));
    let options = storage::Options { reserve_bytes: 0, ..storage::Options::default() };
    let config = StorageConfig { kind: Kind::Sled, path: Some(folder.join("store")), options };
    let store = storage::open(&config).map_err(|error| failed(&error))?;
    let archive: File = files::open(backup).map_err(|error| failed(&error))?;
    let origin = Origin {
        archive,
        target: &Target::Empty,
        force: false,
        skip_versions: Some(0),
        now: OffsetDateTime::now_utc(),
        begin: &mut |_| Ok(()),
        progress: &mut |_| {},
    };
    origin.fill(&*store, Wait(runtime)).map_err(|error| failed(&error))?;
    Ok(store)
}

/// The running server, over HTTP.
struct Running(Client);

impl Live for Running {
    fn read(&self, path: &str) -> Result<Option<Value>, Unasked> {
        answered(self.0.get(path), 404)
    }

    fn ask(&self, path: &str, body: &Value) -> Result<Option<Value>, Unasked> {
        answered(self.0.put(path, body), 400)
    }
}

/// `no` is the code by which the server says that it has no such thing.
fn answered(answer: Result<Value, ClientError>, no: u16) -> Result<Option<Value>, Unasked> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(ClientError::Refused { code, .. }) if code == no => Ok(None),
        Err(ClientError::Refused { code: 403, .. }) => Err(Unasked("permission denied".to_owned())),
        Err(ClientError::Refused { code, errors, .. }) => Err(Unasked(format!("{code} {}", errors.trim()))),
        Err(error) => Err(Unasked(error.to_string())),
    }
}

/// What is shown while it goes on: one line that grows on a terminal, plain lines elsewhere.
#[derive(Default)]
struct Shown {
    last: Option<Instant>,
    open: bool,
}

impl Shown {
    fn step(&mut self, step: &Step) {
        let mut err = std::io::stderr();
        // Nobody is left to tell when this fails.
        let _ = match step {
            Step::Stage(stage) => {
                self.end();
                writeln!(err, "{stage} ...")
            }
            Step::Left(count) => writeln!(err, "  {count} object(s) of earlier drills that were cut off were removed"),
            Step::Opened(count) => {
                let terminal = err.is_terminal();
                let pause = if terminal { 100 } else { 10_000 };
                if self.last.is_some_and(|last| last.elapsed().as_millis() < pause) {
                    return;
                }
                self.last = Some(Instant::now());
                self.open = terminal;
                if terminal { write!(err, "\r  {count} opened") } else { writeln!(err, "  {count} opened") }
            }
        };
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            let _ = writeln!(std::io::stderr());
        }
        self.last = Some(Instant::now());
    }
}

fn in_words(report: &Report, header: &Header, compared: bool) -> String {
    let verdict = match (report.is_good(), report.loses()) {
        (false, _) => "FAILED: not everything came back",
        (true, true) => "passed, but some keys would be lost for good",
        (true, false) => "passed: nothing would be lost",
    };
    let mut lines = vec![
        format!("Escrow drill {verdict}"),
        format!("Cluster: {} ({}), as of {}", report.cluster_name, report.cluster_id, header.created),
        format!("Opened with {} of {} shares", report.shares.0, report.shares.1),
    ];
    if report.seal_key {
        lines.push("Seal key: made anew on an empty token".to_owned());
        lines.push(format!("Zone master keys rebuilt from escrow: {}", list(&report.master_keys)));
    }
    lines.push(counted("Secrets", "versions", report.secrets, compared, report));
    lines.push(counted("Transit", "key versions", report.key_versions, compared, report));
    if report.loses() {
        lines.push("Lost for good when the HSM is lost:".to_owned());
        lines.push(format!("  hsm-only key versions: {}", list(&report.hsm_only)));
        lines.push(format!("  zone master keys without an escrow copy: {}", list(&report.lost_master_keys)));
    }
    if report.failed > 0 {
        lines.push(format!("Did not come back: {}", report.failed));
        lines.extend(report.failures.iter().map(|failure| format!("  {failure}")));
    }
    lines.push("Everything that the drill made is removed; the running server was only read.".to_owned());
    lines.join("\n")
}

fn counted(what: &str, of: &str, count: Count, compared: bool, report: &Report) -> String {
    let Count { tried, opened, same, moved, unasked } = count;
    let mut text = format!("{what}: {opened} of {tried} {of} opened");
    if compared {
        text.push_str(&format!(", {same} the same on the running server"));
        if moved > 0 {
            text.push_str(&format!(", {moved} changed there since"));
        }
        if unasked > 0 {
            text.push_str(&format!(", {unasked} not compared: {}", report.unasked.as_deref().unwrap_or("no answer")));
        }
    }
    text
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn as_json(report: &Report, header: &Header) -> Value {
    let count = |count: Count| {
        json!({
            "tried": count.tried,
            "opened": count.opened,
            "same": count.same,
            "changed_since": count.moved,
            "not_compared": count.unasked,
        })
    };
    json!({
        "passed": report.is_good(),
        "cluster_id": report.cluster_id,
        "cluster_name": report.cluster_name,
        "backup_created": header.created,
        "shares_used": report.shares.0,
        "shares": report.shares.1,
        "seal_key": report.seal_key,
        "master_keys": report.master_keys,
        "lost_master_keys": report.lost_master_keys,
        "lost_hsm_only": report.hsm_only,
        "secrets": count(report.secrets),
        "key_versions": count(report.key_versions),
        "not_compared_because": report.unasked,
        "failed": report.failed,
        "failures": report.failures,
    })
}
