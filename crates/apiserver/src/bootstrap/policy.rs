//! Default RBAC: who may do what from the start.
//!
//! Follows upstream's bootstrap policy (`plugin/pkg/auth/authorizer/rbac/bootstrappolicy`) in names and reach. A rule is
//! written `verbs groups resources [names]`, words joined by commas, `-` for the core group.

use serde_json::{Value, json};

use super::{RBAC, Wanted, object};

const READ: &str = "get,list,watch";
const WRITE: &str = "create,delete,deletecollection,patch,update";
const FULL: &str = "create,delete,deletecollection,get,list,patch,update,watch";
const EVENTS: &str = "create,patch,update -,events.k8s.io events";
const REVIEWS: &str = "create authentication.k8s.io tokenreviews; create authorization.k8s.io subjectaccessreviews";

/// Rules separated by semicolons; `$READ` and the like are the lists above.
pub type Rules = &'static str;

/// (name, rules, label `aggregate-to-…` or empty, aggregated from)
const ROLES: &[(&str, Rules, &str, &[&str])] = &[
    ("cluster-admin", "* * *; * /*", "", &[]),
    (
        "system:discovery",
        "get /api,/api/*,/apis,/apis/*,/healthz,/livez,/openapi,/openapi/*,/readyz,/version,/version/",
        "",
        &[],
    ),
    ("system:public-info-viewer", "get /healthz,/livez,/readyz,/version,/version/", "", &[]),
    (
        "system:monitoring",
        "\
        get /flagz,/healthz,/healthz/*,/livez,/livez/*,/metrics,/metrics/slis,/readyz,/readyz/*,/statusz; \
        get - nodes/metrics",
        "",
        &[],
    ),
    (
        "system:service-account-issuer-discovery",
        "get /.well-known/openid-configuration,/.well-known/openid-configuration/,/openid/v1/jwks,/openid/v1/jwks/",
        "",
        &[],
    ),
    (
        "system:basic-user",
        "\
        create authorization.k8s.io selfsubjectaccessreviews,selfsubjectrulesreviews; \
        create authentication.k8s.io selfsubjectreviews",
        "",
        &[],
    ),
    ("admin", "", "", &["admin"]),
    ("edit", "", "admin", &["edit"]),
    ("view", "", "edit", &["view"]),
    (
        "system:aggregate-to-admin",
        "create authorization.k8s.io localsubjectaccessreviews; $FULL rbac.authorization.k8s.io rolebindings,roles",
        "admin",
        &[],
    ),
    (
        "system:aggregate-to-edit",
        "\
        $READ - pods/attach,pods/exec,pods/portforward,pods/proxy,secrets,services/proxy; \
        impersonate - serviceaccounts; $WRITE - pods,pods/attach,pods/exec,pods/portforward,pods/proxy; \
        create - pods/eviction; \
        $WRITE - configmaps,persistentvolumeclaims,replicationcontrollers,replicationcontrollers/scale,secrets,serviceaccounts,services,services/proxy; \
        create - serviceaccounts/token; $WRITE -,events.k8s.io events; \
        $WRITE apps daemonsets,deployments,deployments/rollback,deployments/scale,replicasets,replicasets/scale,statefulsets,statefulsets/scale; \
        $WRITE autoscaling horizontalpodautoscalers; $WRITE batch cronjobs,jobs; \
        $WRITE extensions daemonsets,deployments,deployments/rollback,deployments/scale,ingresses,networkpolicies,replicasets,replicasets/scale,replicationcontrollers/scale; \
        $WRITE policy poddisruptionbudgets; $WRITE networking.k8s.io ingresses,networkpolicies; \
        $FULL coordination.k8s.io leases; $WRITE resource.k8s.io resourceclaims,resourceclaimtemplates",
        "edit",
        &[],
    ),
    (
        "system:aggregate-to-view",
        "\
        $READ - configmaps,endpoints,persistentvolumeclaims,persistentvolumeclaims/status,pods,replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/status; \
        $READ - bindings,limitranges,namespaces/status,pods/log,pods/status,replicationcontrollers/status,resourcequotas,resourcequotas/status; \
        $READ - namespaces; $READ -,events.k8s.io events; $READ discovery.k8s.io endpointslices; \
        $READ apps controllerrevisions,daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,replicasets,replicasets/scale,replicasets/status,statefulsets,statefulsets/scale,statefulsets/status; \
        $READ autoscaling horizontalpodautoscalers,horizontalpodautoscalers/status; \
        $READ batch cronjobs,cronjobs/status,jobs,jobs/status; \
        $READ extensions daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,ingresses,ingresses/status,networkpolicies,replicasets,replicasets/scale,replicasets/status,replicationcontrollers/scale; \
        $READ policy poddisruptionbudgets,poddisruptionbudgets/status; \
        $READ networking.k8s.io ingresses,ingresses/status,networkpolicies; \
        $READ resource.k8s.io resourceclaims,resourceclaims/status,resourceclaimtemplates",
        "view",
        &[],
    ),
    ("system:heapster", "$READ - events,namespaces,nodes,pods; $READ extensions deployments", "", &[]),
    (
        "system:node",
        "\
        create authentication.k8s.io tokenreviews; \
        create authorization.k8s.io localsubjectaccessreviews,subjectaccessreviews; $READ - services; \
        create,get,list,watch - nodes; patch,update - nodes/status; patch,update - nodes; $EVENTS; $READ - pods; \
        create,delete - pods; patch,update - pods/status; create - pods/eviction; $READ - configmaps,secrets; \
        get - persistentvolumeclaims,persistentvolumes; get - endpoints; \
        create,get,list,watch certificates.k8s.io certificatesigningrequests; \
        create,delete,get,patch,update coordination.k8s.io leases; get storage.k8s.io volumeattachments; \
        create - serviceaccounts/token; get,patch,update - persistentvolumeclaims/status; \
        $READ storage.k8s.io csidrivers; create,delete,get,patch,update storage.k8s.io csinodes; \
        $READ node.k8s.io runtimeclasses; get resource.k8s.io resourceclaims; \
        deletecollection resource.k8s.io resourceslices; get - serviceaccounts; \
        $READ certificates.k8s.io clustertrustbundles; \
        create,get,list,watch certificates.k8s.io podcertificaterequests",
        "",
        &[],
    ),
    (
        "system:node-proxier",
        "\
        list,watch - endpoints,services; $READ - nodes; $EVENTS; list,watch networking.k8s.io servicecidrs; \
        list,watch discovery.k8s.io endpointslices",
        "",
        &[],
    ),
    ("system:node-problem-detector", "get - nodes; patch - nodes/status; $EVENTS", "", &[]),
    ("system:node-bootstrapper", "create,get,list,watch certificates.k8s.io certificatesigningrequests", "", &[]),
    ("system:auth-delegator", "$REVIEWS", "", &[]),
    ("system:kube-aggregator", "$READ - endpoints,services", "", &[]),
    ("system:kube-dns", "list,watch - endpoints,services", "", &[]),
    (
        "system:persistent-volume-provisioner",
        "\
        create,delete,get,list,watch - persistentvolumes; get,list,update,watch - persistentvolumeclaims; \
        $READ storage.k8s.io storageclasses; watch - events; $EVENTS",
        "",
        &[],
    ),
    (
        "system:volume-scheduler",
        "\
        get,list,patch,update,watch - persistentvolumes; $READ storage.k8s.io storageclasses; \
        get,list,patch,update,watch - persistentvolumeclaims",
        "",
        &[],
    ),
    (
        "system:kube-scheduler",
        "\
        $EVENTS; create coordination.k8s.io leases; get,list,update,watch coordination.k8s.io leases kube-scheduler; \
        $FULL coordination.k8s.io leasecandidates; $READ - nodes; delete,get,list,watch - pods; \
        create - bindings,pods/binding; patch,update - pods/status; $READ - replicationcontrollers,services; \
        $READ apps,extensions replicasets; $READ apps statefulsets; $READ policy poddisruptionbudgets; \
        $READ - persistentvolumeclaims,persistentvolumes; $REVIEWS; $READ storage.k8s.io csinodes; \
        $READ storage.k8s.io volumeattachments; $READ - namespaces; $READ storage.k8s.io csidrivers; \
        $READ storage.k8s.io csistoragecapacities; $READ resource.k8s.io deviceclasses; \
        get,list,patch,update,watch resource.k8s.io resourceclaims; \
        get,list,patch,update,watch resource.k8s.io resourceclaims/status; update - pods/finalizers; \
        $READ resource.k8s.io resourceslices; create,delete resource.k8s.io resourceclaims; \
        patch,update resource.k8s.io resourceclaims/binding; $READ resource.k8s.io devicetaintrules; \
        $READ scheduling.k8s.io podgroups,priorityclasses,workloads; patch,update scheduling.k8s.io podgroups/status",
        "",
        &[],
    ),
    // One process runs all controllers; collecting garbage and emptying namespaces reach every kind there is.
    (
        "system:kube-controller-manager",
        "\
        $EVENTS; create coordination.k8s.io leases; get,update coordination.k8s.io leases kube-controller-manager; \
        create - secrets,serviceaccounts; delete - secrets; get - configmaps,namespaces,secrets,serviceaccounts; \
        update - secrets,serviceaccounts; $REVIEWS; list,watch * *; create - serviceaccounts/token; \
        get,list,watch,delete,deletecollection,patch,update * *; get /*; create coordination.k8s.io leases; \
        create - serviceaccounts,serviceaccounts/token,secrets,configmaps,endpoints,pods,persistentvolumes,persistentvolumeclaims,services; \
        create apps replicasets,controllerrevisions; create batch jobs; create discovery.k8s.io endpointslices; \
        create networking.k8s.io ipaddresses,servicecidrs; create resource.k8s.io resourceclaims; \
        create storage.k8s.io volumeattachments,storageclasses; create certificates.k8s.io clustertrustbundles; \
        approve,sign,attest certificates.k8s.io signers; create - pods/eviction; \
        escalate,bind rbac.authorization.k8s.io clusterroles,roles; use * *",
        "",
        &[],
    ),
    (
        "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver",
        "approve certificates.k8s.io signers kubernetes.io/kube-apiserver-client-kubelet",
        "",
        &[],
    ),
    (
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        "create certificates.k8s.io certificatesigningrequests/nodeclient",
        "",
        &[],
    ),
    (
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        "create certificates.k8s.io certificatesigningrequests/selfnodeclient",
        "",
        &[],
    ),
    (
        "system:certificates.k8s.io:kube-apiserver-client-approver",
        "approve certificates.k8s.io signers kubernetes.io/kube-apiserver-client",
        "",
        &[],
    ),
    (
        "system:certificates.k8s.io:kubelet-serving-approver",
        "approve certificates.k8s.io signers kubernetes.io/kubelet-serving",
        "",
        &[],
    ),
    (
        "system:certificates.k8s.io:legacy-unknown-approver",
        "approve certificates.k8s.io signers kubernetes.io/legacy-unknown",
        "",
        &[],
    ),
    (
        "system:kubelet-api-admin",
        "\
        $READ - nodes; proxy - nodes; * - nodes/log,nodes/metrics,nodes/proxy,nodes/stats; \
        * - nodes/configz,nodes/healthz,nodes/pods",
        "",
        &[],
    ),
    ("system:cluster-trust-bundle-discovery", "get,list,watch certificates.k8s.io clustertrustbundles", "", &[]),
];

/// (binding, role, `Group` or `User`, subjects; one written `namespace/name` is a service account)
const BINDINGS: &[(&str, &str, &str, &[&str])] = &[
    ("cluster-admin", "cluster-admin", "Group", &["system:masters"]),
    ("system:monitoring", "system:monitoring", "Group", &["system:monitoring"]),
    ("system:discovery", "system:discovery", "Group", &["system:authenticated"]),
    ("system:basic-user", "system:basic-user", "Group", &["system:authenticated"]),
    (
        "system:public-info-viewer",
        "system:public-info-viewer",
        "Group",
        &["system:authenticated", "system:unauthenticated"],
    ),
    (
        "system:service-account-issuer-discovery",
        "system:service-account-issuer-discovery",
        "Group",
        &["system:serviceaccounts"],
    ),
    (
        "system:cluster-trust-bundle-discovery",
        "system:cluster-trust-bundle-discovery",
        "Group",
        &["system:serviceaccounts"],
    ),
    // Nodes are judged by what runs on them, not by a binding: the node authorizer applies the role's rules.
    ("system:node", "system:node", "Group", &[]),
    ("system:node-proxier", "system:node-proxier", "User", &["system:kube-proxy"]),
    ("system:kube-dns", "system:kube-dns", "User", &["kube-system/kube-dns"]),
    ("system:kube-scheduler", "system:kube-scheduler", "User", &["system:kube-scheduler"]),
    ("system:volume-scheduler", "system:volume-scheduler", "User", &["system:kube-scheduler"]),
    ("system:kube-controller-manager", "system:kube-controller-manager", "User", &["system:kube-controller-manager"]),
];

/// (namespace, role, rules, binding if it is not named as the role, bound users and service accounts `namespace/name`)
type Namespaced = (&'static str, &'static str, Rules, &'static str, &'static [&'static str]);
const ELECTING: Rules = "create,get,list,update,watch coordination.k8s.io leases; create,get,list,update,watch coordination.k8s.io leasecandidates";
const NAMESPACED: &[Namespaced] = &[
    (
        "kube-public",
        "system:controller:bootstrap-signer",
        "$READ - configmaps; update - configmaps cluster-info; $EVENTS",
        "",
        &["kube-system/bootstrap-signer"],
    ),
    (
        "kube-system",
        "extension-apiserver-authentication-reader",
        "$READ - configmaps extension-apiserver-authentication",
        "system::extension-apiserver-authentication-reader",
        &["system:kube-controller-manager", "system:kube-scheduler"],
    ),
    (
        "kube-system",
        "system::leader-locking-kube-controller-manager",
        ELECTING,
        "",
        &["system:kube-controller-manager", "kube-system/kube-controller-manager"],
    ),
    (
        "kube-system",
        "system::leader-locking-kube-scheduler",
        ELECTING,
        "",
        &["system:kube-scheduler", "kube-system/kube-scheduler"],
    ),
    ("kube-system", "system:controller:bootstrap-signer", "$READ - secrets", "", &["kube-system/bootstrap-signer"]),
    (
        "kube-system",
        "system:controller:cloud-provider",
        "create,get,list,watch - configmaps",
        "",
        &["kube-system/cloud-provider"],
    ),
    (
        "kube-system",
        "system:controller:token-cleaner",
        "delete,get,list,watch - secrets; $EVENTS",
        "",
        &["kube-system/token-cleaner"],
    ),
];

fn rules(text: &str) -> Value {
    let text = text.replace("$EVENTS", EVENTS).replace("$REVIEWS", REVIEWS);
    let text = text.replace("$READ", READ).replace("$WRITE", WRITE).replace("$FULL", FULL);
    let words = |list: &str| -> Vec<String> {
        list.split(',').map(|w| if w == "-" { String::new() } else { w.into() }).collect()
    };
    let rules = text.split(';').map(str::trim).filter(|rule| !rule.is_empty()).map(|rule| {
        let mut parts = rule.split_whitespace();
        let (verbs, groups, resources, names) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next(), parts.next());
        match resources {
            None => json!({"verbs": words(verbs), "nonResourceURLs": if groups == "/*" { vec!["*".to_string()] } else { words(groups) }}),
            Some(resources) => {
                let mut rule = json!({"verbs": words(verbs), "apiGroups": words(groups), "resources": words(resources)});
                if let Some(names) = names {
                    rule["resourceNames"] = json!(words(names));
                }
                rule
            }
        }
    });
    rules.collect()
}

/// The rules of a default role.
pub(crate) fn rules_of(role: &str) -> Value {
    ROLES.iter().find(|row| row.0 == role).map_or_else(|| json!([]), |row| rules(row.1))
}

fn default_metadata(mut wanted: Wanted) -> Wanted {
    let metadata = &mut wanted.body["metadata"];
    if !metadata["labels"].is_object() {
        metadata["labels"] = json!({});
    }
    metadata["labels"]["kubernetes.io/bootstrapping"] = "rbac-defaults".into();
    metadata["annotations"] = json!({"rbac.authorization.kubernetes.io/autoupdate": "true"});
    wanted
}

pub fn cluster_roles() -> Vec<Wanted> {
    let role = |(name, text, aggregate_to, from): &(&str, Rules, &str, &[&str])| {
        let label = |to: &str| format!("rbac.authorization.k8s.io/aggregate-to-{to}");
        let mut body = json!({"rules": rules(text), "metadata": {"labels": {}}});
        if !aggregate_to.is_empty() {
            body["metadata"]["labels"][label(aggregate_to)] = "true".into();
        }
        if let [from] = from {
            let mut selector = json!({});
            selector[label(from)] = "true".into();
            body["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": selector}]});
            // Until the aggregation controller runs, and where it does not, the role already reaches what it should.
            body["rules"] = aggregate(from);
        }
        default_metadata(object(RBAC, "v1", "clusterroles", "", "ClusterRole", name, body))
    };
    ROLES.iter().map(role).collect()
}

/// The rules of all roles labelled for `to`, and of those they aggregate in turn.
fn aggregate(to: &str) -> Value {
    let mut out = Vec::new();
    for (_, text, aggregate_to, from) in ROLES.iter().filter(|role| role.2 == to) {
        debug_assert_eq!(*aggregate_to, to);
        out.extend(rules(text).as_array().cloned().unwrap_or_default());
        if let [from] = from {
            out.extend(aggregate(from).as_array().cloned().unwrap_or_default());
        }
    }
    out.into()
}

fn subjects(kind: &str, names: &[&str]) -> Value {
    let subject = |name: &&str| match name.split_once('/') {
        Some((namespace, name)) => json!({"kind": "ServiceAccount", "name": name, "namespace": namespace}),
        None => json!({"kind": kind, "apiGroup": RBAC, "name": name}),
    };
    names.iter().map(subject).collect()
}

pub fn bindings() -> Vec<Wanted> {
    let binding = |(name, role, kind, names): &(&str, &str, &str, &[&str])| {
        let body = json!({"roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role}, "subjects": subjects(kind, names)});
        default_metadata(object(RBAC, "v1", "clusterrolebindings", "", "ClusterRoleBinding", name, body))
    };
    BINDINGS.iter().map(binding).collect()
}

/// A cluster role bound to a service account in `kube-system`.
pub fn role_and_binding(name: &str, text: Rules, account: &str) -> [Wanted; 2] {
    let role = object(RBAC, "v1", "clusterroles", "", "ClusterRole", name, json!({"rules": rules(text)}));
    let body = json!({
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": name},
        "subjects": subjects("User", &[&format!("kube-system/{account}")]),
    });
    let binding = object(RBAC, "v1", "clusterrolebindings", "", "ClusterRoleBinding", name, body);
    [default_metadata(role), default_metadata(binding)]
}

pub fn namespaced() -> Vec<Wanted> {
    let both = |(namespace, name, text, binding, who): &Namespaced| {
        let role = object(RBAC, "v1", "roles", namespace, "Role", name, json!({"rules": rules(text)}));
        let body =
            json!({"roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name}, "subjects": subjects("User", who)});
        let binding = if binding.is_empty() { name } else { binding };
        let binding = object(RBAC, "v1", "rolebindings", namespace, "RoleBinding", binding, body);
        [default_metadata(role), default_metadata(binding)]
    };
    NAMESPACED.iter().flat_map(both).collect()
}
