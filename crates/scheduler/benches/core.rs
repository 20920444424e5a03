//! How many pods a second the core places, without any API: plain ones, and ones with rules, on clusters of several sizes.
//!
//! `cargo bench -p scheduler --bench core`. Each sample places [`BATCH`] pods, which are then taken away again.

use divan::Bencher;
use divan::counter::ItemsCount;
use meta::Object;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use scheduler::core::Core;
use scheduler::node::Offer;
use scheduler::pod::{Pod, Specs};
use scheduler::view::{NodeView, PodView};
use serde_json::{Value, json};

const BATCH: usize = 2_000;

fn main() {
    divan::main();
}

fn cluster(nodes: usize) -> Core {
    let mut core = Core::default();
    for n in 0..nodes {
        let name = format!("node-{n}");
        let body = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "uid": name, "resourceVersion": "1", "labels": {
                "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("zone-{}", n % 10), "disk": if n % 2 == 0 { "ssd" } else { "hdd" }}},
            "status": {"allocatable": {"cpu": "32", "memory": "256Gi", "pods": "110"}},
        });
        let object = Object::from_value(&body).unwrap();
        let view: NodeView = serde_json::from_slice(object.raw()).unwrap();
        core.snapshot.set_node(&name, Offer::of(&object, &view));
    }
    core
}

fn pods(count: usize, spec: &Value) -> Vec<Pod> {
    let mut specs = Specs::default();
    let make = |n: usize| {
        let mut whole = json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}}]});
        for (field, value) in spec.as_object().into_iter().flatten() {
            whole[field] = value.clone();
        }
        let body = json!({"apiVersion": "v1", "kind": "Pod", "spec": whole, "metadata": {
            "name": format!("pod-{n}"), "namespace": "n", "uid": format!("uid-{n}"), "resourceVersion": "1", "labels": {"app": format!("app-{}", n % 10)}}});
        let object = Object::from_value(&body).unwrap();
        let view: PodView = serde_json::from_slice(object.raw()).unwrap();
        Pod::new(&object, &view, &mut specs)
    };
    (0..count).map(make).collect()
}

/// Places all, then takes all away.
fn place(core: &mut Core, pods: &[Pod], rng: &mut SmallRng) {
    for pod in pods {
        let id = core.schedule(pod, rng).unwrap();
        let node = core.snapshot.node(id).name.clone();
        core.snapshot.place(pod.clone(), &node);
    }
    for pod in pods {
        core.snapshot.remove(&pod.key);
    }
}

fn bench(bencher: Bencher<'_, '_>, nodes: usize, batch: usize, spec: &Value) {
    let (mut core, pods, mut rng) = (cluster(nodes), pods(batch, spec), SmallRng::seed_from_u64(1));
    place(&mut core, &pods[..1], &mut rng);
    bencher.counter(ItemsCount::new(batch)).bench_local(|| place(&mut core, &pods, &mut rng));
}

#[divan::bench(args = [100, 1_000, 5_000, 100_000, 1_000_000], sample_count = 5, sample_size = 1)]
fn plain(bencher: Bencher<'_, '_>, nodes: usize) {
    bench(bencher, nodes, BATCH, &json!({}));
}

#[divan::bench(args = [5_000], sample_count = 5, sample_size = 1)]
fn selector_and_preference(bencher: Bencher<'_, '_>, nodes: usize) {
    let prefer = json!([{"weight": 10, "preference": {"matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["zone-1"]}]}}]);
    let affinity = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": prefer}});
    bench(bencher, nodes, BATCH / 4, &json!({"nodeSelector": {"disk": "ssd"}, "affinity": affinity}));
}

#[divan::bench(args = [5_000], sample_count = 5, sample_size = 1)]
fn spread_over_zones(bencher: Bencher<'_, '_>, nodes: usize) {
    let constraint = json!([{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "app-1"}}}]);
    bench(bencher, nodes, BATCH / 4, &json!({"topologySpreadConstraints": constraint}));
}

#[divan::bench(args = [5_000], sample_count = 5, sample_size = 1)]
fn away_from_own_kind(bencher: Bencher<'_, '_>, nodes: usize) {
    let term = json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "app-1"}}}]);
    let affinity = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}});
    bench(bencher, nodes, BATCH / 4, &json!({"affinity": affinity}));
}

#[divan::bench(args = [5_000], sample_count = 5, sample_size = 1)]
fn near_others(bencher: Bencher<'_, '_>, nodes: usize) {
    let term = json!([{"topologyKey": "topology.kubernetes.io/zone", "labelSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}}]);
    let affinity = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}});
    bench(bencher, nodes, BATCH / 4, &json!({"affinity": affinity}));
}
