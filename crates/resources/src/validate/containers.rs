//! Containers: what all have in common, and what init and ephemeral ones may not have.

use std::collections::HashSet;

use super::volumes::{descending_path, field_ref, resource_ref};
use super::{At, Errors, formats, resources, security};
use meta::Tree;

/// Fields the downward API shows in the environment.
pub const DOWNWARD_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];

fn ports(at: &At<'_>, errors: &mut Errors) {
    let mut names = HashSet::new();
    for port in at.items() {
        let name = port.child("name");
        if !name.blank() {
            let complaints = formats::port_name(name.str());
            if complaints.is_empty() && !names.insert(name.str()) {
                errors.duplicate(&name);
            }
            for complaint in complaints {
                errors.invalid(&name, complaint);
            }
        }
        let number = port.child("containerPort");
        if number.number().unwrap_or(0) == 0 {
            errors.required(&number, "");
        } else {
            errors.port(&number);
        }
        if port.value.int("hostPort") != 0 {
            errors.port(&port.child("hostPort"));
        }
        errors.need_one_of(&port.child("protocol"), &PROTOCOLS);
        errors.may_format(&port.child("hostIP"), formats::ip);
    }
}

fn environment(container: &At<'_>, errors: &mut Errors) {
    const ONE: &str = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
    for variable in container.each("env") {
        errors.need_format(&variable.child("name"), formats::env_name);
        let from = variable.child("valueFrom");
        if !from.there() {
            continue;
        }
        let (field, resource) = (from.child("fieldRef"), from.child("resourceFieldRef"));
        let count = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"]
            .iter()
            .filter(|f| from.value.has(f))
            .count();
        if field.there() {
            let mut fields = DOWNWARD_FIELDS.to_vec();
            fields.sort_unstable();
            field_ref(&field, &fields, errors);
        }
        if resource.there() {
            resource_ref(&resource, false, errors);
        }
        for source in ["configMapKeyRef", "secretKeyRef"].map(|s| from.child(s)).into_iter().filter(At::there) {
            errors.format(&source.child("name"), formats::dns_subdomain);
            errors.need_format(&source.child("key"), formats::config_key);
        }
        match count {
            0 => errors.invalid_as(&from, "", ONE),
            _ if !variable.value.text("value").is_empty() => {
                errors.invalid_as(&from, "", "may not be specified when `value` is not empty")
            }
            1 => {}
            _ => errors.invalid_as(&from, "", "may not have more than one field specified at a time"),
        }
    }
    let list = container.child("envFrom");
    for from in list.items() {
        errors.may_format(&from.child("prefix"), formats::env_name);
        let sources: Vec<At<'_>> =
            ["configMapRef", "secretRef"].map(|s| from.child(s)).into_iter().filter(At::there).collect();
        for source in &sources {
            errors.need_format(&source.child("name"), formats::dns_subdomain);
        }
        match sources.len() {
            0 => errors.invalid_as(&list, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid_as(&list, "", "may not have more than one field specified at a time"),
        }
    }
}

fn mounts<'v>(container: &At<'v>, volumes: &HashSet<&str>, errors: &mut Errors) {
    let mut paths = HashSet::new();
    // Upstream says of these which list they are in, not which mount.
    let of_list =
        |at: At<'v>, field: &str| At { path: container.path.child("volumeMounts").child(field), value: at.value };
    for mount in container.each("volumeMounts") {
        let (name, path) = (mount.child("name"), mount.child("mountPath"));
        errors.need(&name, "");
        if !volumes.contains(name.str()) {
            errors.not_found(&name);
        }
        errors.need(&path, "");
        if !paths.insert(path.str()) {
            errors.invalid(&path, "must be unique");
        }
        let (sub, expression) = (mount.child("subPath"), mount.child("subPathExpr"));
        if !sub.blank() {
            descending_path(&of_list(sub.clone(), "subPath"), errors);
        }
        if !expression.blank() {
            if !sub.blank() {
                errors.invalid(&expression, "subPathExpr and subPath are mutually exclusive");
            }
            descending_path(&of_list(expression.clone(), "subPathExpr"), errors);
        }
        let propagation = of_list(mount.child("mountPropagation"), "mountPropagation");
        errors.may_one_of(&propagation, &["Bidirectional", "HostToContainer", "None"]);
        if propagation.str() == "Bidirectional" && !container.value.flag("securityContext.privileged") {
            errors
                .forbidden(&propagation, "Bidirectional mount propagation is available only to privileged containers");
        }
    }
    for device in container.each("volumeDevices") {
        let (name, path) = (device.child("name"), device.child("devicePath"));
        if errors.need(&name, "") && !volumes.contains(name.str()) {
            errors.not_found(&name);
        }
        errors.need(&path, "");
        if !paths.insert(path.str()) {
            errors.invalid(&path, "must be unique");
        }
    }
}

fn http_get(at: &At<'_>, errors: &mut Errors) {
    errors.need(&at.child("path"), "");
    errors.port_or_name(&at.child("port"));
    errors.one_of(&at.child("scheme"), &["HTTP", "HTTPS"]);
    for header in at.each("httpHeaders") {
        for complaint in formats::http_header_name(header.value.text("name")) {
            errors.invalid_as(&at.child("httpHeaders"), header.value.text("name"), complaint);
        }
    }
}

/// What a probe or hook does: exactly one thing.
fn handler(at: &At<'_>, sleep: bool, errors: &mut Errors) {
    let mut kinds = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"]
        .into_iter()
        .filter(|k| at.value.has(k) && (sleep || *k != "sleep"));
    let Some(kind) = kinds.next() else {
        errors.required(at, "must specify a handler type");
        return;
    };
    let one = at.child(kind);
    match kind {
        "exec" if one.value.list("command").is_empty() => errors.required(&one.child("command"), ""),
        "httpGet" => http_get(&one, errors),
        "tcpSocket" => errors.port_or_name(&one.child("port")),
        "grpc" => errors.port(&one.child("port")),
        _ => {}
    }
    for more in kinds {
        errors.forbidden(&at.child(more), "may not specify more than 1 handler type");
    }
}

fn probe(at: &At<'_>, errors: &mut Errors) {
    if !at.there() {
        return;
    }
    handler(at, false, errors);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        errors.not_negative(&at.child(field));
    }
    errors.positive(&at.child("terminationGracePeriodSeconds"));
}

/// Lifecycle hooks and probes, of containers that run alongside each other.
fn running(container: &At<'_>, errors: &mut Errors) {
    for hook in ["lifecycle.postStart", "lifecycle.preStop"].map(|h| container.child(h)) {
        if hook.there() {
            handler(&hook, true, errors);
        }
    }
    for (name, once) in [("livenessProbe", true), ("readinessProbe", false), ("startupProbe", true)] {
        let at = container.child(name);
        probe(&at, errors);
        let threshold = at.child("successThreshold");
        if once && at.there() && threshold.number() != Some(1) {
            errors.invalid_as(&threshold, threshold.number().unwrap_or(0), "must be 1");
        }
    }
    let grace = container.child("readinessProbe.terminationGracePeriodSeconds");
    if grace.there() {
        errors.invalid(&grace, "must not be set for readinessProbes");
    }
}

fn common(container: &At<'_>, volumes: &HashSet<&str>, errors: &mut Errors) {
    errors.need_format(&container.child("name"), formats::dns_label);
    errors.need(&container.child("image"), "");
    errors.need_one_of(&container.child("terminationMessagePolicy"), &["FallbackToLogsOnError", "File"]);
    ports(&container.child("ports"), errors);
    environment(container, errors);
    mounts(container, volumes, errors);
    errors.need_one_of(&container.child("imagePullPolicy"), &PULL_POLICIES);
    resources::requirements(&container.child("resources"), errors);
    for policy in container.each("resizePolicy") {
        errors.need_one_of(&policy.child("resourceName"), &["cpu", "memory"]);
        errors.need_one_of(&policy.child("restartPolicy"), &["NotRequired", "RestartContainer"]);
    }
    security::of_container(&container.child("securityContext"), errors);
}

/// Ports taken on the host, each once.
fn host_ports<'v>(containers: impl Iterator<Item = At<'v>>, errors: &mut Errors) {
    let mut taken = HashSet::new();
    for port in containers.flat_map(|c| c.each("ports")).filter(|p| p.value.int("hostPort") != 0) {
        let text =
            format!("{}/{}/{}", port.value.text("protocol"), port.value.text("hostIP"), port.value.int("hostPort"));
        if !taken.insert(text.clone()) {
            errors.0.push(meta::FieldError::duplicate(&port.path.child("hostPort"), text));
        }
    }
}

/// Fields of a spec's containers of all three sorts.
pub fn of_spec(spec: &At<'_>, volumes: &HashSet<&str>, errors: &mut Errors) {
    let containers = spec.child("containers");
    if containers.value.list("").is_empty() {
        errors.required(&containers, "");
    }
    let mut names = HashSet::new();
    let mut named = |container: &At<'_>, errors: &mut Errors| {
        let name = container.child("name");
        if !name.blank() && !names.insert(name.str().to_string()) {
            errors.duplicate(&name);
        }
    };
    for container in containers.items() {
        common(&container, volumes, errors);
        named(&container, errors);
        running(&container, errors);
        let policy = container.child("restartPolicy");
        errors.may_one_of(&policy, &["Always", "Never", "OnFailure"]);
    }
    host_ports(containers.items(), errors);
    if spec.value.flag("hostNetwork") {
        for port in containers.items().flat_map(|c| c.each("ports")) {
            if port.value.int("hostPort") != port.value.int("containerPort") {
                errors.invalid(&port.child("containerPort"), "must match `hostPort` when `hostNetwork` is true");
            }
        }
    }
    for container in spec.each("initContainers") {
        common(&container, volumes, errors);
        named(&container, errors);
        host_ports(std::iter::once(container.clone()), errors);
        let sidecar = container.value.text("restartPolicy") == "Always";
        errors.may_one_of(&container.child("restartPolicy"), &["Always", "Never", "OnFailure"]);
        if sidecar {
            running(&container, errors);
        } else {
            forbid(
                &container,
                &["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"],
                "may not be set for init containers without restartPolicy=Always",
                errors,
            );
        }
    }
    for container in spec.each("ephemeralContainers") {
        common(&container, volumes, errors);
        named(&container, errors);
        let target = container.child("targetContainerName");
        if !target.blank()
            && !containers.items().chain(spec.each("initContainers")).any(|c| c.value.text("name") == target.str())
        {
            errors.not_found(&target);
        }
        let fields = ["ports", "lifecycle", "livenessProbe", "readinessProbe", "startupProbe", "resizePolicy"];
        forbid(&container, &fields, "cannot be set for an Ephemeral Container", errors);
        if !container.value.map("resources").is_empty() {
            errors.forbidden(&container.child("resources"), "cannot be set for an Ephemeral Container");
        }
        for mount in container.each("volumeMounts").filter(|m| m.value.has("subPath") || m.value.has("subPathExpr")) {
            errors.forbidden(&mount.child("subPath"), "cannot be set for an Ephemeral Container");
        }
    }
}

fn forbid(container: &At<'_>, fields: &[&str], detail: &str, errors: &mut Errors) {
    for field in fields.iter().map(|f| container.child(f)).filter(At::there) {
        errors.forbidden(&field, detail);
    }
}
