//! Informers, queue, events and elections against the fake transport.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use meta::{LabelSelector, Object};
use tokio_util::sync::CancellationToken;

use crate::fake::Fake;
use crate::{
    Batch, Client, EventType, Informers, LeaderElection, News, Queue, Recorder, Reflector, Scope, Subscription, gvr_of,
    reference,
};

fn names(objects: &[Arc<Object>]) -> Vec<String> {
    objects.iter().map(|o| o.meta.name.to_string()).collect()
}

/// `name: old -> new` of the next batch.
async fn next(subscription: &mut Subscription) -> Vec<String> {
    let version = |o: &Option<Arc<Object>>| o.as_ref().map_or("-".into(), |o| o.resource_version.to_string());
    match subscription.next().await {
        Some(Batch::Changes(changes)) => {
            changes.iter().map(|c| format!("{}: {} -> {}", c.key, version(&c.old), version(&c.new))).collect()
        }
        Some(Batch::Resync) => vec!["resync".into()],
        None => vec!["closed".into()],
    }
}

#[tokio::test(start_paused = true)]
async fn an_informer_follows_resumes_and_lists_again() {
    let fake = Fake::default();
    fake.config_map("a", "x");
    let informers = Informers::new(Client::new(fake.clone()));
    let informer = informers.get::<ConfigMap>();
    assert!(Arc::ptr_eq(&informer, &informers.get::<ConfigMap>()));
    informer.add_index("label", |o| o.meta.label("l").map(Into::into).into_iter().collect());
    informer.synced().await;
    let mut subscription = informer.subscribe();
    assert_eq!(next(&mut subscription).await, ["n/a: - -> 1"]);

    fake.config_map("b", "y");
    informer.reached(2).await;
    fake.config_map("b", "z");
    informer.reached(3).await;
    assert_eq!(next(&mut subscription).await, ["n/b: - -> 3"], "two changes, one news");
    assert_eq!(names(&informer.by_index("label", "z")), ["b"]);
    assert!(informer.by_index("label", "y").is_empty());
    assert_eq!(names(&informer.list_selected(Some("n"), &LabelSelector::parse("l=x").unwrap())), ["a"]);
    assert!(informer.list(Some("m")).is_empty());

    fake.cut(false);
    fake.config_map("c", "x");
    informer.reached(4).await;
    assert_eq!(next(&mut subscription).await, ["n/c: - -> 4"]);

    fake.cut(true);
    fake.remove("n/a");
    let last = fake.config_map("c", "w");
    informer.reached(last.resource_version).await;
    assert_eq!(next(&mut subscription).await, ["n/a: 1 -> -", "n/c: 4 -> 7"]);
    assert_eq!(fake.log().iter().filter(|l| l.starts_with("list")).count(), 2);

    drop((informer, informers));
    assert_eq!(next(&mut subscription).await, ["closed"]);
}

/// News as `+name`, `-name` and `all`, until all of a number of such words were heard.
async fn told(reflector: &mut Reflector, count: usize) -> Vec<String> {
    let mut out = Vec::new();
    while out.len() < count {
        out.extend(reflector.next().await.unwrap().into_iter().map(|news| match news {
            News::Put(object) => format!("+{}", object.meta.name),
            News::Gone(key) => format!("-{key}"),
            News::Complete => "all".into(),
        }));
    }
    out
}

#[tokio::test(start_paused = true)]
async fn a_reflector_tells_of_what_differs() {
    for (age, listed) in [((|_| {}) as fn(&Fake), false), (Fake::age, true), (Fake::age_store, true)] {
        let fake = Fake::default();
        age(&fake);
        fake.config_map("a", "x");
        fake.config_map("b", "x");
        let mut reflector = Reflector::start(&Client::new(fake.clone()), Scope::all(gvr_of::<ConfigMap>()));
        assert_eq!(told(&mut reflector, 3).await, ["+a", "+b", "all"]);
        fake.config_map("c", "x");
        assert_eq!(told(&mut reflector, 1).await, ["+c"]);
        fake.remove("n/c");
        assert_eq!(told(&mut reflector, 1).await, ["-n/c"]);
        fake.cut(true);
        fake.remove("n/a");
        fake.config_map("d", "x");
        let mut news = told(&mut reflector, 3).await;
        news.sort();
        assert_eq!(news, ["+d", "-n/a", "all"], "b is as it was");
        assert_eq!(fake.log().iter().any(|line| line.starts_with("list")), listed);
        assert!(reflector.try_next().is_none());
    }
}

#[tokio::test]
async fn a_slow_subscriber_is_told_to_look_at_everything() {
    let store = crate::store::Store::default();
    let fake = Fake::default();
    let mut subscription = store.subscribe_bounded(2);
    store.replace(["a", "b", "c"].map(|n| fake.config_map(n, "x")).into());
    assert_eq!(next(&mut subscription).await, ["resync"]);
    let d = fake.config_map("d", "x");
    store.apply([(&d, false), (&d, true)]);
    assert!(subscription.try_next().is_none(), "came and went");
}

#[tokio::test(start_paused = true)]
async fn a_key_waits_once_and_has_one_worker() {
    let queue = Queue::<&str>::default();
    queue.add("a");
    queue.add("a");
    queue.add("b");
    assert_eq!(queue.len(), 2);
    assert_eq!(queue.get().await, Some("a"));
    queue.add("a");
    assert_eq!(queue.get().await, Some("b"));
    assert!(queue.is_empty(), "a waits for its worker");
    queue.done(&"a");
    assert_eq!(queue.get().await, Some("a"));
    queue.done(&"a");
    let first = queue.retry("b");
    queue.done(&"b");
    queue.add_after("c", Duration::from_secs(50));
    queue.add_after("c", Duration::from_secs(5));
    let start = tokio::time::Instant::now();
    assert_eq!(queue.get().await, Some("b"));
    assert_eq!(queue.get().await, Some("c"));
    assert_eq!(start.elapsed().as_secs(), 5);
    assert!(
        first <= Duration::from_millis(5) && queue.retry("b") >= Duration::from_millis(5) && queue.failures(&"b") == 2
    );
    queue.close();
    assert_eq!(queue.get().await, None);
    assert_eq!(queue.get().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_named_queue_shows_its_figures() {
    let queue = Queue::<&str>::named("shown");
    queue.add("a");
    tokio::time::advance(Duration::from_millis(5)).await;
    assert_eq!(queue.get().await, Some("a"));
    queue.add("a");
    queue.add("b");
    tokio::time::advance(Duration::from_secs(2)).await;
    let shows = |line: &str| {
        let text = crate::exposition::text();
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    };
    shows("workqueue_adds_total{name=\"shown\"} 3");
    shows("workqueue_depth{name=\"shown\"} 1");
    shows("workqueue_longest_running_processor_seconds{name=\"shown\"} 2");
    shows("workqueue_queue_duration_seconds_bucket{name=\"shown\",le=\"0.001\"} 0");
    shows("workqueue_queue_duration_seconds_bucket{name=\"shown\",le=\"0.01\"} 1");
    queue.retry("c");
    queue.rests(&"a");
    shows("workqueue_unfinished_work_seconds{name=\"shown\"} 0");
    shows("workqueue_work_duration_seconds_sum{name=\"shown\"} 2");
    queue.done(&"a");
    shows("workqueue_work_duration_seconds_count{name=\"shown\"} 1");
    shows("workqueue_retries_total{name=\"shown\"} 1");
    drop(queue);
    assert!(!crate::exposition::text().contains("shown"), "a queue that is gone is not shown");
}

#[tokio::test(start_paused = true)]
async fn repeated_events_are_counted() {
    let fake = Fake::default();
    let about = fake.config_map("a", "x");
    let client = Client::new(fake.clone());
    let recorder = Recorder::new(&client, "tester", "");
    for _ in 0..3 {
        recorder.event(&reference(&about), EventType::Normal, "Happened", "it did");
    }
    recorder.warning(&about, "Happened", "something else");
    let events = client.dynamic(crate::Gvr::new("", "v1", "events")).namespaced("n");
    loop {
        let list = events.list(&Default::default()).await.unwrap();
        let mut seen: Vec<_> = list
            .items
            .iter()
            .filter(|o| &*o.kind == "Event")
            .map(|o| {
                let v = o.value().unwrap();
                format!("{} {} {}", v["type"].as_str().unwrap(), v["message"].as_str().unwrap(), v["count"])
            })
            .collect();
        seen.sort();
        if seen == ["Normal it did 3", "Warning something else 1"] {
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_candidate_leads_and_the_next_follows_its_release() {
    let fake = Fake::default();
    let cancel = CancellationToken::new();
    let candidate = |id: &str| LeaderElection::new(Client::new(fake.clone()), "n", "lock", id);
    let (a, b) = (candidate("a"), candidate("b"));
    let (order, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let (first, second) = (order.clone(), order);
    tokio::join!(
        a.run(cancel.clone(), |_| async move {
            first.send("a leads").unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
            first.send("a ends").unwrap();
        }),
        async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            b.run(cancel.clone(), |_| async move { second.send("b leads").unwrap() }).await;
        },
    );
    let mut said = Vec::new();
    while let Some(word) = seen.recv().await {
        said.push(word);
    }
    assert_eq!(said, ["a leads", "a ends", "b leads"]);
}

#[tokio::test(start_paused = true)]
async fn leadership_is_told() {
    let fake = Fake::default();
    let client = Client::new(fake.clone());
    let alone = LeaderElection::new(client.clone(), "n", "alone", "host_1");
    let shows = |value: u8| {
        let line = format!("leader_election_master_status{{name=\"alone\"}} {value}\n");
        assert!(crate::exposition::text().contains(&line), "{line}{}", crate::exposition::text());
    };
    let leads = |_| async {
        shows(1);
        assert!(crate::election::leads("alone") && crate::election::fault("alone").is_none());
        // Renewed all the while.
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(crate::election::fault("alone"), None);
    };
    alone.run(CancellationToken::new(), leads).await;
    shows(0);
    assert!(!crate::election::leads("alone") && crate::election::leads("not led by anybody here"));
    let events = client.dynamic(crate::Gvr::new("", "v1", "events")).namespaced("n");
    let seen = loop {
        let list = events.list(&Default::default()).await.unwrap();
        if let Some(event) = list.items.iter().find(|o| &*o.kind == "Event") {
            break event.value().unwrap();
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((&seen["reason"], &seen["message"]), (&"LeaderElection".into(), &"host_1 became leader".into()));
    assert_eq!((&seen["involvedObject"]["kind"], &seen["involvedObject"]["name"]), (&"Lease".into(), &"alone".into()));
}

#[tokio::test]
async fn discovery_names_what_it_could_not_read() {
    let found = Client::new(Fake::default()).discover().await.unwrap();
    assert_eq!(found.resources.len(), 1);
    assert!(found.resources[0].can("list") && found.resources[0].namespaced);
    assert_eq!(found.failed, ["down/v1: the server could not find the requested resource"]);
}

#[test]
fn conditions_without_a_time_are_read_as_go_reads_them() {
    let condition = |extra: &str| format!(r#"{{"type":"t","status":"True","reason":"r","message":"m"{extra}}}"#);
    for extra in ["", r#","lastTransitionTime":null"#] {
        let text = format!(
            r#"{{"kind":"Service","apiVersion":"v1","metadata":{{"name":"a"}},"status":{{"conditions":[{}]}}}}"#,
            condition(extra)
        );
        let service: Arc<k8s_openapi::api::core::v1::Service> =
            Object::from_wire(text.into_bytes().into()).unwrap().typed().unwrap();
        let conditions = service.status.clone().unwrap().conditions.unwrap();
        assert_eq!((conditions.len(), &*conditions[0].reason), (1, "r"));
    }
    let broken = r#"{"kind":"Service","apiVersion":"v1","metadata":{"name":"a"},"spec":7}"#;
    let broken = Object::from_wire(broken.as_bytes().to_vec().into()).unwrap();
    assert!(broken.typed::<k8s_openapi::api::core::v1::Service>().is_err());
}
