//! Which policies and bindings a request meets, and with which parameters.
//!
//! Follows `k8s.io/apiserver/pkg/admission/plugin/policy` (generic, matching). Matching by rules and selectors is that of
//! webhooks; policies add names of objects and rules that exclude.

use std::sync::Arc;

use meta::{Gvr, LabelSelector, Object, Request, Status, Value};

use crate::server::ApiServer;
use crate::webhook::admission::Subject;
use crate::webhook::configuration::{self, Rule, Webhook};

pub const GROUP: &str = "admissionregistration.k8s.io";

/// Rules that may name this object.
fn rules(list: &Value, name: &str) -> Vec<Rule> {
    let named = |rule: &&Value| {
        let names = rule["resourceNames"].as_array().filter(|n| !n.is_empty());
        names.is_none_or(|names| names.iter().any(|n| n == name))
    };
    let list = list.as_array().into_iter().flatten().filter(named);
    list.filter_map(|rule| serde_json::from_value(rule.clone()).ok()).collect()
}

/// The form in which a policy or binding with these constraints sees the request, if it does.
pub fn form<'s>(
    server: &ApiServer,
    subject: &'s Subject<'_>,
    constraints: &Value,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<Option<&'s Gvr>, Status> {
    if constraints.is_null() {
        return Ok(subject.forms.first());
    }
    let name = &subject.name;
    let policy = constraints["matchPolicy"].as_str().unwrap_or("Equivalent").to_string();
    let hook = |list: &Value| Webhook {
        rules: rules(list, name),
        match_policy: policy.clone(),
        namespace_selector: Some(constraints["namespaceSelector"].clone()),
        object_selector: Some(constraints["objectSelector"].clone()),
        ..Webhook::default()
    };
    let excluded = hook(&constraints["excludeResourceRules"]);
    if excluded.form(&subject.forms, &subject.asked()).is_some() {
        return Ok(None);
    }
    let wanted = hook(&constraints["resourceRules"]);
    if constraints["resourceRules"].as_array().is_none_or(Vec::is_empty) {
        let selected = subject.in_namespace(server, &wanted, object)?
            && wanted.selects_object(object, old).map_err(Status::internal)?;
        return Ok(subject.forms.first().filter(|_| selected));
    }
    subject.wanted(server, &wanted, object, old)
}

/// Bindings of a policy, in the order of their names.
pub fn bindings(server: &ApiServer, plural: &str, policy: &str) -> Vec<Arc<Value>> {
    let all = server.lookup_all(GROUP, plural, "");
    let parsed = all.iter().filter_map(|binding| binding.typed::<Value>().ok());
    parsed.filter(|binding| binding["spec"]["policyName"] == policy).collect()
}

/// The parameters a binding gives its policy for a request; `None` when the binding does not select it. The error says
/// why neither can be told.
pub async fn bound(
    server: &ApiServer,
    subject: &Subject<'_>,
    kind: &Value,
    binding: &Value,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<Option<Vec<Option<Arc<Object>>>>, String> {
    match form(server, subject, &binding["matchResources"], object, old) {
        Ok(Some(_)) => params(server, kind, &binding["paramRef"], &subject.namespace).await.map(Some),
        Ok(None) => Ok(None),
        Err(status) => Err(status.message),
    }
}

/// The parameters a binding names: one run of the policy for each. `None` stands for a run without any.
async fn params(
    server: &ApiServer,
    kind: &Value,
    reference: &Value,
    namespace: &str,
) -> Result<Vec<Option<Arc<Object>>>, String> {
    if !kind.is_object() || !reference.is_object() {
        return Ok(vec![None]);
    }
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_string();
    let (api_version, kind_name) = (text(kind, "apiVersion"), text(kind, "kind"));
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let version = api_version.rsplit('/').next().unwrap_or_default();
    let catalog = server.catalog();
    let unknown = || format!("paramKind kind `{api_version}, Kind={kind_name}` not known");
    let served = catalog.find_kind(group, &kind_name).ok_or_else(unknown)?;
    let row = served.resource.version(version).ok_or_else(unknown)?;
    let said = text(reference, "namespace");
    let namespace = match (served.resource.namespaced, said.is_empty()) {
        (true, false) => said,
        (true, true) if namespace.is_empty() => {
            return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into());
        }
        (true, true) => namespace.to_string(),
        (false, false) => return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into()),
        (false, true) => String::new(),
    };
    let (name, selector) = (text(reference, "name"), &reference["selector"]);
    let (group, plural) = (&*served.resource.group, &*served.resource.plural);
    let found: Vec<Arc<Object>> = match (name.is_empty(), selector.is_null()) {
        (false, false) => return Err("paramRef.name and paramRef.selector are mutually exclusive".into()),
        (false, true) => {
            let mut found = server.lookup(group, plural, &namespace, &name);
            if found.is_none() {
                // It may have been written a moment ago.
                server.await_newest().await.map_err(|status| status.message)?;
                found = server.lookup(group, plural, &namespace, &name);
            }
            found.into_iter().collect()
        }
        (true, false) => {
            let selector = LabelSelector::from_value(selector)?;
            let all = server.lookup_all(group, plural, &namespace);
            all.into_iter().filter(|object| selector.matches(&object.meta.labels)).collect()
        }
        (true, true) => return Err("one of name or selector must be provided".into()),
    };
    if found.is_empty() && reference["parameterNotFoundAction"] == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    let mut shown = Vec::with_capacity(found.len());
    for object in found {
        shown.push(Some(served.present(object, row).await.map_err(|status| status.message)?));
    }
    Ok(shown)
}

/// The namespace as expressions see it, for requests inside one.
pub fn namespace(server: &ApiServer, subject: &Subject<'_>) -> Result<Option<Value>, Status> {
    if subject.namespace.is_empty() || subject.is_of_namespaces() {
        return Ok(None);
    }
    let object = server
        .lookup("", "namespaces", "", &subject.namespace)
        .ok_or_else(|| Status::not_found("", "namespaces", &subject.namespace))?;
    object.value().map(Some).map_err(Status::internal)
}

/// Requests that policies never see: those about admission itself.
pub fn is_exempt(request: &Request) -> bool {
    configuration::is_exempt(&request.resource)
}
