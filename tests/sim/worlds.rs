//! Many simulated worlds, one per seed: after their faults they converge, and no acknowledged message is lost.
//!
//! `CHATCHAIN_SIM_SEEDS` sets their number and `CHATCHAIN_SIM_FIRST` the first seed. A failed world prints its seed,
//! and writes its trace to a file in the temporary directory; the same seed gives the same trace.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::world::{Plan, Tally, Trace, World};

/// The number of worlds in an ordinary test run.
const SEEDS: u64 = 600;
/// After this many violations no further world is started.
const VIOLATIONS_MAX: usize = 20;

fn number_from_environment(name: &str, otherwise: u64) -> u64 {
    let value = std::env::var(name).ok();
    value
        .map_or(otherwise, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

/// Prints a line. Not eprintln: the test runner hides its output when the test passes.
fn say(what: &str) {
    let _write_failed = writeln!(std::io::stderr(), "{what}");
}

/// Runs one world. Gives its result or its violation, and the lines of its trace.
fn run(plan: Plan) -> (Result<Tally, String>, Vec<String>) {
    let trace = Trace::default();
    let run = || {
        let mut world = World::new(plan, trace.clone());
        world.run();
        world.tally
    };
    let outcome = catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    });
    let lines = trace.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (outcome, lines)
}

fn report(seed: u64, why: &str, lines: &[String]) {
    let file = std::env::temp_dir().join(format!("chatchain-sim-{seed}.trace"));
    let _not_written = std::fs::write(&file, lines.join("\n"));
    let file = file.display();
    say(&format!(
        "sim: seed {seed}: {why}\n  trace: {file}\n  repeat: CHATCHAIN_SIM_FIRST={seed} CHATCHAIN_SIM_SEEDS=1 cargo test --test sim worlds"
    ));
}

#[test]
fn worlds_converge_and_lose_nothing() {
    let first = number_from_environment("CHATCHAIN_SIM_FIRST", 1);
    let seeds = number_from_environment("CHATCHAIN_SIM_SEEDS", SEEDS);
    let next = AtomicU64::new(first);
    let (sum, wrong) = (Mutex::new(Tally::default()), Mutex::new(Vec::new()));
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let so_far = wrong.lock().expect("no thread panics here").len();
                    if seed >= first + seeds || so_far >= VIOLATIONS_MAX {
                        break;
                    }
                    match run(Plan::from_seed(seed)) {
                        (Ok(tally), _) => sum.lock().expect("no thread panics here").add(tally),
                        (Err(why), lines) => {
                            report(seed, &why, &lines);
                            wrong.lock().expect("no thread panics here").push(seed);
                        }
                    }
                }
            });
        }
    });
    let sum = *sum.lock().expect("no thread panics here");
    let mut wrong = wrong.into_inner().expect("no thread panics here");
    wrong.sort_unstable();
    let Tally { acknowledged, lost, crashes, faults, exchanges, cuts, salvages, listings, forged } = sum;
    say(&format!(
        "sim: seeds {first}..={}: {acknowledged} messages acknowledged ({lost} lost with all their disks), {faults} faults, \
         {crashes} crashes, {exchanges} exchanges, {cuts} cuts, {salvages} salvages, {listings} listings, {forged} forged entries admitted, {} violations, {:.1} s",
        first + seeds - 1,
        wrong.len(),
        began.elapsed().as_secs_f64()
    ));
    assert!(wrong.is_empty(), "violations at seeds {wrong:?}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [7, 8] {
        let (_, once) = run(Plan::from_seed(seed));
        let (_, again) = run(Plan::from_seed(seed));
        assert!(once.len() > 100);
        for (one, other) in once.iter().zip(&again) {
            assert_eq!(one, other, "seed {seed}");
        }
        assert_eq!(once.len(), again.len(), "seed {seed}");
    }
}
