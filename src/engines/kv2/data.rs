//! `data/`: versions of a secret. `subkeys/`: their structure without the values.

use super::{
    Kv2,
    change::{Cas, Change},
    params::{RawMap, ReadData, ReadSubkeys, WriteData},
    record::version_path,
    show,
};
use crate::{
    core::{engine::Call, failure::Failure, reply::Reply},
    wire::{
        field::{FromField, NoParams},
        json::{RawObject, push_name},
    },
};

/// Levels that `subkeys/` descends at most, whatever it is asked for.
const MAX_DEPTH: usize = 100;

/// Reads a version.
pub async fn read(engine: &Kv2, call: &Call<'_>, params: ReadData) -> Result<Reply, Failure> {
    let key = call.capture("path");
    let found = engine.keys.version(key, params.version).await?.ok_or_else(Failure::not_found)?;
    let json = found.json(&version_path(key, found.version.number))?;
    Ok(show::found("data", json, &found.version, &found.key))
}

/// Writes a new version.
pub async fn write(engine: &Kv2, call: &Call<'_>, params: WriteData) -> Result<Reply, Failure> {
    let key = call.capture("path");
    if key.is_empty() {
        return Err(Failure::invalid("missing path"));
    }
    let cas = cas(params.options.as_ref())?;
    let data = params.data.ok_or_else(|| Failure::invalid("no data provided"))?.0;
    engine.keys.change(key, Change::Write { data, cas }).await
}

/// Writes a new version that changes some members of the latest.
pub async fn patch(engine: &Kv2, call: &Call<'_>, params: WriteData) -> Result<Reply, Failure> {
    let cas = cas(params.options.as_ref())?;
    let patch = params.data.ok_or_else(|| Failure::invalid("no data provided"))?.0;
    engine.keys.change(call.capture("path"), Change::Patch { patch, cas }).await
}

/// Deletes the latest version.
pub async fn delete(engine: &Kv2, call: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    engine.keys.change(without_slash(call.capture("path")), Change::DeleteLatest).await
}

/// The key that a path with a slash at its end names where no version is read: Vault does not look at that slash, and a deletion
/// must not be answered as done where it was not.
pub fn without_slash(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
}

/// `options.cas` as Vault reads it: numbers, texts and booleans; `null` is 0.
fn cas(options: Option<&RawMap>) -> Result<Cas, Failure> {
    let Some(options) = options else { return Ok(Cas::None) };
    match options.object().member("cas") {
        None => Ok(Cas::None),
        Some(raw) if raw.get() == "null" => Ok(Cas::Version(0)),
        Some(raw) => i64::from_json(raw).map(Cas::Version).map_err(|_| Failure::invalid("error parsing check-and-set parameter")),
    }
}

/// Shows the names of a version's members.
pub async fn subkeys(engine: &Kv2, call: &Call<'_>, params: ReadSubkeys) -> Result<Reply, Failure> {
    let key = call.capture("path");
    let found = engine.keys.version(key, params.version).await?.ok_or_else(Failure::not_found)?;
    let names = found.json(&version_path(key, found.version.number))?.map(|json| {
        let depth = usize::try_from(params.depth).ok().filter(|depth| *depth > 0).unwrap_or(MAX_DEPTH);
        names(json, depth.min(MAX_DEPTH))
    });
    Ok(show::found("subkeys", names.as_deref(), &found.version, &found.key))
}

/// The object with `null` for everything that is not an object with members, and below `depth` levels.
fn names(json: &[u8], depth: usize) -> Vec<u8> {
    let mut out = Vec::new();
    match RawObject::parse(json) {
        Ok(object) if json != b"null" => push_names(&mut out, &object, depth),
        _ => out.extend_from_slice(b"null"),
    }
    out
}

fn push_names(out: &mut Vec<u8>, object: &RawObject<'_>, depth: usize) {
    out.push(b'{');
    for (index, (name, value)) in object.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push_name(out, name);
        let inner = if depth > 1 && value.get().starts_with('{') { RawObject::parse(value.get().as_bytes()).ok() } else { None };
        match inner.filter(|inner| !inner.is_empty()) {
            Some(inner) => push_names(out, &inner, depth - 1),
            None => out.extend_from_slice(b"null"),
        }
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structure_is_shown_to_the_depth_asked_for() {
        let json = br#"{"s":"x","l":[{"a":1}],"eo":{},"o":{"p":{"q":1e999}}}"#;
        let shown = |depth| String::from_utf8(names(json, depth)).unwrap();
        assert_eq!(shown(1), r#"{"s":null,"l":null,"eo":null,"o":null}"#);
        assert_eq!(shown(2), r#"{"s":null,"l":null,"eo":null,"o":{"p":null}}"#);
        assert_eq!(shown(100), r#"{"s":null,"l":null,"eo":null,"o":{"p":{"q":null}}}"#);
        assert_eq!(names(b"{}", 100), b"{}");
    }

    #[test]
    fn deep_secrets_do_not_overflow_the_stack() {
        let deep = format!("{}1{}", "{\"a\":".repeat(20_000), "}".repeat(20_000));
        let shown = String::from_utf8(names(deep.as_bytes(), MAX_DEPTH)).unwrap();
        assert!(shown.ends_with(&format!("{{\"a\":null{}", "}".repeat(MAX_DEPTH))), "{shown}");
    }
}
