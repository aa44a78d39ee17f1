//! Longest-prefix look-up in a sorted table.

use std::collections::BTreeMap;

use super::rule::Permissions;

/// Prefixes in sorted order; each knows the next shorter one that it starts with.
#[derive(Debug, Default)]
pub struct PrefixTable {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    prefix: Box<str>,
    shorter: Option<usize>,
    rule: Permissions,
}

impl PrefixTable {
    /// The table of these prefixes.
    pub fn new(rules: BTreeMap<Box<str>, Permissions>) -> Self {
        let mut entries: Vec<Entry> = Vec::with_capacity(rules.len());
        for (prefix, rule) in rules {
            let shorter = longest_from(&entries, entries.len().checked_sub(1), &prefix);
            entries.push(Entry { prefix, shorter, rule });
        }
        Self { entries }
    }

    /// The longest prefix of `path` in the table. The last entry that sorts before `path` is either that prefix or starts
    /// with it, because everything between the two shares it; so the answer lies on that entry's chain.
    pub fn longest(&self, path: &str) -> Option<(&str, &Permissions)> {
        let before = self.entries.partition_point(|entry| *entry.prefix <= *path);
        let found = longest_from(&self.entries, before.checked_sub(1), path)?;
        self.entries.get(found).map(|entry| (&*entry.prefix, &entry.rule))
    }

    /// All prefixes with their rules.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Permissions)> {
        self.entries.iter().map(|entry| (&*entry.prefix, &entry.rule))
    }
}

/// The first entry on the chain from `start` that `path` starts with.
fn longest_from(entries: &[Entry], start: Option<usize>, path: &str) -> Option<usize> {
    let mut candidate = start;
    while let Some(index) = candidate {
        let entry = entries.get(index)?;
        if path.starts_with(&*entry.prefix) {
            return candidate;
        }
        candidate = entry.shorter;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(prefixes: &[String]) -> PrefixTable {
        PrefixTable::new(prefixes.iter().map(|prefix| (prefix.as_str().into(), Permissions::default())).collect())
    }

    #[test]
    fn the_longest_wins() {
        let table = table(&["", "a", "a/b", "a/b/c/d", "a/c"].map(String::from));
        for (path, prefix) in [("a/b/c", "a/b"), ("a/b/c/d", "a/b/c/d"), ("a/bb", "a/b"), ("ab", "a"), ("b", ""), ("", "")] {
            assert_eq!(table.longest(path).map(|(prefix, _)| prefix), Some(prefix), "{path}");
        }
        assert!(PrefixTable::default().longest("a").is_none());
    }

    proptest! {
        #[test]
        fn agrees_with_looking_at_every_prefix(prefixes in prop::collection::vec("[ab/]{0,5}", 0..12), path in "[ab/]{0,7}") {
            let expected = prefixes.iter().filter(|prefix| path.starts_with(*prefix)).max_by_key(|prefix| prefix.len());
            let table = table(&prefixes);
            prop_assert_eq!(table.longest(&path).map(|(prefix, _)| prefix), expected.map(String::as_str));
        }
    }
}
