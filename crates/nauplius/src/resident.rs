//! What starting and busy times needed of memory, given back once the process has settled: of the program's file, and of the
//! heap.
//!
//! Starting runs through most of the program once, and so does a rush of pods; waiting, four fifths of it are never looked at
//! again, and yet count as resident. Guarantees that nothing changes but that: only mappings of files are given back of which this process has no
//! page of its own, and what is needed later is mapped again from the page cache; of the heap, pages that hold nothing. Knows
//! no role.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::time::Duration;

use nix::sys::mman::{MmapAdvise, madvise};
use nix::sys::resource::{UsageWho, getrusage};

/// After this long, what starts has started, and what was busy and is not any more has settled.
const SETTLED: Duration = Duration::from_secs(20);
/// Processor time within that, from which on a process is busy: 2%.
const BUSY: Duration = Duration::from_millis(400);

/// Makes the allocator give back the empty pages of all its arenas.
const PURGE: &CStr = c"arena.4096.purge";

/// Gives back what the first seconds needed of the program, its libraries and the heap, and what each busy time did after them.
pub async fn give_back_when_settled() {
    tokio::time::sleep(SETTLED).await;
    loop {
        give_back_now().await;
        let (mut used, mut was_busy) = (processor_time(), false);
        loop {
            tokio::time::sleep(SETTLED).await;
            let now = processor_time();
            let busy = now.saturating_sub(std::mem::replace(&mut used, now)) > BUSY;
            if was_busy && !busy {
                break;
            }
            was_busy |= busy;
        }
    }
}

/// What this process has used of processors so far.
fn processor_time() -> Duration {
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() * 1_000_000 + time.tv_usec();
    let used = getrusage(UsageWho::RUSAGE_SELF).map(|u| micros(u.user_time()) + micros(u.system_time()));
    Duration::from_micros(used.unwrap_or(0).max(0) as u64)
}

/// The same for a role that has started and goes on to what needs most memory: the two do not add up then.
pub async fn give_back_now() {
    // It only saves memory: a kernel that shows no mappings keeps it.
    if let Ok(Err(error)) = tokio::task::spawn_blocking(give_back).await {
        tracing::debug!(%error, "memory not given back");
    }
}

fn give_back() -> std::io::Result<()> {
    for (start, length) in clean(&std::fs::read_to_string("/proc/self/smaps")?) {
        // SAFETY: the range is a whole mapping of a file, not writable, with no page that this process ever changed
        // (relocated data, which the linker protects, has such pages and is not among them): whatever is dropped reads
        // the same when the kernel maps it again.
        unsafe { madvise(start, length.get(), MmapAdvise::MADV_DONTNEED) }?;
    }
    let nothing = std::ptr::null_mut();
    // SAFETY: a terminated name of something that takes no value and tells none.
    match unsafe { tikv_jemalloc_sys::mallctl(PURGE.as_ptr(), nothing, nothing.cast(), nothing, 0) } {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(error)),
    }
}

/// Start and length in bytes of the mappings of files, as `/proc/PID/smaps` shows them, that cannot be written and hold
/// no page of the process's own.
fn clean(smaps: &str) -> Vec<(NonNull<c_void>, NonZeroUsize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        if !first.ends_with(':') {
            let of_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
            candidate = range(first)
                .filter(|_| of_file && second.starts_with('r') && second.ends_with("p") && !second.contains('w'));
        } else if first == "Anonymous:" && second == "0" {
            found.extend(candidate.take());
        }
    }
    found
}

fn range(text: &str) -> Option<(NonNull<c_void>, NonZeroUsize)> {
    let (start, end) = text.split_once('-')?;
    let [start, end] = [start, end].map(|hex| usize::from_str_radix(hex, 16).ok());
    let start_address = NonNull::new(std::ptr::with_exposed_provenance_mut(start?))?;
    Some((start_address, NonZeroUsize::new(end?.checked_sub(start?)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_never_written_is_given_back() {
        let mapping = |range: &str, mode: &str, path: &str, anonymous: u32| {
            format!(
                "{range} {mode} 00001000 fe:00 42    {path}\nSize: 8 kB\nAnonymous:  {anonymous} kB\nVmFlags: rd ex\n"
            )
        };
        let smaps = [
            mapping("1000-3000", "r-xp", "/usr/bin/nauplius", 0),
            mapping("3000-5000", "r--p", "/usr/bin/nauplius", 4),
            mapping("5000-6000", "rw-p", "/usr/bin/nauplius", 0),
            mapping("6000-7000", "r--s", "/var/lib/shared", 0),
            mapping("7000-8000", "r-xp", "[vdso]", 0),
            mapping("8000-9000", "rw-p", "", 0),
            mapping("9000-c000", "r--p", "/usr/lib/libc.so.6", 0),
        ];
        let found: Vec<_> = clean(&smaps.concat()).into_iter().map(|(at, n)| (at.as_ptr().addr(), n.get())).collect();
        assert_eq!(found, [(0x1000, 0x2000), (0x9000, 0x3000)]);
    }

    #[test]
    fn the_process_goes_on() {
        give_back().unwrap();
        assert_eq!(format!("{:?}", clean("")), "[]");
    }
}
