//! The text of a backup: base64 over JSON in the layout of Vault's own store, so that backups move between servers.
//!
//! ```text
//! { "policy": { "name", "type": number, "keys": { "<version>": entry, … from min_decryption_version }, bounds, flags },
//!   "archived_keys": { "keys": [ entry, … ] } }      the entry at i is of version i + min_available_version
//! entry: { "key", "hmac_key": base64, "time": RFC 3339, "ec_x", "ec_y", "ec_d": decimal numbers,
//!          "rsa_key": { "N", "E", "D", "Primes": [p, q], "Precomputed": { "Dp", "Dq", "Qinv" } }, "rsa_public_key",
//!          "public_key", "convergent_version", "creation_time": seconds, "certificate_chain": [base64],
//!          "sos_encryptions": number }
//! ```
//!
//! `sos_encryptions` is this server's own: how often a version may have encrypted, where that is counted. Other servers pass over
//! members that they do not know (Go's `encoding/json` does), and what they write has none.

use std::{borrow::Cow, collections::BTreeMap};

use openssl::{
    bn::{BigNum, BigNumContext, BigNumRef},
    ec::{EcKey, EcPoint},
    pkey::{PKey, Public},
    rsa::{Rsa, RsaPrivateKeyBuilder},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    alg::{
        HMAC_KEY_BYTES, KeyType,
        asym::{AsymError, PrivateKey, PublicKey, group},
    },
    b64,
    batch::push_text,
    chain::Chain,
    given::Given,
    keys::rfc3339,
    lifecycle::nanos,
    protect::Material,
    record::{KeyRecord, Passage, VersionLine},
};
use crate::{core::failure::Failure, secret::SecretBytes};

/// A type's number. HMAC is 11 as in Vault, told from XChaCha20 (11 elsewhere) by its `key_size`.
pub fn number_of(kind: KeyType) -> i64 {
    match kind {
        KeyType::Aes256Gcm96 => 0,
        KeyType::EcdsaP256 => 1,
        KeyType::Ed25519 => 2,
        KeyType::Rsa2048 => 3,
        KeyType::Rsa4096 => 4,
        KeyType::ChaCha20Poly1305 => 5,
        KeyType::EcdsaP384 => 6,
        KeyType::EcdsaP521 => 7,
        KeyType::Aes128Gcm96 => 8,
        KeyType::Rsa3072 => 9,
        KeyType::Hmac | KeyType::XChaCha20Poly1305 => 11,
    }
}

/// The type of a number; servers number HMAC keys differently.
pub fn type_of(number: i64, key_size: u32) -> Option<KeyType> {
    match number {
        10 | 11 if key_size > 0 => Some(KeyType::Hmac),
        10 => Some(KeyType::Hmac),
        11 => Some(KeyType::XChaCha20Poly1305),
        _ => KeyType::ALL.into_iter().filter(|kind| number_of(*kind) < 10).find(|kind| number_of(*kind) == number),
    }
}

/// A backup taken apart.
#[derive(Deserialize)]
pub struct Blob<'a> {
    /// The key.
    #[serde(borrow, default)]
    pub policy: Option<Policy<'a>>,
    /// All its versions.
    #[serde(borrow, default)]
    pub archived_keys: Option<Archive<'a>>,
}

/// A key in a backup. Absent and null are the same everywhere.
#[derive(Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // the names are those of the layout above
pub struct Policy<'a> {
    #[serde(borrow)]
    pub name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub key: Option<Cow<'a, str>>,
    pub key_size: Option<i64>,
    #[serde(borrow)]
    pub keys: Option<BTreeMap<Cow<'a, str>, Entry<'a>>>,
    pub derived: Option<bool>,
    pub kdf: Option<i64>,
    pub convergent_encryption: Option<bool>,
    pub exportable: Option<bool>,
    pub min_decryption_version: Option<i64>,
    pub min_encryption_version: Option<i64>,
    pub latest_version: Option<i64>,
    pub archive_version: Option<i64>,
    pub min_available_version: Option<i64>,
    pub deletion_allowed: Option<bool>,
    pub convergent_version: Option<i64>,
    #[serde(rename = "type")]
    pub kind: Option<i64>,
    #[serde(borrow)]
    pub backup_info: Option<Info<'a>>,
    pub allow_plaintext_backup: Option<bool>,
    pub auto_rotate_period: Option<i64>,
    #[serde(rename = "Imported")]
    pub imported: Option<bool>,
    #[serde(rename = "AllowImportedKeyRotation")]
    pub allow_imported_key_rotation: Option<bool>,
    pub soft_deleted: Option<bool>,
}

/// When a backup was taken.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Info<'a> {
    #[serde(borrow)]
    time: Option<Cow<'a, str>>,
    version: Option<i64>,
}

impl Info<'_> {
    /// As stored.
    pub fn passage(&self) -> Option<Passage> {
        let time = parse_time(self.time.as_deref()?)?;
        Some(Passage { time, version: u32::try_from(self.version?).ok()? })
    }
}

/// All versions of a key.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Archive<'a> {
    /// The entry at `i` is of version `i + min_available_version`.
    #[serde(borrow)]
    pub keys: Option<Vec<Entry<'a>>>,
}

/// A version in a backup.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Entry<'a> {
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    hmac_key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    time: Option<Cow<'a, str>>,
    #[serde(borrow)]
    ec_x: Option<&'a RawValue>,
    #[serde(borrow)]
    ec_y: Option<&'a RawValue>,
    #[serde(borrow)]
    ec_d: Option<&'a RawValue>,
    #[serde(borrow)]
    rsa_key: Option<RsaNumbers<'a>>,
    #[serde(borrow)]
    rsa_public_key: Option<RsaNumbers<'a>>,
    #[serde(borrow)]
    public_key: Option<Cow<'a, str>>,
    convergent_version: Option<i64>,
    creation_time: Option<i64>,
    #[serde(borrow)]
    certificate_chain: Option<Vec<Cow<'a, str>>>,
    sos_encryptions: Option<u64>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RsaNumbers<'a> {
    #[serde(borrow)]
    n: Option<&'a RawValue>,
    #[serde(borrow)]
    e: Option<&'a RawValue>,
    #[serde(borrow)]
    d: Option<&'a RawValue>,
    #[serde(borrow)]
    primes: Option<Vec<&'a RawValue>>,
}

fn parse_time(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    // The zero time of the other server's language stands for none.
    (time.year() > 1).then(|| nanos(time))
}

fn wrong(text: impl Into<String>) -> AsymError {
    AsymError::Key(text.into())
}

/// A decimal number, which may have thousands of digits.
fn number(raw: Option<&RawValue>) -> Result<BigNum, AsymError> {
    let text = raw.map(RawValue::get).unwrap_or_default();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) || text.len() > 5000 {
        return Err(wrong("a number of the key is missing or malformed"));
    }
    Ok(BigNum::from_dec_str(text)?)
}

impl RsaNumbers<'_> {
    fn public(&self) -> Result<Rsa<Public>, AsymError> {
        Ok(Rsa::from_public_components(number(self.n)?, number(self.e)?)?)
    }

    fn private(&self) -> Result<PrivateKey, AsymError> {
        let (n, e, d) = (number(self.n)?, number(self.e)?, number(self.d)?);
        let primes = self.primes.as_deref().unwrap_or_default();
        let [p, q] = primes else { return Err(wrong("an RSA key must have two primes")) };
        let (p, q) = (number(Some(p))?, number(Some(q))?);
        let mut context = BigNumContext::new_secure()?;
        let mut product = BigNum::new_secure()?;
        product.checked_mul(&p, &q, &mut context)?;
        let one = BigNum::from_u32(1)?;
        if product != n || p <= one || q <= one {
            return Err(wrong("the primes of an RSA key do not make its modulus"));
        }
        // The factors of the Chinese remainder theorem are computed anew: a wrong one would give the key away.
        let mut less = |prime: &BigNumRef| -> Result<BigNum, AsymError> {
            let (mut minus, mut rest) = (BigNum::new_secure()?, BigNum::new_secure()?);
            minus.checked_sub(prime, &one)?;
            rest.nnmod(&d, &minus, &mut context)?;
            Ok(rest)
        };
        let (dp, dq) = (less(&p)?, less(&q)?);
        let mut inverse = BigNum::new_secure()?;
        inverse.mod_inverse(&q, &p, &mut context)?;
        let key = RsaPrivateKeyBuilder::new(n, e, d)?.set_factors(p, q)?.set_crt_params(dp, dq, inverse)?.build();
        Ok(PrivateKey::Rsa(PKey::from_rsa(key)?))
    }
}

fn present(raw: Option<&RawValue>) -> bool {
    raw.is_some_and(|raw| raw.get() != "null")
}

fn bytes(text: Option<&str>) -> Result<SecretBytes, AsymError> {
    let decoded = b64::decode(text.unwrap_or_default()).map_err(|error| wrong(error.to_string()))?;
    Ok(SecretBytes::new(decoded))
}

impl<'a> Entry<'a> {
    /// A version of the very first layout, which had one key.
    pub fn of_key(key: Cow<'a, str>) -> Self {
        Self { key: Some(key), ..Self::default() }
    }

    /// Whether there is anything in it: archives begin with a place for version 0.
    pub fn is_empty(&self) -> bool {
        let no_text = |text: &Option<Cow<'_, str>>| text.as_deref().unwrap_or_default().is_empty();
        no_text(&self.key)
            && no_text(&self.public_key)
            && !present(self.ec_x)
            && self.rsa_key.is_none()
            && self.rsa_public_key.is_none()
    }

    /// The version as it is stored here. `fallback` is the key's convergent version, 0 for other keys.
    pub fn given(&self, kind: KeyType, convergent: bool, fallback: i64, now: i64) -> Result<Given, AsymError> {
        let (key, public_key) = self.halves(kind)?;
        let seconds = self.creation_time.filter(|seconds| *seconds > 0).and_then(|seconds| seconds.checked_mul(1_000_000_000));
        let convergent_version = match (convergent, self.convergent_version.unwrap_or(0), fallback) {
            (false, ..) => 0,
            (true, 0, -1) => 3,
            (true, 0, 0) => 1,
            (true, 0, version) | (true, version, _) => u8::try_from(version)
                .ok()
                .filter(|version| (1..=3).contains(version))
                .ok_or_else(|| wrong(format!("convergent version {version} is unknown")))?,
        };
        let hmac_key = bytes(self.hmac_key.as_deref())?;
        let hmac_key = if kind == KeyType::Hmac { key.duplicate() } else { hmac_key };
        // Old servers made none.
        if !hmac_key.is_empty() && !HMAC_KEY_BYTES.contains(&hmac_key.len()) {
            return Err(wrong(format!("{} bytes are no HMAC key", hmac_key.len())));
        }
        let certificate_chain = self.certificates(kind, public_key.as_deref())?;
        Ok(Given {
            created: self.time.as_deref().and_then(parse_time).or(seconds).unwrap_or(now),
            material: Material { key, hmac_key },
            public_key,
            convergent_version,
            certificate_chain,
            encryptions: self.sos_encryptions.unwrap_or(0),
        })
    }

    /// The certificates, which must be such as `set-certificate` takes for the key with this public half.
    fn certificates(&self, kind: KeyType, public_key: Option<&str>) -> Result<Vec<String>, AsymError> {
        let chain = self.certificate_chain.iter().flatten();
        let chain: Vec<Vec<u8>> =
            chain.map(|der| b64::decode(der)).collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))?;
        if chain.is_empty() {
            return Ok(Vec::new());
        }
        let chain = Chain::of(chain).map_err(wrong)?;
        chain.check_order().map_err(wrong)?;
        chain.check_algorithm(kind).map_err(wrong)?;
        if !chain.is_of(public_key) {
            return Err(wrong("the first certificate is not of this key"));
        }
        Ok(chain.stored())
    }

    /// Private material (empty where there is none) and public half.
    fn halves(&self, kind: KeyType) -> Result<(SecretBytes, Option<String>), AsymError> {
        let private = if kind.rsa_bits().is_some() {
            match (&self.rsa_key, &self.rsa_public_key) {
                (Some(numbers), _) => numbers.private()?,
                (None, Some(numbers)) => {
                    let public = PublicKey::from_der(kind, &numbers.public()?.public_key_to_der()?)?.sound()?;
                    return Ok((SecretBytes::default(), Some(public.to_text()?)));
                }
                (None, None) => return Err(wrong("an RSA key is missing")),
            }
        } else if kind.is_ecdsa() {
            let group = group(kind)?;
            let (x, y) = (number(self.ec_x)?, number(self.ec_y)?);
            let public = EcKey::from_public_key_affine_coordinates(&group, &x, &y)?;
            if !present(self.ec_d) {
                return Ok((SecretBytes::default(), Some(PublicKey::Ec(public).to_text()?)));
            }
            let d = number(self.ec_d)?;
            let mut context = BigNumContext::new_secure()?;
            let mut expected = EcPoint::new(&group)?;
            expected.mul_generator2(&group, &d, &mut context)?;
            if !expected.eq(&group, public.public_key(), &mut context)? {
                return Err(wrong("the halves of an EC key do not belong together"));
            }
            PrivateKey::Ec(EcKey::from_private_components(&group, &d, public.public_key())?)
        } else {
            let key = bytes(self.key.as_deref())?;
            return match kind {
                KeyType::Ed25519 if key.is_empty() => {
                    let text = self.public_key.as_deref().unwrap_or_default();
                    Ok((key, Some(PublicKey::from_text(kind, text)?.to_text()?)))
                }
                KeyType::Ed25519 if key.len() == 64 => {
                    let public = PrivateKey::from_stored(kind, key.expose())?.public()?.to_text()?;
                    Ok((key, Some(public)))
                }
                KeyType::Hmac if HMAC_KEY_BYTES.contains(&key.len()) => Ok((key, None)),
                _ if kind.is_cipher() && key.len() == kind.key_len() => Ok((key, None)),
                _ => Err(wrong(format!("{} bytes are no {} key", key.len(), kind.name()))),
            };
        };
        // Through the checks of an import: curve and size, and whether the numbers make a key at all.
        let stored = private.to_pkcs8()?;
        let private = PrivateKey::from_pkcs8(kind, stored.expose())?.sound()?;
        Ok((private.to_stored()?, Some(private.public()?.to_text()?)))
    }
}

/// A version to be written.
pub struct Written<'a> {
    /// What the key's record says of it.
    pub line: &'a VersionLine,
    /// How nonces of a convergent key are made; 0 for other keys.
    pub convergent: u8,
    /// How often it may have encrypted; 0 where that is not counted.
    pub encryptions: u64,
    /// Its secrets.
    pub material: Material,
}

/// Writes a backup. `versions` are all that exist, ascending; `go_on` is asked before each.
pub fn write(
    name: &str,
    record: &KeyRecord,
    versions: &[Written<'_>],
    mut go_on: impl FnMut() -> Result<(), Failure>,
) -> Result<SecretBytes, Failure> {
    let entries: Vec<(u32, SecretBytes)> = versions
        .iter()
        .map(|version| {
            go_on()?;
            Ok((version.line.version, entry(record.kind, version).map_err(Failure::internal)?))
        })
        .collect::<Result<_, Failure>>()?;
    // Room enough that the buffer does not move while it grows and leaves no copies of keys behind: each entry stands there
    // twice at most, with its number.
    let held: usize = entries.iter().map(|(_, entry)| 2 * entry.len() + 32).sum();
    let places =
        usize::try_from(record.latest_version - record.min_available_version.min(record.latest_version)).unwrap_or(0) + 1;
    let mut out = Vec::with_capacity(8192 + 6 * name.len() + held + places * (NOTHING.len() + 1));
    let mut push = |text: &str| out.extend_from_slice(text.as_bytes());
    push("{\"policy\":{\"name\":");
    let mut quoted = Vec::new();
    push_text(name, &mut quoted);
    push(&String::from_utf8_lossy(&quoted));
    if record.key_size != 0 {
        push(&format!(",\"key_size\":{}", record.key_size));
    }
    push(",\"keys\":{");
    let mut first = true;
    for (version, entry) in entries.iter().filter(|(version, _)| *version >= record.min_decryption_version) {
        push(if first { "\"" } else { ",\"" });
        push(&version.to_string());
        push("\":");
        push(std::str::from_utf8(entry.expose()).unwrap_or_default());
        first = false;
    }
    push("},");
    push(&settings(record));
    push("},\"archived_keys\":{\"keys\":[");
    for version in record.min_available_version..=record.latest_version {
        push(if version == record.min_available_version { "" } else { "," });
        let found = entries.binary_search_by_key(&version, |(found, _)| *found);
        match found.ok().and_then(|at| entries.get(at)) {
            Some((_, entry)) => push(std::str::from_utf8(entry.expose()).unwrap_or_default()),
            None => push(NOTHING),
        }
    }
    push("]}}");
    Ok(SecretBytes::new(out))
}

/// The entry of a version that does not exist.
const NOTHING: &str = "{\"key\":null,\"hmac_key\":null,\"time\":\"0001-01-01T00:00:00Z\",\"ec_x\":null,\"ec_y\":null,\
                       \"ec_d\":null,\"rsa_key\":null,\"rsa_public_key\":null,\"public_key\":\"\",\
                       \"convergent_version\":0,\"creation_time\":0,\"certificate_chain\":null}";

/// Everything of a key but its name and versions.
fn settings(record: &KeyRecord) -> String {
    let info = |passage: &Option<Passage>| match passage {
        Some(passage) => format!("{{\"time\":\"{}\",\"version\":{}}}", rfc3339(passage.time), passage.version),
        None => "null".to_owned(),
    };
    format!(
        "\"derived\":{},\"kdf\":{},\"convergent_encryption\":{},\"exportable\":{},\"min_decryption_version\":{},\
         \"min_encryption_version\":{},\"latest_version\":{latest},\"archive_version\":{latest},\
         \"archive_min_version\":{available},\"min_available_version\":{available},\"deletion_allowed\":{},\
         \"convergent_version\":{},\"type\":{},\"backup_info\":{},\"restore_info\":{},\"allow_plaintext_backup\":{},\
         \"version_template\":\"\",\"storage_prefix\":\"\",\"auto_rotate_period\":{},\"Imported\":{},\
         \"AllowImportedKeyRotation\":{},\"soft_deleted\":{}",
        record.derived(),
        i32::from(record.kdf == Some(super::alg::kdf::Kdf::HkdfSha256)),
        record.convergent,
        record.exportable,
        record.min_decryption_version,
        record.min_encryption_version,
        record.deletion_allowed,
        record.convergent_version,
        number_of(record.kind),
        info(&record.backup),
        info(&record.restore),
        record.allow_plaintext_backup,
        record.auto_rotate_period.saturating_mul(1_000_000_000),
        record.imported,
        record.allow_imported_key_rotation,
        record.soft_deleted,
        latest = record.latest_version,
        available = record.min_available_version,
    )
}

fn entry(kind: KeyType, version: &Written<'_>) -> Result<SecretBytes, AsymError> {
    let Written { line, convergent, encryptions, material } = version;
    let mut out = Vec::with_capacity(12 * 1024);
    let key = if kind.rsa_bits().is_some() || kind.is_ecdsa() { &[][..] } else { material.key.expose() };
    out.extend_from_slice(b"{\"key\":");
    push_bytes(key, &mut out);
    out.extend_from_slice(b",\"hmac_key\":");
    push_bytes(material.hmac_key.expose(), &mut out);
    out.extend_from_slice(format!(",\"time\":\"{}\"", rfc3339(line.created)).as_bytes());
    push_ec(kind, line, material, &mut out)?;
    push_rsa(kind, line, material, &mut out)?;
    out.extend_from_slice(b",\"public_key\":");
    // RSA keys carry their public half among their numbers.
    push_text(line.public_key.as_deref().filter(|_| kind.rsa_bits().is_none()).unwrap_or_default(), &mut out);
    let seconds = line.created.div_euclid(1_000_000_000);
    out.extend_from_slice(format!(",\"convergent_version\":{convergent},\"creation_time\":{seconds}").as_bytes());
    out.extend_from_slice(b",\"certificate_chain\":");
    match line.certificate_chain.as_slice() {
        [] => out.extend_from_slice(b"null"),
        chain => {
            for (at, der) in chain.iter().enumerate() {
                out.push(if at == 0 { b'[' } else { b',' });
                push_text(der, &mut out);
            }
            out.push(b']');
        }
    }
    if *encryptions > 0 {
        out.extend_from_slice(format!(",\"sos_encryptions\":{encryptions}").as_bytes());
    }
    out.push(b'}');
    Ok(SecretBytes::new(out))
}

fn push_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    if bytes.is_empty() {
        out.extend_from_slice(b"null");
        return;
    }
    out.push(b'"');
    b64::push(bytes, out);
    out.push(b'"');
}

fn push_number(name: &str, number: Option<&BigNumRef>, out: &mut Vec<u8>) -> Result<(), AsymError> {
    out.extend_from_slice(name.as_bytes());
    match number {
        Some(number) => out.extend_from_slice(number.to_dec_str()?.as_bytes()),
        None => out.extend_from_slice(b"null"),
    }
    Ok(())
}

fn push_ec(kind: KeyType, line: &VersionLine, material: &Material, out: &mut Vec<u8>) -> Result<(), AsymError> {
    let mut numbers = (None, None, None);
    if kind.is_ecdsa() {
        let text = line.public_key.as_deref().unwrap_or_default();
        if let PublicKey::Ec(public) = PublicKey::from_text(kind, text)? {
            let (mut x, mut y, mut context) = (BigNum::new()?, BigNum::new()?, BigNumContext::new()?);
            public.public_key().affine_coordinates(public.group(), &mut x, &mut y, &mut context)?;
            numbers.0 = Some(x);
            numbers.1 = Some(y);
        }
        if !material.key.is_empty()
            && let PrivateKey::Ec(private) = PrivateKey::from_stored(kind, material.key.expose())?
        {
            let mut d = BigNum::new_secure()?;
            d.copy_from_slice(&zeroize::Zeroizing::new(private.private_key().to_vec()))?;
            numbers.2 = Some(d);
        }
    }
    push_number(",\"ec_x\":", numbers.0.as_deref(), out)?;
    push_number(",\"ec_y\":", numbers.1.as_deref(), out)?;
    push_number(",\"ec_d\":", numbers.2.as_deref(), out)
}

fn push_rsa(kind: KeyType, line: &VersionLine, material: &Material, out: &mut Vec<u8>) -> Result<(), AsymError> {
    if kind.rsa_bits().is_none() {
        out.extend_from_slice(b",\"rsa_key\":null,\"rsa_public_key\":null");
        return Ok(());
    }
    if !material.key.is_empty()
        && let PrivateKey::Rsa(key) = PrivateKey::from_stored(kind, material.key.expose())?
    {
        let key = key.rsa()?;
        push_number(",\"rsa_key\":{\"N\":", Some(key.n()), out)?;
        push_number(",\"E\":", Some(key.e()), out)?;
        push_number(",\"D\":", Some(key.d()), out)?;
        push_number(",\"Primes\":[", key.p(), out)?;
        push_number(",", key.q(), out)?;
        push_number("],\"Precomputed\":{\"Dp\":", key.dmp1(), out)?;
        push_number(",\"Dq\":", key.dmq1(), out)?;
        push_number(",\"Qinv\":", key.iqmp(), out)?;
        out.extend_from_slice(b",\"CRTValues\":[]}}");
    } else {
        out.extend_from_slice(b",\"rsa_key\":null");
    }
    let text = line.public_key.as_deref().unwrap_or_default();
    if let PublicKey::Rsa(key) = PublicKey::from_text(kind, text)? {
        let key = key.rsa()?;
        push_number(",\"rsa_public_key\":{\"N\":", Some(key.n()), out)?;
        push_number(",\"E\":", Some(key.e()), out)?;
        out.push(b'}');
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::transit::protect::Level;

    #[tokio::test]
    async fn entries_come_back_as_written() {
        for kind in KeyType::ALL.into_iter().filter(|kind| !matches!(kind, KeyType::Rsa3072 | KeyType::Rsa4096)) {
            let (material, public_key) = Material::fresh(kind, 64).await.unwrap();
            let line = VersionLine {
                version: 1,
                created: 1_700_000_000_123_456_789,
                level: Level::Software,
                revision: 0,
                public_key,
                moved_into_hsm: None,
                public_only: false,
                certificate_chain: vec![],
            };
            let mut record = KeyRecord::empty(kind, Level::Software);
            record.latest_version = 1;
            record.key_size = if kind == KeyType::Hmac { 64 } else { 0 };
            record.versions = vec![line.clone()];
            let written = Written { line: &line, convergent: 0, encryptions: 9 << 16, material: material.duplicate() };
            let blob = write("k", &record, &[written], || Ok(())).unwrap();
            let back: Blob<'_> = serde_json::from_slice(blob.expose()).unwrap();
            let policy = back.policy.unwrap();
            assert_eq!(type_of(policy.kind.unwrap(), record.key_size), Some(kind));
            let given = policy.keys.unwrap()["1"].given(kind, false, 0, 0).unwrap();
            assert!(given.material.key.same_as(material.key.expose()), "{}", kind.name());
            assert!(given.material.hmac_key.same_as(material.hmac_key.expose()));
            assert_eq!((given.created, given.public_key, given.encryptions), (line.created, line.public_key, 9 << 16));
            let archive = back.archived_keys.unwrap().keys.unwrap();
            assert!(archive[0].is_empty() && !archive[1].is_empty());
        }
    }

    #[test]
    fn halves_that_do_not_belong_together_are_refused() {
        let text = r#"{"ec_x":1,"ec_y":2,"ec_d":3}"#;
        let entry: Entry<'_> = serde_json::from_str(text).unwrap();
        assert!(entry.given(KeyType::EcdsaP256, false, 0, 0).is_err());
        let text = r#"{"rsa_key":{"N":15,"E":3,"D":3,"Primes":[3,7]}}"#;
        let entry: Entry<'_> = serde_json::from_str(text).unwrap();
        assert!(entry.given(KeyType::Rsa2048, false, 0, 0).is_err());
        let text = r#"{"key":"AAAA"}"#;
        let entry: Entry<'_> = serde_json::from_str(text).unwrap();
        assert!(entry.given(KeyType::Aes256Gcm96, false, 0, 0).is_err());
    }
}
