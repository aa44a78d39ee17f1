//! The one way of a request: seal check, mount, token, policy, audit, engine, wrapping, audit, envelope.
//!
//! Each step is a function here and no route goes round them. The order decides what a caller learns: a bad token
//! reads the same on every path, and a denied path the same whether anything is there or not.

use std::{cell::OnceCell, sync::Arc, time::Duration};

use serde_json::{Map, Value};

use super::{
    Active, Core,
    auth_failures::Shed,
    engine::{Call, Caller},
    envelope::{self, Answer},
    failure::{Failure, Kind},
    mounts::{Mounted, Table},
    policy::{AccessRequest, RequestParameters, acl::UnreadableParameters},
    reply::{Body, Reply},
    request::{Operation, Request},
    route::{Access, Match, Verb},
    tokens::{self, TokenEntry},
    wrapping,
};
use crate::{
    audit::{Exchange, Outcome},
    heavy,
    secret::SecretString,
    wire::json::RawObject,
};

/// Nothing was written by the request, and what others wrote may come up yet.
const IN_DOUBT: &str = "the store failed at a write of which nobody knows yet whether it took effect, so it is not certain that there is \
     nothing to do; it is being opened again: try again";

/// Longest body of a request that needs no token, in bytes: what is asked there has a few short parameters.
const OPEN_BODY: usize = 256 << 10;
/// Most members of such a body.
const OPEN_MEMBERS: usize = 1000;
/// Longer bodies are parsed only for those who have a good token: their members may take ten times as much room as they do.
const UNKNOWN_BODY: usize = 64 << 10;

impl Core {
    /// Answers a request. Never panics on what came from a client; a failure is an answer too.
    pub async fn handle(self: &Arc<Self>, mut request: Request) -> Answer {
        let result = match request.flaw.take() {
            Some(flaw) => Err(self.flawed(&request, flaw).await),
            None => match self.direct(&request).await {
                Some(result) => result.map(|reply| (reply, "system".to_owned())),
                None => self.serve(&request).await,
            },
        };
        let rendered = result.and_then(|(reply, mount_type)| envelope::render(reply, &request.id, &mount_type));
        rendered.unwrap_or_else(|failure| self.refuse(&request, &failure))
    }

    fn refuse(&self, request: &Request, failure: &Failure) -> Answer {
        if let Some(cause) = failure.cause() {
            tracing::error!(request_id = %request.id, path = ?request.path, error = %failure, cause = %chain(cause), "request failed");
        }
        let mut answer = Answer::json(crate::http::errors::status(failure.kind()), envelope::errors(failure));
        answer.headers.extend(failure.wait().map(|wait| ("Retry-After".to_owned(), wait.as_secs().to_string())));
        answer
    }

    /// Endpoints that answer also while sealed, without token and envelope (`sys/health`, `sys/unseal` …).
    async fn direct(self: &Arc<Self>, request: &Request) -> Option<Result<Reply, Failure>> {
        let path = request.path.strip_prefix("sys/")?;
        let table = super::sys::direct_table();
        let (table, found) = match table.resolve(path) {
            Some(found) => (table, found),
            None => {
                let table = self.open_table(request)?;
                (table, table.resolve(path)?)
            }
        };
        let route = table.route(found.route)?;
        let verb = Verb::of(request.operation);
        let Some(spec) = route.operations.iter().find(|spec| Some(spec.verb) == verb) else {
            return Some(Err(self.flawed(request, Failure::silent(Kind::UnsupportedOperation)).await));
        };
        Some(self.run_direct(request, path, &found, spec).await)
    }

    /// Endpoints that need a token at other times.
    fn open_table(&self, request: &Request) -> Option<&'static super::route::RouteTable<super::sys::System>> {
        match request.path.as_str() {
            "sys/metrics" if request.open_metrics => Some(super::sys::metrics_table()),
            "sys/sos/status" if self.active().is_err() => Some(super::sys::sealed_table()),
            // Who may initialise an empty server may as well restore a backup into it.
            path if super::sys::snapshot::takes_upload(path, request.operation) => {
                let empty = self.barrier.is_initialized().is_ok_and(|initialized| !initialized);
                empty.then(super::sys::empty_table)
            }
            _ => None,
        }
    }

    async fn run_direct(
        self: &Arc<Self>,
        request: &Request,
        path: &str,
        found: &Match<'_>,
        spec: &super::route::OperationSpec<super::sys::System>,
    ) -> Result<Reply, Failure> {
        let body = match open_body(request) {
            Ok(body) => body,
            Err(failure) => return Err(self.flawed(request, failure).await),
        };
        let system = super::sys::System::new(self);
        let caller = Caller::anyone(request.remote);
        let call = Call {
            request,
            operation: request.operation,
            path,
            captures: &found.captures,
            body: &body,
            caller: &caller,
            mount: super::sys::mount_entry(),
            now: self.clock.now(),
        };
        let exchange = Exchange {
            request,
            operation: request.operation,
            caller: Some(&caller),
            mount: Some(call.mount),
            remote: request.remote,
        };
        // Reading the state is not worth a record; unsealing, initialising and root generation are.
        let audited = request.operation != Operation::Read;
        if audited && self.audit.is_enabled() {
            if let Err(refusal) = self.known(request).await {
                if refusal.recorded {
                    self.audit.request(exchange, Some(&refusal.failure)).await?;
                }
                return Err(refusal.failure);
            }
            self.audit.request(exchange, None).await?;
        }
        let result = (spec.run)(&system, &call).await;
        // The share that unseals finds no device open when it comes, but leaves a record of its answer.
        if audited && self.audit.is_enabled() {
            self.audit.response(exchange, outcome(&result)).await?;
        }
        result
    }

    async fn serve(self: &Arc<Self>, request: &Request) -> Result<(Reply, String), Failure> {
        let active = self.active()?;
        let mut audit = self.audit.hold();
        // Sealing ends the answering before it lets go of the audit devices: who is still active holds them.
        if !self.is_still(&active) {
            return Err(Failure::unavailable("Vault is sealed"));
        }
        if request.operation.is_write() && request.path.ends_with('/') {
            return Err(self.flawed(request, Failure::invalid("cannot write to a path ending in '/'")).await);
        }
        let target = Target::find(&active, &request.path);
        let mount = target.mounted.as_deref().map(|mounted| &mounted.entry);
        let mut operation = request.operation;
        let parsed = if target.access() == Some(Access::Anyone) || names_a_token(request) {
            open_body(request)
        } else if let Err(Refusal { failure, recorded, .. }) = self.may_be_long(&active, request).await {
            if recorded {
                let exchange = Exchange { request, operation, caller: None, mount, remote: request.remote };
                audit.request(exchange, Some(&failure))?.written().await?;
            }
            return Err(failure);
        } else {
            RawObject::parse(&request.body).map_err(Failure::from)
        };
        let body = match parsed {
            Ok(body) => body,
            Err(failure) => return Err(self.flawed(request, failure).await),
        };

        let decided = self.admit(&active, request, &body, &target, &mut operation).await;
        let (caller, wrap_ttl) = match decided {
            Ok(admitted) => admitted,
            Err(refusal) => {
                let Refusal { caller, failure, recorded } = refusal;
                // Nobody needs it any longer, and the device may take its time.
                drop(body);
                if recorded {
                    let exchange = Exchange { request, operation, caller: caller.as_ref(), mount, remote: request.remote };
                    audit.request(exchange, Some(&failure))?.written().await?;
                }
                return Err(failure);
            }
        };

        let exchange = Exchange { request, operation, caller: Some(&caller), mount, remote: request.remote };
        let mut recording = Some(audit.request(exchange, None)?);
        // What only reads may run while its record is being written: nothing leaves before both of its records are there.
        let only_reads =
            wrap_ttl.is_none() && caller.token.as_ref().is_none_or(|token| token.num_uses == 0) && target.only_reads(operation);
        if !only_reads && let Some(recording) = recording.take() {
            recording.written().await?;
        }
        let mut result = self.run_surely(request, &body, &target, &caller, operation).await;
        if target.is_login(operation)
            && let Err(failure) = &result
            && matches!(failure.kind(), Kind::Denied | Kind::Invalid)
        {
            // Whether there was a try left was asked before; several at once may overdraw by as many.
            drop(self.auth_failures.count(request.remote, self.clock.now()));
        }
        if result.as_ref().is_ok_and(|reply| reply.body.len() > heavy::LARGE) {
            // Hashing it for the audit devices and laying it out take as long as making it.
            heavy::aside().await;
        }
        if let (Ok(reply), Some(ttl)) = (&mut result, wrap_ttl) {
            result = self.wrap(&active, request, &target, std::mem::take(reply), ttl).await;
        }
        if let Some(token) = &caller.token
            && token.num_uses != 0
            && let Err(failure) = active.tokens.finish_use(token).await
        {
            // The token is dead since its last use was counted; what it was used for is done, and may be all there is.
            tracing::warn!(request_id = %request.id, error = ?failure, "a used-up token is removed later");
        }
        let answered = audit.response(exchange, outcome(&result))?;
        if let Some(recording) = recording {
            recording.written().await?;
        }
        answered.written().await?;
        result.map(|reply| (reply, target.kind()))
    }

    /// Records a request that is refused for its form, whoever sent it and whatever they may do, and gives the failure to
    /// answer with. A sealed server has no devices.
    async fn flawed(&self, request: &Request, flaw: Failure) -> Failure {
        let mut audit = self.audit.hold();
        let Some(active) = self.active().ok().filter(|active| self.audit.is_enabled() && self.is_still(active)) else {
            return flaw;
        };
        let (caller, failure) = match self.known(request).await {
            Ok(token) => (token.map(|token| Caller { token: Some(token), acl: None, remote: request.remote }), flaw),
            Err(Refusal { caller, failure, recorded: true }) => (caller, failure),
            Err(Refusal { failure, .. }) => return failure,
        };
        let target = Target::find(&active, &request.path);
        let exchange = Exchange {
            request,
            operation: request.operation,
            caller: caller.as_ref(),
            mount: target.mounted.as_deref().map(|mounted| &mounted.entry),
            remote: request.remote,
        };
        let recorded = match audit.request(exchange, Some(&failure)) {
            Ok(recording) => recording.written().await,
            Err(unrecorded) => Err(unrecorded),
        };
        recorded.err().unwrap_or(failure)
    }

    /// Token, existence check and policy. On refusal the caller is given back as far as it is known, for the audit record.
    async fn admit(
        &self,
        active: &Active,
        request: &Request,
        body: &RawObject<'_>,
        target: &Target<'_>,
        operation: &mut Operation,
    ) -> Result<(Caller, Option<Duration>), Refusal> {
        let wrapping = names_a_token(request);
        if wrapping {
            let token = wrapping::named_token(request, body).map_err(|failure| self.unknown(request, failure))?;
            self.may_look(request, &token)?;
            wrapping::validate(&active.tokens, &token).map_err(|failure| self.unknown(request, failure))?;
        }
        if target.access() == Some(Access::Anyone) {
            if target.is_login(*operation) {
                self.may_try(request)?;
            } else if !wrapping {
                self.known(request).await?;
            }
            return Ok((Caller::anyone(request.remote), request.wrap_ttl));
        }
        let Some(token) = &request.token else {
            return Err(self.unknown(request, Failure::bad_token()));
        };
        self.may_look(request, token)?;
        let found = active.tokens.authenticate(token, request.remote).await;
        let token = found.map_err(|failure| self.unknown(request, failure))?;
        let acl = active.acl_of(&token).map_err(|failure| Refusal { caller: None, failure, recorded: true })?;
        let caller = Caller { token: Some(Arc::clone(&token)), acl: Some(Arc::clone(&acl)), remote: request.remote };
        let refuse = |failure: Failure| Refusal { caller: Some(caller.clone()), failure, recorded: true };
        if token.num_uses != 0 {
            active.tokens.count_use(&token).await.map_err(refuse)?;
        }
        if *operation == Operation::Update
            && let Some(exists) = self.exists(request, body, target, &caller).await.map_err(refuse)?
        {
            *operation = if exists { Operation::Update } else { Operation::Create };
        }
        let access = acl.check(&AccessRequest {
            path: &request.path,
            operation: *operation,
            parameters: &Parameters::new(request, *operation),
            wrap_ttl: request.wrap_ttl,
        });
        if !access.allowed || (target.access() == Some(Access::Sudo) && !access.sudo) {
            return Err(refuse(Failure::denied()));
        }
        Ok((caller, request.wrap_ttl))
    }

    /// Whether a body may be parsed that is as long as this one. Only who shows a good token is to make that work.
    async fn may_be_long(&self, active: &Active, request: &Request) -> Result<(), Refusal> {
        if request.body.len() <= UNKNOWN_BODY {
            return Ok(());
        }
        let Some(token) = &request.token else {
            return Err(self.unknown(request, Failure::bad_token()));
        };
        self.may_look(request, token)?;
        let found = active.tokens.authenticate(token, request.remote).await;
        found.map(drop).map_err(|failure| self.unknown(request, failure))
    }

    /// On requests that need no token: the caller's token, when a good one came along. Everyone else is let in only as
    /// often as their address may fill audit devices, and guesses only as often as elsewhere.
    async fn known(&self, request: &Request) -> Result<Option<Arc<TokenEntry>>, Refusal> {
        let (Ok(active), Some(token)) = (self.active(), &request.token) else {
            if self.audit.is_enabled() {
                self.strangers.count(request.remote, self.clock.now())?;
            }
            return Ok(None);
        };
        self.may_look(request, token)?;
        match active.tokens.authenticate(token, request.remote).await {
            Ok(entry) => Ok(Some(entry)),
            // Whether a bad token matters is for the endpoint to say.
            Err(failure) => match self.unknown(request, failure) {
                shed if shed.failure.kind() == Kind::RateLimited => Err(shed),
                _ => Ok(None),
            },
        }
    }

    /// A caller who did not show who they are. One too many from the same address is told so instead.
    fn unknown(&self, request: &Request, failure: Failure) -> Refusal {
        // What fails inside says nothing of the caller.
        if !matches!(failure.kind(), Kind::Denied | Kind::Invalid) {
            return Refusal { caller: None, failure, recorded: true };
        }
        match self.auth_failures.count(request.remote, self.clock.now()) {
            Ok(()) => Refusal { caller: None, failure, recorded: true },
            Err(shed) => shed.into(),
        }
    }

    /// What can be guessed is not even looked at while its address has no try left.
    fn may_try(&self, request: &Request) -> Result<(), Shed> {
        self.auth_failures.may_try(request.remote, self.clock.now())
    }

    /// Server-made tokens are looked up at any time.
    fn may_look(&self, request: &Request, token: &SecretString) -> Result<(), Shed> {
        if tokens::is_unguessable(token) { Ok(()) } else { self.may_try(request) }
    }

    async fn exists(
        &self,
        request: &Request,
        body: &RawObject<'_>,
        target: &Target<'_>,
        caller: &Caller,
    ) -> Result<Option<bool>, Failure> {
        let (Some(mounted), Some(found)) = (&target.mounted, &target.found) else { return Ok(None) };
        let call = self.call(request, body, target, mounted, caller, request.operation);
        mounted.engine.exists(found.route, &call).await
    }

    /// Runs it; a change that found nothing to write is answered as done only when it is sure that there was nothing.
    async fn run_surely(
        &self,
        request: &Request,
        body: &RawObject<'_>,
        target: &Target<'_>,
        caller: &Caller,
        operation: Operation,
    ) -> Result<Reply, Failure> {
        let work = self.run(request, body, target, caller, operation);
        if !target.changes(operation) {
            return work.await;
        }
        match self.barrier.surely(work).await {
            (Ok(_), false) => Err(Failure::unavailable(IN_DOUBT)),
            (result, _) => result,
        }
    }

    async fn run(
        &self,
        request: &Request,
        body: &RawObject<'_>,
        target: &Target<'_>,
        caller: &Caller,
        operation: Operation,
    ) -> Result<Reply, Failure> {
        let Some(mounted) = &target.mounted else {
            let text = format!("no handler for route {:?}. route entry not found.", request.path);
            return Err(Failure::plain(Kind::UnsupportedPath, text));
        };
        let call = self.call(request, body, target, mounted, caller, operation);
        if operation == Operation::Help {
            return super::help::answer(mounted.engine.as_ref(), target.found.as_ref().map(|found| found.route));
        }
        mounted.engine.run(target.found.as_ref().map(|found| found.route), &call).await
    }

    fn call<'a>(
        &self,
        request: &'a Request,
        body: &'a RawObject<'a>,
        target: &'a Target<'a>,
        mounted: &'a Mounted,
        caller: &'a Caller,
        operation: Operation,
    ) -> Call<'a> {
        Call {
            request,
            operation,
            path: target.rest,
            captures: target.found.as_ref().map_or(&[], |found| &found.captures),
            body,
            caller,
            mount: &mounted.entry,
            now: self.clock.now(),
        }
    }

    /// Puts the answer into a wrapping token's cubbyhole. Empty answers and answers that are wrapped already stay.
    async fn wrap(
        &self,
        active: &Active,
        request: &Request,
        target: &Target<'_>,
        reply: Reply,
        ttl: Duration,
    ) -> Result<Reply, Failure> {
        let unwraps = request.path == "sys/wrapping/unwrap";
        if reply.is_empty()
            || reply.wrap_info.is_some()
            || matches!(reply.body, Body::Stream { .. })
            || (matches!(reply.body, Body::Bare { .. }) && !unwraps)
        {
            return Ok(reply);
        }
        let accessor = reply.auth.as_ref().map(|grant| grant.accessor.clone());
        let status = reply.status;
        let inner = match reply.body {
            // What was unwrapped is an envelope already.
            Body::Bare { bytes, .. } => bytes,
            _ => envelope::envelope(&reply, &request.id, &target.kind())?,
        };
        let mut info = wrapping::wrap(&active.tokens, inner, status, ttl, &request.path, accessor).await?;
        if request.wrap_as_jwt {
            info.token = active.tokens.wrapping_jwt(&info, &self.settings.api_addr)?;
        }
        Ok(Reply { wrap_info: Some(Box::new(info)), ..Reply::default() })
    }
}

/// The parameters of a request that needs no token.
fn open_body(request: &Request) -> Result<RawObject<'_>, Failure> {
    if request.body.len() > OPEN_BODY {
        let text = format!("request body too large: what needs no token takes at most {OPEN_BODY} bytes");
        return Err(Failure::plain(Kind::TooLarge, text));
    }
    Ok(RawObject::parse_at_most(&request.body, OPEN_MEMBERS)?)
}

/// Whether the body may name the token that the request stands on.
fn names_a_token(request: &Request) -> bool {
    matches!(request.path.as_str(), "sys/wrapping/lookup" | "sys/wrapping/unwrap" | "sys/wrapping/rewrap")
}

fn outcome(result: &Result<Reply, Failure>) -> Outcome<'_> {
    match result {
        Ok(reply) => Outcome::Reply(reply),
        Err(failure) => Outcome::Failure(failure),
    }
}

/// The causes of an error, outermost first.
pub(super) fn chain(error: &(dyn std::error::Error + Send + Sync)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// A request that is not let in.
struct Refusal {
    /// As far as it is known.
    caller: Option<Caller>,
    failure: Failure,
    /// Whether audit devices learn of it; of a flood only now and then.
    recorded: bool,
}

impl From<Shed> for Refusal {
    fn from(shed: Shed) -> Self {
        Self { caller: None, failure: shed.failure(), recorded: shed.recorded }
    }
}

/// Where a request's path leads.
struct Target<'p> {
    mounted: Option<Arc<Mounted>>,
    rest: &'p str,
    found: Option<Match<'p>>,
}

impl<'p> Target<'p> {
    fn find(active: &Active, path: &'p str) -> Self {
        let (mounted, rest) = match active.router.find(path) {
            Some((mounted, rest)) => (Some(mounted), rest),
            None => (active.router.find_bare(path), ""),
        };
        let found = mounted.as_ref().and_then(|mounted| mounted.engine.resolve(rest));
        Self { mounted, rest, found }
    }

    fn access(&self) -> Option<Access> {
        Some(self.mounted.as_ref()?.engine.access(self.found.as_ref()?.route))
    }

    /// Whether the operation changes nothing there.
    fn only_reads(&self, operation: Operation) -> bool {
        let (Some(mounted), Some(found)) = (&self.mounted, &self.found) else { return false };
        Verb::of(operation).is_some_and(|verb| mounted.engine.only_reads(found.route, verb))
    }

    /// Whether the operation is to change something there.
    fn changes(&self, operation: Operation) -> bool {
        let (Some(mounted), Some(found)) = (&self.mounted, &self.found) else { return false };
        Verb::of(operation).is_some_and(|verb| mounted.engine.changes(found.route, verb))
    }

    /// Whether it is an auth method that is to tell whether a caller is who they say.
    fn is_login(&self, operation: Operation) -> bool {
        let auth = self.mounted.as_ref().is_some_and(|mounted| mounted.entry.table == Table::Auth);
        auth && operation.is_write() && self.access() == Some(Access::Anyone)
    }

    fn kind(&self) -> String {
        self.mounted.as_ref().map_or_else(String::new, |mounted| mounted.entry.kind.clone())
    }
}

/// The request's parameters for rules that limit them; parsed only when such a rule asks.
struct Parameters<'a> {
    request: &'a Request,
    operation: Operation,
    parsed: OnceCell<Option<Map<String, Value>>>,
}

impl<'a> Parameters<'a> {
    fn new(request: &'a Request, operation: Operation) -> Self {
        Self { request, operation, parsed: OnceCell::new() }
    }

    fn parse(&self) -> Option<Map<String, Value>> {
        if self.operation.is_write() {
            if self.request.body.iter().all(u8::is_ascii_whitespace) {
                return Some(Map::new());
            }
            return serde_json::from_slice::<Option<Map<String, Value>>>(&self.request.body).ok().map(Option::unwrap_or_default);
        }
        // Of reading requests no body arrives, and the query is what their endpoints decode.
        Some(self.request.query.to_object())
    }
}

impl RequestParameters for Parameters<'_> {
    fn parameters(&self) -> Result<Option<&Map<String, Value>>, UnreadableParameters> {
        self.parsed.get_or_init(|| self.parse()).as_ref().map(Some).ok_or(UnreadableParameters)
    }
}
