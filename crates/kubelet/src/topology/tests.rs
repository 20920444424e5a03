use super::*;
use crate::processors::core::{Place, Topology, parse, printed};
use serde_json::{Value, json};

/// Two memory nodes of four processors of one thread each.
fn givers(taken: &str, memory: bool, devices: &str) -> Givers {
    let topology =
        Topology((0..8).map(|cpu| (cpu, Place { socket: cpu / 4, core: cpu, node: cpu / 4, cache: 0 })).collect());
    let free = topology.all().difference(&parse(taken).unwrap()).copied().collect();
    let amounts = || Amounts::from([("memory".to_string(), 8 << 20)]);
    let memory = memory.then(|| memory::Giving::new(&[(0, amounts()), (1, amounts())].into(), &Default::default()));
    let placed: Vec<Placed> = devices
        .split_whitespace()
        .map(|word| word.split_once('@').unwrap())
        .map(|(id, node)| (id.to_string(), Some(Mask::of([node.parse().unwrap()]))))
        .collect();
    let ids = placed.iter().map(|(id, _)| id.clone()).collect();
    Givers::new(
        Some(core::Giving::new(topology, free, Default::default())),
        memory,
        [("ex.com/d".to_string(), (placed, ids))].into(),
    )
}

fn nodes() -> Nodes {
    Nodes((0..2).map(|a| (a, (0..2).map(|b| (b, if a == b { 10 } else { 20 })).collect())).collect())
}

fn container(name: &str, cpu: &str, memory: &str, devices: u32) -> Value {
    let mut amounts = json!({"cpu": cpu, "memory": memory});
    if devices > 0 {
        amounts["ex.com/d"] = json!(devices.to_string());
    }
    json!({"name": name, "resources": {"limits": amounts, "requests": amounts}})
}

fn shown(got: Result<Given, Refusal>) -> String {
    match got {
        Ok(given) => {
            let set = |mask: &Mask| printed(&mask.nodes().collect());
            let cpus = given.cpus.iter().map(|(name, cpus)| format!("{name}={}", printed(cpus)));
            let memory = given.memory.iter().map(|(name, blocks)| {
                format!("{name}:{}", printed(&blocks.iter().flat_map(|b| b.nodes.clone()).collect()))
            });
            let places = given.affinities.iter().map(|(name, mask)| format!("{name}@{}", set(mask)));
            cpus.chain(memory).chain(places).collect::<Vec<_>>().join(" ")
        }
        Err(Refusal::Apart) => "apart".into(),
        Err(Refusal::Short(why) | Refusal::Unaligned(why)) => why,
    }
}

#[test]
fn resources_lie_together() {
    let one = |c: Value| json!({"containers": [c]});
    let whole = |cpu: &str, memory: &str, containers: Value| {
        let amounts = json!({"cpu": cpu, "memory": memory});
        json!({"resources": {"requests": amounts, "limits": amounts}, "containers": containers})
    };
    for (policy, whole_pods, spec, taken, devices, expect) in [
        ("none", false, one(container("a", "2", "1Mi", 0)), "0-2", "", "a=3-4 a:0"),
        ("best-effort", false, one(container("a", "2", "1Mi", 0)), "0-2", "", "a=4-5 a:1 a@1"),
        ("best-effort", false, one(container("a", "5", "1Mi", 0)), "", "", "a=0-4 a:0-1 a@0-1"),
        ("restricted", false, one(container("a", "5", "1Mi", 0)), "", "", "apart"),
        ("restricted", false, one(container("a", "5", "9Mi", 0)), "", "", "a=0-4 a:0-1 a@0-1"),
        ("restricted", false, one(container("a", "4", "1Mi", 0)), "0,4", "", "apart"),
        ("single-numa-node", false, one(container("a", "4", "1Mi", 0)), "0", "", "a=4-7 a:1 a@1"),
        ("single-numa-node", false, one(container("a", "5", "1Mi", 0)), "", "", "apart"),
        ("single-numa-node", false, one(container("a", "1", "1Mi", 1)), "", "x@1", "a=4 a:1 a@1"),
        ("single-numa-node", false, one(container("a", "1", "1Mi", 2)), "", "x@1 y@0", "apart"),
        ("best-effort", false, one(container("a", "1", "1Mi", 2)), "", "x@1 y@0", "a=0 a:0-1 a@0-1"),
        // Not a guaranteed pod: it has no part in this.
        ("single-numa-node", false, one(json!({"name": "a", "resources": {"requests": {"cpu": "5"}}})), "", "", ""),
        (
            "single-numa-node",
            false,
            json!({"containers": [container("a", "3", "1Mi", 0), container("b", "3", "1Mi", 0)]}),
            "",
            "",
            "a=0-2 b=4-6 a:0 b:1 a@0 b@1",
        ),
        (
            "single-numa-node",
            true,
            json!({"containers": [container("a", "3", "1Mi", 0), container("b", "3", "1Mi", 0)]}),
            "",
            "",
            "apart",
        ),
        (
            "single-numa-node",
            true,
            json!({"containers": [container("a", "2", "1Mi", 0), container("b", "2", "1Mi", 0)]}),
            "0",
            "",
            "a=4-5 b=6-7 a:1 b:1 a@1 b@1",
        ),
        (
            "single-numa-node",
            true,
            json!({"initContainers": [container("i", "4", "1Mi", 0)], "containers": [container("a", "3", "1Mi", 0)]}),
            "",
            "",
            "a=0-2 i=0-3 a:0 i:0 a@0 i@0",
        ),
        // What a pod asks for as a whole is its containers' to share, but for what one has for itself.
        (
            "single-numa-node",
            true,
            whole("4", "2Mi", json!([container("a", "2", "1Mi", 0), {"name": "b"}, {"name": "c"}])),
            "0",
            "",
            "a=4-5 b=6-7 c=6-7 :1 a@1 b@1 c@1",
        ),
        (
            "single-numa-node",
            true,
            whole("4", "2Mi", json!([{"name": "a", "resources": {"requests": {"cpu": "2"}}}])),
            "",
            "",
            "a=0-3 :0 a@0",
        ),
        ("single-numa-node", true, whole("5", "2Mi", json!([{"name": "a"}])), "", "", "apart"),
        (
            "single-numa-node",
            true,
            whole("2", "2Mi", json!([container("a", "2", "1Mi", 0), {"name": "b"}])),
            "",
            "",
            "no cpus of the pod are left for b",
        ),
        ("single-numa-node", true, whole("1500m", "2Mi", json!([{"name": "a"}])), "", "", ":0 a@0"),
        // By containers, only those that are guaranteed themselves have any.
        (
            "single-numa-node",
            false,
            whole(
                "4",
                "2Mi",
                json!([container("a", "2", "1Mi", 0), {"name": "b", "resources": {"requests": {"cpu": "1"}}}]),
            ),
            "0",
            "",
            "a=1-2 a:0 a@0",
        ),
        (
            "none",
            false,
            one(container("a", "8", "1Mi", 0)),
            "0",
            "",
            "not enough cpus available to satisfy request: requested=8, available=7",
        ),
        (
            "none",
            false,
            one(container("a", "1", "17Mi", 0)),
            "",
            "",
            "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available",
        ),
    ] {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
        let rules = Rules { policy: Policy::parse(policy).unwrap(), closest: false };
        let wishes = Wishes { rules, whole_pods, ..Wishes::default() };
        let got = plan(&pod, &nodes(), &wishes, givers(taken, true, devices));
        assert_eq!(shown(got), expect, "{policy} {spec}");
    }
}

#[test]
fn memory_outlives_the_agent() {
    let root = tempfile::tempdir().unwrap();
    let mut config = Config::new("n", root.path().to_path_buf(), String::new());
    let machine = Machine {
        memory: (0..2).map(|n| (n, Amounts::from([("memory".to_string(), 8 << 20)]))).collect(),
        ..Machine::default()
    };
    let reserved: BTreeMap<u32, Amounts> = [(0, Amounts::from([("memory".to_string(), 1 << 20)]))].into();
    let memory = |config: &Config, reserved: &BTreeMap<u32, Amounts>| Memory::new(config, &machine, reserved, 16 << 20);
    let refused =
        |config: &Config, reserved: &BTreeMap<u32, Amounts>| format!("{:#}", memory(config, reserved).err().unwrap());
    config.eviction.thresholds.clear();
    assert!(refused(&config, &BTreeMap::new()).contains("you should specify the system reserved memory"));
    assert!(refused(&config, &reserved).contains("\"1048576\" of type \"memory\" is not equal to the value \"0\""));
    config.reserve("memory", "1Mi").unwrap();
    assert!(refused(&config, &[(7, Amounts::new())].into()).contains("non-existing NUMA node 7"));
    let first = memory(&config, &reserved).unwrap();
    assert_eq!((first.allocatable[&0]["memory"], first.allocatable[&1]["memory"]), (7 << 20, 8 << 20));
    let block = Block { nodes: vec![0], kind: "memory".into(), size: 5 };
    let grant: memory::Grants = [("u".to_string(), [("c".to_string(), vec![block])].into())].into();
    first.change(|grants| *grants = grant.clone()).unwrap();
    assert_eq!(memory(&config, &reserved).unwrap().read(Clone::clone), grant);
    first.change(|grants| grants.clear()).unwrap();
    assert!(memory(&config, &reserved).unwrap().read(|g| g.is_empty()));
    std::fs::write(&first.file, "damaged").unwrap();
    assert!(refused(&config, &reserved).contains("drain the node"));
}
