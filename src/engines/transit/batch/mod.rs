//! Batches: reading `batch_input` and writing `batch_results`.
//!
//! A batch may hold many thousands of items. All of them are looked at before any is processed, since one malformed item fails
//! the request; they are then processed in windows, so that what is held of a batch is its text, its answer and a window.
//! Strings are borrowed from the request's body where they have no escapes, and results are written straight into the answer.

mod answer;
mod item;
mod text_item;
mod windows;

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

pub use self::{
    answer::{Results, Tally, push_text},
    item::Item,
    text_item::TextItem,
    windows::Items,
};
use crate::{
    core::failure::{Failure, Kind},
    wire::{
        field::{FieldKind, FromField},
        json::type_name,
    },
};

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
    /// Nothing: items of rewraps, and those whose members are all strings.
    Nothing,
}

/// An item of a batch in the form that an operation works with.
pub trait FromItem<'a>: Sized {
    /// Reads one; what is wrong with it goes to `mistakes`, and only what ends the look at the whole batch is an error.
    fn from_item(at: usize, raw: &'a RawValue, needs: Needs, mistakes: &mut Mistakes) -> Result<Self, Failure>;
}

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

fn malformed(text: &str) -> Failure {
    Failure::listed(Kind::Internal, format!("failed to parse batch input: {text}"))
}

/// Whether a JSON value is a number.
fn is_number(raw: &RawValue) -> bool {
    raw.get().starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
