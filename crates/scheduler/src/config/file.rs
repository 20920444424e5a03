//! The file's form, field by field as upstream names them: read under those names, and shown (`/configz`) under the ones
//! upstream has for the form after defaults. What is not named is an error, and so is a value of another type, told as Go's
//! decoder tells it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where a value stands: the innermost struct by Go's name for it, and the path from the outermost. Both are empty at the
/// top.
#[derive(Clone, Copy)]
pub struct At<'a> {
    of: &'a str,
    path: &'a str,
}

impl At<'_> {
    pub const TOP: Self = Self { of: "", path: "" };
}

/// What can tell that a value has another form, and which fields it does not know.
pub trait Form {
    /// Its type as Go writes it.
    fn go() -> String;

    /// The first value of another type, in the words of Go's decoder. Null is none of any type.
    fn wrong(raw: &Value, at: At<'_>) -> Option<String>;

    fn unknown(_raw: &Value, _path: &str, _out: &mut Vec<String>) {}
}

/// What Go's decoder says of a value that is of another type; a number that is none of this type is told.
fn mismatch(raw: &Value, at: At<'_>, wanted: &str) -> String {
    let found = match raw {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(number) if wanted.starts_with("int") => format!("number {number}"),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".to_string(),
        Value::Array(_) => "array".into(),
        Value::Object(_) => "object".into(),
    };
    match at {
        At { path: "", .. } => format!("json: cannot unmarshal {found} into Go value of type {wanted}"),
        At { of, path } => format!("json: cannot unmarshal {found} into Go struct field {of}.{path} of type {wanted}"),
    }
}

impl<T: Form> Form for Option<T> {
    fn go() -> String {
        T::go()
    }

    fn wrong(raw: &Value, at: At<'_>) -> Option<String> {
        T::wrong(raw, at)
    }

    fn unknown(raw: &Value, path: &str, out: &mut Vec<String>) {
        T::unknown(raw, path, out);
    }
}

impl<T: Form> Form for Vec<T> {
    fn go() -> String {
        format!("[]{}", T::go())
    }

    fn wrong(raw: &Value, at: At<'_>) -> Option<String> {
        match raw {
            Value::Null => None,
            Value::Array(items) => items.iter().find_map(|item| T::wrong(item, at)),
            _ => Some(mismatch(raw, at, &Self::go())),
        }
    }

    fn unknown(raw: &Value, path: &str, out: &mut Vec<String>) {
        for (at, item) in raw.as_array().into_iter().flatten().enumerate() {
            T::unknown(item, &format!("{path}[{at}]"), out);
        }
    }
}

impl<T: Form> Form for BTreeMap<String, T> {
    fn go() -> String {
        format!("map[string]{}", T::go())
    }

    fn wrong(raw: &Value, at: At<'_>) -> Option<String> {
        match raw {
            Value::Null => None,
            Value::Object(map) => map.values().find_map(|value| T::wrong(value, at)),
            _ => Some(mismatch(raw, at, &Self::go())),
        }
    }
}

macro_rules! plain {
    ($($type:ty, $go:literal, $is:expr;)*) => { $(
        impl Form for $type {
            fn go() -> String {
                $go.into()
            }

            fn wrong(raw: &Value, at: At<'_>) -> Option<String> {
                let is: fn(&Value) -> bool = $is;
                (!raw.is_null() && !is(raw)).then(|| mismatch(raw, at, $go))
            }
        }
    )* };
}
plain! {
    String, "string", Value::is_string;
    bool, "bool", Value::is_boolean;
    i32, "int32", |v| v.as_i64().is_some_and(|n| i32::try_from(n).is_ok());
    i64, "int64", Value::is_i64;
    f64, "float32", Value::is_number;
    Value, "runtime.RawExtension", |_| true;
}

/// Types of the core API, read as they are and checked by a form of the same fields.
macro_rules! checked_by {
    ($($type:ty, $form:ty;)*) => { $(
        impl Form for $type {
            fn go() -> String {
                <$form>::go()
            }

            fn wrong(raw: &Value, at: At<'_>) -> Option<String> {
                <$form>::wrong(raw, at)
            }

            fn unknown(raw: &Value, path: &str, out: &mut Vec<String>) {
                <$form>::unknown(raw, path, out);
            }
        }
    )* };
}
checked_by! {
    NodeAffinity, AffinityForm;
    TopologySpreadConstraint, SpreadForm;
}

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
    ($($name:ident is $go:literal { $($(#[$about:meta])* $field:ident: $type:ty),* $(,)? })*) => {
        $(
            #[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
            #[serde(rename_all(deserialize = "camelCase", serialize = "PascalCase"), default)]
            pub struct $name { $($(#[$about])* pub $field: $type,)* }

            impl Form for $name {
                fn go() -> String {
                    if $go.contains('.') { $go.into() } else { format!("v1.{}", $go) }
                }

                fn wrong(raw: &Value, at: At<'_>) -> Option<String> {
                    let fields = match raw {
                        Value::Null => return None,
                        Value::Object(fields) => fields,
                        _ => return Some(mismatch(raw, at, &Self::go())),
                    };
                    let of = $go.rsplit('.').next().unwrap_or_default();
                    let dot = if at.path.is_empty() { "" } else { "." };
                    let mut fields: Vec<_> = fields.iter().collect();
                    fields.sort_unstable_by_key(|(field, _)| *field);
                    fields.into_iter().find_map(|(field, value)| {
                        let path = format!("{}{dot}{field}", at.path);
                        $(if *field == json_name(stringify!($field)) {
                            return <$type as Form>::wrong(value, At { of, path: &path });
                        })*
                        None
                    })
                }

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
    File is "KubeSchedulerConfiguration" {
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
    ExtenderFile is "Extender" {
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
    TlsFile is "ExtenderTLSConfig" {
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
    ManagedResource is "ExtenderManagedResource" { name: String, ignored_by_scheduler: bool }
    LeaderElectionFile is "v1alpha1.LeaderElectionConfiguration" {
        leader_elect: Option<bool>,
        lease_duration: Option<String>,
        renew_deadline: Option<String>,
        retry_period: Option<String>,
        resource_lock: Option<String>,
        resource_name: Option<String>,
        resource_namespace: Option<String>,
    }
    ClientConnection is "v1alpha1.ClientConnectionConfiguration" {
        kubeconfig: Option<String>,
        accept_content_types: Option<String>,
        content_type: Option<String>,
        #[serde(rename(serialize = "QPS"))]
        qps: Option<f64>,
        burst: Option<i32>,
    }
    ProfileFile is "KubeSchedulerProfile" {
        scheduler_name: Option<String>,
        percentage_of_nodes_to_score: Option<i32>,
        plugins: Option<PluginSets>,
        plugin_config: Vec<ArgsOf>,
    }
    PluginSets is "Plugins" {
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
    PluginSet is "PluginSet" { enabled: Vec<PluginFile>, disabled: Vec<PluginFile> }
    PluginFile is "Plugin" { name: String, weight: i32 }
    ArgsOf is "PluginConfig" { name: String, args: Value }
    ResourceSpec is "ResourceSpec" { name: String, weight: i64 }
    ScoringStrategy is "ScoringStrategy" {
        r#type: String,
        resources: Vec<ResourceSpec>,
        requested_to_capacity_ratio: Option<Ratio>,
    }
    Ratio is "RequestedToCapacityRatioParam" { shape: Vec<ShapePoint> }
    ShapePoint is "UtilizationShapePoint" { utilization: i32, score: i32 }
    NodeResourcesFitArgs is "NodeResourcesFitArgs" {
        ignored_resources: Vec<String>,
        ignored_resource_groups: Vec<String>,
        scoring_strategy: Option<ScoringStrategy>,
    }
    NodeResourcesBalancedAllocationArgs is "NodeResourcesBalancedAllocationArgs" { resources: Vec<ResourceSpec> }
    InterPodAffinityArgs is "InterPodAffinityArgs" {
        hard_pod_affinity_weight: Option<i32>,
        ignore_preferred_terms_of_existing_pods: bool,
    }
    NodeAffinityArgs is "NodeAffinityArgs" { added_affinity: Option<NodeAffinity> }
    PodTopologySpreadArgs is "PodTopologySpreadArgs" {
        default_constraints: Vec<TopologySpreadConstraint>,
        defaulting_type: String,
    }
    VolumeBindingArgs is "VolumeBindingArgs" { bind_timeout_seconds: Option<i64>, shape: Option<Vec<ShapePoint>> }
    DefaultPreemptionArgs is "DefaultPreemptionArgs" {
        min_candidate_nodes_percentage: Option<i32>,
        min_candidate_nodes_absolute: Option<i32>,
    }
    DynamicResourcesArgs is "DynamicResourcesArgs" { filter_timeout: Option<String>, binding_timeout: Option<String> }
    AffinityForm is "NodeAffinity" {
        required_during_scheduling_ignored_during_execution: Option<NodeSelectorForm>,
        preferred_during_scheduling_ignored_during_execution: Vec<PreferredForm>,
    }
    NodeSelectorForm is "NodeSelector" { node_selector_terms: Vec<NodeTermForm> }
    PreferredForm is "PreferredSchedulingTerm" { weight: i32, preference: NodeTermForm }
    NodeTermForm is "NodeSelectorTerm" { match_expressions: Vec<NodeRequirementForm>, match_fields: Vec<NodeRequirementForm> }
    NodeRequirementForm is "NodeSelectorRequirement" { key: String, operator: String, values: Vec<String> }
    SpreadForm is "TopologySpreadConstraint" {
        max_skew: i32,
        topology_key: String,
        when_unsatisfiable: String,
        label_selector: Option<LabelSelectorForm>,
        min_domains: Option<i32>,
        node_affinity_policy: Option<String>,
        node_taints_policy: Option<String>,
        match_label_keys: Vec<String>,
    }
    LabelSelectorForm is "LabelSelector" { match_labels: BTreeMap<String, String>, match_expressions: Vec<NodeRequirementForm> }
}
