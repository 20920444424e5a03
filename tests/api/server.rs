//! The servers scenarios run against: one in this process, over whatever store, or any that a kubeconfig names.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nauplius::cli::Ranges;
use nauplius::local::Local;
use nauplius::pki::{Pki, Purpose};
use nauplius::roles::{self, apiserver};
use tokio_util::sync::CancellationToken;

/// Names a kubeconfig of the server to test instead of one in this process.
pub const ELSEWHERE: &str = "NAUPLIUS_TEST_KUBECONFIG";
const ETCD_WITHIN: Duration = Duration::from_secs(20);

/// An API server with its controllers, over HTTPS on a free port of the loopback, until dropped.
pub struct InProcess {
    pub kubeconfig: PathBuf,
    cancel: CancellationToken,
    _dir: tempfile::TempDir,
}

impl InProcess {
    pub async fn start(store: apiserver::StoreOptions) -> Result<Self> {
        Self::serving(store, Default::default()).await
    }

    pub async fn serving(store: apiserver::StoreOptions, serving: roles::Serving) -> Result<Self> {
        Self::with("127.0.0.1:0".parse()?, store, serving, Default::default()).await
    }

    /// With others who are believed, or who decide.
    pub async fn with(
        listen: std::net::SocketAddr,
        store: apiserver::StoreOptions,
        serving: roles::Serving,
        access: roles::AccessOptions,
    ) -> Result<Self> {
        nauplius::tls::install_provider();
        let dir = tempfile::tempdir()?;
        let pki = Pki::open(&dir.path().join("pki"))?;
        let ranges = Ranges {
            service_cluster_ip_range: vec!["10.96.0.0/12".parse()?],
            cluster_cidr: vec!["10.244.0.0/16".parse()?],
        };
        let options = apiserver::Options {
            data_dir: dir.path().into(),
            listen,
            advertise_address: None,
            ranges: ranges.clone(),
            network_namespace: None,
            serving,
            store,
            audit: Default::default(),
            access,
            listening: Default::default(),
        };
        let cancel = CancellationToken::new();
        let running = apiserver::start(&options, &pki, cancel.clone()).await?;
        let kubeconfig = dir.path().join("admin.kubeconfig");
        let admin = pki.pair("admin", "kubernetes-admin", &["system:masters"], &Purpose::Client)?;
        pki.kubeconfig(&kubeconfig, &format!("https://{}", running.address), "kubernetes-admin", &admin)?;
        let manager =
            Local::new(running.server.clone(), "system:kube-controller-manager", &[], roles::CONTROLLER_MANAGER)
                .client();
        let controllers = roles::controller_manager::options_of(&ranges, &pki, dir.path())?;
        tokio::spawn(roles::run_controllers(manager, controllers, cancel.clone()));
        Ok(Self { kubeconfig, cancel, _dir: dir })
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// A real etcd on the loopback, in a directory of its own, killed when dropped.
pub struct Etcd {
    process: Child,
    pub endpoint: String,
    _dir: tempfile::TempDir,
}

pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Etcd {
    /// Nothing when no etcd is installed.
    pub fn start() -> Result<Option<Self>> {
        let Some(program) = program("etcd") else { return Ok(None) };
        let dir = tempfile::tempdir()?;
        let port = free_port()?;
        let (endpoint, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()?));
        // Ends with this process, whatever that dies of.
        let process = Command::new("setpriv")
            .arg("--pdeathsig=KILL")
            .arg(program)
            .arg("--data-dir")
            .arg(dir.path())
            .args([
                "--name",
                "test",
                "--log-level",
                "error",
                "--listen-client-urls",
                &endpoint,
                "--advertise-client-urls",
                &endpoint,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
                "--initial-cluster",
                &format!("test={peer}"),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let etcd = Self { process, endpoint, _dir: dir };
        let deadline = Instant::now() + ETCD_WITHIN;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > deadline {
                bail!("etcd does not listen after {} s", ETCD_WITHIN.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Some(etcd))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where a program is, administrators' directories included.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/local/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The kubeconfig of the server to test instead, when one is named.
pub fn elsewhere() -> Result<Option<PathBuf>> {
    match std::env::var_os(ELSEWHERE) {
        None => Ok(None),
        Some(file) => {
            Ok(Some(Path::new(&file).canonicalize().with_context(|| format!("{ELSEWHERE}={}", file.display()))?))
        }
    }
}
