//! The route table: every endpoint's patterns, operations, parameters and help texts, written down once.
//!
//! Dispatch, `?help=1`, the OpenAPI document and the tests' coverage checks all read these tables.
//!
//! Patterns are literal text with captures: `{name}` a key or role name (`\w` at both ends, `\w`, `-` and `.` between),
//! `{name@}` the same with `@`, `{name:segment}` anything without `/`, `{name:rest}` everything that is left, also
//! nothing, `{name:path}` the same but something. A pattern that ends in `/?` takes an optional trailing slash.
//!
//! The patterns of one route are one path with optional parts, as in Vault: a part that is not there is captured as empty, so a
//! member of the body with its name is not looked at either.

use std::{collections::BTreeSet, future::Future, pin::Pin};

use async_trait::async_trait;

use super::{
    engine::Call,
    failure::Failure,
    mount_table::{Left, Removal},
    reply::Reply,
    request::Operation,
    tokens::{TokenEntry, ttl::TtlTerms},
};
use crate::{backup::Given, wire::field::Field};

/// A boxed future of an engine.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Runs one operation of one route.
pub type Handler<E> = for<'a> fn(&'a E, &'a Call<'a>) -> BoxFuture<'a, Result<Reply, Failure>>;

/// Tells whether a write creates (`false`) or updates (`true`).
pub type ExistenceCheck<E> = for<'a> fn(&'a E, &'a Call<'a>) -> BoxFuture<'a, Result<bool, Failure>>;

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A token whose policies allow the operation.
    Token,
    /// The same, and the policies must grant `sudo`.
    Sudo,
    /// Anyone; a token is not looked at.
    Anyone,
}

/// The operations a handler serves: a write handler serves Create and Update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// GET.
    Read,
    /// POST and PUT.
    Write,
    /// PATCH.
    Patch,
    /// DELETE.
    Delete,
    /// LIST.
    List,
    /// SCAN.
    Scan,
}

impl Verb {
    /// The verb that serves an operation; help is answered by the table itself.
    pub fn of(operation: Operation) -> Option<Self> {
        match operation {
            Operation::Create | Operation::Update => Some(Verb::Write),
            Operation::Patch => Some(Verb::Patch),
            Operation::Read => Some(Verb::Read),
            Operation::Delete => Some(Verb::Delete),
            Operation::List => Some(Verb::List),
            Operation::Scan => Some(Verb::Scan),
            Operation::Help => None,
        }
    }
}

impl Verb {
    /// Whether the verb only reads, on all routes but those that make what they show.
    pub fn only_reads(self) -> bool {
        matches!(self, Self::Read | Self::List | Self::Scan)
    }
}

/// One operation of a route (make it with [`op!`](crate::op)).
pub struct OperationSpec<E: 'static> {
    /// Which verb.
    pub verb: Verb,
    /// What it does, one line.
    pub summary: &'static str,
    /// Parameters of path, body and query.
    pub fields: &'static [Field],
    /// Whether it changes something although its verb only reads: it makes what it shows when it is first asked for.
    pub makes: bool,
    /// Whether it changes nothing in the store although its verb writes, but for what it counts or makes on the way: what it answers
    /// says nothing of a change.
    pub computes: bool,
    /// The code.
    pub run: Handler<E>,
}

impl<E> OperationSpec<E> {
    /// Of a reading verb that makes what it shows.
    pub const fn making(mut self) -> Self {
        self.makes = true;
        self
    }

    /// Of a writing verb that only computes or looks up.
    pub const fn computing(mut self) -> Self {
        self.computes = true;
        self
    }
}

/// One endpoint.
pub struct Route<E: 'static> {
    /// Patterns that lead here, relative to the mount.
    pub patterns: &'static [&'static str],
    /// Who may call it.
    pub access: Access,
    /// What it is for, one line.
    pub help: &'static str,
    /// Set where Create and Update need different capabilities.
    pub exists: Option<ExistenceCheck<E>>,
    /// Its operations.
    pub operations: &'static [OperationSpec<E>],
}

/// What the table tells about a route, without the engine's type.
#[derive(Clone, Debug)]
pub struct RouteInfo {
    /// Patterns relative to the mount.
    pub patterns: &'static [&'static str],
    /// Who may call it.
    pub access: Access,
    /// One line.
    pub help: &'static str,
    /// Whether Create and Update need different capabilities.
    pub creates: bool,
    /// Verb, summary, parameters.
    pub operations: Vec<(Verb, &'static str, &'static [Field])>,
}

/// A path that matched a route.
#[derive(Debug)]
pub struct Match<'p> {
    /// Index of the route in its table.
    pub route: usize,
    /// Captured parts.
    pub captures: Vec<(&'static str, &'p str)>,
}

/// The compiled routes of one engine type.
pub struct RouteTable<E: 'static> {
    routes: Vec<&'static Route<E>>,
    compiled: Vec<Compiled>,
}

/// A pattern of a route.
struct Compiled {
    tokens: Vec<Token>,
    /// Index of the route.
    route: usize,
    /// What only other patterns of the route capture.
    absent: Vec<&'static str>,
}

impl<E> RouteTable<E> {
    /// Compiles the patterns; earlier routes win.
    pub fn new(routes: &'static [Route<E>]) -> Self {
        Self::joined(&[routes])
    }

    /// Compiles the patterns of several parts into one table; earlier routes win.
    pub fn joined(parts: &[&'static [Route<E>]]) -> Self {
        let routes: Vec<_> = parts.iter().flat_map(|part| part.iter()).collect();
        let compiled = routes
            .iter()
            .enumerate()
            .flat_map(|(index, route)| {
                let compiled: Vec<_> = route.patterns.iter().map(|pattern| compile(pattern)).collect();
                let all: BTreeSet<_> = compiled.iter().flat_map(|tokens| captured(tokens)).collect();
                compiled.into_iter().map(move |tokens| {
                    let absent = all.iter().copied().filter(|name| captured(&tokens).all(|there| there != *name)).collect();
                    Compiled { tokens, route: index, absent }
                })
            })
            .collect();
        Self { routes, compiled }
    }

    /// The route for a path.
    pub fn resolve<'p>(&self, path: &'p str) -> Option<Match<'p>> {
        self.compiled.iter().find_map(|pattern| {
            let mut captures = matches(&pattern.tokens, path)?;
            captures.extend(pattern.absent.iter().map(|name| (*name, "")));
            Some(Match { route: pattern.route, captures })
        })
    }

    /// The route at an index from [`RouteTable::resolve`].
    pub fn route(&self, index: usize) -> Option<&'static Route<E>> {
        self.routes.get(index).copied()
    }

    /// A description of all routes.
    pub fn describe(&self) -> Vec<RouteInfo> {
        self.routes
            .iter()
            .map(|route| RouteInfo {
                patterns: route.patterns,
                access: route.access,
                help: route.help,
                creates: route.exists.is_some(),
                operations: route.operations.iter().map(|spec| (spec.verb, spec.summary, spec.fields)).collect(),
            })
            .collect()
    }
}

/// An engine with a route table; everything else follows from the table (see [`Engine`](super::engine::Engine)).
#[async_trait]
pub trait Routed: Send + Sync + Sized + 'static {
    /// The table, one for all instances.
    fn table() -> &'static RouteTable<Self>;

    /// The answer for a path that no route matches; engines can explain themselves here.
    fn unmatched(&self, _call: &Call<'_>) -> Result<Reply, Failure> {
        Err(Failure::unsupported_path())
    }

    /// Whether a request failed because what it had looked up was changed under it: it is run again and finds what is there now.
    fn is_stale(&self, _failure: &Failure) -> bool {
        false
    }

    /// Called once after the mount exists and whenever the server is unsealed, before the first request.
    async fn start(&self) -> Result<(), Failure> {
        Ok(())
    }

    /// What a token that this mount made may be given when it is renewed, asked of auth methods; `None` leaves the token as
    /// it is. Methods whose roles can change look their role up here.
    async fn renewal(&self, entry: &TokenEntry) -> Result<Option<TtlTerms>, Failure> {
        Ok(Some(TtlTerms::of_token(entry)))
    }

    /// Called every few seconds while unsealed, before all other periodic work: drops from memory what is not to be kept there any
    /// longer. Does nothing else.
    fn forget_older(&self) {}

    /// Called every few seconds while unsealed: rotations, expirations, clean-up. Short; long work goes on next time.
    async fn tick(&self) -> Result<(), Failure> {
        Ok(())
    }

    /// Called once, before [`Routed::start`], on a store that was restored from a backup: what ran after the backup may have
    /// used up more than the records tell, and given version numbers that are not to be given again. Done again when a crash
    /// came in between.
    async fn restored(&self, _given: &Given<'_>) -> Result<(), Failure> {
        Ok(())
    }

    /// Key versions near the bound of their encryptions, by name, for `sys/sos/status`.
    async fn worn(&self) -> Result<Vec<String>, Failure> {
        Ok(Vec::new())
    }

    /// Called after the mount was removed and before its records are deleted: what lives outside the store is destroyed here, as long
    /// as the turn lasts, at least one piece of it. Called again until nothing is left, also after a crash; what has been done is
    /// not to be found again.
    async fn retire(&self, _removal: &Removal) -> Result<Left, Failure> {
        Ok(Left::Nothing)
    }
}

/// Makes an [`OperationSpec`]: `op!(Read, "Read a key", read_key, ReadKey)`, where the handler is
/// `async fn read_key(engine: &E, call: &Call<'_>, params: ReadKey) -> Result<Reply, Failure>`. Parameters that the
/// endpoint does not know are noted as warnings. `op!(Write, "…", write)` without a type: the handler gets the
/// call alone and takes arbitrary input.
#[macro_export]
macro_rules! op {
    ($verb:ident, $summary:literal, $handler:path, $params:ty) => {
        $crate::core::route::OperationSpec {
            verb: $crate::core::route::Verb::$verb,
            summary: $summary,
            fields: <$params as $crate::wire::field::Params>::FIELDS,
            makes: false,
            computes: false,
            run: |engine, call| {
                Box::pin(async move {
                    let input = call.input();
                    let params = <$params as $crate::wire::field::Params>::decode(&input)?;
                    let mut reply = $handler(engine, call, params).await?;
                    if !reply.is_empty() {
                        reply.warnings.extend(input.notes(<$params as $crate::wire::field::Params>::FIELDS));
                    }
                    Ok(reply)
                })
            },
        }
    };
    ($verb:ident, $summary:literal, $handler:path) => {
        $crate::core::route::OperationSpec {
            verb: $crate::core::route::Verb::$verb,
            summary: $summary,
            fields: &[],
            makes: false,
            computes: false,
            run: |engine, call| Box::pin($handler(engine, call)),
        }
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Name,
    NameAt,
    Segment,
    Rest,
    Path,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Text(&'static str),
    Capture(&'static str, Class),
    OptionalSlash,
}

fn compile(pattern: &'static str) -> Vec<Token> {
    let (mut rest, optional) = match pattern.strip_suffix("/?") {
        Some(rest) => (rest, true),
        None => (pattern, false),
    };
    let mut tokens = Vec::new();
    while !rest.is_empty() {
        match rest.find('{') {
            Some(0) => {
                let end = rest.find('}').unwrap_or(rest.len());
                let inner = rest.get(1..end).unwrap_or("");
                tokens.push(match inner.split_once(':') {
                    Some((name, "rest")) => Token::Capture(name, Class::Rest),
                    Some((name, "path")) => Token::Capture(name, Class::Path),
                    Some((name, _)) => Token::Capture(name, Class::Segment),
                    None => match inner.strip_suffix('@') {
                        Some(name) => Token::Capture(name, Class::NameAt),
                        None => Token::Capture(inner, Class::Name),
                    },
                });
                rest = rest.get(end + 1..).unwrap_or("");
            }
            Some(at) => {
                tokens.push(Token::Text(&rest[..at]));
                rest = &rest[at..];
            }
            None => {
                tokens.push(Token::Text(rest));
                rest = "";
            }
        }
    }
    if optional {
        tokens.push(Token::OptionalSlash);
    }
    tokens
}

/// The names that a pattern captures.
fn captured(tokens: &[Token]) -> impl Iterator<Item = &'static str> + '_ {
    tokens.iter().filter_map(|token| match token {
        Token::Capture(name, _) => Some(*name),
        Token::Text(_) | Token::OptionalSlash => None,
    })
}

fn matches<'p>(tokens: &[Token], path: &'p str) -> Option<Vec<(&'static str, &'p str)>> {
    let mut rest = path;
    let mut captures = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Text(text) => rest = rest.strip_prefix(text)?,
            Token::OptionalSlash => rest = rest.strip_prefix('/').unwrap_or(rest),
            Token::Capture(name, class @ (Class::Rest | Class::Path)) => {
                // Text behind the rest is its end: `{path:path}/tune` takes the path of any depth.
                let ending = match tokens.get(at + 1) {
                    Some(Token::Text(text)) => *text,
                    _ => "",
                };
                let part = rest.strip_suffix(ending)?;
                if part.is_empty() && *class == Class::Path {
                    return None;
                }
                captures.push((*name, part));
                rest = ending;
            }
            Token::Capture(name, class) => {
                let end = rest.find('/').unwrap_or(rest.len());
                let (part, after) = rest.split_at(end);
                let fits = match class {
                    Class::Name => is_name(part, false),
                    Class::NameAt => is_name(part, true),
                    Class::Segment | Class::Rest | Class::Path => !part.is_empty(),
                };
                if !fits {
                    return None;
                }
                captures.push((*name, part));
                rest = after;
            }
        }
    }
    rest.is_empty().then_some(captures)
}

/// `\w(([\w-.]+)?\w)?`, with `@` inside when `at` is set.
fn is_name(text: &str, at: bool) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(&first), Some(&last)) => {
            word(first)
                && word(last)
                && bytes.iter().all(|&byte| word(byte) || byte == b'-' || byte == b'.' || (at && byte == b'@'))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captures(pattern: &'static str, path: &'static str) -> Option<Vec<(&'static str, &'static str)>> {
        matches(&compile(pattern), path)
    }

    #[test]
    fn names_take_word_characters_dots_and_dashes_inside() {
        assert_eq!(captures("keys/{name}", "keys/a-b.c"), Some(vec![("name", "a-b.c")]));
        for path in ["keys/", "keys/-a", "keys/a.", "keys/a b", "keys/a/b", "keys/a@b"] {
            assert_eq!(captures("keys/{name}", path), None, "{path}");
        }
        assert_eq!(captures("users/{name@}", "users/a@b"), Some(vec![("name", "a@b")]));
    }

    #[test]
    fn optional_parts_that_are_not_there_are_captured_as_empty() {
        const PATTERNS: &[&str] = &["sign/{name}", "sign/{name}/{algorithm:path}"];
        static ROUTES: &[Route<()>] =
            &[Route { patterns: PATTERNS, access: Access::Token, help: "", exists: None, operations: &[] }];
        let table = RouteTable::new(ROUTES);
        assert_eq!(table.resolve("sign/k").unwrap().captures, vec![("name", "k"), ("algorithm", "")]);
        assert_eq!(table.resolve("sign/k/sha2-256").unwrap().captures, vec![("name", "k"), ("algorithm", "sha2-256")]);
    }

    #[test]
    fn rest_takes_everything_also_nothing() {
        assert_eq!(captures("data/{path:rest}", "data/"), Some(vec![("path", "")]));
        assert_eq!(captures("data/{path:rest}", "data/a/b/"), Some(vec![("path", "a/b/")]));
        assert_eq!(captures("data/{path:rest}", "data"), None);
        assert_eq!(captures("mounts/{path:path}/tune", "mounts/a/b/tune"), Some(vec![("path", "a/b")]));
        assert_eq!(captures("mounts/{path:path}/tune", "mounts/a/b"), None);
        assert_eq!(captures("mounts/{path:path}", "mounts/"), None);
    }

    #[test]
    fn text_after_a_capture_and_optional_slashes() {
        assert_eq!(captures("keys/{name}/rotate", "keys/k/rotate"), Some(vec![("name", "k")]));
        assert_eq!(captures("keys/{name}/rotate", "keys/k/rotat"), None);
        assert_eq!(captures("keys/?", "keys"), Some(vec![]));
        assert_eq!(captures("keys/?", "keys/"), Some(vec![]));
        assert_eq!(captures("keys/?", "keys//"), None);
    }
}
