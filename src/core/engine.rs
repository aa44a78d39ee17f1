//! The contract between the pipeline and what answers requests: secrets engines, auth methods and `sys`.

use std::{net::IpAddr, sync::Arc};

use async_trait::async_trait;
use time::OffsetDateTime;

use super::{
    failure::Failure,
    mount_table::{Left, Removal},
    mounts::MountEntry,
    policy::{AccessRequest, Acl},
    reply::Reply,
    request::{Operation, Request},
    route::{Access, Match, RouteInfo, Routed, Verb},
    tokens::{TokenEntry, ttl::TtlTerms},
};
use crate::{
    backup::Given,
    wire::{field::Input, json::RawObject, query::NO_QUERY},
};

/// How often a request is run again when others change what it works with.
const RERUNS: usize = 8;

/// Who calls.
#[derive(Clone)]
pub struct Caller {
    /// The token; absent on endpoints that anyone may call.
    pub token: Option<Arc<TokenEntry>>,
    /// What the token may do; absent with the token.
    pub acl: Option<Arc<Acl>>,
    /// The client's address.
    pub remote: Option<IpAddr>,
}

impl Caller {
    /// A caller without a token.
    pub fn anyone(remote: Option<IpAddr>) -> Self {
        Self { token: None, acl: None, remote }
    }

    /// The token, on endpoints that need one.
    pub fn token(&self) -> Result<&Arc<TokenEntry>, Failure> {
        self.token.as_ref().ok_or_else(Failure::bad_token)
    }

    /// The compiled policies, on endpoints that need a token.
    pub fn acl(&self) -> Result<&Arc<Acl>, Failure> {
        self.acl.as_ref().ok_or_else(Failure::bad_token)
    }
}

/// One request on its way through an engine.
pub struct Call<'a> {
    /// The whole request.
    pub request: &'a Request,
    /// What is asked, with Create told from Update.
    pub operation: Operation,
    /// The path relative to the mount.
    pub path: &'a str,
    /// Named parts of the path.
    pub captures: &'a [(&'static str, &'a str)],
    /// The body's members.
    pub body: &'a RawObject<'a>,
    /// Who calls.
    pub caller: &'a Caller,
    /// The mount that the path lies under.
    pub mount: &'a MountEntry,
    /// The time of the request.
    pub now: OffsetDateTime,
}

impl Call<'_> {
    /// Where parameters are decoded from. Query parameters count for operations without a body.
    pub fn input(&self) -> Input<'_> {
        let query = if self.operation.is_write() { &NO_QUERY } else { &self.request.query };
        Input { captures: self.captures, body: self.body, query }
    }

    /// A captured part of the path; the table guarantees those of the matched pattern.
    pub fn capture(&self, name: &str) -> &str {
        self.captures.iter().find(|(capture, _)| *capture == name).map_or("", |(_, value)| value)
    }

    /// Whether the caller has sudo on the path of the request.
    pub fn has_sudo(&self) -> Result<bool, Failure> {
        let Request { path, wrap_ttl, .. } = self.request;
        let request = AccessRequest { path, operation: self.operation, parameters: &(), wrap_ttl: *wrap_ttl };
        Ok(self.caller.acl()?.check(&request).sudo)
    }

    /// The `after` and `limit` of a paged list: at most `limit` names after `after`.
    pub fn page(&self) -> Result<(Option<String>, usize), Failure> {
        let input = self.input();
        let after: Option<String> = input.field("after")?;
        let limit: Option<i64> = input.field("limit")?;
        let limit = match limit {
            Some(limit) if limit > 0 => usize::try_from(limit).unwrap_or(usize::MAX),
            _ => usize::MAX,
        };
        Ok((after.filter(|after| !after.is_empty()), limit))
    }
}

/// Something mounted. Implemented for every [`Routed`] type.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// All routes, for help, OpenAPI and coverage.
    fn describe(&self) -> Vec<RouteInfo>;

    /// The route for a path relative to the mount.
    fn resolve<'p>(&self, path: &'p str) -> Option<Match<'p>>;

    /// Who may call a route.
    fn access(&self, route: usize) -> Access;

    /// Whether a verb changes nothing on this route.
    fn only_reads(&self, route: usize, verb: Verb) -> bool;

    /// Whether the verb changes what is stored on that route, so that its success says that something is so from now on.
    fn changes(&self, route: usize, verb: Verb) -> bool;

    /// Whether a write to this route creates; `None` where the route makes no difference.
    async fn exists(&self, route: usize, call: &Call<'_>) -> Result<Option<bool>, Failure>;

    /// Runs the call's operation; `None` is a path that no route matches.
    async fn run(&self, route: Option<usize>, call: &Call<'_>) -> Result<Reply, Failure>;

    /// See [`Routed::renewal`].
    async fn renewal(&self, entry: &TokenEntry) -> Result<Option<TtlTerms>, Failure>;

    /// See [`Routed::start`].
    async fn start(&self) -> Result<(), Failure>;

    /// See [`Routed::forget_older`].
    fn forget_older(&self);

    /// See [`Routed::tick`].
    async fn tick(&self) -> Result<(), Failure>;

    /// See [`Routed::restored`].
    async fn restored(&self, given: &Given<'_>) -> Result<(), Failure>;

    /// See [`Routed::worn`].
    async fn worn(&self) -> Result<Vec<String>, Failure>;

    /// See [`Routed::retire`].
    async fn retire(&self, removal: &Removal) -> Result<Left, Failure>;
}

#[async_trait]
impl<E: Routed> Engine for E {
    fn describe(&self) -> Vec<RouteInfo> {
        E::table().describe()
    }

    fn resolve<'p>(&self, path: &'p str) -> Option<Match<'p>> {
        E::table().resolve(path)
    }

    fn access(&self, route: usize) -> Access {
        E::table().route(route).map_or(Access::Token, |route| route.access)
    }

    fn only_reads(&self, route: usize, verb: Verb) -> bool {
        let spec = E::table().route(route).and_then(|route| route.operations.iter().find(|spec| spec.verb == verb));
        spec.is_some_and(|spec| verb.only_reads() && !spec.makes)
    }

    fn changes(&self, route: usize, verb: Verb) -> bool {
        let spec = E::table().route(route).and_then(|route| route.operations.iter().find(|spec| spec.verb == verb));
        spec.is_some_and(|spec| !verb.only_reads() && !spec.computes)
    }

    async fn exists(&self, route: usize, call: &Call<'_>) -> Result<Option<bool>, Failure> {
        match E::table().route(route).and_then(|route| route.exists) {
            Some(exists) => exists(self, call).await.map(Some),
            None => Ok(None),
        }
    }

    async fn run(&self, route: Option<usize>, call: &Call<'_>) -> Result<Reply, Failure> {
        let Some(route) = route.and_then(|route| E::table().route(route)) else {
            return self.unmatched(call);
        };
        let verb = Verb::of(call.operation);
        let Some(spec) = route.operations.iter().find(|spec| Some(spec.verb) == verb) else {
            return Err(Failure::unsupported_operation());
        };
        for _ in 0..RERUNS {
            match (spec.run)(self, call).await {
                Err(failure) if self.is_stale(&failure) => {}
                done => return done,
            }
        }
        (spec.run)(self, call).await
    }

    async fn renewal(&self, entry: &TokenEntry) -> Result<Option<TtlTerms>, Failure> {
        Routed::renewal(self, entry).await
    }

    async fn start(&self) -> Result<(), Failure> {
        Routed::start(self).await
    }

    fn forget_older(&self) {
        Routed::forget_older(self);
    }

    async fn tick(&self) -> Result<(), Failure> {
        Routed::tick(self).await
    }

    async fn restored(&self, given: &Given<'_>) -> Result<(), Failure> {
        Routed::restored(self, given).await
    }

    async fn worn(&self) -> Result<Vec<String>, Failure> {
        Routed::worn(self).await
    }

    async fn retire(&self, removal: &Removal) -> Result<Left, Failure> {
        Routed::retire(self, removal).await
    }
}
