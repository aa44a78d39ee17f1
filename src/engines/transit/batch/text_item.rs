//! Items of batches whose members are all strings: signing, verifying and HMACs.

use std::borrow::Cow;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{FromItem, Mistakes, Name, Needs, Text, is_number, malformed, type_name};
use crate::core::failure::Failure;

/// One item.
#[derive(Debug, Default)]
pub struct TextItem<'a> {
    /// `input`, base64.
    pub input: Option<Cow<'a, str>>,
    /// `context`, base64.
    pub context: Option<Cow<'a, str>>,
    /// `signature`.
    pub signature: Option<Cow<'a, str>>,
    /// `hmac`.
    pub hmac: Option<Cow<'a, str>>,
    /// `reference`.
    pub reference: Option<Cow<'a, str>>,
}

/// The members of an object, raw and in order.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect<'a>(std::marker::PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for Collect<'a> {
            type Value = Members<'a>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(Name(name)) = map.next_key::<Name<'de>>()? {
                    members.push((name, map.next_value::<&'de RawValue>()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect(std::marker::PhantomData))
    }
}

impl<'a> FromItem<'a> for TextItem<'a> {
    fn from_item(at: usize, raw: &'a RawValue, _: Needs, mistakes: &mut Mistakes) -> Result<Self, Failure> {
        if raw.get() == "null" {
            return Ok(TextItem::default());
        }
        if !raw.get().starts_with('{') {
            return Err(malformed(&format!("[{at}] expected a map, got '{}'", type_name(raw))));
        }
        let members: Members<'a> = serde_json::from_str(raw.get()).map_err(|error| malformed(&error.to_string()))?;
        let mut item = TextItem::default();
        for (name, value) in members.0 {
            let text = match value.get() {
                "null" => Cow::Borrowed(""),
                // The API reads numbers as their text here, so a client may number its references.
                number if is_number(value) => Cow::Borrowed(number),
                text => match serde_json::from_str::<Text<'a>>(text) {
                    Ok(Text(text)) => text,
                    Err(_) => {
                        let got = type_name(value);
                        mistakes.push(|| format!("'[{at}][{name}]' expected type 'string', got unconvertible type '{got}'"));
                        continue;
                    }
                },
            };
            match name.as_ref() {
                "input" => item.input = Some(text),
                "context" => item.context = Some(text),
                "signature" => item.signature = Some(text),
                "hmac" => item.hmac = Some(text),
                "reference" => item.reference = Some(text),
                _ => {}
            }
        }
        Ok(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn strings_are_read_and_everything_else_is_refused() {
        let read = |text: &str, look: &dyn Fn(TextItem<'_>)| {
            let (raw, mut mistakes) = (raw(text), Mistakes::default());
            let item = TextItem::from_item(0, &raw, Needs::Nothing, &mut mistakes)?;
            look(item);
            mistakes.judge()
        };
        let empty = |item: TextItem<'_>| assert_eq!(item.input, None);
        read(r#"{"input":"YQ==","reference":"r"}"#, &|item| {
            assert_eq!((item.input.as_deref(), item.reference.as_deref()), (Some("YQ=="), Some("r")));
        })
        .unwrap();
        read("{}", &empty).unwrap();
        read("null", &empty).unwrap();
        read(r#"{"input":null,"other":"x"}"#, &|item| assert_eq!(item.input.as_deref(), Some(""))).unwrap();
        read(r#"{"input":17,"reference":1.50}"#, &|item| {
            assert_eq!((item.input.as_deref(), item.reference.as_deref()), (Some("17"), Some("1.50")));
        })
        .unwrap();
        for bad in ["17", "\"x\"", "{\"input\":[\"x\"]}", "{\"other\":true}"] {
            assert_eq!(read(bad, &|_| ()).unwrap_err().kind(), crate::core::failure::Kind::Internal, "{bad}");
        }
    }
}
