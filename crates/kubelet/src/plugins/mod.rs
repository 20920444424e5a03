//! Plugins of the node: drivers that announce themselves by a socket in the registry directory, and what each kind of
//! them is for.
//!
//! A socket that appears is asked who is behind it, handed to whoever keeps plugins of its kind, and told how that went;
//! one that disappears takes its plugin with it. This room knows sockets and names, not what a plugin can do.

use std::collections::HashMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::plugins::registration::registration_client::RegistrationClient;
use ::plugins::registration::{InfoRequest, PluginInfo, RegistrationStatus};
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::agent::Context;
use crate::cri;

/// How often the directory is read. A plugin registers once in its life: it can wait this long.
const EVERY: Duration = Duration::from_secs(1);
/// A plugin that does not answer within this is asked again later.
const CALL: Duration = Duration::from_secs(10);
/// Between attempts with a plugin that could not be registered, doubling up to the longest.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(122);
/// Directories below the registry that are looked into.
const MAX_DEPTH: usize = 4;

/// Which file a path is: a plugin that starts anew makes a new socket under the old name.
type Identity = (u64, u64, i64, i64);

/// One socket of the registry.
struct Seen {
    identity: Identity,
    /// Who is behind it, once registered.
    plugin: Option<PluginInfo>,
    retry_at: Instant,
    delay: Duration,
}

/// The sockets below a directory.
fn sockets(dir: &Path, depth: usize, out: &mut HashMap<PathBuf, Identity>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(found) = entry.metadata() else { continue };
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if found.is_dir() && depth < MAX_DEPTH {
            sockets(&entry.path(), depth + 1, out);
        } else if found.file_type().is_socket() {
            out.insert(entry.path(), (found.dev(), found.ino(), found.ctime(), found.ctime_nsec()));
        }
    }
}

/// Waits for a plugin's answer no longer than it may take.
pub async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, String> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(format!("rpc error: code = {:?} desc = {}", status.code(), status.message())),
        Err(_) => Err("rpc error: code = DeadlineExceeded desc = context deadline exceeded".into()),
    }
}

/// The kinds of plugins this agent has a use for, as they name themselves.
const CSI: &str = "CSIPlugin";

/// Hands a plugin to whoever keeps its kind.
async fn take(context: &Arc<Context>, plugin: &PluginInfo) -> Result<(), String> {
    match plugin.r#type.as_str() {
        CSI => context.csi.register(&plugin.name, &plugin.endpoint, &plugin.supported_versions).await,
        other => Err(format!("no handler registered for plugin type: {other} at socket {}", plugin.endpoint)),
    }
}

/// Its socket is gone.
fn drop_plugin(context: &Arc<Context>, plugin: &PluginInfo) {
    tracing::info!(kind = %plugin.r#type, name = %plugin.name, "plugin gone");
    if plugin.r#type == CSI {
        let (context, plugin) = (context.clone(), plugin.clone());
        tokio::spawn(async move { context.csi.unregister(&plugin.name, &plugin.endpoint).await });
    }
}

async fn introduce(context: &Arc<Context>, socket: &Path) -> Result<PluginInfo, String> {
    let mut client: RegistrationClient<Channel> = RegistrationClient::new(cri::channel(&socket.to_string_lossy()));
    let mut plugin = within(CALL, client.get_info(InfoRequest {})).await?;
    if plugin.endpoint.is_empty() {
        plugin.endpoint = socket.to_string_lossy().into_owned();
    }
    let taken = take(context, &plugin).await;
    let status =
        RegistrationStatus { plugin_registered: taken.is_ok(), error: taken.clone().err().unwrap_or_default() };
    let told = within(CALL, client.notify_registration_status(status)).await;
    taken?;
    if let Err(why) = told {
        drop_plugin(context, &plugin);
        return Err(why);
    }
    tracing::info!(kind = %plugin.r#type, name = %plugin.name, endpoint = %plugin.endpoint, "plugin registered");
    Ok(plugin)
}

/// Follows the registry until the agent stops.
pub async fn run(context: Arc<Context>) {
    let dir = context.config.plugin_registry();
    let mut known: HashMap<PathBuf, Seen> = HashMap::new();
    loop {
        let mut found = HashMap::new();
        sockets(&dir, 0, &mut found);
        known.retain(|path, seen| {
            let stays = found.get(path) == Some(&seen.identity);
            if let (false, Some(plugin)) = (stays, &seen.plugin) {
                drop_plugin(&context, plugin);
            }
            stays
        });
        for (path, identity) in found {
            let seen = known.entry(path.clone()).or_insert_with(|| Seen {
                identity,
                plugin: None,
                retry_at: Instant::now(),
                delay: RETRY,
            });
            if seen.plugin.is_some() || seen.retry_at > Instant::now() {
                continue;
            }
            match introduce(&context, &path).await {
                Ok(plugin) => seen.plugin = Some(plugin),
                Err(why) => {
                    tracing::warn!(socket = %path.display(), "plugin not registered: {why}");
                    seen.retry_at = Instant::now() + seen.delay;
                    seen.delay = (seen.delay * 2).min(RETRY_MAX);
                }
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}
