//! What a backup needs and the configured HSMs do not have, for a restore without a server.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::backup::{Header, Needs, some_of};
use crate::config::Config;
use crate::hsm::{Client, Hsm, KeyId, VolatilePinMemory};
use crate::startup;

/// How long an HSM may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the backup would not open with the configured HSMs, or what would be lost for good; `None` when all is there.
pub(super) fn missing(config: &Config, header: &Header) -> Option<String> {
    let needs = &header.needs;
    if needs.hsms.is_empty() {
        return None;
    }
    if !config.seals.iter().any(|seal| !seal.disabled && is_of(needs, &seal.key_label)) {
        return Some(format!(
            "the backup opens with {}; the configuration has no seal \"pkcs11\" stanza with that key_label, so only shares would open it. \
             Add the stanza, or restore with -force",
            needs.sentence()
        ));
    }
    judged(needs, &Held::ask(config, needs))
}

fn judged(needs: &Needs, held: &Held) -> Option<String> {
    let unasked = match held.unasked.as_slice() {
        [] => String::new(),
        unasked => format!(
            " Not every HSM could be asked ({}); VAULT_HSM_PIN gives the PIN where its file is out of reach.",
            unasked.join("; ")
        ),
    };
    if !needs.hsms.iter().any(|need| held.objects.contains(&need.seal_key)) {
        return Some(format!(
            "the backup opens with {}; no HSM that answers here holds its seal key, so only shares would open it.{unasked} Restore with \
             -force all the same",
            needs.sentence()
        ));
    }
    let lost = needs.lost_without(&held.objects);
    (!lost.is_empty()).then(|| {
        format!(
            "these keys of the backup live in an HSM alone, and no HSM that answers here holds them: {}. Without that HSM what they \
             encrypted is lost.{unasked} Restore with -force all the same",
            some_of(&lost)
        )
    })
}

fn is_of(needs: &Needs, key_label: &str) -> bool {
    needs.hsms.iter().any(|need| need.key_label == key_label)
}

/// The cluster's objects on the configured HSMs.
#[derive(Default)]
struct Held {
    objects: HashSet<KeyId>,
    /// HSMs that do not answer, and why.
    unasked: Vec<String>,
}

impl Held {
    fn ask(config: &Config, needs: &Needs) -> Self {
        let mut held = Self::default();
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                held.unasked.push(error.to_string());
                return held;
            }
        };
        for stanza in config.seals.iter().filter(|seal| !seal.disabled && is_of(needs, &seal.key_label)) {
            let asked = runtime.block_on(async {
                let client = Client::start(startup::hsm::config(stanza), Arc::new(VolatilePinMemory::default()));
                let found = async {
                    let ready = tokio::time::timeout(PATIENCE, client.ready()).await;
                    ready.map_err(|_elapsed| "it does not answer".to_owned())?.map_err(|error| error.to_string())?;
                    client.find(&format!("sos/{}/", stanza.key_label)).await.map_err(|error| error.to_string())
                };
                let found = found.await;
                client.close().await;
                found
            });
            match asked {
                Ok(found) => held.objects.extend(found.into_iter().filter_map(|object| object.id)),
                Err(why) => held.unasked.push(format!("{}: {why}", stanza.name)),
            }
        }
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::{HsmNeed, HsmOnlyNeed};

    #[test]
    fn seal_keys_decide_first_and_then_keys_that_only_an_hsm_has() {
        let id = |byte| KeyId([byte; 16]);
        let seal = |byte| HsmNeed { key_label: "production".into(), seal_key: id(byte) };
        let mut needs = Needs { hsms: vec![seal(1), seal(2)], threshold: 2, shares: 3, ..Needs::default() };
        let held = |ids: &[u8], unasked: &[&str]| Held {
            objects: ids.iter().map(|byte| id(*byte)).collect(),
            unasked: unasked.iter().map(|text| (*text).to_owned()).collect(),
        };
        assert_eq!(judged(&needs, &held(&[2], &["a: it does not answer"])), None, "one HSM of two is enough");
        let why = judged(&needs, &held(&[3], &[])).unwrap();
        assert!(why.contains("holds its seal key, so only shares would open it. Restore with"), "{why}");
        let why = judged(&needs, &held(&[], &["a: no PIN"])).unwrap();
        assert!(why.contains("could be asked (a: no PIN); VAULT_HSM_PIN"), "{why}");
        needs.hsm_only = vec![HsmOnlyNeed { key: "transit/stays v1".into(), object: id(9) }];
        let why = judged(&needs, &held(&[1], &[])).unwrap();
        assert!(why.contains("holds them: transit/stays v1."), "{why}");
        assert_eq!(judged(&needs, &held(&[1, 9], &[])), None);
    }
}
