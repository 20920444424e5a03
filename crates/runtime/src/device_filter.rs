//! Which devices a cgroup of version 2 may use: a small eBPF program made from version 1's rules.
//!
//! Named room for unsafe code: the `bpf` system call. The program is a chain of comparisons without loops, so the
//! kernel's verifier accepts it or nothing is attached.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// One eBPF instruction.
fn instruction(op: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let mut raw = [0u8; 8];
    raw[0] = op;
    raw[1] = dst | (src << 4);
    raw[2..4].copy_from_slice(&offset.to_ne_bytes());
    raw[4..8].copy_from_slice(&immediate.to_ne_bytes());
    raw
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Compiles rules such as `c 1:3 rwm`, `b *:* m`; an unreadable rule is an error. Everything else is denied.
fn compile(rules: &[String]) -> io::Result<Vec<u8>> {
    // The context: { access_type: u32 (kind | access << 16), major: u32, minor: u32 }.
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE_REGISTER, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let bad = || io::Error::new(io::ErrorKind::InvalidInput, format!("device rule \"{rule}\""));
        let mut parts = rule.split(' ');
        let (kind, numbers, access) = match (parts.next(), parts.next(), parts.next()) {
            (Some(k), Some(n), Some(a)) => (k, n, a),
            _ => return Err(bad()),
        };
        let (major, minor) = numbers.split_once(':').ok_or_else(bad)?;
        let mut tests: Vec<(u8, i32)> = Vec::new();
        match kind {
            "b" => tests.push((2, 1)),
            "c" => tests.push((2, 2)),
            _ => return Err(bad()),
        }
        for (register, number) in [(4, major), (5, minor)] {
            if number != "*" {
                tests.push((register, number.parse().map_err(|_| bad())?));
            }
        }
        let mask = access.chars().try_fold(0, |mask, c| match c {
            'm' => Ok(mask | 1),
            'r' => Ok(mask | 2),
            'w' => Ok(mask | 4),
            _ => Err(bad()),
        })?;
        // Wanted access outside the mask skips the rule too.
        let length = (tests.len() + 3 + 2) as i16;
        let mut at = 0i16;
        for (register, value) in tests {
            at += 1;
            program.push(instruction(JUMP_NOT_EQUAL, register, 0, length - at, value));
        }
        program.push(instruction(MOVE_REGISTER, 1, 3, 0, 0));
        program.push(instruction(AND, 1, 0, 0, !mask));
        program.push(instruction(JUMP_NOT_EQUAL, 1, 0, 2, 0));
        program.push(instruction(MOVE, 0, 0, 0, 1));
        program.push(instruction(EXIT, 0, 0, 0, 0));
    }
    program.push(instruction(MOVE, 0, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    Ok(program.concat())
}

/// Attaches the filter to a cgroup.
pub fn attach(cgroup: &Path, rules: &[String]) -> io::Result<()> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const ATTACH_CGROUP_DEVICE: u32 = 6;
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let program = compile(rules)?;
    let license = c"Apache-2.0";
    let load = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        count: (program.len() / 8) as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: the structure is the head of `union bpf_attr` for this command and its size is passed; the pointers in
    // it live until the call returns. The result is a new descriptor that we own.
    let loaded = unsafe {
        let fd = libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &load as *const Load, std::mem::size_of::<Load>());
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd as RawFd)
    };
    let dir = std::fs::File::open(cgroup)?;
    let attach = Attach {
        target: dir.as_raw_fd() as u32,
        program: loaded.as_raw_fd() as u32,
        kind: ATTACH_CGROUP_DEVICE,
        flags: 0,
    };
    // SAFETY: as above; both descriptors are open.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &attach as *const Attach, std::mem::size_of::<Attach>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_compile() {
        let rules: Vec<String> = ["c 1:3 rwm", "b *:* m", "c 136:* rwm"].iter().map(|r| r.to_string()).collect();
        let program = compile(&rules).unwrap();
        assert_eq!(program.len() % 8, 0);
        // head 6, rules (3+5) + (1+5) + (2+5), tail 2
        assert_eq!(program.len() / 8, 6 + 8 + 6 + 7 + 2);
        for bad in ["", "c", "x 1:2 r", "c 1 r", "c a:b r", "c 1:2 z"] {
            assert!(compile(&[bad.to_string()]).is_err(), "{bad}");
        }
    }
}
