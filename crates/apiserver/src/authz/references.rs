//! What a pod makes its node need: secrets, configuration, claims, its service account.
//!
//! One reading of a pod's body, shared by the node authorizer (which lets a node read these) and by NodeRestriction (which
//! lets no node make a pod that has any).

use meta::Value;

/// The kinds of object a node reaches through its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Secret,
    ConfigMap,
    PersistentVolumeClaim,
    ServiceAccount,
    ResourceClaim,
}

/// Volume sources that name a secret through a reference, and the field they do it by.
const SECRET_REFS: &[(&str, &str)] = &[
    ("cephfs", "secretRef"),
    ("cinder", "secretRef"),
    ("flexVolume", "secretRef"),
    ("rbd", "secretRef"),
    ("scaleIO", "secretRef"),
    ("iscsi", "secretRef"),
    ("storageos", "secretRef"),
    ("csi", "nodePublishSecretRef"),
];

fn items<'a>(at: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    at[field].as_array().into_iter().flatten()
}

/// Calls `found` with each object the pod refers to, all in the pod's namespace.
pub fn of_pod(pod: &Value, mut found: impl FnMut(Kind, &str)) {
    let spec = &pod["spec"];
    let mut add = |kind, name: &Value| {
        if let Some(name) = name.as_str().filter(|n| !n.is_empty()) {
            found(kind, name);
        }
    };
    add(Kind::ServiceAccount, &spec["serviceAccountName"]);
    for secret in items(spec, "imagePullSecrets") {
        add(Kind::Secret, &secret["name"]);
    }
    for container in
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|list| items(spec, list))
    {
        for source in items(container, "envFrom") {
            add(Kind::Secret, &source["secretRef"]["name"]);
            add(Kind::ConfigMap, &source["configMapRef"]["name"]);
        }
        for variable in items(container, "env") {
            add(Kind::Secret, &variable["valueFrom"]["secretKeyRef"]["name"]);
            add(Kind::ConfigMap, &variable["valueFrom"]["configMapKeyRef"]["name"]);
        }
    }
    for volume in items(spec, "volumes") {
        add(Kind::Secret, &volume["secret"]["secretName"]);
        add(Kind::Secret, &volume["azureFile"]["secretName"]);
        add(Kind::ConfigMap, &volume["configMap"]["name"]);
        add(Kind::PersistentVolumeClaim, &volume["persistentVolumeClaim"]["claimName"]);
        for (source, field) in SECRET_REFS {
            add(Kind::Secret, &volume[*source][*field]["name"]);
        }
        for source in items(&volume["projected"], "sources") {
            add(Kind::Secret, &source["secret"]["name"]);
            add(Kind::ConfigMap, &source["configMap"]["name"]);
        }
        if volume["ephemeral"].is_object() {
            let (pod, volume) =
                (pod["metadata"]["name"].as_str().unwrap_or_default(), volume["name"].as_str().unwrap_or_default());
            add(Kind::PersistentVolumeClaim, &format!("{pod}-{volume}").into());
        }
    }
    for claim in items(spec, "resourceClaims") {
        add(Kind::ResourceClaim, &claim["resourceClaimName"]);
    }
    for claim in items(&pod["status"], "resourceClaimStatuses") {
        add(Kind::ResourceClaim, &claim["resourceClaimName"]);
    }
    add(Kind::ResourceClaim, &pod["status"]["extendedResourceClaimStatus"]["resourceClaimName"]);
}

/// The secrets a persistent volume needs to be mounted: `(namespace, name)`; those without a namespace are in the claim's.
pub fn of_volume(volume: &Value) -> Vec<(String, String)> {
    let spec = &volume["spec"];
    let home = spec["claimRef"]["namespace"].as_str().unwrap_or_default();
    let mut out = Vec::new();
    let mut add = |namespace: &Value, name: &Value| {
        if let Some(name) = name.as_str().filter(|n| !n.is_empty()) {
            let namespace = namespace.as_str().filter(|n| !n.is_empty()).unwrap_or(home);
            out.push((namespace.to_string(), name.to_string()));
        }
    };
    add(&spec["azureFile"]["secretNamespace"], &spec["azureFile"]["secretName"]);
    for (source, field) in SECRET_REFS {
        add(&spec[*source][*field]["namespace"], &spec[*source][*field]["name"]);
    }
    for field in
        ["nodeStageSecretRef", "nodeExpandSecretRef", "controllerPublishSecretRef", "controllerExpandSecretRef"]
    {
        add(&spec["csi"][field]["namespace"], &spec["csi"][field]["name"]);
    }
    out
}
