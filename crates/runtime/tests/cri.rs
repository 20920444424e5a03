//! The engine through CRI, with real containers. Needs root; skips with a line otherwise.

mod node;

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use cri::v1::*;
use futures::StreamExt;
use node::{Node, log_text, pod, security, shell};

macro_rules! able {
    () => {
        if let Some(why) = node::unable() {
            eprintln!("skipped: {why}");
            return;
        }
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_lives_and_dies() {
    able!();
    let node = Node::start(&["--pod-cidr", "10.77.1.0/24"]).await;
    node.import_busybox("busybox:test").await;
    let mut c = node.clients().await;
    let images = c.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert_eq!(images[0].repo_tags, ["docker.io/library/busybox:test"]);
    let mut events = c.runtime.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();

    let logs = node.dir.path().join("logs");
    let config = pod("one", &logs);
    let began = Instant::now();
    let sandbox = c.run(&config).await;
    eprintln!("sandbox: {:?}", began.elapsed());
    let began = Instant::now();
    let main = c
        .launch(
            &sandbox,
            &config,
            shell("main", "echo out; echo err >&2; printf tail; trap 'exit 3' TERM; while :; do sleep 0.01; done"),
        )
        .await;
    eprintln!("container: {:?}", began.elapsed());
    let status = c.status(&main).await;
    assert_eq!(status.state(), ContainerState::ContainerRunning);

    // Inside: names, mounts, layers, network.
    for (script, expect) in [
        ("hostname", "one\n"),
        ("cat /etc/hostname", "one\n"),
        ("cat /etc/resolv.conf", "search svc\nnameserver 10.96.0.10\n"),
        ("echo $FROM_IMAGE $HOSTNAME", "1 one\n"),
        ("ls /removed 2>/dev/null; ls /opaque; cat /home/through /passwd-link | head -c1", "shown\nz"),
        (
            "echo x > /proc/sys/kernel/hostname; cat /proc/keys",
            "sh: can't create /proc/sys/kernel/hostname: Read-only file system\n",
        ),
        ("id -u; id -G", "0\n0\n"),
        ("ps | grep -c 'sleep 0'", "1\n"),
        ("cat /proc/1/oom_score_adj", "1000\n"),
        (
            "grep Cap.nd: /proc/self/status; grep Cap.ff: /proc/self/status",
            "CapBnd:\t00000000a80425fb\nCapEff:\t00000000a80425fb\n",
        ),
        ("echo hi > /dev/null; echo x > /dev/shm/y; mount | grep -c cgroup", "ANY"),
    ] {
        let (got, code) = c.exec(&main, script).await;
        if expect == "ANY" {
            assert_eq!(code, 0, "{script}: {got}");
        } else if script.starts_with("ps") {
            assert!(!got.trim().is_empty());
        } else {
            assert_eq!(got, expect, "{script}");
        }
    }
    assert_eq!(c.exec(&main, "exit 7").await.1, 7);
    let began = Instant::now();
    let slow = ExecSyncRequest { container_id: main.clone(), cmd: vec!["sleep".into(), "60".into()], timeout: 1 };
    let refused = c.runtime.exec_sync(slow).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::DeadlineExceeded);
    assert!(began.elapsed() < Duration::from_secs(5));
    let missing = ExecSyncRequest { container_id: main.clone(), cmd: vec!["nonsense".into()], timeout: 1 };
    let refused = c.runtime.exec_sync(missing).await.unwrap_err();
    assert!(refused.message().contains("exec: \"nonsense\": executable file not found in $PATH"), "{refused}");

    // The node reaches the pod, the pod reaches another.
    let other_config = pod("two", &logs);
    let other = c.run(&other_config).await;
    let ip = |status: PodSandboxStatusResponse| status.status.unwrap().network.unwrap().ip;
    let request = |id: &str| PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
    let other_ip = ip(c.runtime.pod_sandbox_status(request(&other)).await.unwrap().into_inner());
    let own_ip = ip(c.runtime.pod_sandbox_status(request(&sandbox)).await.unwrap().into_inner());
    assert_ne!(own_ip, other_ip);
    let (got, code) =
        c.exec(&main, &format!("ping -c1 -W2 {other_ip} && ping -c1 -W2 127.0.0.1 && ping -c1 -W2 10.77.1.1")).await;
    assert_eq!(code, 0, "{got}");
    assert!(node.nsenter(&["/bin/busybox", "ping", "-c1", "-W2", &own_ip]).contains("1 packets received"));

    // Stopping: asked first.
    c.runtime.stop_container(StopContainerRequest { container_id: main.clone(), timeout: 10 }).await.unwrap();
    let status = c.status(&main).await;
    assert_eq!(
        (status.state(), status.exit_code, status.reason.as_str()),
        (ContainerState::ContainerExited, 3, "Error")
    );
    assert_eq!(log_text(&logs.join("one/main.log")), "out\nerr\ntail");
    let raw = std::fs::read_to_string(logs.join("one/main.log")).unwrap();
    assert!(raw.contains(" stdout F out\n") && raw.contains(" stderr F err\n"), "{raw}");

    // One that cannot start, one that ends well, one that is killed.
    let mut bad = shell("bad", "");
    bad.command = vec!["/no/such".into()];
    let bad = c.create(&sandbox, &config, bad).await;
    let refused = c.runtime.start_container(StartContainerRequest { container_id: bad.clone() }).await.unwrap_err();
    assert!(refused.message().contains("no such file or directory"), "{refused}");
    let status = c.status(&bad).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    let good = c.launch(&sandbox, &config, shell("good", "exit 0")).await;
    assert_eq!(c.ended(&good).await.reason, "Completed");
    let stubborn = c.launch(&sandbox, &config, shell("stubborn", "trap '' TERM; while :; do sleep 0.01; done")).await;
    c.runtime.stop_container(StopContainerRequest { container_id: stubborn.clone(), timeout: 1 }).await.unwrap();
    assert_eq!(c.status(&stubborn).await.exit_code, 137);

    let stats = c.runtime.list_container_stats(ListContainerStatsRequest::default()).await.unwrap().into_inner();
    assert!(stats.stats.is_empty());
    c.remove(&sandbox).await;
    c.remove(&other).await;
    c.remove(&other).await;
    let mut seen: HashMap<String, Vec<i32>> = HashMap::new();
    while let Ok(Some(Ok(event))) = tokio::time::timeout(Duration::from_millis(300), events.next()).await {
        seen.entry(event.container_id).or_default().push(event.container_event_type);
    }
    for id in [&sandbox, &main, &good, &stubborn] {
        assert_eq!(seen[id], [0, 1, 2, 3], "{id}");
    }
    node.nothing_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_outlive_the_engine() {
    able!();
    let mut node = Node::start(&["--pod-cidr", "10.77.2.0/24"]).await;
    node.import_busybox("busybox:test").await;
    let mut c = node.clients().await;
    let logs = node.dir.path().join("logs");
    let config = pod("one", &logs);
    let sandbox = c.run(&config).await;
    let lasting =
        c.launch(&sandbox, &config, shell("lasting", "n=0; while :; do echo $n; n=$((n+1)); sleep 0.02; done")).await;
    let ending =
        c.launch(&sandbox, &config, shell("ending", "while ! [ -e /dev/shm/go ]; do sleep 0.01; done; exit 5")).await;
    let created = c.create(&sandbox, &config, shell("created", "exit 6")).await;
    let pid = c.exec(&lasting, "cat /proc/1/stat").await.0;
    let shm = node.dir.path().join("state/sandboxes").join(&sandbox).join("shm/go");
    node.kill();
    std::fs::write(shm, "").unwrap();
    let exit = node.dir.path().join("root/containers").join(&ending).join("exit.json");
    let deadline = Instant::now() + node::PATIENCE;
    while !exit.exists() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    node.serve().await;
    let mut c = node.clients().await;
    assert_eq!(c.status(&ending).await.exit_code, 5);
    assert_eq!(c.status(&lasting).await.state(), ContainerState::ContainerRunning);
    let again = c.exec(&lasting, "cat /proc/1/stat").await.0;
    let start = |stat: &str| stat.split(' ').nth(21).map(str::to_string);
    assert_eq!(start(&pid), start(&again));
    c.start(&created).await;
    assert_eq!(c.ended(&created).await.exit_code, 6);
    // Output went on meanwhile, without a gap.
    let text = log_text(&logs.join("one/lasting.log"));
    let numbers: Vec<usize> = text.lines().map(|l| l.parse().unwrap()).collect();
    assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>());
    c.remove(&sandbox).await;
    node.nothing_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_disk_lost_is_done_without() {
    able!();
    let mut node = Node::start(&["--pod-cidr", "10.77.11.0/24"]).await;
    node.import_busybox("busybox:test").await;
    let mut c = node.clients().await;
    let logs = node.dir.path().join("logs");
    let forever = || "while :; do sleep 0.1; done";
    let (one, two) = (pod("one", &logs), pod("two", &logs));
    let (kept, lost) = (c.run(&one).await, c.run(&two).await);
    let lasting = c.launch(&kept, &one, shell("lasting", forever())).await;
    let stray = c.launch(&kept, &one, shell("stray", forever())).await;
    c.launch(&lost, &two, shell("main", forever())).await;
    let root = node.dir.path().join("root");
    let groups = |container: &str| std::fs::read_dir(root.join("containers").join(container)).is_ok();
    node.kill();
    // As after a power cut: nothing in one, nonsense in the others.
    std::fs::write(root.join("sandboxes").join(&lost).join("record"), "").unwrap();
    std::fs::write(root.join("containers").join(&stray).join("record"), "").unwrap();
    let records = std::fs::read_dir(root.join("images/records")).unwrap().flatten().next().unwrap().path();
    std::fs::write(&records, "{\"id\":").unwrap();
    node.serve().await;
    let mut c = node.clients().await;
    let sandboxes = c.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().into_inner().items;
    assert_eq!(sandboxes.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), [kept.as_str()]);
    let containers = c.runtime.list_containers(ListContainersRequest::default()).await.unwrap().into_inner().containers;
    assert_eq!(containers.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), [lasting.as_str()]);
    assert_eq!(c.status(&lasting).await.state(), ContainerState::ContainerRunning);
    assert!(!groups(&stray));
    let asked = || ImageStatusRequest {
        image: Some(ImageSpec { image: "busybox:test".into(), ..Default::default() }),
        verbose: false,
    };
    assert!(c.images.image_status(asked()).await.unwrap().into_inner().image.is_none());
    // It comes again, and goes again with a layer.
    node.import_busybox("busybox:test").await;
    assert!(c.images.image_status(asked()).await.unwrap().into_inner().image.is_some());
    let layer = std::fs::read_dir(root.join("images/layers")).unwrap().flatten().next().unwrap().path();
    std::fs::rename(&layer, root.join("aside")).unwrap();
    assert!(c.images.image_status(asked()).await.unwrap().into_inner().image.is_none());
    std::fs::rename(root.join("aside"), &layer).unwrap();
    c.remove(&kept).await;
    node.nothing_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn security_and_namespaces() {
    able!();
    let node = Node::start(&["--pod-cidr", "10.77.3.0/24"]).await;
    node.import_busybox("busybox:test").await;
    let mut c = node.clients().await;
    let logs = node.dir.path().join("logs");
    let mut config = pod("one", &logs);
    let linux = config.linux.as_mut().unwrap();
    linux.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "7".into());
    linux.security_context.as_mut().unwrap().namespace_options = Some(NamespaceOption::default());
    let sandbox = c.run(&config).await;

    let mut user = shell("user", "sleep 1000");
    security(&mut user).run_as_username = "web".into();
    security(&mut user).supplemental_groups = vec![77];
    security(&mut user).readonly_rootfs = true;
    security(&mut user).no_new_privs = true;
    let user = c.launch(&sandbox, &config, user).await;
    for (script, expect) in [
        ("id -u; id -g; id -G", "1000\n1000\n1000 77 5000\n"),
        ("grep -E 'CapEff|NoNewPrivs' /proc/self/status", "NoNewPrivs:\t1\nCapEff:\t0000000000000000\n"),
        ("touch /x", "touch: /x: Read-only file system\n"),
        ("cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "7\n"),
        ("echo $HOME", "/home\n"),
    ] {
        let mut got = c.exec(&user, script).await.0;
        if script.contains("CapEff") {
            let mut lines: Vec<&str> = got.lines().collect();
            lines.sort_by_key(|l| l.starts_with("CapEff"));
            got = lines.join("\n") + "\n";
        }
        assert_eq!(got, expect, "{script}");
    }

    // A shared PID namespace: containers see each other, and init reaps.
    let mut shared = shell("shared", "sleep 1000");
    security(&mut shared).namespace_options = Some(NamespaceOption::default());
    let first = c.launch(&sandbox, &config, shared.clone()).await;
    shared.metadata.as_mut().unwrap().name = "second".into();
    let second = c.launch(&sandbox, &config, shared).await;
    let (ps, _) = c.exec(&second, "ps").await;
    assert_eq!(ps.matches("sleep 1000").count(), 2, "{ps}");
    c.runtime.stop_container(StopContainerRequest { container_id: first.clone(), timeout: 0 }).await.unwrap();
    assert_eq!(c.status(&first).await.exit_code, 137);

    // Privileged, with a volume both ways.
    let mut privileged = shell("privileged", "sleep 1000");
    security(&mut privileged).privileged = true;
    let volume = node.dir.path().join("volume");
    privileged.mounts = vec![Mount {
        container_path: "/data/in".into(),
        host_path: volume.display().to_string(),
        ..Default::default()
    }];
    let privileged = c.launch(&sandbox, &config, privileged).await;
    let (got, code) = c.exec(&privileged, "echo v > /data/in/f && ls /dev/kmsg && cat /proc/sys/kernel/hostname").await;
    assert_eq!((got.as_str(), code), ("/dev/kmsg\none\n", 0));
    assert_eq!(std::fs::read_to_string(volume.join("f")).unwrap(), "v\n");

    // Seccomp: the default profile, and one from a file.
    let mut confined = shell("confined", "sleep 1000");
    security(&mut confined).seccomp = Some(SecurityProfile::default());
    security(&mut confined).run_as_user = Some(Int64Value { value: 1000 });
    let confined = c.launch(&sandbox, &config, confined).await;
    assert_eq!(c.exec(&confined, "grep Seccomp: /proc/self/status").await.0, "Seccomp:\t2\n");
    let profile = node.dir.path().join("profile.json");
    let rules = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":5}]}"#;
    std::fs::write(&profile, rules).unwrap();
    let mut local = shell("local", "sleep 1000");
    security(&mut local).no_new_privs = true;
    security(&mut local).seccomp = Some(SecurityProfile {
        profile_type: security_profile::ProfileType::Localhost.into(),
        localhost_ref: profile.display().to_string(),
    });
    let local = c.launch(&sandbox, &config, local).await;
    assert!(c.exec(&local, "busybox mkdir /x").await.0.contains("Input/output error"));
    assert_eq!(c.exec(&privileged, "grep Seccomp: /proc/self/status").await.0, "Seccomp:\t0\n");

    // Limits.
    let mut limited = shell("limited", "sleep 1000");
    let resources = limited.linux.as_mut().unwrap().resources.as_mut().unwrap();
    resources.memory_limit_in_bytes = 32 << 20;
    resources.cpu_quota = 50_000;
    resources.cpu_period = 100_000;
    let limited = c.launch(&sandbox, &config, limited).await;
    let (got, _) = c.exec(&limited, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max 2>/dev/null").await;
    assert!(got == "33554432\n50000\n" || got == "33554432\n50000 100000\n", "{got}");
    let mut hog = shell("hog", "x=$(yes | head -c 100000000); echo $x");
    hog.linux.as_mut().unwrap().resources.as_mut().unwrap().memory_limit_in_bytes = 16 << 20;
    let hog = c.launch(&sandbox, &config, hog).await;
    let status = c.ended(&hog).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    let stats = c.runtime.container_stats(ContainerStatsRequest { container_id: limited.clone() }).await.unwrap();
    assert!(stats.into_inner().stats.unwrap().memory.unwrap().working_set_bytes.unwrap().value > 0);
    c.remove(&sandbox).await;
    node.nothing_left();
}

/// Proportional memory of a process, in KiB.
fn pss(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pods_at_once() {
    able!();
    const PODS: usize = 40;
    let node = Node::start(&["--pod-cidr", "10.77.8.0/24"]).await;
    node.import_busybox("busybox:test").await;
    let clients = node.clients().await;
    let logs = node.dir.path().join("logs");
    // More rounds by hand: a thousand pods take a minute.
    let rounds = std::env::var("RUNTIME_TEST_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(1);
    let mut left = Vec::new();
    for _ in 0..rounds {
        let began = Instant::now();
        let started: Vec<String> = futures::future::join_all((0..PODS).map(|n| {
            let mut c = node::Clients { runtime: clients.runtime.clone(), images: clients.images.clone() };
            let config = pod(&format!("p{n}"), &logs);
            async move {
                let sandbox = c.run(&config).await;
                c.launch(&sandbox, &config, shell("main", "exec sleep 1000")).await;
                sandbox
            }
        }))
        .await;
        let up = began.elapsed();
        let mut c = node::Clients { runtime: clients.runtime.clone(), images: clients.images.clone() };
        let mut shims = Vec::new();
        for id in &started {
            let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
            let info = c.runtime.pod_sandbox_status(request).await.unwrap().into_inner().info;
            let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
            shims.push(info["pid"].as_i64().unwrap() as i32);
        }
        let memory: u64 = shims.iter().map(|pid| pss(*pid)).sum();
        let fds = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let before = fds(node.server_pid());
        // A lost shim: its pod ends, the others do not notice.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shims[0]), nix::sys::signal::Signal::SIGKILL).unwrap();
        let deadline = Instant::now() + node::PATIENCE;
        loop {
            let request = ListContainersRequest {
                filter: Some(ContainerFilter { pod_sandbox_id: started[0].clone(), ..Default::default() }),
            };
            let list = c.runtime.list_containers(request).await.unwrap().into_inner().containers;
            if list[0].state() == ContainerState::ContainerExited {
                break;
            }
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let began = Instant::now();
        futures::future::join_all(started.iter().map(|id| {
            let mut c = node::Clients { runtime: clients.runtime.clone(), images: clients.images.clone() };
            async move { c.remove(id).await }
        }))
        .await;
        let down = began.elapsed();
        eprintln!(
            "{PODS} pods: up in {up:?}, down in {down:?}; a shim: {} KiB PSS; the engine: {} KiB PSS",
            memory / PODS as u64,
            pss(node.server_pid())
        );
        assert!(fds(node.server_pid()) < before);
        node.nothing_left();
        left.push((fds(node.server_pid()), pss(node.server_pid())));
    }
    eprintln!("descriptors and KiB of the engine after each round: {left:?}");
    assert!(left.iter().all(|(fds, _)| *fds <= left[0].0 + 4), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_ports_and_plugins() {
    able!();
    if std::process::Command::new("nft").arg("--version").output().is_err() {
        eprintln!("skipped: needs nft (package nftables)");
        return;
    }
    let node = Node::start(&["--pod-cidr", "10.77.5.0/24"]).await;
    node.import_busybox("busybox:test").await;
    let mut c = node.clients().await;
    let mut config = pod("web", &node.dir.path().join("logs"));
    config.port_mappings = vec![PortMapping { container_port: 80, host_port: 8081, ..Default::default() }];
    let sandbox = c.run(&config).await;
    c.launch(&sandbox, &config, shell("web", "httpd -f -p 80 -h /etc")).await;
    let fetch = |address: &str| {
        node.nsenter(&[
            "busybox",
            "sh",
            "-c",
            &format!(
                "for n in 1 2 3 4 5 6 7 8 9; do busybox wget -qO- http://{address}/hostname && break; sleep 0.1; done"
            ),
        ])
    };
    assert!(fetch("10.77.5.1:8081").contains("web\n"), "{}", fetch("10.77.5.1:8081"));
    assert!(fetch("127.0.0.1:8081").contains("web\n"), "{}", fetch("127.0.0.1:8081"));
    c.remove(&sandbox).await;
    assert!(!node.nsenter(&["nft", "list", "ruleset"]).contains("nauplius"));
    drop(node);

    if !Path::new("/usr/lib/cni/bridge").exists() {
        eprintln!("skipped in part: needs package containernetworking-plugins");
        return;
    }
    let conf = tempfile::tempdir().unwrap();
    let list = serde_json::json!({"cniVersion": "0.4.0", "name": "test", "plugins": [
        {"type": "bridge", "bridge": "br-test", "isGateway": true, "hairpinMode": true,
         "ipam": {"type": "host-local", "dataDir": conf.path().join("ipam"), "ranges": [[{"subnet": "10.77.6.0/24"}]],
                  "routes": [{"dst": "0.0.0.0/0"}]}},
    ]});
    std::fs::write(conf.path().join("10-test.conflist"), list.to_string()).unwrap();
    let node = Node::start(&["--cni-conf-dir", &conf.path().display().to_string()]).await;
    node.import_busybox("busybox:test").await;
    let mut c = node.clients().await;
    let config = pod("one", &node.dir.path().join("logs"));
    let sandbox = c.run(&config).await;
    let main = c.launch(&sandbox, &config, shell("main", "sleep 1000")).await;
    let (got, code) = c.exec(&main, "ip -4 -o addr show eth0; ping -c1 -W2 10.77.6.1 && ping -c1 127.0.0.1").await;
    assert!(code == 0 && got.contains("10.77.6."), "{got}");
    c.remove(&sandbox).await;
    node.nothing_left();
    let left: Vec<_> = std::fs::read_dir(conf.path().join("ipam/test")).unwrap().flatten().collect();
    assert!(!left.iter().any(|e| e.file_name().to_string_lossy().starts_with("10.")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reset_removes_every_trace() {
    able!();
    let mut node = Node::start(&["--pod-cidr", "10.77.9.0/24"]).await;
    node.import_busybox("busybox:test").await;
    let mut c = node.clients().await;
    let logs = node.dir.path().join("logs");
    let mut pids = Vec::new();
    for name in ["one", "two"] {
        let config = pod(name, &logs);
        let sandbox = c.run(&config).await;
        let id = c.launch(&sandbox, &config, shell("main", "sleep 1000")).await;
        let request = ContainerStatusRequest { container_id: id, verbose: true };
        let info = c.runtime.container_status(request).await.unwrap().into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        pids.push(info["pid"].as_i64().unwrap());
    }
    // Even with the engine dead.
    node.kill();
    let output = node.reset();
    assert!(output.is_empty(), "{output}");
    let data = node.dir.path().display().to_string();
    assert!(!std::fs::read_to_string("/proc/self/mounts").unwrap().contains(&data));
    let links = node.nsenter(&["ip", "-o", "link"]);
    assert_eq!(links.lines().count(), 1, "{links}");
    for pid in pids {
        assert!(!Path::new(&format!("/proc/{pid}/exe")).exists());
    }
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        assert!(!hierarchy.path().join(node.namespace()).exists());
    }
    for dir in ["root", "state", "cri.sock"] {
        assert!(!node.dir.path().join(dir).exists(), "{dir}");
    }
    assert!(node.reset().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_propagate_as_asked() {
    able!();
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let node = Node::start(&["--pod-cidr", "10.77.10.0/24"]).await;
    node.import_busybox("busybox:test").await;
    let shared = node.dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    mount(Some("tmpfs"), &shared, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    mount(None::<&str>, &shared, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    for name in ["node", "inner"] {
        std::fs::create_dir(shared.join(name)).unwrap();
    }
    let mut c = node.clients().await;
    let config = pod("one", &node.dir.path().join("logs"));
    let sandbox = c.run(&config).await;
    let mut ids = Vec::new();
    for propagation in [
        MountPropagation::PropagationPrivate,
        MountPropagation::PropagationHostToContainer,
        MountPropagation::PropagationBidirectional,
    ] {
        let mut config_ = shell(propagation.as_str_name(), "sleep 1000");
        security(&mut config_).privileged = true;
        config_.mounts = vec![Mount {
            container_path: "/data".into(),
            host_path: shared.display().to_string(),
            propagation: propagation.into(),
            ..Default::default()
        }];
        ids.push(c.launch(&sandbox, &config, config_).await);
    }
    mount(Some("tmpfs"), &shared.join("node"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    std::fs::write(shared.join("node/file"), "").unwrap();
    let mut seen = Vec::new();
    for id in &ids {
        seen.push(c.exec(id, "ls /data/node").await.0);
    }
    assert_eq!(seen, ["", "file\n", "file\n"]);
    for (at, id) in ids.iter().enumerate() {
        let (got, code) = c.exec(id, "mount -t tmpfs none /data/inner && touch /data/inner/from").await;
        assert_eq!(code, 0, "{got}");
        assert_eq!(shared.join("inner/from").exists(), at == 2);
    }
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!table.contains("overlay /tmp/nauplius-runtime"), "{table}");
    c.remove(&sandbox).await;
    for at in ["inner", "node", ""] {
        umount2(&shared.join(at), MntFlags::MNT_DETACH).unwrap();
    }
    node.nothing_left();
}

/// The mounts that the kubelet makes of a pod's image volume and of an ordinary one.
fn volume(path: &str, source: Mount) -> Mount {
    Mount { container_path: path.into(), readonly: source.image.is_some(), ..source }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_have_users_of_their_own() {
    able!();
    use std::os::unix::fs::MetadataExt;
    const FIRST: u32 = 200_000;
    let node = Node::start(&["--pod-cidr", "10.77.11.0/24"]).await;
    node.import_busybox("busybox:test").await;
    let mut c = node.clients().await;
    let status = c.runtime.status(StatusRequest::default()).await.unwrap().into_inner();
    if !status.runtime_handlers[0].features.unwrap().user_namespaces {
        eprintln!("skipped: the kernel has no mounts with other owners");
        return;
    }
    let map = |length| vec![IdMapping { host_id: FIRST, container_id: 0, length }];
    let mut config = pod("one", &node.dir.path().join("logs"));
    let mut wish = |users: UserNamespace| {
        let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        context.namespace_options.as_mut().unwrap().userns_options = Some(users);
        config.clone()
    };
    let refused = wish(UserNamespace { mode: NamespaceMode::Pod.into(), uids: map(0), gids: map(0) });
    let request = RunPodSandboxRequest { config: Some(refused), runtime_handler: String::new() };
    assert!(c.runtime.run_pod_sandbox(request).await.unwrap_err().message().contains("mappings"));
    let config = wish(UserNamespace { mode: NamespaceMode::Pod.into(), uids: map(65536), gids: map(65536) });

    let sandbox = c.run(&config).await;
    let data = node.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let mut main = shell("main", "trap exit TERM; httpd -f -p 80 & touch /made; while :; do sleep 0.01; done");
    let own = Mount {
        host_path: data.display().to_string(),
        uid_mappings: map(65536),
        gid_mappings: map(65536),
        ..Mount::default()
    };
    main.mounts = vec![volume("/data", own)];
    let main = c.launch(&sandbox, &config, main).await;
    for (script, expect) in [
        ("id -u; id -g", "0\n0\n"),
        ("cat /proc/self/uid_map | tr -s ' '", " 0 200000 65536\n"),
        ("cat /proc/1/uid_map | tr -s ' '", " 0 200000 65536\n"),
        ("ls -ln / | grep -c ' 0 *0 .* made$'; ls -lnd /bin | tr -s ' ' | grep -c ' 0 0 '", "1\n1\n"),
        ("echo x > /data/file; ls -ln /data | grep -c ' 0 *0 '", "1\n"),
        ("echo x > /dev/shm/a && echo x > /dev/a && echo x > /dev/null && echo ok", "ok\n"),
        ("echo x > /etc/hostname && ls -ln /etc/hostname | grep -c ' 0 *0 '", "1\n"),
        ("echo 1 > /proc/sys/kernel/panic || mount -t tmpfs none /tmp || echo weak", "weak\n"),
    ] {
        let (out, _) = c.exec(&main, &format!("{{ {script}; }} 2>/dev/null")).await;
        assert_eq!(out, expect, "{script}");
    }
    // On the node they are nobody in particular, and what they write is whose it is said to be.
    let request = ContainerStatusRequest { container_id: main.clone(), verbose: true };
    let info = c.runtime.container_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    let process = std::fs::metadata(format!("/proc/{}", info["pid"])).unwrap();
    assert_eq!((process.uid(), process.gid()), (FIRST, FIRST));
    let file = std::fs::metadata(data.join("file")).unwrap();
    assert_eq!((file.uid(), file.gid()), (0, 0));
    // A terminal, and another user.
    let mut other = shell("other", "id -u; tty");
    other.tty = true;
    security(&mut other).run_as_user = Some(Int64Value { value: 1000 });
    let other = c.launch(&sandbox, &config, other).await;
    assert_eq!(c.ended(&other).await.exit_code, 0);
    let text = log_text(&node.dir.path().join("logs/one/other.log"));
    assert_eq!(text.replace('\r', ""), "1000\n/dev/pts/0\n");
    c.remove(&sandbox).await;
    node.nothing_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_volumes() {
    able!();
    let node = Node::start(&["--pod-cidr", "10.77.12.0/24"]).await;
    node.import_busybox("busybox:test").await;
    let mut c = node.clients().await;
    let config = pod("one", &node.dir.path().join("logs"));
    let sandbox = c.run(&config).await;
    let image = |inside: &str| Mount {
        image: Some(ImageSpec { image: "busybox:test".into(), ..ImageSpec::default() }),
        image_sub_path: inside.into(),
        ..Mount::default()
    };
    let mut main = shell("main", "ls /whole/opaque /part /link; touch /whole/x /part/x");
    // `link` is a link to `home` in the image; one to the node would end in the image too.
    main.mounts = vec![volume("/whole", image("")), volume("/part", image("opaque")), volume("/link", image("link"))];
    let main = c.launch(&sandbox, &config, main).await;
    assert_eq!(c.ended(&main).await.exit_code, 1);
    let text = log_text(&node.dir.path().join("logs/one/main.log"));
    let shown = "/link:\nthrough\n\n/part:\nshown\n\n/whole/opaque:\nshown\n";
    let shown = [shown, "touch: /whole/x: Read-only file system\n", "touch: /part/x: Read-only file system\n"];
    assert_eq!(text, shown.concat());
    let mut wrong = shell("wrong", "true");
    wrong.mounts = vec![volume("/part", image("nowhere"))];
    let wrong = c.create(&sandbox, &config, wrong).await;
    let request = StartContainerRequest { container_id: wrong };
    let why = c.runtime.start_container(request).await.unwrap_err();
    assert!(why.message().contains("nowhere"), "{why}");
    c.remove(&sandbox).await;
    node.nothing_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_shim_takes_its_pod_with_it() {
    able!();
    let node = Node::start(&["--pod-cidr", "10.77.13.0/24"]).await;
    node.import_busybox("busybox:test").await;
    let mut c = node.clients().await;
    for pid in [NamespaceMode::Container, NamespaceMode::Pod] {
        let mut config = pod("one", &node.dir.path().join("logs"));
        let own = NamespaceOption { pid: pid.into(), ..Default::default() };
        config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options = Some(own.clone());
        let sandbox = c.run(&config).await;
        let mut main = shell("main", "sleep 1000 & while :; do sleep 1000; done");
        security(&mut main).namespace_options = Some(own);
        let main = c.launch(&sandbox, &config, main).await;
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: true };
        let info = c.runtime.pod_sandbox_status(request.clone()).await.unwrap().into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        let inside = |pid: &serde_json::Value| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let network = inside(&info["pid"]).unwrap();
        let shim = nix::unistd::Pid::from_raw(info["pid"].as_i64().unwrap() as i32);
        nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).unwrap();
        assert_ne!(c.ended(&main).await.exit_code, 0);
        let status = c.runtime.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
        assert_eq!(status.state(), PodSandboxState::SandboxNotready);
        let left = || {
            let all = std::fs::read_dir("/proc").unwrap().flatten();
            all.filter(|p| std::fs::read_link(p.path().join("ns/net")).is_ok_and(|n| n == network)).count()
        };
        let deadline = Instant::now() + node::PATIENCE;
        while left() > 0 {
            assert!(Instant::now() < deadline, "{} processes are left", left());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        c.remove(&sandbox).await;
        node.nothing_left();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_keeps_nobody_from_ending() {
    able!();
    let node = Node::start_small(48, &["--pod-cidr", "10.77.27.0/24"]).await;
    node.import_busybox("busybox:test").await;
    let mut c = node.clients().await;
    let config = pod("one", &node.dir.path().join("logs"));
    let sandbox = c.run(&config).await;
    let main = c.launch(&sandbox, &config, shell("main", "trap 'exit 3' TERM; while :; do sleep 0.01; done")).await;
    let filler = node.dir.path().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    for size in [1 << 16, 1 << 8, 1] {
        while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
    }
    let refused = c.runtime.run_pod_sandbox(RunPodSandboxRequest {
        config: Some(pod("two", &node.dir.path().join("logs"))),
        runtime_handler: String::new(),
    });
    assert!(refused.await.unwrap_err().message().contains("No space left on device"));
    c.runtime.stop_container(StopContainerRequest { container_id: main.clone(), timeout: 10 }).await.unwrap();
    let status = c.status(&main).await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 3));
    c.remove(&sandbox).await;
    drop(file);
    std::fs::remove_file(filler).unwrap();
    let again = c.run(&pod("three", &node.dir.path().join("logs"))).await;
    c.remove(&again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_came_and_went_leave_nothing() {
    able!();
    come_and_go(4, 6, "10.77.14.0/24").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn a_thousand_pods_leave_nothing() {
    able!();
    come_and_go(25, 40, "10.77.15.0/24").await;
}

/// The processes that a process has started, by whichever of its threads.
fn children(pid: i32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
    threads.flat_map(|t| of(t).split_whitespace().filter_map(|c| c.parse().ok()).collect::<Vec<i32>>()).collect()
}

/// Rounds of pods at once; after each nothing of them is left: mounts, links, cgroups, records, processes, descriptors.
async fn come_and_go(rounds: usize, pods: usize, pod_cidr: &str) {
    let node = Node::start(&["--pod-cidr", pod_cidr]).await;
    node.import_busybox("busybox:test").await;
    let open = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let mut before = 0;
    for round in 0..rounds {
        let all = (0..pods).map(|n| {
            let node = &node;
            async move {
                let mut c = node.clients().await;
                let config = pod(&format!("p{round}-{n}"), &node.dir.path().join("logs"));
                let sandbox = c.run(&config).await;
                let main = c.launch(&sandbox, &config, shell("main", "while :; do sleep 0.01; done")).await;
                assert_eq!(c.exec(&main, "echo here").await, ("here\n".into(), 0));
                let short = c.launch(&sandbox, &config, shell("short", "exit 1")).await;
                assert_eq!(c.ended(&short).await.exit_code, 1);
                c.remove(&sandbox).await;
            }
        });
        futures::future::join_all(all).await;
        node.nothing_left();
        let shims: Vec<i32> = children(node.server_pid()).into_iter().flat_map(children).collect();
        assert!(shims.is_empty(), "{shims:?}");
        // The first round opens what stays open.
        let now = open(node.server_pid());
        if round == 1 {
            before = now;
        }
        // A few connections of this test may be closing still.
        assert!(round <= 1 || now <= before + pods, "{before} descriptors, then {now}");
    }
}
