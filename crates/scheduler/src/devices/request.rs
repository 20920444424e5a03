//! What a claim asks for, one request or one of its alternatives, in one form.

use std::sync::Arc;

use k8s_openapi::api::resource::v1 as api;

use super::Devices;
use super::capacity::Wanted;
use super::selector::Selector;

/// A request, or an alternative of one.
pub struct Request {
    /// `request`, or `request/alternative`.
    pub name: String,
    /// The request's own name, also where this is an alternative.
    pub parent: String,
    pub class: Arc<api::DeviceClass>,
    /// The class's selectors, so many, then its own.
    pub selectors: Vec<Arc<Selector>>,
    pub of_class: usize,
    pub all: bool,
    pub count: usize,
    pub admin: bool,
    pub tolerations: Vec<api::DeviceToleration>,
    pub wanted: Wanted,
}

/// Fields of a request that alternatives have too.
struct Fields<'a> {
    name: String,
    class: &'a str,
    selectors: &'a [api::DeviceSelector],
    mode: &'a str,
    count: i64,
    admin: bool,
    tolerations: &'a [api::DeviceToleration],
    capacity: Option<&'a api::CapacityRequirements>,
}

fn read(devices: &Devices, parent: &str, claim: &str, from: Fields<'_>) -> Result<Request, String> {
    let whose = || format!("claim {claim}, request {}", from.name);
    let class = devices.class(from.class).cloned();
    let class =
        class.ok_or_else(|| format!("{}: could not retrieve device class {}: not found", whose(), from.class))?;
    let mut selectors = Vec::new();
    let of_class = class.spec.as_ref().and_then(|s| s.selectors.as_deref()).unwrap_or_default();
    for (of, list) in [(Some(from.class), of_class), (None, from.selectors)] {
        for (at, selector) in list.iter().enumerate() {
            let Some(cel) = &selector.cel else {
                return Err(format!("{}, selector #{at}: CEL expression empty (unsupported selector type?)", whose()));
            };
            let compiled = devices.selectors.get(&cel.expression);
            if let Some(why) = compiled.wrong() {
                let whose = of.map_or_else(|| format!("claim {claim}"), |class| format!("class {class}"));
                return Err(format!("{whose}: selector #{at}: CEL compile error: {why}"));
            }
            selectors.push(compiled);
        }
    }
    let all = match from.mode {
        "All" => true,
        "" | "ExactCount" => false,
        other => return Err(format!("{}: unsupported count mode {other}", whose())),
    };
    Ok(Request {
        all,
        count: usize::try_from(from.count).unwrap_or(0),
        admin: from.admin,
        tolerations: from.tolerations.to_vec(),
        wanted: Wanted::of(from.capacity),
        name: from.name,
        parent: parent.into(),
        of_class: of_class.len(),
        class,
        selectors,
    })
}

/// The requests of a claim, each with its alternatives, the preferred first.
pub fn read_all(devices: &Devices, claim: &api::ResourceClaim, key: &str) -> Result<Vec<Vec<Request>>, String> {
    let mut out = Vec::new();
    for request in super::requests(claim) {
        let mut alternatives = Vec::new();
        if let Some(r) = &request.exactly {
            let fields = Fields {
                name: request.name.clone(),
                class: &r.device_class_name,
                selectors: r.selectors.as_deref().unwrap_or_default(),
                mode: r.allocation_mode.as_deref().unwrap_or_default(),
                count: r.count.unwrap_or(1),
                admin: r.admin_access == Some(true),
                tolerations: r.tolerations.as_deref().unwrap_or_default(),
                capacity: r.capacity.as_ref(),
            };
            alternatives.push(read(devices, &request.name, key, fields)?);
        }
        for r in request.first_available.iter().flatten() {
            let fields = Fields {
                name: format!("{}/{}", request.name, r.name),
                class: &r.device_class_name,
                selectors: r.selectors.as_deref().unwrap_or_default(),
                mode: r.allocation_mode.as_deref().unwrap_or_default(),
                count: r.count.unwrap_or(1),
                admin: false,
                tolerations: r.tolerations.as_deref().unwrap_or_default(),
                capacity: r.capacity.as_ref(),
            };
            alternatives.push(read(devices, &request.name, key, fields)?);
        }
        out.push(alternatives);
    }
    Ok(out)
}

impl Request {
    pub fn class_name(&self) -> &str {
        self.class.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its name among its likes.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or_default()
    }

    /// Whether one of a device's taints keeps this request off it.
    pub fn is_kept_off<'a>(&self, taints: impl Iterator<Item = &'a api::DeviceTaint>) -> bool {
        let mut taints = taints.filter(|t| matches!(&*t.effect, "NoSchedule" | "NoExecute"));
        taints.any(|taint| !self.tolerations.iter().any(|t| tolerates(t, taint)))
    }
}

fn tolerates(toleration: &api::DeviceToleration, taint: &api::DeviceTaint) -> bool {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let (key, effect) = (text(&toleration.key), text(&toleration.effect));
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref().unwrap_or_default() {
            "" | "Equal" => text(&toleration.value) == text(&taint.value),
            "Exists" => true,
            _ => false,
        }
}
