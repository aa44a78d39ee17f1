//! A JSON object whose members stay raw bytes until someone asks for them.

use std::{borrow::Cow, cell::Cell, collections::HashMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use thiserror::Error;

/// Why a request body is not usable as parameters.
#[derive(Debug, Error)]
#[error("failed to parse JSON input: {0}")]
pub struct JsonError(String);

/// The members of a JSON object, in the order given, each still in the bytes that came.
///
/// An absent, blank or `null` body is an empty object, as clients send all three. Of repeated members the last counts.
#[derive(Debug, Default)]
pub struct RawObject<'a> {
    members: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> RawObject<'a> {
    /// Splits `bytes` into members. Where these are few bytes each they take some ten times the length of `bytes`.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, JsonError> {
        Self::parse_at_most(bytes, usize::MAX)
    }

    /// The same for at most so many members.
    pub fn parse_at_most(bytes: &'a [u8], most: usize) -> Result<Self, JsonError> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        let too_many = Cell::new(false);
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let parsed = Members { most, too_many: &too_many }.deserialize(&mut deserializer);
        let parsed = parsed.and_then(|object| deserializer.end().map(|()| object));
        parsed.map_err(|error| match too_many.get() {
            true => JsonError(format!("the body has more than {most} members")),
            false => JsonError(describe(&error)),
        })
    }

    /// The raw value of a member.
    pub fn member(&self, name: &str) -> Option<&'a RawValue> {
        self.members.iter().rev().find(|(key, _)| key == name).map(|(_, value)| *value)
    }

    /// All names, repeated ones more than once.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|(name, _)| name.as_ref())
    }

    /// All members in the order given, repeated ones more than once.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.members.iter().map(|(name, value)| (name.as_ref(), *value))
    }

    /// The object written anew with the last of each repeated member, or `None` when no name is repeated.
    pub fn without_repetition(&self) -> Option<Vec<u8>> {
        let last: HashMap<&str, usize> = self.names().enumerate().map(|(index, name)| (name, index)).collect();
        if last.len() == self.members.len() {
            return None;
        }
        let kept = self.iter().enumerate().filter(|(index, (name, _))| last.get(name) == Some(index));
        let mut json = vec![b'{'];
        for (_, (name, value)) in kept {
            if json.len() > 1 {
                json.push(b',');
            }
            push_name(&mut json, name);
            json.extend_from_slice(value.get().as_bytes());
        }
        json.push(b'}');
        Some(json)
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

/// What is wrong with JSON that may hold secrets, and where: serde_json's own words repeat values.
pub fn without_values(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "unexpected end of JSON input",
        serde_json::error::Category::Data => "a value is missing or has not the type that it should have",
        _ => "invalid JSON",
    };
    format!("{what} (line {}, column {})", error.line(), error.column())
}

/// What clients of a Go server read as the type of a JSON value.
pub fn type_name(raw: &RawValue) -> &'static str {
    match raw.get().as_bytes().first() {
        Some(b'"') => "string",
        Some(b'{') => "map[string]interface {}",
        Some(b'[') => "[]interface {}",
        Some(b't' | b'f') => "bool",
        Some(b'n') | None => "<nil>",
        Some(_) => "json.Number",
    }
}

/// Appends a member's name and the colon.
pub fn push_name(json: &mut Vec<u8>, name: &str) {
    push_text(json, name);
    json.push(b':');
}

/// Appends a string.
pub fn push_text(json: &mut Vec<u8>, text: &str) {
    // A string always serialises, and a vector always takes it.
    let _ = serde_json::to_writer(&mut *json, text);
}

/// serde_json's words name Rust types; clients get position and kind only.
fn describe(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "unexpected end of JSON input",
        serde_json::error::Category::Data => "the body must be a JSON object",
        _ => "invalid JSON",
    };
    format!("{what} (line {}, column {})", error.line(), error.column())
}

/// Reads an object of at most so many members, or `null`.
#[derive(Clone, Copy)]
struct Members<'s> {
    most: usize,
    /// Set when there were more.
    too_many: &'s Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Members<'_> {
    type Value = RawObject<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = RawObject<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(RawObject::default())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(Name(name)) = map.next_key::<Name<'de>>()? {
            if members.len() == self.most {
                self.too_many.set(true);
                return Err(A::Error::custom("too many members"));
            }
            members.push((name, map.next_value::<&'de RawValue>()?));
        }
        Ok(RawObject { members })
    }
}

/// A member name, borrowed where it has no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_and_null_bodies_are_empty_objects() {
        for body in ["", " \n", "null", "{}"] {
            assert!(RawObject::parse(body.as_bytes()).unwrap().is_empty(), "{body:?}");
        }
    }

    #[test]
    fn more_members_than_are_wanted_are_not_gathered() {
        let body = br#"{"a": 1, "b": {"c": 2, "d": 3}}"#;
        assert_eq!(RawObject::parse_at_most(body, 2).unwrap().names().count(), 2);
        let error = RawObject::parse_at_most(body, 1).unwrap_err().to_string();
        assert_eq!(error, "failed to parse JSON input: the body has more than 1 members");
        assert!(RawObject::parse_at_most(br#"{"a": 1, "b"}"#, 5).unwrap_err().to_string().contains("invalid JSON"));
    }

    #[test]
    fn the_last_of_repeated_members_counts() {
        let object = RawObject::parse(br#"{"a": 1, "a": [2, 3]}"#).unwrap();
        assert_eq!(object.member("a").unwrap().get(), "[2, 3]");
        assert_eq!(object.without_repetition().unwrap(), br#"{"a":[2, 3]}"#);
        assert!(RawObject::parse(br#"{"a": 1, "A": 2}"#).unwrap().without_repetition().is_none());
    }

    #[test]
    fn numbers_keep_every_digit() {
        let object = RawObject::parse(br#"{"n": 12345678901234567890.000100}"#).unwrap();
        assert_eq!(object.member("n").unwrap().get(), "12345678901234567890.000100");
    }

    #[test]
    fn anything_but_an_object_is_refused() {
        for body in ["[1]", "17", "\"x\"", "{", "{\"a\": }", "{'a': 1}", "{} {}", "plain"] {
            assert!(RawObject::parse(body.as_bytes()).is_err(), "{body:?}");
        }
    }
}
