//! `sign/:name` and `verify/:name`.

use std::borrow::Cow;

use futures_util::{StreamExt, stream::FuturesOrdered};
use serde::Serialize;

use super::{
    Transit,
    alg::{ecdsa::Marshaling, hash::HashAlgorithm, rsa::Salt},
    b64,
    batch::{Batch, Items, Needs, Results, TextItem},
    gate::Place,
    hmac,
    ops::{ItemError, Opened},
    protect::Level,
    rsa_in_hsm::AT_ONCE,
    signing::{Options, Signed},
    store::Key,
    turn::Turn,
};
use crate::{
    core::{engine::Call, failure::Failure, reply::Reply},
    params,
    wire::field::Params,
};

pub use super::signing::derived_public_keys;

params! {
    /// Parameters of signing.
    pub struct SignParams {
        /// Name of the key.
        pub name: String,
        /// Hash algorithm in the path.
        pub urlalgorithm: String,
        /// The input in base64.
        pub input: String,
        /// The context of a derived key, in base64.
        pub context: String,
        /// The hash algorithm; sha2-256 by default.
        pub hash_algorithm: Option<String>,
        /// The former name of `hash_algorithm`.
        pub algorithm: Option<String>,
        /// The key version; 0 is the latest.
        pub key_version: i64,
        /// Whether the input is hashed already.
        pub prehashed: bool,
        /// How RSA keys sign: `pss` (the default) or `pkcs1v15`.
        pub signature_algorithm: String,
        /// How EC signatures are written: `asn1` (the default) or `jws`.
        pub marshaling_algorithm: Option<String>,
        /// The salt of `pss`: `auto`, `hash`, or bytes.
        pub salt_length: Option<String>,
        /// Items, each with `input`, `context` and `reference`.
        pub batch_input: Batch,
    }
}

params! {
    /// Parameters of verifying.
    pub struct VerifyParams {
        /// Name of the key.
        pub name: String,
        /// Hash algorithm in the path.
        pub urlalgorithm: String,
        /// The input in base64.
        pub input: String,
        /// The signature to verify.
        pub signature: Option<String>,
        /// The HMAC to verify.
        pub hmac: Option<String>,
        /// The context of a derived key, in base64.
        pub context: String,
        /// The hash algorithm; sha2-256 by default.
        pub hash_algorithm: Option<String>,
        /// The former name of `hash_algorithm`.
        pub algorithm: Option<String>,
        /// Whether the input is hashed already.
        pub prehashed: bool,
        /// How RSA keys sign: `pss` (the default) or `pkcs1v15`.
        pub signature_algorithm: String,
        /// How EC signatures are written: `asn1` (the default) or `jws`.
        pub marshaling_algorithm: Option<String>,
        /// The salt of `pss`: `auto`, `hash`, or bytes.
        pub salt_length: Option<String>,
        /// Items, each with `input`, `signature` or `hmac`, `context` and `reference`.
        pub batch_input: Batch,
    }
}

/// The hash algorithm of a request: the path wins, then `hash_algorithm`, whose default hides `algorithm` unless it is
/// sent empty.
pub fn hash_of<'a>(in_path: &'a str, hash_algorithm: Option<&'a str>, algorithm: Option<&'a str>) -> &'a str {
    const DEFAULT: &str = "sha2-256";
    let candidates = [in_path, hash_algorithm.unwrap_or(DEFAULT), algorithm.unwrap_or(DEFAULT)];
    candidates.into_iter().find(|name| !name.is_empty()).unwrap_or(DEFAULT)
}

/// A hash algorithm by name; the error is the API's.
pub fn known_hash(name: &str) -> Result<HashAlgorithm, Failure> {
    HashAlgorithm::named(name).ok_or_else(|| Failure::invalid(format!("invalid hash algorithm {name:?}")))
}

/// The rest of a request's options.
fn options(
    hash: &str,
    prehashed: bool,
    signature_algorithm: &str,
    marshaling: Option<&str>,
    salt: Option<&str>,
) -> Result<Options, Failure> {
    let hash = known_hash(hash)?;
    let marshaling = marshaling.unwrap_or("asn1");
    let form = Marshaling::named(marshaling);
    Ok(Options {
        hash,
        prehashed,
        signature_algorithm: signature_algorithm.to_owned(),
        marshaling: form.ok_or_else(|| Failure::invalid(format!("invalid marshaling type {marshaling:?}")))?,
        salt: Salt::parse(salt.unwrap_or("auto")).map_err(Failure::invalid)?,
    })
}

fn check_none(options: &Options) -> Result<(), Failure> {
    if options.hash == HashAlgorithm::None && (!options.prehashed || options.signature_algorithm != "pkcs1v15") {
        return Err(Failure::invalid("hash_algorithm=none requires both prehashed=true and signature_algorithm=pkcs1v15"));
    }
    Ok(())
}

/// The input of an item.
pub fn input_of(item: &TextItem<'_>, missing: &'static str) -> Result<Vec<u8>, ItemError> {
    let input = item.input.as_deref().ok_or_else(|| ItemError::user(missing))?;
    b64::decode(input).map_err(|error| ItemError::user(format!("unable to decode input as base64: {error}")))
}

fn context_of(item: &TextItem<'_>) -> Result<Vec<u8>, ItemError> {
    let context = item.context.as_deref().unwrap_or_default();
    b64::decode(context).map_err(|_| ItemError::user("failed to base64-decode context"))
}

/// An item of a batch of signatures; a single answer has the same members but for the name of the public key.
#[derive(Default, Serialize)]
struct SignedItem<'a> {
    #[serde(skip_serializing_if = "String::is_empty")]
    signature: String,
    key_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    publickey: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Cow<'static, str>>,
    reference: &'a str,
}

impl<'a> SignedItem<'a> {
    fn new(item: &'a TextItem<'_>, signed: Result<Signed, ItemError>) -> Self {
        let reference = item.reference.as_deref().unwrap_or_default();
        match signed {
            Ok(Signed { signature, version, public_key }) => {
                Self { signature, key_version: version, publickey: public_key, error: None, reference }
            }
            Err(error) => Self { error: Some(error.text), reference, ..Self::default() },
        }
    }
}

#[derive(Serialize)]
struct SignedData {
    signature: String,
    key_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
}

#[derive(Serialize)]
struct VerifiedItem<'a> {
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Cow<'static, str>>,
    reference: &'a str,
}

#[derive(Serialize)]
struct Valid {
    valid: bool,
}

/// The answer about one input.
pub fn valid(valid: bool) -> Result<Reply, Failure> {
    Reply::data(&Valid { valid })
}

/// POST `sign/:name`.
pub async fn sign(engine: &Transit, call: &Call<'_>) -> Result<Reply, Failure> {
    let input = call.input();
    let params = SignParams::decode(&input)?;
    let hash = hash_of(&params.urlalgorithm, params.hash_algorithm.as_deref(), params.algorithm.as_deref());
    let options = options(
        hash,
        params.prehashed,
        &params.signature_algorithm,
        params.marshaling_algorithm.as_deref(),
        params.salt_length.as_deref(),
    )?;
    let key = engine.existing(&params.name, "signing key not found")?;
    if !key.record.kind.supports_signing() {
        return Err(Failure::invalid(format!("key type {} does not support signing", key.record.kind.name())));
    }
    check_none(&options)?;
    let batch = Items::of_call(engine, call, Needs::Nothing, |_: &TextItem<'_>| ()).await?;
    let mut reply = match batch {
        None => {
            let item = TextItem {
                input: Some(Cow::Borrowed(&params.input)),
                context: Some(Cow::Borrowed(&params.context)),
                ..TextItem::default()
            };
            let signed = sign_item(engine, &key, params.key_version, &item, &mut Opened::default(), &options).await?;
            let signed = signed.map_err(ItemError::into_failure)?;
            Reply::data(&SignedData { signature: signed.signature, key_version: signed.version, public_key: signed.public_key })?
        }
        Some(items) => Reply::raw_data(sign_all(engine, &key, params.key_version, items, &options).await?),
    };
    reply.warnings.extend(input.notes(SignParams::FIELDS));
    Ok(reply)
}

/// The results of a batch: signed in this process one after the other; in the HSM as many at once as its sessions can use.
async fn sign_all(
    engine: &Transit,
    key: &Key,
    version: i64,
    mut items: Items<'_, TextItem<'_>>,
    options: &Options,
) -> Result<Vec<u8>, Failure> {
    let mut results = Results::of(items.total());
    if Transit::level_in_use(key) != Level::Software {
        let (mut under_way, mut turn) = (FuturesOrdered::new(), Turn::begin());
        items.work_in(Place::Hsm);
        // Nothing is under way while a window's turn is waited for: what it holds would be waited for by those whose turn it is.
        while items.next_window().await? {
            loop {
                while under_way.len() < AT_ONCE
                    && let Some(item) = items.next_here()
                {
                    turn.give_way().await;
                    under_way.push_back(async move {
                        let _turn = engine.stores.gate.private().await?;
                        let signed = sign_item(engine, key, version, &item, &mut Opened::default(), options).await?;
                        Ok::<_, Failure>((item, signed))
                    });
                }
                let Some(signed) = under_way.next().await else { break };
                let (item, signed) = signed?;
                results.push(&SignedItem::new(&item, signed))?;
            }
        }
        return Ok(results.finish());
    }
    let (mut opened, mut turn) = (Opened::default(), Turn::begin());
    while let Some(item) = items.next_item().await? {
        turn.give_way().await;
        let signed = sign_item(engine, key, version, &item, &mut opened, options).await?;
        results.push(&SignedItem::new(&item, signed))?;
    }
    Ok(results.finish())
}

async fn sign_item(
    engine: &Transit,
    key: &Key,
    version: i64,
    item: &TextItem<'_>,
    opened: &mut Opened,
    options: &Options,
) -> Result<Result<Signed, ItemError>, Failure> {
    let decoded = input_of(item, "missing input").and_then(|input| Ok((input, context_of(item)?)));
    match decoded {
        Ok((input, context)) => engine.sign_one(key, opened, version, &input, &context, options).await,
        Err(error) => Ok(Err(error)),
    }
}

/// POST `verify/:name`.
pub async fn verify(engine: &Transit, call: &Call<'_>) -> Result<Reply, Failure> {
    let input = call.input();
    let params = VerifyParams::decode(&input)?;
    let mut given = Given::default();
    let batch = Items::of_call(engine, call, Needs::Nothing, |item| given.see(item)).await?;
    let items = batch.unwrap_or_else(|| {
        Items::one(TextItem {
            input: Some(Cow::Borrowed(&params.input)),
            context: Some(Cow::Borrowed(&params.context)),
            signature: params.signature.as_deref().map(Cow::Borrowed),
            hmac: params.hmac.as_deref().map(Cow::Borrowed),
            reference: None,
        })
    });
    if !items.is_batch() {
        given.look_at(params.signature.is_some(), params.hmac.is_some());
    }
    let mut reply = match given.what(items.is_batch())? {
        What::Hmacs => hmac::verify(engine, &params, items).await?,
        What::Signatures => verify_signatures(engine, &params, items).await?,
    };
    reply.warnings.extend(input.notes(VerifyParams::FIELDS));
    Ok(reply)
}

enum What {
    Signatures,
    Hmacs,
}

/// What the items of a request give to verify.
#[derive(Default)]
struct Given {
    signatures: bool,
    hmacs: bool,
    /// An item gives neither.
    missing: bool,
}

impl Given {
    /// An item of a batch.
    fn see(&mut self, item: &TextItem<'_>) {
        self.look_at(item.signature.is_some(), item.hmac.is_some());
    }

    /// What gives both gives the signature: clients send the other one empty.
    fn look_at(&mut self, signature: bool, hmac: bool) {
        match (signature, hmac) {
            (true, _) => self.signatures = true,
            (false, true) => self.hmacs = true,
            (false, false) => self.missing = true,
        }
    }

    /// Signatures or HMACs, never both.
    fn what(&self, batch: bool) -> Result<What, Failure> {
        let refuse = |text: &str| Err(Failure::invalid(text));
        match (self.signatures, self.hmacs, self.missing) {
            (false, false, _) if !batch => refuse("neither a 'signature' nor an 'hmac' were given to verify"),
            (true, true, _) => refuse("elements of batch_input must all provide 'signature' or all provide 'hmac'"),
            (true, false, true) => refuse("some elements of batch_input are missing 'signature'"),
            (false, true, true) => refuse("some elements of batch_input are missing 'hmac'"),
            (false, false, _) => refuse("no batch_input elements have 'signature' or 'hmac'"),
            (false, true, false) => Ok(What::Hmacs),
            (true, false, false) => Ok(What::Signatures),
        }
    }
}

async fn verify_signatures(
    engine: &Transit,
    params: &VerifyParams,
    mut items: Items<'_, TextItem<'_>>,
) -> Result<Reply, Failure> {
    let hash = hash_of(&params.urlalgorithm, params.hash_algorithm.as_deref(), params.algorithm.as_deref());
    let options = options(
        hash,
        params.prehashed,
        &params.signature_algorithm,
        params.marshaling_algorithm.as_deref(),
        params.salt_length.as_deref(),
    )?;
    let key = engine.existing(&params.name, "signature verification key not found")?;
    if !key.record.kind.supports_signing() {
        return Err(Failure::invalid(format!("key type {} does not support verification", key.record.kind.name())));
    }
    check_none(&options)?;
    let (mut opened, mut turn) = (Opened::default(), Turn::begin());
    let (mut results, batch) = (Results::of(items.total()), items.is_batch());
    while let Some(item) = items.next_item().await? {
        turn.give_way().await;
        let decoded = input_of(&item, "missing input").and_then(|input| Ok((input, context_of(&item)?)));
        let result = match (decoded, item.signature.as_deref()) {
            (Err(error), _) => Err(error),
            (Ok(_), None) => Err(ItemError::user("missing signature")),
            (Ok((input, context)), Some(signature)) => {
                engine.verify_one(&key, &mut opened, &input, signature, &context, &options).await?
            }
        };
        if !batch {
            return valid(result.map_err(ItemError::into_failure)?);
        }
        let reference = item.reference.as_deref().unwrap_or_default();
        results.push(&match result {
            Ok(valid) => VerifiedItem { valid, error: None, reference },
            Err(error) => VerifiedItem { valid: false, error: Some(error.text), reference },
        })?;
    }
    Ok(Reply::raw_data(results.finish()))
}
