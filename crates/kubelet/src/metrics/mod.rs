//! What the agent counts, under upstream's names.
//!
//! A family is a constant of [`families`]; counting names one and its labels' values. What can be read off the agent's
//! state when somebody asks (how many pods run, how full a volume is) is not counted here.

pub mod families;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Series of one family; those that come later are not counted. Values that clients could choose must not grow without end.
const MAX_SERIES: usize = 2000;

/// One metric with all its labels.
#[derive(Debug)]
pub struct Family {
    pub name: &'static str,
    pub help: &'static str,
    pub labels: &'static [&'static str],
    pub kind: Kind,
}

/// What a family's numbers do.
#[derive(Debug)]
pub enum Kind {
    /// They grow.
    Counter,
    /// They are what they are now.
    Gauge,
    /// They fall below upper bounds, which rise.
    Histogram(&'static [f64]),
}

impl Family {
    fn bounds(&self) -> &'static [f64] {
        match self.kind {
            Kind::Histogram(bounds) => bounds,
            Kind::Counter | Kind::Gauge => &[],
        }
    }
}

#[derive(Debug, Default)]
struct Series {
    buckets: Vec<u64>,
    count: u64,
    sum: f64,
}

type Counted = BTreeMap<&'static str, BTreeMap<String, Series>>;

/// All that was counted since the agent began.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<Counted>);

/// A label's value, escaped.
pub fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl Metrics {
    fn change(&self, family: &'static Family, values: &[&str], change: impl FnOnce(&mut Series)) {
        let pairs = family.labels.iter().zip(values).map(|(label, value)| format!("{label}=\"{}\"", escaped(value)));
        let labels = pairs.collect::<Vec<_>>().join(",");
        // Entries are whole after every statement.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let series = all.entry(family.name).or_default();
        if series.len() < MAX_SERIES || series.contains_key(&labels) {
            change(series.entry(labels).or_default());
        }
    }

    /// One more, by labels' values in the family's order.
    pub fn count(&self, family: &'static Family, values: &[&str]) {
        self.change(family, values, |series| series.count += 1);
    }

    /// One more that took so many seconds.
    pub fn observe(&self, family: &'static Family, values: &[&str], seconds: f64) {
        self.change(family, values, |series| {
            series.buckets.resize(family.bounds().len(), 0);
            if let Some(at) = family.bounds().iter().position(|bound| seconds <= *bound) {
                series.buckets[at] += 1;
            }
            series.count += 1;
            series.sum += seconds;
        });
    }

    /// One more that began then and is done now.
    pub fn since(&self, family: &'static Family, values: &[&str], began: Instant) {
        self.observe(family, values, began.elapsed().as_secs_f64());
    }

    /// It is this now.
    pub fn set(&self, family: &'static Family, values: &[&str], value: f64) {
        self.change(family, values, |series| series.sum = value);
    }

    /// It is so much more, or less, than it was.
    pub fn add(&self, family: &'static Family, values: &[&str], difference: f64) {
        self.change(family, values, |series| series.sum += difference);
    }

    /// Forgets series that have all these labels.
    pub fn forget(&self, family: &'static Family, labels: &[(&str, &str)]) {
        let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        if let Some(series) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(family.name) {
            series.retain(|labels, _| !pairs.iter().all(|pair| labels.contains(pair)));
        }
    }

    /// These families in the Prometheus text format; those that nothing was counted of are left out, unless they have but
    /// one series, which then is zero.
    pub fn printed(&self, families: &[&'static Family]) -> String {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let nothing = BTreeMap::from([(String::new(), Series::default())]);
        let mut out = String::new();
        for family in families {
            let counted = all.get(family.name).filter(|s| !s.is_empty());
            let Some(series) = counted.or(family.labels.is_empty().then_some(&nothing)) else { continue };
            let kind = match family.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram(_) => "histogram",
            };
            // Writing to a string cannot fail.
            let _ = writeln!(out, "# HELP {0} {1}\n# TYPE {0} {kind}", family.name, family.help);
            for (labels, one) in series {
                let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
                let value = match family.kind {
                    Kind::Counter => one.count as f64,
                    Kind::Gauge => one.sum,
                    Kind::Histogram(bounds) => {
                        buckets(&mut out, family.name, labels, bounds, one);
                        let _ = writeln!(
                            out,
                            "{0}_sum{braces} {1}\n{0}_count{braces} {2}",
                            family.name, one.sum, one.count
                        );
                        continue;
                    }
                };
                let _ = writeln!(out, "{}{braces} {value}", family.name);
            }
        }
        out
    }
}

fn buckets(out: &mut String, name: &str, labels: &str, bounds: &[f64], one: &Series) {
    let comma = if labels.is_empty() { "" } else { "," };
    let mut sum = 0;
    for (at, bound) in bounds.iter().enumerate() {
        sum += one.buckets.get(at).copied().unwrap_or(0);
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {sum}");
    }
    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {}", one.count);
}

#[cfg(test)]
mod tests {
    use super::*;

    static COUNTER: Family = Family { name: "c_total", help: "Cs.", labels: &["a", "b"], kind: Kind::Counter };
    static TIMES: Family = Family { name: "t_seconds", help: "Ts.", labels: &[], kind: Kind::Histogram(&[0.5, 1.0]) };
    static NOW: Family = Family { name: "now", help: "Now.", labels: &[], kind: Kind::Gauge };
    static NEVER: Family = Family { name: "never_total", help: "Never.", labels: &[], kind: Kind::Counter };

    #[test]
    fn what_was_counted_is_told() {
        let metrics = Metrics::default();
        metrics.count(&COUNTER, &["x", "q\"q"]);
        metrics.count(&COUNTER, &["x", "q\"q"]);
        metrics.count(&COUNTER, &["y", ""]);
        for seconds in [0.5, 0.75, 4.0] {
            metrics.observe(&TIMES, &[], seconds);
        }
        metrics.set(&NOW, &[], 2.0);
        metrics.add(&NOW, &[], -0.5);
        metrics.forget(&COUNTER, &[("a", "y")]);
        let expect = "# HELP c_total Cs.\n# TYPE c_total counter\nc_total{a=\"x\",b=\"q\\\"q\"} 2\n\
            # HELP t_seconds Ts.\n# TYPE t_seconds histogram\nt_seconds_bucket{le=\"0.5\"} 1\nt_seconds_bucket{le=\"1\"} 2\n\
            t_seconds_bucket{le=\"+Inf\"} 3\nt_seconds_sum 5.25\nt_seconds_count 3\n\
            # HELP now Now.\n# TYPE now gauge\nnow 1.5\n\
            # HELP never_total Never.\n# TYPE never_total counter\nnever_total 0\n";
        assert_eq!(metrics.printed(&[&COUNTER, &TIMES, &NOW, &NEVER]), expect);
    }

    #[test]
    fn names_are_told_once() {
        let mut names: Vec<&str> = families::ALL.iter().chain(&families::PROBES).map(|f| f.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
