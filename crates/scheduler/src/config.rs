//! `KubeSchedulerConfiguration` (`kubescheduler.config.k8s.io/v1`): read strictly, given its defaults, checked, and turned
//! into profiles; each step as upstream takes it, complaining in upstream's words.
//!
//! Every field of the v1 form is known here. What has no meaning for this scheduler (how many nodes to look at: it looks at
//! all) is accepted. It does not know where the file came from.

mod arguments;
mod extenders;
mod file;
mod mistakes;
mod plugins;

use std::time::Duration;

use serde_json::{Value, json};

use crate::extender::Settings;
use crate::profile::{Profile, ProfileRef};
use arguments::Arguments;
use file::{At, File, Form, LeaderElectionFile, ProfileFile};
use mistakes::Mistakes;
use plugins::{Enabled, Point};

pub use plugins::Gates;

const GROUP: &str = "kubescheduler.config.k8s.io";
const GROUP_VERSION: &str = "kubescheduler.config.k8s.io/v1";
/// The largest weight that scores are added up with; upstream's own end lies where sums overflow.
const MAX_WEIGHT: i64 = 1_000_000;
/// More profiles than anybody has schedulers.
const MAX_PROFILES: usize = 64;
/// What complaints about unknown fields begin with.
const STRICT: &str = "strict decoding error: ";
const DEFAULT_NAME: &str = "default-scheduler";

/// What a configuration file says.
#[derive(Clone, Debug)]
pub struct Configuration {
    pub profiles: Vec<ProfileRef>,
    pub pod_initial_backoff: Duration,
    pub pod_max_backoff: Duration,
    pub extenders: Vec<Settings>,
    pub leader_election: LeaderElection,
    /// `clientConnection.kubeconfig`
    pub kubeconfig: Option<String>,
    /// `delayCacheUntilActive`: list nothing before leading.
    pub delay_cache: bool,
    /// All of it with its defaults, as `/configz` shows it.
    pub document: Value,
}

impl Configuration {
    /// What holds without a file.
    pub fn usual(gates: Gates) -> Result<Self, Wrong> {
        read(&nothing_said(), gates)
    }
}

/// A file that says nothing.
pub fn nothing_said() -> Value {
    json!({"apiVersion": GROUP_VERSION, "kind": "KubeSchedulerConfiguration"})
}

/// How leadership is held, where there are several schedulers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderElection {
    pub elect: bool,
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
    pub name: String,
    pub namespace: String,
}

/// What is wrong with a file, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Wrong(String);

/// A duration as Go writes it, in nanoseconds.
fn time(text: &str) -> Option<i64> {
    meta::time::parse_duration(text)
}

fn duration(text: Option<&String>) -> Duration {
    let nanos = text.and_then(|t| time(t)).and_then(|t| u64::try_from(t).ok());
    Duration::from_nanos(nanos.unwrap_or_default())
}

/// What Go says of a text that is no duration.
fn no_duration(text: &str) -> String {
    const UNITS: [&str; 8] = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"];
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    while let Some(end) = rest.find(|c: char| !c.is_ascii_digit() && c != '.').or(Some(rest.len())).filter(|e| *e > 0) {
        let after = &rest[end..];
        let unit = &after[..after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len())];
        if unit.is_empty() {
            return format!("time: missing unit in duration {text:?}");
        }
        if !UNITS.contains(&unit) {
            return format!("time: unknown unit {unit:?} in duration {text:?}");
        }
        rest = &after[unit.len()..];
    }
    format!("time: invalid duration {text:?}")
}

/// Where a text is not base64, as Go counts it.
fn not_base64(text: &str) -> Option<usize> {
    let data: Vec<u8> = text.bytes().filter(|b| !matches!(b, b'\r' | b'\n')).collect();
    let padding = data.iter().rev().take(2).take_while(|b| **b == b'=').count();
    let is_of_it = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
    let illegal = data[..data.len() - padding].iter().position(|b| !is_of_it(b));
    illegal.or((!data.len().is_multiple_of(4)).then_some(data.len() / 4 * 4))
}

/// All times of a file.
fn times(file: &File) -> impl Iterator<Item = &String> {
    let lease = &file.leader_election;
    let times = [&lease.lease_duration, &lease.renew_deadline, &lease.retry_period].into_iter().flatten();
    times.chain(file.extenders.iter().filter_map(|e| e.http_timeout.as_ref()))
}

/// What Go's decoder says where version and kind are looked for and there are no fields.
fn not_an_object(raw: &Value) -> Option<String> {
    const WANTED: &str =
        r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
    let look = "couldn't get version/kind; json parse error: json: cannot unmarshal";
    let name = |value: &Value| match value {
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        _ => "object",
    };
    match raw {
        Value::Null => None,
        Value::Object(fields) => ["apiVersion", "kind"].into_iter().find_map(|field| {
            let value = fields.get(field).filter(|v| !v.is_null() && !v.is_string())?;
            Some(format!("{look} {} into Go struct field .{field} of type string", name(value)))
        }),
        _ => Some(format!("{look} {} into Go value of type {WANTED}", name(raw))),
    }
}

/// A value without what is null, which is as good as absent.
fn without_nulls(raw: &Value) -> Value {
    match raw {
        Value::Object(map) => Value::Object(
            map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v))).collect(),
        ),
        Value::Array(list) => list.iter().filter(|v| !v.is_null()).map(without_nulls).collect(),
        other => other.clone(),
    }
}

/// The form, if the text has it.
fn decode(raw: &Value) -> Result<File, Wrong> {
    if let Some(wrong) = not_an_object(raw) {
        return Err(Wrong(wrong));
    }
    let text = |name: &str| raw[name].as_str().unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if kind.is_empty() {
        let shown = if raw.is_null() { String::new() } else { raw.to_string() };
        return Err(Wrong(format!("Object 'Kind' is missing in '{shown}'")));
    }
    if version.is_empty() {
        return Err(Wrong(format!("Object 'apiVersion' is missing in '{raw}'")));
    }
    if version != GROUP_VERSION || kind != "KubeSchedulerConfiguration" {
        return Err(Wrong(format!("no kind {kind:?} is registered for version {version:?}")));
    }
    if let Some(wrong) = File::wrong(raw, At::TOP) {
        return Err(Wrong(wrong));
    }
    let mut unknown = Vec::new();
    File::unknown(raw, "", &mut unknown);
    if !unknown.is_empty() {
        return Err(Wrong(format!("{STRICT}{}", unknown.join(", "))));
    }
    let file: File = serde_json::from_value(without_nulls(raw)).map_err(|e| Wrong(e.to_string()))?;
    if let Some(text) = times(&file).find(|t| time(t).is_none()) {
        return Err(Wrong(no_duration(text)));
    }
    let tls = file.extenders.iter().filter_map(|e| e.tls_config.as_ref());
    let data = tls.flat_map(|t| [&t.cert_data, &t.key_data, &t.ca_data]).flatten();
    if let Some(at) = data.filter_map(|d| not_base64(d)).next() {
        return Err(Wrong(format!("illegal base64 data at input byte {at}")));
    }
    Ok(file)
}

/// Fills in what the file leaves open.
fn fill(file: &mut File, gates: Gates) {
    file.parallelism.get_or_insert(16);
    file.enable_profiling.get_or_insert(true);
    file.enable_contention_profiling.get_or_insert(true);
    file.percentage_of_nodes_to_score.get_or_insert(0);
    file.pod_initial_backoff_seconds.get_or_insert(1);
    file.pod_max_backoff_seconds.get_or_insert(10);
    if file.profiles.is_empty() {
        file.profiles.push(ProfileFile::default());
    }
    if let [only] = file.profiles.as_mut_slice() {
        only.scheduler_name.get_or_insert_with(|| DEFAULT_NAME.into());
    }
    for profile in &mut file.profiles {
        profile.plugins = Some(plugins::merge(profile.plugins.as_ref(), gates));
    }
    let client = &mut file.client_connection;
    client.kubeconfig.get_or_insert_default();
    client.accept_content_types.get_or_insert_default();
    client.content_type.get_or_insert_with(|| "application/vnd.kubernetes.protobuf".into());
    client.qps.get_or_insert(50.0);
    client.burst.get_or_insert(100);
    let lease = &mut file.leader_election;
    lease.leader_elect.get_or_insert(true);
    let usual = |field: &mut Option<String>, value: &str| {
        if field.as_ref().is_none_or(String::is_empty) {
            *field = Some(value.into());
        }
    };
    usual(&mut lease.lease_duration, "15s");
    usual(&mut lease.renew_deadline, "10s");
    usual(&mut lease.retry_period, "2s");
    usual(&mut lease.resource_lock, "leases");
    usual(&mut lease.resource_name, "kube-scheduler");
    usual(&mut lease.resource_namespace, "kube-system");
    for extender in &mut file.extenders {
        if extender.http_timeout.as_deref().is_none_or(|t| time(t) == Some(0)) {
            extender.http_timeout = Some("5s".into());
        }
    }
}

fn check_lease(lease: &LeaderElectionFile, out: &mut Mistakes) {
    if lease.leader_elect == Some(false) {
        return;
    }
    let at = |name: &str| format!("leaderElection.{name}");
    let times = [
        ("leaseDuration", &lease.lease_duration),
        ("renewDeadline", &lease.renew_deadline),
        ("retryPeriod", &lease.retry_period),
    ];
    for (name, text) in times {
        let text = text.as_deref().unwrap_or_default();
        if time(text).is_none_or(|t| t <= 0) {
            out.invalid(at(name), format_args!("{text:?}"), "must be greater than zero");
        }
    }
    let [whole, renew, retry] = times.map(|(_, text)| duration(text.as_ref()));
    if whole <= renew {
        let value = lease.renew_deadline.as_deref().unwrap_or_default();
        out.invalid(at("leaseDuration"), format_args!("{value:?}"), "LeaseDuration must be greater than RenewDeadline");
    }
    // How much longer than asked it may be between two tries.
    if renew <= retry.mul_f64(1.2) {
        out.say("couldn't create leader elector: renewDeadline must be greater than retryPeriod*JitterFactor");
    }
    if let Some(lock) = lease.resource_lock.as_deref().filter(|l| *l != "leases") {
        out.invalid(at("resourceLock"), format_args!("{lock:?}"), "resourceLock value must be \"leases\"");
    }
}

fn check_percent(percent: Option<i32>, path: &str, out: &mut Mistakes) {
    if let Some(percent) = percent.filter(|p| !(0..=100).contains(p)) {
        out.invalid(format!("{path}percentageOfNodesToScore"), percent, "not in valid range [0-100]");
    }
}

fn check(file: &File, arguments: &[Vec<(String, Arguments)>], gates: Gates, out: &mut Mistakes) {
    if let Some(burst) = file.client_connection.burst.filter(|b| *b < 0) {
        out.invalid("clientConnection.burst", burst, "must be non-negative");
    }
    check_lease(&file.leader_election, out);
    if let Some(n) = file.parallelism.filter(|n| *n <= 0) {
        out.invalid("parallelism", n, "should be an integer value greater than zero");
    }
    if file.profiles.len() > MAX_PROFILES {
        out.say(format!("profiles: Too many: {}: must have at most {MAX_PROFILES} items", file.profiles.len()));
    }
    for (at, profile) in file.profiles.iter().enumerate() {
        let path = format!("profiles[{at}]");
        let name = profile.scheduler_name.as_deref().unwrap_or_default();
        if name.is_empty() {
            out.required(format!("{path}.schedulerName"), "");
        }
        check_percent(profile.percentage_of_nodes_to_score, &format!("{path}."), out);
        for (of, (plugin, args)) in arguments[at].iter().enumerate() {
            let path = format!("{path}.pluginConfig[{of}]");
            if arguments[at][..of].iter().any(|a| a.0 == *plugin) {
                out.duplicate(&path, plugin);
            }
            args.check(&format!("{path}.args"), gates, out);
        }
        let known = |p: &ProfileFile| p.scheduler_name.as_deref().unwrap_or_default() == name;
        if let Some(first) = file.profiles[..at].iter().position(known) {
            out.say(format!("{path}.schedulerName: Duplicate value: profiles[{first}].schedulerName"));
        }
        let sorts = |p: &ProfileFile| p.plugins.as_ref().map(|p| p.queue_sort.clone());
        let (own, first) = (sorts(profile), sorts(&file.profiles[0]));
        if at == 0
            && let Some(several) = own.as_ref().map(|s| s.enabled.len()).filter(|n| *n > 1)
        {
            out.invalid(
                format!("{path}.plugins.queueSort.Enabled"),
                several,
                "only one queue sort plugin can be enabled",
            );
        }
        if own != first {
            let shown = serde_json::to_string(&own).unwrap_or_default().replace("[]", "null");
            out.invalid(format!("{path}.plugins.queueSort"), shown, "has to match for all profiles");
        }
    }
    check_percent(file.percentage_of_nodes_to_score, "", out);
    let (first, most) =
        (file.pod_initial_backoff_seconds.unwrap_or_default(), file.pod_max_backoff_seconds.unwrap_or_default());
    if first <= 0 {
        out.invalid("podInitialBackoffSeconds", first, "must be greater than 0");
    }
    if most < first {
        out.invalid("podMaxBackoffSeconds", most, "must be greater than or equal to PodInitialBackoffSeconds");
    }
    extenders::check(&file.extenders, out);
}

/// One profile, from its sets and arguments.
fn profile(from: &ProfileFile, arguments: &[(String, Arguments)]) -> Result<Profile, Wrong> {
    let name = from.scheduler_name.clone().unwrap_or_default();
    let wrong =
        |why: String| Wrong(format!("initializing profiles: creating profile for scheduler name {name}: {why}"));
    let sets = from.plugins.clone().unwrap_or_default();
    let enabled = Enabled::of(&sets).map_err(wrong)?;
    let sorts = enabled.count(Point::QueueSort);
    if sorts != 1 {
        let what = "only one queue sort plugin required for profile with scheduler name";
        return Err(wrong(format!("{what} {name:?}, but got {sorts}")));
    }
    if enabled.count(Point::Bind) == 0 {
        return Err(wrong(format!("at least one bind plugin is needed for profile with scheduler name {name:?}")));
    }
    if let Some((plugin, weight)) = enabled.beyond(0..=MAX_WEIGHT) {
        return Err(wrong(format!("plugin {plugin:?}: weight {weight} is not in the range 0 to {MAX_WEIGHT}")));
    }
    let mut out = Profile { scheduler_name: name.as_str().into(), filters: enabled.filters(), ..Profile::default() };
    let score = |name: &str| enabled.weight(Point::Score, name).unwrap_or(0);
    let w = &mut out.weights;
    w.taint_toleration = score("TaintToleration");
    w.node_affinity = score("NodeAffinity");
    w.node_resources_fit = score("NodeResourcesFit");
    w.node_resources_balanced_allocation = score("NodeResourcesBalancedAllocation");
    w.pod_topology_spread = score("PodTopologySpread");
    w.inter_pod_affinity = score("InterPodAffinity");
    w.image_locality = score("ImageLocality");
    w.dynamic_resources = score("DynamicResources");
    w.volume_binding = score("VolumeBinding");
    let placement = |name: &str| enabled.weight(Point::PlacementScore, name).unwrap_or(0);
    w.placement_pods_count = placement("PodGroupPodsCount");
    w.placement_fit = placement("NodeResourcesFit");
    out.preempts = enabled.has(Point::PostFilter, "DefaultPreemption");
    out.preempts_for_groups = enabled.has(Point::PodGroupPostFilter, "DefaultPreemption");
    out.generates_placements = enabled.has(Point::PlacementGenerate, "TopologyPlacementGenerator");
    arguments.iter().for_each(|(_, args)| args.apply(&mut out));
    Ok(out)
}

/// The document that `/configz` shows.
fn document(file: &File, arguments: &[Vec<(String, Arguments)>]) -> Value {
    /// Lists without items are null in Go.
    fn as_go_has_it(value: &mut Value) {
        match value {
            Value::Array(list) if list.is_empty() => *value = Value::Null,
            Value::Array(list) => list.iter_mut().for_each(as_go_has_it),
            Value::Object(map) => map.values_mut().for_each(as_go_has_it),
            _ => {}
        }
    }
    let mut out = serde_json::to_value(file).unwrap_or_default();
    let profiles = out["Profiles"].as_array_mut().into_iter().flatten();
    for (profile, arguments) in profiles.zip(arguments) {
        profile["PluginConfig"] = arguments.iter().map(|(name, args)| json!({"Name": name, "Args": args})).collect();
    }
    as_go_has_it(&mut out);
    out
}

/// A shown document in the form that files have.
pub fn written(document: &Value) -> Value {
    /// Names that are no other's with a small first letter.
    const NAMES: [(&str, &str); 7] = [
        ("URLPrefix", "urlPrefix"),
        ("EnableHTTPS", "enableHTTPS"),
        ("TLSConfig", "tlsConfig"),
        ("HTTPTimeout", "httpTimeout"),
        ("CAFile", "caFile"),
        ("CAData", "caData"),
        ("QPS", "qps"),
    ];
    fn name(field: &str) -> String {
        if let Some((_, name)) = NAMES.iter().find(|(known, _)| *known == field) {
            return (*name).into();
        }
        let mut letters = field.chars();
        letters.next().map(|first| first.to_ascii_lowercase().to_string() + letters.as_str()).unwrap_or_default()
    }
    fn of(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                map.iter().filter(|(_, v)| !v.is_null()).map(|(field, value)| (name(field), of(value))).collect()
            }
            Value::Array(list) => list.iter().map(of).collect(),
            other => other.clone(),
        }
    }
    let mut out = of(document);
    out["kind"] = "KubeSchedulerConfiguration".into();
    for profile in out["profiles"].as_array_mut().into_iter().flatten() {
        // The default set is merged in already.
        profile["plugins"]["multiPoint"]["disabled"] = json!([{"name": "*"}]);
        for config in profile["pluginConfig"].as_array_mut().into_iter().flatten() {
            let kind = format!("{}Args", config["name"].as_str().unwrap_or_default());
            config["args"]["apiVersion"] = GROUP_VERSION.into();
            config["args"]["kind"] = kind.into();
        }
    }
    out
}

/// Reads a configuration, parsed from YAML or JSON.
pub fn read(raw: &Value, gates: Gates) -> Result<Configuration, Wrong> {
    let mut file = decode(raw)?;
    fill(&mut file, gates);
    let mut arguments = Vec::with_capacity(file.profiles.len());
    for (at, profile) in file.profiles.iter().enumerate() {
        let mut all = Vec::new();
        for (of, given) in profile.plugin_config.iter().enumerate() {
            let args = Arguments::of(given, gates).map_err(|why| {
                let strict = if why.starts_with(STRICT) { STRICT } else { "" };
                Wrong(format!("{strict}decoding .profiles[{at}].pluginConfig[{of}]: {why}"))
            })?;
            all.push((given.name.clone(), args));
        }
        for name in profile.plugins.iter().flat_map(plugins::names) {
            if all.iter().all(|(known, _)| *known != name)
                && let Some(args) = Arguments::usual(&name, gates)
            {
                all.push((name, args));
            }
        }
        arguments.push(all);
    }
    let mut wrong = Mistakes::default();
    check(&file, &arguments, gates, &mut wrong);
    wrong.none()?;
    let ignored = extenders::ignored(&file.extenders);
    let mut profiles: Vec<ProfileRef> = Vec::with_capacity(file.profiles.len());
    for (from, arguments) in file.profiles.iter().zip(&arguments) {
        let mut made = profile(from, arguments)?;
        made.fit.ignore(&ignored);
        profiles.push(ProfileRef::new(made));
    }
    let seconds = |s: Option<i64>| Duration::from_secs(s.and_then(|s| u64::try_from(s).ok()).unwrap_or_default());
    let lease = &file.leader_election;
    Ok(Configuration {
        profiles,
        document: document(&file, &arguments),
        pod_initial_backoff: seconds(file.pod_initial_backoff_seconds),
        pod_max_backoff: seconds(file.pod_max_backoff_seconds),
        leader_election: LeaderElection {
            elect: lease.leader_elect.unwrap_or(true),
            lease_duration: duration(lease.lease_duration.as_ref()),
            renew_deadline: duration(lease.renew_deadline.as_ref()),
            retry_period: duration(lease.retry_period.as_ref()),
            name: lease.resource_name.clone().unwrap_or_default(),
            namespace: lease.resource_namespace.clone().unwrap_or_default(),
        },
        kubeconfig: file.client_connection.kubeconfig.clone().filter(|k| !k.is_empty()),
        delay_cache: file.delay_cache_until_active,
        extenders: file.extenders.into_iter().map(extenders::settings).collect(),
    })
}

#[cfg(test)]
mod tests;
