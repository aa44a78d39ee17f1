//! `export/:type/:name`.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;
use zeroize::Zeroizing;

use super::{
    Transit,
    alg::{
        KeyType,
        asym::{AsymError, PrivateKey, PublicKey},
    },
    gate::{FEW_VERSIONS, Going, Job},
    keys::{pem, pem_chain},
    lifecycle::SOFT_DELETED,
    protect::Material,
    record::{KeyRecord, VersionLine},
};
use crate::{
    core::{
        engine::Call,
        failure::{Failure, Kind},
        reply::Reply,
    },
    params,
};

params! {
    /// Parameters of an export.
    pub struct ExportParams {
        /// `encryption-key`, `signing-key`, `hmac-key`, `public-key` or `certificate-chain`.
        pub kind as "type": String,
        /// Name of the key.
        pub name: String,
        /// A version, `latest`, or nothing for all versions.
        pub version: String,
        /// `raw`, `der` or `pem`; by default what suits the type.
        pub format: String,
    }
}

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Encryption,
    Signing,
    Hmac,
    Public,
    Certificates,
}

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Default,
    Raw,
    Der,
    Pem,
}

impl What {
    fn parse(text: &str) -> Result<Self, Failure> {
        Ok(match text {
            "encryption-key" => Self::Encryption,
            "signing-key" => Self::Signing,
            "hmac-key" => Self::Hmac,
            "public-key" => Self::Public,
            "certificate-chain" => Self::Certificates,
            _ => return Err(Failure::invalid(format!("invalid export type: {text}"))),
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Encryption => "encryption-key",
            Self::Signing => "signing-key",
            Self::Hmac => "hmac-key",
            Self::Public => "public-key",
            Self::Certificates => "certificate-chain",
        }
    }

    fn is_private(self) -> bool {
        !matches!(self, Self::Public | Self::Certificates)
    }

    fn check(self, kind: KeyType) -> Result<(), Failure> {
        let refuse = |text: &str| Err(Failure::invalid(text));
        match self {
            Self::Encryption if !kind.supports_encryption() => refuse("encryption not supported for the key"),
            Self::Signing if !kind.supports_signing() => refuse("signing not supported for the key"),
            Self::Certificates if !kind.supports_signing() => {
                refuse("certificate chain not supported for keys that do not support signing")
            }
            _ => Ok(()),
        }
    }
}

impl Format {
    fn parse(text: &str) -> Result<Self, Failure> {
        Ok(match text {
            "" => Self::Default,
            "raw" => Self::Raw,
            "der" => Self::Der,
            "pem" => Self::Pem,
            _ => return Err(Failure::invalid(format!("invalid format: {text}"))),
        })
    }
}

/// Key material on its way to the caller; the text is overwritten when it was written into the answer.
pub struct Shown(pub Zeroizing<String>);

impl Serialize for Shown {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// An answer of exports.
#[derive(Serialize)]
pub struct Exported<'a> {
    /// The key's name.
    pub name: &'a str,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: KeyType,
    /// A text per version.
    pub keys: BTreeMap<u32, Shown>,
}

fn stop(text: impl Into<String>) -> Failure {
    Failure::listed(Kind::Internal, text)
}

/// The versions that `version` names: all, the latest, or one.
pub fn chosen<'a>(record: &'a KeyRecord, version: &str) -> Result<Vec<&'a VersionLine>, Failure> {
    let refuse = |text: &str| Err(Failure::invalid(text));
    let asked = match version {
        "" => {
            let shown = record.versions.iter().filter(|line| line.version >= record.min_decryption_version);
            return Ok(shown.collect());
        }
        "latest" => i64::from(record.latest_version),
        text => match text.strip_prefix('v').unwrap_or(text).parse() {
            Ok(version) => version,
            Err(_) => return refuse("invalid key version"),
        },
    };
    if asked < i64::from(record.min_decryption_version) {
        return refuse("version for export is below minimum decryption version");
    }
    match u32::try_from(asked).ok().and_then(|version| record.line(version)) {
        Some(line) => Ok(vec![line]),
        None => refuse("version does not exist or cannot be found"),
    }
}

/// GET `export/:type/:name`.
pub async fn export(engine: &Transit, call: &Call<'_>, params: ExportParams) -> Result<Reply, Failure> {
    let what = What::parse(&params.kind)?;
    let format = Format::parse(&params.format)?;
    let Some(key) = engine.store.key(&params.name)? else { return Err(Failure::not_found()) };
    let record = &key.record;
    if what.is_private() {
        Transit::check_leaves(record)?;
    }
    if what.is_private() && !record.exportable {
        return Err(Failure::invalid("private key material is not exportable"));
    }
    if record.soft_deleted {
        return Err(stop(SOFT_DELETED));
    }
    what.check(record.kind)?;
    let lines = chosen(record, &params.version)?;
    let (going, small) = (Going::of(call, &engine.store.view), lines.len() <= FEW_VERSIONS);
    let versions: Vec<_> = match what.is_private() {
        true => {
            let brought = engine.bring_all_out(&key, &lines, &going).await?;
            brought.into_iter().map(|brought| (brought.version, Some(brought.material))).collect()
        }
        false => lines.iter().map(|line| (line.version, None)).collect(),
    };
    let write = move |job: &mut Job| {
        let mut keys = BTreeMap::new();
        job.expect(versions.len());
        for (version, material) in versions {
            job.version()?;
            let line = key.record.line(version).ok_or_else(|| stop("version does not exist or cannot be found"))?;
            let text = match material {
                Some(material) => private(key.record.kind, &material, what, format)?,
                None => public(&key.record, line, what, format)?,
            };
            keys.insert(version, Shown(text));
        }
        Reply::data(&Exported { name: &key.name, kind: key.record.kind, keys })
    };
    engine.stores.gate.whole_key(small, going, write).await
}

/// What is no secret of a version.
fn public(record: &KeyRecord, line: &VersionLine, what: What, format: Format) -> Result<Zeroizing<String>, Failure> {
    if what == What::Certificates {
        if line.certificate_chain.is_empty() {
            return Err(stop("selected key version does not have a certificate chain imported"));
        }
        return Ok(Zeroizing::new(pem_chain(&line.certificate_chain)));
    }
    // Of a derived key it is that of the key which contexts derive from, as everywhere.
    match line.public_key.as_deref() {
        Some(text) => public_text(record.kind, text, format).map(Zeroizing::new),
        None if record.kind.is_asymmetric() => Ok(Zeroizing::default()),
        None => Err(stop(format!("unknown key type {} for export type {}", record.kind.name(), what.name()))),
    }
}

fn private(kind: KeyType, material: &Material, what: What, format: Format) -> Result<Zeroizing<String>, Failure> {
    let secret = if what == What::Hmac { &material.hmac_key } else { &material.key };
    if what == What::Hmac || kind.is_cipher() {
        return match format {
            Format::Der | Format::Pem => Err(stop("unknown format for HMAC key; supported values are `` or `raw`")),
            Format::Default | Format::Raw => Ok(Zeroizing::new(STANDARD.encode(secret.expose()))),
        };
    }
    if secret.is_empty() {
        return Ok(Zeroizing::default());
    }
    if kind == KeyType::Ed25519 && matches!(format, Format::Default | Format::Raw) {
        return Ok(Zeroizing::new(STANDARD.encode(secret.expose())));
    }
    if format == Format::Raw {
        let family = if kind.is_ecdsa() { "ec" } else { "rsa" };
        return Err(stop(format!("unknown key format for {family} key; supported values are ``, `der`, or `pem`")));
    }
    let private = PrivateKey::from_stored(kind, secret.expose()).map_err(Failure::internal)?;
    private_text(&private, format).map_err(Failure::internal)
}

fn private_text(key: &PrivateKey, format: Format) -> Result<Zeroizing<String>, AsymError> {
    let der = key.to_pkcs8()?;
    if format == Format::Der {
        return Ok(Zeroizing::new(STANDARD.encode(der.expose())));
    }
    let traditional = if format == Format::Default { key.to_traditional()? } else { None };
    let (label, der) = match (key, traditional) {
        (PrivateKey::Rsa(_), Some(der)) => ("RSA PRIVATE KEY", der),
        (PrivateKey::Ec(_), Some(der)) => ("EC PRIVATE KEY", der),
        _ => ("PRIVATE KEY", der),
    };
    let text = Zeroizing::new(pem(label, &Zeroizing::new(STANDARD.encode(der.expose()))));
    // The API ends RSA texts with a line break and others without.
    Ok(match key {
        PrivateKey::Rsa(_) => Zeroizing::new(format!("{}\n", text.as_str())),
        PrivateKey::Ec(_) | PrivateKey::Ed(_) => text,
    })
}

fn public_text(kind: KeyType, text: &str, format: Format) -> Result<String, Failure> {
    if kind == KeyType::Ed25519 && matches!(format, Format::Default | Format::Raw) {
        return Ok(text.to_owned());
    }
    if format == Format::Raw {
        let family = if kind.is_ecdsa() { "ec" } else { "rsa" };
        return Err(stop(format!("unknown key format for {family} key; supported values are ``, `der`, or `pem`")));
    }
    let der = PublicKey::from_text(kind, text).and_then(|key| key.to_der()).map_err(Failure::internal)?;
    let encoded = STANDARD.encode(der);
    if format == Format::Der {
        return Ok(encoded);
    }
    let block = pem("PUBLIC KEY", &encoded);
    Ok(if kind.rsa_bits().is_some() { format!("{block}\n") } else { block })
}
