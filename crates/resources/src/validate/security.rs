//! Security contexts of pods and containers.

use meta::Value;

use super::{At, Errors};
use meta::Tree;

/// Users and groups Linux knows.
const MAX_ID: i64 = i32::MAX as i64;

fn id(at: &At<'_>, errors: &mut Errors) {
    if at.number().is_some_and(|id| !(0..=MAX_ID).contains(&id)) {
        errors.invalid(at, format!("must be between 0 and {MAX_ID}, inclusive"));
    }
}

/// `seccompProfile` and `appArmorProfile`.
fn profile(at: &At<'_>, localhost: &str, errors: &mut Errors) {
    if !at.there() {
        return;
    }
    let file = at.child(localhost);
    errors.need_one_of(&at.child("type"), &["Localhost", "RuntimeDefault", "Unconfined"]);
    match (at.value.text("type"), file.there()) {
        ("Localhost", false) => errors.required(&file, "must be set when seccomp type is Localhost"),
        ("Localhost", true) => {
            if file.str().starts_with('/') {
                errors.invalid(&file, "must be a relative path");
            }
            if file.str().split('/').any(|part| part == "..") {
                errors.invalid(&file, "must not contain '..'");
            }
        }
        (_, true) => errors.invalid(&file, "can only be set when seccomp type is Localhost"),
        (_, false) => {}
    }
}

pub fn of_container(at: &At<'_>, errors: &mut Errors) {
    if !at.there() {
        return;
    }
    id(&at.child("runAsUser"), errors);
    id(&at.child("runAsGroup"), errors);
    errors.may_one_of(&at.child("procMount"), &["Default", "Unmasked"]);
    profile(&at.child("seccompProfile"), "localhostProfile", errors);
    profile(&at.child("appArmorProfile"), "localhostProfile", errors);
    if at.value.at("allowPrivilegeEscalation") == &Value::Bool(false) {
        if at.value.flag("privileged") {
            errors.invalid(at, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        if at.value.list("capabilities.add").iter().any(|c| c == "CAP_SYS_ADMIN") {
            errors.invalid(at, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
}

/// A sysctl's name: `kernel.shm_rmid_forced` or with slashes.
fn is_sysctl(name: &str) -> bool {
    const MAX: usize = 253;
    let part = |p: &str| {
        let bytes = p.as_bytes();
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(b))
    };
    name.len() <= MAX && name.split(['.', '/']).all(part)
}

pub fn of_pod(spec: &At<'_>, errors: &mut Errors) {
    let at = spec.child("securityContext");
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(&at.child(field), errors);
    }
    for group in at.each("supplementalGroups") {
        id(&group, errors);
    }
    let shared = spec.child("shareProcessNamespace");
    if shared.value == &Value::Bool(true) && spec.value.flag("hostPID") {
        errors.invalid_as(
            &at.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    errors.may_one_of(&at.child("fsGroupChangePolicy"), &["Always", "OnRootMismatch"]);
    errors.may_one_of(&at.child("supplementalGroupsPolicy"), &["Merge", "Strict"]);
    profile(&at.child("seccompProfile"), "localhostProfile", errors);
    profile(&at.child("appArmorProfile"), "localhostProfile", errors);
    for sysctl in at.each("sysctls") {
        let name = sysctl.child("name");
        if errors.need(&name, "") && !is_sysctl(name.str()) {
            errors.invalid(&name, "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$");
        }
    }
    errors.unique(at.each("sysctls").map(|s| s.child("name")));
}
