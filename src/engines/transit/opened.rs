//! Opened versions in memory: bounded by their number, their bytes and their age, used or not.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use quick_cache::{Weighter, sync::Cache};
use tokio::sync::OnceCell;

use super::{
    alg::{
        aead::Cipher,
        asym::{PrivateKey, PublicKey},
        kdf::Kdf,
    },
    record::KeyUid,
    usage::Usage,
};
use crate::{
    hsm::{self, WrappedKey},
    secret::SecretBytes,
};

/// Opened versions held in memory per mount.
const MOST: u64 = 10_000;
/// Bytes of opened versions held in memory per mount: room for [`MOST`] keys of AES, and for some 2,500 of RSA-4096.
const MOST_BYTES: u64 = 16 << 20;
/// How long an opened version stays in memory, used or not.
pub const MAX_AGE: Duration = Duration::from_secs(15 * 60);

/// What libcrypto keeps of an elliptic key, in bytes, roughly.
const OF_ELLIPTIC: usize = 1024;
/// What libcrypto keeps beside the numbers of an RSA key, in bytes, roughly.
const OF_RSA: usize = 1536;

/// The key of an opened version.
pub enum LoadedKey {
    /// Ready to encrypt.
    Cipher(Cipher),
    /// A private key.
    Private(PrivateKey),
    /// Nothing but the version's HMAC key, or the public half.
    Nothing,
    /// The secret that contexts derive keys from.
    Derived(Kdf, SecretBytes),
    /// Wrapped, used inside the HSM.
    Wrapped(Box<WrappedKey>),
    /// On the token.
    Token(hsm::KeyId),
}

impl LoadedKey {
    /// Bytes beside the value itself, roughly: what libraries keep is not told by them.
    fn bytes(&self) -> usize {
        match self {
            LoadedKey::Cipher(_) | LoadedKey::Nothing | LoadedKey::Token(_) => 0,
            // n, d, p, q, their exponents and inverse are 4.5 lengths of the modulus; to reckon modulo n, p and q libcrypto
            // keeps two numbers of each, 4 lengths more.
            LoadedKey::Private(PrivateKey::Rsa(key)) => key.size() * 17 / 2 + OF_RSA,
            LoadedKey::Private(PrivateKey::Ec(_) | PrivateKey::Ed(_)) => OF_ELLIPTIC,
            LoadedKey::Derived(_, secret) => secret.len(),
            LoadedKey::Wrapped(wrapped) => size_of::<WrappedKey>() + wrapped.blob.len(),
        }
    }
}

/// An opened version.
pub struct Loaded {
    /// The key.
    pub key: LoadedKey,
    /// How nonces are made: 0 random, 1 by the caller, 2 and 3 from the plaintext.
    pub convergent_version: u8,
    /// Its count of encryptions.
    pub usage: Arc<Usage>,
    /// The public half of an asymmetric key.
    pub public: Option<PublicKey>,
    /// The HMAC key, opened when it is first needed.
    pub hmac_key: OnceCell<SecretBytes>,
    opened: Instant,
    /// Counted once: what a cache weighs must not change. An HMAC key that is opened later has 32 bytes.
    bytes: u64,
}

impl Loaded {
    /// A version that was opened now.
    pub fn new(
        key: LoadedKey,
        convergent_version: u8,
        usage: Arc<Usage>,
        public: Option<PublicKey>,
        hmac_key: OnceCell<SecretBytes>,
    ) -> Self {
        let of_public = match &public {
            None => 0,
            Some(PublicKey::Rsa(key)) => key.size() * 3 + OF_RSA,
            Some(PublicKey::Ec(_) | PublicKey::Ed(_)) => OF_ELLIPTIC,
        };
        let bytes = size_of::<Self>() + key.bytes() + of_public + hmac_key.get().map_or(32, SecretBytes::len);
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        Self { key, convergent_version, usage, public, hmac_key, opened: Instant::now(), bytes }
    }
}

/// A version of a key, and how often its material was written anew.
pub type LoadedId = (KeyUid, u32, u32);

/// Bytes, and no fewer than a version's share when there are as many as there may be: so one bound is both.
#[derive(Clone)]
struct Weight {
    least: u64,
}

impl Weighter<LoadedId, Arc<Loaded>> for Weight {
    fn weight(&self, _: &LoadedId, loaded: &Arc<Loaded>) -> u64 {
        loaded.bytes.max(self.least)
    }
}

/// The opened versions of a mount. Those in use by requests are counted only as long as they are in here.
pub struct OpenedVersions(Cache<LoadedId, Arc<Loaded>, Weight>);

impl Default for OpenedVersions {
    fn default() -> Self {
        Self::bounded(MOST, MOST_BYTES)
    }
}

impl OpenedVersions {
    /// At most so many versions and so many bytes.
    fn bounded(most: u64, bytes: u64) -> Self {
        let least = bytes.div_ceil(most.max(1));
        Self(Cache::with_weighter(usize::try_from(most).unwrap_or(usize::MAX), bytes, Weight { least }))
    }

    /// A version that is not too old.
    pub fn get(&self, id: &LoadedId) -> Option<Arc<Loaded>> {
        self.0.get(id).filter(|loaded| loaded.opened.elapsed() < MAX_AGE)
    }

    /// Keeps a version; others go when there are too many or they take too much.
    pub fn insert(&self, id: LoadedId, loaded: Arc<Loaded>) {
        self.0.insert(id, loaded);
    }

    /// Forgets a version.
    pub fn remove(&self, id: &LoadedId) {
        self.0.remove(id);
    }

    /// Forgets the versions that were opened `age` ago or earlier; requests under way finish with theirs.
    pub fn forget_older(&self, age: Duration) {
        self.0.retain(|_, loaded| loaded.opened.elapsed() < age);
    }

    /// Forgets all versions of a key.
    pub fn forget_key(&self, uid: KeyUid) {
        self.0.retain(|(of, ..), _| *of != uid);
    }

    /// How many there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::alg::KeyType;
    use super::*;

    fn usage() -> Arc<Usage> {
        Arc::new(Usage::new(KeyUid::random(), 1))
    }

    fn with_hmac_key(bytes: usize) -> Arc<Loaded> {
        let key = OnceCell::new_with(Some(SecretBytes::random(bytes)));
        Arc::new(Loaded::new(LoadedKey::Nothing, 0, usage(), None, key))
    }

    fn kept(cache: &OpenedVersions) -> u64 {
        cache.0.iter().map(|(_, loaded)| loaded.bytes).sum()
    }

    #[test]
    fn large_versions_push_others_out_before_their_number_does() {
        let bytes = 1 << 20;
        let cache = OpenedVersions::bounded(10_000, bytes);
        let uid = KeyUid::random();
        let weak: Vec<_> = (0..1000)
            .map(|version| {
                let loaded = with_hmac_key(8192);
                let weak = Arc::downgrade(&loaded);
                cache.insert((uid, version, 0), loaded);
                weak
            })
            .collect();
        assert!(kept(&cache) <= bytes, "{} bytes are kept", kept(&cache));
        assert!((64..=128).contains(&cache.len()), "{} are kept", cache.len());
        let alive = weak.iter().filter(|weak| weak.strong_count() > 0).count();
        assert_eq!(alive, cache.len(), "what was pushed out is gone, and with it its secret");
    }

    #[test]
    fn small_versions_are_bounded_by_their_number() {
        let cache = OpenedVersions::bounded(100, 1 << 30);
        let uid = KeyUid::random();
        for version in 0..1000 {
            cache.insert((uid, version, 0), with_hmac_key(32));
        }
        assert!((50..=100).contains(&cache.len()), "{} are kept", cache.len());
        cache.forget_older(Duration::ZERO);
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn what_a_version_takes_grows_with_its_key() {
        let bytes = |key: LoadedKey| Loaded::new(key, 0, usage(), None, OnceCell::new()).bytes;
        let rsa = PrivateKey::generate(KeyType::Rsa2048).unwrap();
        let elliptic = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let least = bytes(LoadedKey::Nothing);
        let (rsa, elliptic) = (bytes(LoadedKey::Private(rsa)), bytes(LoadedKey::Private(elliptic)));
        assert!(least < elliptic && elliptic < rsa, "{least} {elliptic} {rsa}");
        assert!(rsa > least + 256 * 8, "the numbers of an RSA key are counted");
    }
}
