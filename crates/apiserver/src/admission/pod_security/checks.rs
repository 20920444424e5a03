//! The Pod Security Standards: baseline keeps a pod from known ways out of its container, restricted from most of the rest.
//!
//! One function a check, in the order upstream reports them; wording follows `k8s.io/pod-security-admission/policy`.

use std::collections::BTreeSet;

use meta::Value;

use crate::admission::amounts::list;

/// How much a pod is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    pub fn parse(text: &str) -> Option<Self> {
        [Level::Privileged, Level::Baseline, Level::Restricted].into_iter().find(|level| level.as_str() == text)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        }
    }
}

/// What a pod does that it may not.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    pub reason: String,
    pub detail: String,
}

type Check = fn(&Value) -> Option<Violation>;

const BASELINE: &[Check] = &[
    app_armor,
    capabilities_baseline,
    host_namespaces,
    host_path,
    host_ports,
    host_probes,
    privileged,
    proc_mount,
    se_linux,
    seccomp_baseline,
    sysctls,
    windows_host_process,
];
/// Restricted looks closer at some of what baseline does, in place of it.
const RESTRICTED: &[Check] = &[
    app_armor,
    host_namespaces,
    host_ports,
    host_probes,
    privileged,
    proc_mount,
    se_linux,
    sysctls,
    windows_host_process,
    privilege_escalation,
    capabilities_restricted,
    volumes,
    run_as_non_root,
    run_as_user,
    seccomp_restricted,
];

/// All that a pod (or a pod template) does against a level.
pub fn check(level: Level, pod: &Value) -> Vec<Violation> {
    let checks = match level {
        Level::Privileged => return Vec::new(),
        Level::Baseline => BASELINE,
        Level::Restricted => RESTRICTED,
    };
    checks.iter().filter_map(|check| check(pod)).collect()
}

fn violation(reason: &str, detail: String) -> Option<Violation> {
    Some(Violation { reason: reason.into(), detail })
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|field| list(&pod["spec"], field))
}

fn name(of: &Value) -> String {
    of["name"].as_str().unwrap_or_default().into()
}

fn quote<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| format!("\"{}\"", item.as_ref())).collect::<Vec<_>>().join(", ")
}

fn plural(word: &str, count: usize) -> String {
    if count == 1 { word.into() } else { format!("{word}s") }
}

/// `container "a"` or `containers "a", "b"`.
fn named(word: &str, names: &[String]) -> String {
    format!("{} {}", plural(word, names.len()), quote(names))
}

fn bad_containers(pod: &Value, bad: impl Fn(&Value) -> bool) -> Vec<String> {
    containers(pod).filter(|c| bad(c)).map(name).collect()
}

/// `pod and container "a"`: everyone whose security context is bad; empty when none.
fn setters(pod: &Value, bad: impl Fn(&Value) -> bool) -> String {
    let mut out = Vec::new();
    if bad(&pod["spec"]["securityContext"]) {
        out.push("pod".to_string());
    }
    let names = bad_containers(pod, |c| bad(&c["securityContext"]));
    if !names.is_empty() {
        out.push(named("container", &names));
    }
    out.join(" and ")
}

fn contexts(pod: &Value) -> impl Iterator<Item = &Value> {
    std::iter::once(&pod["spec"]["securityContext"]).chain(containers(pod).map(|c| &c["securityContext"]))
}

fn is_windows(pod: &Value) -> bool {
    pod["spec"]["os"]["name"] == "windows"
}

fn app_armor(pod: &Value) -> Option<Violation> {
    let bad = |context: &Value| {
        context["appArmorProfile"]["type"].as_str().is_some_and(|t| !matches!(t, "" | "RuntimeDefault" | "Localhost"))
    };
    let mut said = Vec::new();
    let who = setters(pod, bad);
    if !who.is_empty() {
        let values: BTreeSet<&str> =
            contexts(pod).filter(|c| bad(c)).filter_map(|c| c["appArmorProfile"]["type"].as_str()).collect();
        said.push(format!("{who} must not set AppArmor profile type to {}", quote(values)));
    }
    let annotations = pod["metadata"]["annotations"].as_object();
    let mut values: Vec<String> = annotations
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.starts_with("container.apparmor.security.beta.kubernetes.io/"))
        .filter_map(|(key, value)| Some((key, value.as_str()?)))
        .filter(|(_, value)| !value.is_empty() && *value != "runtime/default" && !value.starts_with("localhost/"))
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    values.sort();
    let count = values.len() + usize::from(!who.is_empty());
    said.extend((!values.is_empty()).then(|| format!("{} {}", plural("annotation", values.len()), values.join(", "))));
    if said.is_empty() { None } else { violation(&plural("forbidden AppArmor profile", count), said.join("; ")) }
}

const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// The containers that add other capabilities than those allowed, in words.
fn added(pod: &Value, allowed: &[&str]) -> Option<String> {
    let other = |c: &Value| -> BTreeSet<String> {
        list(&c["securityContext"]["capabilities"], "add")
            .iter()
            .filter_map(Value::as_str)
            .filter(|cap| !allowed.contains(cap))
            .map(String::from)
            .collect()
    };
    let names = bad_containers(pod, |c| !other(c).is_empty());
    let all: BTreeSet<String> = containers(pod).flat_map(other).collect();
    (!names.is_empty()).then(|| {
        format!("{} must not include {} in securityContext.capabilities.add", named("container", &names), quote(all))
    })
}

fn capabilities_baseline(pod: &Value) -> Option<Violation> {
    violation("non-default capabilities", added(pod, &DEFAULT_CAPABILITIES)?)
}

fn capabilities_restricted(pod: &Value) -> Option<Violation> {
    if is_windows(pod) {
        return None;
    }
    let mut said = Vec::new();
    let keeps =
        bad_containers(pod, |c| !list(&c["securityContext"]["capabilities"], "drop").iter().any(|cap| cap == "ALL"));
    if !keeps.is_empty() {
        said.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", named("container", &keeps)));
    }
    said.extend(added(pod, &["NET_BIND_SERVICE"]));
    if said.is_empty() { None } else { violation("unrestricted capabilities", said.join("; ")) }
}

fn host_namespaces(pod: &Value) -> Option<Violation> {
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|field| pod["spec"][**field] == true)
        .map(|field| format!("{field}=true"))
        .collect();
    if shared.is_empty() { None } else { violation("host namespaces", shared.join(", ")) }
}

fn host_path(pod: &Value) -> Option<Violation> {
    let names: Vec<String> =
        list(&pod["spec"], "volumes").iter().filter(|v| !v["hostPath"].is_null()).map(name).collect();
    if names.is_empty() { None } else { violation("hostPath volumes", named("volume", &names)) }
}

fn host_ports(pod: &Value) -> Option<Violation> {
    let of = |c: &Value| -> BTreeSet<String> {
        list(c, "ports")
            .iter()
            .filter_map(|p| p["hostPort"].as_i64())
            .filter(|p| *p != 0)
            .map(|p| p.to_string())
            .collect()
    };
    let names = bad_containers(pod, |c| !of(c).is_empty());
    let ports: BTreeSet<String> = containers(pod).flat_map(of).collect();
    let uses = if names.len() == 1 { "uses" } else { "use" };
    if names.is_empty() {
        return None;
    }
    let joined = ports.iter().cloned().collect::<Vec<_>>().join(", ");
    violation("hostPort", format!("{} {uses} {} {joined}", named("container", &names), plural("hostPort", ports.len())))
}

/// Probes and hooks are sent by the kubelet: naming a host would send it anywhere.
fn host_probes(pod: &Value) -> Option<Violation> {
    let of = |c: &Value| -> BTreeSet<String> {
        let probes = ["livenessProbe", "readinessProbe", "startupProbe"].iter().map(|p| &c[*p]);
        let hooks = ["postStart", "preStop"].iter().map(|h| &c["lifecycle"][*h]);
        let hosts =
            probes.chain(hooks).flat_map(|handler| [&handler["httpGet"]["host"], &handler["tcpSocket"]["host"]]);
        hosts.filter_map(Value::as_str).filter(|h| !h.is_empty()).map(String::from).collect()
    };
    let names = bad_containers(pod, |c| !of(c).is_empty());
    let hosts: BTreeSet<String> = containers(pod).flat_map(of).collect();
    if names.is_empty() {
        return None;
    }
    let uses = if names.len() == 1 { "uses" } else { "use" };
    violation(
        "probe or lifecycle host",
        format!(
            "{} {uses} probe or lifecycle {} {}",
            named("container", &names),
            plural("host", hosts.len()),
            quote(hosts)
        ),
    )
}

fn privileged(pod: &Value) -> Option<Violation> {
    let names = bad_containers(pod, |c| c["securityContext"]["privileged"] == true);
    if names.is_empty() {
        None
    } else {
        violation("privileged", format!("{} must not set securityContext.privileged=true", named("container", &names)))
    }
}

fn proc_mount(pod: &Value) -> Option<Violation> {
    let of = |c: &Value| {
        c["securityContext"]["procMount"].as_str().filter(|m| !matches!(*m, "" | "Default")).map(String::from)
    };
    let names = bad_containers(pod, |c| of(c).is_some());
    let kinds: BTreeSet<String> = containers(pod).filter_map(of).collect();
    if names.is_empty() {
        None
    } else {
        violation(
            "procMount",
            format!("{} must not set securityContext.procMount to {}", named("container", &names), quote(kinds)),
        )
    }
}

fn se_linux(pod: &Value) -> Option<Violation> {
    let text = |c: &Value, field: &str| c["seLinuxOptions"][field].as_str().unwrap_or_default().to_string();
    let kind = |c: &Value| {
        Some(text(c, "type")).filter(|t| {
            !matches!(t.as_str(), "" | "container_t" | "container_init_t" | "container_kvm_t" | "container_engine_t")
        })
    };
    let who = setters(pod, |c| kind(c).is_some() || !text(c, "user").is_empty() || !text(c, "role").is_empty());
    if who.is_empty() {
        return None;
    }
    let mut said = Vec::new();
    let kinds: BTreeSet<String> = contexts(pod).filter_map(kind).collect();
    if !kinds.is_empty() {
        said.push(format!("{} {}", plural("type", kinds.len()), quote(kinds)));
    }
    for field in ["user", "role"] {
        if contexts(pod).any(|c| !text(c, field).is_empty()) {
            said.push(format!("{field} may not be set"));
        }
    }
    violation("seLinuxOptions", format!("{who} set forbidden securityContext.seLinuxOptions: {}", said.join("; ")))
}

/// Those that set a seccomp profile of no known kind, in words.
fn bad_seccomp(pod: &Value) -> Option<Violation> {
    let of = |c: &Value| {
        c["seccompProfile"]["type"].as_str().filter(|t| !matches!(*t, "RuntimeDefault" | "Localhost")).map(String::from)
    };
    let who = setters(pod, |c| of(c).is_some());
    if who.is_empty() {
        return None;
    }
    let kinds: BTreeSet<String> = contexts(pod).filter_map(of).collect();
    violation("seccompProfile", format!("{who} must not set securityContext.seccompProfile.type to {}", quote(kinds)))
}

fn seccomp_baseline(pod: &Value) -> Option<Violation> {
    bad_seccomp(pod)
}

fn seccomp_restricted(pod: &Value) -> Option<Violation> {
    if is_windows(pod) {
        return None;
    }
    let bad = bad_seccomp(pod);
    if bad.is_some() || !pod["spec"]["securityContext"]["seccompProfile"].is_null() {
        return bad;
    }
    let names = bad_containers(pod, |c| c["securityContext"]["seccompProfile"].is_null());
    if names.is_empty() {
        return None;
    }
    violation(
        "seccompProfile",
        format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            named("container", &names)
        ),
    )
}

const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

fn sysctls(pod: &Value) -> Option<Violation> {
    let names: Vec<String> = list(&pod["spec"]["securityContext"], "sysctls")
        .iter()
        .map(name)
        .filter(|n| !SYSCTLS.contains(&n.as_str()))
        .collect();
    if names.is_empty() { None } else { violation("forbidden sysctls", names.join(", ")) }
}

fn windows_host_process(pod: &Value) -> Option<Violation> {
    let who = setters(pod, |c| c["windowsOptions"]["hostProcess"] == true);
    if who.is_empty() {
        None
    } else {
        violation("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
    }
}

fn privilege_escalation(pod: &Value) -> Option<Violation> {
    let names = bad_containers(pod, |c| c["securityContext"]["allowPrivilegeEscalation"] != false);
    if names.is_empty() || is_windows(pod) {
        return None;
    }
    violation(
        "allowPrivilegeEscalation != false",
        format!("{} must set securityContext.allowPrivilegeEscalation=false", named("container", &names)),
    )
}

const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
    "image",
];

fn volumes(pod: &Value) -> Option<Violation> {
    let allowed = |volume: &Value| VOLUMES.iter().any(|source| !volume[*source].is_null());
    let bad: Vec<&Value> = list(&pod["spec"], "volumes").iter().filter(|v| !allowed(v)).collect();
    if bad.is_empty() {
        return None;
    }
    let names: Vec<String> = bad.iter().copied().map(name).collect();
    let source = |volume: &Value| {
        let fields = volume.as_object().into_iter().flatten();
        fields
            .filter(|(key, value)| *key != "name" && !value.is_null())
            .map(|(key, _)| key.clone())
            .next()
            .unwrap_or_else(|| "unknown".into())
    };
    let kinds: BTreeSet<String> = bad.iter().copied().map(source).collect();
    let uses = if names.len() == 1 { "uses" } else { "use" };
    violation(
        "restricted volume types",
        format!(
            "{} {uses} {} {}",
            named("volume", &names),
            plural("restricted volume type", kinds.len()),
            quote(kinds)
        ),
    )
}

fn run_as_non_root(pod: &Value) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    let who = setters(pod, |c| c["runAsNonRoot"] == false);
    if !who.is_empty() {
        return violation(REASON, format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let names = bad_containers(pod, |c| c["securityContext"]["runAsNonRoot"].is_null());
    if names.is_empty() || pod["spec"]["securityContext"]["runAsNonRoot"] == true {
        return None;
    }
    violation(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", named("container", &names)))
}

fn run_as_user(pod: &Value) -> Option<Violation> {
    let who = setters(pod, |c| c["runAsUser"] == 0);
    if who.is_empty() { None } else { violation("runAsUser=0", format!("{who} must not set runAsUser=0")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn standards() {
        let pod = |spec: Value, container: Value| {
            let mut c = json!({"name": "c"});
            crate::testing::merge(&mut c, container);
            let mut pod = json!({"spec": {"containers": [c]}});
            crate::testing::merge(&mut pod, json!({"spec": spec}));
            pod
        };
        let good = json!({"securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}});
        let with = |extra: Value| {
            let mut c = good.clone();
            crate::testing::merge(&mut c, extra);
            c
        };
        let context = |c: Value| json!({"securityContext": c});
        use Level::{Baseline, Privileged, Restricted};
        for (level, pod, expect) in [
            (Privileged, pod(json!({"hostNetwork": true}), json!({})), ""),
            (Baseline, pod(json!({}), json!({})), ""),
            (Restricted, pod(json!({}), good.clone()), ""),
            (
                Restricted,
                pod(json!({}), json!({})),
                "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
            ),
            (
                Baseline,
                pod(json!({"hostNetwork": true, "hostPID": true}), json!({})),
                "host namespaces (hostNetwork=true, hostPID=true)",
            ),
            (
                Baseline,
                pod(json!({"volumes": [{"name": "h", "hostPath": {"path": "/"}}]}), json!({})),
                "hostPath volumes (volume \"h\")",
            ),
            (
                Restricted,
                pod(
                    json!({"volumes": [{"name": "h", "hostPath": {"path": "/"}}, {"name": "e", "emptyDir": {}}]}),
                    good.clone(),
                ),
                "restricted volume types (volume \"h\" uses restricted volume type \"hostPath\")",
            ),
            (
                Baseline,
                pod(json!({}), json!({"ports": [{"hostPort": 80}, {"hostPort": 0}]})),
                "hostPort (container \"c\" uses hostPort 80)",
            ),
            (
                Baseline,
                pod(json!({}), context(json!({"privileged": true}))),
                "privileged (container \"c\" must not set securityContext.privileged=true)",
            ),
            (
                Baseline,
                pod(json!({}), context(json!({"capabilities": {"add": ["NET_RAW", "CHOWN"]}}))),
                "non-default capabilities (container \"c\" must not include \"NET_RAW\" in securityContext.capabilities.add)",
            ),
            (
                Restricted,
                pod(json!({}), with(context(json!({"capabilities": {"add": ["CHOWN", "NET_BIND_SERVICE"]}})))),
                "unrestricted capabilities (container \"c\" must not include \"CHOWN\" in securityContext.capabilities.add)",
            ),
            (
                Baseline,
                pod(context(json!({"seccompProfile": {"type": "Unconfined"}})), json!({})),
                "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                Baseline,
                pod(
                    context(
                        json!({"sysctls": [{"name": "kernel.msgmax", "value": "1"}, {"name": "net.ipv4.tcp_rmem", "value": "1"}]}),
                    ),
                    json!({}),
                ),
                "forbidden sysctls (kernel.msgmax)",
            ),
            (
                Baseline,
                pod(context(json!({"seLinuxOptions": {"type": "t", "user": "u"}})), json!({})),
                "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"t\"; user may not be set)",
            ),
            (
                Baseline,
                pod(json!({}), context(json!({"procMount": "Unmasked"}))),
                "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")",
            ),
            (
                Restricted,
                pod(context(json!({"runAsUser": 0})), good.clone()),
                "runAsUser=0 (pod must not set runAsUser=0)",
            ),
            (
                Restricted,
                pod(json!({}), with(context(json!({"runAsNonRoot": false})))),
                "runAsNonRoot != true (container \"c\" must not set securityContext.runAsNonRoot=false)",
            ),
            (
                Baseline,
                pod(context(json!({"windowsOptions": {"hostProcess": true}})), json!({})),
                "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
            ),
        ] {
            let said: Vec<String> =
                check(level, &pod).into_iter().map(|v| format!("{} ({})", v.reason, v.detail)).collect();
            assert_eq!(said.join(", "), expect, "{pod}");
        }
    }
}
