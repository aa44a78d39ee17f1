//! Items of batches whose members are all strings: signing, verifying and HMACs.

use std::borrow::Cow;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::batch::{Name, Text, malformed, type_name};
use crate::core::{engine::Call, failure::Failure};

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

/// The batch of a request, if it is one.
pub fn batch_of<'a>(call: &'a Call<'_>) -> Result<Option<Vec<TextItem<'a>>>, Failure> {
    match call.body.member("batch_input").filter(|raw| raw.get() != "null") {
        Some(raw) => parse(raw).map(Some),
        None => Ok(None),
    }
}

/// Reads `batch_input`.
///
/// # Errors
/// 500 for wrong types and 400 for an empty list, as the API answers.
pub fn parse(raw: &RawValue) -> Result<Vec<TextItem<'_>>, Failure> {
    if !raw.get().starts_with('[') {
        return Err(malformed(&format!("source data must be an array or slice, got {}", type_name(raw))));
    }
    let raws: Vec<&RawValue> = serde_json::from_str(raw.get()).map_err(|error| malformed(&error.to_string()))?;
    if raws.is_empty() {
        return Err(Failure::invalid("missing batch input to process"));
    }
    let mut errors = Vec::new();
    let items = raws.into_iter().enumerate().map(|(at, raw)| item(at, raw, &mut errors)).collect::<Result<Vec<_>, _>>()?;
    if errors.is_empty() { Ok(items) } else { Err(malformed(&errors.join("\n"))) }
}

fn item<'a>(at: usize, raw: &'a RawValue, errors: &mut Vec<String>) -> Result<TextItem<'a>, Failure> {
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
            text => match serde_json::from_str::<Text<'a>>(text) {
                Ok(Text(text)) => text,
                Err(_) => {
                    let got = type_name(value);
                    errors.push(format!("'[{at}][{name}]' expected type 'string', got unconvertible type '{got}'"));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::failure::Kind;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn strings_are_read_and_everything_else_is_refused() {
        let good = raw(r#"[{"input":"YQ==","reference":"r"},{},{"input":null,"other":"x"}]"#);
        let items = parse(&good).unwrap();
        assert_eq!((items[0].input.as_deref(), items[0].reference.as_deref()), (Some("YQ=="), Some("r")));
        assert_eq!((items[1].input.as_deref(), items[2].input.as_deref()), (None, Some("")));
        for bad in ["\"x\"", "[17]", "[{\"input\":[\"x\"]}]", "[{\"other\":1}]", "{}"] {
            assert_eq!(parse(&raw(bad)).unwrap_err().kind(), Kind::Internal, "{bad}");
        }
        assert_eq!(parse(&raw("[]")).unwrap_err().kind(), Kind::Invalid);
    }
}
