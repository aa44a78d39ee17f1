//! Transit key versions: the rebuilt key makes something, and the running server, which is only asked to decrypt or
//! verify, tells whether it is the same key.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::live::{Live, Rebuilt, Unasked};
use super::sample::{Drawn, Sample};
use super::secrets::escaped;
use super::{DrillError, Progress, Report, Step};

pub(super) async fn open(
    rebuilt: &Rebuilt,
    live: Option<&dyn Live>,
    mount: &str,
    sample: Sample,
    report: &mut Report,
    progress: Progress<'_>,
) -> Result<(), DrillError> {
    let mut drawn = Drawn::new(sample);
    for name in rebuilt.list(&format!("{mount}keys/")).await.map_err(DrillError::Server)? {
        drawn.offer(name);
    }
    for name in drawn.names() {
        if let Err(error) = open_key(rebuilt, live, mount, &name, report).await {
            report.key_versions.tried += 1;
            report.fail(format!("{mount}{name}: {error}"));
        }
        progress(Step::Opened(report.key_versions.opened));
    }
    Ok(())
}

/// What is known of a key.
struct Facts {
    kind: String,
    derived: bool,
    encrypts: bool,
    signs: bool,
}

async fn open_key(
    rebuilt: &Rebuilt,
    live: Option<&dyn Live>,
    mount: &str,
    name: &str,
    report: &mut Report,
) -> Result<(), String> {
    let path = format!("{mount}keys/{name}");
    let key = rebuilt.read(&path, &[]).await?;
    let flag = |field: &str| key.get(field).and_then(Value::as_bool).unwrap_or(false);
    let facts = Facts {
        kind: key.get("type").and_then(Value::as_str).unwrap_or_default().to_owned(),
        derived: flag("derived"),
        encrypts: flag("supports_encryption"),
        signs: flag("supports_signing"),
    };
    // The copy may be changed at will: old versions are to be opened too.
    let bounds = json!({"min_decryption_version": 1, "min_encryption_version": 0});
    rebuilt.write(&format!("{path}/config"), &bounds).await?;
    let key = rebuilt.read(&path, &[]).await?;
    let number = |field: &str| key.get(field).and_then(Value::as_u64).unwrap_or(0);
    for version in number("min_available_version").max(1)..=number("latest_version") {
        let shown = format!("{mount}{name} v{version}");
        if report.hsm_only.contains(&shown) {
            continue;
        }
        report.key_versions.tried += 1;
        match open_version(rebuilt, live, mount, name, &facts, version).await {
            Ok(verdict) => {
                report.key_versions.opened += 1;
                match verdict {
                    Verdict::Alone => {}
                    Verdict::Same => report.key_versions.same += 1,
                    Verdict::NotInUse => report.key_versions.moved += 1,
                    Verdict::Unasked(unasked) => {
                        report.key_versions.unasked += 1;
                        report.could_not_ask(unasked);
                    }
                    Verdict::Different => report.fail(format!("{shown}: it is another key than the running server has")),
                }
            }
            Err(error) => report.fail(format!("{shown}: {error}")),
        }
    }
    Ok(())
}

/// How an opened version compares.
enum Verdict {
    /// There is no running server.
    Alone,
    /// The running server has the same key.
    Same,
    /// The running server does not use this version (any more).
    NotInUse,
    /// The running server does not say.
    Unasked(Unasked),
    /// The running server has another key.
    Different,
}

async fn open_version(
    rebuilt: &Rebuilt,
    live: Option<&dyn Live>,
    mount: &str,
    name: &str,
    facts: &Facts,
    version: u64,
) -> Result<Verdict, String> {
    let text = STANDARD.encode(crate::secret::random_array::<32>());
    let mut body = json!({"key_version": version});
    if facts.derived {
        set(&mut body, "context", json!(STANDARD.encode(crate::secret::random_array::<32>())));
    }
    let (make, check, proof) = match facts {
        Facts { encrypts: true, .. } => ("encrypt", "decrypt", "ciphertext"),
        Facts { signs: true, .. } => ("sign", "verify", "signature"),
        Facts { kind, .. } if kind == "aes128-cmac" || kind == "aes256-cmac" => ("cmac", "verify", "cmac"),
        _ => ("hmac", "verify", "hmac"),
    };
    let field = if make == "encrypt" { "plaintext" } else { "input" };
    set(&mut body, field, json!(text));
    let made = rebuilt.write(&format!("{mount}{make}/{name}"), &body).await?;
    let made = made.get(proof).cloned().ok_or("the answer holds no proof")?;
    set(&mut body, proof, made);
    let holds = |answer: &Value| match make {
        "encrypt" => answer.get("plaintext").and_then(Value::as_str) == Some(text.as_str()),
        _ => answer.get("valid").and_then(Value::as_bool) == Some(true),
    };
    if make == "encrypt"
        && let Some(body) = body.as_object_mut()
    {
        body.remove("plaintext");
        body.remove("key_version");
    }
    if !holds(&rebuilt.write(&format!("{mount}{check}/{name}"), &body).await?) {
        return Err("what it makes it does not open".to_owned());
    }
    let Some(live) = live else { return Ok(Verdict::Alone) };
    let key = match live.read(&escaped(&format!("{mount}keys/{name}"))) {
        Ok(Some(key)) => key,
        Ok(None) => return Ok(Verdict::NotInUse),
        Err(unasked) => return Ok(Verdict::Unasked(unasked)),
    };
    let theirs = |field: &str| key.pointer(&format!("/data/{field}")).and_then(Value::as_u64).unwrap_or(0);
    let in_use = (theirs("min_decryption_version")..=theirs("latest_version")).contains(&version);
    if !in_use || key.pointer("/data/type").and_then(Value::as_str) != Some(&facts.kind) {
        return Ok(Verdict::NotInUse);
    }
    match live.ask(&escaped(&format!("{mount}{check}/{name}")), &body) {
        Ok(Some(answer)) if holds(answer.get("data").unwrap_or(&Value::Null)) => Ok(Verdict::Same),
        Ok(_) => Ok(Verdict::Different),
        Err(unasked) => Ok(Verdict::Unasked(unasked)),
    }
}

fn set(body: &mut Value, field: &str, value: Value) {
    if let Some(body) = body.as_object_mut() {
        body.insert(field.to_owned(), value);
    }
}
