//! How much of a mount is opened, and which part.

/// How many names of each mount are opened, with all their versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// Every one.
    All,
    /// So many, drawn evenly.
    Some(usize),
}

/// Draws a sample from names that come one after the other, in bounded memory (Vitter's algorithm R).
pub(super) struct Drawn {
    sample: Sample,
    seen: u64,
    names: Vec<String>,
}

impl Drawn {
    pub(super) fn new(sample: Sample) -> Self {
        Self { sample, seen: 0, names: Vec::new() }
    }

    pub(super) fn offer(&mut self, name: String) {
        self.seen += 1;
        match self.sample {
            Sample::All => self.names.push(name),
            Sample::Some(size) if self.names.len() < size => self.names.push(name),
            Sample::Some(_) => {
                let at = below(self.seen);
                if let Some(place) = usize::try_from(at).ok().and_then(|at| self.names.get_mut(at)) {
                    *place = name;
                }
            }
        }
    }

    pub(super) fn names(self) -> Vec<String> {
        self.names
    }
}

/// A number below `limit`; the bias of the remainder is below 2^-40 for what a store can hold.
fn below(limit: u64) -> u64 {
    u64::from_ne_bytes(crate::secret::random_array()) % limit.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_its_size_and_reaches_every_place() {
        let mut last = false;
        for _ in 0..200 {
            let mut drawn = Drawn::new(Sample::Some(5));
            (0..20).for_each(|number| drawn.offer(number.to_string()));
            let names = drawn.names();
            assert_eq!(names.len(), 5);
            last |= names.contains(&"19".to_owned());
        }
        assert!(last, "the last name is never drawn");
        let mut all = Drawn::new(Sample::All);
        (0..20).for_each(|number| all.offer(number.to_string()));
        assert_eq!(all.names().len(), 20);
    }
}
