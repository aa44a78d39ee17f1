//! Harm that a test does to a copy's files, after they were written and before they are opened again.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;

type Harm = Box<dyn FnMut(&Path) + Send>;

static PLANNED: Mutex<Vec<(PathBuf, Harm)>> = Mutex::new(Vec::new());

/// Does this to the place of every copy that is made in a store's folder from now on, each time it was closed.
pub(in crate::storage) fn plan(folder: &Path, harm: impl FnMut(&Path) + Send + 'static) {
    let mut planned = PLANNED.lock();
    planned.retain(|(of, _)| of != folder);
    planned.push((folder.to_owned(), Box::new(harm)));
}

/// Does no more harm in this folder.
pub(in crate::storage) fn mend(folder: &Path) {
    PLANNED.lock().retain(|(of, _)| of != folder);
}

pub(in crate::storage) fn spoil(folder: &Path, place: &Path) {
    PLANNED.lock().iter_mut().filter(|(of, _)| of == folder).for_each(|(_, harm)| harm(place));
}
