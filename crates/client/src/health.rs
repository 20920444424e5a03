//! `/healthz`, `/livez`, `/readyz`: what checks come to, worded as upstream words it, and counted for `/metrics/slis`.
//!
//! Who serves brings the outcomes; why a check fails is not told here, since anybody may ask. It knows no checks.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

/// The three who ask.
pub const ASKERS: [&str; 3] = ["healthz", "livez", "readyz"];

/// Outcomes by check and by who asks: how often well, how often not, and whether the last was well.
type Seen = BTreeMap<(&'static str, &'static str), (u64, u64, bool)>;

static SEEN: Mutex<Seen> = Mutex::new(Seen::new());

/// All checks of one asker, with what is wrong where something is: the page, or what it is when it failed. `query` as the
/// client gave it, decoded.
pub fn told(
    asker: &'static str,
    outcomes: &[(&'static str, Option<String>)],
    query: &[(String, String)],
) -> Result<String, String> {
    let mut excluded: Vec<&str> = query.iter().filter(|(k, _)| k == "exclude").map(|(_, v)| &**v).collect();
    let (mut told, mut fine) = (String::new(), true);
    // Writing to a String does not fail.
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = told.write_fmt(text);
    };
    for (name, fault) in outcomes {
        if excluded.contains(name) {
            excluded.retain(|e| e != name);
            line(format_args!("[+]{name} excluded: ok\n"));
            continue;
        }
        let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = seen.entry((name, asker)).or_default();
        outcome.2 = fault.is_none();
        match fault {
            None => {
                outcome.0 += 1;
                line(format_args!("[+]{name} ok\n"));
            }
            Some(why) => {
                tracing::warn!(name, why, "a health check failed");
                outcome.1 += 1;
                fine = false;
                line(format_args!("[-]{name} failed: reason withheld\n"));
            }
        }
    }
    if !excluded.is_empty() {
        excluded.sort_unstable();
        let names: Vec<String> = excluded.iter().map(|name| format!("{name:?}")).collect();
        line(format_args!("warn: some health checks cannot be excluded: no matches for {}\n", names.join(",")));
    }
    if !fine {
        Err(format!("{told}{asker} check failed\n"))
    } else if query.iter().any(|(k, _)| k == "verbose") {
        Ok(format!("{told}{asker} check passed\n"))
    } else {
        Ok("ok".into())
    }
}

/// One check's own page.
pub fn alone(fault: Option<String>) -> Result<String, String> {
    fault.map_or_else(|| Ok("ok".into()), |why| Err(format!("internal server error: {why}\n")))
}

/// `/metrics/slis`.
pub fn slis() -> String {
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut out = String::from(
        "# HELP kubernetes_healthcheck [STABLE] The outcome of the last health check of a name and type.\n\
         # TYPE kubernetes_healthcheck gauge\n",
    );
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = out.write_fmt(text);
    };
    for ((name, asker), (.., fine)) in seen.iter() {
        line(format_args!("kubernetes_healthcheck{{name=\"{name}\",type=\"{asker}\"}} {}\n", u8::from(*fine)));
    }
    line(format_args!("# HELP kubernetes_healthchecks_total [STABLE] Health checks by name, type and outcome.\n"));
    line(format_args!("# TYPE kubernetes_healthchecks_total counter\n"));
    for ((name, asker), (well, ill, _)) in seen.iter() {
        for (status, count) in [("error", ill), ("success", well)].into_iter().filter(|(_, n)| **n > 0) {
            line(format_args!(
                "kubernetes_healthchecks_total{{name=\"{name}\",status=\"{status}\",type=\"{asker}\"}} {count}\n"
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn said_as_upstream_says_it() {
        let query = |pairs: &[(&str, &str)]| -> Vec<_> {
            pairs.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect()
        };
        let outcomes = [("ping", None), ("test-sync", Some("waiting".to_string()))];
        let failed = "[+]ping ok\n[-]test-sync failed: reason withheld\nreadyz check failed\n";
        assert_eq!(told("readyz", &outcomes, &[]), Err(failed.into()));
        assert_eq!(told("readyz", &outcomes, &query(&[("exclude", "test-sync")])), Ok("ok".into()));
        let verbose = query(&[("verbose", ""), ("exclude", "test-sync"), ("exclude", "other")]);
        let passed = "[+]ping ok\n[+]test-sync excluded: ok\nwarn: some health checks cannot be excluded: no matches for \"other\"\nreadyz check passed\n";
        assert_eq!(told("readyz", &outcomes, &verbose), Ok(passed.into()));
        assert_eq!(alone(Some("waiting".into())), Err("internal server error: waiting\n".into()));
        let page = slis();
        for line in [
            "kubernetes_healthcheck{name=\"test-sync\",type=\"readyz\"} 0\n",
            "kubernetes_healthchecks_total{name=\"test-sync\",status=\"error\",type=\"readyz\"} 1\n",
        ] {
            assert!(page.contains(line), "{line}{page}");
        }
    }
}
