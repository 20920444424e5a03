//! What upstream's server leaves in a store, read as caches and clients read it.

use meta::Verb;
use serde_json::json;
use store::{Op, Txn};

use super::*;
use crate::testing::{Fixture, admin, said};

fn row(group: &str, plural: &str) -> Resource {
    let mut rows = resources::builtin::table(meta::schema::builtin(), &Default::default()).into_iter();
    rows.find(|r| &*r.group == group && &*r.plural == plural).unwrap()
}

fn stored(key: &str, value: Vec<u8>) -> KeyValue {
    KeyValue { key: key.into(), value: value.into(), create_revision: 7, mod_revision: 7, version: 1, lease: None }
}

fn read(row: &Resource, value: Vec<u8>) -> Result<Value, Unreadable> {
    decoder(row)(&stored("/registry/k", value)).map(|object| object.value().unwrap())
}

/// Bytes as upstream stores them: the message of a kind the facts have, in an envelope that may name another version.
fn sealed(written_as: (&str, &str, &str), named: &str, body: &Value) -> Vec<u8> {
    let (group, version, kind) = written_as;
    let view = meta::schema::builtin().kind(&Gvk::new(group, version, kind)).unwrap();
    let mut message = Vec::new();
    protobuf::write_message(view, body, &mut message).unwrap();
    protobuf::seal(named, kind, &message)
}

#[test]
fn protobuf_is_read_in_the_storage_version() {
    const FLOW: &str = "flowcontrol.apiserver.k8s.io";
    let check = |group: &str,
                 plural: &str,
                 written: (&str, &str, &str),
                 named: &str,
                 body: Value,
                 expected: &[(&str, Value)]| {
        let row = row(group, plural);
        let mut body = body;
        body["metadata"] = json!({"name": "x", "uid": "u"});
        let seen = read(&row, sealed(written, named, &body)).unwrap();
        assert_eq!(seen["apiVersion"], row.storage_gvk().api_version(), "{named}");
        assert_eq!((&seen["kind"], &seen["metadata"]["uid"]), (&json!(&*row.kind), &json!("u")));
        assert_eq!(seen["metadata"]["resourceVersion"], "7");
        for (pointer, value) in expected {
            assert_eq!(seen.pointer(pointer).unwrap_or(&Value::Null), value, "{named} {plural}: {pointer}");
        }
    };
    check(
        "",
        "secrets",
        ("", "v1", "Secret"),
        "v1",
        json!({"data": {"a": "Yg=="}}),
        &[("/data/a", json!("Yg==")), ("/type", json!("Opaque"))],
    );
    let deployment = json!({"spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    check(
        "apps",
        "deployments",
        ("apps", "v1", "Deployment"),
        "apps/v1",
        deployment,
        // Zeroes that are said stay; what the writer did not know is defaulted.
        &[("/spec/replicas", json!(0)), ("/spec/revisionHistoryLimit", json!(10))],
    );
    // A version that is served, and says it otherwise.
    let scaler = json!({"spec": {"maxReplicas": 5, "targetCPUUtilizationPercentage": 50, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}});
    check(
        "autoscaling",
        "horizontalpodautoscalers",
        ("autoscaling", "v1", "HorizontalPodAutoscaler"),
        "autoscaling/v1",
        scaler,
        &[("/spec/metrics/0/resource/target/averageUtilization", json!(50))],
    );
    // Versions that are not: renamed fields, the same fields, a number with another meaning.
    let level = json!({"spec": {"type": "Limited", "limited": {"assuredConcurrencyShares": 20, "limitResponse": {"type": "Reject"}}}});
    check(
        FLOW,
        "prioritylevelconfigurations",
        (FLOW, "v1beta2", "PriorityLevelConfiguration"),
        "flowcontrol.apiserver.k8s.io/v1beta2",
        level,
        &[
            ("/spec/limited/nominalConcurrencyShares", json!(20)),
            ("/spec/limited/assuredConcurrencyShares", json!(null)),
        ],
    );
    let budget = json!({"spec": {"minAvailable": 1, "selector": {}}});
    check(
        "policy",
        "poddisruptionbudgets",
        ("policy", "v1", "PodDisruptionBudget"),
        "policy/v1beta1",
        budget,
        &[("/spec/minAvailable", json!(1)), ("/spec/selector/matchExpressions/0/operator", json!("Exists"))],
    );
    let slice = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"], "zone": "hints", "nodeName": "n",
        "deprecatedTopology": {"topology.kubernetes.io/zone": "z", "kubernetes.io/hostname": "n"}}]});
    check(
        "discovery.k8s.io",
        "endpointslices",
        ("discovery.k8s.io", "v1", "EndpointSlice"),
        "discovery.k8s.io/v1beta1",
        slice,
        &[
            ("/endpoints/0/zone", json!("z")),
            ("/endpoints/0/deprecatedTopology", json!(null)),
            ("/endpoints/0/nodeName", json!("n")),
        ],
    );
}

#[test]
fn definitions_are_read_as_upstream_stores_them() {
    let body = json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1beta1", "metadata": {"name": "ws.e.com"},
        "spec": {"group": "e.com", "version": "v1", "scope": "Namespaced", "preserveUnknownFields": false,
            "names": {"plural": "ws", "kind": "W"}, "versions": [{"name": "v1", "served": true, "storage": true}],
            "validation": {"openAPIV3Schema": {"type": "object"}}, "subresources": {"status": {}},
            "additionalPrinterColumns": [{"name": "A", "type": "string", "JSONPath": ".a"}],
            "conversion": {"strategy": "Webhook", "webhookClientConfig": {"url": "https://u"}, "conversionReviewVersions": ["v1"]}}});
    let row = row("apiextensions.k8s.io", "customresourcedefinitions");
    let seen = read(&row, serde_json::to_vec(&body).unwrap()).unwrap();
    assert_eq!(
        seen["spec"],
        json!({"group": "e.com", "scope": "Namespaced", "names": {"plural": "ws", "kind": "W"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}},
                "subresources": {"status": {}}, "additionalPrinterColumns": [{"name": "A", "type": "string", "jsonPath": ".a"}]}],
            "conversion": {"strategy": "Webhook", "webhook": {"clientConfig": {"url": "https://u"}, "conversionReviewVersions": ["v1"]}}})
    );
}

#[test]
fn every_kind_upstream_stores_is_read() {
    let workspace = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let reference =
        std::env::var_os("NAUPLIUS_REFERENCE").map_or_else(|| workspace.join("../shared/reference"), Into::into);
    let Ok(fixtures) = std::fs::read_dir(reference.join("fixtures")) else {
        println!("skipped: no reference data (set NAUPLIUS_REFERENCE)");
        return;
    };
    let rows = resources::builtin::table(meta::schema::builtin(), &Default::default());
    let (mut tried, mut foreign) = (0, Vec::new());
    for path in fixtures.map(|entry| entry.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "pb")) {
        let bytes = std::fs::read(&path).unwrap();
        let gvk = Envelope::open(&bytes).unwrap().gvk();
        let stored = |r: &&Resource| {
            !r.prefix.is_empty() && r.group == gvk.group && r.kind == gvk.kind && r.strategy.stored_as().is_none()
        };
        let Some(row) = rows.iter().find(stored) else { continue };
        tried += 1;
        match read(row, bytes) {
            Ok(seen) => assert_eq!(seen["metadata"]["name"], "nameValue", "{}", path.display()),
            Err(Unreadable::Foreign(_)) if row.version(&gvk.version).is_none() => {
                foreign.push(format!("{} {}", gvk.api_version(), gvk.kind))
            }
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
    println!("{tried} tried, of versions unknown: {foreign:?}");
    assert!(tried > 60, "only {tried} were tried");
}

#[tokio::test]
async fn what_another_server_wrote_is_served_and_what_nobody_reads_is_told() {
    let f = Fixture::start().await;
    let put = async |name: &str, value: Vec<u8>| {
        let key = format!("/registry/configmaps/default/{name}").into();
        let ops = vec![Op::Put { key, value: value.into(), lease: None }];
        f.server.store().txn(Txn { compares: Vec::new(), ops }).await.unwrap();
        f.server.await_newest().await.unwrap();
    };
    let sealed = |version: &str| {
        let body = json!({"metadata": {"name": "a", "namespace": "default", "uid": "u"}, "data": {"k": "1"}});
        sealed(("", "v1", "ConfigMap"), version, &body)
    };
    let ask = async |verb, name: &str, body: Value| f.ask(&admin(), verb, "configmaps", "default", name, body).await;

    // An update that changes nothing changes the form, once.
    let stored = async || {
        let (stored, _) = f.server.store().get("/registry/configmaps/default/a", None).await.unwrap();
        stored.unwrap()
    };
    put("a", sealed("v1")).await;
    let same = ask(Verb::Get, "a", Value::Null).await.unwrap();
    ask(Verb::Update, "a", same).await.unwrap();
    let migrated = stored().await;
    assert!(migrated.value.starts_with(b"{"));
    f.server.await_newest().await.unwrap();
    let same = ask(Verb::Get, "a", Value::Null).await.unwrap();
    ask(Verb::Update, "a", same).await.unwrap();
    assert_eq!(stored().await.mod_revision, migrated.mod_revision);

    put("a", sealed("v1")).await;
    let mut body = ask(Verb::Get, "a", Value::Null).await.unwrap();
    body["data"]["k"] = "2".into();
    assert_eq!(ask(Verb::Update, "a", body).await.unwrap()["data"]["k"], "2");
    assert!(stored().await.value.starts_with(br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"#));

    // Of a version nobody knows: left out of lists, named when asked for.
    put("b", sealed("v9")).await;
    assert!(ask(Verb::List, "", Value::Null).await.is_ok());
    assert_eq!(
        said(&ask(Verb::Get, "b", Value::Null).await),
        "500 Internal error occurred: unable to decode the object stored as /registry/configmaps/default/b: no kind \"ConfigMap\" is registered for version \"v9\""
    );
    // Broken: nobody gets a list that lacks it, until it is removed.
    put("a", b"k8s\0\x0a\x7f".to_vec()).await;
    for (verb, name) in [(Verb::Get, "a"), (Verb::List, ""), (Verb::Update, "a")] {
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "default"}});
        let body = if verb == Verb::Update { body } else { Value::Null };
        let told = said(&ask(verb, name, body).await);
        assert_eq!(
            told,
            "500 Internal error occurred: unable to decode the object stored as /registry/configmaps/default/a: unexpected EOF"
        );
    }
    ask(Verb::Delete, "a", Value::Null).await.unwrap();
    assert!(ask(Verb::List, "", Value::Null).await.is_ok());
}

/// Over an etcd that an upstream server writes to: every object it holds is listed, and may be changed.
#[tokio::test]
async fn beside_upstream_on_one_etcd() {
    let Ok(endpoint) = std::env::var("NAUPLIUS_UPSTREAM_ETCD") else {
        println!("skipped: no etcd with an upstream server's objects (set NAUPLIUS_UPSTREAM_ETCD to its client URL)");
        return;
    };
    let options = store::etcd::Options { endpoints: vec![endpoint], ..store::etcd::Options::default() };
    let f = Fixture::over(std::sync::Arc::new(store::etcd::connect(options).await.unwrap()), None).await;
    let (mut listed, mut changed, mut refused) = (0, 0, Vec::new());
    for served in f.server.catalog().kinds().iter().filter(|s| s.cache.is_some()) {
        let row = &served.resource;
        let resource = format!("{}/{}/{}", row.group, row.storage_version().name, row.plural);
        let start = format!("{}/", row.prefix);
        let below = f.server.store().range(&start, &store::prefix_end(&start), 0, None).await.unwrap();
        let list = f.ask(&admin(), Verb::List, &resource, "", "", Value::Null).await.unwrap();
        let items = list.as_array().unwrap();
        // More may come meanwhile: this server registers what it serves.
        assert!(items.len() >= below.items.len(), "{resource}: {} of {}", items.len(), below.items.len());
        listed += items.len();
        for item in items.iter().filter(|item| row.strategy.stored_as().is_none() && item.is_object()) {
            let text = |field: &str| item["metadata"][field].as_str().unwrap_or_default();
            let mut body = item.clone();
            body["metadata"]["labels"]["changed-by"] = "another-server".into();
            match f.ask(&admin(), Verb::Update, &resource, text("namespace"), text("name"), body).await {
                Ok(_) => changed += 1,
                Err(status) => refused.push(format!("{resource} {}: {}", text("name"), status.message)),
            }
        }
    }
    println!("{listed} objects listed, {changed} changed; refused: {refused:#?}");
    assert!(listed > 0);
}
