//! The container engine on its own, for development and tests.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Result, bail};

const USAGE: &str = "usage: nauplius-runtime serve DATA_DIR [--socket PATH] [--pod-cidr CIDR] [--cgroup-parent PATH] [--cni-conf-dir DIR] [--registry-dir DIR]
       nauplius-runtime image import SOCKET FILE...
       nauplius-runtime reset DATA_DIR [--socket PATH] [--cgroup-parent PATH]";

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.peek().is_some_and(|a| a == "shim") {
        runtime::shim_main(args.skip(1));
    }
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .init();
    let args: Vec<String> = args.map(|a| a.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match words.as_slice() {
        ["serve", data, flags @ ..] => {
            let config = config(data, flags)?;
            tokio.block_on(async {
                let cancel = tokio_util::sync::CancellationToken::new();
                let stop = cancel.clone();
                tokio::spawn(async move {
                    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
                    tokio::select! { _ = term.recv() => {}, r = tokio::signal::ctrl_c() => r? }
                    stop.cancel();
                    Ok::<_, std::io::Error>(())
                });
                let (ready, _) = tokio::sync::oneshot::channel();
                runtime::serve(config, cancel, ready).await
            })
        }
        ["image", "import", socket, files @ ..] if !files.is_empty() => tokio.block_on(async {
            for file in files {
                for image in runtime::image_import(socket.as_ref(), file.as_ref(), Vec::new()).await? {
                    println!("{} {}", image.id, image.names.join(" "));
                }
            }
            Ok(())
        }),
        ["reset", data, flags @ ..] => runtime::reset(&config(data, flags)?),
        _ => bail!("{USAGE}"),
    }
}

fn config(data: &str, flags: &[&str]) -> Result<runtime::Config> {
    let data = PathBuf::from(data);
    let mut config = runtime::Config {
        root: data.join("root"),
        state: data.join("state"),
        socket: data.join("cri.sock"),
        cgroup_parent: String::new(),
        network: runtime::NetworkConfig::default(),
        streaming_address: SocketAddr::from(([127, 0, 0, 1], 0)),
        registry_dirs: runtime::registry_dirs(),
        shim_exe: std::env::current_exe()?,
    };
    for pair in flags.chunks(2) {
        match pair {
            ["--socket", path] => config.socket = path.into(),
            ["--pod-cidr", cidrs] => {
                config.network.pod_cidrs = cidrs.split(',').map(str::parse).collect::<Result<_, _>>()?
            }
            ["--cgroup-parent", path] => config.cgroup_parent = path.to_string(),
            ["--registry-dir", dir] => config.registry_dirs = vec![dir.into()],
            ["--cni-conf-dir", dir] => config.network.cni_conf_dir = Some(dir.into()),
            _ => bail!("{USAGE}"),
        }
    }
    Ok(config)
}
