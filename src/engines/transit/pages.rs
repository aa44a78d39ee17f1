//! Reading all records of a folder when some may be damaged: one of them keeps nothing that works on a whole mount from the
//! rest.

use serde::de::DeserializeOwned;

use super::record::decode;
use crate::{
    barrier::{BarrierError, Entry, View},
    core::failure::Failure,
};

/// Records read at a time.
const PAGE: usize = 256;

/// The records of a folder and all below it, in order.
pub struct Pages<'a> {
    view: &'a View,
    folder: &'static str,
    after: Option<String>,
    ended: bool,
}

/// Some of them.
#[derive(Default)]
pub struct Page {
    /// Those that can be read, by their paths in the view.
    pub records: Vec<(String, Entry)>,
    /// One behind them that cannot.
    pub damaged: Option<(String, BarrierError)>,
}

/// The record that a read behind `after` failed at because it is damaged.
pub fn damaged(view: &View, folder: &str, after: Option<&str>, error: &BarrierError) -> Option<String> {
    let path = error.damaged()?.strip_prefix(view.prefix()).filter(|path| path.starts_with(folder))?;
    after.is_none_or(|after| path > after).then(|| path.to_owned())
}

impl<'a> Pages<'a> {
    /// The records below `folder`, which ends in a slash.
    pub fn of(view: &'a View, folder: &'static str) -> Self {
        Self { view, folder, after: None, ended: false }
    }

    /// Looks at every record as a `T`; `pass_over` is told of each that is damaged, and why.
    pub fn each<T: DeserializeOwned>(
        self,
        mut look: impl FnMut(&str, T),
        mut pass_over: impl FnMut(&str, &Failure),
    ) -> Result<(), Failure> {
        for page in self {
            let page = page?;
            for (path, entry) in &page.records {
                match decode(&entry.value) {
                    Ok(record) => look(path, record),
                    Err(failure) => pass_over(path, &failure),
                }
            }
            if let Some((path, error)) = page.damaged {
                pass_over(&path, &error.into());
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<Page, BarrierError> {
        let mut page = Page::default();
        let error = match self.view.scan(self.folder, self.after.as_deref(), PAGE) {
            Ok(records) => {
                self.ended = records.len() < PAGE;
                self.after = records.last().map(|(path, _)| path.clone());
                return Ok(Page { records, ..page });
            }
            Err(error) => error,
        };
        if damaged(self.view, self.folder, self.after.as_deref(), &error).is_none() {
            return Err(error);
        }
        // What lies before it is read one by one.
        while page.damaged.is_none() {
            match self.view.scan(self.folder, self.after.as_deref(), 1) {
                Ok(mut one) => {
                    // It can be gone by now.
                    let Some((path, entry)) = one.pop().filter(|_| page.records.len() < PAGE) else { break };
                    self.after = Some(path.clone());
                    page.records.push((path, entry));
                }
                Err(error) => {
                    let Some(path) = damaged(self.view, self.folder, self.after.as_deref(), &error) else { return Err(error) };
                    self.after = Some(path.clone());
                    page.damaged = Some((path, error));
                }
            }
        }
        Ok(page)
    }
}

impl Iterator for Pages<'_> {
    type Item = Result<Page, BarrierError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let page = self.read();
        // A store that cannot be read now is no longer asked.
        self.ended |= page.is_err();
        Some(page)
    }
}
