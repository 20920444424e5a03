//! A small driver on a socket and an API of a few objects: what the driver is asked, and in which order.

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use client::Transport;
use meta::{Object, Reply, Request, RequestBody, Status, Verb};
use serde_json::Value;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Response, Status as Refusal};

use super::*;
use ::plugins::csi::node_server::{Node, NodeServer};
use ::plugins::csi::node_service_capability::rpc::Type as Can;

/// Objects by resource and name, namespaces aside.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<BTreeMap<String, Value>>>);

impl Api {
    fn put(&self, resource: &str, body: Value) {
        let name = body["metadata"]["name"].as_str().unwrap().to_string();
        lock(&self.0).insert(format!("{resource}/{name}"), body);
    }

    fn get(&self, key: &str) -> Value {
        lock(&self.0).get(key).cloned().unwrap_or_default()
    }
}

fn object(value: &Value) -> Result<Reply, Status> {
    let mut value = value.clone();
    value["metadata"]["resourceVersion"] = "1".into();
    value["metadata"]["uid"] = "uid".into();
    Ok(Reply::Object { object: Arc::new(Object::from_value(&value).unwrap()), created: false })
}

#[async_trait]
impl Transport for Api {
    async fn call(&self, request: Request) -> Result<Reply, Status> {
        let body = match request.body {
            RequestBody::Value { value, .. } => value,
            _ => Value::Null,
        };
        if request.subresource == "token" {
            let audience = body["spec"]["audiences"][0].clone();
            let status =
                json!({"token": format!("token for {audience}"), "expirationTimestamp": "2099-01-01T00:00:00Z"});
            return Ok(Reply::Value { value: json!({"status": status}), code: 201 });
        }
        let resource = &request.resource.resource;
        let key = format!("{resource}/{}", request.name);
        let found = self.get(&key);
        match request.verb {
            Verb::Create | Verb::Update => {
                self.put(resource, body.clone());
                object(&body)
            }
            _ if found.is_null() => Err(Status::not_found(&request.resource.group, resource, &request.name)),
            Verb::Patch => {
                let mut next = found;
                meta::patch::merge(&mut next, &body).unwrap();
                self.put(resource, next.clone());
                object(&next)
            }
            _ => object(&found),
        }
    }

    async fn get_path(&self, _: &str) -> Result<Bytes, Status> {
        Err(Status::unknown_path())
    }
}

/// Publishes by making the directory (or file), and writes down what it was asked.
#[derive(Clone, Default)]
struct Small {
    said: Arc<Mutex<Vec<String>>>,
    /// What it was told at the last publishing.
    told: Arc<Mutex<Option<v1::NodePublishVolumeRequest>>>,
    can: Vec<Can>,
    refuses_to_grow: bool,
}

impl Small {
    fn say(&self, what: String) {
        lock(&self.said).push(what);
    }

    fn said(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.said))
    }

    fn told(&self) -> v1::NodePublishVolumeRequest {
        lock(&self.told).clone().unwrap()
    }
}

/// A pod's name in a path that is published to.
fn whose(path: &str) -> String {
    path.split("/pods/").nth(1).and_then(|p| p.split('/').next()).unwrap_or("?").to_string()
}

type Answer<T> = Result<Response<T>, Refusal>;

#[tonic::async_trait]
impl Node for Small {
    async fn node_stage_volume(
        &self,
        r: tonic::Request<v1::NodeStageVolumeRequest>,
    ) -> Answer<v1::NodeStageVolumeResponse> {
        let r = r.into_inner();
        assert!(Path::new(&r.staging_target_path).is_dir());
        self.say(format!("stage {} {:?}", r.volume_id, r.secrets.values().collect::<Vec<_>>()));
        Ok(Response::new(Default::default()))
    }

    async fn node_unstage_volume(
        &self,
        r: tonic::Request<v1::NodeUnstageVolumeRequest>,
    ) -> Answer<v1::NodeUnstageVolumeResponse> {
        self.say(format!("unstage {}", r.into_inner().volume_id));
        Ok(Response::new(Default::default()))
    }

    async fn node_publish_volume(
        &self,
        r: tonic::Request<v1::NodePublishVolumeRequest>,
    ) -> Answer<v1::NodePublishVolumeResponse> {
        let r = r.into_inner();
        self.say(format!("publish {} to {}", r.volume_id, whose(&r.target_path)));
        let capability = r.volume_capability.clone().unwrap().access_type.unwrap();
        match capability {
            v1::volume_capability::AccessType::Block(_) => std::fs::write(&r.target_path, "").unwrap(),
            v1::volume_capability::AccessType::Mount(_) => std::fs::create_dir_all(&r.target_path).unwrap(),
        }
        *lock(&self.told) = Some(r);
        Ok(Response::new(Default::default()))
    }

    async fn node_unpublish_volume(
        &self,
        r: tonic::Request<v1::NodeUnpublishVolumeRequest>,
    ) -> Answer<v1::NodeUnpublishVolumeResponse> {
        let r = r.into_inner();
        self.say(format!("unpublish {} from {}", r.volume_id, whose(&r.target_path)));
        Ok(Response::new(Default::default()))
    }

    async fn node_get_volume_stats(
        &self,
        _: tonic::Request<v1::NodeGetVolumeStatsRequest>,
    ) -> Answer<v1::NodeGetVolumeStatsResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn node_expand_volume(
        &self,
        r: tonic::Request<v1::NodeExpandVolumeRequest>,
    ) -> Answer<v1::NodeExpandVolumeResponse> {
        let r = r.into_inner();
        let size = r.capacity_range.unwrap().required_bytes;
        self.say(format!("expand {} to {size}", r.volume_id));
        if self.refuses_to_grow {
            return Err(Refusal::invalid_argument("never"));
        }
        Ok(Response::new(v1::NodeExpandVolumeResponse { capacity_bytes: size }))
    }

    async fn node_get_capabilities(
        &self,
        _: tonic::Request<v1::NodeGetCapabilitiesRequest>,
    ) -> Answer<v1::NodeGetCapabilitiesResponse> {
        use v1::node_service_capability::{Rpc, Type};
        let one = |can: &Can| v1::NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: *can as i32 })) };
        Ok(Response::new(v1::NodeGetCapabilitiesResponse { capabilities: self.can.iter().map(one).collect() }))
    }

    async fn node_get_info(&self, _: tonic::Request<v1::NodeGetInfoRequest>) -> Answer<v1::NodeGetInfoResponse> {
        let segments = [("zone".to_string(), "a".to_string())].into();
        Ok(Response::new(v1::NodeGetInfoResponse {
            node_id: "here".into(),
            max_volumes_per_node: 7,
            accessible_topology: Some(v1::Topology { segments }),
        }))
    }
}

struct World {
    root: tempfile::TempDir,
    api: Api,
    driver: Small,
    csi: Csi,
    tokens: Tokens,
}

impl World {
    /// A node with a driver that is registered, and of which the API says this.
    async fn new(driver: Small, about: Value) -> World {
        let (root, api) = (tempfile::tempdir().unwrap(), Api::default());
        api.put("nodes", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}));
        api.put("csidrivers", json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": "small"}, "spec": about}));
        let listener = UnixListener::bind(root.path().join("small.sock")).unwrap();
        let serving = tonic::transport::Server::builder().add_service(NodeServer::new(driver.clone()));
        tokio::spawn(serving.serve_with_incoming(UnixListenerStream::new(listener)));
        let csi = World::agent(&api, root.path());
        let world = World { root, api, driver, csi, tokens: Tokens::default() };
        world.register().await.unwrap();
        world
    }

    fn agent(api: &Api, root: &Path) -> Csi {
        Csi::new(Client::new(api.clone()), root.into(), "n".into(), Arc::default())
    }

    async fn register(&self) -> Result<(), String> {
        let socket = self.root.path().join("small.sock").to_string_lossy().into_owned();
        self.csi.register("small", &socket, &["1.0.0".into()]).await
    }

    /// The agent is gone, and another begins.
    async fn restart(&mut self) {
        self.csi = World::agent(&self.api, self.root.path());
        self.register().await.unwrap();
    }

    async fn publish(&self, uid: &str, wanted: &Wanted) -> Result<PathBuf, String> {
        Ok(self.csi.publish(&self.tokens, &pod(uid, json!({})), wanted).await?.path)
    }

    async fn unpublish(&self, uid: &str) -> Result<bool, String> {
        self.csi.unpublish(&self.root.path().join("pods").join(uid)).await
    }
}

fn pod(uid: &str, spec: Value) -> Pod {
    let mut pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": uid}, "spec": {"containers": []}});
    meta::patch::merge(&mut pod["spec"], &spec).unwrap();
    serde_json::from_value(pod).unwrap()
}

fn volume(source: Value, rest: Value) -> PersistentVolume {
    let mut csi = json!({"driver": "small", "volumeHandle": "v"});
    meta::patch::merge(&mut csi, &source).unwrap();
    let mut spec = json!({"csi": csi, "accessModes": ["ReadWriteMany"], "capacity": {"storage": "2Gi"}});
    meta::patch::merge(&mut spec, &rest).unwrap();
    serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": spec})).unwrap()
}

fn wanted(source: Value, rest: Value) -> Wanted {
    Wanted::persistent(&volume(source, rest), false).unwrap()
}

fn unattached() -> Value {
    json!({"attachRequired": false})
}

#[tokio::test]
async fn staged_once_and_published_to_each_pod() {
    let world = World::new(Small { can: vec![Can::StageUnstageVolume], ..Small::default() }, unattached()).await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"key": "cGFzcw=="}});
    world.api.put("secrets", secret);
    let driver = world.api.get("csinodes/n")["spec"]["drivers"][0].clone();
    assert_eq!(
        driver,
        json!({"name": "small", "nodeID": "here", "topologyKeys": ["zone"], "allocatable": {"count": 7}})
    );
    let node = world.api.get("nodes/n")["metadata"].clone();
    assert_eq!(node["labels"]["zone"], "a");
    assert_eq!(node["annotations"]["csi.volume.kubernetes.io/nodeid"], r#"{"small":"here"}"#);

    let wanted = wanted(json!({"nodeStageSecretRef": {"name": "s", "namespace": "x"}}), json!({}));
    let path = world.publish("one", &wanted).await.unwrap();
    assert!(path.ends_with("pods/one/volumes/kubernetes.io~csi/pv/mount") && path.is_dir());
    world.publish("two", &wanted).await.unwrap();
    world.publish("one", &wanted).await.unwrap();
    assert_eq!(world.driver.said(), [r#"stage v ["pass"]"#, "publish v to one", "publish v to two"]);
    world.unpublish("one").await.unwrap();
    assert!(!path.exists());
    world.unpublish("two").await.unwrap();
    assert_eq!(world.driver.said(), ["unpublish v from one", "unpublish v from two", "unstage v"]);
    assert!(record::of_all(world.root.path()).is_empty() && record::staged(world.root.path(), "small").is_empty());
    assert!(lock(&world.csi.held).is_empty());

    world.csi.unregister("small", "another socket").await;
    assert!(world.csi.driver("small").is_ok());
    world.csi.unregister("small", &world.csi.driver("small").unwrap().endpoint).await;
    assert_eq!(world.api.get("csinodes/n")["spec"]["drivers"], json!([]));
    let why = world.publish("one", &wanted).await.unwrap_err();
    assert_eq!(why, "driver name small not found in the list of registered CSI drivers");
}

#[tokio::test]
async fn a_restart_forgets_nothing() {
    let mut world = World::new(Small { can: vec![Can::StageUnstageVolume], ..Small::default() }, unattached()).await;
    let wanted = wanted(json!({}), json!({}));
    world.publish("one", &wanted).await.unwrap();
    world.driver.said();
    // Asked again, which drivers must bear; and what has no pod any more is found without memory.
    world.restart().await;
    world.publish("one", &wanted).await.unwrap();
    world.restart().await;
    world.unpublish("one").await.unwrap();
    assert_eq!(world.driver.said(), ["stage v []", "publish v to one", "unpublish v from one", "unstage v"]);
    // The agent died between unpublishing and unstaging.
    world.publish("one", &wanted).await.unwrap();
    std::fs::remove_dir_all(world.root.path().join("pods/one")).unwrap();
    world.driver.said();
    world.restart().await;
    assert_eq!(world.driver.said(), ["unstage v"]);
}

#[tokio::test]
async fn a_volume_waits_until_it_is_attached() {
    let world = World::new(Small::default(), json!({})).await;
    let wanted = wanted(json!({}), json!({"volumeMode": "Block"}));
    let attachment = |status: Value| {
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "status": status,
               "metadata": {"name": wanted.attachment("n")}, "spec": {"attacher": "small", "nodeName": "n", "source": {}}})
    };
    world.api.put("volumeattachments", attachment(json!({"attached": false, "attachError": {"message": "no"}})));
    assert_eq!(world.publish("one", &wanted).await.unwrap_err(), "no");
    assert!(world.csi.in_use().is_empty());
    let status = json!({"attached": true, "attachmentMetadata": {"device": "/dev/x"}});
    world.api.put("volumeattachments", attachment(status));
    let path = world.publish("one", &wanted).await.unwrap();
    assert!(path.ends_with("device") && path.is_file());
    assert_eq!(world.driver.told().publish_context["device"], "/dev/x");
    assert_eq!(world.csi.in_use(), ["kubernetes.io/csi/small^v"]);
    world.unpublish("one").await.unwrap();
    assert!(world.csi.in_use().is_empty());
}

#[tokio::test]
async fn inline_volumes_know_their_pod() {
    let about = json!({"podInfoOnMount": true, "volumeLifecycleModes": ["Ephemeral"], "requiresRepublish": true,
                       "tokenRequests": [{"audience": "vault"}]});
    let world = World::new(Small { can: vec![Can::StageUnstageVolume], ..Small::default() }, about).await;
    let source = json!({"name": "in", "csi": {"driver": "small", "readOnly": true, "volumeAttributes": {"a": "b"}}});
    let source: k8s_openapi::api::core::v1::Volume = serde_json::from_value(source).unwrap();
    let pod = pod("one", json!({"serviceAccountName": "sa"}));
    let wanted = Wanted::inline(&pod, &source, source.csi.as_ref().unwrap());
    // Told anew each time it is looked at, and never staged.
    for _ in 0..2 {
        let published = world.csi.publish(&world.tokens, &pod, &wanted).await.unwrap();
        assert!(published.renew_at.is_some());
    }
    let publish = format!("publish {} to one", wanted.handle);
    assert_eq!(world.driver.said(), [publish.clone(), publish]);
    let told = world.driver.told();
    assert!(told.readonly && told.staging_target_path.is_empty());
    let told: BTreeMap<&str, &str> = told.volume_context.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let tokens = r#"{"vault":{"expirationTimestamp":"2099-01-01T00:00:00Z","token":"token for \"vault\""}}"#;
    let expect = [
        ("a", "b"),
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.name", "p"),
        ("csi.storage.k8s.io/pod.namespace", "ns"),
        ("csi.storage.k8s.io/pod.uid", "one"),
        ("csi.storage.k8s.io/serviceAccount.name", "sa"),
        ("csi.storage.k8s.io/serviceAccount.tokens", tokens),
    ];
    assert_eq!(told, expect.into());
    let persistent = Wanted { ephemeral: false, ..wanted };
    let why = world.publish("one", &persistent).await.unwrap_err();
    assert_eq!(why, "volume mode \"Persistent\" not supported by driver small (only supports [Ephemeral])");
    assert!(
        check_lifecycle(&Wanted { ephemeral: true, ..persistent }, None).unwrap_err().contains("no CSIDriver object")
    );
}

#[tokio::test]
async fn file_systems_follow_their_volumes() {
    for (refuses_to_grow, status) in [
        (false, json!({"capacity": {"storage": "2Gi"}, "conditions": [], "allocatedResourceStatuses": {}})),
        (
            true,
            json!({"capacity": {"storage": "1Gi"}, "allocatedResourceStatuses": {"storage": "NodeResizeInfeasible"},
                      "conditions": [{"type": "FileSystemResizePending", "status": "True"}]}),
        ),
    ] {
        let small = Small { can: vec![Can::ExpandVolume], refuses_to_grow, ..Small::default() };
        let world = World::new(small, unattached()).await;
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c", "namespace": "ns"},
            "status": {"capacity": {"storage": "1Gi"}, "allocatedResourceStatuses": {"storage": "NodeResizePending"},
                       "conditions": [{"type": "FileSystemResizePending", "status": "True"}]}});
        world.api.put("persistentvolumeclaims", claim.clone());
        let volume = volume(json!({}), json!({}));
        let wanted = Wanted::persistent(&volume, false).unwrap();
        world.publish("one", &wanted).await.unwrap();
        world.driver.said();
        let claim = serde_json::from_value(claim).unwrap();
        world.csi.grow(&pod("one", json!({})), &wanted, &volume, &claim).await.unwrap();
        assert_eq!(world.driver.said(), [format!("expand v to {}", 2u64 << 30)]);
        assert_eq!(world.api.get("persistentvolumeclaims/c")["status"], status);
    }
}

#[tokio::test]
async fn files_are_given_to_the_group_by_agent_or_driver() {
    use std::os::unix::fs::MetadataExt;
    let group = nix::unistd::getgid().as_raw();
    for (can, by_driver) in [(vec![], ""), (vec![Can::VolumeMountGroup], group.to_string().as_str())] {
        let about = json!({"attachRequired": false, "fsGroupPolicy": "File"});
        let world = World::new(Small { can, ..Small::default() }, about).await;
        let pod = pod("one", json!({"securityContext": {"fsGroup": group}}));
        let published = world.csi.publish(&world.tokens, &pod, &wanted(json!({}), json!({}))).await.unwrap();
        let by_agent = std::fs::metadata(&published.path).unwrap().mode() & 0o2060 == 0o2060;
        let kind = world.driver.told().volume_capability.unwrap().access_type.unwrap();
        let v1::volume_capability::AccessType::Mount(mount) = kind else { panic!("a device") };
        assert_eq!((mount.volume_mount_group.as_str(), by_agent), (by_driver, by_driver.is_empty()));
    }
}
