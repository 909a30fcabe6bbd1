//! Adds up the results of episodes, and prints them as `name=number`, so that totals of several runs can be added.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use crate::episode::Outcome;
use crate::judge::{Verdict, ViolationKind};
use crate::say;
use crate::schedule::Kind;

/// Violations printed per episode. All are in its directory.
const PRINTED_MAX: usize = 12;
/// Characters printed per violation.
const PRINTED_CHARS_MAX: usize = 400;

#[derive(Default)]
pub struct Total {
    passed: u64,
    failed: u64,
    counts: Counts,
}

#[derive(Default, Clone)]
struct Counts {
    attempted: usize,
    acknowledged: usize,
    unknown: usize,
    recovered: usize,
    excused: usize,
    lost: usize,
    duplicated: usize,
    wrong: usize,
    faults: BTreeMap<Kind, u32>,
    converge: Vec<Duration>,
    stale: Vec<u64>,
}

impl Total {
    /// Prints the result of an episode and counts it. True if there was no violation.
    pub fn add(&mut self, seed: u64, outcome: &Result<Outcome, String>) -> bool {
        let good = match outcome {
            Err(why) => {
                say(&format!("chaos: seed {seed}: {why}"));
                false
            }
            Ok(outcome) => {
                let counts = Counts::of(outcome);
                for line in &outcome.skipped {
                    say(&format!("  skipped: {}", brief(line)));
                }
                let violations = &outcome.verdict.violations;
                for violation in violations.iter().take(PRINTED_MAX) {
                    say(&format!("  violation: {}", brief(&violation.to_string())));
                }
                say(&format!("chaos: seed {seed} violations={} {}", violations.len(), counts.line()));
                self.counts.merge(counts);
                violations.is_empty()
            }
        };
        *if good { &mut self.passed } else { &mut self.failed } += 1;
        good
    }

    /// Prints the totals. The last line has the form that test runners count.
    pub fn conclude(&self, first: u64, wanted: u64, took: Duration) -> ExitCode {
        let (Total { passed, failed, counts }, seconds) = (self, took.as_secs());
        let last = (first + passed + failed).saturating_sub(1);
        let line = counts.line();
        say(&format!(
            "chaos: seeds {first}..={last} episodes={} failed={failed} {line} seconds={seconds}",
            passed + failed
        ));
        say(&format!("{passed} passed, {failed} failed"));
        let done = *failed == 0 && *passed == wanted;
        if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

impl Counts {
    fn of(outcome: &Outcome) -> Self {
        let Verdict { attempted, acknowledged, unknown, recovered, excused, .. } = outcome.verdict;
        let lost = outcome.verdict.count(&ViolationKind::Lost);
        let duplicated = outcome.verdict.count(&ViolationKind::Twice);
        let wrong = outcome.verdict.violations.len() - lost - duplicated;
        let (faults, stale) = (outcome.faults.clone(), outcome.stale.clone());
        let converge = outcome.converged_after.into_iter().collect();
        Counts {
            attempted,
            acknowledged,
            unknown,
            recovered,
            excused,
            lost,
            duplicated,
            wrong,
            faults,
            converge,
            stale,
        }
    }

    fn merge(&mut self, other: Counts) {
        self.attempted += other.attempted;
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.recovered += other.recovered;
        self.excused += other.excused;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.wrong += other.wrong;
        self.converge.extend(other.converge);
        self.stale.extend(other.stale);
        for (kind, count) in other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
    }

    fn line(&self) -> String {
        let Counts { attempted, acknowledged, unknown, recovered, excused, lost, duplicated, wrong, .. } =
            self;
        let faults: u32 = self.faults.values().sum();
        let kinds: Vec<_> = self.faults.iter().map(|(kind, count)| format!("{kind}={count}")).collect();
        let converge = self.converge.iter().max().copied().unwrap_or_default().as_secs_f64();
        let mut stale = self.stale.clone();
        stale.sort_unstable();
        let (median, most) = (stale.get(stale.len() / 2).unwrap_or(&0), stale.last().unwrap_or(&0));
        format!(
            "attempted={attempted} acknowledged={acknowledged} unknown={unknown} recovered={recovered} \
             excused={excused} lost={lost} duplicated={duplicated} wrong={wrong} converge_s_max={converge:.1} \
             stale_ms_p50={median} stale_ms_max={most} faults={faults} {}",
            kinds.join(" ")
        )
    }
}

fn brief(text: &str) -> String {
    let mut short: String = text.chars().take(PRINTED_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
