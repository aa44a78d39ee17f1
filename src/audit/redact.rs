//! Replaces every string value of a JSON text by its HMAC, in one pass and without building a tree.
//!
//! Member names, numbers, booleans and `null` stay as they are, as in Vault's records. The text must be valid JSON:
//! callers pass what a parser has accepted. A record is one line, so line breaks between the tokens become blanks (inside
//! strings they are escapes).

use std::borrow::Cow;

use super::salt::Salt;

/// The same JSON with strings replaced by `hmac-sha256:…`, except the values of members in `clear`; `None` when that takes more than
/// `most` bytes, which is found out without making more of it.
pub fn strings(json: &[u8], salt: &Salt, clear: &[String], most: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(json.len().saturating_mul(2).min(most));
    // Per open container: whether it is an object, and the name of the member whose value stands there.
    let mut open: Vec<(bool, bool)> = Vec::new();
    let mut expects_name = false;
    let mut in_clear = false;
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        if out.len() >= most {
            return None;
        }
        match byte {
            b'"' => {
                let end = string_end(json, at);
                let raw = json.get(at..end).unwrap_or_default();
                let stays = expects_name || in_clear;
                if stays && raw.len() > most - out.len() {
                    return None;
                }
                if expects_name {
                    out.extend_from_slice(raw);
                    in_clear = !clear.is_empty() && clear.iter().any(|name| *name == decoded(raw));
                    expects_name = false;
                } else if in_clear {
                    out.extend_from_slice(raw);
                } else {
                    out.push(b'"');
                    salt.identify_into(&mut out, decoded(raw).as_bytes());
                    out.push(b'"');
                }
                at = end;
                continue;
            }
            b'{' => {
                open.push((true, in_clear));
                expects_name = true;
            }
            b'[' => open.push((false, in_clear)),
            b'}' | b']' => {
                expects_name = false;
                in_clear = open.pop().is_some_and(|(_, clear)| clear);
            }
            b',' => expects_name = open.last().is_some_and(|(object, _)| *object),
            _ => {}
        }
        out.push(if matches!(byte, b'\n' | b'\r') { b' ' } else { byte });
        at += 1;
    }
    (out.len() <= most).then_some(out)
}

/// The index after the closing quote of the string that starts at `start`.
fn string_end(json: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = json.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    json.len()
}

/// The text of a JSON string with its quotes; escapes are resolved so that equal texts have equal HMACs.
fn decoded(raw: &[u8]) -> Cow<'_, str> {
    let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    if !inner.contains(&b'\\') {
        return String::from_utf8_lossy(inner);
    }
    match serde_json::from_slice::<String>(raw) {
        Ok(text) => Cow::Owned(text),
        // Lone surrogates: the escaped spelling stands for itself.
        Err(_) => String::from_utf8_lossy(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(json: &str, clear: &[&str]) -> serde_json::Value {
        let clear: Vec<String> = clear.iter().map(|name| (*name).to_owned()).collect();
        let salt = Salt::from_text("salt".into());
        serde_json::from_slice(&strings(json.as_bytes(), &salt, &clear, usize::MAX).unwrap()).unwrap()
    }

    #[test]
    fn strings_go_and_everything_else_stays() {
        let salt = Salt::from_text("salt".into());
        let found = redacted(r#"{"a": "x", "n": 12345678901234567890.10, "l": ["x", {"b": "\u0078"}, null, true], "": ""}"#, &[]);
        let hash = salt.identify(b"x");
        assert_eq!(found["a"], hash.as_str());
        assert_eq!(found["l"][0], hash.as_str());
        assert_eq!(found["l"][1]["b"], hash.as_str());
        assert_eq!(found["l"][2], serde_json::Value::Null);
        assert_eq!(found[""], salt.identify(b"").as_str());
    }

    #[test]
    fn members_named_stay_clear_with_all_that_lists_under_them_hold() {
        let found = redacted(r#"{"a": ["x", "y"], "b": "z", "c": {"a": "q", "b": "r"}, "d": "s"}"#, &["a"]);
        assert_eq!(found["a"][1], "y");
        assert_eq!(found["c"]["a"], "q");
        for hidden in [&found["b"], &found["c"]["b"], &found["d"]] {
            assert!(hidden.as_str().unwrap().starts_with("hmac-sha256:"), "{hidden}");
        }
    }

    #[test]
    fn escapes_and_braces_inside_strings_do_not_confuse() {
        let found = redacted(r#"{"a\"}": "{\"x\": [\\", "b": "]}"}"#, &["b"]);
        assert!(found["a\"}"].as_str().unwrap().starts_with("hmac-sha256:"));
        assert_eq!(found["b"], "]}");
    }

    #[test]
    fn line_breaks_between_tokens_become_blanks_and_escaped_ones_stay() {
        let salt = Salt::from_text("salt".into());
        let found = strings(b"{\n\"a\"\r\n:\"x\\ny\",\n\"b\":[\"q\\r\",\n1]}\n", &salt, &["b".into()], 1000).unwrap();
        let hash = salt.identify(b"x\ny");
        assert_eq!(String::from_utf8(found).unwrap(), format!("{{ \"a\"  :\"{hash}\", \"b\":[\"q\\r\", 1]}} "));
    }

    #[test]
    fn deep_nesting_needs_no_stack() {
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        let salt = Salt::from_text("salt".into());
        assert_eq!(strings(deep.as_bytes(), &salt, &[], deep.len()).as_deref(), Some(deep.as_bytes()));
    }

    #[test]
    fn what_becomes_too_long_is_given_up_wherever_that_shows() {
        let salt = Salt::from_text("salt".into());
        let clear = ["clear".to_owned()];
        let long = "x".repeat(1000);
        for text in [
            r#"["","","","","","","","","",""]"#.to_owned(),
            format!(r#"{{"{long}":1}}"#),
            format!(r#"{{"clear":"{long}"}}"#),
            format!("[{}1]", "1,".repeat(500)),
        ] {
            let whole = strings(text.as_bytes(), &salt, &clear, usize::MAX).unwrap();
            assert_eq!(strings(text.as_bytes(), &salt, &clear, whole.len()).as_ref(), Some(&whole));
            assert_eq!(strings(text.as_bytes(), &salt, &clear, whole.len() - 1), None);
            assert_eq!(strings(text.as_bytes(), &salt, &clear, 700), None);
        }
        // A long value is a short HMAC.
        assert!(strings(format!(r#"{{"a":"{long}"}}"#).as_bytes(), &salt, &clear, 100).is_some());
    }
}
