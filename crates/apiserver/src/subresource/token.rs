//! `serviceaccounts/token`: a token for a service account, bound to a pod, secret or node when asked.

use jiff::Timestamp;
use meta::{FieldError, FieldPath, Reply, Status};
use serde_json::{Value, json};

use crate::admission;
use crate::clock;
use crate::pipeline::{Target, body};
use crate::server::ApiServer;

/// Seconds a token lives when the request does not say, at least, and at most.
const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_REQUEST_SECONDS: i64 = 1 << 32;
/// Tokens the kubelet mounts ask for this and get a year, with a warning time, so that old clients that never reload
/// keep working (upstream's extended tokens).
const EXTENDED_FROM: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

pub async fn create(server: &ApiServer, target: Target<'_>) -> Result<Reply, Status> {
    let mut review = body::decode_options(&target.request.body, "TokenRequest")?;
    let (namespace, name) = (&*target.request.namespace, &*target.request.name);
    server.await_newest().await?;
    let account = server.lookup("", "serviceaccounts", namespace, name).ok_or_else(|| target.not_found())?;
    let attributes = admission::Attributes::new(&target, admission::Operation::Create)?;
    admission::validate(server, &attributes, Some(&review), None).await?;
    let refuse_name = |field: &str, said: &str| {
        let error = FieldError::invalid(
            &FieldPath::new(&format!("metadata.{field}")),
            said,
            format!("must match the service account {field} if specified"),
        );
        Err(Status::invalid("authentication.k8s.io", "TokenRequest", name, &[error]))
    };
    for (field, own) in [("name", name), ("namespace", namespace)] {
        let said = review["metadata"][field].as_str().unwrap_or_default();
        if !said.is_empty() && said != own {
            return refuse_name(field, said);
        }
    }
    let spec = &review["spec"];
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
    let path = FieldPath::new("spec.expirationSeconds");
    let refuse = |error| Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", &[error]));
    if seconds < MIN_SECONDS {
        return refuse(FieldError::invalid(&path, seconds, "may not specify a duration less than 10 minutes"));
    }
    if seconds > MAX_REQUEST_SECONDS {
        return refuse(FieldError::invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds"));
    }
    let keys = server.token_keys();
    let seconds = match keys.max_seconds {
        Some(max) if seconds > max => {
            target.caller.warn(format!("requested expiration of {seconds} seconds shortened to {max} seconds"));
            max
        }
        _ => seconds,
    };
    let audiences = match spec["audiences"].as_array() {
        Some(list) if !list.is_empty() => list.clone(),
        _ => keys.audiences.iter().map(|audience| audience.as_str().into()).collect(),
    };
    let mut about = json!({"namespace": namespace, "serviceaccount": {"name": name, "uid": &*account.meta.uid}});
    let bound = &spec["boundObjectRef"];
    if bound.is_object() {
        let text = |field: &str| bound[field].as_str().unwrap_or_default();
        let (kind, plural, ns) = match text("kind") {
            "Pod" => ("pod", "pods", namespace),
            "Secret" => ("secret", "secrets", namespace),
            "Node" => ("node", "nodes", ""),
            kind => {
                let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
                let why = format!("cannot bind token to object of type {group}/{version}, Kind={kind}");
                return Err(Status::bad_request(why));
            }
        };
        if text("name").is_empty() {
            return Err(Status::bad_request("Name parameter required."));
        }
        let object =
            server.lookup("", plural, ns, text("name")).ok_or_else(|| Status::not_found("", plural, text("name")))?;
        if !text("uid").is_empty() && text("uid") != &*object.meta.uid {
            let why = format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                text("uid")
            );
            // Upstream names the kind here, not the resource.
            return Err(Status::conflict("", text("kind"), text("name"), why));
        }
        about[kind] = json!({"name": &*object.meta.name, "uid": &*object.meta.uid});
        if kind == "pod" {
            let pod = object.value().map_err(Status::internal)?;
            if pod["spec"]["serviceAccountName"].as_str().unwrap_or("default") != name {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {name:?} to pod running with different serviceaccount name."
                )));
            }
            if let Some(node) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
                let uid = server.lookup("", "nodes", "", node).map(|n| n.meta.uid.to_string()).unwrap_or_default();
                about["node"] = json!({"name": node, "uid": uid});
            }
        }
    }
    let now = Timestamp::now().as_second();
    let own_audience = audiences.iter().any(|a| keys.audiences.iter().any(|own| *a == **own));
    let extended = seconds == EXTENDED_FROM && own_audience && about["pod"].is_object();
    if extended {
        about["warnafter"] = (now + seconds).into();
    }
    let claims = json!({
        "aud": audiences, "exp": now + if extended { EXTENDED_SECONDS } else { seconds }, "iat": now, "nbf": now, "iss": keys.issuer,
        "jti": uuid::Uuid::new_v4().to_string(), "kubernetes.io": about, "sub": format!("system:serviceaccount:{namespace}:{name}"),
    });
    let token = keys.sign(&claims).map_err(Status::internal)?;
    review["kind"] = "TokenRequest".into();
    review["apiVersion"] = "authentication.k8s.io/v1".into();
    review["metadata"] = json!({"name": name, "namespace": namespace, "creationTimestamp": clock::now()});
    review["spec"]["audiences"] = claims["aud"].clone();
    review["spec"]["expirationSeconds"] = seconds.into();
    if review["spec"].get("boundObjectRef").is_none() {
        review["spec"]["boundObjectRef"] = Value::Null;
    }
    let expires = Timestamp::from_second(now + seconds).unwrap_or(Timestamp::MAX);
    review["status"] = json!({"token": token, "expirationTimestamp": clock::format(expires)});
    Ok(Reply::Value { value: review, code: 201 })
}
