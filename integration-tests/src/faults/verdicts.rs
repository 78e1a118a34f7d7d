//! The table that a fault matrix prints: fault, step, lost, duplicated, seconds to recover.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::bail;
use parking_lot::Mutex;

use crate::ledger::Verdict;

/// What came of a row.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How long it took, from when the fault was there, until all that had been put was committed.
    pub recovered: Duration,
    /// What the ledger found.
    pub verdict: Verdict,
    /// The ends of all logs, if it is not clean.
    pub logs: String,
}

#[derive(Debug)]
struct Line {
    fault: String,
    step: String,
    outcome: Result<Outcome, String>,
}

/// What came of all rows.
#[derive(Debug, Default)]
pub struct Verdicts(Mutex<BTreeMap<usize, Line>>);

impl Verdicts {
    /// Notes what came of row `number`.
    pub fn add(&self, number: usize, fault: &str, step: &str, outcome: anyhow::Result<Outcome>) {
        let line = Line {
            fault: fault.to_owned(),
            step: step.to_owned(),
            outcome: outcome.map_err(|error| format!("{error:#}")),
        };
        self.0.lock().insert(number, line);
    }

    /// That no row lost, doubled, disordered or misplaced a record, and all came to their end.
    ///
    /// # Errors
    /// With everything that is known of the rows of which that is not so.
    pub fn must_be_clean(&self) -> anyhow::Result<()> {
        let lines = self.0.lock();
        let mut bad = Vec::new();
        for Line { fault, step, outcome } in lines.values() {
            match outcome {
                Ok(outcome) if outcome.verdict.is_clean() => {}
                Ok(Outcome { verdict, logs, .. }) => bad.push(format!("{fault} at {step}: {verdict:?}\n{logs}")),
                Err(error) => bad.push(format!("{fault} at {step}: {error}")),
            }
        }
        if !bad.is_empty() {
            bail!("{} of {} rows:\n{}", bad.len(), lines.len(), bad.join("\n\n"));
        }
        Ok(())
    }
}

impl fmt::Display for Verdicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.0.lock();
        let width = |of: fn(&Line) -> &String| lines.values().map(|line| of(line).chars().count()).max().unwrap_or(0);
        let (fault_width, step_width) = (width(|line| &line.fault), width(|line| &line.step));
        writeln!(
            f,
            "{:fault_width$}  {:step_width$}  {:>5}  {:>10}  {:>9}",
            "fault", "step", "lost", "duplicated", "recover_s"
        )?;
        for Line { fault, step, outcome } in lines.values() {
            write!(f, "{fault:fault_width$}  {step:step_width$}  ")?;
            match outcome {
                Ok(Outcome { recovered, verdict, .. }) => writeln!(
                    f,
                    "{:>5}  {:>10}  {:>9.1}",
                    verdict.lost,
                    verdict.duplicated,
                    recovered.as_secs_f64()
                )?,
                Err(error) => writeln!(f, "{}", error.lines().next().unwrap_or_default())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(lost: u64) -> Verdict {
        Verdict {
            records: 10,
            rows: 10 - lost,
            rejected: 0,
            lost,
            duplicated: 0,
            disordered: 0,
            misplaced: 0,
            lost_ids: Vec::new(),
            duplicated_ids: Vec::new(),
        }
    }

    fn outcome(lost: u64) -> anyhow::Result<Outcome> {
        Ok(Outcome {
            recovered: Duration::from_millis(2_340),
            verdict: verdict(lost),
            logs: String::new(),
        })
    }

    #[test]
    fn a_table_has_a_line_for_each_row_and_tells_the_bad_ones() {
        let verdicts = Verdicts::default();
        verdicts.add(1, "SIGSTOP", "b", outcome(0));
        verdicts.add(0, "panic", "a.long.step", outcome(0));
        let table = verdicts.to_string();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines[1], "panic    a.long.step      0           0        2.3",
            "{table}"
        );
        assert_eq!(lines.len(), 3, "{table}");
        verdicts.must_be_clean().expect("clean rows");

        verdicts.add(2, "panic", "c", outcome(3));
        assert!(verdicts.must_be_clean().is_err());
        let verdicts = Verdicts::default();
        verdicts.add(0, "panic", "a", Err(anyhow::anyhow!("no such thing")));
        assert!(
            verdicts
                .must_be_clean()
                .expect_err("an error")
                .to_string()
                .contains("no such thing")
        );
    }
}
