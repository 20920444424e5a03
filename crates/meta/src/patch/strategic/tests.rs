//! Strategic merges of pods and their like.

use serde_json::json;

use super::*;
use crate::schema::builtin;

mod random;

fn named(name: &str) -> View<'static> {
    // Every type these tests use is built in.
    builtin().named(&format!("io.k8s.api.{name}")).unwrap()
}

/// (what, type, object, patch, result)
type Case = (&'static str, &'static str, Value, Value, Value);

fn check(cases: Vec<Case>) {
    for (what, kind, doc, patch, want) in cases {
        assert_eq!(strategic(named(kind), doc, &patch), Ok(want), "{what}");
    }
}

#[test]
fn objects_merge() {
    check(vec![
        (
            "adds",
            "core.v1.PodSpec",
            json!({"nodeName": "a"}),
            json!({"schedulerName": "x"}),
            json!({"nodeName": "a", "schedulerName": "x"}),
        ),
        ("replaces", "core.v1.PodSpec", json!({"nodeName": "a"}), json!({"nodeName": "b"}), json!({"nodeName": "b"})),
        (
            "null deletes",
            "core.v1.PodSpec",
            json!({"nodeName": "a", "hostname": "h"}),
            json!({"nodeName": null}),
            json!({"hostname": "h"}),
        ),
        (
            "null of nothing",
            "core.v1.PodSpec",
            json!({}),
            json!({"nodeName": null, "securityContext": {"runAsUser": null}}),
            json!({"securityContext": {}}),
        ),
        (
            "maps merge",
            "core.v1.PodSpec",
            json!({"nodeSelector": {"a": "1", "b": "2"}}),
            json!({"nodeSelector": {"b": "3", "c": "4"}}),
            json!({"nodeSelector": {"a": "1", "b": "3", "c": "4"}}),
        ),
        (
            "type changes",
            "core.v1.PodSpec",
            json!({"nodeName": "a"}),
            json!({"nodeName": {"x": 1}}),
            json!({"nodeName": {"x": 1}}),
        ),
        (
            "$patch replace",
            "core.v1.PodSpec",
            json!({"nodeSelector": {"a": "1"}}),
            json!({"nodeSelector": {"$patch": "replace", "b": "2"}}),
            json!({"nodeSelector": {"b": "2"}}),
        ),
        (
            "$patch delete",
            "core.v1.PodSpec",
            json!({"nodeSelector": {"a": "1"}}),
            json!({"nodeSelector": {"$patch": "delete"}}),
            json!({"nodeSelector": {}}),
        ),
        (
            "$patch merge",
            "core.v1.PodSpec",
            json!({"nodeSelector": {"a": "1"}}),
            json!({"nodeSelector": {"$patch": "merge", "b": "2"}}),
            json!({"nodeSelector": {"a": "1", "b": "2"}}),
        ),
        (
            "$retainKeys",
            "apps.v1.DeploymentSpec",
            json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
            json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
            json!({"strategy": {"type": "Recreate"}}),
        ),
    ]);
}

#[test]
fn keyed_lists_merge_item_by_item() {
    let two = || json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]});
    check(vec![
        (
            "merges",
            "core.v1.PodSpec",
            two(),
            json!({"containers": [{"name": "b", "image": "2"}]}),
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]}),
        ),
        // An item the server does not have yet has no place among the server's: upstream puts it first.
        (
            "adds",
            "core.v1.PodSpec",
            two(),
            json!({"containers": [{"name": "c", "image": "1", "tty": null}]}),
            json!({"containers": [{"name": "c", "image": "1"}, {"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}),
        ),
        (
            "deletes",
            "core.v1.PodSpec",
            two(),
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            json!({"containers": [{"name": "b", "image": "1"}]}),
        ),
        (
            "replaces",
            "core.v1.PodSpec",
            two(),
            json!({"containers": [{"name": "z"}, {"$patch": "replace"}]}),
            json!({"containers": [{"name": "z"}]}),
        ),
        ("null removes the list", "core.v1.PodSpec", two(), json!({"containers": null}), json!({})),
        (
            "from nothing, without deletions",
            "core.v1.PodSpec",
            json!({}),
            json!({"containers": [{"name": "a", "$patch": "delete"}, {"name": "b"}]}),
            json!({"containers": [{"name": "b"}]}),
        ),
        (
            "orders",
            "core.v1.PodSpec",
            two(),
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b", "image": "2"}]}),
            json!({"containers": [{"name": "b", "image": "2"}, {"name": "a", "image": "1"}]}),
        ),
        (
            "orders around the server's own",
            "core.v1.PodSpec",
            json!({"containers": [{"name": "s0"}, {"name": "a"}, {"name": "s1"}, {"name": "b"}, {"name": "s2"}]}),
            json!({"$setElementOrder/containers": [{"name": "a"}, {"name": "n"}, {"name": "b"}], "containers": [{"name": "n"}]}),
            json!({"containers": [{"name": "s0"}, {"name": "a"}, {"name": "n"}, {"name": "s1"}, {"name": "b"}, {"name": "s2"}]}),
        ),
        (
            "other keys",
            "core.v1.ServiceSpec",
            json!({"ports": [{"port": 80, "name": "http"}, {"port": 443}]}),
            json!({"ports": [{"port": 80, "name": null, "targetPort": 8080}]}),
            json!({"ports": [{"port": 80, "targetPort": 8080}, {"port": 443}]}),
        ),
        (
            "volumes retain keys",
            "core.v1.PodSpec",
            json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}),
        ),
        (
            "a list without a strategy is replaced",
            "core.v1.PodSpec",
            json!({"tolerations": [{"key": "a"}, {"key": "b"}]}),
            json!({"tolerations": [{"key": "c"}]}),
            json!({"tolerations": [{"key": "c"}]}),
        ),
    ]);
}

#[test]
fn lists_of_scalars_merge_as_sets() {
    let meta = || json!({"metadata": {"finalizers": ["a", "b", "c"]}});
    let with = |list: Value| json!({"metadata": {"finalizers": list}});
    check(vec![
        ("adds", "core.v1.Pod", meta(), with(json!(["d", "a"])), with(json!(["d", "a", "b", "c"]))),
        (
            "deletes",
            "core.v1.Pod",
            meta(),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b", "x"]}}),
            with(json!(["a", "c"])),
        ),
        (
            "deletes in an order",
            "core.v1.Pod",
            meta(),
            json!({"metadata": {"$setElementOrder/finalizers": ["c", "a"], "$deleteFromPrimitiveList/finalizers": ["b"]}}),
            with(json!(["c", "a"])),
        ),
        (
            "adds in an order",
            "core.v1.Pod",
            meta(),
            json!({"metadata": {"$setElementOrder/finalizers": ["a", "d", "b", "c"], "finalizers": ["d"]}}),
            with(json!(["a", "d", "b", "c"])),
        ),
    ]);
}

#[test]
fn what_is_not_a_patch_is_refused() {
    let spec = || json!({"containers": [{"name": "a"}], "nodeSelector": {"a": "1"}, "volumes": [{"name": "v"}]});
    // (patch, words of the error)
    let cases = [
        (json!([1]), "invalid JSON document"),
        (json!({"nodeSelector": {"$patch": "swap"}}), "unknown patch type: swap"),
        (json!({"containers": [{"image": "x"}]}), "does not contain declared merge key: name"),
        (json!({"containers": [{"$patch": "delete"}]}), "does not contain declared merge key: name"),
        (json!({"containers": ["x"]}), "list element types are not identical"),
        (
            json!({"containers": [{"name": "a", "$patch": "merge"}]}),
            "merging lists cannot yet be specified in the patch",
        ),
        (
            json!({"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a"}]}),
            "doesn't match $setElementOrder list",
        ),
        (json!({"$setElementOrder/containers": 1}), "expected a list"),
        (
            json!({"volumes": [{"name": "v", "$retainKeys": ["name"], "hostPath": {}}]}),
            "invalid patch format of retainKeys",
        ),
        (json!({"$deleteFromPrimitiveList/x": 1}), "invalid patch format of primitive list"),
    ];
    for (patch, words) in cases {
        match strategic(named("core.v1.PodSpec"), spec(), &patch) {
            Err(error) => assert!(error.to_string().contains(words), "{patch}: {error}"),
            Ok(done) => panic!("{patch} made {done}"),
        }
    }
}
