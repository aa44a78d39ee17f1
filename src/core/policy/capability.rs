//! What a policy rule can allow, as a small set.

use std::fmt;

/// One right that a policy rule grants, or `deny`, which takes every right away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Capability {
    /// Wins over everything else on the same path.
    Deny = 1,
    /// Write something that does not exist yet.
    Create = 1 << 1,
    /// Read.
    Read = 1 << 2,
    /// Write something that exists, or act on it.
    Update = 1 << 3,
    /// Delete.
    Delete = 1 << 4,
    /// List names.
    List = 1 << 5,
    /// Use a path that is protected even from those who have the other right it needs.
    Sudo = 1 << 6,
    /// Change parts of something with `PATCH`.
    Patch = 1 << 7,
    /// List names recursively (an addition of OpenBao).
    Scan = 1 << 8,
}

/// Every right but `deny`, in the order in which replies name them.
const IN_REPLY_ORDER: [(Capability, &str); 8] = [
    (Capability::Create, "create"),
    (Capability::Delete, "delete"),
    (Capability::List, "list"),
    (Capability::Patch, "patch"),
    (Capability::Read, "read"),
    (Capability::Scan, "scan"),
    (Capability::Sudo, "sudo"),
    (Capability::Update, "update"),
];

impl Capability {
    /// The capability with this name in a policy document.
    pub fn from_name(name: &str) -> Option<Self> {
        if name == "deny" {
            return Some(Self::Deny);
        }
        IN_REPLY_ORDER.iter().find(|(_, known)| *known == name).map(|(capability, _)| *capability)
    }
}

/// A set of capabilities.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities(u16);

impl Capabilities {
    /// No right at all.
    pub const NONE: Self = Self(0);
    /// Only `deny`.
    pub const DENY: Self = Self(Capability::Deny as u16);

    /// Whether the capability is in the set.
    pub fn has(self, capability: Capability) -> bool {
        self.0 & capability as u16 != 0
    }

    /// Adds a capability; `deny` displaces all others and nothing joins it.
    #[must_use]
    pub fn with(self, capability: Capability) -> Self {
        self.union(Self(capability as u16))
    }

    /// Both sets together; when either denies, the result only denies.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        if self.denies() || other.denies() { Self::DENY } else { Self(self.0 | other.0) }
    }

    /// Whether the set denies explicitly.
    pub fn denies(self) -> bool {
        self.has(Capability::Deny)
    }

    /// Whether at least one right is granted.
    pub fn grants_anything(self) -> bool {
        !self.denies() && self.0 != 0
    }

    /// The names, sorted; `["deny"]` when nothing is granted.
    pub fn names(self) -> Vec<&'static str> {
        if !self.grants_anything() {
            return vec!["deny"];
        }
        IN_REPLY_ORDER.iter().filter(|(capability, _)| self.has(*capability)).map(|(_, name)| *name).collect()
    }
}

impl FromIterator<Capability> for Capabilities {
    fn from_iter<I: IntoIterator<Item = Capability>>(capabilities: I) -> Self {
        capabilities.into_iter().fold(Self::NONE, Self::with)
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_deny_displaces_the_rest() {
        let all: Capabilities = IN_REPLY_ORDER.iter().rev().map(|(capability, _)| *capability).collect();
        assert_eq!(all.names(), ["create", "delete", "list", "patch", "read", "scan", "sudo", "update"]);
        assert_eq!(all.with(Capability::Deny).names(), ["deny"]);
        assert_eq!(Capabilities::DENY.with(Capability::Read).names(), ["deny"]);
        assert_eq!(Capabilities::NONE.names(), ["deny"]);
    }

    #[test]
    fn every_name_reads_back() {
        for (capability, name) in IN_REPLY_ORDER {
            assert_eq!(Capability::from_name(name), Some(capability));
        }
        assert_eq!(Capability::from_name("deny"), Some(Capability::Deny));
        assert_eq!(Capability::from_name("Read"), None);
        assert_eq!(Capability::from_name("root"), None);
    }
}
