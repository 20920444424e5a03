//! The scheduler against an API in memory: what it writes when objects come, change and go.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use client::{Client, Informers, Transport};
use futures::StreamExt;
use meta::{EventKind, List, Object, Reply, Request, RequestBody, Status, Verb, WatchEvent};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

type Watches = Vec<(String, mpsc::UnboundedSender<Vec<WatchEvent>>)>;

#[derive(Default)]
struct State {
    revision: u64,
    /// By resource and key.
    objects: BTreeMap<(String, String), Value>,
    watches: Watches,
    refuse_binds: usize,
    /// Deletions after which others take their time.
    fast_deletions: usize,
    calls: Vec<String>,
}

#[derive(Clone)]
struct Api(Arc<(Mutex<State>, watch::Sender<u64>)>);

impl Api {
    fn new() -> Self {
        Self(Arc::new((Mutex::default(), watch::Sender::new(0))))
    }

    fn write(&self, resource: &str, key: &str, kind: EventKind, body: Option<Value>) -> Arc<Object> {
        let mut state = self.0.0.lock().unwrap();
        state.revision += 1;
        let revision = state.revision;
        let at = (resource.to_string(), key.to_string());
        let mut body = match body {
            Some(body) => body,
            None => state.objects.remove(&at).unwrap(),
        };
        body["metadata"]["resourceVersion"] = revision.to_string().into();
        if kind != EventKind::Deleted {
            state.objects.insert(at, body.clone());
        }
        let object = Arc::new(Object::from_value(&body).unwrap());
        let event = || vec![WatchEvent::Object { kind, object: object.clone() }];
        state.watches.retain(|(r, w)| r != resource || w.send(event()).is_ok());
        drop(state);
        self.0.1.send_replace(revision);
        object
    }

    fn put(&self, resource: &str, mut body: Value) {
        let meta = &mut body["metadata"];
        let name = meta["name"].as_str().unwrap().to_string();
        let namespace = meta["namespace"].as_str().unwrap_or_default().to_string();
        meta["uid"] = format!("uid-{name}").into();
        let key = meta::object::object_key(&namespace, &name);
        self.write(resource, &key, EventKind::Modified, Some(body));
    }

    fn node(&self, name: &str, cpu: &str) {
        let status = json!({"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}});
        let labels = json!({"kubernetes.io/hostname": name});
        self.put(
            "nodes",
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "status": status}),
        );
    }

    fn pod(&self, name: &str, spec: Value) {
        let mut whole = json!({"schedulerName": "default-scheduler", "containers": [{"name": "c"}]});
        for (field, value) in spec.as_object().unwrap() {
            whole[field] = value.clone();
        }
        self.put(
            "pods",
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "n"}, "spec": whole}),
        );
    }

    fn remove(&self, resource: &str, key: &str) {
        self.write(resource, key, EventKind::Deleted, None);
    }

    fn get(&self, resource: &str, key: &str) -> Option<Value> {
        self.0.0.lock().unwrap().objects.get(&(resource.into(), key.into())).cloned()
    }

    /// Waits until something about a pod holds.
    async fn until(&self, pod: &str, what: &str, holds: impl Fn(&Value) -> bool) {
        let mut revisions = self.0.1.subscribe();
        let wait = revisions.wait_for(|_| self.get("pods", &format!("n/{pod}")).is_some_and(|p| holds(&p)));
        if tokio::time::timeout(Duration::from_secs(600), wait).await.is_err() {
            panic!("{pod}: {what}: {:#?}", self.get("pods", &format!("n/{pod}")));
        }
    }

    async fn placed(&self, pod: &str, node: &str) {
        self.until(pod, node, |p| p["spec"]["nodeName"] == node).await;
    }

    async fn told(&self, pod: &str, message: &str) {
        self.until(pod, message, |p| p["status"]["conditions"][0]["message"] == message).await;
    }

    async fn event(&self, reason: &str, message: &str) {
        let seen = || {
            let state = self.0.0.lock().unwrap();
            state.objects.iter().any(|((r, _), e)| r == "events" && e["reason"] == reason && e["message"] == message)
        };
        let mut revisions = self.0.1.subscribe();
        let wait = revisions.wait_for(|_| seen());
        assert!(tokio::time::timeout(Duration::from_secs(600), wait).await.is_ok(), "{reason} {message}");
    }
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                let fresh = if value.is_array() { json!([]) } else { Value::Null };
                merge(into.entry(key.clone()).or_insert(fresh), value);
            }
        }
        // Conditions merge by type; consumers go by uid.
        (Value::Array(into), Value::Array(from)) => {
            for entry in from {
                if entry["$patch"] == "delete" {
                    into.retain(|e| e["uid"] != entry["uid"]);
                    continue;
                }
                match into.iter_mut().find(|e| e["type"] == entry["type"]) {
                    Some(known) => merge(known, entry),
                    None => into.push(entry.clone()),
                }
            }
        }
        (into, from) => *into = from.clone(),
    }
}

#[async_trait::async_trait]
impl Transport for Api {
    async fn call(&self, request: Request) -> Result<Reply, Status> {
        let resource = request.resource.resource.to_string();
        let key = meta::object::object_key(&request.namespace, &request.name);
        let body = match &request.body {
            RequestBody::Value { value, .. } => value.clone(),
            _ => Value::Null,
        };
        if request.verb.is_write() && resource != "events" {
            let call = format!("{} {resource}/{} {key}", request.verb.as_str(), request.subresource);
            self.0.0.lock().unwrap().calls.push(call);
        }
        let missing = || Status::not_found("", &resource, &request.name);
        match request.verb {
            Verb::List => {
                let state = self.0.0.lock().unwrap();
                let of = state.objects.iter().filter(|((r, _), _)| *r == resource);
                let items = of.map(|(_, v)| Arc::new(Object::from_value(v).unwrap())).collect();
                Ok(Reply::List(List { resource_version: state.revision, items, ..List::default() }))
            }
            Verb::Watch => {
                let (send, receive) = mpsc::unbounded_channel();
                let from: u64 = request.options.resource_version.as_deref().unwrap_or("0").parse().unwrap();
                let mut state = self.0.0.lock().unwrap();
                for (_, value) in state.objects.iter().filter(|((r, _), _)| *r == resource) {
                    let object = Arc::new(Object::from_value(value).unwrap());
                    if object.resource_version > from {
                        send.send(vec![WatchEvent::Object { kind: EventKind::Modified, object }]).unwrap();
                    }
                }
                state.watches.push((resource, send));
                let stream = futures::stream::unfold(receive, |mut r| async move { r.recv().await.map(|b| (b, r)) });
                Ok(Reply::Watch(stream.boxed()))
            }
            Verb::Create if &*request.subresource == "binding" => {
                let refused = {
                    let mut state = self.0.0.lock().unwrap();
                    let refused = state.refuse_binds > 0;
                    state.refuse_binds = state.refuse_binds.saturating_sub(1);
                    refused
                };
                if refused {
                    return Err(Status::internal("not today"));
                }
                let mut pod = self.get(&resource, &key).ok_or_else(missing)?;
                assert_eq!(body["metadata"]["uid"], pod["metadata"]["uid"]);
                pod["spec"]["nodeName"] = body["target"]["name"].clone();
                Ok(Reply::Object { object: self.write(&resource, &key, EventKind::Modified, Some(pod)), created: true })
            }
            Verb::Create => {
                let name = body["metadata"]["name"].as_str().unwrap();
                let key = meta::object::object_key(&request.namespace, name);
                Ok(Reply::Object { object: self.write(&resource, &key, EventKind::Added, Some(body)), created: true })
            }
            Verb::Get => {
                let value = self.get(&resource, &key).ok_or_else(missing)?;
                Ok(Reply::Object { object: Arc::new(Object::from_value(&value).unwrap()), created: false })
            }
            Verb::Update => {
                let old = self.get(&resource, &key).ok_or_else(missing)?;
                assert_eq!(body["metadata"]["resourceVersion"], old["metadata"]["resourceVersion"]);
                Ok(Reply::Object {
                    object: self.write(&resource, &key, EventKind::Modified, Some(body)),
                    created: false,
                })
            }
            Verb::Patch => {
                let mut value = self.get(&resource, &key).ok_or_else(missing)?;
                merge(&mut value, &body);
                Ok(Reply::Object {
                    object: self.write(&resource, &key, EventKind::Modified, Some(value)),
                    created: false,
                })
            }
            Verb::Delete => {
                self.get(&resource, &key).ok_or_else(missing)?;
                let slow = {
                    let mut state = self.0.0.lock().unwrap();
                    state.fast_deletions = state.fast_deletions.saturating_sub(1);
                    state.fast_deletions == 0
                };
                if slow {
                    tokio::time::sleep(Duration::from_secs(20)).await;
                }
                self.remove(&resource, &key);
                Ok(Reply::Value { value: Value::Null, code: 200 })
            }
            _ => Err(missing()),
        }
    }

    async fn get_path(&self, path: &str) -> Result<Bytes, Status> {
        if ["/apis/resource.k8s.io/v1", "/apis/scheduling.k8s.io/v1beta1"].contains(&path) {
            Ok(Bytes::new())
        } else {
            Err(Status::unknown_path())
        }
    }
}

/// Runs a scheduler beside the scenario.
async fn with_scheduler<F: Future<Output = ()>>(scenario: impl FnOnce(Api) -> F) {
    with_options(scheduler::Options::default(), scenario).await;
}

async fn with_options<F: Future<Output = ()>>(options: scheduler::Options, scenario: impl FnOnce(Api) -> F) {
    let api = Api::new();
    let client = Client::new(api.clone());
    let informers = Informers::new(client.clone());
    let cancel = CancellationToken::new();
    let synced = options.synced.clone();
    let running = tokio::spawn(scheduler::run(client, informers, options, cancel.clone()));
    scenario(api).await;
    assert!(synced.load(std::sync::atomic::Ordering::Acquire));
    cancel.cancel();
    running.await.unwrap().unwrap();
}

fn cpu(amount: &str) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]})
}

#[tokio::test(start_paused = true)]
async fn pods_are_bound_and_it_is_said() {
    with_scheduler(|api| async move {
        api.node("a", "4");
        api.pod("one", json!({}));
        api.placed("one", "a").await;
        api.event("Scheduled", "Successfully assigned n/one to a").await;
        api.pod("foreign", json!({"schedulerName": "other"}));
        api.pod("gated", json!({"schedulingGates": [{"name": "g"}]}));
        api.pod("two", json!({}));
        api.placed("two", "a").await;
        for pod in ["n/foreign", "n/gated"] {
            assert!(api.get("pods", pod).unwrap()["spec"]["nodeName"].is_null(), "{pod}");
        }
        api.pod("gated", json!({}));
        api.placed("gated", "a").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_placed_is_told_once_and_waits_for_what_helps() {
    with_scheduler(|api| async move {
        api.pod("big", cpu("3"));
        api.told("big", "no nodes available to schedule pods").await;
        api.node("a", "2");
        let message = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
        api.told("big", message).await;
        api.event("FailedScheduling", message).await;
        let pod = api.get("pods", "n/big").unwrap();
        assert_eq!(pod["status"]["conditions"][0]["reason"], "Unschedulable");
        assert_eq!(pod["status"]["conditions"][0]["status"], "False");
        // A node that does not help wakes nobody.
        api.node("a", "1");
        tokio::time::sleep(Duration::from_secs(30)).await;
        api.node("b", "4");
        api.placed("big", "b").await;
        let calls = api.0.0.lock().unwrap().calls.clone();
        assert_eq!(calls, ["patch pods/status n/big", "patch pods/status n/big", "create pods/binding n/big"]);
        // Room that becomes free does.
        api.pod("next", cpu("2"));
        api.told("next", "0/2 nodes are available: 2 Insufficient cpu. no new claims to deallocate, preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling.").await;
        api.remove("pods", "n/big");
        api.placed("next", "b").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_binding_is_tried_again() {
    with_scheduler(|api| async move {
        api.0.0.lock().unwrap().refuse_binds = 2;
        api.node("a", "1");
        api.pod("one", cpu("1"));
        let start = tokio::time::Instant::now();
        api.placed("one", "a").await;
        assert_eq!(start.elapsed().as_secs(), 3, "1 s, then 2 s");
        api.event("FailedScheduling", "running Bind plugin \"DefaultBinder\": Internal error occurred: not today")
            .await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn room_is_made_for_the_important() {
    with_scheduler(|api| async move {
        api.node("a", "2");
        api.pod("low", json!({"priority": 1, "containers": cpu("1")["containers"]}));
        api.pod("mid", json!({"priority": 5, "containers": cpu("1")["containers"]}));
        api.placed("low", "a").await;
        api.placed("mid", "a").await;
        api.pod("high", json!({"priority": 9, "containers": cpu("1")["containers"]}));
        api.placed("high", "a").await;
        assert!(api.get("pods", "n/low").is_none() && api.get("pods", "n/mid").is_some());
        api.event("Preempted", "Preempted by pod uid-high on node a").await;
        api.pod("modest", json!({"priority": 99, "preemptionPolicy": "Never", "containers": cpu("2")["containers"]}));
        api.told(
            "modest",
            "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: not eligible due to preemptionPolicy=Never.",
        )
        .await;
    })
    .await;
}

/// A claim on one device of class `gpu`.
fn claim(name: &str) -> Value {
    let request =
        json!({"name": "r", "exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1}});
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": name, "namespace": "n"},
        "spec": {"devices": {"requests": [request]}}})
}

fn claiming(claim: &str) -> Value {
    json!({"resourceClaims": [{"name": "dev", "resourceClaimName": claim}]})
}

#[tokio::test(start_paused = true)]
async fn devices_are_given_before_pods_are_bound() {
    with_scheduler(|api| async move {
        api.node("a", "4");
        api.node("b", "4");
        api.pod("one", claiming("shared"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(api.get("pods", "n/one").unwrap()["status"].is_null(), "without its claim it is not tried");
        let missing = "could not find ResourceClaim \"n/shared\": object not found";
        api.told("one", missing).await;
        api.event("NotReadyForScheduling", missing).await;
        api.put("resourceclaims", claim("shared"));
        let no_class = "0/2 nodes are available: request r: device class gpu does not exist. no new claims to deallocate, \
            preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
        api.told("one", no_class).await;
        api.put("deviceclasses", json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "gpu"},
            "spec": {"selectors": [{"cel": {"expression": "device.driver == 'd.x'"}}]}}));
        let no_device = "0/2 nodes are available: 2 cannot allocate all claims. still not schedulable, \
            preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
        api.told("one", no_device).await;
        api.put("resourceslices", json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "s"},
            "spec": {"driver": "d.x", "nodeName": "b", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
                "devices": [{"name": "x"}]}}));
        api.placed("one", "b").await;
        let shared = || api.get("resourceclaims", "n/shared").unwrap();
        assert_eq!(shared()["status"]["allocation"]["devices"]["results"][0]["device"], "x");
        assert_eq!(shared()["metadata"]["finalizers"], json!(["resource.kubernetes.io/delete-protection"]));
        assert_eq!(shared()["status"]["reservedFor"], json!([{"resource": "pods", "name": "one", "uid": "uid-one"}]));
        // Who shares the claim must go where its device is.
        api.pod("two", claiming("shared"));
        api.placed("two", "b").await;
        assert_eq!(shared()["status"]["reservedFor"].as_array().unwrap().len(), 2);
        // The only device is taken, until its claim is gone.
        api.put("resourceclaims", claim("more"));
        api.pod("three", claiming("more"));
        api.told("three", no_device).await;
        api.remove("resourceclaims", "n/shared");
        api.placed("three", "b").await;
        let calls = api.0.0.lock().unwrap().calls.clone();
        let of_claims: Vec<_> = calls.into_iter().filter(|c| c.contains("resourceclaims")).collect();
        assert_eq!(
            of_claims,
            [
                "update resourceclaims/ n/shared",
                "update resourceclaims/status n/shared",
                "update resourceclaims/status n/shared",
                "update resourceclaims/ n/more",
                "update resourceclaims/status n/more",
            ]
        );
    })
    .await;
}

/// Answers posts with what `answer` makes of path and body, one a connection; answers the address.
async fn site(answer: impl Fn(&str, Value) -> Value + Send + 'static) -> String {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/x", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            let (mut path, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                match line.trim().split_once(' ') {
                    Some(("POST", rest)) => path = rest.split(' ').next().unwrap().into(),
                    Some((name, value)) if name.eq_ignore_ascii_case("content-length:") => {
                        length = value.parse().unwrap()
                    }
                    Some(_) => {}
                    None => break,
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            let said = answer(&path, serde_json::from_slice(&body).unwrap()).to_string();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", said.len());
            stream.write_all(format!("{head}{said}").as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn extenders_have_a_say() {
    let url = site(move |path, body| match path {
        "/x/filter" => {
            let names: Vec<&str> = body["NodeNames"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            assert_eq!(body["Pod"]["metadata"]["namespace"], "n");
            let full = body["Pod"]["metadata"]["name"] == "none";
            let kept: Vec<&str> = names.into_iter().filter(|n| !full && *n != "a").collect();
            json!({"nodenames": kept, "failedNodes": {"a": "no licence"}, "error": ""})
        }
        "/x/prioritize" => json!([{"Host": "b", "Score": 1}, {"Host": "c", "Score": 10}]),
        _ => json!({"error": format!("{path} of {}", body["PodName"])}),
    })
    .await;
    let file = |more: Value| {
        let mut extender = json!({"urlPrefix": url, "filterVerb": "filter", "prioritizeVerb": "prioritize", "weight": 1,
            "nodeCacheCapable": true, "managedResources": [{"name": "example.com/foo", "ignoredByScheduler": true}]});
        for (field, value) in more.as_object().unwrap() {
            extender[field] = value.clone();
        }
        let raw = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
            "extenders": [extender]});
        scheduler::Options::from(&scheduler::config::read(&raw, scheduler::config::Gates::default()).unwrap())
    };
    let foo = json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/foo": "1"}}}]});
    with_options(file(json!({})), |api| async move {
        ["a", "b", "c"].iter().for_each(|n| api.node(n, "4"));
        api.pod("one", foo);
        api.placed("one", "c").await;
        api.node("b", "1");
        api.node("c", "1");
        api.pod("plain", cpu("2"));
        api.placed("plain", "a").await;
        let mut none = json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/foo": "1", "cpu": "2"}}}]});
        none["preemptionPolicy"] = "Never".into();
        api.pod("none", none);
        api.told(
            "none",
            "0/3 nodes are available: 1 no licence, 2 Insufficient cpu. no new claims to deallocate, preemption: not eligible due to preemptionPolicy=Never.",
        )
        .await;
    })
    .await;
    with_options(file(json!({"bindVerb": "bind", "managedResources": []})), |api| async move {
        api.node("b", "4");
        api.pod("one", json!({}));
        api.event("FailedScheduling", "Internal error occurred: /x/bind of \"one\"").await;
    })
    .await;
}

#[tokio::test]
async fn extenders_fail_or_are_passed_over() {
    let url = site(move |path, body| match path {
        // It keeps no nodes of its own, and would have the second only.
        "/x/filter" => {
            let nodes = body["Nodes"]["items"].as_array().unwrap();
            assert!(body["NodeNames"].is_null() && nodes.iter().all(|n| n["status"]["allocatable"].is_object()));
            let kept: Vec<&Value> = nodes.iter().filter(|n| n["metadata"]["name"] == "b").collect();
            json!({"Nodes": {"items": kept}, "FailedNodes": {}})
        }
        "/x/invents" => json!({"Nodes": {"items": [{"metadata": {"name": "zz"}}]}}),
        "/x/closes" => json!({"Nodes": {"items": []}, "FailedAndUnresolvableNodes": {"a": "closed", "b": "closed"}, "FailedNodes": {"a": "full"}}),
        _ => json!({"Error": format!("{path} is broken")}),
    })
    .await;
    let nowhere = "http://127.0.0.1:1/x";
    let placed = |node: &'static str| Ok(node);
    for (what, extender, expect) in [
        ("it sees whole nodes", json!({"urlPrefix": url, "filterVerb": "filter"}), placed("b")),
        ("no filter, no scores", json!({"urlPrefix": url}), placed("a")),
        ("an error", json!({"urlPrefix": url, "filterVerb": "bad"}), Err("/x/bad is broken".to_string())),
        ("an error passed over", json!({"urlPrefix": url, "filterVerb": "bad", "ignorable": true}), placed("a")),
        ("nobody there, passed over", json!({"urlPrefix": nowhere, "filterVerb": "f", "ignorable": true}), placed("a")),
        ("scores that fail", json!({"urlPrefix": url, "prioritizeVerb": "bad", "weight": 1}), placed("a")),
        (
            "a node that is not there",
            json!({"urlPrefix": url, "filterVerb": "invents"}),
            Err(format!("extender {url:?} claims a filtered node \"zz\" which is not found in the input node list")),
        ),
        (
            "who is in both lists is refused for good",
            json!({"urlPrefix": url, "filterVerb": "closes"}),
            Err("0/2 nodes are available: 2 closed. no new claims to deallocate, preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.".into()),
        ),
        ("a binder that fails", json!({"urlPrefix": url, "bindVerb": "bad"}), Err("Internal error occurred: /x/bad is broken".into())),
        ("passed over, too", json!({"urlPrefix": url, "bindVerb": "bad", "ignorable": true}), placed("a")),
    ] {
        let raw = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration", "extenders": [extender]});
        let configuration = scheduler::config::read(&raw, scheduler::config::Gates::default()).expect(what);
        with_options(scheduler::Options::from(&configuration), |api| async move {
            api.node("a", "4");
            api.node("b", "3");
            api.pod("one", cpu("1"));
            match expect {
                Ok(node) => api.placed("one", node).await,
                Err(message) => api.event("FailedScheduling", &message).await,
            }
        })
        .await;
    }
}

#[tokio::test]
async fn extenders_say_who_may_go() {
    // Alone the scheduler would remove `low`, on node a; the extender leaves it node b only. It is told of pods by uid, or
    // whole when it keeps no nodes of its own.
    for names_only in [true, false] {
        let url = site(move |path, body| {
            assert_eq!(path, "/x/preempt");
            assert_eq!(body["Pod"]["metadata"]["name"], "high");
            let (told, empty) = if names_only {
                (&body["NodeNameToMetaVictims"], &body["NodeNameToVictims"])
            } else {
                (&body["NodeNameToVictims"], &body["NodeNameToMetaVictims"])
            };
            assert!(empty.is_null());
            let uid = |node: &str| {
                let pod = &told[node]["Pods"][0];
                if names_only { pod["UID"].clone() } else { pod["metadata"]["uid"].clone() }
            };
            assert_eq!((uid("a"), uid("b")), (json!("uid-low"), json!("uid-mid")));
            json!({"nodeNameToMetaVictims": {"b": {"pods": [{"uid": uid("b")}], "numPDBViolations": 0}}})
        })
        .await;
        let raw = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
            "extenders": [{"urlPrefix": url, "preemptVerb": "preempt", "nodeCacheCapable": names_only}]});
        with_options(
            scheduler::Options::from(&scheduler::config::read(&raw, scheduler::config::Gates::default()).unwrap()),
            |api| async move {
                // This clock is a real one.
                api.0.0.lock().unwrap().fast_deletions = usize::MAX;
                let sized = |priority: i64| json!({"priority": priority, "containers": cpu("2")["containers"]});
                api.node("a", "2");
                api.pod("low", sized(1));
                api.placed("low", "a").await;
                api.node("b", "2");
                api.pod("mid", sized(5));
                api.placed("mid", "b").await;
                api.pod("high", sized(9));
                api.placed("high", "b").await;
                assert!(api.get("pods", "n/mid").is_none() && api.get("pods", "n/low").is_some());
            },
        )
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn gangs_are_placed_together_or_not_at_all() {
    let options = scheduler::Options { groups: true, ..scheduler::Options::default() };
    with_options(options, |api| async move {
        let group = |least: i64| {
            json!({"apiVersion": "scheduling.k8s.io/v1beta1", "kind": "PodGroup", "metadata": {"name": "g", "namespace": "n"},
                "spec": {"schedulingPolicy": {"gang": {"minCount": least}}}})
        };
        let member = || {
            json!({"schedulingGroup": {"podGroupName": "g"}, "containers": cpu("1")["containers"]})
        };
        let nowhere = |pod: &str| api.get("pods", &format!("n/{pod}")).unwrap()["spec"]["nodeName"].is_null();
        api.node("a", "2");
        ["one", "two"].iter().for_each(|p| api.pod(p, member()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        api.put("podgroups", group(3));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(api.get("pods", "n/one").unwrap()["status"].is_null(), "two of three are not tried");
        api.told("one", "waiting for minCount pods from a gang to appear in scheduling queue").await;
        assert_eq!(api.get("pods", "n/one").unwrap()["status"]["conditions"][0]["reason"], "NotReadyForScheduling");
        api.event("NotReadyForScheduling", "waiting for minCount pods from a gang to appear in scheduling queue").await;
        api.pod("gated", json!({"schedulingGates": [{"name": "g"}]}));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(api.get("pods", "n/gated").unwrap()["status"].is_null(), "who holds it says so, not we");
        let calls = api.0.0.lock().unwrap().calls.clone();
        assert_eq!(calls, ["patch pods/status n/one", "patch pods/status n/two"], "each is told once");
        api.pod("three", member());
        let none = "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod group.";
        api.told("three", &format!("0/1 nodes are available: 1 Insufficient cpu. {none}")).await;
        let short = "0/1 nodes are available: 2 of the 3 pods that pod group n/g still needs could be placed.";
        api.told("one", &format!("{short} {none}")).await;
        assert!(nowhere("one") && nowhere("two") && nowhere("three"));
        // What was taken for them is free again.
        api.pod("plain", cpu("1"));
        api.placed("plain", "a").await;
        api.node("b", "3");
        for pod in ["one", "two", "three"] {
            api.until(pod, "placed", |p| p["spec"]["nodeName"].is_string()).await;
        }
        // Once it is there, more of it go one by one.
        api.pod("four", member());
        api.until("four", "placed", |p| p["spec"]["nodeName"].is_string()).await;
        let status = &api.get("podgroups", "n/g").unwrap()["status"]["conditions"][0];
        assert_eq!((&status["type"], &status["status"]), (&json!("PodGroupInitiallyScheduled"), &json!("True")));
    })
    .await;
}

/// A gang of so many pods.
fn gang(least: i64, rest: Value) -> Value {
    let mut spec = json!({"schedulingPolicy": {"gang": {"minCount": least}}});
    for (field, value) in rest.as_object().unwrap() {
        spec[field] = value.clone();
    }
    json!({"apiVersion": "scheduling.k8s.io/v1beta1", "kind": "PodGroup", "metadata": {"name": "g", "namespace": "n"}, "spec": spec})
}

#[tokio::test(start_paused = true)]
async fn room_is_made_for_gangs_as_a_whole() {
    let options = scheduler::Options { groups: true, ..scheduler::Options::default() };
    with_options(options, |api| async move {
        let pod = |priority: i64| json!({"priority": priority, "containers": cpu("2")["containers"]});
        let member = || {
            let mut spec = pod(9);
            spec["schedulingGroup"] = json!({"podGroupName": "g"});
            spec
        };
        api.node("a", "2");
        api.node("b", "2");
        api.pod("low", pod(1));
        api.pod("high", pod(99));
        for name in ["low", "high"] {
            api.until(name, "placed", |p| p["spec"]["nodeName"].is_string()).await;
        }
        api.put("podgroups", gang(2, json!({"priority": 9})));
        ["one", "two"].iter().for_each(|p| api.pod(p, member()));
        let none = "preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod group.";
        api.told("one", &format!("0/2 nodes are available: 2 Insufficient cpu. {none}")).await;
        assert!(api.get("pods", "n/low").is_some(), "half a gang's room helps nobody");
        api.remove("pods", "n/high");
        for name in ["one", "two"] {
            api.until(name, "placed", |p| p["spec"]["nodeName"].is_string()).await;
        }
        assert!(api.get("pods", "n/low").is_none());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn room_is_made_for_a_gang_once() {
    let options = scheduler::Options { groups: true, ..scheduler::Options::default() };
    with_options(options, |api| async move {
        api.0.0.lock().unwrap().fast_deletions = 2;
        let pod = |priority: i64| json!({"priority": priority, "containers": cpu("2")["containers"]});
        let nodes = ["a", "b", "c", "d", "e", "f"];
        for node in nodes {
            api.node(node, "2");
            api.pod(&format!("low-{node}"), pod(1));
        }
        for node in nodes {
            api.until(&format!("low-{node}"), "placed", |p| p["spec"]["nodeName"].is_string()).await;
        }
        api.put("podgroups", gang(2, json!({"priority": 9})));
        for name in ["one", "two"] {
            let mut spec = pod(9);
            spec["schedulingGroup"] = json!({"podGroupName": "g"});
            api.pod(name, spec);
        }
        for name in ["one", "two"] {
            api.until(name, "placed", |p| p["spec"]["nodeName"].is_string()).await;
        }
        let left = nodes.iter().filter(|n| api.get("pods", &format!("n/low-{n}")).is_some()).count();
        assert_eq!(left, 4, "while one is on its way out, nobody else is asked to go");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn gangs_stay_together_where_they_ask_for_it() {
    let options = scheduler::Options { groups: true, topology: true, ..scheduler::Options::default() };
    with_options(options, |api| async move {
        let node = |name: &str, rack: &str, cpu: &str| {
            api.put(
                "nodes",
                json!({"apiVersion": "v1", "kind": "Node",
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "rack": rack}},
                "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}}),
            );
        };
        for (name, rack, cpu) in
            [("a1", "a", "2"), ("b1", "b", "1"), ("b2", "b", "2"), ("c1", "c", "8"), ("c2", "c", "8")]
        {
            node(name, rack, cpu);
        }
        let constraints = json!({"schedulingConstraints": {"topology": [{"key": "rack"}]}});
        api.put("podgroups", gang(3, constraints));
        let member = || json!({"schedulingGroup": {"podGroupName": "g"}, "containers": cpu("1")["containers"]});
        ["one", "two", "three"].iter().for_each(|p| api.pod(p, member()));
        for name in ["one", "two", "three"] {
            // The rack with room for all of it and the least to spare.
            api.until(name, "placed", |p| p["spec"]["nodeName"].as_str().is_some_and(|n| n.starts_with('b'))).await;
        }
        api.pod("four", member());
        api.until("four", "told", |p| p["status"]["conditions"][0]["message"].is_string()).await;
        let said = api.get("pods", "n/four").unwrap()["status"]["conditions"][0]["message"].clone();
        assert!(
            said.as_str().unwrap().starts_with("0/5 nodes are available: 2 Insufficient cpu, 3 node(s) were outside"),
            "{said}"
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn devices_are_made_ready_before_pods_are_bound() {
    with_scheduler(|api| async move {
        api.node("a", "4");
        api.put("deviceclasses", json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "gpu"}, "spec": {}}));
        api.put("resourceslices", json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "s"},
            "spec": {"driver": "d.x", "nodeName": "a", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
                "devices": [{"name": "x", "bindingConditions": ["Attached"], "bindingFailureConditions": ["Broken"]}]}}));
        api.put("resourceclaims", claim("c"));
        api.pod("one", claiming("c"));
        api.event("BindingConditionsPending", "waiting for binding conditions for device on node a").await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(api.get("pods", "n/one").unwrap()["spec"]["nodeName"].is_null());
        let tell = |kind: &str| {
            let mut claim = api.get("resourceclaims", "n/c").unwrap();
            let condition = json!({"type": kind, "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"});
            claim["status"]["devices"] = json!([{"driver": "d.x", "pool": "p", "device": "x", "conditions": [condition]}]);
            api.put("resourceclaims", claim);
        };
        tell("Broken");
        let failed = "running PreBind plugin \"DynamicResources\": Internal error occurred: claim c binding failed: device d.x/p/x: Broken: R: m";
        api.event("FailedScheduling", failed).await;
        // It is given again, and now it works.
        tokio::time::sleep(Duration::from_secs(30)).await;
        tell("Attached");
        api.placed("one", "a").await;
        assert_eq!(api.get("resourceclaims", "n/c").unwrap()["status"]["allocation"]["devices"]["results"][0]["bindingConditions"], json!(["Attached"]));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn devices_stand_for_extended_resources() {
    with_scheduler(|api| async move {
        api.node("a", "4");
        api.put("nodes", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "plain", "labels": {"kubernetes.io/hostname": "plain"}},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110", "example.com/gpu": "1"}}}));
        let wants = |n: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": n}, "limits": {"example.com/gpu": n}}}]});
        api.pod("many", wants("2"));
        api.told("many", "0/2 nodes are available: 2 Insufficient example.com/gpu. no new claims to deallocate, preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.").await;
        api.put("resourceslices", json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "s"},
            "spec": {"driver": "d.x", "nodeName": "a", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
                "devices": [{"name": "x"}, {"name": "y"}, {"name": "z"}]}}));
        // Pods that wait hear that a class stands for it now.
        api.put("deviceclasses", json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "gpu"},
            "spec": {"extendedResourceName": "example.com/gpu"}}));
        api.placed("many", "a").await;
        let told = api.get("pods", "n/many").unwrap()["status"]["extendedResourceClaimStatus"].clone();
        assert_eq!(told["requestMappings"], json!([{"containerName": "c", "resourceName": "example.com/gpu", "requestName": "container-0-request-0"}]));
        let name = told["resourceClaimName"].as_str().unwrap();
        assert!(name.starts_with("many-extended-resources-"), "{name}");
        let claim = api.get("resourceclaims", &format!("n/{name}")).unwrap();
        assert_eq!(claim["metadata"]["annotations"], json!({"resource.kubernetes.io/extended-resource-claim": "true"}));
        assert_eq!(claim["metadata"]["ownerReferences"][0]["uid"], "uid-many");
        assert_eq!(claim["spec"]["devices"]["requests"][0]["exactly"], json!({"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2}));
        assert_eq!(claim["status"]["allocation"]["devices"]["results"].as_array().unwrap().len(), 2);
        assert_eq!(claim["status"]["reservedFor"][0]["uid"], "uid-many");
        // A node that counts it as a number gives a number; what is left of the devices is one.
        api.pod("one", json!({"nodeSelector": {"kubernetes.io/hostname": "plain"}, "containers": wants("1")["containers"]}));
        api.placed("one", "plain").await;
        assert!(api.get("pods", "n/one").unwrap()["status"]["extendedResourceClaimStatus"].is_null());
        api.pod("more", wants("2"));
        api.until("more", "told", |p| p["status"]["conditions"][0]["message"].is_string()).await;
        let said = api.get("pods", "n/more").unwrap()["status"]["conditions"][0]["message"].clone();
        assert!(said.as_str().unwrap().starts_with("0/2 nodes are available: 1 Insufficient example.com/gpu, 1 cannot allocate all claims."), "{said}");
    })
    .await;
}
