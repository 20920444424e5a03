//! rbac.authorization.k8s.io: roles and bindings.

use meta::Value;

use crate::cells::{age, name};
use crate::strategy::Strategy;
use crate::tree::Tree;

kinds! {
    /// RoleBindings and ClusterRoleBindings.
    RoleBinding: "Name|Role|Age|Users*|Groups*|ServiceAccounts*";
    Role: "Name|Created At";
    ClusterRole: "Name|Created At";
}

impl Strategy for RoleBinding {
    /// Any path segment, colons included (`IsPathSegmentName`); the pipeline checks that much of every name.
    fn validate_name(&self, _name: &str, _generate: bool) -> Result<(), String> {
        Ok(())
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let of = |kind: &str| {
            let subject = |s: &Value| match s.text("namespace") {
                "" => s.text("name").to_string(),
                namespace => format!("{namespace}/{}", s.text("name")),
            };
            let subjects = object.list("subjects").iter().filter(|s| s.text("kind") == kind);
            Value::from(subjects.map(subject).collect::<Vec<_>>().join(", "))
        };
        let role = format!("{}/{}", object.text("roleRef.kind"), object.text("roleRef.name"));
        vec![name(object), role.into(), age(object, now), of("User"), of("Group"), of("ServiceAccount")]
    }
}

impl Strategy for Role {
    /// Any path segment, colons included (`IsPathSegmentName`); the pipeline checks that much of every name.
    fn validate_name(&self, _name: &str, _generate: bool) -> Result<(), String> {
        Ok(())
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        crate::kinds::Plain.table_row(object, now)
    }
}

impl Strategy for ClusterRole {
    /// Any path segment, colons included (`IsPathSegmentName`); the pipeline checks that much of every name.
    fn validate_name(&self, _name: &str, _generate: bool) -> Result<(), String> {
        Ok(())
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        crate::kinds::Plain.table_row(object, now)
    }
}
