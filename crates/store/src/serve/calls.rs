//! What was asked of the server, by method, and how it ended.
//!
//! Guarantees: counting a call takes no lock; a call that is dropped on its way counts as cancelled. Knows nothing of what
//! is asked.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tonic::Code;

/// The methods that are counted: path, and the kind gRPC's metrics give it. The busiest first.
const METHODS: [(&str, &str); 20] = [
    ("/etcdserverpb.KV/Txn", "unary"),
    ("/etcdserverpb.KV/Put", "unary"),
    ("/etcdserverpb.KV/Range", "unary"),
    ("/etcdserverpb.KV/DeleteRange", "unary"),
    ("/etcdserverpb.KV/Compact", "unary"),
    ("/etcdserverpb.Watch/Watch", "bidi_stream"),
    ("/etcdserverpb.Lease/LeaseGrant", "unary"),
    ("/etcdserverpb.Lease/LeaseRevoke", "unary"),
    ("/etcdserverpb.Lease/LeaseKeepAlive", "bidi_stream"),
    ("/etcdserverpb.Lease/LeaseTimeToLive", "unary"),
    ("/etcdserverpb.Lease/LeaseLeases", "unary"),
    ("/etcdserverpb.Maintenance/Alarm", "unary"),
    ("/etcdserverpb.Maintenance/Status", "unary"),
    ("/etcdserverpb.Maintenance/Defragment", "unary"),
    ("/etcdserverpb.Maintenance/Hash", "unary"),
    ("/etcdserverpb.Maintenance/HashKV", "unary"),
    ("/etcdserverpb.Maintenance/Snapshot", "server_stream"),
    ("/etcdserverpb.Maintenance/MoveLeader", "unary"),
    ("/etcdserverpb.Cluster/MemberList", "unary"),
    // Everything else.
    ("/other/Other", "unary"),
];

/// Those that write.
const WRITES: [usize; 6] = [0, 1, 3, 4, 6, 7];

/// gRPC's codes, by their numbers, as its metrics spell them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

#[derive(Default)]
struct Count {
    started: AtomicU64,
    handled: [AtomicU64; CODES.len()],
}

/// The counts of all methods.
#[derive(Default)]
pub struct Calls([Count; METHODS.len()]);

/// A call under way.
pub struct Call {
    calls: Arc<Calls>,
    method: usize,
    code: Code,
}

impl Call {
    pub fn start(calls: &Arc<Calls>, path: &str) -> Self {
        let method = METHODS.iter().position(|(name, _)| *name == path).unwrap_or(METHODS.len() - 1);
        calls.0[method].started.fetch_add(1, Ordering::Relaxed);
        Call { calls: calls.clone(), method, code: Code::Cancelled }
    }

    /// Tells how it ends.
    pub fn ends(&mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.calls.0[self.method].handled[self.code as usize].fetch_add(1, Ordering::Relaxed);
    }
}

impl Calls {
    fn handled(&self, method: usize) -> u64 {
        self.0[method].handled.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Writes that are under way, and those that failed for no fault of their own.
    pub fn writes(&self) -> (u64, u64) {
        let count = |method: usize| {
            // Read in this order, so that none seems to have ended before it began.
            let handled = self.handled(method);
            let under_way = self.0[method].started.load(Ordering::Relaxed) - handled;
            (under_way, self.0[method].handled[Code::Unavailable as usize].load(Ordering::Relaxed))
        };
        WRITES.map(count).iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// Reads that were answered.
    pub fn ranges(&self) -> u64 {
        self.0[2].handled[Code::Ok as usize].load(Ordering::Relaxed)
    }

    /// How many streams of watches there are.
    pub fn watch_streams(&self) -> u64 {
        let handled = self.handled(5);
        self.0[5].started.load(Ordering::Relaxed) - handled
    }

    /// Writes the counts as Prometheus reads them.
    pub fn write(&self, page: &mut String) {
        let labels = |method: usize| {
            let (path, kind) = METHODS[method];
            let (service, name) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
            format!("grpc_method=\"{name}\",grpc_service=\"{service}\",grpc_type=\"{kind}\"")
        };
        page.push_str("# HELP grpc_server_started_total Calls that began.\n# TYPE grpc_server_started_total counter\n");
        for (method, count) in self.0.iter().enumerate() {
            _ = writeln!(
                page,
                "grpc_server_started_total{{{}}} {}",
                labels(method),
                count.started.load(Ordering::Relaxed)
            );
        }
        page.push_str("# HELP grpc_server_handled_total Calls that ended.\n# TYPE grpc_server_handled_total counter\n");
        for (method, count) in self.0.iter().enumerate() {
            for (code, handled) in CODES.iter().zip(&count.handled) {
                let handled = handled.load(Ordering::Relaxed);
                // As etcd: success from the first, refusals once there are some.
                if handled > 0 || *code == "OK" {
                    let labels = labels(method);
                    _ = writeln!(page, "grpc_server_handled_total{{grpc_code=\"{code}\",{labels}}} {handled}");
                }
            }
        }
    }
}
