//! The file's form, field by field as upstream names them: read under those names, and shown (`/configz`) under the ones
//! upstream has for the form after defaults. What is not named is an error.

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What can tell which fields it does not know.
pub trait Form {
    fn unknown(_raw: &Value, _path: &str, _out: &mut Vec<String>) {}
}

impl<T: Form> Form for Option<T> {
    fn unknown(raw: &Value, path: &str, out: &mut Vec<String>) {
        T::unknown(raw, path, out);
    }
}

impl<T: Form> Form for Vec<T> {
    fn unknown(raw: &Value, path: &str, out: &mut Vec<String>) {
        for (at, item) in raw.as_array().into_iter().flatten().enumerate() {
            T::unknown(item, &format!("{path}[{at}]"), out);
        }
    }
}

macro_rules! plain {
    ($($type:ty),*) => { $(impl Form for $type {})* };
}
plain!(String, bool, i32, i64, f64, Value, NodeAffinity, TopologySpreadConstraint);

/// `enable_https` as upstream writes it; a raw word without its mark.
fn json_name(field: &str) -> String {
    if field == "enable_https" {
        return "enableHTTPS".into();
    }
    let mut parts = field.trim_start_matches("r#").split('_');
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let (first, rest) = part.split_at(1);
        out.push_str(&first.to_uppercase());
        out.push_str(rest);
    }
    out
}

macro_rules! form {
    ($($name:ident { $($(#[$about:meta])* $field:ident: $type:ty),* $(,)? })*) => {
        $(
            #[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
            #[serde(rename_all(deserialize = "camelCase", serialize = "PascalCase"), default)]
            pub struct $name { $($(#[$about])* pub $field: $type,)* }

            impl Form for $name {
                fn unknown(raw: &Value, path: &str, out: &mut Vec<String>) {
                    let dot = if path.is_empty() { "" } else { "." };
                    for (field, value) in raw.as_object().into_iter().flatten() {
                        let at = format!("{path}{dot}{field}");
                        $(if *field == json_name(stringify!($field)) {
                            <$type as Form>::unknown(value, &at, out);
                            continue;
                        })*
                        out.push(format!("unknown field {at:?}"));
                    }
                }
            }
        )*
    };
}

form! {
    File {
        #[serde(rename = "apiVersion")]
        api_version: String,
        #[serde(skip_serializing)]
        kind: String,
        parallelism: Option<i32>,
        leader_election: LeaderElectionFile,
        client_connection: ClientConnection,
        enable_profiling: Option<bool>,
        enable_contention_profiling: Option<bool>,
        percentage_of_nodes_to_score: Option<i32>,
        pod_initial_backoff_seconds: Option<i64>,
        pod_max_backoff_seconds: Option<i64>,
        profiles: Vec<ProfileFile>,
        extenders: Vec<ExtenderFile>,
        delay_cache_until_active: bool,
    }
    ExtenderFile {
        #[serde(rename(serialize = "URLPrefix"))]
        url_prefix: String,
        filter_verb: String,
        preempt_verb: String,
        prioritize_verb: String,
        weight: i64,
        bind_verb: String,
        #[serde(rename(deserialize = "enableHTTPS", serialize = "EnableHTTPS"))]
        enable_https: bool,
        #[serde(rename(serialize = "TLSConfig"))]
        tls_config: Option<TlsFile>,
        #[serde(rename(serialize = "HTTPTimeout"))]
        http_timeout: Option<String>,
        node_cache_capable: bool,
        managed_resources: Vec<ManagedResource>,
        ignorable: bool,
    }
    TlsFile {
        insecure: bool,
        server_name: Option<String>,
        cert_file: Option<String>,
        key_file: Option<String>,
        #[serde(rename(serialize = "CAFile"))]
        ca_file: Option<String>,
        cert_data: Option<String>,
        // What is secret is not shown.
        #[serde(skip_serializing)]
        key_data: Option<String>,
        #[serde(rename(serialize = "CAData"))]
        ca_data: Option<String>,
    }
    ManagedResource { name: String, ignored_by_scheduler: bool }
    LeaderElectionFile {
        leader_elect: Option<bool>,
        lease_duration: Option<String>,
        renew_deadline: Option<String>,
        retry_period: Option<String>,
        resource_lock: Option<String>,
        resource_name: Option<String>,
        resource_namespace: Option<String>,
    }
    ClientConnection {
        kubeconfig: Option<String>,
        accept_content_types: Option<String>,
        content_type: Option<String>,
        #[serde(rename(serialize = "QPS"))]
        qps: Option<f64>,
        burst: Option<i64>,
    }
    ProfileFile {
        scheduler_name: Option<String>,
        percentage_of_nodes_to_score: Option<i32>,
        plugins: Option<PluginSets>,
        plugin_config: Vec<ArgsOf>,
    }
    PluginSets {
        pre_enqueue: PluginSet,
        queue_sort: PluginSet,
        pre_filter: PluginSet,
        filter: PluginSet,
        post_filter: PluginSet,
        pre_score: PluginSet,
        score: PluginSet,
        reserve: PluginSet,
        permit: PluginSet,
        pre_bind: PluginSet,
        bind: PluginSet,
        post_bind: PluginSet,
        multi_point: PluginSet,
        placement_generate: PluginSet,
        placement_score: PluginSet,
        placement_feasible: PluginSet,
        pod_group_post_filter: PluginSet,
    }
    PluginSet { enabled: Vec<PluginFile>, disabled: Vec<PluginFile> }
    PluginFile { name: String, weight: i32 }
    ArgsOf { name: String, args: Value }
    ResourceSpec { name: String, weight: i64 }
    ScoringStrategy {
        r#type: String,
        resources: Vec<ResourceSpec>,
        requested_to_capacity_ratio: Option<Ratio>,
    }
    Ratio { shape: Vec<ShapePoint> }
    ShapePoint { utilization: i32, score: i32 }
    NodeResourcesFitArgs {
        ignored_resources: Vec<String>,
        ignored_resource_groups: Vec<String>,
        scoring_strategy: Option<ScoringStrategy>,
    }
    NodeResourcesBalancedAllocationArgs { resources: Vec<ResourceSpec> }
    InterPodAffinityArgs {
        hard_pod_affinity_weight: Option<i32>,
        ignore_preferred_terms_of_existing_pods: bool,
    }
    NodeAffinityArgs { added_affinity: Option<NodeAffinity> }
    PodTopologySpreadArgs {
        default_constraints: Vec<TopologySpreadConstraint>,
        defaulting_type: String,
    }
    VolumeBindingArgs { bind_timeout_seconds: Option<i64>, shape: Option<Vec<ShapePoint>> }
    DefaultPreemptionArgs {
        min_candidate_nodes_percentage: Option<i32>,
        min_candidate_nodes_absolute: Option<i32>,
    }
    DynamicResourcesArgs { filter_timeout: Option<String>, binding_timeout: Option<String> }
}
