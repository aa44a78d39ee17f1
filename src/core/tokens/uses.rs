//! Counting the uses of tokens whose uses are limited.
//!
//! Each use is durable before the request goes on. Uses of one token wait for each other, and those that came meanwhile are
//! counted in one commit: the first that waits counts for all of them, so nobody is refused because others use the token too.

use std::{
    collections::{HashMap, VecDeque, hash_map},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    TokenEntry,
    store::{ATTEMPTS, LAST_REQUEST, TokenStore, busy, is_usable},
};
use crate::core::failure::Failure;

/// What a use that waits is told.
enum Turn {
    /// Somebody has counted it.
    Counted(Result<(), Failure>),
    /// It counts itself and all that wait behind it.
    Count(Counting),
}

/// Who waits, by the hash of the token; a token is here while somebody counts its uses.
#[derive(Clone, Default)]
pub(super) struct Uses(Arc<Mutex<HashMap<String, VecDeque<oneshot::Sender<Turn>>>>>);

impl Uses {
    /// The turn to count, or where to wait for it.
    fn queue(&self, hash: &str) -> Result<Counting, oneshot::Receiver<Turn>> {
        match self.0.lock().entry(hash.to_owned()) {
            hash_map::Entry::Vacant(queue) => {
                queue.insert(VecDeque::new());
                Ok(Counting { uses: self.clone(), hash: hash.to_owned(), armed: true })
            }
            hash_map::Entry::Occupied(mut queue) => {
                let (sender, turn) = oneshot::channel();
                queue.get_mut().push_back(sender);
                Err(turn)
            }
        }
    }
}

/// The turn to count a token's uses. It is handed on when it ends, also when its request goes away.
struct Counting {
    uses: Uses,
    hash: String,
    armed: bool,
}

impl Counting {
    /// All that wait now, without those that went away.
    fn others(&self) -> Vec<oneshot::Sender<Turn>> {
        let waiting = self.uses.0.lock().get_mut(&self.hash).map(std::mem::take).unwrap_or_default();
        waiting.into_iter().filter(|other| !other.is_closed()).collect()
    }

    /// The next that waits; when there is none, nobody counts this token's uses any more.
    fn next(&self) -> Option<oneshot::Sender<Turn>> {
        let mut all = self.uses.0.lock();
        let next = all.get_mut(&self.hash)?.pop_front();
        if next.is_none() {
            all.remove(&self.hash);
        }
        next
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        while self.armed
            && let Some(next) = self.next()
        {
            let turn = Self { uses: self.uses.clone(), hash: self.hash.clone(), armed: true };
            match next.send(Turn::Count(turn)) {
                Err(Turn::Count(mut refused)) => refused.armed = false,
                _ => return,
            }
        }
    }
}

impl TokenStore {
    /// Counts one use of a token whose uses are limited; durable when it answers. After the last use the token is dead for
    /// every other request; the caller ends it with [`TokenStore::finish_use`] when the request is done.
    pub async fn count_use(&self, entry: &Arc<TokenEntry>) -> Result<(), Failure> {
        if entry.num_uses == 0 {
            return Ok(());
        }
        let counting = match self.uses.queue(&entry.hash) {
            Ok(counting) => counting,
            Err(turn) => match turn.await {
                Ok(Turn::Counted(result)) => return result,
                Ok(Turn::Count(counting)) => counting,
                Err(_gone) => return Err(busy()),
            },
        };
        let others = counting.others();
        match self.count_uses(&entry.hash, 1 + others.len()).await {
            Ok(counted) => {
                for (before, other) in others.into_iter().enumerate() {
                    // Whoever does not listen any more has gone away.
                    let _ = other.send(Turn::Counted(if before + 1 < counted { Ok(()) } else { Err(Failure::bad_token()) }));
                }
                if counted > 0 { Ok(()) } else { Err(Failure::bad_token()) }
            }
            Err(failure) => {
                for other in others {
                    let _ = other.send(Turn::Counted(Err(Failure::plain(failure.kind(), failure.text()))));
                }
                Err(failure)
            }
        }
    }

    /// Takes up to `wanted` uses in one commit, and tells how many there were.
    async fn count_uses(&self, hash: &str, wanted: usize) -> Result<usize, Failure> {
        for _ in 0..ATTEMPTS {
            let Some(stored) = self.load(hash)? else { return Ok(0) };
            let now = self.now();
            if !is_usable(&stored.entry, now) {
                return Ok(0);
            }
            let left = usize::try_from(stored.entry.num_uses).unwrap_or(0);
            let counted = wanted.min(left);
            let mut used = TokenEntry::clone(&stored.entry);
            used.num_uses -= i64::try_from(counted).map_err(Failure::internal)?;
            if used.num_uses == 0 {
                used.num_uses = -1;
                let end = now.saturating_add(LAST_REQUEST);
                used.expires_at = Some(stored.entry.expires_at.map_or(end, |known| known.min(end)));
            }
            if self.replace(&stored, used).await? {
                return Ok(counted);
            }
        }
        Err(busy())
    }

    /// Ends a token whose last use was counted by [`TokenStore::count_use`], with all it kept.
    pub async fn finish_use(&self, entry: &Arc<TokenEntry>) -> Result<(), Failure> {
        if entry.num_uses != 0 && self.load(&entry.hash)?.is_some_and(|stored| stored.entry.num_uses < 0) {
            self.revoke_tree(&entry.hash).await?;
        }
        Ok(())
    }

    /// Tokens whose uses are being counted.
    #[cfg(test)]
    pub(super) fn counting(&self) -> usize {
        self.uses.0.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::{FutureExt, future::join_all};

    use super::*;
    use crate::{
        barrier::{Barrier, View, teststore::Store},
        core::{clock::Clock, tokens::TokenSpec},
        secret::SecretBytes,
        storage::{self, CommitFuture, Record, Storage, StorageError, Txn},
    };

    /// A store whose commits take a while, as those to a disk do.
    struct Slow(Store, Arc<AtomicUsize>);

    impl Storage for Slow {
        fn get(&self, key: &str) -> Result<Option<Record>, StorageError> {
            self.0.get(key)
        }

        fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, StorageError> {
            self.0.list(prefix, after, limit)
        }

        fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, Record)>, StorageError> {
            self.0.scan(prefix, after, limit)
        }

        fn commit(&self, txn: Txn) -> CommitFuture {
            self.1.fetch_add(1, Ordering::Relaxed);
            let commit = self.0.commit(txn);
            Box::pin(async {
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                commit.await
            })
        }
    }

    async fn token(num_uses: i64) -> (Arc<TokenStore>, Arc<TokenEntry>, Arc<AtomicUsize>) {
        let commits = Arc::<AtomicUsize>::default();
        let barrier = Arc::new(Barrier::new(Arc::new(Slow(Store::default(), Arc::clone(&commits)))));
        let clock = Clock::movable();
        let root = SecretBytes::new(vec![1; 32]);
        barrier.initialize(&root, storage::Txn::new(), crate::barrier::Txn::new(), clock.now()).await.unwrap();
        let view = |prefix: &str| View::new(Arc::clone(&barrier), prefix).unwrap();
        let store = TokenStore::open(view("sys/token"), view("cubbyhole"), clock).await.unwrap();
        let spec = TokenSpec { num_uses, policies: vec!["root".into()], ..TokenSpec::default() };
        let token = store.issue(spec).await.unwrap().client_token;
        let entry = store.authenticate(&token, None).await.unwrap();
        (store, entry, commits)
    }

    fn left(store: &TokenStore, entry: &TokenEntry) -> i64 {
        store.stored(&entry.hash).unwrap().unwrap().num_uses
    }

    #[tokio::test]
    async fn many_may_use_a_token_at_once_and_share_commits() {
        let (store, entry, commits) = token(5000).await;
        let before = commits.load(Ordering::Relaxed);
        let uses = join_all((0..1000).map(|_| store.count_use(&entry))).await;
        assert_eq!(uses.iter().filter(|one| one.is_err()).count(), 0);
        assert_eq!(left(&store, &entry), 4000);
        assert_eq!(commits.load(Ordering::Relaxed) - before, 2, "the first, and all that waited for it");
        assert_eq!(store.counting(), 0);
    }

    #[tokio::test]
    async fn of_many_at_once_only_as_many_are_let_in_as_there_are_uses() {
        let (store, entry, _) = token(7).await;
        let uses = join_all((0..20).map(|_| store.count_use(&entry))).await;
        assert_eq!(uses.iter().take_while(|one| one.is_ok()).count(), 7);
        assert_eq!(uses.iter().filter(|one| one.is_ok()).count(), 7);
        assert_eq!(left(&store, &entry), -1);
        assert_eq!(store.counting(), 0);
    }

    #[tokio::test]
    async fn requests_that_go_away_hold_up_no_others() {
        let (store, entry, _) = token(10).await;
        let mut uses: Vec<_> = (0..7).map(|_| Box::pin(store.count_use(&entry))).collect();
        for one in &mut uses {
            assert!(one.now_or_never().is_none(), "the first has the turn, the others wait");
        }
        drop(uses.remove(1));
        // The turn goes to the third, which goes away with it.
        drop(uses.remove(0));
        drop(uses.remove(0));
        assert!(join_all(uses).await.iter().all(Result::is_ok));
        // The commit of the first was on its way.
        assert!([5, 6].contains(&left(&store, &entry)), "{}", left(&store, &entry));
        assert_eq!(store.counting(), 0);
    }
}
