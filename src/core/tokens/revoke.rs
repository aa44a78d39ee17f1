//! The end of tokens: revocation, expiry, and the clean-up behind them.
//!
//! One commit ends a token: from then on all its descendants are dead, because look-ups ask for the ancestors. If
//! there is more to delete than fits that commit, it leaves a `dying/<hash>` record, and whoever comes first (this call,
//! or the sweep after a crash) deletes descendants and cubbyhole and then that record.

use futures_util::future::{join_all, try_join_all};

use super::store::{Stored, TokenStore, busy, conflict, delete_all, expiry_key};
use crate::{barrier::Txn, core::failure::Failure, storage::Expect};

/// How many tokens are deleted at the same time; their commits share disk syncs.
const BATCH: usize = 64;

/// Cubbyhole records that are deleted together with the token.
const SMALL: usize = 32;

/// How a sweep goes. One token that cannot be removed, its record being damaged, must not keep the others.
#[derive(Default)]
struct Swept {
    done: usize,
    failed: usize,
    first: Option<Failure>,
}

impl Swept {
    fn count(&mut self, result: Result<(), Failure>) {
        match result {
            Ok(()) => self.done += 1,
            Err(failure) => {
                self.failed += 1;
                self.first.get_or_insert(failure);
            }
        }
    }

    fn end(self) -> Result<usize, Failure> {
        match self.first {
            Some(failure) if self.done == 0 => Err(failure),
            Some(failure) => {
                tracing::error!(failed = self.failed, error = ?failure, "some expired tokens could not be removed");
                Ok(self.done)
            }
            None => Ok(self.done),
        }
    }
}

impl TokenStore {
    /// Revokes a token and all its descendants; `false` when there is none. The token is dead when this answers, also
    /// with an error.
    pub async fn revoke_tree(&self, hash: &str) -> Result<bool, Failure> {
        let Some(_) = self.end(hash).await? else { return Ok(false) };
        self.clean_up(hash).await?;
        Ok(true)
    }

    /// [`TokenStore::revoke_tree`] by accessor.
    pub async fn revoke_accessor(&self, accessor: &str) -> Result<bool, Failure> {
        match self.lookup_accessor(accessor)? {
            Some(entry) => self.revoke_tree(&entry.hash).await,
            None => Ok(false),
        }
    }

    /// Revokes a token alone: its children go on without a parent. `false` when there is none.
    pub async fn revoke_orphan(&self, hash: &str) -> Result<bool, Failure> {
        loop {
            let Some(stored) = self.load(hash)? else { return Ok(false) };
            // The mark keeps new children away and tells the sweep what was intended, should this stop half-way.
            let mut entry = super::TokenEntry::clone(&stored.entry);
            entry.orphaning = true;
            entry.expires_at = Some(0);
            if self.replace(&stored, entry).await? {
                break;
            }
        }
        self.orphan_children(hash).await?;
        self.revoke_tree(hash).await
    }

    /// Ends what is expired or half revoked, at most about `limit` tokens; answers how many. Cheap when there is nothing.
    pub async fn sweep(&self, limit: usize) -> Result<usize, Failure> {
        let mut swept = Swept::default();
        for hash in &self.view.list("dying/", None, limit)? {
            swept.count(self.clean_up(hash).await.map(|_| ()));
        }
        let now = self.now();
        // Most of the time nothing is due: the first name says so, and nothing is decrypted.
        let first = self.view.list("expiry/", None, 1)?;
        if first.first().and_then(|name| name.trim_end_matches('/').parse::<i64>().ok()).is_none_or(|end| end > now) {
            return swept.end();
        }
        let due: Vec<(i64, String)> = self
            .view
            .scan("expiry/", None, limit)?
            .into_iter()
            .filter_map(|(key, _)| {
                let (end, hash) = key.strip_prefix("expiry/")?.split_once('/')?;
                Some((end.parse().ok()?, hash.to_owned()))
            })
            .take_while(|(end, _)| *end <= now)
            .collect();
        for chunk in due.chunks(BATCH) {
            for result in join_all(chunk.iter().map(|(end, hash)| self.expire(*end, hash, now))).await {
                swept.count(result);
            }
        }
        swept.end()
    }

    /// Sweeps until nothing is left to sweep; errors go to the log.
    pub async fn tidy(&self) {
        loop {
            match self.sweep(BATCH * 4).await {
                Ok(0) => return,
                Ok(removed) => tracing::info!(removed, "tidied tokens"),
                Err(error) => {
                    tracing::error!(?error, "tokens could not be tidied");
                    return;
                }
            }
        }
    }

    async fn expire(&self, end: i64, hash: &str, now: i64) -> Result<(), Failure> {
        match self.load(hash)? {
            Some(stored) if stored.entry.orphaning => {
                self.orphan_children(hash).await?;
                self.revoke_tree(hash).await?;
            }
            Some(stored) if stored.entry.is_expired(now) => {
                self.revoke_tree(hash).await?;
            }
            // Renewed in the meantime: its index entry moved in the same commit.
            Some(stored) if stored.entry.expires_at == Some(end) => {}
            _ => {
                self.view.commit(Txn::new().delete(expiry_key(end, hash))).await?;
            }
        }
        Ok(())
    }

    /// Deletes the token with everything that fits one commit; `None` when there is no such token. The answer is whether
    /// something is left for [`TokenStore::clean_up`].
    async fn end(&self, hash: &str) -> Result<Option<bool>, Failure> {
        for _ in 0..BATCH {
            let Some(Stored { entry, version }) = self.load(hash)? else { return Ok(None) };
            let kept = self.cubbyhole.scan(&format!("{hash}/"), None, SMALL + 1)?;
            let children = !self.view.list(&format!("parent/{hash}/"), None, 1)?.is_empty();
            let left = children || kept.len() > SMALL;
            let mut txn = Txn::new().check(format!("id/{hash}"), Expect::Version(version));
            txn = delete_all(txn, &entry);
            if left {
                txn = txn.put(format!("dying/{hash}"), Vec::new());
            }
            let cubbyhole = kept.into_iter().fold(Txn::new(), |txn, (path, _)| txn.delete(path));
            let result = self.view.commit_with(txn, &self.cubbyhole, cubbyhole).await;
            self.forget(hash);
            match result {
                Ok(_) => return Ok(Some(left)),
                Err(error) if conflict(&error).is_some() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(busy())
    }

    /// Deletes descendants and cubbyhole of a token that has ended.
    async fn clean_up(&self, hash: &str) -> Result<(), Failure> {
        let mut queue = vec![hash.to_owned()];
        while let Some(hash) = queue.pop() {
            // Listed again after the token's end: no child can join from then on.
            loop {
                let children = self.view.list(&format!("parent/{hash}/"), None, BATCH)?;
                if children.is_empty() {
                    break;
                }
                let ended = try_join_all(children.iter().map(|child| self.end(child))).await?;
                let mut stale = Txn::new();
                for (child, left) in children.into_iter().zip(ended) {
                    stale = stale.delete(format!("parent/{hash}/{child}"));
                    if left == Some(true) {
                        queue.push(child);
                    }
                }
                self.view.commit(stale).await?;
            }
            loop {
                let kept = self.cubbyhole.scan(&format!("{hash}/"), None, BATCH)?;
                if kept.is_empty() {
                    break;
                }
                self.cubbyhole.commit(kept.into_iter().fold(Txn::new(), |txn, (path, _)| txn.delete(path))).await?;
            }
            let mark = format!("dying/{hash}");
            if self.view.get(&mark)?.is_some() {
                self.view.commit(Txn::new().delete(mark)).await?;
            }
        }
        Ok(())
    }

    async fn orphan_children(&self, hash: &str) -> Result<(), Failure> {
        loop {
            let children = self.view.list(&format!("parent/{hash}/"), None, BATCH)?;
            if children.is_empty() {
                return Ok(());
            }
            try_join_all(children.iter().map(|child| self.orphan(hash, child))).await?;
        }
    }

    async fn orphan(&self, parent: &str, child: &str) -> Result<(), Failure> {
        loop {
            let Some(stored) = self.load(child)?.filter(|stored| stored.entry.parent == parent) else {
                self.view.commit(Txn::new().delete(format!("parent/{parent}/{child}"))).await?;
                return Ok(());
            };
            let mut entry = super::TokenEntry::clone(&stored.entry);
            entry.parent.clear();
            if self.replace(&stored, entry).await? {
                return Ok(());
            }
        }
    }
}
