//! Defaults that several kinds share: pod specs and templates, volumes, claims.
//!
//! Follows upstream's `defaults.go` of core/v1. Everything here fills in what is absent and is idempotent. What depends
//! on nothing else may also stand in the schema; saying it twice does no harm.

use meta::Value;
use serde_json::{Map, json};

use meta::Tree;

/// Keeps a field that holds one item and a field that holds several the same, the several in the lead.
pub fn mirror_first(holder: &mut Value, one: &str, several: &str, item: &str) {
    let first = holder.list(several).first().map(|first| first.at(item).clone());
    match first {
        Some(first) => holder.put(one, first),
        None if !holder.text(one).is_empty() => {
            let value = holder.at(one).clone();
            let value = if item.is_empty() { value } else { json!({item: value}) };
            holder.put(several, vec![value]);
        }
        None => {}
    }
}

/// A pod itself: what templates do not get.
pub fn pod(pod: &mut Value) {
    if let Some(status) = pod.at_mut("status") {
        mirror_first(status, "podIP", "podIPs", "ip");
    }
    let Some(spec) = pod.at_mut("spec") else { return };
    for list in ["containers", "initContainers"] {
        for container in spec.list_mut(list) {
            requests_from_limits(container);
        }
    }
    if spec.has("resources.limits") {
        requests_from_limits(spec);
    }
    spec.or_put("enableServiceLinks", true);
    pod_spec(spec);
}

/// What is limited and not requested is requested to its limit.
fn requests_from_limits(holder: &mut Value) {
    let limits = holder.map("resources.limits").clone();
    if limits.is_empty() {
        return;
    }
    let requests = holder.dig("resources.requests");
    for (name, amount) in limits {
        requests.entry(name).or_insert(amount);
    }
}

/// A pod template's spec, at a path.
pub fn template(object: &mut Value, path: &str) {
    if let Some(spec) = object.at_mut(path).and_then(|t| t.at_mut("spec")) {
        pod_spec(spec);
    }
}

/// Where the spec of a template or pod is.
pub fn pod_spec(spec: &mut Value) {
    spec.or_put("dnsPolicy", "ClusterFirst");
    spec.or_put("restartPolicy", "Always");
    spec.or_put("terminationGracePeriodSeconds", 30);
    spec.or_put("schedulerName", "default-scheduler");
    spec.or_put("securityContext", Map::new());
    // The old name of the field is kept the same as the new one.
    let account = [spec.text("serviceAccountName"), spec.text("serviceAccount")]
        .into_iter()
        .find(|a| !a.is_empty())
        .map(String::from);
    if let Some(account) = account {
        spec.put("serviceAccountName", account.as_str());
        spec.put("serviceAccount", account);
    }
    let host_network = spec.flag("hostNetwork");
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in spec.list_mut(list) {
            self::container(container, host_network && list != "ephemeralContainers");
        }
    }
    for volume in spec.list_mut("volumes") {
        self::volume(volume);
    }
}

/// Counts of a status that are written out even when they are zero.
pub fn zero_counts(object: &mut Value, fields: &[&str]) {
    let status = object.dig("status");
    for field in fields {
        status.entry(*field).or_insert(0.into());
    }
}

/// The tag of an image's name; `latest` when it has neither tag nor digest.
fn tag(image: &str) -> &str {
    if image.is_empty() {
        return "";
    }
    let (name, digest) = image.split_once('@').map_or((image, ""), |(name, digest)| (name, digest));
    // A colon before the last slash belongs to the registry's port.
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, tag)) => tag,
        None if digest.is_empty() => "latest",
        None => "",
    }
}

fn container(container: &mut Value, host_network: bool) {
    let policy = if tag(container.text("image")) == "latest" { "Always" } else { "IfNotPresent" };
    container.or_put("imagePullPolicy", policy);
    container.or_put("terminationMessagePath", "/dev/termination-log");
    container.or_put("terminationMessagePolicy", "File");
    container.or_put("resources", Map::new());
    for port in container.list_mut("ports") {
        port.or_put("protocol", "TCP");
        if host_network && port.int("hostPort") == 0 {
            let number = port.at("containerPort").clone();
            port.put("hostPort", number);
        }
    }
    for variable in container.list_mut("env") {
        field_ref(variable, "valueFrom.fieldRef");
        resource_field_ref(variable, "valueFrom.resourceFieldRef");
        if let Some(file) = variable.at_mut("valueFrom.fileKeyRef") {
            file.or_put("optional", false);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.at_mut(probe) {
            self::probe(probe);
        }
    }
    for hook in ["lifecycle.postStart.httpGet", "lifecycle.preStop.httpGet"] {
        http_get(container, hook);
    }
}

fn probe(probe: &mut Value) {
    for (field, seconds) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if probe.int(field) == 0 {
            probe.put(field, seconds);
        }
    }
    http_get(probe, "httpGet");
    if let Some(grpc) = probe.at_mut("grpc") {
        grpc.or_put("service", "");
    }
}

fn http_get(holder: &mut Value, path: &str) {
    if let Some(get) = holder.at_mut(path) {
        if get.text("path").is_empty() {
            get.put("path", "/");
        }
        if get.text("scheme").is_empty() {
            get.put("scheme", "HTTP");
        }
    }
}

fn field_ref(holder: &mut Value, path: &str) {
    if let Some(field) = holder.at_mut(path)
        && field.text("apiVersion").is_empty()
    {
        field.put("apiVersion", "v1");
    }
}

fn resource_field_ref(holder: &mut Value, path: &str) {
    if let Some(field) = holder.at_mut(path) {
        field.or_put("divisor", "0");
    }
}

/// 0644, for files made from configuration.
const FILE_MODE: i64 = 0o644;
/// Lifetime of projected tokens.
const TOKEN_SECONDS: i64 = 3600;

fn volume(volume: &mut Value) {
    if volume.map("").iter().all(|(key, value)| key == "name" || value.is_null()) {
        volume.put("emptyDir", Map::new());
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.at_mut(source) {
            source.or_put("defaultMode", FILE_MODE);
        }
    }
    let downward = |holder: &mut Value| {
        for item in holder.list_mut("downwardAPI.items") {
            field_ref(item, "fieldRef");
            resource_field_ref(item, "resourceFieldRef");
        }
    };
    downward(volume);
    for source in volume.list_mut("projected.sources") {
        downward(source);
        if let Some(token) = source.at_mut("serviceAccountToken") {
            token.or_put("expirationSeconds", TOKEN_SECONDS);
        }
    }
    if let Some(path) = volume.at_mut("hostPath") {
        path.or_put("type", "");
    }
    if let Some(iscsi) = volume.at_mut("iscsi") {
        iscsi.or_put("iscsiInterface", "default");
    }
    if let Some(template) = volume.at_mut("ephemeral.volumeClaimTemplate") {
        template.or_put("spec.volumeMode", "Filesystem");
    }
    if let Some(image) = volume.at_mut("image") {
        let policy = if tag(image.text("reference")) == "latest" { "Always" } else { "IfNotPresent" };
        image.or_put("pullPolicy", policy);
    }
}

/// The labels of the template at a path become the selector at another and the object's labels, where those are empty
/// (ReplicationController, and what is left of `extensions/v1beta1`).
pub fn selector_from_template(object: &mut Value) {
    let labels = object.map("spec.template.metadata.labels").clone();
    if labels.is_empty() {
        return;
    }
    for path in ["spec.selector", "metadata.labels"] {
        if object.map(path).is_empty() {
            object.put(path, json!(labels));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_without_a_tag_are_the_latest() {
        for (image, expect) in [
            ("busybox", "latest"),
            ("busybox:1.36", "1.36"),
            ("r.io:5000/a/b", "latest"),
            ("r.io:5000/a/b:v1", "v1"),
            ("a@sha256:00", ""),
            ("a:latest", "latest"),
            ("a:v1@sha256:00", "v1"),
        ] {
            assert_eq!(tag(image), expect, "{image}");
        }
    }

    #[test]
    fn a_pod_is_filled_in_once() {
        let mut object = json!({"spec": {
            "hostNetwork": true, "serviceAccount": "sa",
            "containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}},
                "livenessProbe": {"httpGet": {"port": 80}}, "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}],
            "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}, {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}],
        }});
        pod(&mut object);
        let expect = json!({"spec": {
            "hostNetwork": true, "serviceAccount": "sa", "serviceAccountName": "sa", "dnsPolicy": "ClusterFirst", "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler", "securityContext": {}, "enableServiceLinks": true,
            "containers": [{"name": "a", "image": "x", "imagePullPolicy": "Always", "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File", "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
                    "successThreshold": 1, "failureThreshold": 3},
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}}]}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}},
                {"name": "p", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}}]}}],
        }});
        assert_eq!(object, expect);
        pod(&mut object);
        assert_eq!(object, expect);
    }
}
