//! Exec, attach and port forwarding with an unmodified kubectl, over WebSocket and SPDY. Between kubectl and the engine
//! stands the least that can be called an API server: it answers for one pod and passes upgraded bytes on.
//!
//! Needs root and kubectl; skips with a line otherwise.

mod node;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cri::v1::runtime_service_client::RuntimeServiceClient;
use cri::v1::*;
use nix::pty::{Winsize, openpty};
use node::{Node, inside, pod, shell};
use tonic::transport::Channel;

/// Where pods are in the requests: `one`, and `tty`, whose container has a terminal.
const PODS: &str = "/api/v1/namespaces/default/pods/";

#[derive(Clone)]
struct Api {
    runtime: RuntimeServiceClient<Channel>,
    handle: tokio::runtime::Handle,
    container: String,
    terminal: String,
    sandbox: String,
}

fn serve(api: Api, listener: TcpListener) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        let api = api.clone();
        // Threads that a thread starts stay in its network namespace.
        std::thread::spawn(move || api.answer(stream));
    }
}

impl Api {
    fn answer(mut self, mut client: TcpStream) -> Option<()> {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if client.read(&mut byte).ok()? == 0 {
                    return None;
                }
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            let (line, rest) = head.split_once("\r\n").unwrap();
            let target = line.split(' ').nth(1).unwrap();
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let flag = |name: &str| query.split('&').any(|p| p == format!("{name}=true"));
            let discovery = match path {
                "/api" => serde_json::json!({"kind": "APIVersions", "versions": ["v1"]}),
                "/apis" => serde_json::json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}),
                "/api/v1" => serde_json::json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [
                    {"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get"], "shortNames": ["po"]}]}),
                _ => serde_json::Value::Null,
            };
            if !discovery.is_null() {
                respond(&mut client, "200 OK", &discovery.to_string());
                continue;
            }
            let (pod, verb) = path.strip_prefix(PODS).map_or(("", "none"), |p| p.split_once('/').unwrap_or((p, "")));
            let container = if pod == "tty" { self.terminal.clone() } else { self.container.clone() };
            let url = match Some(verb) {
                Some("exec") => {
                    let cmd = query.split('&').filter_map(|p| p.strip_prefix("command=")).map(decode).collect();
                    let request = ExecRequest {
                        container_id: container,
                        cmd,
                        tty: flag("tty"),
                        stdin: flag("stdin"),
                        stdout: flag("stdout"),
                        stderr: flag("stderr"),
                    };
                    self.handle.block_on(self.runtime.exec(request)).unwrap().into_inner().url
                }
                Some("attach") => {
                    let request = AttachRequest {
                        container_id: container,
                        tty: flag("tty"),
                        stdin: flag("stdin"),
                        stdout: flag("stdout"),
                        stderr: flag("stderr"),
                    };
                    self.handle.block_on(self.runtime.attach(request)).unwrap().into_inner().url
                }
                Some("portforward") => {
                    let request = PortForwardRequest { pod_sandbox_id: self.sandbox.clone(), port: vec![] };
                    self.handle.block_on(self.runtime.port_forward(request)).unwrap().into_inner().url
                }
                Some("") => {
                    let pod = serde_json::json!({
                        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": "default"},
                        "spec": {"containers": [{"name": "main", "tty": pod == "tty", "stdin": true}]}, "status": {"phase": "Running"},
                    });
                    respond(&mut client, "200 OK", &pod.to_string());
                    continue;
                }
                _ => {
                    respond(&mut client, "404 Not Found", "{}");
                    continue;
                }
            };
            let url = url.strip_prefix("http://").unwrap().to_string();
            let (address, path) = url.split_once('/').unwrap();
            let mut upstream = TcpStream::connect(address.parse::<SocketAddr>().unwrap()).unwrap();
            let method = line.split(' ').next().unwrap();
            upstream.write_all(format!("{method} /{path} HTTP/1.1\r\n{rest}").as_bytes()).unwrap();
            let (mut a, mut b) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut a, &mut b);
                let _ = b.shutdown(std::net::Shutdown::Write);
            });
            let _ = std::io::copy(&mut upstream, &mut client);
            let _ = client.shutdown(std::net::Shutdown::Both);
            return None;
        }
    }
}

fn respond(client: &mut TcpStream, status: &str, body: &str) {
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    client.write_all((head + body).as_bytes()).unwrap();
}

fn decode(text: &str) -> String {
    let text = text.replace('+', " ");
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let hex: String = bytes.by_ref().take(2).map(char::from).collect();
            out.push(u8::from_str_radix(&hex, 16).unwrap());
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).unwrap()
}

struct Kubectl<'a> {
    node: &'a Node,
    server: String,
    websockets: bool,
}

impl Kubectl<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new("nsenter");
        c.arg(format!("--net=/run/netns/{}", self.node.namespace())).arg("kubectl").arg(&self.server).args(args);
        let on = self.websockets.to_string();
        c.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", &on).env("KUBECTL_PORT_FORWARD_WEBSOCKETS", &on);
        c.env("KUBECONFIG", "/dev/null").env("HOME", self.node.dir.path());
        c
    }

    /// Runs with input; returns output, errors and exit code.
    fn run(&self, args: &[&str], input: &[u8]) -> (String, String, i32) {
        let mut child =
            self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let out = child.wait_with_output().unwrap();
        writer.join().unwrap();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        (text(&out.stdout), text(&out.stderr), out.status.code().unwrap_or(-1))
    }

    /// Runs on a terminal of this many rows and columns; returns all that was shown.
    fn on_terminal(&self, args: &[&str], (ws_row, ws_col): (u16, u16)) -> String {
        let size = Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = self.command(args);
        let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        // The command's copies of the slave go with it: with ours, the master would never end.
        drop((command, pty.slave));
        let mut shown = Vec::new();
        // A terminal that nobody holds open any more ends with an error.
        let _ = std::fs::File::from(pty.master).read_to_end(&mut shown);
        child.wait().unwrap();
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// Attaches to a pod, says a line, and returns the first line that comes back and is not its echo.
    fn attach(&self, pod: &str, said: &str) -> String {
        let mut command = self.command(&["attach", "-i", pod]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        writeln!(child.stdin.as_mut().unwrap(), "{said}").unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.map_while(Result::ok).find(|line| line.trim_end() != said).unwrap_or_default();
        child.kill().unwrap();
        child.wait().unwrap();
        line.trim_end().to_string()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn kubectl_streams() {
    if let Some(why) = node::unable() {
        eprintln!("skipped: {why}");
        return;
    }
    if Command::new("kubectl").arg("version").arg("--client").output().is_err() {
        eprintln!("skipped: needs kubectl");
        return;
    }
    let node = Node::start(&["--pod-cidr", "10.77.4.0/24"]).await;
    node.import_busybox("busybox:test").await;
    let mut c = node.clients().await;
    let config = pod("one", &node.dir.path().join("logs"));
    let sandbox = c.run(&config).await;
    let mut main =
        shell("main", "httpd -p 127.0.0.1:8080 -h /etc; while read line; do echo got $line; done; sleep 1000");
    main.stdin = true;
    let container = c.launch(&sandbox, &config, main).await;
    let mut terminal = shell("terminal", "while read line; do echo got $line; stty size; done");
    (terminal.stdin, terminal.tty) = (true, true);
    let terminal = c.launch(&sandbox, &config, terminal).await;
    let listener = inside(&node, || TcpListener::bind("127.0.0.1:0").unwrap()).join().unwrap();
    let address = listener.local_addr().unwrap();
    let api = Api {
        runtime: c.runtime.clone(),
        handle: tokio::runtime::Handle::current(),
        container: container.clone(),
        terminal,
        sandbox: sandbox.clone(),
    };
    inside(&node, move || serve(api, listener));

    for websockets in [true, false] {
        let kubectl = Kubectl { node: &node, server: format!("--server=http://{address}"), websockets };
        let name = if websockets { "websocket" } else { "spdy" };
        let (out, err, code) = kubectl.run(&["exec", "one", "--", "sh", "-c", "echo out; echo err >&2; exit 5"], b"");
        assert_eq!((out.as_str(), code), ("out\n", 5), "{name}: {err}");
        assert!(err.contains("err\n") && err.contains("exit code 5"), "{name}: {err}");
        // Half-closing standard input, and more data than any window or buffer.
        let big: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let (out, err, code) = kubectl.run(&["exec", "-i", "one", "--", "sh", "-c", "wc -c"], &big);
        assert_eq!((out.trim(), code), ("3000000", 0), "{name}: {err}");
        let (out, err, code) = kubectl.run(&["exec", "one", "--", "sh", "-c", "yes | head -c 3000000"], b"");
        assert_eq!((out.len(), code), (3_000_000, 0), "{name}: {err}");
        let (_, err, code) = kubectl.run(&["exec", "one", "--", "nonsense"], b"");
        assert!(code != 0 && err.contains("executable file not found in $PATH"), "{name}: {err}");
        // A terminal. Its size is told once the command runs already: the command looks until there is one. Busybox's
        // stty is content without a size too, and says nothing.
        let look = "tty; echo $TERM; n=0; \
                    until stty size 2>/dev/null | grep . || [ $n = 500 ]; do n=$((n+1)); sleep 0.02; done";
        let out = kubectl.on_terminal(&["exec", "-it", "one", "--", "sh", "-c", look], (33, 99));
        assert!(out.contains("/dev/pts/0"), "{name}: {out}");
        assert!(out.contains("xterm") && out.contains("33 99"), "{name}: {out}");

        // Attach to a container's terminal, and what goes in comes out.
        assert_eq!(kubectl.attach("tty", "hello"), "got hello");
        assert_eq!(kubectl.attach("one", name), format!("got {name}"));

        // Who has said all has detached; the container goes on listening.
        for _ in 0..2 {
            let (_, err, code) = kubectl.run(&["attach", "-i", "one"], b"all\n");
            assert_eq!(code, 0, "{name}: {err}");
        }

        // Port forwarding, several connections.
        let mut child = kubectl
            .command(&["port-forward", "pod/one", ":8080", ":9"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let port: u16 = line.split(" -> ").next().unwrap().rsplit(':').next().unwrap().parse().unwrap();
        for _ in 0..3 {
            let got = inside(&node, move || {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                stream.write_all(b"GET /hostname HTTP/1.0\r\n\r\n").unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                text
            });
            let got = got.join().unwrap();
            assert!(got.ends_with("one\n"), "{name}: {got}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    // A token serves once, and nonsense is refused.
    let request =
        ExecRequest { container_id: container.clone(), cmd: vec!["true".into()], stdout: true, ..Default::default() };
    let url = c.runtime.exec(request).await.unwrap().into_inner().url;
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let (address, path) = (address.parse::<SocketAddr>().unwrap(), path.to_string());
    let answers = inside(&node, move || {
        [
            "",
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Protocol: nonsense\r\n",
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: a\r\n",
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: a\r\n",
        ]
        .map(|headers| {
            let mut stream = TcpStream::connect(address).unwrap();
            write!(stream, "GET /{path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").unwrap();
            let mut answer = [0u8; 12];
            stream.read_exact(&mut answer).unwrap();
            String::from_utf8_lossy(&answer[9..]).into_owned()
        })
    });
    assert_eq!(answers.join().unwrap(), ["400", "403", "101", "404"]);

    let began = Instant::now();
    c.remove(&sandbox).await;
    assert!(began.elapsed() < Duration::from_secs(5));
}
