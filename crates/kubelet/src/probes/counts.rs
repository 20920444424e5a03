//! How often probes were answered, and how: `/metrics/probes`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;

use crate::spec;

/// By pod uid, then by the line's labels.
#[derive(Default)]
pub struct Counts(Mutex<BTreeMap<String, BTreeMap<String, u64>>>);

impl Counts {
    fn map(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, BTreeMap<String, u64>>> {
        // Entries are whole after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more answer.
    pub fn count(&self, pod: &Pod, container: &str, probe: &str, result: &str) {
        let uid = spec::uid(pod);
        let labels = format!(
            "container=\"{container}\",namespace=\"{}\",pod=\"{}\",pod_uid=\"{uid}\",probe_type=\"{probe}\",result=\"{result}\"",
            spec::namespace(pod),
            spec::name(pod)
        );
        *self.map().entry(uid.into()).or_default().entry(labels).or_default() += 1;
    }

    /// A pod is gone.
    pub fn release(&self, uid: &str) {
        self.map().remove(uid);
    }

    /// In the Prometheus text format.
    pub fn printed(&self) -> String {
        let mut out = String::from(
            "# HELP prober_probe_total Cumulative number of a liveness, readiness or startup probe for a container by result.\n\
             # TYPE prober_probe_total counter\n",
        );
        for (labels, count) in self.map().values().flatten() {
            out.push_str(&format!("prober_probe_total{{{labels}}} {count}\n"));
        }
        out
    }
}
