//! What the server holds at once, and how much of it.

use std::time::Duration;

/// Connections at once; more wait to be accepted. Some tens of kilobytes each, far above any cluster's clients.
pub const MAX_CONNECTIONS: usize = 4096;

/// Requests under way on one connection; a client with more waits.
pub const MAX_STREAMS: u32 = 4096;

/// What may be on its way to the server on one stream, and on all of a connection, in bytes: a request is not held up by round
/// trips, and a connection's requests take so much memory at most.
pub const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// See [`STREAM_WINDOW_BYTES`].
pub const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// The headers of a request, in bytes.
pub const MAX_HEADER_BYTES: u32 = 16 << 10;

/// How long a new connection may take to become one of HTTP/2, TLS included.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a message may have over the bytes of a request, for keys, compares and framing: etcd's 512 KiB.
pub const MESSAGE_OVERHEAD_BYTES: usize = 512 << 10;

/// Watches on one stream. An API server has some hundreds.
pub const MAX_STREAM_WATCHES: usize = 10_000;

/// Watches on all streams together, some 200 bytes each.
pub const MAX_WATCHES: usize = 100_000;

/// Messages of a watch stream waiting for the client. With this many unread the stream stops taking from the history,
/// and a client that stays away is cut off when the history has gone past it.
pub const WATCH_BACKLOG: usize = 8;

/// Events are gathered into messages of about so many bytes, whole revisions unless the client takes fragments.
pub const WATCH_MESSAGE_BYTES: usize = 256 << 10;

/// Commit groups taken from the history at a time.
pub const WATCH_GROUPS: usize = 16;

/// Keys one transaction may delete by ranges: they go at one revision, in one record.
pub const MAX_DELETED_KEYS: usize = 1_000_000;

/// Bytes of keys one transaction may delete by ranges: bounds that record.
pub const MAX_DELETED_BYTES: usize = 256 << 20;

/// Nested transactions: more would only serve to exhaust the stack.
pub const MAX_TXN_DEPTH: usize = 8;

/// Snapshots being sent at once: each holds a whole file on disk.
pub const MAX_SNAPSHOTS: usize = 2;

/// A piece of a snapshot, in bytes, as etcd sends them.
pub const SNAPSHOT_PIECE_BYTES: usize = 32 << 10;

/// Pieces of a snapshot waiting for the client.
pub const SNAPSHOT_BACKLOG: usize = 4;

/// Answers of a keep-alive stream waiting for the client.
pub const KEEP_ALIVE_BACKLOG: usize = 16;

/// A connection is probed after this long, and let go when no answer comes in [`PROBE_TIMEOUT`].
pub const PROBE_INTERVAL: Duration = Duration::from_secs(60);

/// How long a probed connection may take to answer.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
