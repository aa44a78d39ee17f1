//! `batch_results`, written item by item, and the status that the items' errors give.

use super::windows::WINDOW;
use crate::{
    core::{failure::Failure, reply::Reply},
    engines::transit::ops::ItemError,
};

/// `batch_results`, written item by item.
pub struct Results {
    out: Vec<u8>,
    done: usize,
    count: usize,
}

impl Results {
    /// For so many items.
    pub fn of(count: usize) -> Self {
        Self { out: b"{\"batch_results\":[".to_vec(), done: 0, count }
    }

    /// Where the next result is to be appended, a JSON object.
    pub fn next(&mut self) -> &mut Vec<u8> {
        if self.done == WINDOW {
            // The others are likely to be as long: a buffer that grows by doubling is copied, and twice as long in the end.
            let more = self.out.len() / WINDOW * (self.count - WINDOW.min(self.count));
            self.out.reserve_exact(more + more / 16);
        }
        if self.done > 0 {
            self.out.push(b',');
        }
        self.done += 1;
        &mut self.out
    }

    /// Appends a result.
    pub fn push(&mut self, result: &impl serde::Serialize) -> Result<(), Failure> {
        serde_json::to_writer(self.next(), result).map_err(Failure::internal)
    }

    /// The whole.
    pub fn finish(mut self) -> Vec<u8> {
        self.out.extend_from_slice(b"]}");
        self.out
    }
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

    #[test]
    fn results_are_one_list() {
        let mut results = Results::of(2);
        results.next().extend_from_slice(b"{}");
        results.push(&serde_json::json!({"a": 1})).unwrap();
        assert_eq!(results.finish(), br#"{"batch_results":[{},{"a":1}]}"#);
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
