//! How a device plugin comes and goes: by the agent's own socket, or by the registry directory; and the stream of its
//! devices.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;

use ::plugins::device::device_plugin_client::DevicePluginClient;
use ::plugins::device::registration_server::{Registration, RegistrationServer};
use ::plugins::device::{Empty, RegisterRequest};
use tokio::net::UnixListener;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};

use super::{CALL, Devices, Plugin, is_extended, within};
use crate::cri;
use crate::metrics::families;

/// The version of the interface spoken here.
const VERSION: &str = "v1beta1";
const SOCKET: &str = "kubelet.sock";

impl Devices {
    /// Meets a plugin: asks what it can do and follows its devices.
    pub async fn connect(&self, resource: &str, endpoint: &str) -> Result<(), String> {
        if !is_extended(resource) {
            return Err(format!("the ResourceName {resource:?} is invalid"));
        }
        self.metrics.count(&families::DEVICE_PLUGINS, &[resource]);
        let mut client = DevicePluginClient::new(cri::channel(endpoint));
        let options = within(CALL, client.get_device_plugin_options(Empty {})).await?;
        let mut stream = within(CALL, client.list_and_watch(Empty {})).await?;
        let (devices, name) = (self.clone(), resource.to_string());
        // The task waits for its plugin to be entered, so that the first list finds it.
        let (entered, wait) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let _ = wait.await;
            while let Ok(Some(list)) = stream.message().await {
                let list: BTreeMap<_, _> = list.devices.into_iter().map(|d| (d.id.clone(), d)).collect();
                if let Some(plugin) = devices.state().plugins.get_mut(&name) {
                    plugin.devices = list;
                }
                (devices.changed)();
            }
            tracing::info!(resource = %name, "device plugin gone");
            devices.lose(&name);
        });
        let mut state = self.state();
        state.once.insert(resource.into());
        let known = state.plugins.remove(resource).map(|p| p.devices).unwrap_or_default();
        let plugin = Plugin { client, options, devices: known, gone: None, _stream: AbortOnDropHandle::new(task) };
        state.plugins.insert(resource.into(), plugin);
        drop(state);
        let _ = entered.send(());
        Ok(())
    }

    /// A plugin is gone: its devices stay counted for a while, and cannot be used.
    pub fn lose(&self, resource: &str) {
        if let Some(plugin) = self.state().plugins.get_mut(resource) {
            plugin.gone = Some(Instant::now());
        }
        (self.changed)();
    }
}

struct Door(Devices);

#[tonic::async_trait]
impl Registration for Door {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        if request.version != VERSION {
            return Err(Status::unknown(format!(
                "requested API version {:?} is not supported by kubelet. Supported version is {VERSION:?}",
                request.version
            )));
        }
        if !is_extended(&request.resource_name) || request.endpoint.contains('/') {
            return Err(Status::unknown(format!("the ResourceName {:?} is invalid", request.resource_name)));
        }
        let (devices, socket) = (self.0.clone(), self.0.dir.join(&request.endpoint));
        // Plugins may begin to serve only after they are registered.
        tokio::spawn(async move {
            match devices.connect(&request.resource_name, &socket.to_string_lossy()).await {
                Ok(()) => tracing::info!(resource = %request.resource_name, "device plugin registered"),
                Err(why) => tracing::error!(resource = %request.resource_name, "device plugin not reached: {why}"),
            }
        });
        Ok(Response::new(Empty {}))
    }
}

/// Opens the agent's socket and takes registrations until it is dropped. Sockets of plugins from before are removed:
/// that is how they learn that they have to register anew.
pub async fn serve(devices: Devices) -> anyhow::Result<()> {
    std::fs::create_dir_all(&devices.dir)?;
    for entry in std::fs::read_dir(&devices.dir)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_socket()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(UnixListener::bind(devices.dir.join(SOCKET))?);
    let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(Door(devices)));
    Ok(server.serve_with_incoming(incoming).await?)
}
