//! Pods whose containers runc or crun makes. Needs root and the program; skips with a line otherwise.

mod node;

use std::path::Path;

use cri::v1::*;
use node::{Clients, Node, log_text, pod, security, shell};

fn installed(program: &str) -> bool {
    ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"].iter().any(|d| Path::new(d).join(program).is_file())
}

async fn handlers(c: &mut Clients) -> Vec<String> {
    let status = c.runtime.status(StatusRequest::default()).await.unwrap().into_inner();
    status.runtime_handlers.into_iter().map(|h| h.name).collect()
}

async fn stats(c: &mut Clients, id: &str) -> ContainerStats {
    let request = ContainerStatsRequest { container_id: id.into() };
    c.runtime.container_stats(request).await.unwrap().into_inner().stats.unwrap()
}

async fn pods_of(handler: &str, pod_cidr: &str) {
    if let Some(why) = node::unable() {
        eprintln!("skipped: {why}");
        return;
    }
    let mut node = Node::start(&["--pod-cidr", pod_cidr]).await;
    let mut c = node.clients().await;
    let logs = node.dir.path().join("logs");
    let config = pod("one", &logs);
    if !installed(handler) {
        eprintln!("skipped: needs {handler}");
        assert!(!handlers(&mut c).await.contains(&handler.to_string()));
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: handler.into() };
        let refused = c.runtime.run_pod_sandbox(request).await.unwrap_err();
        assert!(refused.message().contains(&format!("there is no program {handler}")), "{refused}");
        return;
    }
    node.import_busybox("busybox:test").await;
    assert!(handlers(&mut c).await.contains(&handler.to_string()));
    let sandbox = c.run_with(&config, handler).await;
    let mut main = shell("main", "echo out; echo err >&2; trap 'exit 3' TERM; while :; do sleep 0.01; done");
    security(&mut main).seccomp = Some(SecurityProfile::default());
    security(&mut main).readonly_rootfs = true;
    let main = c.launch(&sandbox, &config, main).await;

    // Inside it is as in the shim's own containers.
    for (script, expect) in [
        ("hostname; cat /etc/hostname", "one\none\n"),
        ("echo $FROM_IMAGE $HOSTNAME", "1 one\n"),
        ("ls /removed 2>/dev/null; ls /opaque; cat /home/through", "shown\nz"),
        ("echo x > /proc/sys/kernel/hostname", "sh: can't create /proc/sys/kernel/hostname: Read-only file system\n"),
        ("touch /new", "touch: /new: Read-only file system\n"),
        ("id -u; cat /proc/1/oom_score_adj", "0\n1000\n"),
        ("grep Cap.nd: /proc/self/status", "CapBnd:\t00000000a80425fb\n"),
        ("grep Seccomp: /proc/1/status", "Seccomp:\t2\n"),
        ("ip -o link | grep -c eth0", "1\n"),
        (
            "echo x > /dev/null; head -c4 /dev/zero | wc -c; ls /proc | grep -c '^[0-9]*$' | grep -q . && echo few",
            "4\nfew\n",
        ),
    ] {
        assert_eq!(c.exec(&main, script).await.0, expect, "{script}");
    }
    assert_eq!(c.exec(&main, "exit 7").await.1, 7);
    assert_eq!(c.exec(&main, "kill -9 $$").await.1, 137);
    let missing = ExecSyncRequest { container_id: main.clone(), cmd: vec!["nonsense".into()], timeout: 5 };
    let refused = c.runtime.exec_sync(missing).await.unwrap_err();
    assert!(refused.message().contains("nonsense"), "{refused}");
    let slow = ExecSyncRequest { container_id: main.clone(), cmd: vec!["sleep".into(), "60".into()], timeout: 1 };
    assert_eq!(c.runtime.exec_sync(slow).await.unwrap_err().code(), tonic::Code::DeadlineExceeded);
    let used = stats(&mut c, &main).await;
    assert!(used.memory.unwrap().usage_bytes.unwrap().value > 0);
    assert!(used.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);

    // One with a terminal, one that shares its pod's processes, one that cannot start.
    let mut terminal = shell("terminal", "tty; stty size >/dev/null && echo $TERM; exit 4");
    terminal.tty = true;
    let terminal = c.launch(&sandbox, &config, terminal).await;
    assert_eq!(c.ended(&terminal).await.exit_code, 4);
    let said = log_text(&logs.join("one/terminal.log"));
    assert!(said.starts_with("/dev/") && said.contains("xterm"), "{said}");
    let mut bad = shell("bad", "");
    bad.command = vec!["/no/such".into()];
    let bad = c.create(&sandbox, &config, bad).await;
    let refused = c.runtime.start_container(StartContainerRequest { container_id: bad.clone() }).await.unwrap_err();
    assert!(refused.message().contains("/no/such"), "{refused}");
    assert_eq!(c.status(&bad).await.reason, "StartError");

    // The engine dies and comes back; what ended meanwhile has its code.
    let going = "while ! [ -e /dev/shm/go ]; do sleep 0.01; done; exit 5";
    let ending = c.launch(&sandbox, &config, shell("ending", going)).await;
    node.kill();
    std::fs::write(node.dir.path().join("state/sandboxes").join(&sandbox).join("shm/go"), "").unwrap();
    let exit = node.dir.path().join("root/containers").join(&ending).join("exit.json");
    let deadline = std::time::Instant::now() + node::PATIENCE;
    while !exit.exists() {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    node.serve().await;
    let mut c = node.clients().await;
    assert_eq!(c.ended(&ending).await.exit_code, 5);
    assert_eq!(c.status(&main).await.state(), ContainerState::ContainerRunning);
    assert_eq!(c.exec(&main, "echo still").await.0, "still\n");

    c.runtime.stop_container(StopContainerRequest { container_id: main.clone(), timeout: 10 }).await.unwrap();
    assert_eq!(c.status(&main).await.exit_code, 3);
    assert_eq!(log_text(&logs.join("one/main.log")), "out\nerr\n");
    c.remove(&sandbox).await;

    // A killed shim takes its containers along.
    let mut shared = pod("two", &logs);
    let options = shared.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options.as_mut().unwrap();
    options.pid = NamespaceMode::Pod.into();
    let sandbox = c.run_with(&shared, handler).await;
    let mut member = shell("member", "echo $$; sleep 60");
    security(&mut member).namespace_options = Some(NamespaceOption::default());
    let member = c.launch(&sandbox, &shared, member).await;
    assert!(c.exec(&member, "ps").await.0.contains("pause"));
    let pid: i32 = shim(&mut c, &sandbox).await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    c.ended(&member).await;
    c.remove(&sandbox).await;
    node.nothing_left();
    let left: Vec<_> = std::fs::read_dir(node.dir.path().join("state").join(handler)).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

async fn shim(c: &mut Clients, sandbox: &str) -> i32 {
    let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.into(), verbose: true };
    let info = c.runtime.pod_sandbox_status(request).await.unwrap().into_inner().info;
    serde_json::from_str::<serde_json::Value>(&info["info"]).unwrap()["pid"].as_i64().unwrap() as i32
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runc() {
    pods_of("runc", "10.77.21.0/24").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crun() {
    pods_of("crun", "10.77.22.0/24").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_refused() {
    if let Some(why) = node::unable() {
        eprintln!("skipped: {why}");
        return;
    }
    let node = Node::start(&["--pod-cidr", "10.77.23.0/24"]).await;
    let mut c = node.clients().await;
    let request = RunPodSandboxRequest { config: Some(pod("one", node.dir.path())), runtime_handler: "kata".into() };
    let refused = c.runtime.run_pod_sandbox(request).await.unwrap_err();
    assert_eq!(refused.message(), "no runtime for \"kata\" is configured");
}
