//! Positions, end to end: resets, gaps, streams that are created anew, backfills. Control plane, workers and the Kinesis
//! emulator run in this process and share a clock that the tests move; the ClickHouse engine is real. What must be in a
//! table is counted row by row.

mod positions {
    mod backfill;
    mod bed;
    mod gaps;
    mod reset;
    mod stream;
}
