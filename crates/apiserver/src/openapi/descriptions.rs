//! Sentences about built-in types, for OpenAPI and `kubectl explain`.
//!
//! They are k8s-openapi's (its `schemars` feature), generated when a document is rendered and dropped after it: nothing is held
//! between documents, and the repository has none of the sentences itself.

use k8s_openapi::schemars::SchemaGenerator;
use meta::Value;
use meta::openapi;

/// All sentences, by definition name.
pub struct Descriptions {
    definitions: serde_json::Map<String, Value>,
}

/// Generates the schemas of kinds and of everything they contain.
macro_rules! kinds {
    ($generator:ident: $($($module:ident)::+ { $($kind:ident)* })*) => {
        $({
            use k8s_openapi::$($module)::+ as module;
            $( $generator.subschema_for::<module::$kind>(); )*
        })*
    };
}

impl Descriptions {
    pub fn generate() -> Self {
        let mut generator = SchemaGenerator::default();
        kinds! { generator:
            api::admissionregistration::v1 {
                MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration
                ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration
            }
            api::apps::v1 { ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet }
            api::authentication::v1 { SelfSubjectReview TokenRequest TokenReview }
            api::authorization::v1 {
                LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview
            }
            api::autoscaling::v1 { HorizontalPodAutoscaler Scale }
            api::autoscaling::v2 { HorizontalPodAutoscaler }
            api::batch::v1 { CronJob Job }
            api::certificates::v1 { CertificateSigningRequest ClusterTrustBundle PodCertificateRequest }
            api::coordination::v1 { Lease }
            api::core::v1 {
                Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume
                PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount
            }
            api::discovery::v1 { EndpointSlice }
            api::events::v1 { Event }
            api::flowcontrol::v1 { FlowSchema PriorityLevelConfiguration }
            api::networking::v1 { IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR }
            api::node::v1 { RuntimeClass }
            api::policy::v1 { Eviction PodDisruptionBudget }
            api::rbac::v1 { ClusterRole ClusterRoleBinding Role RoleBinding }
            api::resource::v1 { DeviceClass DeviceTaintRule ResourceClaim ResourceClaimTemplate ResourceSlice }
            api::scheduling::v1 { PriorityClass }
            api::storage::v1 {
                CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass
            }
            api::storagemigration::v1 { StorageVersionMigration }
            apiextensions_apiserver::pkg::apis::apiextensions::v1 { CustomResourceDefinition }
            apimachinery::pkg::apis::meta::v1 { DeleteOptions ListMeta Status }
            kube_aggregator::pkg::apis::apiregistration::v1 { APIService }
        }
        Self { definitions: generator.take_definitions(false) }
    }
}

impl openapi::Descriptions for Descriptions {
    fn describe(&self, definition: &str, field: Option<&str>) -> Option<&str> {
        let definition = self.definitions.get(definition)?;
        match field {
            None => definition.get("description"),
            Some(field) => definition.get("properties")?.get(field)?.get("description"),
        }?
        .as_str()
    }
}

#[cfg(test)]
mod tests {
    use meta::openapi::Descriptions as _;

    #[test]
    fn fields_are_described() {
        let descriptions = super::Descriptions::generate();
        assert!(descriptions.describe("io.k8s.api.core.v1.PodSpec", Some("containers")).is_some());
        assert!(descriptions.describe("io.k8s.api.apps.v1.Deployment", None).is_some());
        assert!(descriptions.describe("io.k8s.api.apps.v1.Deployment", Some("nope")).is_none());
    }
}
