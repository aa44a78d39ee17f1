//! Which policies a new token gets: its own choice, bounded by the parent's policies or by those of a role.

use super::roles::Role;
use crate::core::{failure::Failure, tokens::WRAPPING_POLICY};

/// What decides about policies.
pub(super) struct Wish<'a> {
    /// Policies asked for.
    pub(super) policies: &'a [String],
    /// Whether `default` is left out.
    pub(super) no_default: bool,
    /// Policies of the parent.
    pub(super) parent: &'a [String],
    /// Whether the caller has sudo on the path.
    pub(super) sudo: bool,
    /// The role, if any.
    pub(super) role: Option<&'a Role>,
}

/// Lower case, sorted, without doubles and blanks; `root` stands alone. `default` is added where it is asked for.
pub(super) fn sanitize(policies: &[String], add_default: bool) -> Vec<String> {
    let mut list: Vec<String> = policies.iter().map(|name| name.trim().to_lowercase()).filter(|name| !name.is_empty()).collect();
    if list.iter().any(|name| name == "root") {
        return vec!["root".into()];
    }
    if add_default {
        list.push("default".into());
    }
    list.sort();
    list.dedup();
    list
}

impl Wish<'_> {
    /// The policies of the new token.
    pub(super) fn grant(&self) -> Result<Vec<String>, Failure> {
        let mut granted = match self.role {
            Some(role) if has_rules(role) => sanitize(&self.under_role(role)?, false),
            _ => self.under_parent()?,
        };
        if self.no_default {
            granted.retain(|name| name != "default");
        }
        match granted.iter().find(|name| *name == WRAPPING_POLICY || *name == "control-group") {
            Some(name) => Err(Failure::invalid(format!("cannot assign policy {name:?}"))),
            None => Ok(granted),
        }
    }

    fn under_parent(&self) -> Result<Vec<String>, Failure> {
        if self.policies.is_empty() {
            return Ok(sanitize(self.parent, false));
        }
        if self.sudo {
            return Ok(sanitize(self.policies, !self.no_default));
        }
        let parent = sanitize(self.parent, false);
        let is_subset = sanitize(self.policies, false).iter().all(|name| parent.contains(name));
        if !is_subset {
            return Err(Failure::invalid("child policies must be subset of parent"));
        }
        Ok(sanitize(self.policies, !self.no_default && parent.iter().any(|name| name == "default")))
    }

    fn under_role(&self, role: &Role) -> Result<Vec<String>, Failure> {
        let add_default = !self.no_default
            && !role.token_no_default_policy
            && !role.disallowed_policies.iter().any(|name| name == "default")
            && !any_glob(&role.disallowed_policies_glob, "default");
        let wanted = if self.policies.is_empty() { Vec::new() } else { sanitize(self.policies, add_default) };
        let granted = if role.allowed_policies.is_empty() && role.allowed_policies_glob.is_empty() {
            if wanted.is_empty() { sanitize(self.parent, add_default) } else { wanted }
        } else {
            let allowed = sanitize(&role.allowed_policies, add_default);
            if wanted.is_empty() {
                allowed
            } else {
                let fits = |name: &String| allowed.contains(name) || any_glob(&role.allowed_policies_glob, name);
                if !wanted.iter().all(fits) {
                    return Err(Failure::invalid(format!(
                        "token policies ({}) must be subset of the role's allowed policies ({}) or glob policies ({})",
                        quoted(&wanted),
                        quoted(&allowed),
                        quoted(&role.allowed_policies_glob)
                    )));
                }
                wanted
            }
        };
        let refused = |name: &&String| role.disallowed_policies.contains(name) || any_glob(&role.disallowed_policies_glob, name);
        match granted.iter().find(refused) {
            Some(name) => Err(Failure::invalid(format!("token policy {name:?} is disallowed by this role"))),
            None => Ok(granted),
        }
    }
}

fn has_rules(role: &Role) -> bool {
    let lists = [&role.allowed_policies, &role.allowed_policies_glob, &role.disallowed_policies, &role.disallowed_policies_glob];
    lists.iter().any(|list| !list.is_empty())
}

/// `["a" "b"]`
fn quoted(list: &[String]) -> String {
    let items: Vec<String> = list.iter().map(|item| format!("{item:?}")).collect();
    format!("[{}]", items.join(" "))
}

/// Whether one of the globs matches.
pub(super) fn any_glob(globs: &[String], text: &str) -> bool {
    globs.iter().any(|glob| matches_glob(glob, text))
}

/// `*` stands for any text, also none, wherever it is.
fn matches_glob(glob: &str, text: &str) -> bool {
    let Some((head, tail)) = glob.split_once('*') else { return glob == text };
    let Some(rest) = text.strip_prefix(head) else { return false };
    let Some((middle, end)) = tail.rsplit_once('*') else {
        return rest.ends_with(tail);
    };
    let Some(mut rest) = rest.strip_suffix(end) else { return false };
    for part in middle.split('*') {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or(""),
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn wish(policies: &[&str], parent: &[&str], sudo: bool, role: Option<&Role>) -> Result<Vec<String>, String> {
        let (policies, parent) = (list(policies), list(parent));
        let wish = Wish { policies: &policies, no_default: false, parent: &parent, sudo, role };
        wish.grant().map_err(|failure| failure.text().to_owned())
    }

    #[test]
    fn without_a_role_the_parent_bounds_all_but_sudo() {
        assert_eq!(wish(&[], &["a"], false, None).unwrap(), ["a"]);
        assert_eq!(wish(&["A", "a", " "], &["a", "default"], false, None).unwrap(), ["a", "default"]);
        assert_eq!(wish(&["a"], &["a", "b"], false, None).unwrap(), ["a"]);
        assert_eq!(wish(&["c"], &["a"], false, None).unwrap_err(), "child policies must be subset of parent");
        assert_eq!(wish(&["c"], &["a"], true, None).unwrap(), ["c", "default"]);
        assert_eq!(wish(&["c", "root"], &["root"], true, None).unwrap(), ["root"]);
        assert_eq!(
            wish(&["response-wrapping"], &["root"], true, None).unwrap_err(),
            "cannot assign policy \"response-wrapping\""
        );
    }

    #[test]
    fn a_role_hands_out_what_it_allows() {
        let role = Role { allowed_policies: list(&["x"]), allowed_policies_glob: list(&["dev-*"]), ..Role::default() };
        assert_eq!(wish(&[], &["a"], false, Some(&role)).unwrap(), ["default", "x"]);
        assert_eq!(wish(&["dev-1"], &["a"], false, Some(&role)).unwrap(), ["default", "dev-1"]);
        let plain = Role { token_no_default_policy: true, ..role };
        assert_eq!(wish(&["dev-1"], &["a"], false, Some(&plain)).unwrap(), ["dev-1"]);
        assert!(wish(&["y"], &["y"], true, Some(&plain)).unwrap_err().contains("must be subset of the role's allowed policies"));
    }

    #[test]
    fn a_role_refuses_what_it_disallows_and_drops_default() {
        let role = Role { disallowed_policies: list(&["default", "bad"]), ..Role::default() };
        assert_eq!(wish(&["a"], &["root"], false, Some(&role)).unwrap(), ["a"]);
        assert_eq!(wish(&["bad"], &["root"], false, Some(&role)).unwrap_err(), "token policy \"bad\" is disallowed by this role");
    }

    #[test]
    fn globs_match_whole_texts() {
        for (glob, text, fits) in [
            ("a*", "abc", true),
            ("a*", "a", true),
            ("*c", "abc", true),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("ab*bc", "abc", false),
            ("*b*", "abc", true),
            ("*x*", "abc", false),
            ("abc", "abc", true),
            ("ab", "abc", false),
        ] {
            assert_eq!(matches_glob(glob, text), fits, "{glob} {text}");
        }
    }
}
