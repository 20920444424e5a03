//! Containers: what all have in common, and what init and ephemeral ones may not have.

use std::collections::HashSet;

use super::devices::at_most;
use super::volumes::{descending_path, field_ref, no_backsteps, resource_ref};
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
    }
}

fn environment(container: &At<'_>, errors: &mut Errors) {
    const ONE: &str =
        "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
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
        let file = from.child("fileKeyRef");
        if file.there() {
            errors.need_format(&file.child("key"), formats::env_name);
            errors.need_format(&file.child("volumeName"), formats::dns_label);
            if errors.need(&file.child("path"), "") {
                no_backsteps(&file.child("path"), errors);
            }
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
        let recursive = of_list(mount.child("recursiveReadOnly"), "recursiveReadOnly");
        match recursive.str() {
            _ if !recursive.there() => {}
            "Disabled" => {}
            "Enabled" | "IfPossible" => {
                if !mount.value.flag("readOnly") {
                    errors.forbidden(&recursive, "may only be specified when readOnly is true");
                }
                if propagation.there() && propagation.str() != "None" {
                    let detail = "may only be specified when mountPropagation is None or not specified";
                    errors.forbidden(&recursive, detail);
                }
            }
            _ => errors.not_supported(&recursive, &["Disabled", "Enabled", "IfPossible"]),
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
fn handler(at: &At<'_>, grace: Option<i64>, sleep: bool, errors: &mut Errors) {
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
        "sleep" => {
            let seconds = one.value.int("seconds");
            if let Some(grace) = grace.filter(|grace| !(0..=*grace).contains(&seconds)) {
                let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                errors.invalid_as(&one, seconds, detail);
            }
        }
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
    handler(at, None, false, errors);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        errors.not_negative(&at.child(field));
    }
    errors.positive(&at.child("terminationGracePeriodSeconds"));
}

/// Lifecycle hooks and probes, of containers that run alongside each other.
fn running(container: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    let grace = spec.value.number("terminationGracePeriodSeconds");
    for hook in ["lifecycle.postStart", "lifecycle.preStop"].map(|h| container.child(h)) {
        if hook.there() {
            handler(&hook, grace, true, errors);
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
    let own = container.child("readinessProbe.terminationGracePeriodSeconds");
    if own.there() {
        errors.invalid(&own, "must not be set for readinessProbes");
    }
}

/// What happens when a container ends, by its exit code.
fn restarts(container: &At<'_>, errors: &mut Errors) {
    const MAX_RULES: usize = 20;
    const MAX_CODES: usize = 255;
    let (policy, rules) = (container.child("restartPolicy"), container.child("restartPolicyRules"));
    if !policy.there() {
        if rules.value.list("").is_empty() {
            return;
        }
        errors.required(&policy, "must specify restartPolicy when restart rules are used");
    } else {
        errors.one_of(&policy, &["Always", "Never", "OnFailure"]);
    }
    at_most(&rules, MAX_RULES, errors);
    for rule in rules.items() {
        errors.one_of(&rule.child("action"), &["Restart", "RestartAllContainers"]);
        let codes = rule.child("exitCodes");
        if codes.there() {
            errors.one_of(&codes.child("operator"), &["In", "NotIn"]);
            at_most(&codes.child("values"), MAX_CODES, errors);
        } else {
            errors.required(&codes, "must be specified");
        }
    }
}

/// Changes in place; upstream says of all of them where the list is.
fn resizing(list: &At<'_>, never_restarts: bool, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for policy in list.items() {
        let at = |field: &str| At { path: list.path.clone(), ..policy.child(field) };
        let (resource, restart) = (at("resourceName"), at("restartPolicy"));
        if !seen.insert(resource.str()) {
            errors.0.push(meta::FieldError::duplicate(&policy.path, resource.str()));
        }
        errors.need_one_of(&resource, &["cpu", "memory"]);
        errors.need_one_of(&restart, &["NotRequired", "RestartContainer"]);
        if never_restarts && restart.str() != "NotRequired" {
            let detail = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.invalid_as(&restart, restart.str(), detail);
        }
    }
}

/// Claims a container uses are the pod's, each once or by requests.
fn claims(list: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    let mut known: Vec<&str> = spec.each("resourceClaims").map(|claim| claim.value.text("name")).collect();
    known.sort_unstable();
    known.dedup();
    let mut seen: HashSet<String> = HashSet::new();
    for claim in list.items() {
        let (name, request) = (claim.value.text("name"), claim.child("request"));
        if name.is_empty() {
            errors.required(&claim, "");
            continue;
        }
        if seen.contains(name) {
            errors.0.push(meta::FieldError::duplicate(&claim.path, name));
        } else {
            errors.may_format(&request, formats::dns_label);
            let key = if request.blank() { name.to_string() } else { format!("{name}/{}", request.str()) };
            let of_this = |key: &String| key.split_once('/').is_some_and(|(first, _)| first == name);
            if seen.contains(&key) || request.blank() && seen.iter().any(of_this) {
                errors.0.push(meta::FieldError::duplicate(&claim.path, key.as_str()));
            }
            seen.insert(key);
        }
        if !known.contains(&name) {
            let names = if known.is_empty() { " which is empty".into() } else { format!(": {}", known.join(", ")) };
            let detail = format!("must be one of the names in pod.spec.resourceClaims{names}");
            errors.0.push(meta::FieldError::not_found_of(&claim.path, name, detail));
        }
    }
}

fn common(container: &At<'_>, spec: &At<'_>, volumes: &HashSet<&str>, errors: &mut Errors) {
    errors.need_format(&container.child("name"), formats::dns_label);
    errors.need(&container.child("image"), "");
    errors.need_one_of(&container.child("terminationMessagePolicy"), &["FallbackToLogsOnError", "File"]);
    ports(&container.child("ports"), errors);
    environment(container, errors);
    mounts(container, volumes, errors);
    errors.need_one_of(&container.child("imagePullPolicy"), &PULL_POLICIES);
    resources::requirements(&container.child("resources"), errors);
    claims(&container.child("resources.claims"), spec, errors);
    resizing(&container.child("resizePolicy"), spec.value.text("restartPolicy") == "Never", errors);
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
        common(&container, spec, volumes, errors);
        named(&container, errors);
        running(&container, spec, errors);
        restarts(&container, errors);
    }
    host_ports(containers.items(), errors);
    if spec.value.flag("hostNetwork") {
        for port in containers.items().flat_map(|c| c.each("ports")) {
            if port.value.int("hostPort") != port.value.int("containerPort") {
                let detail = "must match `containerPort` when `hostNetwork` is true";
                errors.invalid_as(&port.child("hostPort"), port.value.int("hostPort"), detail);
            }
        }
    }
    for container in spec.each("initContainers") {
        common(&container, spec, volumes, errors);
        named(&container, errors);
        host_ports(std::iter::once(container.clone()), errors);
        let sidecar = container.value.text("restartPolicy") == "Always";
        restarts(&container, errors);
        if sidecar {
            running(&container, spec, errors);
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
        common(&container, spec, volumes, errors);
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

/// Files that variables come from lie in volumes that containers fill.
pub fn variable_files(spec: &At<'_>, errors: &mut Errors) {
    for variable in security::containers(spec).flat_map(|container| container.each("env")) {
        let name = variable.child("valueFrom.fileKeyRef.volumeName");
        if !variable.value.has("valueFrom.fileKeyRef") {
            continue;
        }
        match spec.value.find("volumes", "name", name.str()) {
            None => errors.not_found(&name),
            Some(volume) if !volume.has("emptyDir") => {
                errors.invalid(&name, "referenced volume must be of type emptyDir");
            }
            Some(_) => {}
        }
    }
}

fn forbid(container: &At<'_>, fields: &[&str], detail: &str, errors: &mut Errors) {
    for field in fields.iter().map(|f| container.child(f)).filter(At::there) {
        errors.forbidden(&field, detail);
    }
}
