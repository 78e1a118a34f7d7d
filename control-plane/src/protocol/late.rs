//! Whether a batch was committed so long after it was prepared that its deduplication token may have left the
//! destination's memory meanwhile.
//!
//! Within that memory an insert that is repeated changes nothing. Beyond it a repeat would double the rows, if an earlier
//! attempt had been carried out without anybody hearing of it. Nothing can be decided by that any more: the rows are in.
//! So it is flagged, from half of the memory on, because what is known of it is an estimate.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How far back a destination remembers insert tokens: the least of all tables that an insert reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Blocks; `None` if that is not known.
    pub blocks: Option<u64>,
    /// Seconds, relative to the newest block; `None` where time does not count.
    pub seconds: Option<u64>,
    /// Entries of the window that one insert is taken to use: the partitions that it touches.
    pub partitions: u64,
}

/// How long a batch was open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// From prepare to commit.
    pub time: Duration,
    /// Other batches of its pipe that were committed meanwhile; `None` if that is not known.
    pub batches: Option<u64>,
}

/// By what a batch was late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// It was open for so many of the window's seconds.
    Seconds {
        /// How long it was open.
        open: u64,
        /// How long tokens are remembered.
        window: u64,
    },
    /// So many of the window's blocks were written by its own pipe while it was open.
    Blocks {
        /// Blocks written, about.
        written: u64,
        /// Blocks that are remembered.
        window: u64,
    },
}

/// Whether the batch was open for more than half of the window.
pub fn late(window: Window, open: Open) -> Option<Late> {
    let seconds = open.time.as_secs();
    if let Some(all) = window.seconds.filter(|all| seconds > all / 2) {
        return Some(Late::Seconds {
            open: seconds,
            window: all,
        });
    }
    let written = open.batches?.saturating_mul(window.partitions.max(1));
    let all = window.blocks.filter(|all| written > all / 2)?;
    Some(Late::Blocks { written, window: all })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLICATED: Window = Window {
        blocks: Some(10_000),
        seconds: Some(3_600),
        partitions: 2,
    };

    fn open(seconds: u64, batches: u64) -> Open {
        Open {
            time: Duration::from_secs(seconds),
            batches: Some(batches),
        }
    }

    #[test]
    fn from_half_of_the_window_on() {
        assert_eq!(late(REPLICATED, open(1_800, 2_500)), None);
        assert_eq!(
            late(REPLICATED, open(1_801, 0)),
            Some(Late::Seconds {
                open: 1_801,
                window: 3_600
            })
        );
        assert_eq!(
            late(REPLICATED, open(5, 2_501)),
            Some(Late::Blocks {
                written: 5_002,
                window: 10_000
            })
        );
    }

    #[test]
    fn time_does_not_count_where_only_blocks_do() {
        let plain = Window {
            seconds: None,
            partitions: 1,
            ..REPLICATED
        };
        assert_eq!(late(plain, open(u64::MAX, 5_000)), None);
        assert!(late(plain, open(0, 5_001)).is_some());
    }

    #[test]
    fn what_is_not_known_is_not_late() {
        let unknown = Window {
            blocks: None,
            seconds: None,
            partitions: 1,
        };
        assert_eq!(late(unknown, open(u64::MAX, u64::MAX)), None);
        let batches = None;
        assert_eq!(late(REPLICATED, Open { batches, ..open(10, 0) }), None);
    }
}
