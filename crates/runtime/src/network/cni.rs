//! CNI: runs the plugins of the first network configuration, as the CNI specification says.
//!
//! Guarantees: what was used to add a pod is remembered and used to delete it, whatever the configuration says by
//! then; deleting runs the plugins in reverse and needs no living pod.

use std::collections::HashMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use cri::v1::{PodSandboxConfig, Protocol};

/// Largest configuration file in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// The capability of plugins that want to see the pod's annotations, as containerd calls it.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// Bits in a burst beyond a pod's rate, as containerd has it: as many as the plugin takes.
const BURST_BITS: u32 = u32::MAX;

/// A list of plugins.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Conflist {
    name: String,
    version: String,
    plugins: Vec<Map<String, Value>>,
}

/// What a call is about.
pub struct Call<'a> {
    sandbox: &'a str,
    config: &'a PodSandboxConfig,
    bin_dirs: &'a [PathBuf],
    shim: Option<i32>,
}

/// What is remembered of an added pod.
#[derive(Serialize, Deserialize)]
struct Added {
    conflist: Conflist,
    result: Value,
}

impl<'a> Call<'a> {
    /// For a sandbox whose namespaces are held by process `shim`, if it lives.
    pub fn new(sandbox: &'a str, config: &'a PodSandboxConfig, bin_dirs: &'a [PathBuf], shim: Option<i32>) -> Call<'a> {
        Call { sandbox, config, bin_dirs, shim }
    }

    fn arguments(&self) -> String {
        let meta = self.config.metadata.clone().unwrap_or_default();
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            meta.namespace, meta.name, self.sandbox, meta.uid
        )
    }

    /// What a plugin is told about this pod, as far as it says it understands.
    fn runtime_config(&self, plugin: &Map<String, Value>) -> Map<String, Value> {
        let can = |name: &str| plugin.get("capabilities").and_then(|c| c.get(name)) == Some(&Value::Bool(true));
        let mut config = Map::new();
        if can("portMappings") {
            let ports: Vec<Value> = self
                .config
                .port_mappings
                .iter()
                .filter(|m| m.host_port > 0)
                .map(|m| {
                    let protocol = match m.protocol() {
                        Protocol::Tcp => "tcp",
                        Protocol::Udp => "udp",
                        Protocol::Sctp => "sctp",
                    };
                    json!({"hostPort": m.host_port, "containerPort": m.container_port, "protocol": protocol, "hostIP": m.host_ip})
                })
                .collect();
            config.insert("portMappings".into(), Value::Array(ports));
        }
        if can("bandwidth")
            && let Some(limits) = bandwidth(&self.config.annotations)
        {
            config.insert("bandwidth".into(), limits);
        }
        if can("cgroupPath")
            && let Some(linux) = &self.config.linux
        {
            config.insert("cgroupPath".into(), json!(linux.cgroup_parent));
        }
        if can(ANNOTATIONS) {
            config.insert(ANNOTATIONS.into(), json!(self.config.annotations));
        }
        if can("dns")
            && let Some(dns) = &self.config.dns_config
        {
            config.insert(
                "dns".into(),
                json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options}),
            );
        }
        config
    }

    fn run(
        &self,
        conflist: &Conflist,
        plugin: &Map<String, Value>,
        command: &str,
        previous: Option<&Value>,
    ) -> Result<Value> {
        let kind = kind_of(plugin)?;
        let program = find(kind, self.bin_dirs)
            .with_context(|| format!("plugin type=\"{kind}\" failed ({})", command.to_lowercase()))?;
        let mut input = plugin.clone();
        let runtime = self.runtime_config(plugin);
        input.remove("capabilities");
        input.insert("name".into(), json!(conflist.name));
        input.insert("cniVersion".into(), json!(conflist.version));
        if !runtime.is_empty() {
            input.insert("runtimeConfig".into(), Value::Object(runtime));
        }
        if let Some(previous) = previous {
            input.insert("prevResult".into(), previous.clone());
        }
        let path: Vec<String> = self.bin_dirs.iter().map(|d| d.display().to_string()).collect();
        let namespace = self.shim.map(|pid| format!("/proc/{pid}/ns/net")).unwrap_or_default();
        let mut child = Command::new(&program)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", self.sandbox)
            .env("CNI_NETNS", namespace)
            .env("CNI_IFNAME", super::POD_INTERFACE)
            .env("CNI_ARGS", self.arguments())
            .env("CNI_PATH", path.join(":"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("running {}", program.display()))?;
        // A plugin that does not read its input says so by its result.
        let _ = child
            .stdin
            .take()
            .context("a plugin without input")?
            .write_all(Value::Object(input).to_string().as_bytes());
        let output = child.wait_with_output()?;
        let reply: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        if !output.status.success() {
            let said = reply.get("msg").and_then(Value::as_str).map(str::to_string);
            let said = said.unwrap_or_else(|| String::from_utf8_lossy(&output.stderr).trim().to_string());
            bail!("plugin type=\"{kind}\" failed ({}): {said}", command.to_lowercase());
        }
        Ok(reply)
    }
}

fn kind_of(plugin: &Map<String, Value>) -> Result<&str> {
    let kind = plugin.get("type").and_then(Value::as_str).context("a plugin without type")?;
    if kind.contains('/') {
        bail!("plugin type \"{kind}\" is not a name");
    }
    Ok(kind)
}

/// A plugin's program.
fn find(kind: &str, dirs: &[PathBuf]) -> Result<PathBuf> {
    let found = dirs.iter().map(|dir| dir.join(kind)).find(|path| path.exists());
    let all = || dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(" ");
    found.with_context(|| format!("failed to find plugin \"{kind}\" in path [{}]", all()))
}

/// How much a pod's link may carry, from its annotations.
fn bandwidth(annotations: &HashMap<String, String>) -> Option<Value> {
    let rate = |way: &str| bits(annotations.get(&format!("kubernetes.io/{way}-bandwidth"))?);
    let mut out = Map::new();
    for way in ["ingress", "egress"] {
        if let Some(rate) = rate(way) {
            out.insert(format!("{way}Rate"), json!(rate));
            out.insert(format!("{way}Burst"), json!(BURST_BITS));
        }
    }
    (!out.is_empty()).then_some(Value::Object(out))
}

/// A quantity of bits a second: a whole or decimal number and its unit. `None` for what is none, or beyond 1k to 1P.
fn bits(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: f64 = match unit {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        _ => return None,
    };
    let rate = number.parse::<f64>().ok()? * factor;
    (1e3..=1e15).contains(&rate).then_some(rate as u64)
}

impl Conflist {
    /// Whether every plugin's program is there.
    pub fn is_runnable(&self, bin_dirs: &[PathBuf]) -> Result<()> {
        self.plugins.iter().try_for_each(|plugin| find(kind_of(plugin)?, bin_dirs).map(drop))
    }

    /// The first configuration of a directory, by name; `None` if there is none.
    pub fn load(dir: &Path) -> Result<Option<Conflist>> {
        let Ok(entries) = std::fs::read_dir(dir) else { return Ok(None) };
        let mut files: Vec<PathBuf> = entries
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json"))
            .collect();
        files.sort();
        let Some(file) = files.first() else { return Ok(None) };
        if std::fs::metadata(file)?.len() > MAX_CONFIG {
            bail!("{} is larger than {MAX_CONFIG} bytes", file.display());
        }
        Conflist::parse(&std::fs::read(file)?).with_context(|| file.display().to_string()).map(Some)
    }

    fn parse(text: &[u8]) -> Result<Conflist> {
        let value: Map<String, Value> = serde_json::from_slice(text)?;
        let field = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_string);
        let plugins = match value.get("plugins") {
            Some(Value::Array(plugins)) => plugins
                .iter()
                .map(|p| p.as_object().cloned().context("a plugin that is no object"))
                .collect::<Result<_>>()?,
            Some(_) => bail!("plugins is not a list"),
            None if value.contains_key("type") => vec![value.clone()],
            None => bail!("neither plugins nor type"),
        };
        Ok(Conflist {
            name: field("name").context("no name")?,
            version: field("cniVersion").unwrap_or_else(|| "0.3.1".into()),
            plugins,
        })
    }

    /// Connects a pod and returns its addresses, remembering how.
    pub fn add(&self, call: &Call<'_>, dir: &Path) -> Result<Vec<IpAddr>> {
        let cache = dir.join(cache_name(call.sandbox));
        // Before the first plugin runs: a crash in between must not lose what has to be undone.
        remember(&cache, &Added { conflist: self.clone(), result: Value::Null })?;
        let mut result: Option<Value> = None;
        for plugin in &self.plugins {
            result = Some(call.run(self, plugin, "ADD", result.as_ref())?);
        }
        let result = result.context("the configuration has no plugins")?;
        remember(&cache, &Added { conflist: self.clone(), result: result.clone() })?;
        let addresses: Vec<IpAddr> = result
            .get("ips")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|ip| ip.get("address")?.as_str()?.split('/').next()?.parse().ok())
            .collect();
        if addresses.is_empty() {
            bail!("the plugins gave no address");
        }
        Ok(addresses)
    }
}

fn remember(path: &Path, added: &Added) -> Result<()> {
    let partial = path.with_extension("part");
    std::fs::write(&partial, serde_json::to_vec(added)?)?;
    Ok(std::fs::rename(&partial, path)?)
}

/// The file that remembers how a pod was connected.
pub fn cache_name(sandbox: &str) -> String {
    format!("cni-{sandbox}.json")
}

/// Disconnects a pod by what is remembered of it.
pub fn delete_cached(call: &Call<'_>, dir: &Path) -> Result<()> {
    let cache = dir.join(cache_name(call.sandbox));
    let added: Added =
        serde_json::from_slice(&std::fs::read(&cache)?).with_context(|| format!("reading {}", cache.display()))?;
    let previous = (!added.result.is_null()).then_some(&added.result);
    // Of a pod that never got as far as a result, a plugin that is not there has done nothing that could be undone.
    let ran = |plugin: &&Map<String, Value>| {
        previous.is_some() || kind_of(plugin).and_then(|kind| find(kind, call.bin_dirs)).is_ok()
    };
    for plugin in added.conflist.plugins.iter().rev().filter(ran) {
        call.run(&added.conflist, plugin, "DEL", previous)?;
    }
    Ok(std::fs::remove_file(&cache)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_read() {
        let list =
            Conflist::parse(br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#);
        let list = list.unwrap();
        assert_eq!(list.plugins.len(), 2);
        let single = Conflist::parse(br#"{"name":"n","type":"bridge"}"#).unwrap();
        assert_eq!((single.plugins.len(), single.version.as_str()), (1, "0.3.1"));
        let lost = list.is_runnable(&["/nowhere".into()]).unwrap_err();
        assert_eq!(lost.to_string(), "failed to find plugin \"bridge\" in path [/nowhere]");
        for bad in ["", "{}", r#"{"name":"n"}"#, r#"{"type":"x"}"#, r#"{"name":"n","plugins":[1]}"#] {
            assert!(Conflist::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn annotations_limit_the_link() {
        for (ingress, egress, expect) in [
            ("10M", "", r#"{"ingressBurst":4294967295,"ingressRate":10000000}"#),
            (
                "1Ki",
                "1.5G",
                r#"{"egressBurst":4294967295,"egressRate":1500000000,"ingressBurst":4294967295,"ingressRate":1024}"#,
            ),
            ("999", "2P", "null"),
            ("fast", "1E", "null"),
        ] {
            let annotations = [("ingress", ingress), ("egress", egress)];
            let annotations =
                annotations.map(|(way, text)| (format!("kubernetes.io/{way}-bandwidth"), text.to_string())).into();
            assert_eq!(json!(bandwidth(&annotations)).to_string(), expect, "{ingress} {egress}");
        }
    }
}
