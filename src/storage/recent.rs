//! What is in the journal and not in the engine yet, in memory, and how readers see both as one.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use super::backend::{Step, Write};

/// What a key holds; `None` when it was deleted.
pub(super) type Value = Option<Arc<[u8]>>;

/// Keys and what was written to them last.
pub(super) type Map = BTreeMap<Vec<u8>, Value>;

/// Bytes of memory that an entry takes beside its key and value.
const ENTRY: usize = 96;

/// The writes that the engine does not have.
#[derive(Default)]
pub(super) struct Recent {
    /// Since the last freezing.
    active: Map,
    bytes: usize,
    /// Being written to the engine.
    frozen: Option<Arc<Map>>,
    /// How often what was frozen has gone over to the engine: a reader who read both sees whether it moved meanwhile.
    moves: u64,
}

impl Recent {
    /// Of what was found in the journal's two files.
    pub(super) fn found(older: Self, newer: Self, moves: u64) -> Self {
        let frozen = Some(older.active).filter(|older| !older.is_empty()).map(Arc::new);
        Self { frozen, moves: moves + 1, ..newer }
    }

    /// Takes a batch that the journal has durably.
    pub(super) fn insert(&mut self, batch: Vec<Write>) {
        for (key, value) in batch {
            let (entry, length) = (key.len() + ENTRY, value.as_ref().map_or(0, Vec::len));
            match self.active.insert(key, value.map(Arc::from)) {
                Some(before) => self.bytes -= before.map_or(0, |value| value.len()),
                None => self.bytes += entry,
            }
            self.bytes += length;
        }
    }

    /// Bytes of memory of what was written since the last freezing.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether anything was written since the last freezing.
    pub(super) fn is_active(&self) -> bool {
        !self.active.is_empty()
    }

    /// What is on its way to the engine.
    pub(super) fn frozen(&self) -> Option<Arc<Map>> {
        self.frozen.clone()
    }

    /// Sends what was written on its way to the engine; nothing else may be on it.
    pub(super) fn freeze(&mut self) {
        self.frozen = Some(Arc::new(std::mem::take(&mut self.active)));
        self.bytes = 0;
    }

    /// The engine has what was frozen.
    pub(super) fn moved(&mut self) {
        self.frozen = None;
        self.moves += 1;
    }

    /// See [`Recent::moves`].
    pub(super) fn moves(&self) -> u64 {
        self.moves
    }

    /// What a key holds; the outer `None` when the engine has to be asked.
    pub(super) fn get(&self, key: &[u8]) -> Option<Value> {
        let frozen = || self.frozen.as_ref().and_then(|frozen| frozen.get(key));
        self.active.get(key).or_else(frozen).cloned()
    }

    /// Whether there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.active.is_empty() && self.frozen.is_none()
    }

    /// The entries at and after `from` whose keys start with `prefix`, in order.
    pub(super) fn within(&self, prefix: &[u8], from: &[u8]) -> Vec<(Vec<u8>, Value)> {
        let range = |map: &Map| -> Map {
            let behind = map.range::<[u8], _>((Bound::Included(from), Bound::Unbounded));
            let inside = behind.take_while(|(key, _)| key.starts_with(prefix));
            inside.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        let mut entries = self.frozen.as_deref().map(range).unwrap_or_default();
        entries.append(&mut range(&self.active));
        entries.into_iter().collect()
    }
}

/// A visit of an engine's records with what was written since between them.
pub(super) struct Merge<'v> {
    recent: std::iter::Peekable<std::vec::IntoIter<(Vec<u8>, Value)>>,
    visitor: &'v mut dyn FnMut(&[u8], &[u8]) -> Step,
    /// What lies before this is not shown.
    from: Vec<u8>,
    over: bool,
}

impl<'v> Merge<'v> {
    pub(super) fn new(recent: Vec<(Vec<u8>, Value)>, from: &[u8], visitor: &'v mut dyn FnMut(&[u8], &[u8]) -> Step) -> Self {
        Self { recent: recent.into_iter().peekable(), visitor, from: from.to_vec(), over: false }
    }

    /// A record of the engine: shows what comes before it, and it or what was written over it.
    pub(super) fn meet(&mut self, key: &[u8], value: &[u8]) -> Step {
        self.show_before(Some(key));
        if self.over {
            return Step::Stop;
        }
        if key < self.from.as_slice() {
            return Step::SkipTo(self.from.clone());
        }
        match self.recent.next_if(|(recent, _)| recent == key) {
            Some((_, None)) => {}
            Some((_, Some(newer))) => self.show(key, &newer),
            None => self.show(key, value),
        }
        match self.over {
            true => Step::Stop,
            false if key < self.from.as_slice() => Step::SkipTo(self.from.clone()),
            false => Step::Next,
        }
    }

    /// The engine has no more.
    pub(super) fn finish(mut self) {
        self.show_before(None);
    }

    fn show_before(&mut self, key: Option<&[u8]>) {
        while !self.over
            && let Some((recent, value)) = self.recent.next_if(|(recent, _)| key.is_none_or(|key| recent.as_slice() < key))
        {
            if let Some(value) = value
                && recent >= self.from
            {
                self.show(&recent, &value);
            }
        }
    }

    fn show(&mut self, key: &[u8], value: &[u8]) {
        match (self.visitor)(key, value) {
            Step::Next => {}
            Step::Stop => self.over = true,
            Step::SkipTo(from) => self.from = from,
        }
    }
}
