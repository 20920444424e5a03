//! rbac.authorization.k8s.io: roles and bindings.

use meta::{FieldError, Value};

use crate::cells::{age, name};
use crate::strategy::{Context, Strategy};
use crate::validate::{At, Errors, formats, same, selectors};
use meta::Tree;

kinds! {
    RoleBinding: "Name|Role|Age|Users*|Groups*|ServiceAccounts*";
    ClusterRoleBinding: "Name|Role|Age|Users*|Groups*|ServiceAccounts*";
    Role: "Name|Created At";
    ClusterRole: "Name|Created At";
}

const GROUP: &str = "rbac.authorization.k8s.io";

fn binding_row(object: &Value, now: &str) -> Vec<Value> {
    let of = |kind: &str| {
        let subject = |s: &Value| match s.text("kind") {
            "ServiceAccount" => format!("{}/{}", s.text("namespace"), s.text("name")),
            _ => s.text("name").to_string(),
        };
        let subjects = object.list("subjects").iter().filter(|s| s.text("kind") == kind);
        Value::from(subjects.map(subject).collect::<Vec<_>>().join(", "))
    };
    let role = format!("{}/{}", object.text("roleRef.kind"), object.text("roleRef.name"));
    vec![name(object), role.into(), age(object, now), of("User"), of("Group"), of("ServiceAccount")]
}

fn default_binding(object: &mut Value) {
    if object.text("roleRef.apiGroup").is_empty() {
        object.put("roleRef.apiGroup", GROUP);
    }
    for subject in object.list_mut("subjects") {
        if matches!(subject.text("kind"), "User" | "Group") && subject.text("apiGroup").is_empty() {
            subject.put("apiGroup", GROUP);
        }
    }
}

/// A binding to one of these kinds of roles. In a namespace, service accounts may leave theirs out.
fn check_binding(object: &Value, roles: &[&str], namespaced: bool) -> Errors {
    let (at, mut errors) = (At::root(object), Errors::default());
    errors.one_of(&at.child("roleRef.apiGroup"), &[GROUP]);
    errors.one_of(&at.child("roleRef.kind"), roles);
    errors.need(&at.child("roleRef.name"), "");
    errors.path_segment(&at.child("roleRef.name"));
    for subject in at.each("subjects") {
        let (name, group) = (subject.child("name"), subject.child("apiGroup"));
        errors.need(&name, "");
        match subject.value.text("kind") {
            "ServiceAccount" => {
                errors.may_format(&name, formats::dns_subdomain);
                if !group.blank() {
                    errors.not_supported(&group, &[""]);
                }
                if !namespaced {
                    errors.need(&subject.child("namespace"), "");
                }
            }
            "User" | "Group" => errors.one_of(&group, &[GROUP]),
            _ => errors.not_supported(&subject.child("kind"), &["Group", "ServiceAccount", "User"]),
        }
    }
    errors
}

fn check_role_kept(object: &Value, old: &Value, errors: &mut Errors) {
    if !same(object.at("roleRef"), old.at("roleRef")) {
        errors.invalid(&At::root(object).child("roleRef"), "cannot change roleRef");
    }
}

fn check_rules(object: &Value, namespaced: bool) -> Errors {
    let mut errors = Errors::default();
    for rule in At::root(object).each("rules") {
        let count = |field: &str| rule.value.list(field).len();
        if count("verbs") == 0 {
            errors.required(&rule.child("verbs"), "verbs must contain at least one value");
        }
        let urls = rule.child("nonResourceURLs");
        if count("nonResourceURLs") > 0 {
            if namespaced {
                errors.invalid(&urls, "namespaced rules cannot apply to non-resource URLs");
            }
            if count("apiGroups") + count("resources") + count("resourceNames") > 0 {
                errors.invalid(&urls, "rules cannot apply to both regular resources and non-resource URLs");
            }
            continue;
        }
        if count("apiGroups") == 0 {
            errors.required(&rule.child("apiGroups"), "resource rules must supply at least one api group");
        }
        if count("resources") == 0 {
            errors.required(&rule.child("resources"), "resource rules must supply at least one resource");
        }
    }
    errors
}

/// What the four kinds have in common: names may be any path segment, colons included (the pipeline checks that much of
/// every name), and a PUT creates.
macro_rules! lenient {
    () => {
        fn validate_name(&self, _name: &str, _generate: bool) -> Result<(), String> {
            Ok(())
        }

        fn allow_create_on_update(&self) -> bool {
            true
        }
    };
}

impl Strategy for RoleBinding {
    lenient!();

    fn default(&self, object: &mut Value) {
        default_binding(object);
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        check_binding(object, &["ClusterRole", "Role"], true).0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors(self.validate_create(cx, object));
        check_role_kept(object, old, &mut errors);
        errors.0
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        binding_row(object, now)
    }
}

impl Strategy for ClusterRoleBinding {
    lenient!();

    fn default(&self, object: &mut Value) {
        default_binding(object);
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        check_binding(object, &["ClusterRole"], false).0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors(self.validate_create(cx, object));
        check_role_kept(object, old, &mut errors);
        errors.0
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        binding_row(object, now)
    }
}

impl Strategy for Role {
    lenient!();

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        check_rules(object, true).0
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        crate::kinds::Plain.table_row(object, now)
    }
}

impl Strategy for ClusterRole {
    lenient!();

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = check_rules(object, false);
        let rule = At::root(object).child("aggregationRule");
        let selectors = rule.child("clusterRoleSelectors");
        if rule.there() && selectors.value.list("").is_empty() {
            errors.required(&selectors, "at least one clusterRoleSelector required if aggregationRule is non-nil");
        }
        for selector in selectors.items() {
            selectors::label_selector(&selector, &mut errors);
        }
        errors.0
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        crate::kinds::Plain.table_row(object, now)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::tests::expect;

    const CX: Context<'static> = Context::SOMEBODY;

    #[test]
    fn bindings_keep_their_role() {
        let mut old = json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]});
        RoleBinding.default(&mut old);
        assert_eq!(old["subjects"][0]["apiGroup"], GROUP);
        expect(&RoleBinding.validate_create(&CX, &old), &[], &old);
        let mut new = old.clone();
        new.put("roleRef.name", "other");
        assert_eq!(RoleBinding.validate_update(&CX, &new, &old)[0].detail, "cannot change roleRef");
        expect(
            &ClusterRoleBinding.validate_create(&CX, &old),
            &[
                "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
                "subjects[1].namespace: Required value",
            ],
            &old,
        );
    }

    #[test]
    fn rules_name_verbs_and_resources() {
        let role = json!({"rules": [{}, {"verbs": ["get"], "nonResourceURLs": ["/x"]}]});
        expect(
            &Role.validate_create(&CX, &role),
            &[
                "rules[0].verbs: Required value: verbs must contain at least one value",
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[0].resources: Required value: resource rules must supply at least one resource",
                "rules[1].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
            ],
            &role,
        );
    }
}
