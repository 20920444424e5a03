//! ClusterRoles that gather the rules of others.

use client::Change;
use k8s_openapi::api::rbac::v1::ClusterRole;
use meta::{LabelSelector, Status};
use serde_json::{Value, json};

use crate::plan::{Action, Plan};
use crate::runner::Controller;
use crate::{Context, decoded};

pub fn aggregation(cx: &Context) -> Controller {
    let roles = cx.informers.get::<ClusterRole>();
    let (of, gatherers) = (roles.clone(), roles.clone());
    Controller::new("clusterrole-aggregation-controller", move |ask| {
        let mut plan = Plan::nothing();
        let Some(object) = of.get(&ask.key).filter(|o| o.meta.deletion_timestamp.is_none()) else { return Ok(plan) };
        let role = decoded::<ClusterRole>(&object)?;
        let Some(rule) = &role.aggregation_rule else { return Ok(plan) };
        let mut rules: Vec<Value> = Vec::new();
        for selector in rule.cluster_role_selectors.iter().flatten() {
            let selector = serde_json::to_value(selector).map_err(Status::internal)?;
            let selector = LabelSelector::from_value(&selector).map_err(Status::internal)?;
            for other in of.list_selected(None, &selector).iter().filter(|o| o.meta.name != object.meta.name) {
                for rule in decoded::<ClusterRole>(other)?.rules.iter().flatten() {
                    let rule = serde_json::to_value(rule).map_err(Status::internal)?;
                    if !rules.contains(&rule) {
                        rules.push(rule);
                    }
                }
            }
        }
        let mut body = object.value().map_err(Status::internal)?;
        let known: Vec<Value> = role.rules.iter().flatten().filter_map(|r| serde_json::to_value(r).ok()).collect();
        if known != rules {
            body["rules"] = json!(rules);
            plan.act(Action::update(&client::gvr_of::<ClusterRole>(), &object, body));
        }
        Ok(plan)
    })
    // Any role's change may matter to any that gathers; there are few of those.
    .watch(&roles, move |_: &Change| {
        let gathers =
            |o: &std::sync::Arc<meta::Object>| o.typed::<ClusterRole>().is_ok_and(|r| r.aggregation_rule.is_some());
        gatherers
            .list_where(None, |o| !o.meta.name.is_empty())
            .iter()
            .filter(|o| gathers(o))
            .map(|o| o.meta.key())
            .collect()
    })
}
