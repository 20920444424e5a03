//! Sets of completion indexes, written as Jobs write them: `0-3,5,7`.

use std::collections::BTreeSet;
use std::fmt;

/// A set of indexes below a bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(BTreeSet<i64>);

impl Indexes {
    /// Reads `0-3,5`; what is malformed or not below `bound` is left out.
    pub fn parse(text: &str, bound: i64) -> Self {
        let mut out = BTreeSet::new();
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.parse::<i64>(), last.parse::<i64>()) {
                out.extend(first.max(0)..=last.min(bound - 1));
            }
        }
        Self(out)
    }

    pub fn insert(&mut self, index: i64) -> bool {
        self.0.insert(index)
    }

    pub fn has(&self, index: i64) -> bool {
        self.0.contains(&index)
    }

    pub fn len(&self) -> i64 {
        self.0.len() as i64
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = i64> + '_ {
        self.0.iter().copied()
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs: Vec<(i64, i64)> = Vec::new();
        for index in self.iter() {
            match runs.last_mut() {
                Some(run) if run.1 + 1 == index => run.1 = index,
                _ => runs.push((index, index)),
            }
        }
        for (at, (first, last)) in runs.into_iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                // Two in a row are written apart, as upstream writes them.
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_as_read() {
        for (text, expect) in
            [("", ""), ("0", "0"), ("0,1", "0,1"), ("0-2", "0-2"), ("0,1,2,5,7,8", "0-2,5,7,8"), ("8-20,x", "8,9")]
        {
            assert_eq!(Indexes::parse(text, 10).to_string(), expect, "{text}");
        }
    }
}
