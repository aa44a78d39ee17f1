//! The items of a batch, all looked at before the first is processed, then taken in windows.

use std::collections::VecDeque;

use serde_json::value::RawValue;

use super::{FromItem, Mistakes, Needs, malformed, type_name};
use crate::{
    core::{engine::Call, failure::Failure},
    engines::transit::{
        Transit,
        gate::{Gate, Going, MAX_ITEMS, Pass, Place},
        turn::Turn,
    },
};

/// Items that are taken apart and processed together.
pub(super) const WINDOW: usize = 1024;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::failure::Kind,
        engines::transit::batch::{Item, LISTED},
    };

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
}
