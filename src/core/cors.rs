//! Cross-origin requests: off by default, kept behind the barrier, asked by `http` before anything else.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::failure::{Failure, Kind};
use crate::{
    barrier::{InDoubt, Txn, View},
    storage::StorageError,
};

/// Where the settings are stored.
const PATH: &str = "config/cors";

/// Headers that Vault's clients send.
const STANDARD_HEADERS: [&str; 10] = [
    "Content-Type",
    "Authorization",
    "X-Vault-Token",
    "X-Vault-MFA",
    "X-Vault-No-Request-Forwarding",
    "X-Vault-Wrap-Format",
    "X-Vault-Wrap-TTL",
    "X-Requested-With",
    "X-Vault-AWS-IAM-Server-ID",
    "X-Vault-Policy-Override",
];

/// Who may send cross-origin requests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CorsSettings {
    /// Origins, or the one entry `*`.
    pub allowed_origins: Vec<String>,
    /// Headers that a page may send.
    pub allowed_headers: Vec<String>,
    /// Whether `Access-Control-Allow-Credentials` is sent.
    pub allow_credentials: bool,
}

impl CorsSettings {
    /// Settings with the standard headers and `headers`.
    ///
    /// # Errors
    /// Without an origin, and for `*` beside others.
    pub fn new(origins: Vec<String>, headers: Vec<String>, allow_credentials: bool) -> Result<Self, Failure> {
        if origins.is_empty() {
            return Err(Failure::listed(Kind::Internal, "at least one origin or the wildcard must be provided"));
        }
        if origins.len() > 1 && origins.iter().any(|origin| origin == "*") {
            let text = "to allow all origins the '*' must be the only value for allowed_origins";
            return Err(Failure::listed(Kind::Internal, text));
        }
        let allowed_headers = STANDARD_HEADERS.iter().map(|header| (*header).to_owned()).chain(headers).collect();
        Ok(Self { allowed_origins: origins, allowed_headers, allow_credentials })
    }

    /// Whether pages of this origin may send requests.
    pub fn allows(&self, origin: &str) -> bool {
        self.allowed_origins.iter().any(|allowed| allowed == "*" || allowed == origin)
    }
}

/// The settings as `http` sees them.
#[derive(Default)]
pub struct Cors {
    settings: ArcSwapOption<CorsSettings>,
    view: ArcSwapOption<View>,
    in_doubt: InDoubt,
    /// Changes are made one at a time.
    changing: Mutex<()>,
}

impl Cors {
    /// The settings; `None` while cross-origin requests are not looked at.
    pub fn settings(&self) -> Option<Arc<CorsSettings>> {
        self.settings.load_full()
    }

    /// Reads the settings below `view` (`core/`) after the barrier was opened.
    pub fn load(&self, view: View) -> Result<(), Failure> {
        self.in_doubt.forget();
        self.read(&view)?;
        self.view.store(Some(Arc::new(view)));
        Ok(())
    }

    fn read(&self, view: &View) -> Result<(), Failure> {
        let settings = match view.get(PATH)? {
            None => None,
            Some(entry) => serde_json::from_slice(entry.value.expose())
                .map_err(|error| StorageError::Corrupt { key: PATH.into(), reason: error.to_string() })?,
        };
        self.settings.store(settings.map(Arc::new));
        Ok(())
    }

    /// After a change of which nobody knows what became: takes over what the store holds. To be called from time to time.
    pub async fn settle(&self) -> Result<(), Failure> {
        let _one = self.changing.lock().await;
        let Some(view) = self.view.load_full() else { return Ok(()) };
        self.in_doubt.settle(&view, async { self.read(&view) }).await
    }

    /// Stores settings and lets them count; `None` turns cross-origin checks off.
    pub async fn set(&self, settings: Option<CorsSettings>) -> Result<(), Failure> {
        let _one = self.changing.lock().await;
        let view = self.view.load_full().ok_or_else(|| Failure::unavailable("Vault is sealed"))?;
        let txn = match &settings {
            Some(settings) => Txn::new().put(PATH, serde_json::to_vec(settings).map_err(Failure::internal)?),
            None => Txn::new().delete(PATH),
        };
        self.in_doubt.commit(&view, txn).await?;
        self.settings.store(settings.map(Arc::new));
        Ok(())
    }
}
