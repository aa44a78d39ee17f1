//! New shares while an HSM is away: the root key follows as soon as it can.

use super::members_tests::{Run, World};
use super::wire::*;
use super::*;
use crate::storage::Storage;

impl Run {
    /// New shares for old ones; the warnings of the last answer and two new shares.
    async fn rekey(&self, old: &[SecretString]) -> (Vec<String>, Vec<SecretString>) {
        let request = RekeyRequest { secret_shares: 3, secret_threshold: 2, ..RekeyRequest::default() };
        let nonce = self.seal.rekey_init(RekeyKind::Recovery, &request).unwrap().nonce;
        for share in old {
            let request = ShareRequest { nonce: nonce.clone(), key: share.duplicate() };
            if let RekeyUpdate::Complete(done) = self.seal.rekey_update(RekeyKind::Recovery, request).await.unwrap() {
                let shares = done.keys.iter().take(2).cloned().map(SecretString::new).collect();
                return (done.warnings.clone(), shares);
            }
        }
        panic!("the shares were not enough");
    }

    fn awaited(&self) -> Option<Vec<(String, &'static str)>> {
        let awaited = self.seal.awaited_for_renewal().unwrap()?;
        Some(awaited.into_iter().map(|hsm| (hsm.name, hsm.reason)).collect())
    }
}

impl World {
    /// Whether the seal record as it was before and the old shares open the store as it is now.
    async fn opens_with_old(&self, old_record: &[u8], shares: &[SecretString]) -> bool {
        let now = self.store.get(SEAL_PATH).unwrap().unwrap().value;
        let put = async |value: &[u8]| {
            let txn = crate::storage::Txn::new().put(SEAL_PATH, value.to_vec());
            self.store.commit(txn).await.unwrap();
        };
        put(old_record).await;
        let opened = self.unseal_by(shares).await;
        put(&now).await;
        opened
    }

    async fn unseal_by(&self, shares: &[SecretString]) -> bool {
        let run = self.start_with(None, true);
        let mut sealed = true;
        for share in shares {
            let request = UnsealRequest { key: share.duplicate(), ..UnsealRequest::default() };
            sealed = run.seal.unseal(request).await.map_or(true, |status| status.sealed);
        }
        !sealed
    }

    fn seal_bytes(&self) -> Vec<u8> {
        self.store.get(SEAL_PATH).unwrap().unwrap().value
    }
}

#[tokio::test]
async fn with_all_hsms_there_old_shares_open_nothing_at_once() {
    let w = World::new();
    let (run, old) = w.initialised(true).await;
    run.add("b", &old).await.unwrap();
    let before = w.seal_bytes();
    let (warnings, new) = run.rekey(&old).await;
    assert!(warnings.is_empty() && run.awaited().is_none(), "{warnings:?}");
    assert!(!w.opens_with_old(&before, &old).await);
    assert!(w.unseal_by(&new).await && !w.unseal_by(&old).await);
}

#[tokio::test]
async fn the_root_key_is_renewed_when_the_absent_hsm_is_back() {
    let w = World::new();
    let (run, old) = w.initialised(true).await;
    run.add("b", &old).await.unwrap();
    let material = run.wrapped().await;
    let before = w.seal_bytes();
    w.b.go_down(DownReason::TokenMissing);
    let (warnings, new) = run.rekey(&old).await;
    assert!(warnings.len() == 1 && warnings[0].contains("b (hsm-token-missing)"), "{warnings:?}");
    run.tick().await;
    assert_eq!(run.awaited(), Some(vec![("b".to_owned(), "hsm-token-missing")]));
    assert_eq!(run.pending("b").await, [("new root key".to_owned(), "by-itself")]);
    assert!(run.seal.list_hsms(&run.zones).await.unwrap().root_key_renewal_awaits.is_some());
    assert!(run.seal.warnings(&run.zones).unwrap()[0].contains("the shares before"));
    assert!(w.opens_with_old(&before, &old).await, "this is what the warning is about");

    // It is remembered over a restart, and the HSM that was away opens the root key by itself meanwhile.
    w.b.come_back();
    w.a.go_down(DownReason::DeviceError);
    let run = w.start().unsealed().await;
    run.tick().await;
    assert_eq!(run.awaited(), Some(vec![("a".to_owned(), "hsm-device-error")]));
    w.a.come_back();
    run.tick().await;
    assert_eq!(run.awaited(), None);
    assert!(run.pending("b").await.is_empty() && run.seal.warnings(&run.zones).unwrap().is_empty());
    assert!(!w.opens_with_old(&before, &old).await);
    assert!(w.unseal_by(&new).await && !w.unseal_by(&old).await);
    for away in [&w.a, &w.b] {
        away.go_down(DownReason::DeviceError);
        let run = w.start().unsealed().await;
        assert!(run.opens(&material).await);
        away.come_back();
    }
    // The shares do all that they did before, and are replaced once more.
    let run = w.start().unsealed().await;
    run.seal.remove_hsm(&run.zones, "b", false, &[]).await.unwrap();
    run.add("b", &new).await.unwrap();
    let before = w.seal_bytes();
    let (warnings, newest) = run.rekey(&new).await;
    assert!(warnings.is_empty());
    assert!(!w.opens_with_old(&before, &new).await && w.unseal_by(&newest).await);
}

#[tokio::test]
async fn removing_the_absent_hsm_renews_the_root_key() {
    let w = World::new();
    let (run, old) = w.initialised(true).await;
    run.add("b", &old).await.unwrap();
    let before = w.seal_bytes();
    w.b.go_down(DownReason::TokenMissing);
    let (_, new) = run.rekey(&old).await;
    run.seal.remove_hsm(&run.zones, "b", false, &[]).await.unwrap();
    assert_eq!(run.awaited(), None);
    assert!(!w.opens_with_old(&before, &old).await);
    assert!(w.unseal_by(&new).await);
    w.start().unsealed().await;
}

#[tokio::test]
async fn a_token_made_anew_is_awaited_until_it_is_rewrapped() {
    let w = World::new();
    let (run, old) = w.initialised(true).await;
    run.add("b", &old).await.unwrap();
    w.b.wipe();
    w.b.restart_worker();
    run.tick().await;
    let (warnings, _) = run.rekey(&old).await;
    assert!(warnings[0].contains("b (hsm-key-missing)"), "{warnings:?}");
    run.tick().await;
    assert_eq!(run.awaited(), Some(vec![("b".to_owned(), "hsm-key-missing")]));
    run.seal.rewrap_hsm(&run.zones, "b").await.unwrap();
    assert_eq!(run.awaited(), None);
}

#[tokio::test]
async fn an_hsm_without_a_stanza_is_awaited_and_a_disabled_one_is_not() {
    let w = World::new();
    let (run, old) = w.initialised(true).await;
    run.add("b", &old).await.unwrap();
    let alone = w.start_with(Some(Group::new(vec![World::member("a", &w.a)])), true).unsealed().await;
    let (warnings, new) = alone.rekey(&old).await;
    assert!(warnings[0].contains("b (not-configured)"), "{warnings:?}");
    let disabled = Member { disabled: true, ..World::member("b", &w.b) };
    let run = w.start_with(Some(Group::new(vec![World::member("a", &w.a), disabled])), true).unsealed().await;
    run.tick().await;
    assert_eq!(run.awaited(), None);
    w.a.go_down(DownReason::DeviceError);
    w.start().unsealed().await;
    assert!(w.unseal_by(&new).await);
}

/// Killed at every commit and at every call of either HSM: the shares and both HSMs always open the store.
#[tokio::test]
async fn the_renewal_can_be_killed_anywhere() {
    for (what, points) in [("commit", 2), ("a", 5), ("b", 5)] {
        for (nth, effect) in (0..points).flat_map(|nth| [(nth, false), (nth, true)]) {
            let place = format!("{what} {nth} effect {effect}");
            let w = World::new();
            let (run, old) = w.initialised(false).await;
            run.add("b", &[]).await.unwrap();
            w.b.go_down(DownReason::TokenMissing);
            let (_, new) = run.rekey(&old).await;
            w.b.come_back();
            match what {
                "commit" => w.store.die_at(nth, effect),
                "a" => w.a.die_at(nth, effect),
                _ => w.b.die_at(nth, effect),
            }
            run.seal.tick(&run.zones).await;
            w.a.come_back();
            w.b.come_back();
            for away in [&w.a, &w.b] {
                away.go_down(DownReason::DeviceError);
                w.start().unsealed().await;
                away.come_back();
            }
            assert!(w.unseal_by(&new).await, "{place}");
            let run = w.start().unsealed().await;
            run.tick().await;
            assert_eq!(run.awaited(), None, "{place}");
            assert!(w.unseal_by(&new).await && !w.unseal_by(&old).await, "{place}");
        }
    }
}
