//! `hmac/:name`, and verifying HMACs.
//!
//! Every version has an HMAC key of its own beside its cipher or signing key; that of an `hmac` key is the key itself.

use std::{borrow::Cow, sync::Arc};

use serde::Serialize;

use super::{
    Transit,
    alg::hash::HashAlgorithm,
    b64,
    batch::{Batch, Items, Needs, Results, TextItem},
    lifecycle::SOFT_DELETED,
    ops::{ItemError, Opened},
    sign::{VerifyParams, hash_of, input_of, known_hash, valid},
    store::{Key, Loaded},
    turn::Turn,
};
use crate::{
    core::{engine::Call, failure::Failure, reply::Reply},
    params,
    secret::SecretBytes,
    wire::field::Params,
};

params! {
    /// Parameters of an HMAC.
    pub struct HmacParams {
        /// Name of the key.
        pub name: String,
        /// Hash algorithm in the path.
        pub urlalgorithm: String,
        /// The input in base64.
        pub input: Option<String>,
        /// The hash algorithm; sha2-256 by default.
        pub algorithm: Option<String>,
        /// The key version; 0 is the latest.
        pub key_version: i64,
        /// Items, each with `input` and `reference`.
        pub batch_input: Batch,
    }
}

#[derive(Serialize)]
struct MacData<'a> {
    hmac: &'a str,
}

#[derive(Serialize)]
struct MacItem<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    hmac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Cow<'static, str>>,
    reference: &'a str,
}

impl<'a> MacItem<'a> {
    fn made(item: &'a TextItem<'_>, made: Result<String, ItemError>) -> Self {
        let reference = item.reference.as_deref().unwrap_or_default();
        match made {
            Ok(hmac) => Self { hmac: Some(hmac), valid: None, error: None, reference },
            Err(error) => Self { hmac: None, valid: None, error: Some(error.text), reference },
        }
    }
}

/// An opened version whose HMAC key can be used, or the API's reason why there is none.
async fn version_for(
    engine: &Transit,
    key: &Key,
    opened: &mut Opened,
    version: i64,
) -> Result<Result<Arc<Loaded>, ItemError>, Failure> {
    let record = &key.record;
    let refuse = |text: String| Ok(Err(ItemError::user(text)));
    if record.soft_deleted {
        return refuse(SOFT_DELETED.to_owned());
    }
    if version < 0 {
        return refuse("key version does not exist (cannot be negative)".to_owned());
    }
    if version > i64::from(record.latest_version) {
        return refuse(format!("key version does not exist; latest key version is {}", record.latest_version));
    }
    let version = u32::try_from(version).unwrap_or(0);
    if version < record.min_decryption_version {
        return refuse("no such key version".to_owned());
    }
    let Some(loaded) = opened.version(engine, key, version).await? else {
        return refuse("no such key version".to_owned());
    };
    // Opened here so that what follows cannot fail any more.
    if engine.store.hmac_key(&engine.mount.zone, key, version, &loaded).await?.is_empty() {
        return refuse("no HMAC key exists for that key version".to_owned());
    }
    Ok(Ok(loaded))
}

fn mac(loaded: &Loaded, hash: HashAlgorithm, input: &[u8]) -> Result<Vec<u8>, ItemError> {
    let key = loaded.hmac_key.get().map(SecretBytes::expose).unwrap_or_default();
    match hash.hmac(key, input) {
        Ok(Some(sum)) => Ok(sum),
        Ok(None) => Err(ItemError::user(format!("unsupported algorithm {:?}", hash.name()))),
        Err(error) => Err(ItemError::internal(error.to_string())),
    }
}

/// POST `hmac/:name`.
pub async fn hmac(engine: &Transit, call: &Call<'_>) -> Result<Reply, Failure> {
    let input = call.input();
    let params = HmacParams::decode(&input)?;
    let in_path = params.urlalgorithm.as_str();
    let algorithm = if in_path.is_empty() { params.algorithm.as_deref().unwrap_or("sha2-256") } else { in_path };
    let key = engine.existing(&params.name, "encryption key not found")?;
    let record = &key.record;
    let version = if params.key_version == 0 { i64::from(record.latest_version) } else { params.key_version };
    let bound = i64::from(record.min_encryption_version);
    if bound > 0 && version != i64::from(record.latest_version) && version < bound {
        return Err(Failure::invalid("cannot generate HMAC: version is too old (disallowed by policy)"));
    }
    let mut opened = Opened::default();
    let loaded = version_for(engine, &key, &mut opened, version).await?.map_err(ItemError::into_failure)?;
    let hash = HashAlgorithm::named(algorithm).filter(|hash| *hash != HashAlgorithm::None);
    let hash = hash.ok_or_else(|| Failure::invalid(format!("unsupported algorithm {algorithm:?}")))?;
    let make = |item: &TextItem<'_>| {
        let sum = mac(&loaded, hash, &input_of(item, "missing input for HMAC")?)?;
        Ok(format!("vault:v{version}:{}", b64::encode(&sum)))
    };
    let batch = Items::of_call(engine, call, Needs::Nothing, |_: &TextItem<'_>| ()).await?;
    let mut reply = match (batch, &params.input) {
        (None, None) => return Err(Failure::invalid("missing input for HMAC")),
        (None, Some(input)) => {
            let item = TextItem { input: Some(Cow::Borrowed(input)), ..TextItem::default() };
            Reply::data(&MacData { hmac: &make(&item).map_err(ItemError::into_failure)? })?
        }
        (Some(mut items), _) => {
            let (mut results, mut turn) = (Results::of(items.total()), Turn::begin());
            while let Some(item) = items.next_item().await? {
                turn.give_way().await;
                results.push(&MacItem::made(&item, make(&item)))?;
            }
            Reply::raw_data(results.finish())
        }
    };
    reply.warnings.extend(input.notes(HmacParams::FIELDS));
    Ok(reply)
}

/// POST `verify/:name` with HMACs.
pub async fn verify(engine: &Transit, params: &VerifyParams, mut items: Items<'_, TextItem<'_>>) -> Result<Reply, Failure> {
    let key = engine.existing(&params.name, "encryption key not found")?;
    let hash = known_hash(hash_of(&params.urlalgorithm, params.hash_algorithm.as_deref(), params.algorithm.as_deref()))?;
    let mut opened = Opened::default();
    let (mut results, mut turn) = (Results::of(items.total()), Turn::begin());
    let batch = items.is_batch();
    while let Some(item) = items.next_item().await? {
        turn.give_way().await;
        let parsed = input_of(&item, "missing input").and_then(|input| Ok((input, parse(&key, &item)?)));
        let result = match parsed {
            Err(error) => Err(error),
            Ok((input, (version, expected))) => match version_for(engine, &key, &mut opened, version).await? {
                Err(error) => Err(error),
                Ok(loaded) => mac(&loaded, hash, &input).map(|sum| SecretBytes::new(sum).same_as(&expected)),
            },
        };
        if !batch {
            return valid(result.map_err(ItemError::into_failure)?);
        }
        let reference = item.reference.as_deref().unwrap_or_default();
        results.push(&match result {
            // False is left out here, unlike with signatures.
            Ok(valid) => MacItem { hmac: None, valid: valid.then_some(true), error: None, reference },
            Err(error) => MacItem { hmac: None, valid: None, error: Some(error.text), reference },
        })?;
    }
    Ok(Reply::raw_data(results.finish()))
}

/// Version and bytes of an HMAC's text form.
fn parse(key: &Key, item: &TextItem<'_>) -> Result<(i64, Vec<u8>), ItemError> {
    let text = item.hmac.as_deref().ok_or_else(|| ItemError::user("missing hmac"))?;
    let rest = text.strip_prefix("vault:v").ok_or_else(|| ItemError::user("invalid HMAC to verify: no prefix"))?;
    let fields = rest.split_once(':').ok_or_else(|| ItemError::user("invalid HMAC: wrong number of fields"))?;
    let version = fields.0.parse::<i64>();
    let version = version.map_err(|_| ItemError::user("invalid HMAC: version number could not be decoded"))?;
    let decoded = b64::decode(fields.1);
    let decoded = decoded.map_err(|error| ItemError::user(format!("unable to decode verification HMAC as base64: {error}")))?;
    if version > i64::from(key.record.latest_version) {
        return Err(ItemError::user("invalid HMAC: version is too new"));
    }
    if version < i64::from(key.record.min_decryption_version) {
        return Err(ItemError::user("cannot verify HMAC: version is too old (disallowed by policy)"));
    }
    Ok((version, decoded))
}
