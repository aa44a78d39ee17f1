//! JSON merge patch (RFC 7396) over raw bytes: what the patch does not touch stays as it was written, digit for digit.

use std::collections::HashMap;

use serde_json::value::RawValue;

use crate::{
    core::failure::Failure,
    wire::json::{RawObject, push_name},
};

/// Objects in objects that a patch may have; more is no secret but an attack on the stack.
const MAX_DEPTH: usize = 128;

/// Merges `patch` into `target`; a target that is no object counts as an empty one.
pub fn merge(target: &[u8], patch: &[u8]) -> Result<Vec<u8>, Failure> {
    let target = object(target).unwrap_or_default();
    let patch = RawObject::parse(patch)?;
    let mut out = Vec::new();
    merge_objects(&mut out, &target, &patch, MAX_DEPTH)?;
    Ok(out)
}

/// The bytes as an object; a secret written by a list or text (impossible over the API) is none.
fn object(json: &[u8]) -> Option<RawObject<'_>> {
    if json.starts_with(b"{") { RawObject::parse(json).ok() } else { None }
}

fn merge_objects(out: &mut Vec<u8>, target: &RawObject<'_>, patch: &RawObject<'_>, depth: usize) -> Result<(), Failure> {
    let depth = depth.checked_sub(1).ok_or_else(|| Failure::invalid("the patch is nested too deeply"))?;
    let changes: HashMap<&str, &RawValue> = patch.iter().collect();
    let kept: HashMap<&str, &RawValue> = target.iter().collect();
    let start = out.len();
    out.push(b'{');
    for (name, value) in ordered(target, &kept) {
        match changes.get(name) {
            None => push_member(out, start, name, |out| {
                out.extend_from_slice(value.get().as_bytes());
                Ok(())
            })?,
            Some(change) if change.get() == "null" => {}
            Some(change) => push_member(out, start, name, |out| merge_values(out, Some(value), change, depth))?,
        }
    }
    for (name, change) in ordered(patch, &changes) {
        if !kept.contains_key(name) && change.get() != "null" {
            push_member(out, start, name, |out| merge_values(out, None, change, depth))?;
        }
    }
    out.push(b'}');
    Ok(())
}

fn merge_values(out: &mut Vec<u8>, target: Option<&RawValue>, change: &RawValue, depth: usize) -> Result<(), Failure> {
    if !change.get().starts_with('{') {
        out.extend_from_slice(change.get().as_bytes());
        return Ok(());
    }
    let patch = RawObject::parse(change.get().as_bytes())?;
    let target = target.and_then(|target| object(target.get().as_bytes())).unwrap_or_default();
    merge_objects(out, &target, &patch, depth)
}

/// The members in their order, of repeated ones the last.
fn ordered<'o, 'a>(
    object: &'o RawObject<'a>,
    last: &'o HashMap<&str, &'a RawValue>,
) -> impl Iterator<Item = (&'o str, &'a RawValue)> {
    object.iter().filter(|(name, value)| last.get(name).is_some_and(|kept| std::ptr::eq(*kept, *value)))
}

fn push_member(
    out: &mut Vec<u8>,
    start: usize,
    name: &str,
    value: impl FnOnce(&mut Vec<u8>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if out.len() > start + 1 {
        out.push(b',');
    }
    push_name(out, name);
    value(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn merged(target: &str, patch: &str) -> String {
        String::from_utf8(merge(target.as_bytes(), patch.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn the_examples_of_rfc_7396_that_are_objects() {
        for (target, patch, result) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, r#"{}"#),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            (r#"[1,2]"#, r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
            (r#"{}"#, r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            assert_eq!(merged(target, patch), result, "{target} {patch}");
        }
    }

    #[test]
    fn untouched_digits_stay_and_deep_patches_are_refused() {
        let big = r#"{"n":12345678901234567890.0100,"m":1}"#;
        assert_eq!(merged(big, r#"{"m":2}"#), r#"{"n":12345678901234567890.0100,"m":2}"#);
        let deep = format!("{}1{}", "{\"a\":".repeat(1000), "}".repeat(1000));
        assert!(merge(b"{}", deep.as_bytes()).is_err());
    }

    fn model(target: &Value, patch: &Value) -> Value {
        let Value::Object(patch) = patch else { return patch.clone() };
        let mut target = target.as_object().cloned().unwrap_or_default();
        for (name, value) in patch {
            if value.is_null() {
                target.remove(name);
            } else {
                let merged = model(target.get(name).unwrap_or(&Value::Null), value);
                target.insert(name.clone(), merged);
            }
        }
        Value::Object(target)
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Null), any::<i64>().prop_map(|n| json!(n)), "[a-c]{0,2}".prop_map(Value::String)];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_the_algorithm_of_the_rfc(target in any_json(), patch in any_json()) {
            prop_assume!(patch.is_object());
            let got = merged(&target.to_string(), &patch.to_string());
            prop_assert_eq!(serde_json::from_str::<Value>(&got).unwrap(), model(&target, &patch));
        }
    }
}
