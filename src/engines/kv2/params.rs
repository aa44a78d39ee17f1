//! Parameters of the endpoints, and the types that only they have.

use serde_json::value::RawValue;

use crate::{
    params,
    secret::SecretBytes,
    wire::{
        duration,
        field::{FieldKind, FromField, Integers, Seconds, duration_text},
        json::RawObject,
    },
};

/// A JSON object (or `null`) in the bytes that came; of repeated members only the last is kept.
#[derive(Debug)]
pub struct RawMap(pub SecretBytes);

impl FromField for RawMap {
    const KIND: FieldKind = FieldKind::Object;

    fn from_json(raw: &RawValue) -> Result<Self, String> {
        let json = raw.get();
        let wrong = || "expected an object".to_owned();
        if json.starts_with('[') {
            // A list of objects counts as one object with the members of all.
            let parts: Vec<&RawValue> = serde_json::from_str(json).map_err(|_| wrong())?;
            let inner = |part: &RawValue| part.get().strip_prefix('{')?.strip_suffix('}').map(|inner| inner.trim().to_owned());
            let inner = parts.into_iter().map(inner).collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
            let inner: Vec<_> = inner.into_iter().filter(|inner| !inner.is_empty()).collect();
            return Self::compact(&format!("{{{}}}", inner.join(",")));
        }
        if json.starts_with('{') { Self::compact(json) } else { Err(wrong()) }
    }

    fn from_text(_: &str) -> Result<Self, String> {
        Err("expected an object".into())
    }

    fn missing() -> Self {
        Self(SecretBytes::new(b"null".to_vec()))
    }
}

impl RawMap {
    fn compact(json: &str) -> Result<Self, String> {
        let object = RawObject::parse(json.as_bytes()).map_err(|error| error.to_string())?;
        let json = object.without_repetition().unwrap_or_else(|| json.as_bytes().to_vec());
        Ok(Self(SecretBytes::new(json)))
    }

    /// The members, none for `null`.
    pub fn object(&self) -> RawObject<'_> {
        // What `compact` has parsed parses again.
        RawObject::parse(self.0.expose()).unwrap_or_default()
    }
}

/// A duration in whole seconds that may be negative.
#[derive(Clone, Copy, Debug)]
pub struct SignedSeconds(pub i64);

impl FromField for SignedSeconds {
    const KIND: FieldKind = FieldKind::Duration;

    fn from_json(raw: &RawValue) -> Result<Self, String> {
        Self::from_text(&duration_text(raw)?)
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let nanos = duration::parse_signed(text).map_err(|error| error.to_string())?;
        Ok(Self(nanos.div_euclid(1_000_000_000)))
    }

    fn missing() -> Self {
        Self(0)
    }
}

params! {
    /// Which version to read.
    pub struct ReadData {
        /// The version; the latest without it.
        pub version: i64,
    }
}

params! {
    /// A new version.
    #[allow(dead_code, reason = "what only other operations of the route read is known and checked all the same")]
    pub struct WriteData {
        /// The secret's data.
        pub data: Option<RawMap>,
        /// Options: `cas` names the version that must be the current one (0: the key must have none).
        pub options: Option<RawMap>,
        /// For reads only.
        pub version: i64,
    }
}

params! {
    /// Versions of a key.
    pub struct Versions {
        /// The numbers of the versions.
        pub versions: Integers,
    }
}

params! {
    /// What the structure of a secret is read with.
    pub struct ReadSubkeys {
        /// The version; the latest without it.
        pub version: i64,
        /// How many levels to show; all without it.
        pub depth: i64,
    }
}

params! {
    /// A key's settings.
    #[allow(dead_code, reason = "what only other operations of the route read is known and checked all the same")]
    pub struct Metadata {
        /// Versions to keep; 0 leaves it to the mount.
        pub max_versions: Option<i64>,
        /// Whether writes need `options.cas`.
        pub cas_required: Option<bool>,
        /// Whether writes of these settings need `metadata_cas`.
        pub metadata_cas_required: Option<bool>,
        /// Life of new versions; 0 leaves it to the mount.
        pub delete_version_after: Option<Seconds>,
        /// Notes: names with texts.
        pub custom_metadata: Option<RawMap>,
        /// The version of these settings that must be the current one (0: the key must not exist).
        pub metadata_cas: Option<i64>,
        /// For lists only.
        pub after: String,
        /// For lists only.
        pub limit: i64,
    }
}

params! {
    /// The mount's settings.
    pub struct Config {
        /// Versions to keep per key; 0 for the default of 10.
        pub max_versions: Option<i64>,
        /// Whether all writes need `options.cas`.
        pub cas_required: Option<bool>,
        /// Whether all writes of keys' settings need `metadata_cas`.
        pub metadata_cas_required: Option<bool>,
        /// Life of new versions; 0 for no end, negative switches the keys' settings off too.
        pub delete_version_after: Option<SignedSeconds>,
    }
}

params! {
    /// A page of a list.
    pub struct Page {
        /// List what sorts after this name.
        pub after: String,
        /// List at most so many names; all without it.
        pub limit: i64,
    }
}

/// A count as it is stored: negative ones wrap around, so that -1 is as good as "all of them".
pub fn count(number: i64) -> u32 {
    u32::try_from(number.rem_euclid(1 << 32)).unwrap_or(u32::MAX)
}
