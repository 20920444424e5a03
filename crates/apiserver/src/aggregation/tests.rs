use std::collections::HashMap;

use serde_json::json;

use super::*;
use crate::authn::User;
use crate::testing::{Fixture, admin};
use meta::Verb;

fn remote(group: &str, version: &str) -> Arc<Remote> {
    Arc::new(Remote {
        gv: GroupVersion::new(group, version),
        backend: Backend { namespace: "n".into(), name: "s".into(), port: 443 },
        tls: Err("none".into()),
        available: false,
        documents: Default::default(),
    })
}

#[tokio::test]
async fn groups_stand_in_the_order_of_their_priorities() {
    let fixture = Fixture::start().await;
    let catalog = fixture.server.catalog();
    let gv = GroupVersion::new("wardle.example.com", "v1alpha1");
    let priorities = HashMap::from([
        (gv, Priority { group: 17_799, version: 1 }),
        (GroupVersion::new("wardle.example.com", "v1"), Priority { group: 10, version: 1 }),
    ]);
    let services = Services::new(
        1,
        priorities,
        vec![remote("wardle.example.com", "v1alpha1"), remote("wardle.example.com", "v1")],
    );
    let groups = services.groups(&catalog);
    assert_eq!(
        groups.iter().map(|(g, _)| g.as_str()).take(5).collect::<Vec<_>>(),
        [GROUP, "", "apps", "wardle.example.com", "events.k8s.io"]
    );
    let wardle = groups.iter().find(|(g, _)| g == "wardle.example.com").unwrap();
    assert_eq!(wardle.1, ["v1", "v1alpha1"]);
    let autoscaling = groups.iter().find(|(g, _)| g == "autoscaling").unwrap();
    assert_eq!(autoscaling.1, ["v2", "v1"]);
}

#[tokio::test]
async fn what_is_served_here_is_registered() {
    let fixture = Fixture::start().await;
    registration::sync(&fixture.server).await.unwrap();
    let found = fixture
        .ask(&admin(), Verb::Get, "apiregistration.k8s.io/v1/apiservices", "", "v1.apps", Value::Null)
        .await
        .unwrap();
    assert_eq!(
        found["spec"],
        json!({"group": "apps", "version": "v1", "groupPriorityMinimum": 17_800, "versionPriority": 15})
    );
    assert_eq!(found["metadata"]["labels"], json!({"kube-aggregator.kubernetes.io/automanaged": "onstart"}));
    assert_eq!(found["status"]["conditions"][0]["reason"], "Local");
    let core = fixture
        .ask(&admin(), Verb::Get, "apiregistration.k8s.io/v1/apiservices", "", "v1.", Value::Null)
        .await
        .unwrap();
    assert_eq!(core["spec"]["version"], "v1");
}

#[tokio::test]
async fn a_service_that_is_not_there_makes_its_version_unavailable() {
    let fixture = Fixture::start().await;
    let service = json!({"namespace": "default", "name": "none", "port": 443});
    let body = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.x.example"},
        "spec": {"group": "x.example", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10, "service": service,
                 "insecureSkipTLSVerify": true}});
    fixture.create("apiregistration.k8s.io/v1/apiservices", "", body).await.unwrap();
    let mut follower = availability::Follower::default();
    follower.look(&fixture.server).await;
    fixture.server.await_newest().await.unwrap();
    let found = fixture
        .ask(&admin(), Verb::Get, "apiregistration.k8s.io/v1/apiservices", "", "v1.x.example", Value::Null)
        .await
        .unwrap();
    let condition = &found["status"]["conditions"][0];
    assert_eq!(condition["reason"], "ServiceNotFound");
    assert_eq!(condition["message"], "service/none in \"default\" is not present");
    let services = fixture.server.aggregation().services();
    assert!(services.remote("x.example", "v1").is_some_and(|remote| !remote.available));
    assert!(proxy::of_path(&fixture.server, "/apis/x.example/v1/things").is_some());
    assert!(proxy::of_path(&fixture.server, "/apis/x.example").is_none());
}

#[test]
fn callers_are_named_in_headers() {
    let mut headers = http::HeaderMap::new();
    headers.insert("x-remote-group", "system:masters".parse().unwrap());
    headers.insert("impersonate-user", "root".parse().unwrap());
    let mut user = User::new("jane", &["a", "b"]);
    user.extra.insert("authentication.kubernetes.io/pod-name".into(), vec!["p".into()]);
    proxy::identify(&mut headers, &user);
    let all = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>().join(",");
    assert_eq!(all("x-remote-user"), "jane");
    assert_eq!(all("x-remote-group"), "a,b");
    assert_eq!(all("x-remote-extra-authentication.kubernetes.io%2fpod-name"), "p");
    assert_eq!(all("impersonate-user"), "");
}

#[test]
fn callers_are_added_to_those_a_call_came_through() {
    let mut headers = http::HeaderMap::new();
    let address = std::net::IpAddr::from([127, 0, 0, 1]);
    proxy::came_from(&mut headers, address);
    assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
    headers.append("x-forwarded-for", http::HeaderValue::from_static("10.0.0.1"));
    proxy::came_from(&mut headers, address);
    assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
    assert_eq!(headers["x-forwarded-for"], "127.0.0.1, 10.0.0.1, 127.0.0.1");
}

#[test]
fn refused_connections_are_told_of_as_go_does() {
    let refused = std::io::Error::from_raw_os_error(111);
    let said = crate::subresource::connect::not_dialled(([127, 0, 0, 1], 1).into(), &refused);
    assert_eq!(said, "dial tcp 127.0.0.1:1: connect: connection refused");
}
