//! Items of the batches that encrypt, decrypt and rewrap.

use std::borrow::Cow;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{FromItem, Mistakes, Name, Needs, Text, is_number, malformed, type_name};
use crate::core::failure::Failure;

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

impl<'a> FromItem<'a> for Item<'a> {
    fn from_item(at: usize, raw: &'a RawValue, needs: Needs, mistakes: &mut Mistakes) -> Result<Self, Failure> {
        if needs == Needs::Nothing && raw.get() == "null" {
            return Ok(Self::default());
        }
        if !raw.get().starts_with('{') {
            return Err(malformed(&format!("[{at}] expected a map, got '{}'", type_name(raw))));
        }
        let members: RawItem<'a> = serde_json::from_str(raw.get()).map_err(|error| malformed(&error.to_string()))?;
        Ok(item(at, &members, needs, mistakes))
    }
}

/// The members of an item that are used, raw.
#[derive(Default)]
struct RawItem<'a> {
    members: [Option<&'a RawValue>; NAMES.len()],
    /// Those whose names are written with other letters, such as `Ciphertext`.
    in_other_case: [Option<&'a RawValue>; NAMES.len()],
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
                    } else if let Some(at) = NAMES.iter().position(|known| known.eq_ignore_ascii_case(&name)) {
                        item.in_other_case[at] = Some(value);
                    }
                }
                Ok(item)
            }
        }
        deserializer.deserialize_map(Members(std::marker::PhantomData))
    }
}

/// The API reads items that need nothing, which are those of rewraps, by other means than the rest: there numbers are
/// texts too, and the letters of names do not matter.
fn item<'a>(at: usize, raw: &RawItem<'a>, needs: Needs, mistakes: &mut Mistakes) -> Item<'a> {
    let lenient = needs == Needs::Nothing;
    let mut members = raw.members;
    if lenient {
        members.iter_mut().zip(raw.in_other_case).for_each(|(member, other)| *member = member.or(other));
    }
    let [context, ciphertext, plaintext, key_version, associated_data, reference, nonce] = members;
    let text = |name: &str, value: Option<&'a RawValue>, null: bool, mistakes: &mut Mistakes| match value {
        None => Cow::Borrowed(""),
        Some(raw) if null && raw.get() == "null" => Cow::Borrowed(""),
        Some(raw) if let Some(plain) = without_escapes(raw) => Cow::Borrowed(plain),
        Some(raw) if lenient && is_number(raw) => Cow::Borrowed(raw.get()),
        Some(raw) => match serde_json::from_str::<Text<'a>>(raw.get()) {
            Ok(Text(text)) => text,
            Err(_) => {
                let got = type_name(raw);
                mistakes.push(|| format!("'[{at}].{name}' expected type 'string', got unconvertible type '{got}'"));
                Cow::Borrowed("")
            }
        },
    };
    // In the order in which the API lists what is wrong.
    let mut item = Item { context: text("context", context, true, mistakes), ..Item::default() };
    item.ciphertext = text("ciphertext", ciphertext, true, mistakes);
    if ciphertext.is_none() && needs == Needs::Ciphertext {
        mistakes.push(|| format!("'[{at}].ciphertext' missing ciphertext to decrypt"));
    }
    item.plaintext = text("plaintext", plaintext, lenient, mistakes);
    if plaintext.is_none() && needs == Needs::Plaintext {
        mistakes.push(|| format!("'[{at}].plaintext' missing plaintext to encrypt"));
    }
    item.key_version = match key_version {
        Some(raw) if raw.get() != "null" => raw.get().parse().unwrap_or_else(|_| {
            mistakes.push(|| no_version(at, raw));
            0
        }),
        _ => 0,
    };
    item.associated_data = text("associated_data", associated_data, true, mistakes);
    item.reference = text("reference", reference, true, mistakes);
    item.nonce = text("nonce", nonce, true, mistakes);
    item
}

fn no_version(at: usize, raw: &RawValue) -> String {
    if is_number(raw) {
        let number = raw.get();
        return format!(
            "error decoding json.Number into [{at}].key_version: strconv.ParseInt: parsing \"{number}\": invalid syntax"
        );
    }
    let got = type_name(raw);
    format!("'[{at}].key_version' expected type 'int', got unconvertible type '{got}'")
}

/// The content of a JSON string that stands there as it is, which almost all do.
fn without_escapes(raw: &RawValue) -> Option<&str> {
    raw.get().strip_prefix('"')?.strip_suffix('"').filter(|inner| !inner.contains('\\'))
}
