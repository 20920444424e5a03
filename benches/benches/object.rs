//! What one object costs on its way through the API server: decode, prune and default, encode, write out.

use meta::{Gvk, Object};
use serde_json::{Value, json};

fn main() {
    divan::main();
}

fn pod() -> Value {
    let container = |n: usize| {
        json!({"name": format!("c{n}"), "image": "registry.example/app:1", "ports": [{"containerPort": 8080}],
            "env": [{"name": "A", "value": "b"}], "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}}})
    };
    json!({"kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "web-0", "namespace": "default", "uid": "0b0cba3e-7a34-4a2c-9f0f-7a0a7f5d8c11", "labels": {"app": "web"}},
        "spec": {"containers": [container(0), container(1)]}})
}

#[divan::bench]
fn decode_json(bencher: divan::Bencher) {
    let bytes = serde_json::to_vec(&pod()).unwrap();
    bencher.bench(|| meta::decode::json(divan::black_box(&bytes)).unwrap());
}

#[divan::bench]
fn conform(bencher: divan::Bencher) {
    let schema = meta::schema::builtin_schema(&Gvk::new("", "v1", "Pod")).unwrap();
    bencher.with_inputs(pod).bench_local_values(|mut body| {
        let mut issues = meta::decode::Issues::default();
        meta::schema::conform(schema.root(), &mut body, &mut issues).unwrap();
        body
    });
}

#[divan::bench]
fn encode_stored(bencher: divan::Bencher) {
    let body = pod();
    bencher.bench(|| meta::object::encode_stored(divan::black_box(&body)).unwrap());
}

#[divan::bench]
fn read_stored(bencher: divan::Bencher) {
    let raw = meta::object::encode_stored(&pod()).unwrap();
    bencher.bench(|| Object::from_stored(raw.clone(), 42).unwrap());
}

#[divan::bench]
fn write_out(bencher: divan::Bencher) {
    let object = Object::from_stored(meta::object::encode_stored(&pod()).unwrap(), 42).unwrap();
    bencher.bench(|| object.to_json());
}
