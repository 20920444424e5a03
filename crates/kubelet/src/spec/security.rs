//! Security contexts: what the pod and the container say together, as CRI wants to hear it.

use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod, SecurityContext};

use super::Kind;
use crate::config::Config;
use crate::cri::v1::{
    Capability, Image, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy, UserNamespace,
    security_profile::ProfileType,
};

const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The container's security context with what it inherits from the pod.
pub fn effective(pod: &Pod, container: &Container) -> SecurityContext {
    let mut own = container.security_context.clone().unwrap_or_default();
    if let Some(of_pod) = &super::spec(pod).security_context {
        own.run_as_user = own.run_as_user.or(of_pod.run_as_user);
        own.run_as_group = own.run_as_group.or(of_pod.run_as_group);
        own.run_as_non_root = own.run_as_non_root.or(of_pod.run_as_non_root);
        own.se_linux_options = own.se_linux_options.or_else(|| of_pod.se_linux_options.clone());
        own.seccomp_profile = own.seccomp_profile.or_else(|| of_pod.seccomp_profile.clone());
        own.app_armor_profile = own.app_armor_profile.or_else(|| of_pod.app_armor_profile.clone());
    }
    own
}

/// Refuses a container that must not run as root and would.
pub fn verify_non_root(pod: &Pod, container: &Container, image: Option<&Image>) -> Result<(), String> {
    let context = effective(pod, container);
    if context.run_as_non_root != Some(true) {
        return Ok(());
    }
    let tail = format!("(pod: {:?}, container: {})", super::described(pod), container.name);
    if let Some(user) = context.run_as_user {
        return if user == 0 { Err(format!("container's runAsUser breaks non-root policy {tail}")) } else { Ok(()) };
    }
    match image {
        Some(Image { uid: Some(uid), .. }) if uid.value == 0 => {
            Err(format!("container has runAsNonRoot and image will run as root {tail}"))
        }
        Some(Image { uid: None, username, .. }) if !username.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({username}), cannot verify user is non-root {tail}"
        )),
        Some(Image { uid: None, .. }) => Err(format!("container has runAsNonRoot and image will run as root {tail}")),
        _ => Ok(()),
    }
}

fn id(value: Option<i64>) -> Option<Int64Value> {
    value.map(|value| Int64Value { value })
}

fn profile(kind: Option<&str>, localhost: Option<&str>, root_dir: &Path, absent: ProfileType) -> SecurityProfile {
    let (profile_type, localhost_ref) = match kind {
        Some("RuntimeDefault") => (ProfileType::RuntimeDefault, String::new()),
        Some("Unconfined") => (ProfileType::Unconfined, String::new()),
        Some("Localhost") => {
            let file = root_dir.join("seccomp").join(localhost.unwrap_or_default());
            (ProfileType::Localhost, file.to_string_lossy().into_owned())
        }
        _ => (absent, String::new()),
    };
    SecurityProfile { profile_type: profile_type as i32, localhost_ref }
}

fn seccomp(context: &SecurityContext, root_dir: &Path, default_on: bool) -> SecurityProfile {
    let absent = if default_on { ProfileType::RuntimeDefault } else { ProfileType::Unconfined };
    let own = context.seccomp_profile.as_ref();
    profile(own.map(|p| p.type_.as_str()), own.and_then(|p| p.localhost_profile.as_deref()), root_dir, absent)
}

fn apparmor(context: &SecurityContext) -> Option<SecurityProfile> {
    let own = context.app_armor_profile.as_ref()?;
    // AppArmor profiles are loaded by name, not by file.
    let mut out = profile(Some(&own.type_), None, Path::new(""), ProfileType::RuntimeDefault);
    if own.type_ == "Localhost" {
        out.localhost_ref = own.localhost_profile.clone().unwrap_or_default();
    }
    Some(out)
}

/// Why a pod that asks for an AppArmor profile cannot have it here, if it asks for one.
pub fn unenforceable_apparmor(pod: &Pod, enabled: bool) -> Option<String> {
    let confined = |p: &k8s_openapi::api::core::v1::AppArmorProfile| p.type_ != "Unconfined";
    let of_pod = super::spec(pod).security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref());
    let of_container =
        |c: &Container| c.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref()).is_some_and(confined);
    let asked = of_pod.is_some_and(confined) || super::all_containers(pod).any(|(_, c)| of_container(c));
    (asked && !enabled).then(|| "Cannot enforce AppArmor: AppArmor is not enabled on the host".into())
}

/// Whether this machine's kernel enforces AppArmor profiles.
pub fn apparmor_enabled() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|t| t.trim() == "Y")
}

fn selinux(context: &SecurityContext) -> Option<SeLinuxOption> {
    let own = context.se_linux_options.as_ref()?;
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    Some(SeLinuxOption {
        user: text(&own.user),
        role: text(&own.role),
        r#type: text(&own.type_),
        level: text(&own.level),
    })
}

/// Which namespaces the pod shares with the node, and its containers with each other.
pub fn namespaces(pod: &Pod, users: Option<UserNamespace>) -> NamespaceOption {
    let spec = super::spec(pod);
    let node_or_pod =
        |node: Option<bool>| if node == Some(true) { NamespaceMode::Node } else { NamespaceMode::Pod } as i32;
    let pid = if spec.host_pid == Some(true) {
        NamespaceMode::Node
    } else if spec.share_process_namespace == Some(true) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    NamespaceOption {
        network: node_or_pod(spec.host_network),
        ipc: node_or_pod(spec.host_ipc),
        pid: pid as i32,
        userns_options: users,
        ..Default::default()
    }
}

fn groups(pod: &Pod) -> (Vec<i64>, i32) {
    let context = super::spec(pod).security_context.as_ref();
    let mut groups: Vec<i64> = context.and_then(|c| c.supplemental_groups.clone()).unwrap_or_default();
    groups.extend(context.and_then(|c| c.fs_group));
    let strict = context.and_then(|c| c.supplemental_groups_policy.as_deref()) == Some("Strict");
    (groups, if strict { SupplementalGroupsPolicy::Strict } else { SupplementalGroupsPolicy::Merge } as i32)
}

fn privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|c| c.privileged) == Some(true)
}

/// The sandbox's context.
pub fn sandbox(pod: &Pod, users: Option<UserNamespace>, root_dir: &Path) -> LinuxSandboxSecurityContext {
    let context = effective(pod, &Container::default());
    let (supplemental_groups, supplemental_groups_policy) = groups(pod);
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, users)),
        selinux_options: selinux(&context),
        run_as_user: id(context.run_as_user),
        // CRI refuses a group without a user.
        run_as_group: context.run_as_user.and(id(context.run_as_group)),
        supplemental_groups,
        supplemental_groups_policy,
        privileged: super::all_containers(pod).any(|(_, c)| privileged(c)),
        // The pause process does nothing that a profile could hinder.
        seccomp: Some(match &context.seccomp_profile {
            Some(_) => seccomp(&context, root_dir, false),
            None => SecurityProfile { profile_type: ProfileType::RuntimeDefault as i32, localhost_ref: String::new() },
        }),
        ..Default::default()
    }
}

/// A container's context; `image` supplies the user when none is asked for, `target` the container whose processes an
/// ephemeral one joins.
pub fn container(
    pod: &Pod,
    kind: Kind,
    container: &Container,
    image: Option<&Image>,
    target: Option<String>,
    users: Option<UserNamespace>,
    config: &Config,
) -> LinuxContainerSecurityContext {
    let context = effective(pod, container);
    let (supplemental_groups, supplemental_groups_policy) = groups(pod);
    let mut namespace_options = namespaces(pod, users);
    if let (Kind::Ephemeral, Some(target)) = (kind, target) {
        namespace_options.pid = NamespaceMode::Target as i32;
        namespace_options.target_id = target;
    }
    let (mut user, mut username) = (id(context.run_as_user), String::new());
    if user.is_none()
        && let Some(image) = image
    {
        user = image.uid;
        username = image.username.clone();
    }
    let capabilities = context.capabilities.as_ref().map(|c| Capability {
        add_capabilities: c.add.clone().unwrap_or_default(),
        drop_capabilities: c.drop.clone().unwrap_or_default(),
        ..Default::default()
    });
    let unmasked = context.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(ToString::to_string).collect() };
    LinuxContainerSecurityContext {
        capabilities,
        privileged: context.privileged == Some(true),
        namespace_options: Some(namespace_options),
        selinux_options: selinux(&context),
        run_as_user: user,
        run_as_username: username,
        run_as_group: id(context.run_as_group),
        readonly_rootfs: context.read_only_root_filesystem == Some(true),
        supplemental_groups,
        supplemental_groups_policy,
        no_new_privs: context.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(seccomp(&context, &config.root_dir, config.seccomp_default)),
        apparmor: apparmor(&context),
        ..Default::default()
    }
}

/// Sysctls every pod may set.
const SAFE_SYSCTLS: [&str; 10] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
];

/// The first sysctl the pod may not set, with why.
pub fn forbidden_sysctl(pod: &Pod, allowed: &[String]) -> Option<String> {
    let spec = super::spec(pod);
    let asked = spec.security_context.as_ref()?.sysctls.as_ref()?;
    let permitted = |name: &str| {
        SAFE_SYSCTLS.contains(&name)
            || name.starts_with("net.ipv4.tcp_rmem")
            || name.starts_with("net.ipv4.tcp_wmem")
            || allowed.iter().any(|a| a.strip_suffix('*').map_or(a == name, |prefix| name.starts_with(prefix)))
    };
    asked.iter().map(|s| s.name.replace('/', ".")).find_map(|name| {
        if !permitted(&name) {
            return Some(format!("forbidden sysctl: {name:?} not allowlisted"));
        }
        if name.starts_with("net.") && spec.host_network == Some(true) {
            return Some(format!("forbidden sysctl: {name:?} not allowed with host net enabled"));
        }
        let ipc =
            ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| name.starts_with(p)) || name == "kernel.sem";
        (ipc && spec.host_ipc == Some(true))
            .then(|| format!("forbidden sysctl: {name:?} not allowed with host ipc enabled"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(security: Value, container: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": security, "containers": [{"name": "c", "securityContext": container}]}}))
        .unwrap()
    }

    #[test]
    fn root_is_refused_where_it_must_not_be() {
        let image =
            |uid: Option<i64>, username: &str| Image { uid: id(uid), username: username.into(), ..Default::default() };
        for (security, own, image, refused) in [
            (json!({}), json!({}), image(Some(0), ""), false),
            (json!({"runAsNonRoot": true}), json!({}), image(Some(0), ""), true),
            (json!({"runAsNonRoot": true}), json!({}), image(None, ""), true),
            (json!({"runAsNonRoot": true}), json!({}), image(None, "www"), true),
            (json!({"runAsNonRoot": true}), json!({}), image(Some(5), ""), false),
            (json!({"runAsNonRoot": true}), json!({"runAsUser": 7}), image(Some(0), ""), false),
            (json!({"runAsNonRoot": true, "runAsUser": 7}), json!({"runAsUser": 0}), image(Some(5), ""), true),
            (json!({"runAsNonRoot": true}), json!({"runAsNonRoot": false}), image(Some(0), ""), false),
        ] {
            let pod = pod(security.clone(), own.clone());
            let found = verify_non_root(&pod, &super::super::spec(&pod).containers[0], Some(&image));
            assert_eq!(found.is_err(), refused, "{security} {own}");
        }
    }

    #[test]
    fn contexts() {
        let pod = pod(
            json!({"runAsUser": 1, "fsGroup": 5, "supplementalGroups": [6], "seccompProfile": {"type": "RuntimeDefault"}}),
            json!({"runAsUser": 2, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}),
        );
        let c = &super::super::spec(&pod).containers[0];
        let got = container(&pod, Kind::Main, c, None, None, None, &Config::new("n", "/r", "/s"));
        assert_eq!(got.run_as_user.map(|u| u.value), Some(2));
        assert_eq!(got.supplemental_groups, [6, 5]);
        assert!(got.no_new_privs && !got.masked_paths.is_empty());
        assert_eq!(got.seccomp.unwrap().profile_type, ProfileType::RuntimeDefault as i32);
        assert_eq!(got.capabilities.unwrap().drop_capabilities, ["ALL"]);
    }
}
