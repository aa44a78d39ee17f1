//! `hmac/:name`, and verifying HMACs.
//!
//! Every version has an HMAC key of its own beside its cipher or signing key; that of an `hmac` key is the key itself.

use std::{borrow::Cow, sync::Arc};

use serde::Serialize;

use super::{
    Transit,
    alg::hash::HashAlgorithm,
    b64,
    batch::Batch,
    items::{self, TextItem},
    lifecycle::SOFT_DELETED,
    ops::{ItemError, Opened},
    sign::{Results, VerifyParams, hash_of, input_of, known_hash, valid},
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
    if version != i64::from(record.latest_version) && version < i64::from(record.min_encryption_version) {
        return Err(Failure::invalid("cannot generate HMAC: version is too old (disallowed by policy)"));
    }
    let mut opened = Opened::default();
    let loaded = version_for(engine, &key, &mut opened, version).await?.map_err(ItemError::into_failure)?;
    let hash = HashAlgorithm::named(algorithm).filter(|hash| *hash != HashAlgorithm::None);
    let hash = hash.ok_or_else(|| Failure::invalid(format!("unsupported algorithm {algorithm:?}")))?;
    let batch = items::batch_of(call)?;
    let single = match &params.input {
        Some(input) => vec![TextItem { input: Some(Cow::Borrowed(input)), ..TextItem::default() }],
        None if batch.is_none() => return Err(Failure::invalid("missing input for HMAC")),
        None => Vec::new(),
    };
    let items = batch.as_deref().unwrap_or(&single);
    let make = |item| {
        let sum = mac(&loaded, hash, &input_of(item, "missing input for HMAC")?)?;
        Ok(format!("vault:v{version}:{}", b64::encode(&sum)))
    };
    let mut turn = Turn::begin();
    let mut made: Vec<Result<String, ItemError>> = Vec::with_capacity(items.len());
    for item in items {
        turn.give_way().await;
        made.push(make(item));
    }
    let mut reply = if batch.is_none() {
        let missing = || Failure::internal("no HMAC was made");
        let hmac = made.into_iter().next().ok_or_else(missing)?.map_err(ItemError::into_failure)?;
        Reply::data(&MacData { hmac: &hmac })?
    } else {
        let shown = made.into_iter().zip(items).map(|(result, item)| {
            let reference = item.reference.as_deref().unwrap_or_default();
            match result {
                Ok(hmac) => MacItem { hmac: Some(hmac), valid: None, error: None, reference },
                Err(error) => MacItem { hmac: None, valid: None, error: Some(error.text), reference },
            }
        });
        Reply::data(&Results { batch_results: shown.collect() })?
    };
    reply.warnings.extend(input.notes(HmacParams::FIELDS));
    Ok(reply)
}

/// POST `verify/:name` with HMACs.
pub async fn verify(engine: &Transit, params: &VerifyParams, items: &[TextItem<'_>], batch: bool) -> Result<Reply, Failure> {
    let key = engine.existing(&params.name, "encryption key not found")?;
    let hash = known_hash(hash_of(&params.urlalgorithm, params.hash_algorithm.as_deref(), params.algorithm.as_deref()))?;
    let mut opened = Opened::default();
    let mut turn = Turn::begin();
    let mut results = Vec::with_capacity(items.len());
    for item in items {
        turn.give_way().await;
        let parsed = input_of(item, "missing input").and_then(|input| Ok((input, parse(&key, item)?)));
        let result = match parsed {
            Err(error) => Err(error),
            Ok((input, (version, expected))) => match version_for(engine, &key, &mut opened, version).await? {
                Err(error) => Err(error),
                Ok(loaded) => mac(&loaded, hash, &input).map(|sum| SecretBytes::new(sum).same_as(&expected)),
            },
        };
        results.push(result);
    }
    if !batch {
        let missing = || Failure::internal("nothing was verified");
        return valid(results.pop().ok_or_else(missing)?.map_err(ItemError::into_failure)?);
    }
    let shown = results.into_iter().zip(items).map(|(result, item)| {
        let reference = item.reference.as_deref().unwrap_or_default();
        match result {
            // False is left out here, unlike with signatures.
            Ok(valid) => MacItem { hmac: None, valid: valid.then_some(true), error: None, reference },
            Err(error) => MacItem { hmac: None, valid: None, error: Some(error.text), reference },
        }
    });
    Reply::data(&Results { batch_results: shown.collect() })
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
