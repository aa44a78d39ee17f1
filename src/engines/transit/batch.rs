//! Batches: reading `batch_input` and writing `batch_results`.
//!
//! A batch may hold thousands of items; strings are borrowed from the request's body where they have no escapes, and
//! results are written straight into the answer.

use std::borrow::Cow;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::ops::ItemError;
use crate::{
    core::{
        failure::{Failure, Kind},
        reply::Reply,
    },
    wire::field::{FieldKind, FromField},
};

/// One item of a batch.
#[derive(Debug, Default)]
pub struct Item<'a> {
    /// `plaintext`, base64.
    pub plaintext: Cow<'a, str>,
    /// `ciphertext`.
    pub ciphertext: Cow<'a, str>,
    /// `context`, base64.
    pub context: Cow<'a, str>,
    /// `nonce`, base64.
    pub nonce: Cow<'a, str>,
    /// `associated_data`, base64.
    pub associated_data: Cow<'a, str>,
    /// `reference`.
    pub reference: Cow<'a, str>,
    /// `key_version`.
    pub key_version: i64,
}

/// Stands for `batch_input` in a parameter list; the handler reads the raw member itself.
#[derive(Debug)]
pub struct Batch;

impl FromField for Batch {
    const KIND: FieldKind = FieldKind::Any;

    fn from_json(_: &RawValue) -> Result<Self, String> {
        Ok(Self)
    }

    fn from_text(_: &str) -> Result<Self, String> {
        Ok(Self)
    }

    fn missing() -> Self {
        Self
    }
}

/// What an item must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// `plaintext`.
    Plaintext,
    /// `ciphertext`.
    Ciphertext,
    /// Nothing.
    Nothing,
}

/// The members of an item that are used, raw.
#[derive(Default)]
struct RawItem<'a> {
    members: [Option<&'a RawValue>; NAMES.len()],
}

const NAMES: [&str; 7] = ["context", "ciphertext", "plaintext", "key_version", "associated_data", "reference", "nonce"];

impl<'de: 'a, 'a> Deserialize<'de> for RawItem<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<'a>(std::marker::PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for Members<'a> {
            type Value = RawItem<'a>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut item = RawItem::default();
                while let Some(Name(name)) = map.next_key::<Name<'de>>()? {
                    let value = map.next_value::<&'de RawValue>()?;
                    if let Some(at) = NAMES.iter().position(|known| *known == name) {
                        item.members[at] = Some(value);
                    }
                }
                Ok(item)
            }
        }
        deserializer.deserialize_map(Members(std::marker::PhantomData))
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Name<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// What clients of a Go server read as the type of a JSON value.
pub(super) fn type_name(raw: &RawValue) -> &'static str {
    match raw.get().as_bytes().first() {
        Some(b'"') => "string",
        Some(b'{') => "map[string]interface {}",
        Some(b'[') => "[]interface {}",
        Some(b't' | b'f') => "bool",
        Some(b'n') | None => "<nil>",
        Some(_) => "json.Number",
    }
}

/// The content of a JSON string that stands there as it is, which almost all do.
fn without_escapes(raw: &RawValue) -> Option<&str> {
    raw.get().strip_prefix('"')?.strip_suffix('"').filter(|inner| !inner.contains('\\'))
}

pub(super) fn malformed(text: &str) -> Failure {
    Failure::listed(Kind::Internal, format!("failed to parse batch input: {text}"))
}

/// Reads `batch_input`.
///
/// # Errors
/// What the API answers to malformed batches: 500 for wrong types, 400 for an empty list.
pub fn parse<'a>(raw: &'a RawValue, needs: Needs) -> Result<Vec<Item<'a>>, Failure> {
    if !raw.get().starts_with('[') {
        return Err(malformed(&format!("source data must be an array or slice, got {}", type_name(raw))));
    }
    let raws: Vec<&RawValue> = serde_json::from_str(raw.get()).map_err(|error| malformed(&error.to_string()))?;
    if raws.is_empty() {
        return Err(Failure::invalid("missing batch input to process"));
    }
    let mut errors = Vec::new();
    let mut items = Vec::with_capacity(raws.len());
    for (at, raw) in raws.into_iter().enumerate() {
        if !raw.get().starts_with('{') {
            return Err(malformed(&format!("[{at}] expected a map, got '{}'", type_name(raw))));
        }
        let members: RawItem<'a> = serde_json::from_str(raw.get()).map_err(|error| malformed(&error.to_string()))?;
        items.push(item(at, &members, needs, &mut errors));
    }
    if errors.is_empty() { Ok(items) } else { Err(malformed(&errors.join("\n"))) }
}

fn item<'a>(at: usize, raw: &RawItem<'a>, needs: Needs, errors: &mut Vec<String>) -> Item<'a> {
    let [context, ciphertext, plaintext, key_version, associated_data, reference, nonce] = raw.members;
    let mut text = |name: &str, value: Option<&'a RawValue>, null: bool| match value {
        None => Cow::Borrowed(""),
        Some(raw) if null && raw.get() == "null" => Cow::Borrowed(""),
        Some(raw) if let Some(plain) = without_escapes(raw) => Cow::Borrowed(plain),
        Some(raw) => match serde_json::from_str::<Text<'a>>(raw.get()) {
            Ok(Text(text)) => text,
            Err(_) => {
                let got = type_name(raw);
                errors.push(format!("'[{at}].{name}' expected type 'string', got unconvertible type '{got}'"));
                Cow::Borrowed("")
            }
        },
    };
    let mut item = Item { context: text("context", context, true), ..Item::default() };
    item.ciphertext = text("ciphertext", ciphertext, true);
    item.plaintext = text("plaintext", plaintext, false);
    item.associated_data = text("associated_data", associated_data, true);
    item.reference = text("reference", reference, true);
    item.nonce = text("nonce", nonce, true);
    if ciphertext.is_none() && needs == Needs::Ciphertext {
        errors.push(format!("'[{at}].ciphertext' missing ciphertext to decrypt"));
    }
    if plaintext.is_none() && needs == Needs::Plaintext {
        errors.push(format!("'[{at}].plaintext' missing plaintext to encrypt"));
    }
    item.key_version = match key_version {
        Some(raw) if raw.get() != "null" => match raw.get().parse() {
            Ok(version) => version,
            Err(_) => {
                let got = type_name(raw);
                errors.push(format!("'[{at}].key_version' expected type 'int', got unconvertible type '{got}'"));
                0
            }
        },
        _ => 0,
    };
    item
}

/// Appends a JSON string.
pub fn push_text(text: &str, out: &mut Vec<u8>) {
    let plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
    if text.bytes().all(plain) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else if let Ok(encoded) = serde_json::to_vec(text) {
        out.extend_from_slice(&encoded);
    }
}

/// How the items of a batch fared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// At least one succeeded.
    pub good: bool,
    /// At least one failed by the caller's mistake.
    pub user_error: bool,
    /// At least one failed otherwise.
    pub internal_error: bool,
}

impl Tally {
    /// Counts a failed item.
    pub fn count(&mut self, error: &ItemError) {
        if error.silent {
            return;
        }
        if error.internal {
            self.internal_error = true;
        } else {
            self.user_error = true;
        }
    }

    /// The answer with its status: 400 when a caller's mistake is among the items, else 500 when another failure is;
    /// `override_code` replaces either when at least one item succeeded.
    pub fn reply(self, data: Vec<u8>, override_code: Option<i64>) -> Reply {
        let code = match (self.user_error, self.internal_error) {
            (true, _) => 400,
            (false, true) => 500,
            (false, false) => return Reply::raw_data(data),
        };
        match override_code.filter(|_| self.good) {
            None => Reply::raw_data(data).with_status(code),
            Some(asked) => match u16::try_from(asked) {
                // A status below 200 is not the end of an answer, so no client would read on.
                Ok(asked) if (200..=599).contains(&asked) => Reply::raw_data(data).with_status(asked),
                _ => Reply::raw_data(data).with_status(code).with_warning(format!(
                    "invalid HTTP response code override from partial_failure_response_code, reverting to {code}"
                )),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn items_are_read_and_the_rest_is_passed_over() {
        let raw = raw(r#"[{"plaintext":"YQ==","key_version":2,"x":1,"reference":"a\n"},{"plaintext":"","context":null}]"#);
        let items = parse(&raw, Needs::Plaintext).unwrap();
        assert_eq!((items[0].plaintext.as_ref(), items[0].key_version, items[0].reference.as_ref()), ("YQ==", 2, "a\n"));
        assert_eq!(items[1].context, "");
    }

    #[test]
    fn the_last_of_repeated_members_counts() {
        let raw = raw(r#"[{"plaintext":"!","plaintext":"YQ=="}]"#);
        assert_eq!(parse(&raw, Needs::Plaintext).unwrap()[0].plaintext, "YQ==");
    }

    #[test]
    fn malformed_batches_say_where() {
        for (text, error) in [
            ("\"x\"", "failed to parse batch input: source data must be an array or slice, got string"),
            ("[17]", "failed to parse batch input: [0] expected a map, got 'json.Number'"),
            ("[{}]", "failed to parse batch input: '[0].plaintext' missing plaintext to encrypt"),
            (
                "[{\"plaintext\":true}]",
                "failed to parse batch input: '[0].plaintext' expected type 'string', got unconvertible type 'bool'",
            ),
        ] {
            assert_eq!(parse(&raw(text), Needs::Plaintext).unwrap_err().text(), error);
        }
        assert_eq!(parse(&raw("[]"), Needs::Nothing).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn the_status_follows_the_worst_item() {
        let tally = |good, user_error, internal_error| Tally { good, user_error, internal_error };
        assert_eq!(tally(true, false, false).reply(vec![], Some(207)).status, None);
        assert_eq!(tally(true, true, true).reply(vec![], None).status, Some(400));
        assert_eq!(tally(false, false, true).reply(vec![], Some(207)).status, Some(500));
        assert_eq!(tally(true, true, false).reply(vec![], Some(207)).status, Some(207));
        let reply = tally(true, true, false).reply(vec![], Some(999));
        assert_eq!((reply.status, reply.warnings.len()), (Some(400), 1));
    }

    #[test]
    fn texts_are_escaped() {
        let mut out = Vec::new();
        push_text("a\"b\n", &mut out);
        assert_eq!(out, b"\"a\\\"b\\n\"");
    }
}
