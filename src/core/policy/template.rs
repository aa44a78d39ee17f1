//! `{{directives}}` in policy paths, filled in from the identity of the caller.
//!
//! A directive that has no value for this caller, or whose value could change the meaning of the path, makes the whole
//! rule void: it then neither grants nor denies anything.

use std::{borrow::Cow, collections::BTreeMap};

use thiserror::Error;

/// Characters that a value may not bring into a path: they would widen the rule or move it.
const FORBIDDEN_IN_VALUES: [char; 3] = ['*', '+', '/'];

/// What directives can refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateIdentity {
    /// The entity's id.
    pub id: String,
    /// Another number whenever anything below changes: compiled paths are kept by id and version.
    pub version: u64,
    /// The entity's name.
    pub name: String,
    /// The entity's metadata.
    pub metadata: BTreeMap<String, String>,
    /// The entity's aliases, by the accessor of their auth mount.
    pub aliases: BTreeMap<String, TemplateAlias>,
    /// The groups that the entity belongs to, directly or through other groups.
    pub groups: Vec<TemplateGroup>,
}

/// The name under which an auth method knows the entity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateAlias {
    /// The alias's id.
    pub id: String,
    /// The alias's name.
    pub name: String,
    /// What the auth method says about it.
    pub metadata: BTreeMap<String, String>,
    /// What an operator says about it.
    pub custom_metadata: BTreeMap<String, String>,
}

/// A group of the entity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateGroup {
    /// The group's id.
    pub id: String,
    /// The group's name.
    pub name: String,
    /// The group's metadata.
    pub metadata: BTreeMap<String, String>,
}

/// `{{` and `}}` do not come in pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("unbalanced templating characters")]
pub struct Unbalanced;

/// Whether the path holds directives.
pub fn is_templated(path: &str) -> Result<bool, Unbalanced> {
    let mut templated = false;
    for piece in pieces(path) {
        templated |= matches!(piece?, Piece::Directive(_));
    }
    Ok(templated)
}

/// The path for this caller, or `None` when a directive has no usable value.
pub fn fill<'a>(path: &'a str, identity: Option<&TemplateIdentity>) -> Option<Cow<'a, str>> {
    let mut filled = String::with_capacity(path.len() * 2);
    for piece in pieces(path) {
        match piece.ok()? {
            Piece::Text(text) if text.len() == path.len() => return Some(Cow::Borrowed(path)),
            Piece::Text(text) => filled.push_str(text),
            Piece::Directive(directive) => {
                let value = identity?.value(directive)?;
                if value.contains(FORBIDDEN_IN_VALUES) {
                    return None;
                }
                filled.push_str(value);
            }
        }
    }
    Some(Cow::Owned(filled))
}

enum Piece<'a> {
    Text(&'a str),
    Directive(&'a str),
}

/// Cuts a path at its directives. Each `{{` must be followed by exactly one `}}` before the next `{{`.
fn pieces(path: &str) -> impl Iterator<Item = Result<Piece<'_>, Unbalanced>> {
    path.split("{{")
        .enumerate()
        .flat_map(|(index, part)| match (index, part.split_once("}}")) {
            (0, None) => [Some(Ok(Piece::Text(part))), None],
            (0, Some(_)) | (_, None) => [Some(Err(Unbalanced)), None],
            (_, Some((_, text))) if text.contains("}}") => [Some(Err(Unbalanced)), None],
            (_, Some((directive, text))) => [Some(Ok(Piece::Directive(directive.trim()))), Some(Ok(Piece::Text(text)))],
        })
        .flatten()
}

impl TemplateIdentity {
    /// The value of a directive such as `identity.entity.name`; an empty value counts as none.
    fn value(&self, directive: &str) -> Option<&str> {
        let value = match directive.strip_prefix("identity.")?.split_once('.')? {
            ("entity", selector) => self.entity_value(selector),
            ("groups", selector) => self.group_value(selector),
            _ => None,
        };
        value.filter(|value| !value.is_empty())
    }

    fn entity_value(&self, selector: &str) -> Option<&str> {
        match (selector, selector.split_once('.')) {
            ("id", _) => Some(&self.id),
            ("name", _) => Some(&self.name),
            (_, Some(("metadata", key))) => self.metadata.get(key).map(String::as_str),
            (_, Some(("aliases", rest))) => {
                let (accessor, selector) = rest.split_once('.')?;
                self.aliases.get(accessor)?.value(selector)
            }
            _ => None,
        }
    }

    /// `ids.ID.…` or `names.NAME.…`; the id or name ends at the first dot.
    fn group_value(&self, selector: &str) -> Option<&str> {
        let (by, rest) = selector.split_once('.')?;
        let (wanted, selector) = rest.split_once('.')?;
        let group = match by {
            "ids" => self.groups.iter().find(|group| group.id == wanted),
            "names" => self.groups.iter().find(|group| group.name == wanted),
            _ => None,
        }?;
        match selector {
            "id" => Some(&group.id),
            "name" => Some(&group.name),
            _ => group.metadata.get(selector.strip_prefix("metadata.")?).map(String::as_str),
        }
    }
}

impl TemplateAlias {
    fn value(&self, selector: &str) -> Option<&str> {
        match (selector, selector.split_once('.')) {
            ("id", _) => Some(&self.id),
            ("name", _) => Some(&self.name),
            (_, Some(("metadata", key))) => self.metadata.get(key).map(String::as_str),
            (_, Some(("custom_metadata", key))) => self.custom_metadata.get(key).map(String::as_str),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ann() -> TemplateIdentity {
        TemplateIdentity {
            id: "e-1".into(),
            version: 1,
            name: "ann".into(),
            metadata: [("team", "blue"), ("wild", "a*"), ("up", "a/b"), ("none", "")]
                .map(|(key, value)| (key.into(), value.into()))
                .into(),
            aliases: [(
                "auth_userpass_1".into(),
                TemplateAlias {
                    id: "a-1".into(),
                    name: "ann-alias".into(),
                    metadata: [("k".into(), "m".into())].into(),
                    custom_metadata: [("k.x".into(), "c".into())].into(),
                },
            )]
            .into(),
            groups: vec![TemplateGroup {
                id: "g-1".into(),
                name: "ops".into(),
                metadata: [("area".into(), "north".into())].into(),
            }],
        }
    }

    #[test]
    fn directives_are_filled_in() {
        for (path, filled) in [
            ("plain/*", Some("plain/*")),
            ("a/{{identity.entity.name}}/*", Some("a/ann/*")),
            ("{{ identity.entity.id }}", Some("e-1")),
            ("t/{{identity.entity.metadata.team}}/{{identity.entity.name}}", Some("t/blue/ann")),
            ("{{identity.entity.aliases.auth_userpass_1.name}}", Some("ann-alias")),
            ("{{identity.entity.aliases.auth_userpass_1.id}}", Some("a-1")),
            ("{{identity.entity.aliases.auth_userpass_1.metadata.k}}", Some("m")),
            ("{{identity.entity.aliases.auth_userpass_1.custom_metadata.k.x}}", Some("c")),
            ("{{identity.groups.names.ops.id}}", Some("g-1")),
            ("{{identity.groups.ids.g-1.name}}", Some("ops")),
            ("{{identity.groups.ids.g-1.metadata.area}}", Some("north")),
            ("{{identity.groups.names.other.id}}", None),
            ("{{identity.entity.metadata.nothing}}", None),
            ("{{identity.entity.metadata.none}}", None),
            ("{{identity.entity.metadata.wild}}", None),
            ("{{identity.entity.metadata.up}}", None),
            ("{{identity.entity.aliases.auth_other.name}}", None),
            ("{{something.else}}", None),
            ("{{}}", None),
        ] {
            assert_eq!(fill(path, Some(&ann())).as_deref(), filled, "{path}");
        }
    }

    #[test]
    fn without_an_identity_only_plain_paths_hold() {
        assert_eq!(fill("plain", None).as_deref(), Some("plain"));
        assert_eq!(fill("", None).as_deref(), Some(""));
        assert_eq!(fill("a/{{identity.entity.name}}", None), None);
    }

    #[test]
    fn braces_must_be_balanced() {
        assert_eq!(is_templated("a/b"), Ok(false));
        assert_eq!(is_templated("a/{b}"), Ok(false));
        assert_eq!(is_templated("{{identity.entity.id}}/{{x}}"), Ok(true));
        for path in ["a}}", "{{a", "{{a}}}}", "a}}{{b}}", "{{a {{b}}"] {
            assert_eq!(is_templated(path), Err(Unbalanced), "{path}");
        }
    }
}
