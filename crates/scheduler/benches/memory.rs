//! Bytes the core keeps for each node and each pod, as the allocator counts them: `cargo bench -p scheduler --bench memory`.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

use meta::Object;
use scheduler::core::Core;
use scheduler::node::Offer;
use scheduler::pod::{Pod, Specs};
use scheduler::view::{NodeView, PodView};
use serde_json::json;

struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; only sizes are counted beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NODES: usize = 100_000;
const PODS: usize = 200_000;

fn main() {
    // `cargo test` runs benches to see that they work, not for their numbers.
    let (nodes, pods) = if std::env::args().any(|a| a == "--bench") { (NODES, PODS) } else { (100, 200) };
    let mut core = Core::default();
    let mut specs = Specs::default();
    let before = LIVE.load(Ordering::Relaxed);
    for n in 0..nodes {
        let name = format!("node-{n}");
        let body = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "uid": name, "resourceVersion": "1", "labels": {
                "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("zone-{}", n % 10),
                "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}},
            "status": {"allocatable": {"cpu": "32", "memory": "256Gi", "pods": "110"}},
        });
        let object = Object::from_value(&body).unwrap();
        let view: NodeView = serde_json::from_slice(object.raw()).unwrap();
        core.snapshot.set_node(&name, Offer::of(&object, &view));
    }
    let with_nodes = LIVE.load(Ordering::Relaxed);
    for n in 0..pods {
        let spec = json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}}]});
        let body = json!({"apiVersion": "v1", "kind": "Pod", "spec": spec, "metadata": {
            "name": format!("web-5d4f8c7b9-{n:05}"), "namespace": "production", "uid": format!("11111111-2222-3333-4444-{n:012}"),
            "resourceVersion": "1", "labels": {"app": format!("app-{}", n % 100), "pod-template-hash": "5d4f8c7b9"}}});
        let object = Object::from_value(&body).unwrap();
        let view: PodView = serde_json::from_slice(object.raw()).unwrap();
        let pod = Pod::new(&object, &view, &mut specs);
        core.snapshot.place(pod, &format!("node-{}", n % nodes));
    }
    let with_pods = LIVE.load(Ordering::Relaxed);
    println!(
        "{} bytes a node, {} bytes a pod",
        (with_nodes - before) / nodes as isize,
        (with_pods - with_nodes) / pods as isize
    );
}
