//! Request parameters: declared once as a struct, decoded with Vault's lenient conversions.
//!
//! The [`params!`](crate::params) macro makes of one declaration the typed struct, its decoder and the schema that
//! help texts, the OpenAPI document and the "unrecognized parameters" warning read.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, value::RawValue};
use thiserror::Error;

use super::{duration, json::RawObject};

/// The type of a parameter, in the words of the OpenAPI document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// A string.
    String,
    /// A whole number.
    Integer,
    /// A boolean.
    Boolean,
    /// A duration: seconds, or a string such as `1h30m`.
    Duration,
    /// A list of strings, or one string with commas.
    Strings,
    /// An object.
    Object,
    /// Any JSON.
    Any,
}

/// One declared parameter.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Name on the wire.
    pub name: &'static str,
    /// Type.
    pub kind: FieldKind,
    /// What it means, for help texts.
    pub description: &'static str,
}

/// A value that does not fit its parameter.
#[derive(Debug, Error)]
#[error("Field validation failed: error converting input {input} for field {field:?}: {reason}")]
pub struct FieldError {
    /// The parameter.
    pub field: &'static str,
    /// A short rendering of what came, never of a secret: only its kind when it is long.
    pub input: String,
    /// What would fit.
    pub reason: String,
}

/// Where a handler's parameters come from: captures of the path beat body and query.
#[derive(Debug)]
pub struct Input<'a> {
    /// Named parts of the path.
    pub captures: &'a [(&'static str, &'a str)],
    /// Members of the body.
    pub body: &'a RawObject<'a>,
    /// Query parameters (of GET, LIST and DELETE).
    pub query: &'a [(String, String)],
}

impl Input<'_> {
    /// Decodes one parameter.
    pub fn field<T: FromField>(&self, name: &'static str) -> Result<T, FieldError> {
        if let Some((_, text)) = self.captures.iter().find(|(capture, _)| *capture == name) {
            return T::from_text(text).map_err(|reason| FieldError { field: name, input: short(text), reason });
        }
        if let Some(raw) = self.body.member(name) {
            let value = if raw.get() == "null" { Ok(T::null()) } else { T::from_json(raw) };
            return value.map_err(|reason| FieldError { field: name, input: short(raw.get()), reason });
        }
        if let Some((_, text)) = self.query.iter().find(|(key, _)| key == name) {
            return T::from_text(text).map_err(|reason| FieldError { field: name, input: short(text), reason });
        }
        Ok(T::missing())
    }

    /// The warnings Vault gives for parameters that the endpoint does not know or that the path overrides.
    pub fn notes(&self, fields: &[Field]) -> Vec<String> {
        let known = |name: &str| fields.iter().any(|field| field.name == name);
        let captured = |name: &str| self.captures.iter().any(|(capture, _)| *capture == name);
        // A body can hold millions of names: no looking through lists here.
        let mut ignored: BTreeSet<&str> = BTreeSet::new();
        let mut replaced: BTreeSet<&str> = BTreeSet::new();
        let given = self.body.iter().map(|(name, value)| (name, value.get() != "null"));
        for (name, valued) in given.chain(self.query.iter().map(|(name, _)| (name.as_str(), true))) {
            if captured(name) {
                if valued {
                    replaced.insert(name);
                }
            } else if !known(name) {
                ignored.insert(name);
            }
        }
        let joined = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(" ");
        let mut notes = Vec::new();
        if !ignored.is_empty() {
            notes.push(format!("Endpoint ignored these unrecognized parameters: [{}]", joined(ignored)));
        }
        if !replaced.is_empty() {
            notes.push(format!(
                "Endpoint replaced the value of these parameters with the values captured from the endpoint's path: [{}]",
                joined(replaced)
            ));
        }
        notes
    }
}

fn short(text: &str) -> String {
    if text.len() <= 40 && !text.contains('"') { text.to_owned() } else { format!("({} bytes)", text.len()) }
}

/// A declared set of parameters (see [`params!`](crate::params)).
pub trait Params: Sized {
    /// The schema.
    const FIELDS: &'static [Field];

    /// Decodes all parameters.
    fn decode(input: &Input<'_>) -> Result<Self, FieldError>;
}

/// For endpoints without parameters.
#[derive(Debug)]
pub struct NoParams;

impl Params for NoParams {
    const FIELDS: &'static [Field] = &[];

    fn decode(_: &Input<'_>) -> Result<Self, FieldError> {
        Ok(Self)
    }
}

/// A type that a parameter can have.
pub trait FromField: Sized {
    /// For the schema.
    const KIND: FieldKind;

    /// From a JSON value other than `null`; the error says what would fit.
    fn from_json(raw: &RawValue) -> Result<Self, String>;

    /// From a part of the path or query.
    fn from_text(text: &str) -> Result<Self, String>;

    /// The value of an absent parameter.
    fn missing() -> Self;

    /// The value of a `null`: the zero value, present.
    fn null() -> Self {
        Self::missing()
    }
}

impl<T: FromField> FromField for Option<T> {
    const KIND: FieldKind = T::KIND;

    fn from_json(raw: &RawValue) -> Result<Self, String> {
        T::from_json(raw).map(Some)
    }

    fn from_text(text: &str) -> Result<Self, String> {
        T::from_text(text).map(Some)
    }

    fn missing() -> Self {
        None
    }

    fn null() -> Self {
        Some(T::null())
    }
}

fn parse(raw: &RawValue) -> Result<Value, String> {
    serde_json::from_str(raw.get()).map_err(|error| error.to_string())
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Scalars as text; numbers keep their digits.
fn scalar_text(raw: &RawValue) -> Result<String, String> {
    if raw.get().starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        return Ok(raw.get().to_owned());
    }
    match parse(raw)? {
        Value::String(text) => Ok(text),
        Value::Bool(true) => Ok("1".into()),
        Value::Bool(false) => Ok("0".into()),
        Value::Null => Ok(String::new()),
        other => Err(format!("expected a string, got {}", kind_of(&other))),
    }
}

impl FromField for String {
    const KIND: FieldKind = FieldKind::String;

    fn from_json(raw: &RawValue) -> Result<Self, String> {
        scalar_text(raw)
    }

    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn missing() -> Self {
        String::new()
    }
}

impl FromField for bool {
    const KIND: FieldKind = FieldKind::Boolean;

    fn from_json(raw: &RawValue) -> Result<Self, String> {
        match parse(raw)? {
            Value::Bool(value) => Ok(value),
            // Numbers are read as their text: 0 and 1 are meant, 2 is a mistake.
            Value::Number(_) => Self::from_text(raw.get()),
            Value::String(text) => Self::from_text(&text),
            other => Err(format!("expected a boolean, got {}", kind_of(&other))),
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
            "" | "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
            _ => Err("cannot parse as a boolean: write true or false".into()),
        }
    }

    fn missing() -> Self {
        false
    }
}

impl FromField for i64 {
    const KIND: FieldKind = FieldKind::Integer;

    fn from_json(raw: &RawValue) -> Result<Self, String> {
        match parse(raw)? {
            Value::Bool(value) => Ok(i64::from(value)),
            Value::Number(_) => Self::from_text(raw.get()),
            Value::String(text) => Self::from_text(&text),
            other => Err(format!("expected a whole number, got {}", kind_of(&other))),
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(0);
        }
        let (sign, digits) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
        // As Go writes numbers: a leading zero alone means octal.
        let parsed = match digits.get(..2) {
            Some("0x" | "0X") => i64::from_str_radix(&digits[2..], 16),
            Some("0b" | "0B") => i64::from_str_radix(&digits[2..], 2),
            Some("0o" | "0O") => i64::from_str_radix(&digits[2..], 8),
            Some(octal) if octal.starts_with('0') => i64::from_str_radix(&digits[1..], 8),
            _ => digits.parse::<i64>(),
        };
        parsed.ok().and_then(|number| number.checked_mul(sign)).ok_or_else(|| "cannot parse as a whole number".into())
    }

    fn missing() -> Self {
        0
    }
}

/// A duration in whole seconds: a number, or a string such as `90`, `1h30m`, `2d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub i64);

impl FromField for Seconds {
    const KIND: FieldKind = FieldKind::Duration;

    fn from_json(raw: &RawValue) -> Result<Self, String> {
        Self::from_text(&scalar_text(raw)?)
    }

    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(0));
        }
        let duration = duration::parse_duration(text).map_err(|error| error.to_string())?;
        Ok(Self(i64::try_from(duration.as_secs()).map_err(|_| "the duration is too long".to_owned())?))
    }

    fn missing() -> Self {
        Self(0)
    }
}

/// A list of strings; one string is split at commas.
impl FromField for Vec<String> {
    const KIND: FieldKind = FieldKind::Strings;

    fn from_json(raw: &RawValue) -> Result<Self, String> {
        if raw.get().starts_with('[') {
            let items: Vec<&RawValue> = serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
            return items.into_iter().map(|item| scalar_text(item).map(|text| text.trim().to_owned())).collect();
        }
        Self::from_text(&scalar_text(raw)?)
    }

    fn from_text(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        Ok(text.split(',').map(|item| item.trim().to_owned()).collect())
    }

    fn missing() -> Self {
        Vec::new()
    }
}

/// A list of strings that is never split at commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WholeStrings(pub Vec<String>);

impl FromField for WholeStrings {
    const KIND: FieldKind = FieldKind::Strings;

    fn from_json(raw: &RawValue) -> Result<Self, String> {
        if raw.get().starts_with('[') {
            return Vec::<String>::from_json(raw).map(Self);
        }
        Self::from_text(&scalar_text(raw)?)
    }

    fn from_text(text: &str) -> Result<Self, String> {
        Ok(Self(if text.is_empty() { Vec::new() } else { vec![text.to_owned()] }))
    }

    fn missing() -> Self {
        Self::default()
    }
}

/// A list of whole numbers: a list, `"1,2"`, or one number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Integers(pub Vec<i64>);

impl FromField for Integers {
    const KIND: FieldKind = FieldKind::Strings;

    fn from_json(raw: &RawValue) -> Result<Self, String> {
        Vec::<String>::from_json(raw)?.iter().map(|text| i64::from_text(text)).collect::<Result<_, _>>().map(Self)
    }

    fn from_text(text: &str) -> Result<Self, String> {
        Vec::<String>::from_text(text)?.iter().map(|text| i64::from_text(text)).collect::<Result<_, _>>().map(Self)
    }

    fn missing() -> Self {
        Self::default()
    }
}

/// Names with string values: an object, or a list of `name=value`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs(pub BTreeMap<String, String>);

impl FromField for Pairs {
    const KIND: FieldKind = FieldKind::Object;

    fn from_json(raw: &RawValue) -> Result<Self, String> {
        if raw.get().starts_with('{') {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
            return members.into_iter().map(|(name, value)| Ok((name, scalar_text(value)?))).collect::<Result<_, _>>().map(Self);
        }
        Vec::<String>::from_json(raw)?
            .into_iter()
            .map(|pair| {
                let (name, value) = pair.split_once('=').ok_or("expected an object of strings, or a list of name=value")?;
                Ok((name.to_owned(), value.to_owned()))
            })
            .collect::<Result<_, String>>()
            .map(Self)
    }

    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(Self::default()) } else { Err("expected an object of strings".into()) }
    }

    fn missing() -> Self {
        Self::default()
    }
}

/// A JSON object, looked into by the handler.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object(pub serde_json::Map<String, Value>);

impl FromField for Object {
    const KIND: FieldKind = FieldKind::Object;

    fn from_json(raw: &RawValue) -> Result<Self, String> {
        match parse(raw)? {
            Value::Object(map) => Ok(Self(map)),
            other => Err(format!("expected an object, got {}", kind_of(&other))),
        }
    }

    fn from_text(_: &str) -> Result<Self, String> {
        Err("expected an object".into())
    }

    fn missing() -> Self {
        Self::default()
    }
}

/// Any JSON, kept as the bytes that came.
#[derive(Clone, Debug)]
pub struct AnyJson(pub Box<RawValue>);

impl FromField for AnyJson {
    const KIND: FieldKind = FieldKind::Any;

    fn from_json(raw: &RawValue) -> Result<Self, String> {
        Ok(Self(raw.to_owned()))
    }

    fn from_text(text: &str) -> Result<Self, String> {
        serde_json::value::to_raw_value(text).map(Self).map_err(|error| error.to_string())
    }

    fn missing() -> Self {
        Self(RawValue::NULL.to_owned())
    }
}

/// Declares the parameters of an endpoint: a struct whose field comments are the help texts.
///
/// ```
/// sos::params! {
///     /// Parameters of a greeting.
///     pub struct Greeting {
///         /// Whom to greet.
///         pub name: String,
///         /// How often.
///         pub count as "times": Option<i64>,
///     }
/// }
/// ```
#[macro_export]
macro_rules! params {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $( $(#[doc = $doc:literal])+ $fvis:vis $field:ident $(as $wire:literal)? : $ty:ty ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug)]
        #[allow(dead_code)] // help and warnings read the declaration; not every handler reads each field
        $vis struct $name {
            $( $(#[doc = $doc])+ $fvis $field: $ty, )*
        }

        impl $crate::wire::field::Params for $name {
            const FIELDS: &'static [$crate::wire::field::Field] = &[
                $( $crate::wire::field::Field {
                    name: $crate::params!(@name $field $($wire)?),
                    kind: <$ty as $crate::wire::field::FromField>::KIND,
                    description: concat!($($doc),+),
                }, )*
            ];

            fn decode(input: &$crate::wire::field::Input<'_>) -> Result<Self, $crate::wire::field::FieldError> {
                Ok(Self { $( $field: input.field($crate::params!(@name $field $($wire)?))?, )* })
            }
        }
    };
    (@name $field:ident $wire:literal) => { $wire };
    (@name $field:ident) => { stringify!($field) };
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::params! {
        struct Sample {
            /// A text.
            text: String,
            /// A number.
            count as "n": Option<i64>,
            /// A duration.
            ttl: Seconds,
            /// A list.
            list: Vec<String>,
            /// A switch.
            on: Option<bool>,
        }
    }

    fn decode(body: &str) -> Result<Sample, FieldError> {
        let object = RawObject::parse(body.as_bytes()).unwrap();
        Sample::decode(&Input { captures: &[], body: &object, query: &[] })
    }

    #[test]
    fn scalars_convert_as_clients_expect() {
        let sample = decode(r#"{"text": 17, "n": "0x10", "ttl": "1h", "list": "a, b", "on": "true"}"#).unwrap();
        assert_eq!((sample.text.as_str(), sample.count, sample.ttl), ("17", Some(16), Seconds(3600)));
        assert_eq!((sample.list, sample.on), (vec!["a".to_owned(), "b".to_owned()], Some(true)));
    }

    #[test]
    fn null_is_the_zero_value_and_absence_is_none() {
        let sample = decode(r#"{"n": null, "on": null}"#).unwrap();
        assert_eq!((sample.count, sample.on), (Some(0), Some(false)));
        let sample = decode("{}").unwrap();
        assert_eq!((sample.count, sample.on), (None, None));
    }

    #[test]
    fn numbers_beyond_the_range_are_errors() {
        for text in ["--9223372036854775808", "-0x-8000000000000000", "9223372036854775808", "-", "+-1"] {
            assert!(i64::from_text(text).is_err(), "{text}");
        }
        assert_eq!((i64::from_text("-0x10"), i64::from_text("+7")), (Ok(-16), Ok(7)));
        assert_eq!((i64::from_text("010"), i64::from_text("0"), i64::from_text("-07")), (Ok(8), Ok(0), Ok(-7)));
        assert!(i64::from_text("08").is_err() && i64::from_text("0_8").is_err());
    }

    #[test]
    fn of_numbers_only_zero_and_one_are_booleans() {
        assert_eq!((decode(r#"{"on": 1}"#).unwrap().on, decode(r#"{"on": 0}"#).unwrap().on), (Some(true), Some(false)));
        for number in ["-1", "2", "1.0", "1.5", "1e3"] {
            assert!(decode(&format!(r#"{{"on": {number}}}"#)).is_err(), "{number}");
        }
    }

    #[test]
    fn a_body_of_very_many_unknown_names_costs_no_more_than_its_length() {
        let body: String = (0..300_000).map(|number| format!("\"x{number}\":0,")).collect();
        let body = format!("{{{}}}", body.trim_end_matches(','));
        let object = RawObject::parse(body.as_bytes()).unwrap();
        let started = std::time::Instant::now();
        let notes = Input { captures: &[], body: &object, query: &[] }.notes(Sample::FIELDS);
        assert!(notes[0].ends_with(" x99999]"));
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    }

    #[test]
    fn wrong_types_name_the_field() {
        let error = decode(r#"{"n": 2.0}"#).unwrap_err().to_string();
        assert!(error.starts_with("Field validation failed: error converting input 2.0 for field \"n\":"), "{error}");
        assert!(decode(r#"{"text": {"a": 1}}"#).is_err());
        assert!(decode(r#"{"ttl": "abc"}"#).is_err());
    }

    #[test]
    fn unknown_and_overridden_parameters_are_noted() {
        let object = RawObject::parse(br#"{"b": 1, "a": 2, "text": "x"}"#).unwrap();
        let input = Input { captures: &[("text", "y")], body: &object, query: &[] };
        let notes = input.notes(Sample::FIELDS);
        assert_eq!(notes[0], "Endpoint ignored these unrecognized parameters: [a b]");
        assert!(notes[1].ends_with("path: [text]"));
        assert_eq!(input.field::<String>("text").unwrap(), "y");
        let object = RawObject::parse(br#"{"text": null}"#).unwrap();
        let input = Input { captures: &[("text", "y")], body: &object, query: &[] };
        assert_eq!(input.notes(Sample::FIELDS), Vec::<String>::new());
    }
}
