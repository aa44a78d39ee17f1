//! Why a request fails, in terms of the API: a kind (`http` maps it to a status), what the client reads, what the log needs.
//!
//! Vault prints errors in two ways, and clients compare texts: an error *answer* of an endpoint is the plain text,
//! an error that *stops* the request is `1 error occurred:\n\t* text\n\n`.

use std::{error::Error, fmt, time::Duration};

use crate::{
    backup::BackupError,
    barrier::BarrierError,
    hsm::HsmError,
    storage::StorageError,
    wire::{field::FieldError, json::JsonError},
    zones::ZoneError,
};

/// What kind of failure it is; `http::errors` gives each a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request is wrong.
    Invalid,
    /// The token is missing, unknown or not allowed.
    Denied,
    /// There is nothing at the path.
    NotFound,
    /// The path exists but not with this operation.
    UnsupportedOperation,
    /// No endpoint matches the path.
    UnsupportedPath,
    /// A version or `cas` check between client and server failed.
    PreconditionFailed,
    /// The body is larger than allowed.
    TooLarge,
    /// The body's content type cannot be taken (PATCH).
    UnsupportedMediaType,
    /// Too many requests.
    RateLimited,
    /// Something inside went wrong; the log has the cause.
    Internal,
    /// Vault has this, SOS does not.
    NotImplemented,
    /// Sealed, or a part that is needed (HSM, store, audit device) cannot serve now.
    Unavailable,
}

/// How the text is laid out for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// `{"errors": [text]}`
    Plain,
    /// `{"errors": ["1 error occurred:\n\t* text\n\n"]}`
    Listed,
    /// `{"errors": []}`
    Silent,
}

/// A failed request.
pub struct Failure {
    kind: Kind,
    layout: Layout,
    text: String,
    warnings: Vec<String>,
    retry_after: Option<Duration>,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    fn new(kind: Kind, layout: Layout, text: impl Into<String>) -> Self {
        Self { kind, layout, text: text.into(), warnings: Vec::new(), retry_after: None, cause: None }
    }

    /// A 400 with the plain text: the endpoint's own answer to a wrong request.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, Layout::Plain, text)
    }

    /// A failure of any kind with the plain text.
    pub fn plain(kind: Kind, text: impl Into<String>) -> Self {
        Self::new(kind, Layout::Plain, text)
    }

    /// A failure of any kind with Vault's "1 error occurred" layout.
    pub fn listed(kind: Kind, text: impl Into<String>) -> Self {
        Self::new(kind, Layout::Listed, text)
    }

    /// A failure without any text (`{"errors": []}`).
    pub fn silent(kind: Kind) -> Self {
        Self::new(kind, Layout::Silent, "")
    }

    /// 404 with an empty list of errors: nothing is stored there.
    pub fn not_found() -> Self {
        Self::silent(Kind::NotFound)
    }

    /// 403 for a token that lacks the right.
    pub fn denied() -> Self {
        Self::listed(Kind::Denied, "permission denied")
    }

    /// 403 for a missing, unknown or expired token.
    pub fn bad_token() -> Self {
        Self::plain(Kind::Denied, "permission denied")
    }

    /// 405: the path does not know this operation.
    pub fn unsupported_operation() -> Self {
        Self::listed(Kind::UnsupportedOperation, "unsupported operation")
    }

    /// 404: the mount has no such endpoint.
    pub fn unsupported_path() -> Self {
        Self::listed(Kind::UnsupportedPath, "unsupported path")
    }

    /// 501 for what Vault has and SOS does not.
    pub fn not_implemented(what: impl fmt::Display) -> Self {
        Self::plain(Kind::NotImplemented, format!("{what} is not supported by this server"))
    }

    /// 503 with the reason.
    pub fn unavailable(text: impl Into<String>) -> Self {
        Self::plain(Kind::Unavailable, text)
    }

    /// 500; the client reads only that it failed, the log gets the cause.
    pub fn internal(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { cause: Some(cause.into()), ..Self::listed(Kind::Internal, "internal error") }
    }

    /// The text with its causes: for the operator, and not for clients.
    pub fn explained(&self) -> String {
        match &self.cause {
            Some(cause) => format!("{}: {}", self.text, super::pipeline::chain(cause.as_ref())),
            None => self.text.clone(),
        }
    }

    /// Adds a cause for the log.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Adds a warning beside the errors.
    #[must_use]
    pub fn with_warning(mut self, warning: impl Into<String>) -> Self {
        self.warnings.push(warning.into());
        self
    }

    /// Adds after how long the client may try again, in whole seconds.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// After how long the client may try again: the header `Retry-After`.
    pub fn wait(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The cause, for the log only.
    pub fn cause(&self) -> Option<&(dyn Error + Send + Sync + 'static)> {
        self.cause.as_deref()
    }

    /// Whether its cause is a record that is there and cannot be read.
    pub fn is_damage(&self) -> bool {
        let Some(cause) = self.cause() else { return false };
        cause.downcast_ref().is_some_and(|error: &BarrierError| error.damaged().is_some())
            || matches!(cause.downcast_ref(), Some(StorageError::Corrupt { .. }))
    }

    /// The entries of `errors` as clients read them.
    pub fn errors(&self) -> Vec<String> {
        match self.layout {
            Layout::Plain => vec![self.text.clone()],
            Layout::Listed => vec![format!("1 error occurred:\n\t* {}\n\n", self.text)],
            Layout::Silent => Vec::new(),
        }
    }

    /// Warnings beside the errors.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The bare text, for audit records and items of a batch.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failure({:?}, {:?}", self.kind, self.text)?;
        if let Some(cause) = &self.cause {
            write!(f, ", cause: {cause}")?;
        }
        f.write_str(")")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Failure {}

impl From<FieldError> for Failure {
    fn from(error: FieldError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<JsonError> for Failure {
    fn from(error: JsonError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Full { .. } => Self::unavailable(error.to_string()),
            StorageError::Invalid(_) => Self::invalid(error.to_string()),
            StorageError::Conflict { .. } => {
                Self::unavailable("the record was changed by others again and again; try again").caused_by(error)
            }
            StorageError::Closed => Self::unavailable("the server is shutting down"),
            StorageError::Corrupt { .. } | StorageError::Io(_) => Self::internal(error),
        }
    }
}

impl From<BarrierError> for Failure {
    fn from(error: BarrierError) -> Self {
        match error {
            BarrierError::Sealed => Self::unavailable("Vault is sealed"),
            BarrierError::Storage(error) => error.into(),
            BarrierError::Path(_) => Self::invalid("relative paths not supported"),
            other => Self::internal(other),
        }
    }
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Damaged(_) | BackupError::Format(_) | BackupError::Refused(_) | BackupError::NotAuthentic => {
                Self::invalid(error.to_string())
            }
            BackupError::Io { .. } | BackupError::Busy(_) => Self::unavailable(error.to_string()),
            BackupError::Storage(error) => error.into(),
            BackupError::Barrier(error) => error.into(),
        }
    }
}

/// A key that an operator can bring back (`sys/sos/hsm/recover`), unless it is one that never left its HSM.
const KEY_MISSING: &str = "the HSM does not hold this key: it is another HSM, or was wiped";

impl From<HsmError> for Failure {
    fn from(error: HsmError) -> Self {
        match error {
            HsmError::BadInput(text) => Self::invalid(text),
            HsmError::Unsupported(text) => Self::invalid(text),
            HsmError::Unavailable { .. } | HsmError::Timeout => Self::unavailable(error.to_string()),
            HsmError::KeyMissing(_) => Self::unavailable(KEY_MISSING).caused_by(error),
            HsmError::KeyExists(_) => Self::internal(error),
        }
    }
}

impl From<ZoneError> for Failure {
    fn from(error: ZoneError) -> Self {
        match error {
            ZoneError::Unknown(_) | ZoneError::Exists(_) | ZoneError::Name(_) | ZoneError::SoftwareZone(_) => {
                Self::invalid(error.to_string())
            }
            ZoneError::HsmUnavailable { .. } => Self::unavailable(error.to_string()),
            ZoneError::Hsm(error) => error.into(),
            ZoneError::Barrier(error) => error.into(),
            ZoneError::WrongKey { .. } => Self::unavailable(error.to_string()),
            ZoneError::Material | ZoneError::Escrow(_) | ZoneError::Record { .. } | ZoneError::Rewrap(_) => Self::internal(error),
        }
    }
}
