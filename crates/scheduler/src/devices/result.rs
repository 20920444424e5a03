//! A claim's devices as its status says them.

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1 as api;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::allocator::Pick;
use super::pool::Reach;

/// The allocation of one claim by its picks on a node. Shares get their ids when they are written.
pub fn of(claim: &api::ResourceClaim, picks: &[Pick<'_>], node: &str) -> Result<api::AllocationResult, String> {
    let some = |list: Vec<_>| (!list.is_empty()).then_some(list);
    let result = |pick: &Pick<'_>| api::DeviceRequestAllocationResult {
        request: pick.request.name.clone(),
        driver: pick.slice.driver.to_string(),
        pool: pick.slice.pool_name.to_string(),
        device: pick.device.body.name.clone(),
        admin_access: pick.request.admin.then_some(true),
        tolerations: (!pick.request.tolerations.is_empty()).then(|| pick.request.tolerations.clone()),
        share_id: pick.share.as_ref().map(|_| String::new()),
        consumed_capacity: pick
            .share
            .as_ref()
            .filter(|s| !s.is_empty())
            .map(|share| share.iter().map(|(name, amount)| (name.clone(), Quantity(amount.to_string()))).collect()),
        binding_conditions: pick.device.body.binding_conditions.clone(),
        binding_failure_conditions: pick.device.body.binding_failure_conditions.clone(),
        ..Default::default()
    };
    Ok(api::AllocationResult {
        allocation_timestamp: None,
        devices: Some(api::DeviceAllocationResult {
            results: Some(picks.iter().map(result).collect()),
            config: some(config(claim, picks)),
        }),
        node_selector: node_selector(picks, node)?,
    })
}

/// Configuration of the classes, once each, then the claim's own for the requests that were met.
fn config(claim: &api::ResourceClaim, picks: &[Pick<'_>]) -> Vec<api::DeviceAllocationConfiguration> {
    // By request, in the claim's order: the name it was met under, and the class.
    let met: Vec<(&str, &str, &api::DeviceClass)> = super::requests(claim)
        .iter()
        .filter_map(|r| picks.iter().find(|p| p.request.parent == r.name))
        .map(|p| (&*p.request.parent, &*p.request.name, &*p.request.class))
        .collect();
    let mut out = Vec::new();
    for (at, (_, _, class)) in met.iter().enumerate() {
        let same = |c: &api::DeviceClass| c.metadata.name == class.metadata.name;
        if met[..at].iter().any(|m| same(m.2)) {
            continue;
        }
        let requests: Vec<String> = met.iter().filter(|m| same(m.2)).map(|m| m.1.to_string()).collect();
        out.extend(class.spec.iter().flat_map(|s| s.config.iter().flatten()).map(|c| {
            api::DeviceAllocationConfiguration {
                source: "FromClass".into(),
                requests: Some(requests.clone()),
                opaque: c.opaque.clone(),
            }
        }));
    }
    for c in super::wanted(claim).into_iter().flat_map(|d| d.config.iter().flatten()) {
        let names = c.requests.as_deref().unwrap_or_default();
        let concerned = met.iter().filter(|m| names.iter().any(|n| n == m.0 || n == m.1)).count();
        // What concerns several requests is told once for each, as upstream does.
        let times = if names.is_empty() { 1 } else { concerned };
        out.extend((0..times).map(|_| api::DeviceAllocationConfiguration {
            source: "FromClaim".into(),
            requests: c.requests.clone(),
            opaque: c.opaque.clone(),
        }));
    }
    out
}

fn only(node: &str) -> NodeSelector {
    NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![NodeSelectorRequirement {
                key: "metadata.name".into(),
                operator: "In".into(),
                values: Some(vec![node.into()]),
            }]),
            match_expressions: None,
        }],
    }
}

/// Where the devices can be used together; `None`: everywhere.
fn node_selector(picks: &[Pick<'_>], node: &str) -> Result<Option<NodeSelector>, String> {
    let (mut fields, mut expressions): (Vec<NodeSelectorRequirement>, Vec<NodeSelectorRequirement>) =
        Default::default();
    for pick in picks {
        let reach = pick.slice.reach_of(pick.device);
        if matches!(reach, Reach::Node(..)) || pick.device.body.binds_to_node == Some(true) {
            return Ok(Some(only(node)));
        }
        let Reach::Selection(selector, _) = reach else { continue };
        let term = match selector.node_selector_terms.as_slice() {
            [] => continue,
            [term] => term,
            terms => return Err(format!("unsupported ResourceSlice.NodeSelector with {} terms", terms.len())),
        };
        for (from, to) in [(&term.match_fields, &mut fields), (&term.match_expressions, &mut expressions)] {
            for requirement in from.iter().flatten().filter(|r| !to.contains(r)).cloned().collect::<Vec<_>>() {
                to.push(requirement);
            }
        }
    }
    let some = |list: Vec<_>| (!list.is_empty()).then_some(list);
    if fields.is_empty() && expressions.is_empty() {
        return Ok(None);
    }
    let term = NodeSelectorTerm { match_fields: some(fields), match_expressions: some(expressions) };
    Ok(Some(NodeSelector { node_selector_terms: vec![term] }))
}
