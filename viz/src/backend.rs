//! Where the answers come from: a broker in this process, or one over QUIC.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use strobe_broker::{Broker, Subscription};
use strobe_wire::message::{ApiRequest, ApiResponse};

use crate::remote::Remote;

pub use strobe_broker::Update;
pub use strobe_broker::query::Caller;

/// The one way to a broker.
#[derive(Clone, Debug)]
pub enum Backend {
    /// In this process (`strobe up`).
    Local(Broker),
    /// Over QUIC (`strobe-viz --broker`).
    Remote(Remote),
}

/// The stream of updates.
#[derive(Debug)]
pub enum Feed {
    /// Of a broker in this process.
    Local(Subscription),
    /// Of a remote broker.
    Remote(Receiver<Update>),
}

/// What waiting for an update gave.
#[derive(Debug)]
pub enum Waited {
    /// One.
    Update(Update),
    /// None yet.
    TimedOut,
    /// None ever again.
    Ended,
}

impl Backend {
    /// Answers an API request; blocks until the broker does or the caller has left.
    #[must_use]
    pub fn api(&self, request: ApiRequest, caller: &Caller) -> ApiResponse {
        match self {
            Self::Local(broker) => broker.respond(&request, caller),
            Self::Remote(remote) => remote.api(request, caller),
        }
    }

    /// Every update from now on. `None` if somebody has it already.
    #[must_use]
    pub fn subscribe(&self) -> Option<Feed> {
        match self {
            Self::Local(broker) => Some(Feed::Local(broker.subscribe())),
            Self::Remote(remote) => remote.updates().map(Feed::Remote),
        }
    }

    /// Why requests cannot be answered now, if they cannot.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        match self {
            Self::Local(_) => None,
            Self::Remote(remote) => remote.trouble(),
        }
    }

    /// Whether requests can be answered now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match self {
            Self::Local(_) => true,
            Self::Remote(remote) => remote.is_connected(),
        }
    }
}

impl Feed {
    /// The next update, at most `wait` from now.
    #[must_use]
    pub fn next(&mut self, wait: Duration) -> Waited {
        match self {
            Self::Local(subscription) => match subscription.recv_timeout(wait) {
                Some(update) => Waited::Update(update),
                None if subscription.is_closed() => Waited::Ended,
                None => Waited::TimedOut,
            },
            Self::Remote(updates) => match updates.recv_timeout(wait) {
                Ok(update) => Waited::Update(update),
                Err(RecvTimeoutError::Timeout) => Waited::TimedOut,
                Err(RecvTimeoutError::Disconnected) => Waited::Ended,
            },
        }
    }
}

/// An error answer in the API's form.
#[must_use]
pub fn unavailable(status: u16, why: &str) -> ApiResponse {
    let body = serde_json::json!({ "status": "error", "errorType": "unavailable", "error": why });
    ApiResponse {
        status,
        content_type: "application/json".to_owned(),
        body: body.to_string().into_bytes(),
    }
}
