//! Audit: every request and answer leaves a record in at least one enabled device, or the request fails.

use std::net::IpAddr;

use crate::core::{
    engine::Caller,
    failure::Failure,
    mounts::MountEntry,
    reply::Reply,
    request::{Operation, Request},
};

/// What is known of a request when it is recorded.
#[derive(Clone, Copy)]
pub struct Exchange<'a> {
    /// The request.
    pub request: &'a Request,
    /// With Create told from Update.
    pub operation: Operation,
    /// Who calls; absent when the token was not accepted.
    pub caller: Option<&'a Caller>,
    /// The mount, where one was found.
    pub mount: Option<&'a MountEntry>,
    /// The client's address.
    pub remote: Option<IpAddr>,
}

/// How an exchange ended.
#[derive(Clone, Copy)]
pub enum Outcome<'a> {
    /// An answer.
    Reply(&'a Reply),
    /// A refusal or failure.
    Failure(&'a Failure),
}

/// All enabled devices.
#[derive(Default)]
pub struct Broker {}

impl Broker {
    /// Whether any device is enabled.
    pub fn is_enabled(&self) -> bool {
        false
    }

    /// Records a request (`type: request`), allowed or refused, before it is carried out.
    ///
    /// # Errors
    /// When devices are enabled and none took the record in time: the request must not go on.
    pub async fn request(&self, _exchange: Exchange<'_>, _refused: Option<&Failure>) -> Result<(), Failure> {
        Ok(())
    }

    /// Records an answer (`type: response`) before it is sent.
    ///
    /// # Errors
    /// As for [`Broker::request`]; the answer must not be sent.
    pub async fn response(&self, _exchange: Exchange<'_>, _outcome: Outcome<'_>) -> Result<(), Failure> {
        Ok(())
    }
}
