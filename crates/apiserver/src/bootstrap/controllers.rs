//! Default RBAC of the controllers: a role for each, bound to its service account in `kube-system`.
//!
//! Follows upstream's `system:controller:*` roles, so that its controller manager runs here as it does there. What ours
//! needs beyond is said where it stands. Rules are written as in [`super::policy`].

use super::Wanted;
use super::policy::{Rules, role_and_binding};

const PREFIX: &str = "system:controller:";

/// (service account, rules). Most controllers read through the manager's own caches, and write as themselves.
const CONTROLLERS: &[(&str, Rules)] = &[
    (
        "attachdetach-controller",
        "$READ - persistentvolumes,persistentvolumeclaims,nodes,pods; patch,update - nodes/status; $EVENTS; \
        get,create,delete,list,watch storage.k8s.io volumeattachments; $READ storage.k8s.io csidrivers,csinodes",
    ),
    (
        "clusterrole-aggregation-controller",
        "escalate,get,list,watch,update,patch rbac.authorization.k8s.io clusterroles",
    ),
    (
        "cronjob-controller",
        "$READ,update batch cronjobs; $READ,create,update,delete,patch batch jobs; \
        update batch cronjobs/status,cronjobs/finalizers; list,delete - pods; $EVENTS",
    ),
    (
        "daemon-set-controller",
        "$READ extensions,apps daemonsets; update extensions,apps daemonsets/status,daemonsets/finalizers; list,watch - nodes; \
        list,watch,create,delete,patch - pods; create - pods/binding; $READ,create,delete,update,patch apps controllerrevisions; $EVENTS",
    ),
    (
        "deployment-controller",
        "$READ,update extensions,apps deployments; update extensions,apps deployments/status,deployments/finalizers; \
        $READ,create,update,patch,delete apps,extensions replicasets; $READ,update - pods; $EVENTS",
    ),
    (
        "device-taint-eviction-controller",
        "$READ,delete - pods; patch,update - pods/status; $READ resource.k8s.io resourceclaims,resourceslices,devicetaintrules; \
        patch,update resource.k8s.io devicetaintrules/status; $EVENTS",
    ),
    (
        "disruption-controller",
        "$READ extensions,apps deployments; $READ apps,extensions replicasets; $READ - replicationcontrollers; \
        $READ policy poddisruptionbudgets; $READ apps statefulsets; update policy poddisruptionbudgets/status; get * */scale; \
        patch,update - pods/status; $EVENTS",
    ),
    (
        "endpoint-controller",
        "$READ - services,pods; get,list,create,update,delete - endpoints; create - endpoints/restricted; $EVENTS",
    ),
    (
        "endpointslice-controller",
        "$READ - services,pods,nodes; update - services/finalizers; get,list,create,update,delete discovery.k8s.io endpointslices; $EVENTS",
    ),
    (
        "endpointslicemirroring-controller",
        "$READ - services,endpoints; update - services/finalizers,endpoints/finalizers; \
        get,list,create,update,delete discovery.k8s.io endpointslices; $EVENTS",
    ),
    (
        "expand-controller",
        "$READ,update,patch - persistentvolumes; update,patch - persistentvolumeclaims/status; $READ - persistentvolumeclaims; \
        $READ storage.k8s.io storageclasses; get - services,endpoints,secrets; $EVENTS",
    ),
    (
        "ephemeral-volume-controller",
        "$READ - pods; update - pods/finalizers; $READ,create - persistentvolumeclaims; $EVENTS",
    ),
    (
        "resource-claim-controller",
        "$READ - pods; update - pods/finalizers; $READ,create,delete resource.k8s.io resourceclaims; \
        update,patch resource.k8s.io resourceclaims,resourceclaims/status; patch,update - pods/status; $READ resource.k8s.io resourceclaimtemplates; $EVENTS",
    ),
    ("generic-garbage-collector", "$READ,patch,update,delete * *; $EVENTS"),
    (
        "horizontal-pod-autoscaler",
        "$READ autoscaling horizontalpodautoscalers; update autoscaling horizontalpodautoscalers/status; get,update * */scale; \
        list - pods; list metrics.k8s.io pods; get,list custom.metrics.k8s.io,external.metrics.k8s.io *; $EVENTS",
    ),
    (
        "job-controller",
        "$READ,update,patch batch jobs; update batch jobs/status,jobs/finalizers; list,watch,create,delete,patch - pods; $EVENTS",
    ),
    (
        "legacy-service-account-token-cleaner",
        "get - configmaps kube-apiserver-legacy-service-account-token-tracking; delete,patch - secrets; $EVENTS",
    ),
    (
        "namespace-controller",
        "$READ,delete - namespaces; update - namespaces/finalize,namespaces/status; get,list,delete,deletecollection * *",
    ),
    (
        "node-controller",
        "get,list,update,delete,patch - nodes; patch,update - nodes/status,pods/status; get,list,delete - pods; $EVENTS",
    ),
    (
        "persistent-volume-binder",
        "$READ,update,create,delete - persistentvolumes; update - persistentvolumes/status,persistentvolumeclaims/status; \
        $READ,update - persistentvolumeclaims; $READ,create,delete - pods; $READ storage.k8s.io storageclasses; \
        get,create,update,delete - endpoints; get,create,delete - services; get - secrets; get,list - nodes; watch - events; $EVENTS",
    ),
    ("pod-garbage-collector", "list,watch,delete - pods; get,list - nodes; patch,update - pods/status; $EVENTS"),
    (
        "replicaset-controller",
        "$READ,update apps,extensions replicasets; update apps,extensions replicasets/status,replicasets/finalizers; \
        list,watch,patch,create,delete - pods; $EVENTS",
    ),
    (
        "replication-controller",
        "$READ,update - replicationcontrollers; update - replicationcontrollers/status,replicationcontrollers/finalizers; \
        list,watch,patch,create,delete - pods; $EVENTS",
    ),
    ("resourcequota-controller", "list,watch * *; update - resourcequotas/status; $EVENTS"),
    ("route-controller", "list,watch - nodes; patch - nodes/status; $EVENTS"),
    ("service-account-controller", "create - serviceaccounts; $EVENTS"),
    (
        "service-cidrs-controller",
        "$READ,patch,update networking.k8s.io servicecidrs; update,patch networking.k8s.io servicecidrs/finalizers,servicecidrs/status; \
        $READ networking.k8s.io ipaddresses; $EVENTS",
    ),
    ("service-controller", "$READ - services; patch,update - services/status; list,watch - nodes; $EVENTS"),
    (
        "statefulset-controller",
        "list,watch - pods; $READ apps statefulsets; update apps statefulsets/status,statefulsets/finalizers; \
        get,create,delete,update,patch - pods; get,create,delete,update,patch,list,watch apps controllerrevisions; \
        get,create,update - persistentvolumeclaims; $EVENTS",
    ),
    (
        "storage-version-migrator-controller",
        "$READ storagemigration.k8s.io storageversionmigrations; update,patch storagemigration.k8s.io storageversionmigrations/status; \
        get,list,patch,update * *; update,patch apiextensions.k8s.io customresourcedefinitions/status; $EVENTS",
    ),
    ("ttl-controller", "update,patch,list,watch - nodes; $EVENTS"),
    (
        "certificate-controller",
        "$READ,delete certificates.k8s.io certificatesigningrequests; update certificates.k8s.io certificatesigningrequests/status,certificatesigningrequests/approval; \
        approve certificates.k8s.io signers kubernetes.io/kube-apiserver-client-kubelet; \
        sign certificates.k8s.io signers kubernetes.io/legacy-unknown,kubernetes.io/kube-apiserver-client,kubernetes.io/kube-apiserver-client-kubelet,kubernetes.io/kubelet-serving; \
        create authorization.k8s.io subjectaccessreviews; $EVENTS",
    ),
    (
        "pvc-protection-controller",
        "$READ,update - persistentvolumeclaims; update - persistentvolumeclaims/status; $READ - pods; $EVENTS",
    ),
    ("podgroup-protection-controller", "$READ,update scheduling.k8s.io podgroups; $READ - pods; $EVENTS"),
    ("pv-protection-controller", "$READ,update - persistentvolumes; $EVENTS"),
    (
        "volumeattributesclass-protection-controller",
        "$READ,update,patch storage.k8s.io volumeattributesclasses; $READ - persistentvolumeclaims,persistentvolumes; $EVENTS",
    ),
    ("ttl-after-finished-controller", "$READ,delete batch jobs; $EVENTS"),
    ("root-ca-cert-publisher", "create,update - configmaps; $EVENTS"),
];

/// A cluster role and its binding for each controller.
pub fn wanted() -> Vec<Wanted> {
    let both = |(account, rules): &(&str, Rules)| role_and_binding(&format!("{PREFIX}{account}"), rules, account);
    CONTROLLERS.iter().flat_map(both).collect()
}
