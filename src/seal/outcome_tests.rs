//! A store that fails at the commit which decides: what is answered is what took effect, and no share is lost.

use time::OffsetDateTime;

use super::wire::*;
use super::*;
use crate::barrier::teststore::Store;
use crate::hsm::fake::FakeHsm;
use crate::zones::Zones;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
/// More commits than the seal has patience for.
const FOR_LONG: usize = 1000;

struct World {
    store: Arc<Store>,
    hsm: Option<Arc<FakeHsm>>,
}

impl World {
    fn new(hsm: bool) -> Self {
        Self { store: Arc::default(), hsm: hsm.then(FakeHsm::new) }
    }

    /// A fresh process over the same store and token.
    fn start(&self) -> Run {
        self.store.come_back();
        let barrier = Arc::new(Barrier::new(self.store.clone()));
        let hsm = self.hsm.clone().map(|hsm| hsm as Arc<dyn Hsm>);
        let zones = Zones::new(barrier.clone(), hsm.clone(), "test");
        let settings = SealSettings { key_label: "test".into(), escrow: false, ..SealSettings::default() };
        Run { seal: Seal::new(barrier, hsm, settings), zones }
    }

    async fn initialised(&self) -> (Run, String) {
        let run = self.start();
        let made = run.init().await.unwrap();
        let share = made.keys.iter().chain(&made.recovery_keys).next().unwrap().clone();
        if run.seal.is_sealed() {
            assert!(run.unseals(&share).await);
        }
        (run, share)
    }

    /// Whether the share opens the store, without any HSM.
    async fn opens(&self, share: &str) -> bool {
        World { store: self.store.clone(), hsm: None }.start().unseals(share).await
    }
}

struct Run {
    seal: Seal,
    zones: Zones,
}

impl Run {
    async fn init(&self) -> Result<InitResponse, SealError> {
        self.seal
            .init(
                match self.seal.configured_type() {
                    SealType::Shamir => InitRequest { secret_shares: 1, secret_threshold: 1, ..InitRequest::default() },
                    SealType::Pkcs11 => InitRequest { recovery_shares: 1, recovery_threshold: 1, ..InitRequest::default() },
                },
                NOW,
            )
            .await
    }

    async fn unseals(&self, share: &str) -> bool {
        let key = SecretString::new(share.to_owned());
        let status = self.seal.unseal(UnsealRequest { key, ..UnsealRequest::default() }).await;
        status.is_ok_and(|status| !status.sealed)
    }

    /// The new share, and the warnings that came with it.
    async fn rekey(&self, old: &str) -> Result<(String, Vec<String>), SealError> {
        let kind = RekeyKind::Barrier;
        self.seal.rekey_cancel(kind)?;
        let request = RekeyRequest { secret_shares: 1, secret_threshold: 1, ..RekeyRequest::default() };
        let nonce = self.seal.rekey_init(kind, &request)?.nonce;
        let key = SecretString::new(old.to_owned());
        match self.seal.rekey_update(kind, ShareRequest { nonce, key }).await? {
            RekeyUpdate::Complete(done) => Ok((done.keys[0].clone(), done.warnings.clone())),
            RekeyUpdate::Progress(_) => panic!("one share is enough"),
        }
    }

    /// All that needs the root key.
    async fn goes_on(&self) {
        self.seal.barrier().rotate(NOW).await.unwrap();
        self.zones.rotate("default", NOW).await.unwrap();
    }
}

#[tokio::test]
async fn a_rekey_gives_its_shares_when_it_landed_and_keeps_the_old_ones_when_not() {
    for (hsm, away) in [(false, false), (true, false), (true, true)] {
        for (landed, closed_for) in [(false, 0), (true, 0), (false, 3), (true, 3)] {
            let world = World::new(hsm);
            let (run, old) = world.initialised().await;
            if away {
                // The root key stays as it is: another commit decides.
                world.hsm.as_ref().unwrap().go_down(DownReason::DeviceError);
            }
            world.store.fail_at(0, landed, closed_for);
            let answer = run.rekey(&old).await;
            assert!(world.store.has_recovered());
            if away {
                world.hsm.as_ref().unwrap().come_back();
            }
            run.goes_on().await;
            let good = match answer {
                Ok((new, warnings)) => {
                    assert!(landed && warnings.len() == usize::from(away), "{warnings:?}");
                    assert!(world.opens(&new).await && !world.opens(&old).await);
                    new
                }
                Err(error) => {
                    assert!(!landed && matches!(error, SealError::Barrier(BarrierError::NotWritten(_))), "{error:?}");
                    assert!(world.opens(&old).await);
                    old
                }
            };
            // A later rekey is as good as ever, in the same process and in the next.
            let (newer, _) = run.rekey(&good).await.unwrap();
            assert!(world.opens(&newer).await && !world.opens(&good).await);
            if hsm {
                assert_eq!(world.start().seal.auto_unseal().await, AutoUnseal::Unsealed);
            }
        }
    }
}

#[tokio::test]
async fn while_nobody_knows_the_operator_gets_the_new_shares_and_keeps_the_old() {
    for (hsm, landed) in [(false, false), (false, true), (true, false), (true, true)] {
        let world = World::new(hsm);
        let (run, old) = world.initialised().await;
        world.store.fail_at(0, landed, FOR_LONG);
        let (new, warnings) = run.rekey(&old).await.unwrap();
        assert!(warnings.len() == 1 && warnings[0].contains("keep the old shares"), "{warnings:?}");
        world.store.come_back();
        run.goes_on().await;
        let (good, bad) = if landed { (&new, &old) } else { (&old, &new) };
        assert!(world.opens(good).await && !world.opens(bad).await);
        assert!(run.rekey(bad).await.is_err());
        let (newest, warnings) = run.rekey(good).await.unwrap();
        assert!(warnings.is_empty() && world.opens(&newest).await);
    }
}

#[tokio::test]
async fn an_init_gives_its_shares_when_it_landed_and_leaves_nothing_when_not() {
    for hsm in [false, true] {
        for (landed, closed_for) in [(false, 0), (true, 0), (false, 3), (true, 3)] {
            let world = World::new(hsm);
            let run = world.start();
            // With an HSM the first commit is that of the intent.
            world.store.fail_at(usize::from(hsm), landed, closed_for);
            let made = run.init().await;
            assert!(world.store.has_recovered());
            let made = match made {
                Ok(made) => {
                    assert!(landed);
                    made
                }
                Err(error) => {
                    assert!(!landed && matches!(error, SealError::Barrier(BarrierError::NotWritten(_))), "{error:?}");
                    assert!(world.store.keys().is_empty(), "{:?}", world.store.keys());
                    assert!(world.hsm.iter().all(|hsm| hsm.labels().is_empty()));
                    run.init().await.unwrap()
                }
            };
            assert!(world.opens(made.keys.iter().chain(&made.recovery_keys).next().unwrap()).await);
            if hsm {
                assert_eq!(world.start().seal.auto_unseal().await, AutoUnseal::Unsealed);
                assert_eq!(world.hsm.as_ref().unwrap().labels().len(), 2);
            }
        }
    }
}

#[tokio::test]
async fn an_init_of_unknown_end_takes_nothing_from_the_hsm_that_the_cluster_needs() {
    for landed in [false, true] {
        let world = World::new(true);
        let run = world.start();
        world.store.fail_at(1, landed, FOR_LONG);
        assert!(run.init().await.is_err());
        // As long as the store is away nothing is decided.
        assert!(run.init().await.is_err());
        assert_eq!(world.hsm.as_ref().unwrap().labels().len(), 2);
        world.store.come_back();
        match landed {
            true => assert_eq!(world.start().seal.auto_unseal().await, AutoUnseal::Unsealed),
            false => {
                run.init().await.unwrap();
                assert_eq!(world.hsm.as_ref().unwrap().labels().len(), 2);
            }
        }
    }
}

#[tokio::test]
async fn a_new_seal_key_counts_as_answered_and_the_one_that_counts_stays() {
    for (landed, closed_for) in [(false, 0), (true, 0), (false, 3), (true, 3), (false, FOR_LONG), (true, FOR_LONG)] {
        let world = World::new(true);
        let (run, _) = world.initialised().await;
        let labels = world.hsm.as_ref().unwrap().labels().len();
        world.store.fail_at(1, landed, closed_for);
        let answer = run.seal.rewrap_hsm(&run.zones, "pkcs11").await;
        if closed_for == FOR_LONG {
            assert!(answer.is_err());
            run.seal.tick(&run.zones).await;
            assert_eq!(world.hsm.as_ref().unwrap().labels().len(), labels + 1, "nothing is destroyed while nobody knows");
        } else {
            assert_eq!(answer.is_ok(), landed, "{answer:?}");
        }
        world.store.come_back();
        run.seal.tick(&run.zones).await;
        assert_eq!(world.hsm.as_ref().unwrap().labels().len(), labels);
        let run = world.start();
        assert_eq!(run.seal.auto_unseal().await, AutoUnseal::Unsealed);
        run.goes_on().await;
    }
}

#[tokio::test]
async fn a_master_key_is_made_as_answered_and_one_that_may_count_stays() {
    for (landed, closed_for) in [(false, 0), (true, 0), (false, 3), (true, 3), (false, FOR_LONG), (true, FOR_LONG)] {
        let world = World::new(true);
        let (run, _) = world.initialised().await;
        // Intent, then the commit that counts.
        world.store.fail_at(1, landed, closed_for);
        let answer = run.zones.rotate("default", NOW).await;
        assert_eq!(answer.is_ok(), landed && closed_for < FOR_LONG, "{answer:?}");
        if closed_for == FOR_LONG {
            assert!(run.zones.settle().await.is_err());
            assert_eq!(world.hsm.as_ref().unwrap().labels().len(), 3, "nothing is destroyed while nobody knows");
        }
        world.store.come_back();
        run.zones.settle().await.unwrap();
        assert_eq!(world.hsm.as_ref().unwrap().labels().len(), if landed { 3 } else { 2 });
        assert_eq!(run.zones.current("default").unwrap().version, if landed { 2 } else { 1 });
        assert!(run.zones.intended().unwrap().is_empty());
        let wrapped = run.zones.wrap(&run.zones.current("default").unwrap(), b"", &SecretBytes::random(32)).await;
        wrapped.unwrap();
    }
}
