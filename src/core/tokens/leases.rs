//! Tokens as leases: what `sys/leases` shows and revokes. A lease is named by the request path that made the token and
//! the token's hash.

use futures_util::future::try_join_all;
use std::sync::Arc;

use super::{TokenEntry, TokenStore};
use crate::{barrier::Txn, core::failure::Failure, storage::Names};

const BATCH: usize = 64;

impl TokenStore {
    /// The token of a lease.
    pub fn lease(&self, lease_id: &str) -> Result<Option<Arc<TokenEntry>>, Failure> {
        let Some((_, hash)) = lease_id.rsplit_once('/') else { return Ok(None) };
        let entry = self.lookup_hash(hash)?;
        Ok(entry.filter(|entry| entry.expires_at.is_some() && entry.lease_id() == lease_id))
    }

    /// Names one level below `prefix`, which is empty or ends in `/`.
    pub async fn lease_names(self: &Arc<Self>, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, Failure> {
        let names = self.view.list_long(&format!("lease/{prefix}"), after, limit).await?;
        if names.len() <= BATCH {
            return self.living(&names);
        }
        // Each of these tokens is looked up.
        let tokens = self.clone();
        tokio::task::spawn_blocking(move || tokens.living(&names)).await.map_err(Failure::internal)?
    }

    /// Folders, and the hashes of tokens that live.
    fn living(&self, names: &Names) -> Result<Vec<String>, Failure> {
        let mut living = Vec::new();
        for name in names.iter() {
            if name.ends_with('/') || self.is_alive(name)? {
                living.push(name.to_owned());
            }
        }
        Ok(living)
    }

    /// Revokes every lease below a path, or the one lease of exactly this name; answers how many there were.
    pub async fn revoke_prefix(&self, prefix: &str) -> Result<usize, Failure> {
        let prefix = prefix.trim_end_matches('/');
        if let Some(entry) = self.lease(prefix)? {
            self.revoke_tree(&entry.hash).await?;
            return Ok(1);
        }
        let folder = if prefix.is_empty() { "lease/".to_owned() } else { format!("lease/{prefix}/") };
        let mut revoked = 0;
        loop {
            let leases = self.view.scan(&folder, None, BATCH)?;
            if leases.is_empty() {
                return Ok(revoked);
            }
            revoked += leases.len();
            let ends = leases.iter().filter_map(|(key, _)| key.rsplit_once('/')).map(|(_, hash)| self.revoke_tree(hash));
            try_join_all(ends).await?;
            // Of tokens that ended together with their parent the index is gone already.
            self.view.commit(leases.into_iter().fold(Txn::new(), |txn, (key, _)| txn.delete(key))).await?;
        }
    }

    /// Number of leases below a path, expired ones that are not yet swept included.
    pub fn count_leases(&self, prefix: &str) -> Result<usize, Failure> {
        let mut after: Option<String> = None;
        let mut count = 0;
        loop {
            let page = self.view.scan(&format!("lease/{prefix}"), after.as_deref(), 1000)?;
            let Some((last, _)) = page.last() else { return Ok(count) };
            after = Some(last.clone());
            count += page.len();
        }
    }
}
