//! How many records there are and what they add up to, kept with the sequence.
//!
//! An engine that skips damage in the middle of its log opens without the records that stood there, or with older
//! ones. No checksum of a record can tell, because the record is not there. The census can: it is written with every
//! batch, and [`super::check`] counts again after the start.

/// Number and sum of all records. The sum takes version and checksum of each, in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    count: u64,
    sum: u64,
    bytes: u64,
}

impl Census {
    pub(crate) fn add(&mut self, weight: Weight) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(weight.sum);
        self.bytes = self.bytes.saturating_add(weight.bytes);
    }

    pub(crate) fn subtract(&mut self, weight: Weight) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(weight.sum);
        self.bytes = self.bytes.saturating_sub(weight.bytes);
    }

    /// How many records there are.
    pub(crate) fn count(self) -> u64 {
        self.count
    }

    /// Bytes of all keys and framed records together: what a file must hold at least.
    pub(crate) fn bytes(self) -> u64 {
        self.bytes
    }

    pub(crate) fn encode(self) -> Vec<u8> {
        [self.count, self.sum, self.bytes].map(u64::to_be_bytes).concat()
    }

    pub(crate) fn decode(stored: &[u8]) -> Option<Self> {
        let (count, rest) = stored.split_first_chunk::<8>()?;
        let (sum, rest) = rest.split_first_chunk::<8>()?;
        // The first form had no bytes.
        let bytes = rest.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        Some(Self { count: u64::from_be_bytes(*count), sum: u64::from_be_bytes(*sum), bytes })
    }

    /// Says how this count differs from what was written down, when it does.
    pub(crate) fn differs(self, expected: Self) -> Option<String> {
        let (found, wanted) = (self.count, expected.count);
        match found == wanted && self.sum == expected.sum {
            true => None,
            false if found == wanted => Some(format!("some of the {wanted} records are not what was acknowledged")),
            false => Some(format!("there are {found} records although {wanted} were acknowledged")),
        }
    }
}

/// What one stored record adds to the census.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weight {
    sum: u64,
    bytes: u64,
}

/// The sum is made of the frame's version and checksum, well mixed, so that losses do not cancel each other out.
pub(crate) fn weight(key: &[u8], framed: &[u8]) -> Weight {
    let mut low = [0; 8];
    let mut high = [0; 8];
    for (to, from) in low.iter_mut().chain(high.iter_mut()).zip(framed.iter().take(13)) {
        *to = *from;
    }
    let sum = mix(u64::from_be_bytes(low) ^ mix(u64::from_be_bytes(high)));
    let bytes = u64::try_from(key.len() + framed.len()).unwrap_or(u64::MAX);
    Weight { sum, bytes }
}

/// The finishing step of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::frame;

    #[test]
    fn a_lost_an_older_and_an_exchanged_record_are_seen() {
        let record = |key: &[u8], version| weight(key, &frame::encode(key, version, b"value"));
        let mut full = Census::default();
        full.add(record(b"a", 1));
        full.add(record(b"b", 2));
        assert_eq!(Census::decode(&full.encode()), Some(full));
        assert_eq!((full.count(), full.bytes()), (2, 2 * (1 + 13 + 5)));
        let mut lost = full;
        lost.subtract(record(b"b", 2));
        assert_eq!(lost.differs(full).unwrap(), "there are 1 records although 2 were acknowledged");
        let mut older = lost;
        older.add(record(b"b", 1));
        assert!(older.differs(full).unwrap().starts_with("some of the 2 records"));
        lost.add(record(b"b", 2));
        assert_eq!(lost.differs(full), None);
    }
}
