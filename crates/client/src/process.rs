//! What the kernel says of this process, as every component's `/metrics` shows it under Prometheus' names.

use std::fs::read_to_string;

use crate::metrics::head;

/// Parts of a second that the kernel counts processor time in, on every machine this runs on.
const TICKS: f64 = 100.0;

/// The families' text; what the kernel does not say is left out.
pub fn text() -> String {
    let read = |file: &str| read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let (stat, status, limits) = (read("stat"), read("status"), read("limits"));
    // The command's name may hold anything; what follows its closing parenthesis are the fields from the third on.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let field = |at: usize| fields.get(at - 3)?.parse::<f64>().ok();
    let bytes = |name: &str| number_after(&status, name).map(|kib| kib * 1024.0);
    let open = std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
    let booted = read_to_string("/proc/stat").ok().and_then(|text| number_after(&text, "btime"));
    let mut out = String::new();
    for (name, kind, about, value) in [
        (
            "process_cpu_seconds_total",
            "counter",
            "Processor time spent, seconds.",
            field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS),
        ),
        ("process_max_fds", "gauge", "Descriptors that may be in use.", number_after(&limits, "Max open files")),
        ("process_open_fds", "gauge", "Descriptors in use.", open),
        ("process_resident_memory_bytes", "gauge", "Memory in use.", bytes("VmRSS:")),
        (
            "process_start_time_seconds",
            "gauge",
            "When this began, seconds since 1970.",
            booted.zip(field(22)).map(|(booted, ticks)| booted + ticks / TICKS),
        ),
        ("process_virtual_memory_bytes", "gauge", "Address space in use.", bytes("VmSize:")),
    ] {
        if let Some(value) = value {
            head(&mut out, name, kind, about);
            out.push_str(&format!("{name} {value}\n"));
        }
    }
    out
}

/// The number behind a name that a line begins with.
fn number_after(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_all_of_it() {
        let text = text();
        let value = |name: &str| number_after(&text, &format!("{name} ")).unwrap_or_else(|| panic!("{name} in {text}"));
        assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 6, "{text}");
        assert!(value("process_resident_memory_bytes") < value("process_virtual_memory_bytes"));
        assert!((3.0..=value("process_max_fds")).contains(&value("process_open_fds")));
        assert!(value("process_start_time_seconds") > 1.6e9);
    }
}
