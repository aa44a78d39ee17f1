//! Batches: reading `batch_input` and writing `batch_results`.
//!
//! A batch may hold many thousands of items. All of them are looked at before any is processed, since one malformed item fails
//! the request; they are then processed in windows, so that what is held of a batch is its text, its answer and a window.
//! Strings are borrowed from the request's body where they have no escapes, and results are written straight into the answer.

use std::{borrow::Cow, collections::VecDeque};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    Transit,
    gate::{Gate, Going, MAX_ITEMS, Pass, Place},
    ops::ItemError,
    turn::Turn,
};
use crate::{
    core::{
        engine::Call,
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

/// Items that are taken apart and processed together.
const WINDOW: usize = 1024;

/// Mistakes that an answer lists.
const LISTED: usize = 100;

/// What is wrong with the items of a batch.
#[derive(Default)]
pub struct Mistakes {
    listed: Vec<String>,
    beyond: usize,
}

impl Mistakes {
    /// Another one.
    pub fn push(&mut self, text: impl FnOnce() -> String) {
        if self.listed.len() < LISTED {
            self.listed.push(text());
        } else {
            self.beyond += 1;
        }
    }

    /// The error that says all of them.
    pub fn judge(self) -> Result<(), Failure> {
        match (self.listed.as_slice(), self.beyond) {
            ([], _) => Ok(()),
            (listed, 0) => Err(malformed(&listed.join("\n"))),
            (listed, beyond) => Err(malformed(&format!("{}\nand {beyond} more", listed.join("\n")))),
        }
    }
}

/// An item of a batch in the form that an operation works with.
pub trait FromItem<'a>: Sized {
    /// Reads one; what is wrong with it goes to `mistakes`, and only what ends the look at the whole batch is an error.
    fn from_item(at: usize, raw: &'a RawValue, needs: Needs, mistakes: &mut Mistakes) -> Result<Self, Failure>;
}

/// The values of a JSON list, one after the other.
struct Values<'a> {
    rest: &'a str,
}

impl<'a> Values<'a> {
    fn of(raw: &'a RawValue) -> Result<Self, Failure> {
        let inner = raw.get().strip_prefix('[');
        let wrong = || malformed(&format!("source data must be an array or slice, got {}", type_name(raw)));
        Ok(Self { rest: inner.ok_or_else(wrong)? })
    }
}

impl<'a> Iterator for Values<'a> {
    type Item = Result<&'a RawValue, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        let text = self.rest.trim_ascii_start();
        if text.starts_with(']') || text.is_empty() {
            return None;
        }
        // The text is JSON, as the body was read before: a value is followed by a comma or by the end of the list.
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<&'a RawValue>();
        let value = values.next()?;
        let after = text.get(values.byte_offset()..).unwrap_or_default().trim_ascii_start();
        self.rest = after.strip_prefix(',').unwrap_or(after);
        Some(value.map_err(|error| malformed(&error.to_string())))
    }
}

/// The items of a request: those of its batch, or the one that it is itself.
pub struct Items<'a, T> {
    /// The first window, already read.
    first: Vec<T>,
    /// What is left of the window that single items are taken from.
    window: VecDeque<T>,
    rest: Option<Values<'a>>,
    needs: Needs,
    count: usize,
    batch: bool,
    /// Its turns among other batches; a request that is its own item waits for none.
    pass: Option<Pass<'a>>,
}

impl<'a, T: FromItem<'a>> Items<'a, T> {
    /// A request that is its own item.
    pub fn one(item: T) -> Self {
        Self { first: vec![item], window: VecDeque::new(), rest: None, needs: Needs::Nothing, count: 1, batch: false, pass: None }
    }

    /// The batch of a request, if it is one. `see` is shown every item.
    ///
    /// # Errors
    /// What the API answers to malformed batches: 500 for wrong types, 400 for an empty list. 400 for more items than one
    /// request may have.
    pub async fn of_call(
        engine: &'a Transit,
        call: &'a Call<'_>,
        needs: Needs,
        see: impl FnMut(&T) + Send,
    ) -> Result<Option<Self>, Failure>
    where
        T: Send,
    {
        match call.body.member("batch_input").filter(|raw| raw.get() != "null") {
            Some(raw) => {
                let going = Going::of(call, &engine.store.view);
                Self::read(&engine.stores.gate, going, raw, needs, see).await.map(Some)
            }
            None => Ok(None),
        }
    }

    async fn read(
        gate: &'a Gate,
        going: Going,
        raw: &'a RawValue,
        needs: Needs,
        mut see: impl FnMut(&T) + Send,
    ) -> Result<Self, Failure>
    where
        T: Send,
    {
        let mut values = Values::of(raw)?;
        let (mut first, mut rest) = (Vec::new(), None);
        let (mut mistakes, mut turn, mut count) = (Mistakes::default(), Turn::begin(), 0);
        while let Some(value) = values.next() {
            let value = value?;
            turn.give_way_for(value.get().len()).await;
            let item = T::from_item(count, value, needs, &mut mistakes)?;
            see(&item);
            count += 1;
            if count > MAX_ITEMS {
                break;
            }
            if count <= WINDOW {
                first.push(item);
            }
            if count == WINDOW {
                rest = Some(Values { rest: values.rest });
            }
        }
        if count == 0 {
            return Err(Failure::invalid("missing batch input to process"));
        }
        let pass = gate.admit(count, going)?;
        mistakes.judge()?;
        Ok(Self { first, window: VecDeque::new(), rest, needs, count, batch: true, pass: Some(pass) })
    }

    /// Whether it is a batch.
    pub fn is_batch(&self) -> bool {
        self.batch
    }

    /// How many there are.
    pub fn total(&self) -> usize {
        self.count
    }

    /// Says before the first window where the items are worked on: here, or in the HSM. For each place batches have turns of their own.
    pub fn work_in(&mut self, place: Place) {
        if let Some(pass) = &mut self.pass {
            pass.goes_to(place);
        }
    }

    /// The next items, when it is their turn; none when all were given.
    ///
    /// # Errors
    /// Those of [`Pass::window`].
    pub async fn window(&mut self) -> Result<Vec<T>, Failure> {
        let window = self.read_window()?;
        if let Some(pass) = &mut self.pass {
            pass.window(window.len()).await?;
        }
        Ok(window)
    }

    /// The next item, for what works on each by itself; windows and single items do not mix.
    ///
    /// # Errors
    /// Those of [`Pass::window`].
    pub async fn next_item(&mut self) -> Result<Option<T>, Failure> {
        if self.window.is_empty() {
            self.next_window().await?;
        }
        Ok(self.next_here())
    }

    /// Takes up the next window once all of the one before are done; `false` when there is none.
    pub async fn next_window(&mut self) -> Result<bool, Failure> {
        self.window = self.window().await?.into();
        Ok(!self.window.is_empty())
    }

    /// The next item of the window that was taken up.
    pub fn next_here(&mut self) -> Option<T> {
        self.window.pop_front()
    }

    fn read_window(&mut self) -> Result<Vec<T>, Failure> {
        if !self.first.is_empty() {
            return Ok(std::mem::take(&mut self.first));
        }
        let mut window = Vec::new();
        let Some(values) = &mut self.rest else { return Ok(window) };
        // What is wrong with an item was said when all were looked at.
        let mut mistakes = Mistakes::default();
        for value in values.take(WINDOW) {
            window.push(T::from_item(0, value?, self.needs, &mut mistakes)?);
        }
        Ok(window)
    }
}

impl<'a> FromItem<'a> for Item<'a> {
    fn from_item(at: usize, raw: &'a RawValue, needs: Needs, mistakes: &mut Mistakes) -> Result<Self, Failure> {
        if !raw.get().starts_with('{') {
            return Err(malformed(&format!("[{at}] expected a map, got '{}'", type_name(raw))));
        }
        let members: RawItem<'a> = serde_json::from_str(raw.get()).map_err(|error| malformed(&error.to_string()))?;
        Ok(item(at, &members, needs, mistakes))
    }
}

fn item<'a>(at: usize, raw: &RawItem<'a>, needs: Needs, mistakes: &mut Mistakes) -> Item<'a> {
    let [context, ciphertext, plaintext, key_version, associated_data, reference, nonce] = raw.members;
    let mut text = |name: &str, value: Option<&'a RawValue>, null: bool| match value {
        None => Cow::Borrowed(""),
        Some(raw) if null && raw.get() == "null" => Cow::Borrowed(""),
        Some(raw) if let Some(plain) = without_escapes(raw) => Cow::Borrowed(plain),
        Some(raw) => match serde_json::from_str::<Text<'a>>(raw.get()) {
            Ok(Text(text)) => text,
            Err(_) => {
                let got = type_name(raw);
                mistakes.push(|| format!("'[{at}].{name}' expected type 'string', got unconvertible type '{got}'"));
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
        mistakes.push(|| format!("'[{at}].ciphertext' missing ciphertext to decrypt"));
    }
    if plaintext.is_none() && needs == Needs::Plaintext {
        mistakes.push(|| format!("'[{at}].plaintext' missing plaintext to encrypt"));
    }
    item.key_version = match key_version {
        Some(raw) if raw.get() != "null" => match raw.get().parse() {
            Ok(version) => version,
            Err(_) => {
                let got = type_name(raw);
                mistakes.push(|| format!("'[{at}].key_version' expected type 'int', got unconvertible type '{got}'"));
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

    fn parse<'a>(raw: &'a RawValue, needs: Needs) -> Result<Vec<Item<'a>>, Failure> {
        let gate = Box::leak(Box::<Gate>::default());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut items = runtime.block_on(Items::<Item<'a>>::read(gate, Going::default(), raw, needs, |_| ()))?;
        assert!(items.is_batch());
        let mut all = Vec::new();
        loop {
            let window = runtime.block_on(items.window())?;
            if window.is_empty() {
                assert_eq!(all.len(), items.total());
                return Ok(all);
            }
            all.extend(window);
        }
    }

    #[test]
    fn items_are_read_and_the_rest_is_passed_over() {
        let raw =
            raw(r#" [ {"plaintext":"YQ==","key_version":2,"x":1,"reference":"a\n"} , {"plaintext":"","context":null} ] "#.trim());
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
    fn windows_hold_all_items_in_order() {
        for count in [1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 3 * WINDOW - 1] {
            let list: Vec<String> = (0..count).map(|at| format!("{{\"plaintext\":\"\",\"key_version\":{at}}}")).collect();
            let raw = raw(&format!("[{}]", list.join(", ")));
            // The permit of a long batch is there at once.
            let items = parse(&raw, Needs::Plaintext).unwrap();
            assert_eq!(items.len(), count);
            assert!(items.iter().enumerate().all(|(at, item)| item.key_version == i64::try_from(at).unwrap()));
        }
    }

    #[test]
    fn items_come_one_by_one_as_in_windows() {
        let gate = Gate::default();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for count in [1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 3 * WINDOW - 1] {
            let list: Vec<String> = (0..count).map(|at| format!("{{\"plaintext\":\"\",\"key_version\":{at}}}")).collect();
            let raw = raw(&format!("[{}]", list.join(", ")));
            let read = Items::<Item<'_>>::read(&gate, Going::default(), &raw, Needs::Plaintext, |_| ());
            let mut items = runtime.block_on(read).unwrap();
            let mut versions = Vec::new();
            while let Some(item) = runtime.block_on(items.next_item()).unwrap() {
                versions.push(item.key_version);
            }
            assert_eq!(versions, (0..i64::try_from(count).unwrap()).collect::<Vec<_>>());
        }
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
        assert_eq!(parse(&raw("[ ]"), Needs::Nothing).unwrap_err().kind(), Kind::Invalid);
        let many = raw(&format!("[{}{{}}]", "{},".repeat(LISTED + 4)));
        let text = parse(&many, Needs::Ciphertext).unwrap_err().text().to_owned();
        assert!(text.ends_with("'[99].ciphertext' missing ciphertext to decrypt\nand 5 more"), "{text}");
    }

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
