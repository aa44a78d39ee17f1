use super::*;
use crate::barrier::teststore::Store;
use crate::hsm::fake::FakeHsm;
use crate::hsm::{DownReason, KeyKind};
use crate::seal::wire::InitRequest;
use crate::seal::{Seal, SealSettings};
use async_trait::async_trait;
use parking_lot::Mutex;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

struct World {
    store: Arc<Store>,
    hsm: Option<Arc<FakeHsm>>,
    seal: Seal,
    zones: Zones,
}

async fn world(with_hsm: bool) -> World {
    let store = Arc::new(Store::default());
    let hsm = with_hsm.then(FakeHsm::new);
    let request = if with_hsm {
        InitRequest { recovery_shares: 1, recovery_threshold: 1, ..InitRequest::default() }
    } else {
        InitRequest { secret_shares: 1, secret_threshold: 1, ..InitRequest::default() }
    };
    let (seal, zones) = parts(&store, &hsm);
    let made = seal.init(request, NOW).await.unwrap();
    if let Some(key) = made.keys.first() {
        let key = crate::secret::SecretString::new(key.clone());
        seal.unseal(crate::seal::wire::UnsealRequest { key, ..Default::default() }).await.unwrap();
    }
    zones.unsealed(&[], NOW).await.unwrap();
    World { store, hsm, seal, zones }
}

fn parts(store: &Arc<Store>, hsm: &Option<Arc<FakeHsm>>) -> (Seal, Zones) {
    let barrier = Arc::new(Barrier::new(store.clone()));
    let hsm = hsm.clone().map(|hsm| hsm as Arc<dyn Hsm>);
    let settings = SealSettings { key_label: "test".into(), ..SealSettings::default() };
    let zones = Zones::new(barrier.clone(), hsm.clone(), "test");
    (Seal::new(barrier, hsm, settings), zones)
}

impl World {
    /// A fresh process over the same store and token.
    async fn restart(&mut self) {
        self.store.come_back();
        let hsm = self.hsm.clone().unwrap();
        hsm.come_back();
        (self.seal, self.zones) = parts(&self.store, &self.hsm);
        assert_eq!(self.seal.auto_unseal().await, crate::seal::AutoUnseal::Unsealed);
        self.zones.unsealed(&[], NOW).await.unwrap();
    }

    fn hsm(&self) -> &FakeHsm {
        self.hsm.as_ref().unwrap()
    }
}

#[tokio::test]
async fn material_opens_only_in_its_place_and_no_data_key_is_kept() {
    for with_hsm in [true, false] {
        let w = world(with_hsm).await;
        let master = w.zones.current("default").unwrap();
        assert_eq!(master.place, if with_hsm { Place::Hsm } else { Place::Software });
        let secret = SecretBytes::random(48);
        let wrapped = w.zones.wrap(&master, b"transit/k/v1", &secret).await.unwrap();
        assert!(w.zones.unwrap("default", &wrapped, b"transit/k/v1").await.unwrap().same_as(secret.expose()));
        assert!(matches!(w.zones.unwrap("default", &wrapped, b"transit/k/v2").await, Err(ZoneError::Material)));
        w.zones.forget();
        assert!(w.zones.unwrap("default", &wrapped, b"transit/k/v1").await.unwrap().same_as(secret.expose()));
        if with_hsm {
            w.hsm().go_down(DownReason::TokenMissing);
            let away = w.zones.unwrap("default", &wrapped, b"transit/k/v1").await;
            assert!(matches!(away, Err(ZoneError::HsmUnavailable { .. })), "opening it takes the HSM each time");
        } else {
            assert!(matches!(w.zones.generate_wrapped(&master, KeyKind::Aes256).await, Err(ZoneError::SoftwareZone(_))));
        }
    }
}

#[tokio::test]
async fn names_are_checked_and_unknown_zones_said() {
    let w = world(false).await;
    for bad in ["", "a/b", "../x", ".x", "a b", "ü", &"x".repeat(65)] {
        assert!(matches!(w.zones.create(bad, Duration::ZERO, NOW).await, Err(ZoneError::Name(_))), "{bad}");
        assert!(matches!(w.zones.current(bad), Err(ZoneError::Name(_))), "{bad}");
    }
    assert!(matches!(w.zones.current("tk1a"), Err(ZoneError::Unknown(_))));
    w.zones.create("tk1a", Duration::ZERO, NOW).await.unwrap();
    assert!(matches!(w.zones.create("tk1a", Duration::ZERO, NOW).await, Err(ZoneError::Exists(_))));
    assert_eq!(w.zones.list().unwrap(), ["default", "tk1a"]);
}

#[tokio::test]
async fn zones_of_the_configuration_are_made_and_follow_it() {
    let w = world(true).await;
    let day = Duration::DAY;
    w.zones.unsealed(&[("tk1a".into(), 30 * day), ("default".into(), day)], NOW).await.unwrap();
    assert_eq!(w.zones.read("tk1a").unwrap().zone.rotation_period(), 30 * day);
    assert_eq!(w.zones.read("default").unwrap().zone.rotation_period(), day);
    w.zones.unsealed(&[("tk1a".into(), day)], NOW).await.unwrap();
    assert_eq!(w.zones.read("tk1a").unwrap().zone.rotation_period(), day);
    assert!(w.zones.tick(NOW + Duration::HOUR).await.unwrap().is_empty());
    assert_eq!(w.zones.tick(NOW + day).await.unwrap(), ["default", "tk1a"]);
    assert!(w.zones.tick(NOW + day).await.unwrap().is_empty());
    assert_eq!(w.zones.current("tk1a").unwrap().version, 2);
}

#[tokio::test]
async fn old_versions_stay_usable_after_rotation_and_rewrap_moves_to_the_new() {
    for with_hsm in [true, false] {
        let w = world(with_hsm).await;
        let old = w.zones.current("default").unwrap();
        let secret = SecretBytes::random(32);
        let wrapped = w.zones.wrap(&old, b"a", &secret).await.unwrap();
        assert_eq!(w.zones.rotate("default", NOW).await.unwrap(), 2);
        let new = w.zones.current("default").unwrap();
        w.zones.forget();
        assert!(w.zones.unwrap("default", &wrapped, b"a").await.unwrap().same_as(secret.expose()));
        let moved = w.zones.rewrap_material(&new, &wrapped).await.unwrap();
        assert_eq!(moved.data_key.wrapped_by, new.id);
        w.zones.forget();
        assert!(w.zones.unwrap("default", &moved, b"a").await.unwrap().same_as(secret.expose()));
        if with_hsm {
            let key = w.zones.generate_wrapped(&old, KeyKind::Aes256).await.unwrap().wrapped.unwrap();
            assert_eq!(w.zones.rewrap_key(&new, &key).await.unwrap().wrapped_by, new.id);
        }
    }
}

#[tokio::test]
async fn material_of_another_zone_opens_and_moves() {
    for with_hsm in [true, false] {
        let w = world(with_hsm).await;
        w.zones.create("other", Duration::ZERO, NOW).await.unwrap();
        let secret = SecretBytes::random(32);
        let wrapped = w.zones.wrap(&w.zones.current("other").unwrap(), b"a", &secret).await.unwrap();
        w.zones.forget();
        assert!(w.zones.unwrap("default", &wrapped, b"a").await.unwrap().same_as(secret.expose()));
        let moved = w.zones.rewrap_material(&w.zones.current("default").unwrap(), &wrapped).await.unwrap();
        w.zones.forget();
        assert!(w.zones.unwrap("default", &moved, b"a").await.unwrap().same_as(secret.expose()));
    }
}

#[tokio::test]
async fn another_key_under_the_same_id_is_noticed() {
    let w = world(true).await;
    let master = w.zones.current("default").unwrap();
    w.zones.forget();
    w.hsm().wipe();
    let missing = w.zones.wrap(&master, b"", &SecretBytes::random(32)).await;
    assert!(matches!(missing, Err(ZoneError::WrongKey { found: "the object is missing", .. })));
    w.hsm().import_master_key("x", master.id, &SecretBytes::random(32)).await.unwrap();
    let other = w.zones.wrap(&master, b"", &SecretBytes::random(32)).await;
    assert!(matches!(other, Err(ZoneError::WrongKey { found: "another key has its CKA_ID", .. })));
}

#[tokio::test]
async fn without_the_hsm_its_operations_say_why() {
    let w = world(true).await;
    w.hsm().go_down(DownReason::DeviceError);
    let refused =
        |error: ZoneError| assert!(matches!(error, ZoneError::HsmUnavailable { reason: "hsm-device-error" }), "{error}");
    refused(w.zones.create("z", Duration::ZERO, NOW).await.unwrap_err());
    refused(w.zones.rotate("default", NOW).await.unwrap_err());
    let master = w.zones.current("default").unwrap();
    refused(w.zones.wrap(&master, b"", &SecretBytes::random(1)).await.unwrap_err());
    assert_eq!(w.zones.list().unwrap(), ["default"]);
    w.zones.unsealed(&[("tk1a".into(), Duration::ZERO)], NOW).await.unwrap();
}

/// Creation and rotation, killed at every commit and every call of the HSM: afterwards the zone is as before or as after,
/// works, and the token holds exactly the keys that the store names.
#[tokio::test]
async fn zone_changes_can_be_killed_anywhere() {
    let mut w = world(true).await;
    for effect in [false, true] {
        for (what, points) in [("commit", 3), ("hsm", 2)] {
            for nth in 0..points {
                for name in ["made", "default"] {
                    let zone = if name == "made" { format!("made-{what}-{nth}-{effect}") } else { name.to_owned() };
                    match what {
                        "commit" => w.store.die_at(nth, effect),
                        _ => w.hsm().die_at(nth, effect),
                    }
                    let outcome = match name {
                        "made" => w.zones.create(&zone, Duration::ZERO, NOW).await.map(|()| 1),
                        _ => w.zones.rotate(&zone, NOW).await,
                    };
                    w.restart().await;
                    if outcome.is_ok() || w.zones.exists(&zone).unwrap() {
                        let master = w.zones.current(&zone).unwrap();
                        w.zones.wrap(&master, b"", &SecretBytes::random(32)).await.unwrap();
                    }
                    assert_eq!(w.hsm().labels().len(), 1 + named_keys(&w.zones), "{what} {nth} {effect} {zone}");
                    assert!(!w.store.keys().iter().any(|key| key.contains("intent")), "{what} {nth} {effect} {zone}");
                }
            }
        }
    }
}

fn named_keys(zones: &Zones) -> usize {
    zones.list().unwrap().iter().map(|zone| zones.read(zone).unwrap().zone.versions.len()).sum()
}

/// Five records, of which the first `moved` are under the current key.
struct Records(Mutex<usize>, usize);

#[async_trait]
impl Rewrap for Records {
    async fn step(&self, _current: &MasterKeyRef, after: Option<&str>, _limit: usize) -> Result<RewrapStep, String> {
        let at: usize = after.map_or(0, |after| after.parse().unwrap());
        if at == self.1 {
            return Err("interrupted".into());
        }
        *self.0.lock() += 1;
        Ok(RewrapStep { rewrapped: 1, seen: 1, next: (at < 4).then(|| (at + 1).to_string()), ..RewrapStep::default() })
    }
}

#[tokio::test]
async fn rewrapping_goes_on_where_it_stopped() {
    let w = world(false).await;
    w.zones.rotate("default", NOW).await.unwrap();
    assert_eq!(w.zones.read("default").unwrap().rewrap, None);
    assert!(matches!(w.zones.rewrap("default", &Records(Mutex::new(0), 3)).await, Err(ZoneError::Rewrap(_))));
    let half = w.zones.read("default").unwrap().rewrap.unwrap();
    assert_eq!((half.rewrapped, half.finished, half.target_version), (3, false, 2));
    let rest = Records(Mutex::new(0), 99);
    let done = w.zones.rewrap("default", &rest).await.unwrap();
    assert_eq!((done.rewrapped, done.finished, *rest.0.lock()), (5, true, 2));
    w.zones.rewrap("default", &rest).await.unwrap();
    assert_eq!(*rest.0.lock(), 2, "nothing more to do");
    w.zones.rotate("default", NOW).await.unwrap();
    assert_eq!(w.zones.rewrap("default", &rest).await.unwrap().target_version, 3);
}
