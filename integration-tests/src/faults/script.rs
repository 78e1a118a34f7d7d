//! What becomes of a connection.

use std::time::Duration;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Request,
    /// From the server to the client.
    Response,
}

/// How a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In order: both sides see the end of the stream.
    Fin,
    /// Both sides see a reset, and lose what they had not read.
    Reset,
    /// Neither side sees anything: bytes just stop, both ways, until the script changes.
    Freeze,
}

/// A cut after so many bytes of one direction, counted from when the script took hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Which bytes are counted.
    pub direction: Direction,
    /// How many still pass.
    pub after_bytes: u64,
    /// What happens then.
    pub end: End,
}

/// Which HTTP/1.1 requests are sent a second time, on a connection of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duplicate {
    /// Text that the request line or a header has.
    pub containing: String,
    /// How long after the request was complete.
    pub delay: Duration,
}

/// What becomes of a connection. Parts combine: a slow connection may be cut as well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Script {
    pub(super) refuse: bool,
    pub(super) reset: bool,
    pub(super) frozen: bool,
    pub(super) delay: Duration,
    pub(super) bytes_per_second: Option<u64>,
    pub(super) cut: Option<Cut>,
    pub(super) duplicate: Option<Duplicate>,
}

impl Script {
    /// Everything passes.
    #[must_use]
    pub fn pass() -> Self {
        Self::default()
    }

    /// Nobody listens: connecting is refused. Connections that are there stay.
    #[must_use]
    pub fn refuse() -> Self {
        Self {
            refuse: true,
            ..Self::default()
        }
    }

    /// Connections are reset: new ones as soon as they are made, others now.
    #[must_use]
    pub fn reset() -> Self {
        Self {
            reset: true,
            ..Self::default()
        }
    }

    /// Half-open: connections are there and nothing comes through, until the script changes. Then it all does.
    #[must_use]
    pub fn freeze() -> Self {
        Self {
            frozen: true,
            ..Self::default()
        }
    }

    /// The connection ends after so many bytes of one direction.
    #[must_use]
    pub fn cut(direction: Direction, after_bytes: u64, end: End) -> Self {
        Self {
            cut: Some(Cut {
                direction,
                after_bytes,
                end,
            }),
            ..Self::default()
        }
    }

    /// Requests with this text in their head are sent twice.
    #[must_use]
    pub fn duplicate(containing: &str, delay: Duration) -> Self {
        Self {
            duplicate: Some(Duplicate {
                containing: containing.to_owned(),
                delay,
            }),
            ..Self::default()
        }
    }

    /// Bytes arrive this much later, each way.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// No more than so many bytes pass each second, each way.
    #[must_use]
    pub fn throttle(mut self, bytes_per_second: u64) -> Self {
        self.bytes_per_second = Some(bytes_per_second.max(1));
        self
    }
}
