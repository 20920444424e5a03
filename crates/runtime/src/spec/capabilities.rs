//! Capabilities: names to bits, and what a container gets.

use crate::spec::bundle::Capabilities;
use cri::v1::Capability;

/// By number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container gets if nothing is said.
const DEFAULTS: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The bit of a name, with or without `CAP_`, in any case.
pub fn bit(name: &str) -> Option<u64> {
    let upper = name.to_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|n| *n == short).map(|n| 1 << n)
}

/// The names of a mask, lowest first, with `CAP_`.
pub fn names(mask: u64) -> Vec<String> {
    NAMES.iter().enumerate().filter(|(n, _)| mask & (1 << n) != 0).map(|(_, name)| format!("CAP_{name}")).collect()
}

fn default_mask() -> u64 {
    DEFAULTS.iter().filter_map(|n| bit(n)).fold(0, |a, b| a | b)
}

/// Every capability this process could hand on: what is outside cannot be given to anybody.
pub fn bounding_set() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|l| l.strip_prefix("CapBnd:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(u64::MAX)
}

/// What a container gets. An unknown name is an error.
pub fn resolve(wish: Option<&Capability>, privileged: bool, available: u64) -> Result<Capabilities, String> {
    if privileged {
        return Ok(Capabilities { bounding: available, permitted: available, ambient: 0 });
    }
    let none = Capability::default();
    let wish = wish.unwrap_or(&none);
    let all = |list: &[String]| list.iter().any(|n| n.eq_ignore_ascii_case("ALL"));
    let mask = |list: &[String]| {
        list.iter().filter(|n| !n.eq_ignore_ascii_case("ALL")).try_fold(0, |mask, name| {
            bit(name).map(|b| mask | b).ok_or_else(|| format!("unknown capability \"{name}\""))
        })
    };
    let (add, drop) = (mask(&wish.add_capabilities)?, mask(&wish.drop_capabilities)?);
    let mut granted = default_mask();
    if all(&wish.add_capabilities) {
        granted = available;
    }
    if all(&wish.drop_capabilities) {
        granted = 0;
    }
    granted = ((granted | add) & !drop) & available;
    let ambient = mask(&wish.add_ambient_capabilities)? & granted;
    Ok(Capabilities { bounding: granted, permitted: granted, ambient })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_resolved() {
        let list = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        let everything = (1u64 << 41) - 1;
        let without_resource = everything & !bit("SYS_RESOURCE").unwrap();
        let cases: [(&[&str], &[&str], u64, u64); 7] = [
            (&[], &[], everything, default_mask()),
            (&["NET_ADMIN"], &[], everything, default_mask() | 1 << 12),
            (&["CAP_net_admin"], &["ALL"], everything, 1 << 12),
            (&["ALL"], &["NET_RAW"], everything, everything & !(1 << 13)),
            (&["SYS_RESOURCE"], &["ALL"], without_resource, 0),
            (&[], &["ALL"], everything, 0),
            (&["ALL"], &[], without_resource, without_resource),
        ];
        for (add, drop, available, expect) in cases {
            let wish =
                Capability { add_capabilities: list(add), drop_capabilities: list(drop), ..Capability::default() };
            let got = resolve(Some(&wish), false, available).unwrap();
            assert_eq!(names(got.permitted), names(expect), "+{add:?} -{drop:?}");
        }
        let bad = Capability { add_capabilities: list(&["NO_SUCH"]), ..Capability::default() };
        assert!(resolve(Some(&bad), false, everything).is_err());
    }
}
