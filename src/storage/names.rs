//! The names of a listing, and listings that are kept.
//!
//! A listing of a thousand names costs the engines a thousand steps of an iterator, although its names change only when a
//! record is made or deleted. So short listings are kept, and a listing that is kept is answered exactly as the engine
//! would answer it: before a batch that makes or deletes a record the committer marks every folder above it as being
//! changed, and after the batch is visible as changed. A listing is used only when its folder's mark is what it was before the
//! listing was read. Names are no secrets (they stand readable in the store's files); values are never kept.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use quick_cache::{Weighter, sync::Cache};

/// Names in order, in one piece of memory; cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(Arc<Joined>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Joined {
    text: String,
    /// Where each name ends in `text`.
    ends: Vec<usize>,
}

impl Names {
    /// Adds a name behind the others.
    pub fn push(&mut self, name: &str) {
        let joined = Arc::make_mut(&mut self.0);
        joined.text.push_str(name);
        joined.ends.push(joined.text.len());
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.ends.is_empty()
    }

    /// The last one.
    pub fn last(&self) -> Option<&str> {
        self.iter().next_back()
    }

    /// All of them.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &str> {
        let Joined { text, ends } = &*self.0;
        (0..ends.len()).filter_map(move |at| {
            let start = if at == 0 { 0 } else { *ends.get(at - 1)? };
            text.get(start..*ends.get(at)?)
        })
    }

    fn bytes(&self) -> usize {
        self.0.text.len() + self.0.ends.len() * size_of::<usize>()
    }
}

impl<S: AsRef<str>> FromIterator<S> for Names {
    fn from_iter<T: IntoIterator<Item = S>>(names: T) -> Self {
        let mut all = Self::default();
        names.into_iter().for_each(|name| all.push(name.as_ref()));
        all
    }
}

/// Fewer names are read as fast as they are found.
const LEAST: usize = 16;

/// Bytes of all listings that are kept, and of one.
const MOST: u64 = 2 << 20;
const LONGEST: usize = 128 << 10;

/// Marks; folders share them.
const MARKS: usize = 1024;

/// A listing, and the mark of its folder from before it was read.
#[derive(Clone)]
struct Kept {
    mark: u64,
    names: Names,
}

#[derive(Clone)]
struct Size;

impl Weighter<String, Kept> for Size {
    fn weight(&self, folder: &String, kept: &Kept) -> u64 {
        u64::try_from(folder.len() + kept.names.bytes()).unwrap_or(u64::MAX)
    }
}

/// The listings of one store that are kept.
pub(super) struct Listings {
    /// Even while nothing below the mark's folders is being made or deleted. Changed by the committer thread alone.
    marks: Box<[AtomicU64]>,
    kept: Cache<String, Kept, Size>,
}

/// The marks of the folders that a batch changes.
#[derive(Default)]
pub(super) struct Changing(Vec<usize>);

impl Changing {
    /// A record is made or deleted.
    pub(super) fn add(&mut self, key: &[u8]) {
        let ends = key.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at + 1);
        self.0.extend(std::iter::once(0).chain(ends).filter_map(|end| key.get(..end)).map(mark_of));
    }
}

impl Listings {
    pub(super) fn new() -> Self {
        Self { marks: (0..MARKS).map(|_| AtomicU64::new(0)).collect(), kept: Cache::with_weighter(64, MOST, Size) }
    }

    /// The mark of a folder, to be taken before its listing is read; `None` while something in it changes.
    pub(super) fn mark(&self, folder: &str) -> Option<u64> {
        let mark = self.marks.get(mark_of(folder.as_bytes()))?.load(Ordering::SeqCst);
        mark.is_multiple_of(2).then_some(mark)
    }

    /// The listing of a folder whose mark is this one.
    pub(super) fn get(&self, folder: &str, mark: u64) -> Option<Names> {
        self.kept.get(folder).filter(|kept| kept.mark == mark).map(|kept| kept.names)
    }

    /// Keeps the whole listing of a folder, read after its mark was taken.
    pub(super) fn keep(&self, folder: &str, mark: u64, names: &Names) {
        if names.len() >= LEAST && names.bytes() <= LONGEST {
            self.kept.insert(folder.to_owned(), Kept { mark, names: names.clone() });
        }
    }

    /// Marks folders as being changed, before readers can see any of the changes.
    pub(super) fn begin(&self, changing: &mut Changing) {
        changing.0.sort_unstable();
        changing.0.dedup();
        self.step(&changing.0);
    }

    /// Marks them as changed, when readers see all of the changes.
    pub(super) fn end(&self, changing: &Changing) {
        self.step(&changing.0);
    }

    fn step(&self, marks: &[usize]) {
        for mark in marks.iter().filter_map(|at| self.marks.get(*at)) {
            mark.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Nothing is known about any folder until [`Listings::end_all`].
    pub(super) fn begin_all(&self) {
        for mark in &self.marks {
            mark.fetch_or(1, Ordering::SeqCst);
        }
    }

    /// Every folder may have changed.
    pub(super) fn end_all(&self) {
        for mark in &self.marks {
            let next = (mark.load(Ordering::SeqCst) | 1) + 1;
            mark.store(next, Ordering::SeqCst);
        }
    }
}

fn mark_of(folder: &[u8]) -> usize {
    usize::try_from(crc32fast::hash(folder)).unwrap_or_default() % MARKS
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::{
        super::{Kind, Storage, Txn, conformance::*},
        *,
    };

    #[test]
    fn names_come_back_in_order() {
        let names: Names = ["a", "", "bc/"].into_iter().collect();
        assert_eq!((names.len(), names.last(), names.is_empty()), (3, Some("bc/"), false));
        assert_eq!(names.iter().collect::<Vec<_>>(), ["a", "", "bc/"]);
        assert!(Names::default().is_empty() && Names::default().last().is_none());
    }

    #[test]
    fn a_listing_is_used_until_something_in_its_folder_is_made_or_deleted() {
        let listings = Listings::new();
        let names: Names = (0..20).map(|n| n.to_string()).collect();
        let mark = listings.mark("a/b/").unwrap();
        listings.keep("a/b/", mark, &names);
        assert_eq!(listings.get("a/b/", mark), Some(names.clone()));
        let mut changing = Changing::default();
        changing.add(b"a/b/c/d");
        listings.begin(&mut changing);
        assert!(["", "a/", "a/b/", "a/b/c/"].iter().all(|folder| listings.mark(folder).is_none()));
        listings.end(&changing);
        let mark = listings.mark("a/b/").unwrap();
        assert_eq!(listings.get("a/b/", mark), None);
        // What was read before the change does not become good by being kept after it.
        listings.keep("a/b/", mark - 2, &names);
        assert_eq!(listings.get("a/b/", mark), None);
        // After a failure nothing is known, and then everything is read anew.
        listings.keep("a/b/", mark, &names);
        listings.begin(&mut changing);
        listings.begin_all();
        assert!(listings.mark("x/").is_none());
        listings.end_all();
        let mark = listings.mark("a/b/").unwrap();
        assert_eq!(listings.get("a/b/", mark), None);
    }

    /// Readers list all the time while one writer makes and deletes: what was acknowledged is always shown, and what
    /// was seen once is seen again.
    fn listings_are_exact(kind: Kind) {
        let bench = Bench::new(kind);
        let store = bench.try_open().unwrap();
        for n in 0..100 {
            commit(&store, Txn::new().put(format!("f/{n:03}"), vec![])).unwrap();
        }
        let (acknowledged, done) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut seen = 0;
                    while !done.load(Ordering::SeqCst) {
                        let least = seen.max(acknowledged.load(Ordering::SeqCst));
                        let names = store.names("f/", None, usize::MAX).unwrap();
                        let newest = names.last().and_then(|name| name.strip_prefix("new-")).map_or(0, |n| n.parse().unwrap());
                        assert!(newest >= least, "{newest} after {least}");
                        // Each commit takes the previous name away.
                        assert_eq!(names.len(), if newest == 0 { 100 } else { 101 });
                        seen = newest;
                    }
                });
            }
            for n in 1..=400_u64 {
                let txn = Txn::new().put(format!("f/new-{n:04}"), vec![]).delete(format!("f/new-{:04}", n - 1));
                commit(&store, txn).unwrap();
                acknowledged.store(n, Ordering::SeqCst);
                // Overwriting changes no listing.
                commit(&store, Txn::new().put("f/000", vec![1])).unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        let names = store.names("f/", None, usize::MAX).unwrap();
        assert_eq!(names, store.names("f/", None, usize::MAX).unwrap());
        assert_eq!(store.names("f/", None, 5).unwrap().len(), 5);
        assert_eq!(store.list("f/", Some("098"), 9).unwrap(), ["099", "new-0400"]);
    }

    #[test]
    fn listings_of_memory_are_exact() {
        listings_are_exact(Kind::InMem);
    }

    #[test]
    fn listings_of_sled_are_exact() {
        listings_are_exact(Kind::Sled);
    }

    #[test]
    fn listings_of_redb_are_exact() {
        listings_are_exact(Kind::Redb);
    }
}
