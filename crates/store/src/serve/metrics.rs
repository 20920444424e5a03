//! The page for Prometheus, under the names etcd gives what this server has too.
//!
//! A lone member has a leader, itself, and elects nobody; its log is the write-ahead log and the database in one. Where etcd
//! tells how long a commit to its database takes, this tells how long a group takes from being taken up until all see it.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{API_VERSION, Served};
use crate::StoreError;
use crate::embedded::Status;
use crate::embedded::meter::{BOUNDS, Histogram};

/// Bytes of a page of memory, as `/proc` counts them.
const MEMORY_PAGE: u64 = 4096;

/// Ticks of a processor a second, as `/proc` counts them, on every Linux there is.
const TICKS: f64 = 100.0;

struct Page(String);

impl Page {
    fn one(&mut self, kind: &str, name: &str, what: &str, value: impl Display) {
        _ = write!(self.0, "# HELP {name} {what}\n# TYPE {name} {kind}\n{name} {value}\n");
    }

    fn gauge(&mut self, name: &str, what: &str, value: impl Display) {
        self.one("gauge", name, what, value);
    }

    fn counter(&mut self, name: &str, what: &str, value: impl Display) {
        self.one("counter", name, what, value);
    }

    fn histogram(&mut self, name: &str, what: &str, histogram: &Histogram) {
        let counts = histogram.counts();
        _ = write!(self.0, "# HELP {name} {what}\n# TYPE {name} histogram\n");
        for (bound, count) in counts.iter().take(BOUNDS).enumerate() {
            let bound = Histogram::bound(bound).as_secs_f64();
            _ = writeln!(self.0, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let all = counts.last().copied().unwrap_or(0);
        let seconds = histogram.seconds();
        _ = write!(self.0, "{name}_bucket{{le=\"+Inf\"}} {all}\n{name}_sum {seconds}\n{name}_count {all}\n");
    }
}

/// The page.
///
/// # Errors
/// When the store is closed.
pub fn page(served: &Served) -> Result<String, StoreError> {
    let status = served.store.status()?;
    let mut page = Page(String::with_capacity(16 << 10));
    server(&mut page, served, &status);
    store(&mut page, served, &status);
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    page.counter("etcd_network_client_grpc_received_bytes_total", "Bytes from clients.", count(&served.received));
    page.counter("etcd_network_client_grpc_sent_bytes_total", "Bytes to clients.", count(&served.sent));
    served.calls.write(&mut page.0);
    process(&mut page);
    Ok(page.0)
}

fn server(page: &mut Page, served: &Served, status: &Status) {
    let (pending, failed) = served.calls.writes();
    page.gauge("etcd_server_has_leader", "Whether this member has a leader: it is its own.", 1);
    page.gauge("etcd_server_is_leader", "Whether this member is the leader.", 1);
    page.gauge("etcd_server_is_learner", "Whether this member is a learner.", 0);
    page.counter("etcd_server_leader_changes_seen_total", "Changes of the leader: one, when this member began.", 1);
    page.counter("etcd_server_heartbeat_send_failures_total", "Heartbeats that failed: there are none to send.", 0);
    page.gauge(
        "etcd_server_proposals_committed_total",
        "The newest revision: writes are counted by it.",
        status.revision,
    );
    page.gauge("etcd_server_proposals_applied_total", "The newest revision that is seen.", status.revision);
    page.gauge("etcd_server_proposals_pending", "Writes under way.", pending);
    page.counter("etcd_server_proposals_failed_total", "Writes that the store could not take.", failed);
    let limit = served.store.options().max_database_bytes;
    page.gauge("etcd_server_quota_backend_bytes", "The most bytes of keys and values.", limit);
    _ = write!(
        page.0,
        "# HELP etcd_server_version The version whose API this is.\n# TYPE etcd_server_version gauge\n\
         etcd_server_version{{server_version=\"{API_VERSION}\"}} 1\n\
         # HELP etcd_cluster_version The version members speak.\n# TYPE etcd_cluster_version gauge\n\
         etcd_cluster_version{{cluster_version=\"3.5\"}} 1\n\
         # HELP etcd_server_id The member.\n# TYPE etcd_server_id gauge\n\
         etcd_server_id{{server_id=\"{:x}\"}} 1\n",
        served.member
    );
}

fn store(page: &mut Page, served: &Served, status: &Status) {
    let meter = served.store.meter();
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    page.histogram("etcd_disk_wal_fsync_duration_seconds", "Writing a group until it is on disk.", &meter.syncs);
    page.histogram("etcd_disk_backend_commit_duration_seconds", "A group until all see it.", &meter.groups);
    page.histogram("etcd_disk_backend_snapshot_duration_seconds", "Snapshots of the store's own.", &meter.snapshots);
    page.counter("etcd_disk_wal_write_bytes_total", "Bytes of records written.", count(&meter.written));
    page.gauge("etcd_mvcc_db_total_size_in_bytes", "Bytes of log and snapshots.", status.log_bytes);
    page.gauge(
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "Bytes of keys and values that are there.",
        status.live_bytes,
    );
    page.counter("etcd_mvcc_put_total", "Keys written.", count(&meter.puts));
    page.counter("etcd_mvcc_delete_total", "Keys deleted.", count(&meter.deletes));
    page.counter("etcd_mvcc_range_total", "Reads answered.", served.calls.ranges());
    page.counter("etcd_debugging_mvcc_events_total", "Events sent to watches.", count(&served.events));
    page.gauge("etcd_debugging_mvcc_keys_total", "Keys that are there.", status.keys);
    page.gauge("etcd_debugging_mvcc_current_revision", "The newest revision.", status.revision);
    page.gauge("etcd_debugging_mvcc_compact_revision", "The revision before which nothing is known.", status.compacted);
    page.gauge("etcd_debugging_mvcc_watch_stream_total", "Streams of watches.", served.calls.watch_streams());
    let watches = served.watches.load(Ordering::Relaxed);
    page.gauge("etcd_debugging_mvcc_watcher_total", "Watches on all streams.", watches);
    page.counter("etcd_debugging_lease_granted_total", "Leases granted.", count(&meter.leases_granted));
    page.counter(
        "etcd_debugging_lease_revoked_total",
        "Leases that ended, asked to or not.",
        count(&meter.leases_ended),
    );
    page.gauge("etcd_debugging_lease_granted", "Leases that are held.", status.leases);
}

/// What Prometheus' clients tell of their process. A number that the system does not give is left out.
fn process(page: &mut Page) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is a name in parentheses, which may hold anything.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let field = |number: usize| fields.get(number - 3).and_then(|field| field.parse::<u64>().ok());
    if let (Some(user), Some(system)) = (field(14), field(15)) {
        page.counter("process_cpu_seconds_total", "Time of processors used.", (user + system) as f64 / TICKS);
    }
    if let (Some(began), Some(booted)) = (field(22), booted()) {
        let began = booted as f64 + began as f64 / TICKS;
        page.gauge("process_start_time_seconds", "When it began, since 1970.", began);
    }
    if let (Some(virtual_bytes), Some(pages)) = (field(23), field(24)) {
        page.gauge("process_virtual_memory_bytes", "Addresses in use.", virtual_bytes);
        page.gauge("process_resident_memory_bytes", "Memory in use.", pages * MEMORY_PAGE);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        page.gauge("process_open_fds", "Open files.", files.count());
    }
    if let Ok((soft, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        page.gauge("process_max_fds", "The most open files.", soft);
    }
}

fn booted() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.parse().ok())
}
