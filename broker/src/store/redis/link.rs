//! A connection to Redis on which no wait is longer than it was told, and what went wrong on it.

use std::time::Duration;

/// A connection with a time-out on every wait.
pub(super) struct Connection(::redis::Connection);

/// Why Redis did not do something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Nobody answers, or too slowly.
    Unreachable,
    /// A password is wanted, or another one, or the user may not.
    Auth,
    /// Redis is at its memory limit.
    Memory,
    /// Anything else Redis said.
    Refused,
}

/// Every [`Trouble`], in the order of [`super::MirrorCounts::failures`].
pub const TROUBLES: [Trouble; 4] =
    [Trouble::Unreachable, Trouble::Auth, Trouble::Memory, Trouble::Refused];

impl Connection {
    pub(super) fn open(client: &::redis::Client, wait: Duration) -> ::redis::RedisResult<Self> {
        let connection = client.get_connection_with_timeout(wait)?;
        connection.set_read_timeout(Some(wait))?;
        connection.set_write_timeout(Some(wait))?;
        Ok(Self(connection))
    }

    pub(super) fn exec(&mut self, pipe: &::redis::Pipeline) -> ::redis::RedisResult<()> {
        self.query(pipe).map(drop)
    }

    /// Every answer, or the first that is an error. The crate's own pipeline would wait for each
    /// answer of a server that hangs, one time-out after the other.
    pub(super) fn query(
        &mut self,
        pipe: &::redis::Pipeline,
    ) -> ::redis::RedisResult<Vec<::redis::Value>> {
        if pipe.is_empty() {
            return Ok(Vec::new());
        }
        self.0.send_packed_command(&pipe.get_packed_pipeline())?;
        let answers = (0..pipe.len()).map(|_| match self.0.recv_response()? {
            ::redis::Value::ServerError(refused) => Err(refused.into()),
            answer => Ok(answer),
        });
        answers.collect()
    }
}

impl Trouble {
    /// As a label's value.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Auth => "auth",
            Self::Memory => "memory",
            Self::Refused => "refused",
        }
    }

    pub(super) fn of(error: &::redis::RedisError) -> Self {
        let auth = error.kind() == ::redis::ErrorKind::AuthenticationFailed;
        let answer = first_answer(error);
        let code = answer.as_ref().map(::redis::ServerError::code);
        match code {
            Some("NOAUTH" | "WRONGPASS" | "NOPERM") => Self::Auth,
            _ if auth => Self::Auth,
            Some("OOM") => Self::Memory,
            _ if error.is_io_error() => Self::Unreachable,
            _ => Self::Refused,
        }
    }

    /// What is wrong, and what to do.
    pub(super) fn sentence(self, address: &str, error: &::redis::RedisError) -> String {
        let (what, todo) = match self {
            Self::Unreachable => ("does not answer", "start it, or correct broker.store"),
            Self::Auth => (
                "does not let us in",
                "put user and password into broker.store, as in redis://USER:PASSWORD@HOST:PORT/DB",
            ),
            Self::Memory => (
                "is out of memory",
                "raise its maxmemory or lower broker.redis_retention and broker.redis_queue",
            ),
            Self::Refused => ("refuses", "correct broker.store or Redis's configuration"),
        };
        let said = first_answer(error).map_or_else(
            || error.to_string(),
            |answer| format!("{} {}", answer.code(), answer.details().unwrap_or_default()),
        );
        format!("Redis at {address} {what} ({said}): {todo}")
    }
}

/// What Redis said to the first command that it refused.
fn first_answer(error: &::redis::RedisError) -> Option<::redis::ServerError> {
    let answers = error.clone().into_server_errors()?;
    answers.first().map(|(_, answer)| answer.clone())
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}
