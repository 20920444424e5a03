//! Plugins of the node: drivers that announce themselves by a socket in the registry directory, and what each kind of
//! them is for.
//!
//! A socket that appears is asked who is behind it, handed to whoever keeps plugins of its kind, and told how that went;
//! one that disappears takes its plugin with it. This room knows sockets and names, not what a plugin can do.

pub mod claims;
pub mod devices;
pub mod pod_resources;

use std::collections::HashMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::plugins::registration::registration_client::RegistrationClient;
use ::plugins::registration::{InfoRequest, PluginInfo, RegistrationStatus};
use client::{DeleteOptions, Gvr, ListOptions};
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
/// A driver that goes may only be starting anew: its devices are left in the API for so long.
const WIPE_AFTER: Duration = Duration::from_secs(30);
/// Then they are left to be overwritten.
const WIPE_TRIES: usize = 6;

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
const DRA: &str = "DRAPlugin";
const DEVICE: &str = "DevicePlugin";

/// Hands a plugin to whoever keeps its kind.
async fn take(context: &Arc<Context>, plugin: &PluginInfo) -> Result<(), String> {
    match plugin.r#type.as_str() {
        CSI => context.csi.register(&plugin.name, &plugin.endpoint, &plugin.supported_versions).await,
        DRA => context.claims.connect(&plugin.name, &plugin.endpoint, &plugin.supported_versions),
        DEVICE => context.devices.connect(&plugin.name, &plugin.endpoint).await,
        other => Err(format!("no handler registered for plugin type: {other} at socket {}", plugin.endpoint)),
    }
}

/// Its socket is gone.
fn drop_plugin(context: &Arc<Context>, plugin: &PluginInfo) {
    tracing::info!(kind = %plugin.r#type, name = %plugin.name, "plugin gone");
    match plugin.r#type.as_str() {
        DRA => {
            context.claims.lose(&plugin.name);
            let (context, driver) = (context.clone(), plugin.name.clone());
            tokio::spawn(async move {
                tokio::time::sleep(WIPE_AFTER).await;
                if !context.claims.has_driver(&driver) {
                    wipe_slices(&context, Some(&driver)).await;
                }
            });
        }
        DEVICE => context.devices.lose(&plugin.name),
        CSI => {
            let (context, plugin) = (context.clone(), plugin.clone());
            tokio::spawn(async move { context.csi.unregister(&plugin.name, &plugin.endpoint).await });
        }
        _ => {}
    }
}

/// Takes back what a driver that is no longer there, or all drivers of an earlier agent, said of this node's devices:
/// whoever is there says it again.
pub async fn wipe_slices(context: &Context, driver: Option<&str>) {
    let slices = context.client.dynamic(Gvr::new("resource.k8s.io", "v1", "resourceslices"));
    let mut selector = format!("spec.nodeName={}", context.config.node_name);
    if let Some(driver) = driver {
        selector.push_str(&format!(",spec.driver={driver}"));
    }
    let of = ListOptions::fields(selector);
    let mut pause = RETRY;
    for _ in 0..WIPE_TRIES {
        match slices.delete_collection(&DeleteOptions::default(), &of).await {
            Ok(()) => return,
            Err(error) if error.is_not_found() => return,
            Err(error) => tracing::debug!("resource slices not deleted: {error}"),
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    tracing::warn!("resource slices of this node could not be deleted");
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
    wipe_slices(&context, None).await;
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
