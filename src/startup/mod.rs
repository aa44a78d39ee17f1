//! Builds every part from the configuration and joins them; the only module that knows all concrete types.

mod backups;
mod client_authorities;
mod dev;
mod dev_tls;
pub mod drill;
pub mod hsm;
pub mod listen;
pub mod logging;
pub mod memory;
mod notify;
mod placed;
pub mod process;
mod sanitized;
mod serving;
pub mod tls;

use std::{io, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::join_all};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    dev_tls::DevCertificates,
    hsm::{Stanzas, ThrowAwayToken},
};
use crate::{
    backup::{self, BackupError, Exchange, Settled},
    barrier::{Barrier, BarrierError},
    cli::ServerArgs,
    config::{self, Config, ConfigError, LogLevel},
    core::{Core, Settings, auth_failures::AuthFailureLimit, clock::Clock, failure::Failure},
    crashpoint::reach,
    engines::Services,
    hsm::Hsm,
    seal::{Seal, SealSettings},
    stack,
    storage::{self, Kind, Storage, StorageConfig, StorageError},
    zones::Zones,
};
use listen::{Bound, ListenError};
use logging::Log;
use notify::Supervisor;
use process::PidFile;

/// Address of the development server unless another is given.
const DEV_ADDRESS: &str = "127.0.0.1:8200";
/// Shown as `build_date`; releases set it at build time.
const BUILD_DATE: &str = match option_env!("SOS_BUILD_DATE") {
    Some(date) => date,
    None => "1970-01-01T00:00:00Z",
};
/// How often periodic work is done.
const TICK: Duration = Duration::from_secs(2);

/// How long the end of the process waits for the seal; with the listeners' time to drain it is below ten seconds (the worker
/// of an HSM that hangs may add five, see [`Hsm::close`]).
const CLOSING: Duration = Duration::from_secs(1);

/// How long the end of the process then waits for what still runs, the last tidying of the store among it.
const ENDING: Duration = Duration::from_secs(5);

/// Why the server did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A setting contradicts another or is missing.
    #[error("{0}")]
    Settings(String),
    /// The store cannot be opened.
    #[error("the store cannot be opened: {0}")]
    Storage(#[from] StorageError),
    /// An interrupted restore cannot be settled.
    #[error("an interrupted restore cannot be settled: {0}")]
    Restore(#[from] BackupError),
    /// A restore failed and neither store could be opened.
    #[error("a restore failed and the store could not be opened again; the next start settles what it left")]
    StoreLost,
    /// The barrier cannot be made.
    #[error(transparent)]
    Barrier(#[from] BarrierError),
    /// A listener cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The server behind the listeners did not come up.
    #[error("the server did not come up: {0}")]
    Core(#[from] Failure),
    /// The operating system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Gives an I/O error the words of what was tried.
fn system(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

/// Runs the server until it is told to stop.
pub fn run(args: ServerArgs) -> Result<(), StartError> {
    let (config, warnings) = load(&args)?;
    let level = level(&args, &config)?;
    let format = match args.log_format.as_deref() {
        Some(text) => config::LogFormat::parse(text)
            .ok_or_else(|| StartError::Settings(format!("unknown log format {text:?}: use standard or json")))?,
        None => config.log_format.unwrap_or_default(),
    };
    let log = Log::start(level, format, config.log_file.as_deref()).map_err(system("the log file cannot be opened"))?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    process::log_panics_without_message();
    process::raise_file_limit();
    memory::bound_heaps();
    if !config.disable_mlock
        && let Err(error) = memory::lock_memory()
    {
        tracing::warn!(%error, "memory is not locked and may be swapped out; raise ulimit -l, or set disable_mlock = true on a machine without swap");
    }
    let _pid = match &config.pid_file {
        Some(path) => Some(PidFile::write(path.clone()).map_err(|error| {
            let path = path.display();
            StartError::Settings(format!(
                "the pid file {path} cannot be written: {error}; make its folder writable, or change pid_file"
            ))
        })?),
        None => None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(system("the async runtime cannot be started"))?;
    let ended = runtime.block_on(serve(args, config, log));
    // What still runs lets go of the store here. A thread that waits for a disk or an HSM that hangs must not keep the process from
    // ending; what it was at has been acknowledged to nobody.
    runtime.shutdown_timeout(ENDING);
    if ended.is_ok() {
        tracing::info!("stopped");
    }
    ended
}

fn load(args: &ServerArgs) -> Result<(Config, Vec<config::Warning>), StartError> {
    if args.dev {
        let address = args.dev_listen_address.as_deref().unwrap_or(DEV_ADDRESS);
        return Ok(config::load_over(Config::dev(address), &args.config, &config::process_environment)?);
    }
    Ok(config::load(&args.config, &config::process_environment)?)
}

fn level(args: &ServerArgs, config: &Config) -> Result<LogLevel, StartError> {
    match args.log_level.as_deref() {
        Some(text) => LogLevel::parse(text)
            .ok_or_else(|| StartError::Settings(format!("unknown log level {text:?}: use trace, debug, info, warn or error"))),
        None => Ok(config.log_level.unwrap_or_default()),
    }
}

async fn serve(args: ServerArgs, mut config: Config, log: Log) -> Result<(), StartError> {
    let certificates = args.dev_tls.then(|| DevCertificates::make(&mut config.listeners)).transpose()?;
    // A start that is bound to fail leaves the HSM alone, however often a service manager repeats it.
    listen::check(&config.listeners)?;
    let store = storage_config(&config)?;
    settle(&store)?;
    storage::check(&store)?;
    let token = if args.dev { dev_token(&config) } else { None };
    // It logs in while the store is opened.
    let (hsm, stanzas) = start_hsm(&args, &config, token.as_ref())?;
    let ended = serve_with(&args, &config, &log, store, hsm.clone(), stanzas.as_ref(), certificates.as_ref()).await;
    // However it ends, the worker is not left in the middle of a call: the end of this process may be that of all of its
    // service or container, and some modules rewrite their token in a call.
    if let Some(hsm) = hsm {
        hsm.close().await;
    }
    drop((token, certificates));
    ended
}

/// Opens the store and the listeners, and serves until the end.
async fn serve_with(
    args: &ServerArgs,
    config: &Config,
    log: &Log,
    store: StorageConfig,
    hsm: Option<Arc<dyn Hsm>>,
    stanzas: Option<&Stanzas>,
    certificates: Option<&DevCertificates>,
) -> Result<(), StartError> {
    if let (Some(hsm), true) = (&hsm, args.dev) {
        dev::wait_for(hsm).await.map_err(|reason| StartError::Settings(format!("the HSM cannot be used: {reason}")))?;
    }
    let core = build(config, store, hsm)?;
    backups::plan(&core, config)?;
    let bound = Bound::bind(&config.listeners)?;
    let urls = bound.urls();
    let reloaded = bound.certificates();
    let servers = bound.serve(&core, config.default_max_request_duration).map_err(system("the listeners cannot be served"))?;
    if args.dev {
        dev::initialise(&core, args, &urls, certificates).await?;
    }
    tokio::spawn(stack::overwriting(Arc::clone(&core.seal).keep_unsealed()));
    tokio::spawn(stack::overwriting(backups::run(Arc::clone(&core))));
    for url in &urls {
        tracing::info!(%url, "listening");
    }
    let supervisor = Supervisor::from_environment(&config::process_environment).map(Arc::new);
    if let Some(supervisor) = &supervisor {
        tokio::spawn(Arc::clone(supervisor).keep_told(Arc::clone(&core)));
    }

    let (servers, handles): (Vec<_>, Vec<_>) = servers.into_iter().unzip();
    let running = tokio::spawn(join_all(servers));
    let ticking = tokio::spawn({
        let core = Arc::clone(&core);
        async move {
            loop {
                tokio::time::sleep(TICK).await;
                // A defect in one piece of periodic work must not end all of it.
                drop(AssertUnwindSafe(stack::overwriting(core.tick())).catch_unwind().await);
            }
        }
    });
    let mut terminate = signal(SignalKind::terminate()).map_err(system("signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("signals"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(system("signals"))?;
    let ended = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            // With an exit code by which whoever supervises starts it again; the start settles what the restore left.
            () = core.backups.store_lost() => break Err(StartError::StoreLost),
            _ = hangup.recv() => {
                reload(args, log, &reloaded, stanzas, &core);
                core.audit.reopen();
            }
        }
    };
    if let Some(supervisor) = &supervisor {
        supervisor.tell("STOPPING=1");
    }
    tracing::info!("stopping: requests in flight are finished first");
    join_all(handles.iter().map(|handle| handle.stop(true))).await;
    if let Ok(results) = running.await {
        for result in results {
            if let Err(error) = result {
                tracing::error!(%error, "a listener ended with an error");
            }
        }
    }
    ticking.abort();
    // An unseal that waits for a hung HSM must not hold up the end; what is committed is durable without it.
    if tokio::time::timeout(CLOSING, core.seal.shut_down()).await.is_err() {
        tracing::warn!("the seal is busy; the server stops without waiting for it");
    }
    ended
}

/// The token of the development server, unless a seal stanza names one.
fn dev_token(config: &Config) -> Option<ThrowAwayToken> {
    if !config.seals.is_empty() {
        return None;
    }
    match ThrowAwayToken::make() {
        Ok(token) => Some(token),
        Err(reason) => {
            tracing::warn!("ALL KEYS ARE SOFTWARE ONLY: {reason}");
            None
        }
    }
}

/// The HSMs, and the stanzas that a reload may change; a development server without stanzas has none.
#[allow(clippy::type_complexity)] // both halves of one start; called once
fn start_hsm(
    args: &ServerArgs,
    config: &Config,
    token: Option<&ThrowAwayToken>,
) -> Result<(Option<Arc<dyn Hsm>>, Option<Stanzas>), StartError> {
    let folder = match &config.storage {
        Some(config::Storage::Sled { path, .. } | config::Storage::Redb { path, .. }) => Some(path.as_path()),
        _ => None,
    };
    let failed =
        system("the memory of refused PINs cannot be opened in the store's folder: can this user read it, and is its disk well?");
    match token {
        Some(token) => Ok((Some(hsm::start(token.config(), folder).map_err(failed)? as Arc<dyn Hsm>), None)),
        None if args.dev && config.seals.iter().all(|seal| seal.disabled) => Ok((None, None)),
        None => {
            let stanzas = Stanzas::start(&config.seals, folder).map_err(failed)?;
            Ok((Some(stanzas.group() as Arc<dyn Hsm>), Some(stanzas)))
        }
    }
}

/// Finishes or undoes a restore that was interrupted.
fn settle(store: &StorageConfig) -> Result<(), StartError> {
    let Some(folder) = &store.path else { return Ok(()) };
    match backup::settle_folder(folder)? {
        Settled::Nothing => {}
        Settled::Undone => tracing::warn!("a restore was interrupted before it took effect; the store is as it was before"),
        Settled::Finished => tracing::warn!("a restore that was interrupted has been finished; the store is the restored one"),
    }
    Ok(())
}

/// Joins store, barrier, zones, seal and core; everything is sealed yet.
fn build(config: &Config, store: StorageConfig, hsm: Option<Arc<dyn Hsm>>) -> Result<Arc<Core>, StartError> {
    let exchange = Arc::new(Exchange::open(store)?);
    reach("start-store-open");
    let barrier = Arc::new(Barrier::new(Arc::clone(&exchange) as Arc<dyn Storage>));
    let stanza = config.seals.iter().find(|seal| !seal.disabled);
    let key_label = stanza.map_or("sos", |stanza| stanza.key_label.as_str()).to_owned();
    let services = Arc::new(Services {
        hsm: hsm.clone(),
        zones: Arc::new(Zones::new(Arc::clone(&barrier), hsm.clone(), &key_label)),
        default_protection: config.default_protection,
        transit: Arc::default(),
    });
    let settings = settings(config);
    let seal = Seal::new(
        barrier,
        hsm,
        SealSettings {
            key_label,
            cluster_name: config.cluster_name.clone().unwrap_or_default(),
            escrow: stanza.is_none_or(|stanza| stanza.escrow),
            storage_type: settings.storage_type.clone(),
            version: settings.vault_version.clone(),
            build_date: BUILD_DATE.to_owned(),
            sos_version: env!("CARGO_PKG_VERSION").to_owned(),
        },
    );
    let core = Core::new(Arc::new(seal), Clock::system(), settings, services);
    core.backups.attach(exchange);
    Ok(core)
}

fn reload(args: &ServerArgs, log: &Log, certificates: &[Arc<tls::Certificate>], stanzas: Option<&Stanzas>, core: &Arc<Core>) {
    match load(args).and_then(|(config, warnings)| Ok((level(args, &config)?, config, warnings))) {
        Ok((level, config, warnings)) => {
            log.reload(level);
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            if let Some(stanzas) = stanzas {
                stanzas.reload(&config.seals);
                let escrow = config.seals.iter().find(|seal| !seal.disabled).is_none_or(|seal| seal.escrow);
                // On a task of its own: the seal may be waiting for a hung HSM, and signals are to be heeded meanwhile.
                let core = Arc::clone(core);
                tokio::spawn(async move {
                    if let Err(error) = core.seal.hsms_replaced(escrow).await {
                        tracing::error!(%error, "it cannot be told which HSMs are enrolled");
                    }
                });
            }
        }
        Err(error) => tracing::error!(%error, "the configuration cannot be read again; log level and seals stay as they are"),
    }
    for certificate in certificates {
        match certificate.reload() {
            Ok(()) => tracing::info!("certificate and client authorities reloaded"),
            Err(error) => {
                tracing::error!(%error, "the certificate and the client authorities cannot be reloaded; the old ones stay in use")
            }
        }
    }
}

/// The store that a configuration names.
pub(crate) fn storage_config(config: &Config) -> Result<StorageConfig, StartError> {
    let (kind, path, limits) = match &config.storage {
        Some(config::Storage::Sled { path, limits }) => (Kind::Sled, Some(path.clone()), *limits),
        Some(config::Storage::Redb { path, limits }) => (Kind::Redb, Some(path.clone()), *limits),
        Some(config::Storage::Inmem) => (Kind::InMem, None, Default::default()),
        None => {
            return Err(StartError::Settings(
                "the configuration has no storage stanza: write storage \"redb\" { path = \"/var/lib/sos\" }".into(),
            ));
        }
    };
    let mut options = storage::Options::default();
    options.cache_bytes = limits.cache_size.unwrap_or(options.cache_bytes);
    options.check_at_start = limits.check_at_start.unwrap_or(options.check_at_start);
    options.compact_above = limits.compact_above.unwrap_or(options.compact_above);
    Ok(StorageConfig { kind, path, options })
}

fn settings(config: &Config) -> Settings {
    Settings {
        default_lease_ttl: config.default_lease_ttl.as_secs(),
        max_lease_ttl: config.max_lease_ttl.as_secs(),
        vault_version: config.vault_version.clone(),
        storage_type: config.storage.as_ref().map_or("inmem", config::Storage::kind).to_owned(),
        api_addr: config.api_addr.clone().unwrap_or_default(),
        audit_paths: config.audit_paths.clone(),
        raw_storage_endpoint: config.raw_storage_endpoint,
        zones: config.zones.iter().map(|zone| (zone.name.clone(), period(zone))).collect(),
        auth_failure_limit: auth_failure_limit(config.failed_auth_limit),
        sanitized: sanitized::sanitized(config),
    }
}

fn auth_failure_limit(configured: Option<config::FailedAuthLimit>) -> Option<AuthFailureLimit> {
    let usual = AuthFailureLimit::default();
    match configured {
        None => Some(usual),
        Some(config::FailedAuthLimit::None) => None,
        Some(config::FailedAuthLimit::Some { burst, per_second }) => {
            Some(AuthFailureLimit { burst: burst.unwrap_or(usual.burst), per_second: per_second.unwrap_or(usual.per_second) })
        }
    }
}

/// A zone's rotation period, zero for never. The configuration's durations are far below what the conversion takes.
fn period(zone: &config::Zone) -> time::Duration {
    zone.rotation_period.and_then(|period| time::Duration::try_from(period).ok()).unwrap_or_default()
}
