//! Credential providers: programs beside the agent that know how to get into a registry. Each is asked with a document on
//! its standard input and answers with one on its output, which is remembered as long as it says.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::access::{Credential, Origin};
use super::credentials;
use crate::agent::Context;
use crate::config::file::duration;
use crate::cri::v1::AuthConfig;
use crate::metrics::families;
use crate::spec;

/// A program may take this long; as upstream.
const RUN: Duration = Duration::from_secs(60);
/// Bytes of an answer.
const MAX_ANSWER: usize = 1 << 20;
/// Answers remembered; beyond that all are forgotten, which costs a run each.
const REMEMBERED: usize = 256;
const API: &str = "credentialprovider.kubelet.k8s.io/v1";

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Variable {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenAttributes {
    service_account_token_audience: String,
    cache_type: String,
    require_service_account: bool,
    #[serde(default)]
    required_service_account_annotation_keys: Vec<String>,
    #[serde(default)]
    optional_service_account_annotation_keys: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Provider {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    token_attributes: Option<TokenAttributes>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    providers: Vec<Provider>,
}

#[derive(Clone)]
struct Answer {
    auth: BTreeMap<String, (String, String)>,
    until: Instant,
}

/// The node's providers and what they last said.
#[derive(Default)]
pub struct Providers {
    dir: PathBuf,
    list: Vec<Provider>,
    answers: Mutex<HashMap<(String, String), Answer>>,
}

/// The registry of an image, as answers are remembered by it.
fn registry(image: &str) -> &str {
    image.split_once('/').map_or(image, |(host, _)| host)
}

/// A provider's answer: credentials, what they may be remembered for, and how long.
fn parse(output: &[u8]) -> anyhow::Result<(BTreeMap<String, (String, String)>, String, Option<Duration>)> {
    let value: Value = serde_json::from_slice(output).context("the answer is not JSON")?;
    ensure!(
        value["kind"] == "CredentialProviderResponse" && value["apiVersion"] == API,
        "the answer is not a CredentialProviderResponse of {API}"
    );
    let kind = value["cacheKeyType"].as_str().unwrap_or_default();
    ensure!(matches!(kind, "Image" | "Registry" | "Global"), "the answer has no valid cacheKeyType: {kind:?}");
    let life = value["cacheDuration"].as_str().map(duration).transpose().map_err(anyhow::Error::msg)?;
    let mut auth = BTreeMap::new();
    for (pattern, entry) in value["auth"].as_object().into_iter().flatten() {
        let text = |key: &str| entry[key].as_str().unwrap_or_default().to_string();
        auth.insert(pattern.clone(), (text("username"), text("password")));
    }
    Ok((auth, kind.into(), life))
}

impl Providers {
    /// Reads the configuration; a mistake in it is a reason not to start.
    pub fn load(file: &Path, dir: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let (value, _) = meta::yaml::read(&bytes).map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?;
        let read: File = serde_json::from_value(value).with_context(|| format!("{}", file.display()))?;
        ensure!(
            read.kind == "CredentialProviderConfig" && read.api_version == "kubelet.config.k8s.io/v1",
            "{}: apiVersion and kind must be kubelet.config.k8s.io/v1 and CredentialProviderConfig",
            file.display()
        );
        for provider in &read.providers {
            let name = &provider.name;
            ensure!(!name.is_empty() && !name.contains('/'), "provider name {name:?} cannot be a file's");
            ensure!(
                provider.api_version == API,
                "provider {name}: apiVersion {:?}: only {API} is supported",
                provider.api_version
            );
            ensure!(!provider.match_images.is_empty(), "provider {name}: at least 1 item in matchImages is required");
            duration(&provider.default_cache_duration).map_err(|e| anyhow::anyhow!("provider {name}: {e}"))?;
            ensure!(dir.join(name).is_file(), "plugin binary executable {} did not exist", dir.join(name).display());
        }
        Ok(Self { dir: dir.into(), list: read.providers, answers: Mutex::default() })
    }

    /// What the providers that speak of an image have for it.
    pub async fn credentials(&self, context: &Context, pod: &Pod, image: &str) -> Vec<Credential> {
        let mut out = Vec::new();
        for provider in self.list.iter().filter(|p| p.match_images.iter().any(|m| credentials::covers(m, image))) {
            let asked = async {
                let account = match &provider.token_attributes {
                    Some(attributes) => match account(context, pod, attributes).await? {
                        None => return Ok((BTreeMap::new(), Origin::Node)),
                        account => account,
                    },
                    None => None,
                };
                let origin = account.as_ref().map_or(Origin::Node, |a| a.origin.clone());
                anyhow::Ok((self.ask(provider, image, account).await?, origin))
            };
            match asked.await {
                Ok((auth, origin)) => {
                    let fitting = auth.into_iter().filter(|(key, _)| credentials::covers(key, image));
                    out.extend(fitting.map(|(server_address, (username, password))| Credential {
                        origin: origin.clone(),
                        auth: AuthConfig { username, password, server_address, ..Default::default() },
                    }));
                }
                Err(error) => {
                    context.metrics.count(&families::CREDENTIALS_ERRORS, &[&provider.name]);
                    tracing::error!(provider = %provider.name, image, "no credentials: {error:#}");
                }
            }
        }
        out
    }

    async fn ask(
        &self,
        provider: &Provider,
        image: &str,
        account: Option<Account>,
    ) -> anyhow::Result<BTreeMap<String, (String, String)>> {
        let owner = account.as_ref().map_or("", |a| a.key.as_str());
        let key = |what: &str| (provider.name.clone(), format!("{owner}\n{what}"));
        let scopes = [format!("image {image}"), format!("registry {}", registry(image)), "global".to_string()];
        {
            let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            let known = scopes.iter().find_map(|s| answers.get(&key(s)).filter(|a| a.until > Instant::now()));
            if let Some(known) = known {
                return Ok(known.auth.clone());
            }
        }
        let mut request = json!({"kind": "CredentialProviderRequest", "apiVersion": API, "image": image});
        if let Some(account) = &account {
            request["serviceAccountToken"] = account.token.as_str().into();
            request["serviceAccountAnnotations"] = json!(account.annotations);
        }
        let output = run(&self.dir.join(&provider.name), provider, request.to_string().into_bytes()).await?;
        let (auth, kind, life) = parse(&output)?;
        let default = duration(&provider.default_cache_duration).unwrap_or_default();
        let life = life.unwrap_or(default);
        if !life.is_zero() {
            let scope = match kind.as_str() {
                "Image" => &scopes[0],
                "Registry" => &scopes[1],
                _ => &scopes[2],
            };
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            if answers.len() >= REMEMBERED {
                answers.clear();
            }
            answers.insert(key(scope), Answer { auth: auth.clone(), until: Instant::now() + life });
        }
        Ok(auth)
    }
}

/// The pod's account as a provider is told of it.
struct Account {
    token: String,
    annotations: BTreeMap<String, String>,
    /// What answers for this account are remembered under.
    key: String,
    /// What is pulled with them is for its pods.
    origin: Origin,
}

/// The account's token and annotations; nothing when the provider needs what the account does not have.
async fn account(context: &Context, pod: &Pod, wanted: &TokenAttributes) -> anyhow::Result<Option<Account>> {
    let name = spec::spec(pod).service_account_name.as_deref().unwrap_or_default();
    if name.is_empty() {
        return Ok(None);
    }
    let account = context.client.api::<ServiceAccount>().namespaced(spec::namespace(pod)).get(name).await?;
    let has = account.metadata.annotations.clone().unwrap_or_default();
    if wanted.require_service_account
        && wanted.required_service_account_annotation_keys.iter().any(|k| !has.contains_key(k))
    {
        return Ok(None);
    }
    let keys = wanted.required_service_account_annotation_keys.iter();
    let keys = keys.chain(&wanted.optional_service_account_annotation_keys);
    let annotations: BTreeMap<String, String> = keys.filter_map(|k| Some((k.clone(), has.get(k)?.clone()))).collect();
    let projection = ServiceAccountTokenProjection {
        audience: Some(wanted.service_account_token_audience.clone()),
        path: String::new(),
        ..Default::default()
    };
    let token = context.tokens.get(&context.client, pod, &projection).await.map_err(anyhow::Error::msg)?.text;
    let (namespace, uid) = (spec::namespace(pod), account.metadata.uid.clone().unwrap_or_default());
    let key = match wanted.cache_type.as_str() {
        "Token" => token.clone(),
        _ => format!("{namespace}/{name}/{uid}/{annotations:?}"),
    };
    let origin = Origin::Account { namespace: namespace.into(), name: name.into(), uid };
    Ok(Some(Account { token, annotations, key, origin }))
}

/// Runs a provider once.
async fn run(program: &Path, provider: &Provider, request: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(&provider.args)
        .envs(provider.env.iter().map(|v| (&v.name, &v.value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let work = async {
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read its question may answer all the same.
            let _ = stdin.write_all(&request).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(RUN, work).await.context("it does not answer")??;
    if !output.status.success() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    ensure!(output.stdout.len() <= MAX_ANSWER, "the answer is longer than {MAX_ANSWER} bytes");
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn programs_are_asked_once_while_their_answer_holds() {
        let dir = std::env::temp_dir().join(format!("kubelet-providers-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (program, count, config) = (dir.join("small"), dir.join("count"), dir.join("config.yaml"));
        let script = format!(
            "#!/bin/sh\ncat > {0}.in; echo x >> {0}\necho '{{\"kind\":\"CredentialProviderResponse\",\"apiVersion\":\"{API}\",\"cacheKeyType\":\"Registry\",\"cacheDuration\":\"'$LIFE'\",\"auth\":{{\"*.example.com\":{{\"username\":\"u\",\"password\":\"p\"}}}}}}'\n",
            count.display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let text = |name: &str, life: &str| {
            format!(
                "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- {{name: {name}, matchImages: ['*.example.com'], defaultCacheDuration: 1h, apiVersion: {API}, env: [{{name: LIFE, value: {life}}}]}}\n"
            )
        };
        std::fs::write(&config, text("absent", "1h")).unwrap();
        assert!(Providers::load(&config, &dir).is_err());
        for (life, asked) in [("1h", 1), ("0s", 2)] {
            std::fs::write(&config, text("small", life)).unwrap();
            let _ = std::fs::remove_file(&count);
            let providers = Providers::load(&config, &dir).unwrap();
            let provider = providers.list[0].clone();
            for image in ["reg.example.com/a:1", "reg.example.com/b:1"] {
                let auth = providers.ask(&provider, image, None).await.unwrap();
                assert_eq!(auth["*.example.com"], ("u".to_string(), "p".to_string()));
            }
            assert_eq!(std::fs::read_to_string(&count).unwrap().lines().count(), asked, "{life}");
            let request = std::fs::read_to_string(dir.join("count.in")).unwrap();
            assert!(request.contains("CredentialProviderRequest"), "{request}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
