//! Writing a backup.

use super::{
    number_of,
    numbers::{push_ec, push_rsa},
};
use crate::{
    core::failure::Failure,
    engines::transit::{
        alg::{KeyType, asym::AsymError, kdf::Kdf},
        b64,
        batch::push_text,
        keys::rfc3339,
        protect::Material,
        record::{KeyRecord, Passage, VersionLine},
    },
    secret::SecretBytes,
};

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
        i32::from(record.kdf == Some(Kdf::HkdfSha256)),
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
