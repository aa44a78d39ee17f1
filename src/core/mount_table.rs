//! Changes of the mount table: each is durable before the router shows it. What is left of a removed mount goes afterwards
//! (`removals`). Where the store failed at a change and nobody knows what became of it, what the store holds is read again once
//! it answers.
//!
//! Records: `mounts/<uuid>` (a [`MountEntry`]) and `removed/<uuid>` (the same, while something is left of it).

mod removals;

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use tokio::sync::Mutex;

use self::removals::removed_path;
pub use self::removals::{Left, Removal};
use super::{
    Active, Core,
    engine::{Call, Engine},
    failure::Failure,
    mounts::{MOUNTS, MountConfig, MountEntry, MountRecord, Mounted, Router, Table},
    reply::Reply,
    route::{RouteTable, Routed},
    sys::System,
    told::Told,
};
use crate::{
    auth,
    barrier::{Barrier, Entry, InDoubt, Txn, View, on_own_task},
    crashpoint::reach,
    engines::{self, MountContext},
    storage::{Expect, StorageError},
};

/// The persistent side of the router.
pub struct MountTable {
    view: View,
    barrier: Arc<Barrier>,
    router: Arc<Router>,
    /// Changes are made one at a time; readers never take it.
    changing: Mutex<()>,
    /// Held by whoever goes on with removals. Changes do not wait for it.
    removing: Mutex<()>,
    in_doubt: Arc<InDoubt>,
    /// Of removals that do not go on.
    told: Told,
}

impl MountTable {
    /// A table over `core/`; nothing is mounted before [`MountTable::load`].
    pub fn new(view: View, barrier: Arc<Barrier>, router: Arc<Router>) -> Self {
        Self {
            view,
            barrier,
            router,
            changing: Mutex::default(),
            removing: Mutex::default(),
            in_doubt: Arc::default(),
            told: Told::default(),
        }
    }

    /// Reads all mounts and makes their engines; a new cluster gets the built-in mounts.
    pub async fn load(&self, core: &Arc<Core>, active: &Active, cubbyhole: &View) -> Result<(), Failure> {
        let mut entries = self.entries()?;
        let missing: Vec<_> = built_in().into_iter().filter(|new| !entries.iter().any(|old| same_place(old, new))).collect();
        if !missing.is_empty() {
            let mut txn = Txn::new();
            for entry in &missing {
                txn = txn.put(format!("{MOUNTS}{}", entry.uuid), encode(entry)?);
            }
            self.view.commit(txn).await?;
            entries.extend(missing);
        }
        let mut mounts = BTreeMap::new();
        for entry in entries {
            let engine = self.engine(core, active, cubbyhole, &entry).unwrap_or_else(|failure| {
                // One mount that cannot be served must not keep all the others sealed.
                tracing::error!(mount = %entry.full_path(), error = ?failure, "this mount cannot be served; its requests answer 503");
                Arc::new(Broken { reason: failure.to_string() })
            });
            mounts.insert(entry.full_path(), Arc::new(Mounted { entry, engine }));
        }
        self.router.set(mounts);
        Ok(())
    }

    fn entries(&self) -> Result<Vec<MountEntry>, Failure> {
        self.view.scan(MOUNTS, None, usize::MAX)?.into_iter().map(|(path, entry)| decode(&path, &entry)).collect()
    }

    fn engine(
        &self,
        core: &Arc<Core>,
        active: &Active,
        cubbyhole: &View,
        entry: &MountEntry,
    ) -> Result<Arc<dyn Engine>, Failure> {
        Ok(match (entry.table, entry.kind.as_str()) {
            (Table::Secret, "system") => Arc::new(System::new(core)),
            (Table::Secret, "identity") => Arc::new(engines::identity::Identity),
            (Table::Secret, "cubbyhole") => Arc::new(engines::cubbyhole::Cubbyhole::new(cubbyhole.clone())),
            (Table::Auth, "token") => Arc::new(auth::token::TokenAuth::new(
                Arc::clone(&active.tokens),
                Arc::clone(&active.policies),
                &active.router,
                core.settings.clone(),
            )),
            (Table::Auth, kind) => return Err(Failure::invalid(format!("plugin not found in the catalog: {kind}"))),
            (Table::Secret, _) => engines::build(self.context(core, entry)?)?,
        })
    }

    fn context(&self, core: &Arc<Core>, entry: &MountEntry) -> Result<MountContext, Failure> {
        Ok(MountContext {
            entry: entry.clone(),
            record: MountRecord::new(&self.view, &entry.uuid),
            view: self.data(entry)?,
            clock: core.clock.clone(),
            system_default_ttl: core.settings.default_lease_ttl,
            system_max_ttl: core.settings.max_lease_ttl,
            services: Arc::clone(&core.services),
        })
    }

    /// Where a mount's records are.
    fn data(&self, entry: &MountEntry) -> Result<View, Failure> {
        let folder = match entry.table {
            Table::Secret => "logical",
            Table::Auth => "auth",
        };
        Ok(View::new(Arc::clone(&self.barrier), &format!("{folder}/{}/", entry.uuid))?)
    }

    /// Starts the engine of a mount whose record is durable, and shows it. As after an unseal, an engine that does not
    /// start is shown all the same: hidden, its path would look free and a second mount could take it.
    async fn serve(&self, entry: MountEntry, engine: Arc<dyn Engine>) {
        if let Err(failure) = engine.start().await {
            tracing::error!(mount = %entry.full_path(), error = ?failure, "the engine did not start; its requests may fail");
        }
        self.router.put(Arc::new(Mounted { entry, engine }));
    }

    /// Mounts a secrets engine or auth method at a free path.
    pub async fn mount(&self, core: &Arc<Core>, entry: MountEntry) -> Result<(), Failure> {
        let _one = self.changing.lock().await;
        self.settle(core).await?;
        self.check_free(&entry.full_path())?;
        let engine = match entry.table {
            Table::Secret => engines::build(self.context(core, &entry)?)?,
            Table::Auth => auth::build(self.context(core, &entry)?)?,
        };
        let path = format!("{MOUNTS}{}", entry.uuid);
        let txn = Txn::new().check(&path, Expect::Absent).put(&path, encode(&entry)?);
        self.in_doubt.commit(&self.view, txn).await?;
        self.serve(entry, engine).await;
        Ok(())
    }

    /// Whether a path is taken, or lies inside or around a mount. The error names the mount in the way.
    fn check_free(&self, full_path: &str) -> Result<(), Failure> {
        let taken = self.router.all().into_iter().map(|mounted| mounted.entry.full_path());
        match taken.into_iter().find(|path| path.starts_with(full_path) || full_path.starts_with(path.as_str())) {
            Some(path) => {
                let shown = path.strip_prefix("auth/").filter(|_| full_path.starts_with("auth/")).unwrap_or(&path);
                Err(Failure::invalid(format!("path is already in use at {shown}")))
            }
            None => Ok(()),
        }
    }

    /// Unmounts: durable when it answers, and the path is free. What the mount held goes afterwards
    /// ([`MountTable::finish_removals`]).
    pub async fn unmount(&self, core: &Arc<Core>, full_path: &str) -> Result<(), Failure> {
        let _one = self.changing.lock().await;
        self.settle(core).await?;
        let Some(mounted) = self.router.at(full_path) else { return Ok(()) };
        let entry = &mounted.entry;
        let txn = Txn::new().delete(format!("{MOUNTS}{}", entry.uuid)).put(removed_path(&entry.uuid), encode(entry)?);
        self.in_doubt.commit(&self.view, txn).await?;
        self.router.take(full_path);
        reach("mount-removed");
        Ok(())
    }

    /// Changes a mount's record and engine in place (tune); `change` sees the entry as it is now.
    pub async fn tune(
        &self,
        core: &Arc<Core>,
        full_path: &str,
        change: impl FnOnce(&mut MountEntry) -> Result<(), Failure> + Send,
    ) -> Result<(), Failure> {
        let _one = self.changing.lock().await;
        self.settle(core).await?;
        let mounted = self.router.at(full_path).ok_or_else(Failure::not_found)?;
        let mut entry = mounted.entry.clone();
        change(&mut entry)?;
        if entry == mounted.entry {
            return Ok(());
        }
        let still = match entry.table {
            Table::Secret => engines::check_tuned(&mounted.entry, &self.context(core, &entry)?).await?,
            Table::Auth => None,
        };
        let rebuilt = self.rebuilt(core, &mounted, &entry)?;
        let txn = Txn::new().put(format!("{MOUNTS}{}", entry.uuid), encode(&entry)?);
        let (view, in_doubt) = (self.view.clone(), Arc::clone(&self.in_doubt));
        // On a task of its own: what stands still does so until the commit is there, also when the caller goes away.
        let committed = on_own_task(async move {
            let _still = still;
            in_doubt.commit(&view, txn).await
        });
        committed.await.map_err(Failure::internal)??;
        self.serve(entry, rebuilt).await;
        Ok(())
    }

    /// Moves a mount with its data to another free path of the same table.
    pub async fn remount(&self, core: &Arc<Core>, from: &str, to: MountEntry) -> Result<(), Failure> {
        let _one = self.changing.lock().await;
        self.settle(core).await?;
        let mounted = self.router.at(from).ok_or_else(Failure::not_found)?;
        self.check_free(&to.full_path())?;
        let entry = MountEntry { path: to.path, ..mounted.entry.clone() };
        let engine = match entry.table {
            Table::Secret => engines::build(self.context(core, &entry)?)?,
            Table::Auth => auth::build(self.context(core, &entry)?)?,
        };
        self.in_doubt.commit(&self.view, Txn::new().put(format!("{MOUNTS}{}", entry.uuid), encode(&entry)?)).await?;
        self.router.take(from);
        self.serve(entry, engine).await;
        Ok(())
    }
}

impl MountTable {
    /// The engine of a mount whose record changed.
    fn rebuilt(&self, core: &Arc<Core>, mounted: &Mounted, entry: &MountEntry) -> Result<Arc<dyn Engine>, Failure> {
        Ok(match (entry.table, entry.kind.as_str()) {
            (_, "system" | "identity" | "cubbyhole" | "token") => Arc::clone(&mounted.engine),
            (Table::Secret, _) => engines::build(self.context(core, entry)?)?,
            (Table::Auth, _) => auth::build(self.context(core, entry)?)?,
        })
    }

    /// After changes of which nobody knows what became: shows the mounts that the store holds.
    pub async fn settle_changes(&self, core: &Arc<Core>) -> Result<(), Failure> {
        let _one = self.changing.lock().await;
        self.settle(core).await
    }

    /// The same for a caller that makes changes.
    async fn settle(&self, core: &Arc<Core>) -> Result<(), Failure> {
        if !self.in_doubt.is_any() {
            return Ok(());
        }
        self.in_doubt.settle(&self.view, self.show_stored(core)).await
    }

    async fn show_stored(&self, core: &Arc<Core>) -> Result<(), Failure> {
        let stored = self.entries()?;
        let shown = self.router.all();
        for mounted in &shown {
            let path = mounted.entry.full_path();
            if !stored.iter().any(|entry| entry.uuid == mounted.entry.uuid && entry.full_path() == path) {
                self.router.take(&path);
            }
        }
        for entry in stored {
            let before = shown.iter().find(|mounted| mounted.entry.uuid == entry.uuid);
            if before.is_some_and(|mounted| mounted.entry == entry) {
                continue;
            }
            let engine = match (before, entry.table) {
                (Some(mounted), _) => self.rebuilt(core, mounted, &entry),
                (None, Table::Secret) => self.context(core, &entry).and_then(engines::build),
                (None, Table::Auth) => self.context(core, &entry).and_then(auth::build),
            };
            let engine = engine.unwrap_or_else(|failure| {
                tracing::error!(mount = %entry.full_path(), error = ?failure, "this mount cannot be served; its requests answer 503");
                Arc::new(Broken { reason: failure.to_string() })
            });
            self.serve(entry, engine).await;
        }
        Ok(())
    }
}

fn encode(entry: &MountEntry) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(entry).map_err(Failure::internal)
}

fn decode(path: &str, entry: &Entry) -> Result<MountEntry, Failure> {
    serde_json::from_slice(entry.value.expose())
        .map_err(|error| Failure::from(StorageError::Corrupt { key: path.to_owned(), reason: error.to_string() }))
}

fn same_place(a: &MountEntry, b: &MountEntry) -> bool {
    a.table == b.table && a.path == b.path
}

/// A new entry with a fresh uuid and accessor.
pub fn new_entry(table: Table, path: &str, kind: &str) -> MountEntry {
    let mut config = MountConfig::default();
    let prefix = match table {
        Table::Secret => kind.to_owned(),
        Table::Auth => {
            config.token_type = "default-service".into();
            format!("auth_{kind}")
        }
    };
    MountEntry {
        table,
        path: path.to_owned(),
        kind: kind.to_owned(),
        uuid: uuid::Uuid::new_v4().to_string(),
        accessor: format!("{prefix}_{}", hex::encode(crate::secret::random_array::<4>())),
        description: String::new(),
        options: BTreeMap::new(),
        config,
        local: false,
        seal_wrap: false,
        external_entropy_access: false,
    }
}

/// The mounts of a new cluster.
fn built_in() -> Vec<MountEntry> {
    let described = |table, path: &str, kind: &str, description: &str| MountEntry {
        description: description.to_owned(),
        ..new_entry(table, path, kind)
    };
    let mut cubbyhole = described(Table::Secret, "cubbyhole/", "cubbyhole", "per-token private secret storage");
    cubbyhole.local = true;
    let mut system = described(Table::Secret, "sys/", "system", "system endpoints used for control, policy and debugging");
    system.seal_wrap = true;
    system.config.passthrough_request_headers = vec!["Accept".into()];
    let mut identity = described(Table::Secret, "identity/", "identity", "identity store");
    identity.config.passthrough_request_headers = vec!["Authorization".into()];
    let token = described(Table::Auth, "token/", "token", "token based credentials");
    vec![cubbyhole, system, identity, token]
}

/// Stands for a mount whose engine cannot be made: it keeps the path and the data, and says what is wrong.
struct Broken {
    reason: String,
}

impl Routed for Broken {
    fn table() -> &'static RouteTable<Self> {
        static TABLE: LazyLock<RouteTable<Broken>> = LazyLock::new(|| RouteTable::new(&[]));
        &TABLE
    }

    fn unmatched(&self, _: &Call<'_>) -> Result<Reply, Failure> {
        Err(Failure::unavailable(format!("this mount cannot be served: {}; see the server's log", self.reason)))
    }
}
