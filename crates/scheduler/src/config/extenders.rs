//! The file's extenders.

use std::time::Duration;

use client::site::Tls;

use super::arguments::check_name;
use super::file::ExtenderFile;
use super::mistakes::Mistakes;
use super::time;
use crate::extender::Settings;

/// Whether a name is of a resource that Kubernetes does not know itself.
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

/// Says what is wrong with them.
pub fn check(extenders: &[ExtenderFile], out: &mut Mistakes) {
    let mut managed: Vec<&str> = Vec::new();
    for (at, extender) in extenders.iter().enumerate() {
        let path = format!("extenders[{at}]");
        if !extender.prioritize_verb.is_empty() && extender.weight <= 0 {
            out.invalid(format!("{path}.weight"), extender.weight, "must have a positive weight applied to it");
        }
        for (of, resource) in extender.managed_resources.iter().enumerate() {
            let path = format!("{path}.managedResources[{of}].name");
            let name = resource.name.as_str();
            if !check_name(name, &format!("{name:?}"), &path, out) && !is_extended(name) {
                out.invalid(&path, format_args!("{name:?}"), "is an invalid extended resource name");
            }
            if managed.contains(&name) {
                out.invalid(&path, format_args!("{name:?}"), "duplicate extender managed resource name");
            }
            managed.push(name);
        }
    }
    let binders = extenders.iter().filter(|e| !e.bind_verb.is_empty()).count();
    if binders > 1 {
        let value = format!("\"found {binders} extenders implementing bind\"");
        out.invalid("extenders", value, "only one extender can implement bind");
    }
}

/// Resources that are theirs alone to check.
pub fn ignored(extenders: &[ExtenderFile]) -> Vec<String> {
    let managed = extenders.iter().flat_map(|e| &e.managed_resources);
    managed.filter(|r| r.ignored_by_scheduler).map(|r| r.name.clone()).collect()
}

/// A checked extender.
pub fn settings(from: ExtenderFile) -> Settings {
    let tls = from.tls_config.unwrap_or_default();
    let within = from.http_timeout.as_deref().and_then(time).and_then(|t| u64::try_from(t).ok());
    Settings {
        url: from.url_prefix,
        filter: from.filter_verb,
        prioritize: from.prioritize_verb,
        preempt: from.preempt_verb,
        bind: from.bind_verb,
        weight: from.weight,
        tls: Tls {
            // Upstream checks nobody where it was given nothing to check by.
            insecure: tls.insecure || from.enable_https && tls.ca_file.is_none() && tls.ca_data.is_none(),
            server_name: tls.server_name,
            certificate_file: tls.cert_file,
            certificate_data: tls.cert_data,
            key_file: tls.key_file,
            key_data: tls.key_data,
            authority_file: tls.ca_file,
            authority_data: tls.ca_data,
        },
        within: Duration::from_nanos(within.unwrap_or_default()),
        names_only: from.node_cache_capable,
        managed: from.managed_resources.into_iter().map(|m| m.name).collect(),
        ignorable: from.ignorable,
    }
}
