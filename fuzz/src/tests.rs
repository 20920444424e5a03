//! Every entry over its seeds, mutated: a few hundred times each, or as often as `NAUPLIUS_FUZZ` says.

use super::TARGETS;
use super::mutate::Dice;

/// Inputs an entry gets in an ordinary run.
const INPUTS: u64 = 200;

#[test]
fn mutated_seeds() {
    let count = std::env::var("NAUPLIUS_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(INPUTS);
    let only = std::env::var("NAUPLIUS_FUZZ_TARGET").ok();
    for target in TARGETS.iter().filter(|t| only.as_deref().is_none_or(|name| name == t.name)) {
        target.seeds.iter().for_each(|seed| (target.run)(seed.as_bytes()));
        for at in 1..=count {
            // Each input can be made again from its number alone.
            let data = Dice(at.wrapping_mul(0x9E37_79B9_7F4A_7C15)).mutated(target.seeds);
            let run = std::panic::catch_unwind(|| (target.run)(&data));
            assert!(run.is_ok(), "{}: input {at}: {:?}", target.name, String::from_utf8_lossy(&data));
        }
        println!("{}: {count} inputs", target.name);
    }
}
