//! A pod's spec as a whole, in pods and templates alike.

use super::{At, Errors, containers, formats, resources, scheduling, security, volumes};
use crate::metadata;
use meta::Tree;

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_BYTES: usize = 2048;

fn dns(spec: &At<'_>, errors: &mut Errors) {
    errors.need_one_of(&spec.child("dnsPolicy"), &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]);
    let (config, none) = (spec.child("dnsConfig"), spec.value.text("dnsPolicy") == "None");
    let servers = config.child("nameservers");
    let count = servers.value.list("").len();
    if none && !config.there() {
        return errors.required(&config, "must provide `dnsConfig` when `dnsPolicy` is None");
    }
    if none && count == 0 {
        return errors.required(&servers, "must provide at least one DNS nameserver when `dnsPolicy` is None");
    }
    if count > MAX_NAMESERVERS {
        errors.invalid(&servers, format!("must not have more than {MAX_NAMESERVERS} nameservers"));
    }
    for server in servers.items() {
        errors.format(&server, formats::ip);
    }
    let searches = config.child("searches");
    let texts: Vec<&str> = searches.items().map(|s| s.str()).collect();
    if texts.len() > MAX_SEARCHES {
        errors.invalid(&searches, format!("must not have more than {MAX_SEARCHES} search paths"));
    }
    if texts.join(" ").len() > MAX_SEARCH_BYTES {
        errors.invalid(
            &searches,
            format!("must not have more than {MAX_SEARCH_BYTES} characters (including spaces) in the search list"),
        );
    }
    for search in searches.items().filter(|s| s.str() != ".") {
        for complaint in formats::relaxed_subdomain(search.str().trim_end_matches('.')) {
            errors.invalid(&search, complaint);
        }
    }
    for option in config.each("options").filter(|o| o.child("name").blank()) {
        errors.required(&option, "must not be empty");
    }
}

/// A pod's spec. `pod` is the name of the pod, empty in templates.
pub fn spec(spec: &At<'_>, pod: &str, errors: &mut Errors) {
    let volumes = volumes::volumes(&spec.child("volumes"), !pod.is_empty(), errors);
    if !pod.is_empty() {
        volumes::ephemeral_claims(spec, pod, errors);
    }
    containers::of_spec(spec, &volumes, errors);
    errors.need_one_of(&spec.child("restartPolicy"), &["Always", "Never", "OnFailure"]);
    dns(spec, errors);
    security::of_pod(spec, errors);
    scheduling::of_spec(spec, errors);
    for gate in spec.each("readinessGates") {
        errors.format(&gate.child("conditionType"), formats::qualified_name);
    }
    for name in ["serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"] {
        errors.may_format(&spec.child(name), formats::dns_subdomain);
    }
    for name in ["hostname", "subdomain"] {
        errors.may_format(&spec.child(name), formats::dns_label);
    }
    let deadline = spec.child("activeDeadlineSeconds");
    if deadline.number().is_some_and(|s| !(1..=i64::from(i32::MAX)).contains(&s)) {
        errors.invalid(&deadline, format!("must be between 1 and {}, inclusive", i32::MAX));
    }
    host_name(spec, errors);
    errors.may_one_of(&spec.child("preemptionPolicy"), &["Never", "PreemptLowerPriority"]);
    for alias in spec.each("hostAliases") {
        errors.format(&alias.child("ip"), formats::ip);
        for name in alias.each("hostnames") {
            errors.format(&name, formats::dns_subdomain);
        }
    }
    resources::list(&spec.child("overhead"), errors);
    resources::requirements(&spec.child("resources"), errors);
    let os = spec.child("os");
    if os.there() && errors.need(&os.child("name"), "") {
        errors.one_of(&At { path: os.path.clone(), ..os.child("name") }, &["linux", "windows"]);
        security::of_system(spec, errors);
    }
    security::host_processes(spec, errors);
    if spec.value.at("hostUsers") == false {
        for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
            if spec.value.flag(field) {
                errors.forbidden(&spec.child(shown), "when `hostUsers` is false");
            }
        }
        for container in security::containers(spec) {
            if !container.value.list("volumeDevices").is_empty() {
                errors.forbidden(&container.child("volumeDevices"), "when `hostUsers` is false");
            }
        }
    }
    let claims = || spec.each("resourceClaims").map(|c| c.child("name"));
    for claim in spec.each("resourceClaims") {
        errors.need_format(&claim.child("name"), formats::dns_label);
        let names = ["resourceClaimName", "resourceClaimTemplateName"].map(|f| claim.child(f));
        match names.iter().filter(|name| name.there()).count() {
            0 => errors.invalid(&claim, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"),
            1 => {}
            _ => {
                let detail = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                errors.invalid(&claim, detail);
            }
        }
        names.iter().for_each(|name| errors.format_if_set(name, formats::dns_subdomain));
    }
    errors.unique(claims());
    containers::variable_files(spec, errors);
}

/// The name a pod has instead of its own.
fn host_name(spec: &At<'_>, errors: &mut Errors) {
    const MAX: usize = 64;
    let name = spec.child("hostnameOverride");
    if !name.there() {
        return;
    }
    for field in ["setHostnameAsFQDN", "hostNetwork"].into_iter().filter(|f| spec.value.flag(f)) {
        errors.forbidden(&name, format!("may not be specified when {field} is true"));
    }
    if name.str().len() > MAX {
        errors.too_long(&name, MAX);
    }
    errors.format(&name, formats::dns_subdomain);
}

/// A pod template: metadata and spec.
pub fn template(template: &At<'_>, errors: &mut Errors) {
    // Upstream leaves `metadata` out of these paths.
    metadata::template(&At { value: template.value.at("metadata"), path: template.path.clone() }, errors);
    spec(&template.child("spec"), "", errors);
    if !template.value.list("spec.ephemeralContainers").is_empty() {
        errors
            .forbidden(&template.child("spec.ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

#[cfg(test)]
mod tests {
    use meta::Value;
    use serde_json::json;

    use super::*;
    use crate::validate::tests::expect;

    /// A good spec with some of its fields replaced, after defaulting.
    fn spec_with(changes: Value) -> Value {
        let mut object = json!({"spec": {"containers": [{"name": "a", "image": "x:1"}]}});
        for (field, value) in changes.as_object().unwrap() {
            object["spec"][field] = value.clone();
        }
        crate::defaults::pod(&mut object);
        object["spec"].take()
    }

    #[test]
    fn pod_specs_are_checked_in_depth() {
        let check = |changes: Value, expected: &[&str]| {
            let value = spec_with(changes);
            let mut errors = Errors::default();
            spec(&At::new(&value, "spec"), "pod", &mut errors);
            expect(&errors.0, expected, &value);
        };
        let with = |fields: Value| {
            let mut container = json!({"name": "a", "image": "x:1"});
            container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            json!({"containers": [container]})
        };
        check(json!({}), &[]);
        check(json!({"containers": []}), &["spec.containers: Required value"]);
        check(
            json!({"containers": [{"name": "a", "image": "x"}, {"name": "a", "image": ""}]}),
            &["spec.containers[1].image: Required value", "spec.containers[1].name: Duplicate value: \"a\""],
        );
        check(with(json!({"image": null})), &["spec.containers[0].image: Required value"]);
        check(
            with(json!({"imagePullPolicy": "x"})),
            &[
                "spec.containers[0].imagePullPolicy: Unsupported value: \"x\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            ],
        );
        check(
            with(
                json!({"ports": [{"containerPort": 0}, {"containerPort": 70000}, {"containerPort": 1, "protocol": "X"}]}),
            ),
            &[
                "spec.containers[0].ports[0].containerPort: Required value",
                "spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "spec.containers[0].ports[2].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ],
        );
        check(
            with(json!({"ports": [{"containerPort": 1, "hostPort": 9}, {"containerPort": 2, "hostPort": 9}]})),
            &["spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//9\""],
        );
        check(
            with(json!({"volumeMounts": [{"name": "v", "mountPath": "/x"}]})),
            &["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
        );
        check(
            with(json!({"env": [{"name": "A=B", "value": "x"}, {"name": "C", "valueFrom": {}}]})),
            &[
                "spec.containers[0].env[0].name: Invalid value: \"A=B\": a valid environment variable name must consist only of printable ASCII characters other than '='",
                "spec.containers[0].env[1].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            ],
        );
        check(
            with(json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}},
            {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "status.nothing"}}}]})),
            &[
                "spec.containers[0].env[1].valueFrom.fieldRef.fieldPath: Invalid value: \"status.nothing\": error converting fieldPath: field label not supported: status.nothing",
            ],
        );
        check(
            with(json!({"livenessProbe": {"successThreshold": 2, "tcpSocket": {"port": "x"}}, "readinessProbe": {}})),
            &[
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
                "spec.containers[0].readinessProbe: Required value: must specify a handler type",
            ],
        );
        check(
            with(json!({"securityContext": {"runAsUser": -1, "privileged": true, "allowPrivilegeEscalation": false}})),
            &[
                "spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
                "spec.containers[0].securityContext: Invalid value: {\"allowPrivilegeEscalation\":false,\"privileged\":true,\"runAsUser\":-1}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            ],
        );
        check(
            json!({"volumes": [{"name": "v", "emptyDir": {}, "secret": {"secretName": "s"}}, {"name": "A", "configMap": {}}]}),
            &[
                "spec.volumes[0].secret: Forbidden: may not specify more than 1 volume type",
                "spec.volumes[1].configMap.name: Required value",
                "spec.volumes[1].name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
            ],
        );
        check(
            json!({"initContainers": [{"name": "a", "image": "x", "livenessProbe": {"exec": {"command": ["x"]}}}]}),
            &[
                "spec.initContainers[0].name: Duplicate value: \"a\"",
                "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
            ],
        );
        check(
            json!({"restartPolicy": "Sometimes", "dnsPolicy": "None", "activeDeadlineSeconds": 0}),
            &[
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
                "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
                "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
            ],
        );
        check(
            json!({"tolerations": [{"operator": "Equal"}, {"key": "a", "operator": "Exists", "tolerationSeconds": 1}]}),
            &[
                "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
                "spec.tolerations[1].effect: Invalid value: \"\": effect must be 'NoExecute' when `tolerationSeconds` is set",
            ],
        );
        check(
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}},
            "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 0, "podAffinityTerm": {"topologyKey": "a"}}]}}}),
            &[
                "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
                "spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 0: must be in the range 1-100",
            ],
        );
        check(
            json!({"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "X"}]}),
            &[
                "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
                "spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"X\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\"",
            ],
        );
    }
}
