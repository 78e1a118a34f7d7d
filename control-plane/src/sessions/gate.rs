//! Whether worker sessions are taken here, and what a worker is told if they are not.

use std::sync::Arc;

use millrace_common::{
    error::ApiError,
    reason::{LEADER_METADATA, NOT_LEADER},
};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;
use tonic::Code;

/// The gate of all sessions: none are taken before it is opened. Clones share it.
#[derive(Clone, Default)]
pub struct Gate(Arc<RwLock<State>>);

enum State {
    /// Sessions are taken, and end when the token is cancelled.
    Open(CancellationToken),
    /// Another control plane takes them: this one, if it is known.
    Elsewhere(Option<String>),
    /// The process ends.
    Closed,
}

impl Default for State {
    fn default() -> Self {
        State::Elsewhere(None)
    }
}

impl Gate {
    /// Takes sessions from now on.
    pub fn open(&self) {
        self.set(State::Open(CancellationToken::new()));
    }

    /// Ends all sessions, and sends workers elsewhere from now on.
    pub fn send_elsewhere(&self, leader: Option<String>) {
        self.set(State::Elsewhere(leader));
    }

    /// Ends all sessions, for good.
    pub fn close(&self) {
        self.set(State::Closed);
    }

    fn set(&self, next: State) {
        let mut state = self.0.write();
        match &*state {
            State::Closed => return,
            State::Open(over) => over.cancel(),
            State::Elsewhere(_) => {}
        }
        *state = next;
    }

    /// A token that is cancelled when the sessions of now end.
    ///
    /// # Errors
    /// What the worker is to be told, if none are taken.
    pub fn enter(&self) -> Result<CancellationToken, ApiError> {
        match &*self.0.read() {
            State::Open(over) => Ok(over.clone()),
            _ => Err(self.refusal()),
        }
    }

    /// Why a session ended, or was not taken.
    pub fn refusal(&self) -> ApiError {
        match &*self.0.read() {
            State::Closed => ApiError::unavailable("SHUTTING_DOWN", "the control plane is shutting down: reconnect"),
            State::Elsewhere(None) => {
                let message = "this control plane does not take worker sessions: try another one";
                ApiError::new(Code::FailedPrecondition, NOT_LEADER, message)
            }
            State::Elsewhere(Some(leader)) => {
                let message = format!("this control plane does not take worker sessions: {leader} does");
                ApiError::new(Code::FailedPrecondition, NOT_LEADER, message).with_metadata(LEADER_METADATA, leader)
            }
            // It has another term by now.
            State::Open(_) => ApiError::unavailable("TERM_OVER", "the control plane has begun anew: reconnect"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_end_whenever_the_gate_moves_and_a_closed_one_stays() {
        let gate = Gate::default();
        assert_eq!(gate.enter().unwrap_err().reason, NOT_LEADER);
        gate.open();
        let first = gate.enter().unwrap();
        gate.open();
        let second = gate.enter().unwrap();
        assert!(first.is_cancelled() && !second.is_cancelled());
        gate.send_elsewhere(Some("http://cp-1:7400".to_owned()));
        assert!(second.is_cancelled());
        let refused = gate.enter().unwrap_err();
        assert_eq!((refused.code, refused.reason), (Code::FailedPrecondition, NOT_LEADER));
        assert_eq!(refused.metadata, [(LEADER_METADATA, "http://cp-1:7400".to_owned())]);
        gate.send_elsewhere(None);
        assert!(gate.enter().unwrap_err().metadata.is_empty());
        gate.open();
        let third = gate.enter().unwrap();
        gate.close();
        assert!(third.is_cancelled());
        gate.open();
        assert_eq!(gate.enter().unwrap_err().reason, "SHUTTING_DOWN");
    }
}
