//! One driver on this node: its socket, what it can do, and the calls the agent makes, each with a deadline.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::plugins::csi as v1;
use tonic::transport::Channel;

use crate::cri;
use crate::metrics::{Metrics, families};
use crate::plugins::within;
use crate::volumes::usage::Usage;
use v1::node_client::NodeClient;
use v1::node_service_capability::{Type, rpc};

/// One call; as upstream. A driver that takes longer is asked again, which it must bear.
const CALL: Duration = Duration::from_secs(120);

/// What of the optional calls and fields a driver understands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Volumes are staged on the node before they are published to pods.
    pub stage: bool,
    pub expand: bool,
    /// It tells how full volumes are.
    pub stats: bool,
    pub single_node_multi_writer: bool,
    /// The driver gives volumes to the pod's group itself.
    pub mount_group: bool,
}

impl Abilities {
    fn of(capabilities: &[v1::NodeServiceCapability]) -> Abilities {
        let mut out = Abilities::default();
        for capability in capabilities {
            let Some(Type::Rpc(rpc)) = &capability.r#type else { continue };
            match rpc.r#type() {
                rpc::Type::StageUnstageVolume => out.stage = true,
                rpc::Type::ExpandVolume => out.expand = true,
                rpc::Type::GetVolumeStats => out.stats = true,
                rpc::Type::SingleNodeMultiWriter => out.single_node_multi_writer = true,
                rpc::Type::VolumeMountGroup => out.mount_group = true,
                _ => {}
            }
        }
        out
    }
}

/// What a driver says of this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct About {
    pub node_id: String,
    /// Most volumes it can have here; none when it does not say.
    pub limit: Option<i32>,
    pub topology: BTreeMap<String, String>,
}

/// A registered driver.
pub struct Driver {
    pub name: String,
    /// Its socket: one that registers under the same name with another is another process.
    pub endpoint: String,
    pub abilities: Abilities,
    pub about: About,
    client: NodeClient<Channel>,
    metrics: Arc<Metrics>,
}

/// A call that is counted by its method and the code it was answered with.
async fn counted<T>(
    metrics: &Metrics,
    driver: &str,
    method: &str,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, String> {
    let began = Instant::now();
    let answer = within(CALL, call).await;
    let code = match &answer {
        Ok(_) => "OK",
        Err(why) => why.trim_start_matches("rpc error: code = ").split(' ').next().unwrap_or_default(),
    };
    let method = format!("/csi.v1.Node/{method}");
    metrics.since(&families::CSI_OPERATIONS, &[driver, code, &method, "false"], began);
    answer
}

impl Driver {
    /// Meets the driver behind a socket.
    pub async fn meet(name: &str, endpoint: &str, metrics: Arc<Metrics>) -> Result<Driver, String> {
        let mut client = NodeClient::new(cri::channel(endpoint));
        let info = counted(&metrics, name, "NodeGetInfo", client.node_get_info(v1::NodeGetInfoRequest {})).await?;
        let can = counted(
            &metrics,
            name,
            "NodeGetCapabilities",
            client.node_get_capabilities(v1::NodeGetCapabilitiesRequest {}),
        )
        .await?;
        let about = About {
            node_id: info.node_id,
            limit: i32::try_from(info.max_volumes_per_node).ok().filter(|n| *n > 0),
            topology: info.accessible_topology.map(|t| t.segments.into_iter().collect()).unwrap_or_default(),
        };
        if about.node_id.is_empty() {
            return Err(format!("CSI driver {name}: node id is empty"));
        }
        let abilities = Abilities::of(&can.capabilities);
        Ok(Driver { name: name.into(), endpoint: endpoint.into(), abilities, about, client, metrics })
    }

    async fn asked<T>(
        &self,
        method: &str,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, String> {
        counted(&self.metrics, &self.name, method, call).await
    }

    pub async fn stage(&self, request: v1::NodeStageVolumeRequest) -> Result<(), String> {
        self.asked("NodeStageVolume", self.client.clone().node_stage_volume(request)).await.map(drop)
    }

    pub async fn unstage(&self, request: v1::NodeUnstageVolumeRequest) -> Result<(), String> {
        self.asked("NodeUnstageVolume", self.client.clone().node_unstage_volume(request)).await.map(drop)
    }

    pub async fn publish(&self, request: v1::NodePublishVolumeRequest) -> Result<(), String> {
        self.asked("NodePublishVolume", self.client.clone().node_publish_volume(request)).await.map(drop)
    }

    pub async fn unpublish(&self, request: v1::NodeUnpublishVolumeRequest) -> Result<(), String> {
        self.asked("NodeUnpublishVolume", self.client.clone().node_unpublish_volume(request)).await.map(drop)
    }

    /// How full a published volume is.
    pub async fn usage(&self, volume: &str, path: &str) -> Result<Usage, String> {
        let request =
            v1::NodeGetVolumeStatsRequest { volume_id: volume.into(), volume_path: path.into(), ..Default::default() };
        let answer = self.asked("NodeGetVolumeStats", self.client.clone().node_get_volume_stats(request)).await?;
        Ok(summed(&answer.usage))
    }

    /// The size afterwards.
    pub async fn expand(&self, request: v1::NodeExpandVolumeRequest) -> Result<i64, Refused> {
        let mut client = self.client.clone();
        match tokio::time::timeout(CALL, client.node_expand_volume(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner().capacity_bytes),
            Ok(Err(status)) => Err(Refused {
                // Codes that no later attempt will change.
                for_good: matches!(
                    status.code(),
                    tonic::Code::InvalidArgument | tonic::Code::OutOfRange | tonic::Code::NotFound
                ),
                message: format!("rpc error: code = {:?} desc = {}", status.code(), status.message()),
            }),
            Err(_) => Err(Refused {
                for_good: false,
                message: "rpc error: code = DeadlineExceeded desc = context deadline exceeded".into(),
            }),
        }
    }
}

/// Numbers below zero are not meant, and units are said once.
fn summed(rows: &[v1::VolumeUsage]) -> Usage {
    use v1::volume_usage::Unit;
    let mut out = Usage::default();
    let number = |n: i64| u64::try_from(n).ok();
    for row in rows {
        match row.unit() {
            Unit::Bytes => {
                (out.capacity, out.available, out.used) = (number(row.total), number(row.available), number(row.used));
            }
            Unit::Inodes => {
                (out.inodes, out.inodes_free, out.inodes_used) =
                    (number(row.total), number(row.available), number(row.used));
            }
            Unit::Unknown => {}
        }
    }
    out
}

/// A volume that was not grown.
#[derive(Debug)]
pub struct Refused {
    pub for_good: bool,
    pub message: String,
}

/// Strings as a request carries them.
pub fn carried(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}
