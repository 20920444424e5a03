//! The command line: what is asked, as upstream's flags spell it where there are such.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use crate::ranges::Ranges;
use crate::{node, roles, storage, up};

#[derive(Parser)]
#[command(name = "nauplius", version, about = "Kubernetes, whole, in one binary", disable_help_subcommand = true)]
struct Cli {
    /// Log level: error, warn, info, debug, or a filter such as `info,apiserver=debug`.
    #[arg(long, global = true, env = "NAUPLIUS_LOG", default_value = "warn")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring up a whole cluster on this machine and keep it in the foreground.
    Up(Box<up::Options>),
    /// Remove everything a cluster left on this machine.
    Reset(up::ResetOptions),
    /// Run the API server alone.
    Apiserver(Box<roles::apiserver::Options>),
    /// Run the scheduler alone.
    Scheduler(Box<roles::SchedulerOptions>),
    /// Run the controller manager alone.
    ControllerManager(Box<roles::ControllerManagerOptions>),
    /// Run the kubelet alone.
    Kubelet(Box<node::KubeletOptions>),
    /// Run the service proxy alone.
    Proxy(Box<node::ProxyOptions>),
    /// Keep the ways to other nodes' pods alone: routes, or a tunnel.
    PodNetwork(node::PodNetworkRoleOptions),
    /// Run the cluster's DNS server alone.
    Dns(node::DnsOptions),
    /// Run the container runtime alone.
    Runtime(node::RuntimeOptions),
    /// Add nodes that are objects only to a cluster, and say that their pods run.
    SimulatedNodes(roles::simulated::Options),
    /// Run all of a node's components in one process (what `up` starts for each node).
    #[command(hide = true)]
    Node(Box<node::NodeOptions>),
    /// Work with the node's images.
    Image(ImageCommand),
    /// Look after a cluster's embedded store.
    Store(storage::Care),
}

#[derive(Args)]
struct ImageCommand {
    #[command(subcommand)]
    action: ImageAction,
}

#[derive(Subcommand)]
enum ImageAction {
    /// Import OCI or docker-save archives into the nodes of a running cluster.
    Import {
        /// The cluster's data directory.
        #[arg(long)]
        data_dir: Option<PathBuf>,
        /// Import through this engine's socket instead.
        #[arg(long)]
        socket: Option<PathBuf>,
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

/// The flags every role that talks to an API server has.
#[derive(Args, Clone)]
pub struct ApiAccess {
    /// Credentials and address of the API server.
    #[arg(long)]
    pub kubeconfig: PathBuf,
}

/// Called through a link named after an upstream component, the binary is that component.
fn arguments() -> Vec<std::ffi::OsString> {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    let called =
        arguments.first().map(PathBuf::from).and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()));
    let role = match called.as_deref() {
        Some("kube-apiserver") => "apiserver",
        Some("kube-scheduler") => "scheduler",
        Some("kube-controller-manager") => "controller-manager",
        Some("kube-proxy") => "proxy",
        Some("kubelet") => "kubelet",
        _ => return arguments,
    };
    arguments.insert(1, role.into());
    arguments
}

/// Whether a component, called by its name, is asked for its version, as what installs nodes asks upstream's. By its own name
/// the binary has its own.
fn asks_version(arguments: &[std::ffi::OsString]) -> bool {
    let called = arguments.first().map(PathBuf::from);
    let component =
        called.as_deref().and_then(|path| path.file_name()?.to_str()).is_some_and(|n| n.starts_with("kube"));
    component && arguments.iter().any(|word| word == "--version" || word == "--version=true")
}

pub fn main() -> ExitCode {
    let mut arguments = arguments();
    if asks_version(&arguments) {
        println!("Kubernetes {}", kubelet::config::VERSION);
        return ExitCode::SUCCESS;
    }
    let mut inert = Vec::new();
    // The role may stand behind `--log LEVEL`.
    let is = |role: &str| arguments.iter().skip(1).take(3).any(|word| word == role);
    if is("apiserver") {
        (arguments, inert) = roles::inert::without(arguments);
    } else if is("kubelet") {
        (arguments, inert) = node::kubelet_arguments(arguments);
    }
    // The container shim runs before anything makes a thread.
    if arguments.get(1).is_some_and(|first| first == "shim") {
        runtime::shim_main(arguments.into_iter().skip(2));
    }
    let command = Cli::command();
    let matches = command.clone().get_matches_from(arguments);
    roles::status::note_flags(&command, &matches);
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let filter = match log_filter(&cli.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!(
                "nauplius: --log {:?}: {error}; give a level (error, warn, info, debug, trace) or target=level,…",
                cli.log
            );
            return ExitCode::FAILURE;
        }
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true).init();
    inert.iter().for_each(|said| tracing::warn!("{said}"));
    crate::tls::install_provider();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nauplius: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log_filter(asked: &str) -> Result<tracing_subscriber::EnvFilter, tracing_subscriber::filter::ParseError> {
    // The HTTP client logs each failed connection itself; who called it says so once more, and better.
    let quiet = "kube_client::client::builder=off".parse()?;
    Ok(tracing_subscriber::EnvFilter::try_new(asked)?.add_directive(quiet))
}

fn run(command: Command) -> anyhow::Result<()> {
    // A node's process enters its network namespace while it still has one thread.
    if let Command::Node(options) = &command
        && let Some(namespace) = &options.network_namespace
    {
        crate::fabric::enter(namespace)?;
    }
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get().min(8));
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(64)
        .enable_all()
        .build()?;
    let result = tokio.block_on(async move {
        let cancel = stop_signals()?;
        // Held to the end of this process.
        let _claim = crate::claim::Claim::join()?;
        tokio::spawn(crate::supervise::end_with_parent(cancel.clone()));
        tokio::spawn(crate::resident::give_back_when_settled());
        match command {
            Command::Up(options) => up::run(*options, cancel).await,
            Command::Reset(options) => up::reset(options).await,
            Command::Apiserver(options) => roles::apiserver::run(*options, cancel).await,
            Command::Scheduler(options) => roles::scheduler(*options, cancel).await,
            Command::ControllerManager(options) => roles::controller_manager(*options, cancel).await,
            Command::Kubelet(options) => node::kubelet(*options, cancel).await,
            Command::Proxy(options) => node::proxy(*options, cancel).await,
            Command::PodNetwork(options) => node::pod_network(options, cancel).await,
            Command::Dns(options) => node::dns(options, cancel).await,
            Command::Runtime(options) => node::runtime(options, cancel).await,
            Command::SimulatedNodes(options) => roles::simulated::run(options, cancel).await,
            Command::Node(options) => node::all(*options, cancel).await,
            Command::Image(ImageCommand { action: ImageAction::Import { data_dir, socket, files } }) => {
                node::import_images(data_dir, socket, files).await
            }
            Command::Store(care) => storage::run(care, cancel).await,
        }
    });
    // Tasks that block in the kernel (a thread in another namespace, say) must not hold up the end.
    tokio.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}

/// Cancelled by SIGINT and SIGTERM; a second one ends the process at once.
fn stop_signals() -> anyhow::Result<tokio_util::sync::CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let cancel = tokio_util::sync::CancellationToken::new();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let token = cancel.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if token.is_cancelled() {
                std::process::exit(130);
            }
            token.cancel();
        }
    });
    Ok(cancel)
}

/// `IP:PORT` of a listener.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an address and port such as 127.0.0.1:6443"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_have_their_own_version() {
        for (words, expect) in [
            ("/usr/bin/kubelet kubelet --version", true),
            ("kube-apiserver apiserver --version=true", true),
            ("kubelet kubelet --v=2", false),
            ("nauplius --version", false),
            ("nauplius-main --version", false),
        ] {
            let words: Vec<_> = words.split(' ').map(std::ffi::OsString::from).collect();
            assert_eq!(asks_version(&words), expect, "{words:?}");
        }
    }
}
