//! Devices by name (Container Device Interface): what vendors' files say a container needs to use one, worked into its
//! configuration.
//!
//! A file that cannot be read hides only its own devices. Hooks are refused, since this engine runs none.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use cri::v1::{ContainerConfig, Device, KeyValue, Mount};

/// Where vendors put their files; what a later directory says of a device counts.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// Largest file taken, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// Most devices of one container.
const MAX_DEVICES: usize = 1024;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    kind: String,
    devices: Vec<Named>,
    container_edits: Edits,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Named {
    name: String,
    container_edits: Edits,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Bind>,
    hooks: Vec<serde_json::Value>,
    #[serde(rename = "additionalGids", alias = "additionalGIDs")]
    additional_groups: Vec<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Node {
    path: String,
    host_path: String,
    permissions: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Bind {
    host_path: String,
    container_path: String,
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: String,
}

fn read(path: &Path) -> Result<Spec, String> {
    let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > MAX_FILE {
        return Err(format!("{size} bytes are more than {MAX_FILE}"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    if path.extension().is_some_and(|e| e == "json") {
        serde_json::from_str(&text).map_err(|e| e.to_string())
    } else {
        serde_saphyr::from_str(&text).map_err(|e| e.to_string())
    }
}

/// The files' contents, by directory.
fn specs(directories: &[&str]) -> Vec<Vec<Spec>> {
    let of = |dir: &&str| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
        let known = |p: &std::path::PathBuf| {
            p.extension().is_some_and(|e| ["json", "yaml", "yml"].iter().any(|known| e == *known))
        };
        let mut files: Vec<_> = entries.filter(known).collect();
        files.sort();
        let read = |file: std::path::PathBuf| match read(&file) {
            Ok(spec) => Some(spec),
            Err(why) => {
                tracing::warn!(file = %file.display(), "a CDI file that cannot be used: {why}");
                None
            }
        };
        files.into_iter().filter_map(read).collect()
    };
    directories.iter().map(of).collect()
}

/// The file that knows a device, and the device.
fn find<'a>(specs: &'a [Vec<Spec>], name: &str) -> Result<(&'a Spec, &'a Named), String> {
    let (kind, device) = name.split_once('=').ok_or_else(|| format!("invalid CDI device name \"{name}\""))?;
    for directory in specs.iter().rev() {
        let of = |spec: &'a Spec| spec.devices.iter().filter(|d| d.name == device).map(move |d| (spec, d));
        let mut found = directory.iter().filter(|s| s.kind == kind).flat_map(of);
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => return Err(format!("several CDI files have device {name}")),
            (Some(found), None) => return Ok(found),
            _ => {}
        }
    }
    Err(format!("unresolvable CDI devices {name}"))
}

fn apply(edits: &Edits, config: &mut ContainerConfig) -> Result<(), String> {
    if !edits.hooks.is_empty() {
        return Err("CDI hooks are not supported by this runtime".into());
    }
    for pair in &edits.env {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("invalid CDI variable \"{pair}\""))?;
        config.envs.push(KeyValue { key: key.into(), value: value.as_bytes().to_vec() });
    }
    for node in &edits.device_nodes {
        let host = if node.host_path.is_empty() { &node.path } else { &node.host_path };
        config.devices.push(Device {
            container_path: node.path.clone(),
            host_path: host.clone(),
            permissions: node.permissions.clone(),
        });
    }
    for bind in &edits.mounts {
        if !["", "none", "bind"].contains(&bind.kind.as_str()) {
            return Err(format!("CDI mount of type \"{}\" is not supported", bind.kind));
        }
        let mut mount = Mount {
            container_path: bind.container_path.clone(),
            host_path: bind.host_path.clone(),
            ..Mount::default()
        };
        for option in &bind.options {
            match option.as_str() {
                "ro" => mount.readonly = true,
                "rw" | "bind" | "rbind" | "private" | "rprivate" => {}
                other => mount.mount_options.push(other.into()),
            }
        }
        config.mounts.push(mount);
    }
    let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    context.supplemental_groups.extend(edits.additional_groups.iter().filter(|g| **g != 0).map(|g| i64::from(*g)));
    Ok(())
}

/// Works a container's named devices into its configuration.
pub fn inject(config: &mut ContainerConfig, directories: &[&str]) -> Result<(), String> {
    let names: BTreeSet<String> = config.cdi_devices.iter().map(|d| d.name.clone()).collect();
    if names.is_empty() {
        return Ok(());
    }
    if names.len() > MAX_DEVICES {
        return Err(format!("{} CDI devices are more than {MAX_DEVICES}", names.len()));
    }
    let specs = specs(directories);
    let mut whole: Vec<*const Spec> = Vec::new();
    for name in &names {
        let (spec, device) = find(&specs, name)?;
        // What a file says of all its devices is said once.
        if !whole.iter().any(|known| std::ptr::eq(*known, spec)) {
            whole.push(spec);
            apply(&spec.container_edits, config)?;
        }
        apply(&device.container_edits, config)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::v1::CdiDevice;

    #[test]
    fn names_become_what_files_say() {
        let (low, high) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write =
            |dir: &tempfile::TempDir, name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            &low,
            "a.json",
            r#"{"cdiVersion": "0.6.0", "kind": "v.com/gpu", "containerEdits": {"env": ["ALL=1"], "additionalGids": [0, 7]},
                "devices": [{"name": "0", "containerEdits": {"env": ["ZERO=1"], "deviceNodes": [{"path": "/dev/g0", "hostPath": "/dev/null"}],
                             "mounts": [{"hostPath": "/lib", "containerPath": "/l", "options": ["ro", "nosuid", "rbind"]}]}},
                            {"name": "1", "containerEdits": {"env": ["ONE=1"]}},
                            {"name": "hooked", "containerEdits": {"hooks": [{"hookName": "createContainer", "path": "/x"}]}}]}"#,
        );
        write(&low, "broken.json", "{");
        write(&high, "b.yaml", "kind: v.com/gpu\ndevices:\n- name: \"1\"\n  containerEdits:\n    env: [\"ONE=2\"]\n");
        write(&high, "c.yaml", "kind: v.com/nic\ndevices: [{name: x}]\n");
        write(&high, "d.yaml", "kind: v.com/nic\ndevices: [{name: x}]\n");
        let dirs = [low.path().to_str().unwrap(), high.path().to_str().unwrap()];
        let given = |names: &[&str]| {
            let cdi_devices = names.iter().map(|n| CdiDevice { name: n.to_string() }).collect();
            let mut config = ContainerConfig { cdi_devices, ..ContainerConfig::default() };
            inject(&mut config, &dirs).map(|()| config)
        };
        let config = given(&["v.com/gpu=0", "v.com/gpu=1", "v.com/gpu=0"]).unwrap();
        let envs: Vec<_> = config.envs.iter().map(|e| (e.key.as_str(), e.value.as_slice())).collect();
        assert_eq!(envs, [("ALL", &b"1"[..]), ("ZERO", b"1"), ("ONE", b"2")]);
        assert_eq!(
            (config.devices[0].container_path.as_str(), config.devices[0].host_path.as_str()),
            ("/dev/g0", "/dev/null")
        );
        assert!(config.mounts[0].readonly && config.mounts[0].mount_options == ["nosuid"]);
        assert_eq!(config.linux.unwrap().security_context.unwrap().supplemental_groups, [7]);
        for (name, why) in [
            ("v.com/gpu=2", "unresolvable CDI devices v.com/gpu=2"),
            ("gpu", "invalid CDI device name \"gpu\""),
            ("v.com/nic=x", "several CDI files have device v.com/nic=x"),
            ("v.com/gpu=hooked", "CDI hooks are not supported by this runtime"),
        ] {
            assert_eq!(given(&[name]).unwrap_err(), why);
        }
        assert_eq!(given(&[]).unwrap(), ContainerConfig::default());
    }
}
