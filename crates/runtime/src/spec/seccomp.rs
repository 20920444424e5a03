//! Seccomp profiles: the default one and those of files in OCI's format, compiled to the kernel's filter programs.
//!
//! The default profile refuses what administers the machine, loads code into the kernel, or escapes namespaces; what a
//! granted capability is for is allowed again. A call unknown to this build does not exist (ENOSYS), so that programs
//! fall back. Guarantees: a filter that cannot be built stops the container from starting, it is never left out;
//! calls of a foreign architecture do not exist.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::syscalls;
use crate::spec::capabilities;
use cri::v1::LinuxContainerSecurityContext;
use cri::v1::security_profile::ProfileType;

/// Largest profile file in bytes.
const MAX_PROFILE: u64 = 4 << 20;
/// Longest program that the kernel takes, in instructions.
const MAX_PROGRAM: usize = 4096;

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// A condition on one argument. For `MaskedEqual`, `value` is the mask and `value_two` what must remain.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Operator,
}

/// A row of a profile file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    name: Option<String>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
}

/// A profile file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Option<Vec<Row>>,
}

/// One decision about one call.
#[derive(Debug, Clone)]
struct Rule {
    number: u32,
    conditions: Vec<Argument>,
    action: u32,
}

/// Which profile a container asked for.
enum Wanted {
    Unconfined,
    /// The default, given these capabilities.
    Default(u64),
    File(String),
}

fn wanted(context: &LinuxContainerSecurityContext) -> Result<Wanted, String> {
    if context.privileged {
        return Ok(Wanted::Unconfined);
    }
    let default = || {
        let all = capabilities::bounding_set();
        capabilities::resolve(context.capabilities.as_ref(), false, all).map(|sets| Wanted::Default(sets.permitted))
    };
    match &context.seccomp {
        Some(profile) => match profile.profile_type() {
            ProfileType::Unconfined => Ok(Wanted::Unconfined),
            ProfileType::RuntimeDefault => default(),
            ProfileType::Localhost => Ok(Wanted::File(profile.localhost_ref.clone())),
        },
        // Older kubelets say it by a path.
        #[allow(deprecated)]
        None => match context.seccomp_profile_path.as_str() {
            "" | "unconfined" => Ok(Wanted::Unconfined),
            "runtime/default" | "docker/default" => default(),
            path => match path.strip_prefix("localhost/") {
                Some(file) => Ok(Wanted::File(file.into())),
                None => Err(format!("unsupported seccomp profile \"{path}\"")),
            },
        },
    }
}

/// The program for a container's wish; `None`: unconfined.
pub fn resolve(context: &LinuxContainerSecurityContext) -> Result<Option<Vec<u8>>, String> {
    match wanted(context)? {
        Wanted::Unconfined => Ok(None),
        Wanted::Default(granted) => default_profile(granted).map(Some),
        Wanted::File(path) => from_file(&path).map(Some),
    }
}

/// The same in OCI's words, for a runtime that compiles profiles itself. Two things cannot be said there: that calls
/// newer than the profile do not exist, and that asking for the execution domain is allowed while changing it is not.
pub fn resolve_oci(context: &LinuxContainerSecurityContext) -> Result<Option<Value>, String> {
    let granted = match wanted(context)? {
        Wanted::Unconfined => return Ok(None),
        Wanted::Default(granted) => granted,
        Wanted::File(path) => return read_file(&path).map(Some),
    };
    let mut rows = Vec::new();
    for (name, conditions, action) in default_rules(granted) {
        if name == "personality" {
            continue;
        }
        rows.push(json!({
            "names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": action & 0xffff, "args": conditions,
        }));
    }
    // Each bit but the two harmless ones: several conditions on one argument are alternatives there.
    for bit in (0..32).map(|n| 1u64 << n).filter(|bit| bit & 0x20008 == 0) {
        let set = Argument { index: 0, value: bit, value_two: bit, op: Operator::MaskedEqual };
        rows.push(
            json!({"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM, "args": [set]}),
        );
    }
    Ok(Some(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rows})))
}

fn from_file(path: &str) -> Result<Vec<u8>, String> {
    let what = |e: &dyn std::fmt::Display| format!("failed to load seccomp profile \"{path}\": {e}");
    let profile: Profile = serde_json::from_value(read_file(path)?).map_err(|e| what(&e))?;
    from_profile(&profile).map_err(|e| what(&e))
}

fn read_file(path: &str) -> Result<Value, String> {
    let path = path.strip_prefix("localhost/").unwrap_or(path);
    let what = |e: &dyn std::fmt::Display| format!("failed to load seccomp profile \"{path}\": {e}");
    let size = std::fs::metadata(path).map_err(|e| what(&e))?.len();
    if size > MAX_PROFILE {
        return Err(what(&format!("it has {size} bytes, more than {MAX_PROFILE}")));
    }
    let text = std::fs::read(path).map_err(|e| what(&e))?;
    serde_json::from_slice(&text).map_err(|e| what(&e))
}

fn action(name: &str, errno: Option<u32>) -> Result<u32, String> {
    let errno = errno.unwrap_or(libc::EPERM as u32) & 0xffff;
    Ok(match name {
        "SCMP_ACT_ALLOW" => RET_ALLOW,
        "SCMP_ACT_ERRNO" => RET_ERRNO | errno,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => RET_KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => RET_KILL_PROCESS,
        "SCMP_ACT_TRAP" => RET_TRAP,
        "SCMP_ACT_TRACE" => RET_TRACE | errno,
        "SCMP_ACT_LOG" => RET_LOG,
        other => return Err(format!("action {other} is not supported")),
    })
}

fn from_profile(profile: &Profile) -> Result<Vec<u8>, String> {
    let mut rules = Vec::new();
    for row in profile.syscalls.iter().flatten() {
        let action = action(&row.action, row.errno_ret)?;
        for name in row.names.iter().chain(&row.name) {
            // Names of other machines' calls are part of every portable profile.
            let Some(number) = syscalls::number(name) else { continue };
            rules.push(Rule { number, conditions: row.args.clone().unwrap_or_default(), action });
        }
    }
    compile(&rules, action(&profile.default_action, profile.default_errno_ret)?, None)
}

/// Refused unless one of the named capabilities is granted; no names: always.
const GUARDED: [(&[&str], &[&str]); 14] = [
    (
        &[],
        &[
            "add_key",
            "request_key",
            "keyctl",
            "create_module",
            "get_kernel_syms",
            "query_module",
            "nfsservctl",
            "kexec_load",
            "kexec_file_load",
            "swapon",
            "swapoff",
            "sysfs",
            "_sysctl",
            "uselib",
            "ustat",
            "vm86",
            "vserver",
            "tuxcall",
            "security",
            "putpmsg",
            "getpmsg",
            "afs_syscall",
            "userfaultfd",
            "move_pages",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
        ],
    ),
    (
        &["SYS_ADMIN"],
        &[
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "umount2",
            "unshare",
        ],
    ),
    (&["SYS_ADMIN", "BPF"], &["bpf"]),
    (&["SYS_ADMIN", "PERFMON"], &["perf_event_open"]),
    (&["DAC_READ_SEARCH"], &["open_by_handle_at"]),
    (&["SYS_BOOT"], &["reboot"]),
    (&["SYS_CHROOT"], &["chroot"]),
    (&["SYS_MODULE"], &["delete_module", "init_module", "finit_module"]),
    (&["SYS_PACCT"], &["acct"]),
    (&["SYS_PTRACE"], &["kcmp", "pidfd_getfd", "process_madvise"]),
    (&["SYS_RAWIO"], &["iopl", "ioperm"]),
    (&["SYS_TIME"], &["settimeofday", "clock_settime", "clock_adjtime"]),
    (&["SYS_TTY_CONFIG"], &["vhangup"]),
    (&["SYS_NICE"], &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node", "migrate_pages"]),
];

fn default_profile(granted: u64) -> Result<Vec<u8>, String> {
    let missing = RET_ERRNO | libc::ENOSYS as u32;
    let rules = default_rules(granted)
        .into_iter()
        .filter_map(|(name, conditions, action)| Some(Rule { number: syscalls::number(name)?, conditions, action }));
    compile(&rules.collect::<Vec<_>>(), RET_ALLOW, Some((syscalls::highest(), missing)))
}

/// What the default profile refuses: names, conditions, what happens.
fn default_rules(granted: u64) -> Vec<(&'static str, Vec<Argument>, u32)> {
    let has = |names: &[&str]| names.iter().any(|n| capabilities::bit(n).is_some_and(|b| granted & b != 0));
    let refuse = RET_ERRNO | libc::EPERM as u32;
    let missing = RET_ERRNO | libc::ENOSYS as u32;
    let mut rules = Vec::new();
    let mut rule = |name: &'static str, conditions: &[Argument], action: u32| {
        rules.push((name, conditions.to_vec(), action));
    };
    for (capabilities, names) in GUARDED {
        if !has(capabilities) {
            names.iter().for_each(|name| rule(name, &[], refuse));
        }
    }
    if !has(&["SYSLOG"]) {
        rule("syslog", &[], refuse);
    }
    if !has(&["SYS_ADMIN"]) {
        // New namespaces, by any flag (mount, cgroup, uts, ipc, user, pid, net). The newer call's flags lie in memory,
        // where a filter cannot look, so it does not exist and programs fall back to the older one.
        for flag in [0x0002_0000u64, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
            let set = Argument { index: 0, value: flag, value_two: flag, op: Operator::MaskedEqual };
            rule("clone", &[set], refuse);
        }
        rule("clone3", &[], missing);
    }
    // Only the execution domains that change nothing about security: 0, 8, 0x20000, 0x20008, and asking.
    let not = |value| Argument { index: 0, value, value_two: 0, op: Operator::NotEqual };
    rule("personality", &[not(0), not(8), not(0x20000), not(0x20008), not(0xffff_ffff)], refuse);
    // Sockets to the hypervisor.
    let vsock = Argument { index: 0, value: libc::AF_VSOCK as u64, value_two: 0, op: Operator::Equal };
    rule("socket", &[vsock], refuse);
    rules
}

/// One instruction: code, jumps if true and if false, constant.
type Instruction = (u16, u8, u8, u32);

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Compiles rules, first match first; `beyond` decides about calls above a number.
fn compile(rules: &[Rule], default: u32, beyond: Option<(u32, u32)>) -> Result<Vec<u8>, String> {
    let missing = RET_ERRNO | libc::ENOSYS as u32;
    let mut program: Vec<Instruction> =
        vec![(LOAD, 0, 0, ARCH), (JUMP_EQUAL, 1, 0, AUDIT_ARCH), (RETURN, 0, 0, missing), (LOAD, 0, 0, NUMBER)];
    if cfg!(target_arch = "x86_64") {
        // The x32 interface: the same architecture with a high bit in the number.
        program.extend([(JUMP_GREATER_EQUAL, 0, 1, 0x4000_0000), (RETURN, 0, 0, missing)]);
    }
    if let Some((highest, action)) = beyond {
        program.extend([(JUMP_GREATER, 0, 1, highest), (RETURN, 0, 0, action)]);
    }
    // One unconditional decision a call is enough; later ones cannot be reached.
    let mut decided = BTreeSet::new();
    for rule in rules {
        if decided.contains(&rule.number) || rule.action == default && rule.conditions.is_empty() {
            continue;
        }
        if rule.conditions.is_empty() {
            decided.insert(rule.number);
            program.extend([(JUMP_EQUAL, 0, 1, rule.number), (RETURN, 0, 0, rule.action)]);
            continue;
        }
        let mut body: Vec<Instruction> = Vec::new();
        for condition in &rule.conditions {
            if condition.index > 5 {
                return Err(format!("argument {} does not exist", condition.index));
            }
            body.extend(check(condition));
        }
        body.push((RETURN, 0, 0, rule.action));
        // A condition that fails jumps to the end, where the number is loaded again for the next rule.
        let length = body.len();
        for (at, instruction) in body.iter_mut().enumerate() {
            let to_end = u8::try_from(length - at - 1).map_err(|_| "a rule has too many conditions")?;
            for jump in [&mut instruction.1, &mut instruction.2] {
                if *jump == FAIL {
                    *jump = to_end;
                }
            }
        }
        let skip = u8::try_from(length + 1).map_err(|_| "a rule has too many conditions")?;
        program.push((JUMP_EQUAL, 0, skip, rule.number));
        program.extend(body);
        program.push((LOAD, 0, 0, NUMBER));
    }
    program.push((RETURN, 0, 0, default));
    if program.len() > MAX_PROGRAM {
        return Err(format!("the profile needs {} instructions, more than {MAX_PROGRAM}", program.len()));
    }
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for (code, if_true, if_false, constant) in program {
        bytes.extend_from_slice(&code.to_ne_bytes());
        bytes.extend_from_slice(&[if_true, if_false]);
        bytes.extend_from_slice(&constant.to_ne_bytes());
    }
    Ok(bytes)
}

/// A jump to be resolved: the condition does not hold.
const FAIL: u8 = 255;

/// Falls through if a condition holds, fails otherwise. Arguments are 64 bits wide, compared in two halves.
fn check(condition: &Argument) -> Vec<Instruction> {
    let low = ARGUMENTS + 8 * condition.index;
    let high = low + 4;
    let (want_high, want_low) = ((condition.value >> 32) as u32, condition.value as u32);
    match condition.op {
        Operator::Equal => vec![
            (LOAD, 0, 0, high),
            (JUMP_EQUAL, 0, FAIL, want_high),
            (LOAD, 0, 0, low),
            (JUMP_EQUAL, 0, FAIL, want_low),
        ],
        Operator::NotEqual => {
            vec![(LOAD, 0, 0, high), (JUMP_EQUAL, 0, 2, want_high), (LOAD, 0, 0, low), (JUMP_EQUAL, FAIL, 0, want_low)]
        }
        Operator::MaskedEqual => {
            let (two_high, two_low) = ((condition.value_two >> 32) as u32, condition.value_two as u32);
            vec![
                (LOAD, 0, 0, high),
                (AND, 0, 0, want_high),
                (JUMP_EQUAL, 0, FAIL, two_high),
                (LOAD, 0, 0, low),
                (AND, 0, 0, want_low),
                (JUMP_EQUAL, 0, FAIL, two_low),
            ]
        }
        // Greater halves decide; equal ones leave it to the low half.
        Operator::Greater | Operator::GreaterOrEqual => vec![
            (LOAD, 0, 0, high),
            (JUMP_GREATER, 3, 0, want_high),
            (JUMP_EQUAL, 0, FAIL, want_high),
            (LOAD, 0, 0, low),
            (if condition.op == Operator::Greater { JUMP_GREATER } else { JUMP_GREATER_EQUAL }, 0, FAIL, want_low),
        ],
        Operator::Less | Operator::LessOrEqual => vec![
            (LOAD, 0, 0, high),
            (JUMP_GREATER, FAIL, 0, want_high),
            (JUMP_EQUAL, 0, 2, want_high),
            (LOAD, 0, 0, low),
            (if condition.op == Operator::Less { JUMP_GREATER_EQUAL } else { JUMP_GREATER }, FAIL, 0, want_low),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would.
    fn run(program: &[u8], number: u32, args: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend_from_slice(&number.to_ne_bytes());
        data.extend_from_slice(&AUDIT_ARCH.to_ne_bytes());
        data.extend_from_slice(&[0; 8]);
        args.iter().for_each(|a| data.extend_from_slice(&a.to_ne_bytes()));
        let word = |at: usize| u32::from_ne_bytes(data[at..at + 4].try_into().unwrap());
        let (mut at, mut a) = (0usize, 0u32);
        loop {
            let i = &program[at * 8..at * 8 + 8];
            let (code, k) = (u16::from_ne_bytes([i[0], i[1]]), u32::from_ne_bytes(i[4..8].try_into().unwrap()));
            let jump = |yes: bool| usize::from(if yes { i[2] } else { i[3] });
            at += 1;
            match code {
                LOAD => a = word(k as usize),
                AND => a &= k,
                JUMP_EQUAL => at += jump(a == k),
                JUMP_GREATER => at += jump(a > k),
                JUMP_GREATER_EQUAL => at += jump(a >= k),
                RETURN => return k,
                other => panic!("{other:x}"),
            }
        }
    }

    fn call(program: &[u8], name: &str, first: u64) -> u32 {
        run(program, syscalls::number(name).unwrap(), [first, 0, 0, 0, 0, 0])
    }

    #[test]
    fn the_default_profile() {
        let program = default_profile(0).unwrap();
        let refused = RET_ERRNO | libc::EPERM as u32;
        let missing = RET_ERRNO | libc::ENOSYS as u32;
        for (name, first, expect) in [
            ("read", 0, RET_ALLOW),
            ("mount", 0, refused),
            ("reboot", 0, refused),
            ("keyctl", 0, refused),
            ("clone", 0x11, RET_ALLOW),
            ("clone", 0x1000_0011, refused),
            ("clone", 0x0002_0000, refused),
            ("clone3", 0, missing),
            ("personality", 0, RET_ALLOW),
            ("personality", 0xffff_ffff, RET_ALLOW),
            ("personality", 0x40000, refused),
            ("socket", 2, RET_ALLOW),
            ("socket", 40, refused),
            ("socket", 1 << 32 | 40, RET_ALLOW),
        ] {
            assert_eq!(call(&program, name, first), expect, "{name}({first:#x})");
        }
        assert_eq!(run(&program, 5000, [0; 6]), missing);
        assert_eq!(run(&program, 0x4000_0000, [0; 6]), missing);
        let admin = default_profile(capabilities::bit("SYS_ADMIN").unwrap()).unwrap();
        assert_eq!(call(&admin, "mount", 0), RET_ALLOW);
        assert_eq!(call(&admin, "clone3", 0), RET_ALLOW);
        assert_eq!(call(&admin, "reboot", 0), refused);
    }

    #[test]
    fn comparisons() {
        let values = [0u64, 1, 7, 1 << 32, (1 << 32) + 7, u64::MAX];
        let ops: [(&str, fn(u64, u64) -> bool); 6] = [
            ("EQ", |a, b| a == b),
            ("NE", |a, b| a != b),
            ("LT", |a, b| a < b),
            ("LE", |a, b| a <= b),
            ("GT", |a, b| a > b),
            ("GE", |a, b| a >= b),
        ];
        for (name, holds) in ops {
            for value in values {
                let profile = serde_json::json!({
                    "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 9,
                    "syscalls": [
                        {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW",
                         "args": [{"index": 0, "value": value, "op": format!("SCMP_CMP_{name}")}]},
                        {"names": ["write"], "action": "SCMP_ACT_ALLOW"},
                    ],
                });
                let program = from_profile(&serde_json::from_value(profile).unwrap()).unwrap();
                for given in values {
                    let expect = if holds(given, value) { RET_ALLOW } else { RET_ERRNO | 9 };
                    assert_eq!(call(&program, "read", given), expect, "{given} {name} {value}");
                }
                assert_eq!(call(&program, "write", 0), RET_ALLOW);
                assert_eq!(call(&program, "close", 0), RET_ERRNO | 9);
            }
        }
    }

    #[test]
    fn bad_profiles_are_errors() {
        for bad in [
            serde_json::json!({"defaultAction": "NONSENSE"}),
            serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]}),
            serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}),
        ] {
            assert!(from_profile(&serde_json::from_value(bad).unwrap()).is_err());
        }
        assert!(from_file("/no/such/profile.json").is_err());
    }
}
