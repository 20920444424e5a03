//! Match conditions of webhooks: expressions that say whether a webhook is to be asked at all.
//!
//! Follows `k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions`: one that is false is enough not to ask; one that
//! fails counts by the webhook's failure policy.

use meta::{Gvr, Status, Value};

use super::admission::Subject;
use super::configuration::Webhook;
use crate::admission::policy::Asker;
use crate::admission::policy_validate::Seen;
use crate::server::ApiServer;

/// Whether all of a webhook's conditions hold for a request.
pub async fn hold(
    server: &ApiServer,
    subject: &Subject<'_>,
    hook: &Webhook,
    form: &Gvr,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<bool, Status> {
    let conditions = &hook.match_conditions.0;
    if conditions.0.is_empty() {
        return Ok(true);
    }
    let seen = Seen::of(server, subject, form, object, old).await?;
    let asker = Asker { server, user: &subject.caller.user };
    match conditions.hold(&seen.inputs(&asker, None), &[]) {
        Ok(hold) => Ok(hold),
        Err(why) if hook.ignores_failure() => {
            tracing::warn!(webhook = hook.name, why, "failed evaluating match conditions, failing open");
            Ok(false)
        }
        Err(why) => {
            let resource = &subject.forms[0];
            Err(Status::forbidden(&resource.group, &resource.resource, &subject.name, why))
        }
    }
}
