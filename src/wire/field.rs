//! Request parameters: declared once as a struct, decoded with Vault's lenient conversions.
//!
//! The [`params!`](crate::params) macro makes of one declaration the typed struct, its decoder and the schema that
//! help texts, the OpenAPI document and the "unrecognized parameters" warning read.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::IntErrorKind,
};

use serde_json::{Value, value::RawValue};
use thiserror::Error;

use super::{
    duration::{self, DurationError},
    json::{RawObject, type_name},
    query::Query,
};

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
#[error("Field validation failed: error converting input for field {field:?}: {reason}")]
pub struct FieldError {
    /// The parameter.
    pub field: &'static str,
    /// What does not fit, in the words that clients of Vault know; the value may be a secret and is not in them, but for durations.
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
    pub query: &'a Query,
}

impl Input<'_> {
    /// Decodes one parameter.
    pub fn field<T: FromField>(&self, name: &'static str) -> Result<T, FieldError> {
        if let Some((_, text)) = self.captures.iter().find(|(capture, _)| *capture == name) {
            return T::from_text(text).map_err(|reason| FieldError { field: name, reason });
        }
        if let Some(raw) = self.body.member(name) {
            let value = if raw.get() == "null" { Ok(T::null()) } else { T::from_json(raw) };
            return value.map_err(|reason| FieldError { field: name, reason });
        }
        if let Some(texts) = self.query.get(name) {
            return T::from_texts(texts).map_err(|reason| FieldError { field: name, reason });
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
        for (name, valued) in given.chain(self.query.names().map(|name| (name.as_str(), true))) {
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

    /// From all values that a query gives it; only lists take more than one.
    fn from_texts(texts: &[String]) -> Result<Self, String> {
        match texts {
            [text] => Self::from_text(text),
            _ => Err("it came several times: send it once".into()),
        }
    }

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

    fn from_texts(texts: &[String]) -> Result<Self, String> {
        T::from_texts(texts).map(Some)
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

/// A string, number or boolean as text; numbers keep their digits.
fn scalar_text(raw: &RawValue) -> Result<String, String> {
    scalar(raw, "string")
}

/// The same for a parameter of another type.
fn scalar(raw: &RawValue, wanted: &str) -> Result<String, String> {
    match raw.get() {
        "true" => Ok("1".into()),
        "false" => Ok("0".into()),
        "null" => Ok(String::new()),
        text if text.starts_with('"') => serde_json::from_str(text).map_err(|error| error.to_string()),
        text if text.starts_with(['{', '[']) => {
            Err(format!("'' expected type '{wanted}', got unconvertible type '{}'", type_name(raw)))
        }
        number => Ok(number.to_owned()),
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
        // Numbers are read as their text: 0 and 1 are meant, 2 is a mistake.
        Self::from_text(&scalar(raw, "bool")?)
    }

    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
            "" | "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
            _ => Err("'' cannot parse value as 'bool': strconv.ParseBool: invalid syntax".into()),
        }
    }

    fn missing() -> Self {
        false
    }
}

impl FromField for i64 {
    const KIND: FieldKind = FieldKind::Integer;

    fn from_json(raw: &RawValue) -> Result<Self, String> {
        Self::from_text(&scalar(raw, "int")?)
    }

    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(0);
        }
        number(text).map_err(|kind| {
            let reason = match kind {
                IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
                _ => "invalid syntax",
            };
            format!("'' cannot parse value as 'int': strconv.ParseInt: {reason}")
        })
    }

    fn missing() -> Self {
        0
    }
}

/// A whole number as Go writes them: a leading zero alone means octal, and underscores may stand between digits.
fn number(text: &str) -> Result<i64, IntErrorKind> {
    let (sign, digits) = match text.as_bytes().first() {
        Some(b'-') => ("-", &text[1..]),
        Some(b'+') => ("", &text[1..]),
        _ => ("", text),
    };
    let (radix, digits) = match digits.get(..2) {
        Some("0x" | "0X") => (16, &digits[2..]),
        Some("0b" | "0B") => (2, &digits[2..]),
        Some("0o" | "0O") => (8, &digits[2..]),
        Some(octal) if octal.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    // An underscore may also follow a prefix, but for the octal zero it stands where a digit was.
    let digits = if radix == 10 { digits } else { digits.strip_prefix('_').unwrap_or(digits) };
    let misplaced = digits.starts_with(['_', '+', '-']) || digits.ends_with('_') || digits.contains("__");
    if misplaced {
        return Err(IntErrorKind::InvalidDigit);
    }
    i64::from_str_radix(&format!("{sign}{}", digits.replace('_', "")), radix).map_err(|error| *error.kind())
}

/// A number or string that may be a duration; anything else is none.
pub fn duration_text(raw: &RawValue) -> Result<String, String> {
    match raw.get().as_bytes().first() {
        Some(b'[' | b'{' | b't' | b'f') => Err("could not parse duration from input".to_owned()),
        _ => scalar_text(raw),
    }
}

/// A duration in whole seconds: a number, or a string such as `90`, `1h30m`, `2d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub i64);

impl FromField for Seconds {
    const KIND: FieldKind = FieldKind::Duration;

    fn from_json(raw: &RawValue) -> Result<Self, String> {
        Self::from_text(&duration_text(raw)?)
    }

    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(0));
        }
        let duration = duration::parse_duration(text).map_err(|error| match error {
            DurationError::Negative(_) => {
                let seconds = duration::parse_signed(text).unwrap_or_default() / 1_000_000_000;
                format!("cannot provide negative value '{seconds}'")
            }
            other => other.to_string(),
        })?;
        Ok(Self(i64::try_from(duration.as_secs()).map_err(|_| "the duration is too long".to_owned())?))
    }

    fn missing() -> Self {
        Self(0)
    }
}

/// The texts of a JSON list; `None` for anything but a list. Some clients write an empty list as an empty object.
fn list(raw: &RawValue) -> Result<Option<Vec<String>>, String> {
    if raw.get().starts_with('{') && raw.get().trim_matches(['{', '}']).trim_ascii().is_empty() {
        return Ok(Some(Vec::new()));
    }
    if !raw.get().starts_with('[') {
        return Ok(None);
    }
    let items: Vec<&RawValue> = serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
    items.into_iter().map(scalar_text).collect::<Result<_, _>>().map(Some)
}

/// `name=value`.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("invalid key pair {text:?}")),
    }
}

/// A list of strings; one string is split at commas.
impl FromField for Vec<String> {
    const KIND: FieldKind = FieldKind::Strings;

    fn from_json(raw: &RawValue) -> Result<Self, String> {
        match list(raw)? {
            Some(items) => Ok(items.iter().map(|item| item.trim().to_owned()).collect()),
            None => Self::from_text(&scalar_text(raw)?),
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        Ok(text.split(',').map(|item| item.trim().to_owned()).collect())
    }

    fn from_texts(texts: &[String]) -> Result<Self, String> {
        match texts {
            [text] => Self::from_text(text),
            several => Ok(several.iter().map(|item| item.trim().to_owned()).collect()),
        }
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
        match list(raw)? {
            Some(items) => Ok(Self(items.iter().map(|item| item.trim().to_owned()).collect())),
            None => Self::from_text(&scalar_text(raw)?),
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        Ok(Self(if text.is_empty() { Vec::new() } else { vec![text.trim().to_owned()] }))
    }

    fn from_texts(texts: &[String]) -> Result<Self, String> {
        match texts {
            [text] => Self::from_text(text),
            several => Ok(Self(several.iter().map(|item| item.trim().to_owned()).collect())),
        }
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

    fn from_texts(texts: &[String]) -> Result<Self, String> {
        Vec::<String>::from_texts(texts)?.iter().map(|text| i64::from_text(text)).collect::<Result<_, _>>().map(Self)
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
        match list(raw)? {
            Some(items) => items.iter().map(|item| pair(item)).collect::<Result<_, _>>().map(Self),
            None => Self::from_text(&scalar_text(raw)?),
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        Ok(Self(BTreeMap::from([pair(text)?])))
    }

    fn from_texts(texts: &[String]) -> Result<Self, String> {
        texts.iter().map(|text| pair(text)).collect::<Result<_, _>>().map(Self)
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
            // Some clients write an empty object as an empty list.
            Value::Array(list) if list.is_empty() => Ok(Self::default()),
            _ => Err(format!("'' expected type 'map[string]interface {{}}', got unconvertible type '{}'", type_name(raw))),
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
    use crate::wire::query::NO_QUERY;

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
        Sample::decode(&Input { captures: &[], body: &object, query: &NO_QUERY })
    }

    #[test]
    fn scalars_convert_as_clients_expect() {
        let sample = decode(r#"{"text": 17, "n": "0x10", "ttl": "1h", "list": "a, b", "on": "true"}"#).unwrap();
        assert_eq!((sample.text.as_str(), sample.count, sample.ttl), ("17", Some(16), Seconds(3600)));
        assert_eq!((sample.list, sample.on), (vec!["a".to_owned(), "b".to_owned()], Some(true)));
    }

    #[test]
    fn of_a_query_only_lists_take_a_name_that_comes_several_times() {
        let decode = |names: &[&str]| {
            let query = names.iter().map(|pair| pair.split_once('=').unwrap());
            let query = query.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            Sample::decode(&Input { captures: &[], body: &RawObject::default(), query: &query })
        };
        let sample = decode(&["n=3", "list=a,b", "on=true"]).unwrap();
        assert_eq!((sample.count, sample.list, sample.on), (Some(3), vec!["a".to_owned(), "b".to_owned()], Some(true)));
        assert_eq!(decode(&["list=a,b", "list= c"]).unwrap().list, ["a,b", "c"]);
        for name in ["text", "n", "ttl", "on"] {
            let error = decode(&[&format!("{name}=1"), &format!("{name}=1")]).unwrap_err().to_string();
            assert!(error.ends_with("it came several times: send it once"), "{error}");
        }
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
        assert_eq!((i64::from_text("1_000"), i64::from_text("0x_1_0"), i64::from_text("0_7")), (Ok(1000), Ok(16), Ok(7)));
        for text in ["08", "0_8", "_1", "1_", "1__0", "0x", "0x-1", "+ 1", "1.0", "1e3", "0_", "--1"] {
            assert!(i64::from_text(text).is_err(), "{text}");
        }
        assert!(i64::from_text("99999999999999999999").unwrap_err().ends_with("strconv.ParseInt: value out of range"));
    }

    #[test]
    fn lists_and_pairs_come_in_many_forms() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        let list = |text: &str| Vec::<String>::from_json(&raw(text));
        assert_eq!(list(r#"[" a ", 1]"#), Ok(vec!["a".to_owned(), "1".to_owned()]));
        assert_eq!((list("{}"), list("{ }"), list("[]"), list("\"\"")), (Ok(vec![]), Ok(vec![]), Ok(vec![]), Ok(vec![])));
        assert!(list(r#"{"a": 1}"#).is_err() && list("[[]]").is_err());
        assert_eq!(WholeStrings::from_json(&raw("\"a,b\"")), Ok(WholeStrings(vec!["a,b".to_owned()])));
        let pairs = |text: &str| Pairs::from_json(&raw(text)).map(|pairs| pairs.0.into_iter().collect::<Vec<_>>());
        let one = |name: &str, value: &str| Ok(vec![(name.to_owned(), value.to_owned())]);
        assert_eq!(
            (pairs(r#"{"a": 1}"#), pairs(r#"["a=1"]"#), pairs("\"a=1,b=2\"")),
            (one("a", "1"), one("a", "1"), one("a", "1,b=2"))
        );
        assert_eq!((pairs("{}"), pairs("[]")), (Ok(vec![]), Ok(vec![])));
        assert!(Object::from_json(&raw("[]")).is_ok() && Object::from_json(&raw("[1]")).is_err());
        assert_eq!(pairs("\"\""), Err("invalid key pair \"\"".to_owned()));
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
        let notes = Input { captures: &[], body: &object, query: &NO_QUERY }.notes(Sample::FIELDS);
        assert!(notes[0].ends_with(" x99999]"));
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    }

    #[test]
    fn wrong_types_name_the_field() {
        let error = decode(r#"{"n": 2.0}"#).unwrap_err().to_string();
        let start = "Field validation failed: error converting input for field ";
        assert_eq!(error, format!("{start}\"n\": '' cannot parse value as 'int': strconv.ParseInt: invalid syntax"));
        for (body, reason) in [
            (r#"{"text": {"a": 1}}"#, "'' expected type 'string', got unconvertible type 'map[string]interface {}'"),
            (r#"{"n": []}"#, "'' expected type 'int', got unconvertible type '[]interface {}'"),
            (r#"{"on": [1]}"#, "'' expected type 'bool', got unconvertible type '[]interface {}'"),
            (r#"{"on": "yes"}"#, "'' cannot parse value as 'bool': strconv.ParseBool: invalid syntax"),
            (r#"{"ttl": "abc"}"#, "time: invalid duration \"abc\""),
            (r#"{"ttl": true}"#, "could not parse duration from input"),
            (r#"{"ttl": "-1h"}"#, "cannot provide negative value '-3600'"),
        ] {
            let error = decode(body).unwrap_err();
            assert_eq!(error.reason, reason, "{body}");
        }
    }

    #[test]
    fn unknown_and_overridden_parameters_are_noted() {
        let object = RawObject::parse(br#"{"b": 1, "a": 2, "text": "x"}"#).unwrap();
        let input = Input { captures: &[("text", "y")], body: &object, query: &NO_QUERY };
        let notes = input.notes(Sample::FIELDS);
        assert_eq!(notes[0], "Endpoint ignored these unrecognized parameters: [a b]");
        assert!(notes[1].ends_with("path: [text]"));
        assert_eq!(input.field::<String>("text").unwrap(), "y");
        let object = RawObject::parse(br#"{"text": null}"#).unwrap();
        let input = Input { captures: &[("text", "y")], body: &object, query: &NO_QUERY };
        assert_eq!(input.notes(Sample::FIELDS), Vec::<String>::new());
    }
}
