//! `sos backup create|verify|list|restore`.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::Failure;
use super::client::{Client, ClientArgs};
use super::interrupt::RemovedWhenInterrupted;
use super::output::{self, Format, Rows};
use super::progress::Progress;
use super::restore_needs;
use super::terminal::Terminal;
use crate::backup::{BackupError, Contents, Header, Origin, Seal, Target, Wait, files, settle_folder};
use crate::config;

/// Commands of `backup`.
#[derive(Subcommand, Debug)]
pub(super) enum BackupCommand {
    /// Take a backup into a file, or have the server make one in its folder
    Create(CreateArgs),
    /// Check that a backup is whole, and with a server of its cluster that nobody altered it
    Verify(VerifyArgs),
    /// Show the backups of the server, or those in a folder
    List(ListArgs),
    /// Put a backup in the place of everything: in a stopped server's folder (-config) or in a running server
    Restore(RestoreArgs),
}

/// Flags of `backup create`.
#[derive(Args, Debug)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The new file; without it the server writes into the folder of its backup stanza
    file: Option<PathBuf>,
}

/// Flags of `backup verify`.
#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The backup
    file: PathBuf,
}

/// Flags of `backup list`.
#[derive(Args, Debug)]
pub(super) struct ListArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// A folder with backups on this machine; without it the server is asked
    folder: Option<PathBuf>,
}

/// Flags of `backup restore`.
#[derive(Args, Debug)]
pub(super) struct RestoreArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Configuration of the stopped server whose store is to be replaced; may be given several times
    #[arg(long, value_name = "PATH")]
    config: Vec<PathBuf>,
    /// Restore also over a newer store, another cluster, or where keys are missing
    #[arg(long)]
    force: bool,
    /// Version numbers that every secret and Transit key leaves out; without it none where the replaced store tells which
    /// ones were given, and 1000 elsewhere
    #[arg(long, value_name = "N")]
    skip_versions: Option<u64>,
    /// The backup
    file: PathBuf,
}

pub(super) fn run(command: &BackupCommand, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    match command {
        BackupCommand::Create(args) => create(args, terminal),
        BackupCommand::Verify(args) => verify(args, terminal),
        BackupCommand::List(args) => list(args, terminal),
        BackupCommand::Restore(args) if args.config.is_empty() => restore_online(args, terminal),
        BackupCommand::Restore(args) => restore_offline(args, terminal),
    }
}

fn failed(error: BackupError) -> Failure {
    Failure::usage(super::server::chain(&error))
}

fn create(args: &CreateArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let client = args.client.client(terminal)?;
    let format = args.client.format(terminal)?;
    let Some(file) = &args.file else {
        let answer =
            client.put_slowly("sys/sos/backups", &json!({})).map_err(|error| Failure::request("making the backup", error))?;
        return show_made(answer.get("data").unwrap_or(&answer), format, terminal);
    };
    if file.exists() {
        return Err(Failure::usage(format!("{} exists already: choose another name, or remove it", file.display())));
    }
    let body = client.download("sys/storage/raft/snapshot").map_err(|error| Failure::request("taking the backup", error))?;
    let progress = Progress::bytes("receiving", None);
    let _interrupted = RemovedWhenInterrupted::new(files::unfinished(file))?;
    let contents = files::save(body, file, |done| progress.set(done)).map_err(failed)?;
    progress.finish();
    show(&contents, file, format, &[("Verified", "whole, read back from the disk".to_owned())], terminal)
}

fn show_made(fields: &Value, format: Format, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    match format {
        Format::Json => terminal.print(output::json(fields)?)?,
        Format::Table => {
            let mut rows = Rows::default();
            for (title, name) in [("File", "file"), ("Created", "created"), ("Commit", "sequence"), ("Records", "records")] {
                rows.add_field(title, fields, name);
            }
            terminal.print(rows.table())?;
        }
    }
    Ok(0)
}

fn verify(args: &VerifyArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let format = args.client.format(terminal)?;
    let size = std::fs::metadata(&args.file).map(|meta| meta.len()).ok();
    let progress = Progress::bytes("verifying", size);
    let archive = Counted { input: files::open(&args.file).map_err(failed)?, count: 0, progress: &progress };
    let contents = crate::backup::Reader::new(archive).read(|_| Ok(()), |_| Ok(())).map_err(failed)?;
    progress.finish();
    let authentic = match args.client.named_client(terminal)? {
        None => "not checked: name a server of this cluster with -address or VAULT_ADDR, and a token".to_owned(),
        Some(client) => match is_authentic(&client, &contents.seal)? {
            true => "yes: made under this cluster's key, and not altered since".to_owned(),
            false => return Err(failed(BackupError::NotAuthentic)),
        },
    };
    show(
        &contents,
        &args.file,
        format,
        &[("Whole", "yes: every checksum is right".to_owned()), ("Authentic", authentic)],
        terminal,
    )
}

fn is_authentic(client: &Client, seal: &Seal) -> Result<bool, Failure> {
    let body = serde_json::to_value(seal).map_err(|error| Failure::usage(error.to_string()))?;
    let answer = client.put("sys/sos/backups/verify", &body).map_err(|error| Failure::request("checking the backup", error))?;
    Ok(output::truth(answer.get("data").unwrap_or(&answer), "authentic"))
}

fn show(
    contents: &Contents,
    file: &Path,
    format: Format,
    more: &[(&str, String)],
    terminal: &mut Terminal<'_>,
) -> Result<u8, Failure> {
    let Contents { header, summary, .. } = contents;
    match format {
        Format::Json => {
            let mut shown = json!({"file": file.display().to_string(), "header": header, "contents": summary});
            for (name, value) in more {
                shown[name.to_ascii_lowercase()] = value.as_str().into();
            }
            terminal.print(output::json(&shown)?)?;
        }
        Format::Table => {
            let mut rows = Rows::default();
            rows.add("File", file.display().to_string());
            of_header(&mut rows, header);
            rows.add("Records", summary.records.to_string());
            for (name, value) in more {
                rows.add(*name, value.clone());
            }
            terminal.print(rows.table())?;
        }
    }
    Ok(0)
}

fn of_header(rows: &mut Rows, header: &Header) {
    rows.add("Created", header.created.clone());
    rows.add("Commit", header.sequence.to_string());
    rows.add("Cluster Name", header.cluster_name.clone());
    rows.add("Cluster ID", header.cluster_id.clone());
    rows.add("Opens With", header.needs.sentence());
}

fn list(args: &ListArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let format = args.client.format(terminal)?;
    let Some(folder) = &args.folder else {
        let client = args.client.client(terminal)?;
        let answer = client.get("sys/sos/backups").map_err(|error| Failure::request("reading the backups", error))?;
        let fields = answer.get("data").unwrap_or(&answer);
        match format {
            Format::Json => terminal.print(output::json(fields)?)?,
            Format::Table => {
                output::texts(fields, "backups").iter().try_for_each(|file| terminal.print(file))?;
                for name in ["last_failure", "warning"] {
                    let text = output::text(fields, name);
                    if !text.is_empty() {
                        terminal.complain(format!("WARNING: {text}"));
                    }
                }
            }
        }
        return Ok(0);
    };
    let mut shown = Vec::new();
    for file in files::list(folder).map_err(failed)? {
        match files::head(&file) {
            Ok(header) => shown.push(json!({"file": file.display().to_string(), "header": header})),
            Err(error) => terminal.complain(format!("{}: {error}", file.display())),
        }
    }
    match format {
        Format::Json => terminal.print(output::json(&shown)?)?,
        Format::Table => {
            for backup in &shown {
                let header = backup.get("header").unwrap_or(backup);
                let line = ["created", "sequence", "cluster_name"].map(|name| output::text(header, name)).join("  ");
                terminal.print(format!("{line}  {}", output::text(backup, "file")))?;
                if let Ok(header) = serde_json::from_value::<Header>(header.clone()) {
                    terminal.print(format!("    opens with {}", header.needs.sentence()))?;
                }
            }
        }
    }
    Ok(0)
}

fn restore_online(args: &RestoreArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let client = args.client.client(terminal)?;
    let file = files::open(&args.file).map_err(failed)?;
    let size = file.metadata().map(|meta| meta.len()).ok();
    let progress = Progress::bytes("sending", size);
    let path = if args.force { "sys/storage/raft/snapshot-force" } else { "sys/storage/raft/snapshot" };
    let query = args.skip_versions.map(|count| format!("?skip_versions={count}")).unwrap_or_default();
    let mut body = Counted { input: file, count: 0, progress: &progress };
    let answer = client.upload(&format!("{path}{query}"), &mut body);
    let answer = answer.map_err(|error| Failure::request("restoring the backup", error))?;
    progress.finish();
    output::texts(&answer, "warnings").iter().for_each(|warning| terminal.complain(format!("WARNING: {warning}")));
    terminal.print("Restored. The server unseals itself with its HSM, or waits for shares: see `sos status`.")?;
    Ok(0)
}

fn restore_offline(args: &RestoreArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let loaded = config::load(&args.config, &config::process_environment);
    let (config, _) = loaded.map_err(|error| Failure::usage(super::server::chain(&error)))?;
    let storage = crate::startup::storage_config(&config).map_err(|error| Failure::usage(super::server::chain(&error)))?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let wait = Wait(runtime.handle());
    if let Some(folder) = &storage.path {
        must_be_own(folder)?;
        settle_folder(folder).map_err(failed)?;
    }
    let target = Target::in_folder(&storage, wait).map_err(failed)?;
    let archive = files::open(&args.file).map_err(failed)?;
    let size = archive.metadata().map(|meta| meta.len()).ok();
    let progress = Progress::bytes("restoring", size);
    let origin = Origin {
        archive: Counted { input: archive, count: 0, progress: &progress },
        target: &target,
        force: args.force,
        skip_versions: args.skip_versions,
        now: OffsetDateTime::now_utc(),
        begin: &mut |header| match restore_needs::missing(&config, header) {
            Some(why) if !args.force => Err(BackupError::Refused(why)),
            Some(why) => {
                terminal.complain(format!("Restoring with -force: {why}"));
                Ok(())
            }
            None => Ok(()),
        },
        progress: &mut |_| {},
    };
    let (contents, old) = origin.into_folder(&storage, wait).map_err(failed)?;
    progress.finish();
    let mut more = vec![("Next", "start the server; it checks that the backup is authentic when it is unsealed".to_owned())];
    if let Some(old) = old {
        more.push(("Old Store", format!("kept in {} until the next restore; remove it when all is well", old.display())));
    }
    show(&contents, &args.file, args.client.format(terminal)?, &more, terminal)
}

/// Files that another user than the server's makes are files that the server cannot open. Where the store's folder is missing,
/// the one that it is to be made in tells whose the server's files are.
fn must_be_own(folder: &Path) -> Result<(), Failure> {
    let us = rustix::process::geteuid().as_raw();
    let above = folder.parent().filter(|above| !above.as_os_str().is_empty());
    let Some((there, meta)) =
        [Some(folder), above].into_iter().flatten().find_map(|place| Some((place, std::fs::metadata(place).ok()?)))
    else {
        let above = above.unwrap_or(folder).display();
        return Err(Failure::usage(format!(
            "{above} is missing: make it for the server's user, as in `install -d -o sos -g sos -m 0700 {above}`, and run this command as that user"
        )));
    };
    if meta.uid() == us {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "{} belongs to user {} and this command runs as user {us}: run it as the server's user, as in `sudo -u sos sos backup restore ...`",
        there.display(),
        meta.uid()
    )))
}

/// Counts what is read for the progress.
struct Counted<'a, R> {
    input: R,
    count: u64,
    progress: &'a Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.count += u64::try_from(read).unwrap_or(0);
        self.progress.set(self.count);
        Ok(read)
    }
}
