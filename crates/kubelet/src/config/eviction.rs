//! What the node keeps free, and how it goes about it: `evictionHard`, `evictionSoft` and their kin.

use std::collections::BTreeMap;
use std::time::Duration;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    Memory,
    NodefsBytes,
    NodefsInodes,
    ImagefsBytes,
    ImagefsInodes,
    Pids,
}

const NAMES: [(&str, Signal); 8] = [
    ("memory.available", Signal::Memory),
    ("nodefs.available", Signal::NodefsBytes),
    ("nodefs.inodesFree", Signal::NodefsInodes),
    ("imagefs.available", Signal::ImagefsBytes),
    ("imagefs.inodesFree", Signal::ImagefsInodes),
    // Without a file system of their own, containers' layers are where images are.
    ("containerfs.available", Signal::ImagefsBytes),
    ("containerfs.inodesFree", Signal::ImagefsInodes),
    ("pid.available", Signal::Pids),
];

impl Signal {
    pub fn as_str(self) -> &'static str {
        NAMES.iter().find(|(_, s)| *s == self).map_or("", |(name, _)| name)
    }

    /// The resource pods are told they ran out of.
    pub fn resource(self) -> &'static str {
        match self {
            Signal::Memory => "memory",
            Signal::NodefsBytes | Signal::ImagefsBytes => "ephemeral-storage",
            Signal::NodefsInodes | Signal::ImagefsInodes => "inodes",
            Signal::Pids => "pids",
        }
    }
}

/// A quantity or a share of the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    Units(u64),
    Percent(f64),
}

impl Amount {
    /// In units of something there is so much of.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Amount::Units(units) => units,
            Amount::Percent(percent) => (capacity as f64 * percent / 100.0) as u64,
        }
    }

    /// As configurations write it.
    pub fn shown(self) -> String {
        match self {
            Amount::Units(units) => units.to_string(),
            Amount::Percent(percent) => format!("{percent}%"),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.parse::<f64>() {
                Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Amount::Percent(percent)),
                _ => Err(format!("eviction percentage {text:?} must be between 0% and 100%")),
            };
        }
        let quantity: meta::quantity::Quantity = text.parse().map_err(|e| format!("{text:?}: {e}"))?;
        u64::try_from(quantity.value()).map(Amount::Units).map_err(|_| format!("{text:?} must be positive"))
    }
}

/// Less than this of a signal is pressure.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    pub amount: Amount,
    /// A soft one: how long it is borne.
    pub grace: Option<Duration>,
    /// What must be free beyond the amount before pressure is over.
    pub reclaim: Option<Amount>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Eviction {
    pub thresholds: Vec<Threshold>,
    /// How long a condition outlives the last observation.
    pub pressure_transition: Duration,
    /// The longest a pod may take to end that a soft threshold evicts.
    pub max_pod_grace: Duration,
}

impl Default for Eviction {
    fn default() -> Self {
        Self {
            thresholds: parse(&defaults(), &BTreeMap::new(), &BTreeMap::new(), &BTreeMap::new()).unwrap_or_default(),
            pressure_transition: Duration::from_secs(300),
            max_pod_grace: Duration::ZERO,
        }
    }
}

/// What upstream keeps free on Linux.
pub fn defaults() -> BTreeMap<String, String> {
    [
        ("memory.available", "100Mi"),
        ("nodefs.available", "10%"),
        ("nodefs.inodesFree", "5%"),
        ("imagefs.available", "15%"),
        ("imagefs.inodesFree", "5%"),
    ]
    .map(|(k, v)| (k.to_string(), v.to_string()))
    .into()
}

fn signal(name: &str) -> Result<Signal, String> {
    NAMES.iter().find(|(n, _)| *n == name).map(|(_, s)| *s).ok_or_else(|| format!("unknown eviction signal {name:?}"))
}

/// The thresholds of a configuration. One of nothing switches its signal off.
pub fn parse(
    hard: &BTreeMap<String, String>,
    soft: &BTreeMap<String, String>,
    soft_grace: &BTreeMap<String, String>,
    reclaim: &BTreeMap<String, String>,
) -> Result<Vec<Threshold>, String> {
    let mut least = BTreeMap::new();
    for (name, text) in reclaim {
        least.insert(signal(name)?, Amount::parse(text)?);
    }
    let mut out: Vec<Threshold> = Vec::new();
    let lists = hard.iter().map(|(n, t)| (n, t, false)).chain(soft.iter().map(|(n, t)| (n, t, true)));
    for (name, text, is_soft) in lists {
        let (signal, amount) = (signal(name)?, Amount::parse(text)?);
        let grace = match (is_soft, soft_grace.get(name)) {
            (false, _) => None,
            (true, Some(text)) => Some(super::file::duration(text)?),
            (true, None) => {
                return Err(format!("grace period must be specified for the soft eviction threshold {name}"));
            }
        };
        if matches!(amount, Amount::Units(0)) || amount == Amount::Percent(0.0) {
            continue;
        }
        let threshold = Threshold { signal, amount, grace, reclaim: least.get(&signal).copied() };
        if !out.contains(&threshold) {
            out.push(threshold);
        }
    }
    Ok(out)
}

impl Eviction {
    /// What a hard threshold keeps of so much.
    pub fn kept(&self, signal: Signal, capacity: u64) -> u64 {
        let hard = self.thresholds.iter().filter(|t| t.signal == signal && t.grace.is_none());
        hard.map(|t| t.amount.of(capacity)).max().unwrap_or(0)
    }

    /// Another amount for a hard threshold.
    pub fn with(mut self, signal: Signal, amount: Amount) -> Self {
        self.thresholds.retain(|t| t.signal != signal || t.grace.is_some());
        self.thresholds.push(Threshold { signal, amount, grace: None, reclaim: None });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        let map = |list: &[(&str, &str)]| list.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let none = BTreeMap::new();
        for (hard, soft, grace, expect) in [
            (map(&[("memory.available", "1Mi")]), none.clone(), none.clone(), Ok(1)),
            (map(&[("memory.available", "0")]), none.clone(), none.clone(), Ok(0)),
            (map(&[("memory.available", "101%")]), none.clone(), none.clone(), Err(())),
            (map(&[("memory", "1Mi")]), none.clone(), none.clone(), Err(())),
            (none.clone(), map(&[("pid.available", "5%")]), none.clone(), Err(())),
            (none.clone(), map(&[("pid.available", "5%")]), map(&[("pid.available", "30s")]), Ok(1)),
            (map(&[("imagefs.available", "5%"), ("containerfs.available", "5%")]), none.clone(), none.clone(), Ok(1)),
        ] {
            let got = parse(&hard, &soft, &grace, &none);
            assert_eq!(got.as_ref().map(Vec::len).map_err(drop), expect, "{hard:?} {soft:?} {got:?}");
        }
        assert_eq!(Eviction::default().kept(Signal::NodefsBytes, 1000), 100);
    }
}
