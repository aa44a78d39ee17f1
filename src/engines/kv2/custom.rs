//! The user's notes on a key (`custom_metadata`): texts within limits that Vault's clients rely on.

use std::collections::BTreeMap;

use crate::{
    core::failure::Failure,
    wire::{field::FromField, json::RawObject},
};

const MAX_COUNT: usize = 64;
const MAX_NAME: usize = 128;
const MAX_VALUE: usize = 512;

/// Reads notes. Numbers and booleans become texts; in a patch `null` removes.
pub fn parse(object: &RawObject<'_>, is_patch: bool) -> Result<BTreeMap<String, Option<String>>, Failure> {
    let mut notes = BTreeMap::new();
    for (name, raw) in object.iter() {
        let value = match raw.get() {
            "null" if is_patch => None,
            "null" => Some(String::new()),
            _ => Some(String::from_json(raw).map_err(|reason| {
                Failure::invalid(format!("custom_metadata validation failed: the value of {} is no text: {reason}", quoted(name)))
            })?),
        };
        notes.insert(name.to_owned(), value);
    }
    let problems = problems(&notes);
    if problems.is_empty() { Ok(notes) } else { Err(Failure::invalid(listed(&problems))) }
}

fn problems(notes: &BTreeMap<String, Option<String>>) -> Vec<String> {
    let set: Vec<_> = notes.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))).collect();
    if set.len() > MAX_COUNT {
        return vec![format!("payload must contain at most {MAX_COUNT} keys, provided {}", set.len())];
    }
    let mut problems = Vec::new();
    for (name, value) in set {
        // Lengths count bytes.
        if name.is_empty() || name.len() > MAX_NAME {
            problems.push(format!("length of key {} is {} but must be 0 < len(key) <= {MAX_NAME}", quoted(name), name.len()));
        }
        if value.is_empty() || value.len() > MAX_VALUE {
            let name = quoted(name);
            problems.push(format!("length of value for key {name} is {} but must be 0 < len(value) <= {MAX_VALUE}", value.len()));
        }
        if !name.chars().all(is_printable) {
            problems.push(format!("key {} ({name}) contains unprintable characters", quoted(name)));
        }
        if !value.chars().all(is_printable) {
            problems.push(format!("value for key {} contains unprintable characters", quoted(name)));
        }
    }
    problems
}

fn listed(problems: &[String]) -> String {
    let count = if problems.len() == 1 { "1 error".to_owned() } else { format!("{} errors", problems.len()) };
    let lines: Vec<_> = problems.iter().map(|problem| format!("* custom_metadata validation failed: {problem}")).collect();
    format!("{count} occurred:\n\t{}\n\n", lines.join("\n\t"))
}

/// Letters, marks, numbers, punctuation, symbols and the ASCII space.
fn is_printable(c: char) -> bool {
    if c.is_whitespace() {
        return c == ' ';
    }
    // Behind a letter, so that combining marks count as printable.
    matches!(c, '"' | '\'' | '\\') || format!("a{c}").escape_debug().count() == 2
}

/// Quoted as Go's `%q` does.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if is_printable(c) => out.push(c),
            c if c.is_ascii() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if u32::from(c) < 0x10000 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: &str, is_patch: bool) -> Result<BTreeMap<String, Option<String>>, Failure> {
        parse(&RawObject::parse(json.as_bytes()).unwrap(), is_patch)
    }

    #[test]
    fn values_become_texts() {
        let notes = parsed(r#"{"i": 5, "f": 1.5, "t": true, "fa": false, "big": 12345678901234567890}"#, false).unwrap();
        let texts: Vec<_> = notes.values().map(|value| value.as_deref().unwrap()).collect();
        assert_eq!(texts, ["12345678901234567890", "1.5", "0", "5", "1"]);
        assert!(parsed(r#"{"o": {"a": "b"}}"#, false).unwrap_err().text().starts_with("custom_metadata validation failed: "));
    }

    #[test]
    fn null_removes_in_a_patch_and_is_empty_in_a_write() {
        assert_eq!(parsed(r#"{"a": null}"#, true).unwrap(), BTreeMap::from([("a".to_owned(), None)]));
        assert!(parsed(r#"{"a": null}"#, false).is_err());
    }

    #[test]
    fn all_problems_are_told() {
        let text = parsed(r#"{"": "x", "b\u0000": ""}"#, false).unwrap_err().text().to_owned();
        assert_eq!(
            text,
            "3 errors occurred:\n\t* custom_metadata validation failed: length of key \"\" is 0 but must be 0 < len(key) <= 128\
             \n\t* custom_metadata validation failed: length of value for key \"b\\x00\" is 0 but must be 0 < len(value) <= 512\
             \n\t* custom_metadata validation failed: key \"b\\x00\" (b\0) contains unprintable characters\n\n"
        );
        let many: String = (0..65).map(|n| format!("\"k{n}\": \"v\"")).collect::<Vec<_>>().join(",");
        let text = parsed(&format!("{{{many}}}"), false).unwrap_err().text().to_owned();
        assert_eq!(
            text,
            "1 error occurred:\n\t* custom_metadata validation failed: payload must contain at most 64 keys, provided 65\n\n"
        );
    }

    #[test]
    fn printable_is_what_go_prints() {
        for c in ['a', ' ', 'é', '€', '✓', '"', '\u{301}', '😀'] {
            assert!(is_printable(c), "{c:?}");
        }
        for c in ['\0', '\n', '\u{a0}', '\u{200b}', '\u{7f}', '\u{feff}'] {
            assert!(!is_printable(c), "{c:?}");
        }
    }
}
