//! A bundle in the words of the OCI runtime specification, for runc and those with its command line.
//!
//! Network, IPC and host name are those of the shim, which starts the runtime; the root file system is mounted where it
//! stays before the runtime is started. What OCI cannot say is refused, never left out.

use serde_json::{Value, json};

use super::bundle::{Bundle, Device, Mount, PidNamespace, Process};
use super::capabilities;

/// The version of the specification that is spoken.
const VERSION: &str = "1.0.2";

/// What the shim's own bundle does not have.
pub struct More<'a> {
    /// The container's cgroup.
    pub cgroup: &'a str,
    /// Device rules in version 1's words; `None`: every device.
    pub device_rules: Option<&'a [String]>,
    /// A profile in OCI's format.
    pub seccomp: Option<Value>,
    /// The init of the sandbox's PID namespace, else 0.
    pub sandbox_init: i32,
}

/// The content of `config.json`.
pub fn config(bundle: &Bundle, more: &More<'_>) -> Result<Value, String> {
    if bundle.users.is_some() {
        return Err("user namespaces are not supported by OCI runtime handlers".into());
    }
    let mut mounts = Vec::new();
    for m in &bundle.mounts {
        mounts.push(mount(m)?);
        if m.destination == "/sys" {
            let access = if bundle.cgroup_writable { "rw" } else { "ro" };
            let options = ["nosuid", "noexec", "nodev", "relatime", access];
            let destination = "/sys/fs/cgroup";
            mounts.push(json!({"destination": destination, "type": "cgroup", "source": "cgroup", "options": options}));
        }
    }
    let mut namespaces = vec![json!({"type": "mount"})];
    if bundle.cgroup_namespace {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let joined = |pid: i32| json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")});
    match bundle.pid_namespace {
        PidNamespace::Private => namespaces.push(json!({"type": "pid"})),
        PidNamespace::Sandbox => namespaces.push(joined(more.sandbox_init)),
        PidNamespace::Target(pid) => namespaces.push(joined(pid)),
        PidNamespace::Node => {}
    }
    let mut linux = json!({
        "namespaces": namespaces,
        "cgroupsPath": more.cgroup,
        "devices": bundle.devices.iter().map(device).collect::<Vec<_>>(),
        "maskedPaths": bundle.masked_paths,
        "readonlyPaths": bundle.readonly_paths,
        "resources": {"devices": device_rules(more.device_rules)?},
        "rootfsPropagation": propagation(&bundle.mounts),
    });
    if let Some(profile) = &more.seccomp {
        linux["seccomp"] = profile.clone();
    }
    Ok(json!({
        "ociVersion": VERSION,
        "process": process(&bundle.process)?,
        "root": {"path": bundle.rootfs.mountpoint, "readonly": bundle.rootfs.readonly},
        "mounts": mounts,
        "linux": linux,
    }))
}

fn mount(m: &Mount) -> Result<Value, String> {
    if !m.inside.is_empty() {
        return Err(format!("the sub path \"{}\" of an image is not supported by OCI runtime handlers", m.inside));
    }
    Ok(json!({"destination": m.destination, "type": m.kind, "source": m.source, "options": m.options}))
}

/// The widest that a mount of the pod needs, as for the shim's own containers.
fn propagation(mounts: &[Mount]) -> &'static str {
    let any = |option: &str| mounts.iter().any(|m| m.options.iter().any(|o| o == option));
    if any("rshared") { "rshared" } else { "rslave" }
}

fn process(p: &Process) -> Result<Value, String> {
    let strings = |list: &[super::bundle::Bytes]| {
        list.iter()
            .map(|s| String::from_utf8(s.as_bytes().to_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| "an argument or variable is not UTF-8, which OCI runtime handlers do not take".to_string())
    };
    let mut env = strings(&p.env)?;
    if p.terminal && !env.iter().any(|v| v.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    let sets = p.capabilities;
    // Users other than root keep nothing across exec but what is ambient: the kernel's own rule.
    let permitted = capabilities::names(sets.permitted | sets.ambient);
    let ambient = capabilities::names(sets.ambient);
    let mut value = json!({
        "terminal": p.terminal,
        "user": {"uid": p.uid, "gid": p.gid, "additionalGids": p.groups},
        "args": strings(&p.args)?,
        "env": env,
        "cwd": if p.cwd.is_empty() { "/" } else { &p.cwd },
        "capabilities": {
            "bounding": capabilities::names(sets.bounding),
            "effective": permitted,
            "permitted": permitted,
            "inheritable": ambient,
            "ambient": ambient,
        },
        "noNewPrivileges": p.no_new_privileges,
        "oomScoreAdj": p.oom_score_adj.unwrap_or(0),
    });
    if let Some(profile) = &p.apparmor {
        value["apparmorProfile"] = profile.as_str().into();
    }
    Ok(value)
}

fn device(d: &Device) -> Value {
    let kind = if d.mode & libc::S_IFMT == libc::S_IFBLK { "b" } else { "c" };
    json!({
        "path": d.path, "type": kind, "major": d.major, "minor": d.minor,
        "fileMode": d.mode & 0o7777, "uid": d.uid, "gid": d.gid,
    })
}

/// `c 1:3 rwm`, where a number may be `*`.
fn device_rules(rules: Option<&[String]>) -> Result<Vec<Value>, String> {
    let Some(rules) = rules else { return Ok(vec![json!({"allow": true, "access": "rwm"})]) };
    let mut list = vec![json!({"allow": false, "access": "rwm"})];
    for rule in rules {
        let unreadable = || format!("device rule \"{rule}\" cannot be read");
        let mut parts = rule.split(' ');
        let (Some(kind), Some(numbers), Some(access)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(unreadable());
        };
        let mut value = json!({"allow": true, "type": kind, "access": access});
        let (major, minor) = numbers.split_once(':').ok_or_else(unreadable)?;
        for (name, number) in [("major", major), ("minor", minor)] {
            if number != "*" {
                value[name] = number.parse::<i64>().map_err(|_| unreadable())?.into();
            }
        }
        list.push(value);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_rules_are_read() {
        let rules = ["b *:* m".to_string(), "c 1:3 rwm".to_string()];
        assert_eq!(
            Value::from(device_rules(Some(&rules)).unwrap()),
            json!([
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "b", "access": "m"},
                {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            ])
        );
        assert_eq!(Value::from(device_rules(None).unwrap()), json!([{"allow": true, "access": "rwm"}]));
        assert!(device_rules(Some(&["nonsense".to_string()])).is_err());
    }

    #[test]
    fn propagation_is_the_widest_asked_for() {
        let bind = |option: &str| Mount::new("/a", "bind", "/b", &["rbind", option]);
        assert_eq!(propagation(&[bind("rprivate"), bind("rslave")]), "rslave");
        assert_eq!(propagation(&[bind("rprivate"), bind("rshared")]), "rshared");
    }
}
