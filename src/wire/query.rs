//! The parameters of a query string, parsed once for all who read them: policies, audit devices and endpoints.
//!
//! As in Vault a name that comes once is a string and one that comes several times a list. Were each reader to choose one of the
//! values for itself, a policy could be shown one and the endpoint take another.

use std::collections::{BTreeMap, btree_map};

use serde_json::{Map, Value};

/// Decoded names and all values of each, in the order given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(BTreeMap<String, Vec<String>>);

/// A request without query string.
pub static NO_QUERY: Query = Query(BTreeMap::new());

impl Query {
    /// The values of a parameter that was given.
    pub fn get(&self, name: &str) -> Option<&[String]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// All names, each once.
    pub fn names(&self) -> btree_map::Keys<'_, String, Vec<String>> {
        self.0.keys()
    }

    /// Whether there is no parameter.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The parameters as the JSON object that a body with them would be.
    pub fn to_object(&self) -> Map<String, Value> {
        let value = |values: &[String]| match values {
            [one] => Value::from(one.as_str()),
            several => Value::from(several),
        };
        self.0.iter().map(|(name, values)| (name.clone(), value(values))).collect()
    }
}

impl FromIterator<(String, String)> for Query {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        let mut query = Self::default();
        for (name, value) in pairs {
            query.0.entry(name).or_default().push(value);
        }
        query
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_several_times_is_a_list() {
        let pairs = [("a", "1"), ("b", ""), ("a", "2"), ("c", "x")];
        let query: Query = pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        assert_eq!(query.get("a").unwrap(), ["1", "2"]);
        assert_eq!(query.get("d"), None);
        assert_eq!(query.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(Value::Object(query.to_object()), serde_json::json!({"a": ["1", "2"], "b": "", "c": "x"}));
        assert!(NO_QUERY.is_empty() && !query.is_empty());
    }
}
