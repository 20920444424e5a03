//! Chores of the repository: `cargo xtask <chore>`.

#[cfg(test)]
mod edges;
mod facts;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((chore, rest)) if chore == "facts" => facts::run(rest),
        Some((chore, _)) => bail!("unknown chore {chore:?}; there is: facts"),
        None => bail!("name a chore: facts"),
    }
}
