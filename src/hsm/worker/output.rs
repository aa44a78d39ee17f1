//! The way back to the server: replies of all threads over one socket, gathered while a write is under way.

use std::io::Write;
use std::os::unix::net::UnixStream;

use parking_lot::Mutex;
use serde::Serialize;

use crate::hsm::proto::{self, Frame};

/// Sends replies and events.
pub struct Output {
    state: Mutex<State>,
}

struct State {
    /// Taken out by the thread that writes.
    stream: Option<UnixStream>,
    waiting: Frame,
}

impl Output {
    /// Sends over `stream`.
    pub fn new(stream: UnixStream) -> Self {
        Self { state: Mutex::new(State { stream: Some(stream), waiting: Frame::default() }) }
    }

    /// Sends a body for a call; with call 0 an event.
    pub fn message<T: Serialize>(&self, call: u64, body: &T) {
        match proto::message(call, body) {
            Ok(frame) => self.send(frame),
            Err(error) => tracing::error!(%error, "a reply does not fit into a frame"),
        }
    }

    /// Sends a frame, or leaves it to the thread that is writing now.
    pub fn send(&self, frame: Frame) {
        let mut state = self.state.lock();
        let Some(mut stream) = state.stream.take() else {
            state.waiting.extend_from_slice(&frame);
            return;
        };
        let mut next = frame;
        loop {
            drop(state);
            // A failed write means that the server is gone: the reading thread sees that too and ends the process.
            let _ = stream.write_all(&next);
            state = self.state.lock();
            if state.waiting.is_empty() {
                state.stream = Some(stream);
                return;
            }
            next = std::mem::take(&mut state.waiting);
        }
    }
}
