//! The path of a rule as a pattern: exact, a prefix (`x*`), or with `+` segments.

use std::cmp::Ordering;

/// How a rule's path is matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern<'a> {
    /// The path itself.
    Exact(&'a str),
    /// Everything that starts with this text (the path without its `*`).
    Prefix(&'a str),
    /// A path with `+` segments, a `*` at its end included.
    Segments(&'a str),
}

impl<'a> Pattern<'a> {
    /// Whether a rule may have this path.
    pub fn is_valid(path: &str) -> bool {
        !path.contains("+*")
    }

    /// The pattern of a rule's path. One leading slash is dropped; `*` means something only at the end, `+` only as
    /// a whole segment (though a segment that merely begins with `+` makes the path one to compare segment by segment).
    pub fn of(path: &'a str) -> Self {
        let path = path.strip_prefix('/').unwrap_or(path);
        if path == "+" || path.starts_with("+/") || path.contains("/+") {
            return Self::Segments(path);
        }
        path.strip_suffix('*').map_or(Self::Exact(path), Self::Prefix)
    }
}

/// One piece of a path with `+` segments.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Any,
    Literal(Box<str>),
}

/// A path with `+` segments, cut up for matching.
#[derive(Clone, Debug)]
pub struct SegmentPattern {
    segments: Box<[Segment]>,
    /// With a `*` at the end, the last segment is the start of one, and more may follow.
    is_prefix: bool,
    rank: Rank,
}

impl SegmentPattern {
    /// Cuts up the path of a [`Pattern::Segments`].
    pub fn new(path: &str) -> Self {
        let open = path.strip_suffix('*');
        let text = open.unwrap_or(path);
        let segment = |text: &str| if text == "+" { Segment::Any } else { Segment::Literal(text.into()) };
        let segments: Box<[_]> = text.split('/').map(segment).collect();
        let rank = Rank {
            first_wildcard: path.find('+').unwrap_or(path.len()),
            is_prefix: open.is_some(),
            wildcards: segments.iter().filter(|segment| **segment == Segment::Any).count(),
            text: text.into(),
        };
        Self { segments, is_prefix: open.is_some(), rank }
    }

    /// Its place among the patterns that match the same path.
    pub fn rank(&self) -> &Rank {
        &self.rank
    }

    /// Whether the pattern covers `path`.
    pub fn matches(&self, path: &str) -> bool {
        let mut parts = path.split('/');
        let last = self.segments.len() - 1;
        for (index, segment) in self.segments.iter().enumerate() {
            let Some(part) = parts.next() else { return false };
            match segment {
                Segment::Any => {}
                Segment::Literal(text) if **text == *part => {}
                Segment::Literal(text) if self.is_prefix && index == last && part.starts_with(&**text) => {}
                Segment::Literal(_) => return false,
            }
        }
        self.is_prefix || parts.next().is_none()
    }

    /// Whether the pattern can cover something inside the folder `mount` (which ends in `/`).
    pub fn reaches_into(&self, mount: &str) -> bool {
        let mut segments = self.segments.iter();
        for part in mount.trim_end_matches('/').split('/') {
            match segments.next() {
                Some(Segment::Any) => {}
                Some(Segment::Literal(text)) if **text == *part => {}
                Some(Segment::Literal(text)) => {
                    return self.is_prefix && segments.next().is_none() && part.starts_with(&**text);
                }
                None => return false,
            }
        }
        true
    }
}

/// The order among patterns that match the same path: the greatest decides. The first wildcard further right wins, then
/// the path without `*`, then fewer `+`, then the longer path, then the greater text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rank {
    first_wildcard: usize,
    is_prefix: bool,
    wildcards: usize,
    text: Box<str>,
}

impl Rank {
    fn key(&self) -> RankKey<'_> {
        RankKey { first_wildcard: self.first_wildcard, is_prefix: self.is_prefix, wildcards: self.wildcards, text: &self.text }
    }

    /// Whether this pattern beats a matching prefix rule.
    pub fn beats_prefix(&self, prefix: &str) -> bool {
        self.key() > RankKey { first_wildcard: prefix.len(), is_prefix: true, wildcards: 0, text: prefix }
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[derive(PartialEq, Eq)]
struct RankKey<'a> {
    first_wildcard: usize,
    is_prefix: bool,
    wildcards: usize,
    text: &'a str,
}

impl Ord for RankKey<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.first_wildcard
            .cmp(&other.first_wildcard)
            .then(other.is_prefix.cmp(&self.is_prefix))
            .then(other.wildcards.cmp(&self.wildcards))
            .then(self.text.len().cmp(&other.text.len()))
            .then(self.text.cmp(other.text))
    }
}

impl PartialOrd for RankKey<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_paths() {
        for (path, pattern) in [
            ("a/b", Pattern::Exact("a/b")),
            ("/a/b", Pattern::Exact("a/b")),
            ("//a", Pattern::Exact("/a")),
            ("a*b", Pattern::Exact("a*b")),
            ("a+/b", Pattern::Exact("a+/b")),
            ("a/*", Pattern::Prefix("a/")),
            ("*", Pattern::Prefix("")),
            ("a**", Pattern::Prefix("a*")),
            ("+", Pattern::Segments("+")),
            ("+/a", Pattern::Segments("+/a")),
            ("a/+", Pattern::Segments("a/+")),
            ("a/+/b*", Pattern::Segments("a/+/b*")),
            ("a/+b", Pattern::Segments("a/+b")),
        ] {
            assert_eq!(Pattern::of(path), pattern, "{path}");
        }
    }

    #[test]
    fn segments_match_one_by_one() {
        for (pattern, path, matches) in [
            ("+", "a", true),
            ("+", "", true),
            ("+", "a/b", false),
            ("a/+", "a/", true),
            ("a/+", "a", false),
            ("a/+/", "a/b/", true),
            ("a/+/", "a/b", false),
            ("a/+/c", "a/b/c", true),
            ("a/+/c", "a/b/cd", false),
            ("a/+/c*", "a/b/cd", true),
            ("a/+/c*", "a/b/cd/e/f", true),
            ("a/+/c*", "a/b/d", false),
            ("a/+/*", "a/b/", true),
            ("a/+/*", "a/b", false),
            ("a/+/*", "a/b/c/d", true),
            ("a/+b", "a/+b", true),
            ("a/+b", "a/xb", false),
        ] {
            assert_eq!(SegmentPattern::new(pattern).matches(path), matches, "{pattern} {path}");
        }
    }

    #[test]
    fn order_of_patterns() {
        for (winner, loser) in [("a/b/+/d", "a/+/c/d"), ("a/+/c", "a/+/c*"), ("a/+/c/d", "a/+/+/d"), ("a/+/cc*", "a/+/c*")] {
            assert!(SegmentPattern::new(winner).rank() > SegmentPattern::new(loser).rank(), "{winner} {loser}");
        }
        assert!(!SegmentPattern::new("+/secret").rank().beats_prefix("team/"));
        assert!(SegmentPattern::new("a/+").rank().beats_prefix("a/"));
        assert!(!SegmentPattern::new("a/+/*").rank().beats_prefix("a/b"));
    }

    #[test]
    fn reaching_into_a_mount() {
        for (pattern, mount, reaches) in [
            ("kv/+/a", "kv/", true),
            ("kv/+", "kv/", true),
            ("+/a", "kv/", true),
            ("+/*", "kv/nested/", true),
            ("k/+", "kv/", false),
            ("+/other/+", "kv/nested/", false),
            ("+/a", "kv/nested/", false),
        ] {
            assert_eq!(SegmentPattern::new(pattern).reaches_into(mount), reaches, "{pattern} {mount}");
        }
    }
}
