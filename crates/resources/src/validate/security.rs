//! Security contexts of pods and containers.

use meta::Value;

use super::volumes::no_backsteps;
use super::{At, Errors};
use meta::Tree;

/// Users and groups Linux knows.
const MAX_ID: i64 = i32::MAX as i64;
/// Bytes of a path.
const MAX_PATH: usize = 4095;
const WINDOWS: &str = "cannot be set for a windows pod";

fn id(at: &At<'_>, errors: &mut Errors) {
    if at.number().is_some_and(|id| !(0..=MAX_ID).contains(&id)) {
        errors.invalid(at, format!("must be between 0 and {MAX_ID}, inclusive"));
    }
}

/// `seccompProfile` and `appArmorProfile` of a security context.
fn profiles(context: &At<'_>, errors: &mut Errors) {
    let kinds = [("seccompProfile", "seccomp"), ("appArmorProfile", "AppArmor")];
    for (name, shown) in kinds.iter().filter(|(name, _)| context.value.has(name)) {
        let at = context.child(name);
        let (kind, file) = (at.child("type"), at.child("localhostProfile"));
        if errors.need(&kind, &format!("type is required when {name} is set")) {
            errors.one_of(&kind, &["Localhost", "RuntimeDefault", "Unconfined"]);
        }
        let named = ["RuntimeDefault", "Unconfined"].contains(&kind.str());
        let needed = || format!("must be set when {shown} type is Localhost");
        match (kind.str(), *shown, file.there()) {
            ("Localhost", _, false) => errors.required(&file, &needed()),
            ("Localhost", "seccomp", true) => {
                if file.str().starts_with('/') {
                    errors.invalid(&file, "must be a relative path");
                }
                no_backsteps(&file, errors);
            }
            ("Localhost", _, true) => {
                if file.str().trim() != file.str() {
                    errors.invalid(&file, "must not be padded with whitespace");
                } else if file.blank() {
                    errors.required(&file, &needed());
                }
                if file.str().len() > MAX_PATH {
                    errors.too_long(&file, MAX_PATH);
                }
            }
            // Whatever else the type is, upstream says so of seccomp only.
            (_, "seccomp", true) => errors.invalid(&file, "can only be set when seccomp type is Localhost"),
            (_, _, true) if named => errors.invalid(&file, "can only be set when AppArmor type is Localhost"),
            _ => {}
        }
    }
}

pub fn of_container(at: &At<'_>, errors: &mut Errors) {
    if !at.there() {
        return;
    }
    id(&at.child("runAsUser"), errors);
    id(&at.child("runAsGroup"), errors);
    errors.may_one_of(&at.child("procMount"), &["Default", "Unmasked"]);
    profiles(at, errors);
    if at.value.at("allowPrivilegeEscalation") == &Value::Bool(false) {
        if at.value.flag("privileged") {
            errors.invalid(at, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        if at.value.list("capabilities.add").iter().any(|c| c == "CAP_SYS_ADMIN") {
            errors.invalid(at, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
}

/// All containers of a spec.
pub fn containers<'v>(spec: &At<'v>) -> impl Iterator<Item = At<'v>> + use<'v> {
    let lists = ["initContainers", "containers", "ephemeralContainers"].map(|list| spec.child(list));
    lists.into_iter().flat_map(|list| list.items())
}

fn forbid(at: &At<'_>, fields: &[&str], detail: &str, errors: &mut Errors) {
    for field in fields.iter().map(|f| at.child(f)) {
        let empty = field.value.as_array().is_some_and(Vec::is_empty);
        if field.there() && !empty {
            errors.forbidden(&field, detail);
        }
    }
}

/// What makes no sense on the operating system a spec names.
pub fn of_system(spec: &At<'_>, errors: &mut Errors) {
    let pod = spec.child("securityContext");
    match spec.value.text("os.name") {
        "linux" => {
            for context in std::iter::once(pod).chain(containers(spec).map(|c| c.child("securityContext"))) {
                forbid(&context, &["windowsOptions"], "windows options cannot be set for a linux pod", errors);
            }
        }
        "windows" => {
            forbid(&pod, &["appArmorProfile", "seLinuxOptions"], WINDOWS, errors);
            forbid(spec, &["hostUsers"], WINDOWS, errors);
            for flag in ["hostPID", "hostIPC"].into_iter().filter(|flag| spec.value.flag(flag)) {
                errors.forbidden(&spec.child(flag), WINDOWS);
            }
            forbid(&pod, &["seccompProfile", "fsGroup", "fsGroupChangePolicy", "sysctls"], WINDOWS, errors);
            forbid(spec, &["shareProcessNamespace"], WINDOWS, errors);
            let fields =
                ["runAsUser", "runAsGroup", "supplementalGroups", "supplementalGroupsPolicy", "seLinuxChangePolicy"];
            forbid(&pod, &fields, WINDOWS, errors);
            let fields = [
                "appArmorProfile",
                "seLinuxOptions",
                "seccompProfile",
                "capabilities",
                "readOnlyRootFilesystem",
                "privileged",
                "allowPrivilegeEscalation",
                "procMount",
                "runAsUser",
                "runAsGroup",
            ];
            containers(spec).for_each(|c| forbid(&c.child("securityContext"), &fields, WINDOWS, errors));
        }
        _ => {}
    }
}

/// Containers that are processes of a Windows host are so all together, and on its network.
pub fn host_processes(spec: &At<'_>, errors: &mut Errors) {
    const OPTION: &str = "securityContext.windowsOptions.hostProcess";
    let of_pod = spec.value.at(OPTION).as_bool();
    let (mut all, mut on_host) = (0, 0);
    for container in containers(spec) {
        let own = container.child(OPTION);
        all += 1;
        on_host += usize::from(own.value.as_bool().or(of_pod) == Some(true));
        if let (Some(pod), Some(own_value)) = (of_pod, own.value.as_bool())
            && pod != own_value
        {
            errors.invalid(&own, format!("pod hostProcess value must be identical if both are specified, was {pod}"));
        }
    }
    if on_host == 0 {
        return;
    }
    if on_host != all {
        let detail = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.invalid_as(spec, "", detail);
    }
    if !spec.value.flag("hostNetwork") {
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.invalid_as(&spec.child("hostNetwork"), false, detail);
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
    profiles(&at, errors);
    for sysctl in at.each("sysctls") {
        let name = sysctl.child("name");
        if errors.need(&name, "") && !is_sysctl(name.str()) {
            errors.invalid(&name, "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$");
        }
    }
    errors.unique(at.each("sysctls").map(|s| s.child("name")));
}
