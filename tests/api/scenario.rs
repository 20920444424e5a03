//! The API scenarios: what a step is, and how one is carried out.
//!
//! A scenario is a list of steps against one server, in a namespace of its own (`$ns`). Words that begin with `$` stand
//! for what earlier answers held (`keep`), for the namespace, for `$id`, which no other scenario has, or for a webhook to be
//! configured (`$hooks` its URL, `$bundle` its authority). The same files run against any server; what only newer ones have
//! is marked `since`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::expect::differences;
use super::hooks::Hooks;
use super::http::{Answer, Identity, Server, Stream};

/// How long an event of a watch may take.
const EVENT_WITHIN: Duration = Duration::from_secs(15);
/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub name: String,
    /// The first minor version of Kubernetes that behaves so.
    since: Option<u32>,
    steps: Vec<Step>,
    /// What lies outside the namespace and has to go at the end.
    #[serde(default)]
    cleanup: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// `VERB /path`.
    #[serde(rename = "do")]
    request: Option<String>,
    body: Option<Value>,
    /// A body that is text, as it is.
    raw: Option<String>,
    /// A body that an earlier answer was.
    send: Option<String>,
    /// Fills `$big` of the body with so many letters.
    big: Option<usize>,
    /// The body's media type; JSON's when absent, and for patches what the verb says.
    #[serde(rename = "type")]
    media_type: Option<String>,
    accept: Option<String>,
    /// Another user, by impersonation: `name` or `name/group,group`.
    #[serde(rename = "as")]
    user: Option<String>,
    /// A bearer token instead of the certificate, `base64:` before one that is so encoded; empty for an anonymous request.
    token: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,

    code: Option<u16>,
    #[serde(rename = "match")]
    matching: Option<Value>,
    /// What the answer's text contains.
    text: Option<String>,
    /// Headers of the answer.
    #[serde(default)]
    got: BTreeMap<String, Value>,
    /// All `Warning` texts.
    warnings: Option<Vec<Value>>,
    /// Asks again for so many seconds until the answer is as expected.
    within: Option<u64>,
    /// Names for parts of the answer: name → path with dots.
    #[serde(default)]
    keep: BTreeMap<String, String>,
    /// A name for the whole answer.
    save: Option<String>,

    /// What a webhook was asked in this journal since the last look: `match` is of a list of requests.
    asked: Option<String>,

    /// Opens a watch under this name.
    open: Option<String>,
    /// The watch `events` are of.
    watch: Option<String>,
    /// The next events of a watch; bookmarks count only where one is expected.
    #[serde(default)]
    events: Vec<Value>,
    /// The watch ends after these events.
    #[serde(default)]
    ends: bool,
}

struct Run<'a> {
    server: &'a Server,
    hooks: Option<&'a Hooks>,
    words: BTreeMap<String, String>,
    saved: BTreeMap<String, Bytes>,
    watches: BTreeMap<String, Stream>,
}

/// The minor version a server says it is.
pub async fn minor_version(server: &Server) -> Result<u32> {
    let version =
        server.send(Identity::Certificate, "GET", "/version", &[], Bytes::new()).await?.json().context("/version")?;
    Ok(version["minor"].as_str().context("no minor version")?.trim_end_matches('+').parse()?)
}

impl Scenario {
    /// Runs it, with more words where the scenarios' place has some, and a webhook where they configure one; whether it was
    /// for this server at all.
    pub async fn run(&self, server: &Server, minor: u32, more: &[(&str, &str)], hooks: Option<&Hooks>) -> Result<bool> {
        if self.since.is_some_and(|since| since > minor) {
            return Ok(false);
        }
        let id = format!("{:08x}", rand::random::<u32>());
        let namespace = format!("scenario-{id}");
        let more = more.iter().map(|(word, value)| (*word, value.to_string()));
        let words = [("ns", namespace.clone()), ("id", id)].into_iter().chain(more);
        let words = words.map(|(word, value)| (word.to_string(), value)).collect();
        let mut run = Run { server, hooks, words, saved: BTreeMap::new(), watches: BTreeMap::new() };
        let made = run
            .simple("POST", "/api/v1/namespaces", Some(serde_json::json!({"metadata": {"name": namespace}})))
            .await?;
        ensure!(made.code == 201, "namespace: {}", String::from_utf8_lossy(&made.body));
        let mut result = Ok(true);
        for (i, step) in self.steps.iter().enumerate() {
            if let Err(error) = run.step(step).await {
                let what =
                    step.request.as_deref().or(step.watch.as_deref()).or(step.asked.as_deref()).unwrap_or_default();
                result = Err(error.context(format!("{}: step {} ({what})", self.name, i + 1)));
                break;
            }
        }
        run.watches.clear();
        for path in &self.cleanup {
            let path = run.fill(path)?;
            run.simple("DELETE", &path, None).await?;
        }
        run.simple("DELETE", &format!("/api/v1/namespaces/{namespace}"), None).await?;
        result
    }
}

impl Run<'_> {
    async fn simple(&self, method: &str, path: &str, body: Option<Value>) -> Result<Answer> {
        let bytes = body.map_or_else(Bytes::new, |b| b.to_string().into());
        self.server
            .send(Identity::Certificate, method, path, &[("content-type".into(), "application/json".into())], bytes)
            .await
    }

    /// Puts the words in.
    fn fill(&self, text: &str) -> Result<String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            let braced = rest.starts_with('{');
            let from = usize::from(braced);
            let length =
                rest[from..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len() - from);
            let word = &rest[from..from + length];
            match self.words.get(word) {
                Some(value) => out.push_str(value),
                // A word of the matching language, or just a dollar.
                None => out.push_str(&format!("${word}")),
            }
            rest = &rest[from + length + usize::from(braced)..];
        }
        out.push_str(rest);
        Ok(out)
    }

    fn fill_value(&self, value: &Value) -> Result<Value> {
        Ok(match value {
            Value::String(text) => self.fill(text)?.into(),
            Value::Array(elements) => elements.iter().map(|e| self.fill_value(e)).collect::<Result<Vec<_>>>()?.into(),
            Value::Object(fields) => {
                let filled = fields
                    .iter()
                    .map(|(k, v)| Ok((self.fill(k)?, self.fill_value(v)?)))
                    .collect::<Result<serde_json::Map<_, _>>>()?;
                filled.into()
            }
            other => other.clone(),
        })
    }

    async fn step(&mut self, step: &Step) -> Result<()> {
        if let Some(request) = &step.request {
            self.request(step, request).await?;
        }
        if let Some(name) = &step.watch {
            self.events(step, name).await?;
        }
        if let (Some(journal), Some(expected)) = (&step.asked, &step.matching) {
            let hooks = self.hooks.context("no webhook is here")?;
            let asked = Value::from(hooks.asked(&self.fill(journal)?));
            let differ = differences(&self.fill_value(expected)?, &asked);
            ensure!(differ.is_empty(), "asked: {}\n  in {asked}", differ.join("\n  "));
        }
        Ok(())
    }

    fn headers(&self, step: &Step, method: &str) -> Result<(Identity, Vec<(String, String)>)> {
        let mut headers =
            vec![("accept".to_string(), step.accept.clone().unwrap_or_else(|| "application/json".into()))];
        headers.push(("user-agent".into(), "scenario".into()));
        if step.body.is_some() || step.raw.is_some() || step.send.is_some() {
            let usual = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
            headers.push(("content-type".into(), step.media_type.clone().unwrap_or_else(|| usual.into())));
        }
        if let Some(user) = &step.user {
            let user = self.fill(user)?;
            let (name, groups) = user.split_once('/').unwrap_or((&user, ""));
            headers.push(("impersonate-user".into(), name.into()));
            headers.extend(groups.split(',').filter(|g| !g.is_empty()).map(|g| ("impersonate-group".into(), g.into())));
        }
        let mut identity = Identity::Certificate;
        if let Some(token) = &step.token {
            identity = Identity::None;
            if !token.is_empty() {
                let mut token = self.fill(token)?;
                // As a Secret has it.
                if let Some(encoded) = token.strip_prefix("base64:") {
                    token = String::from_utf8(STANDARD.decode(encoded)?)?;
                }
                headers.push(("authorization".into(), format!("Bearer {token}")));
            }
        }
        for (name, value) in &step.headers {
            headers.push((name.clone(), self.fill(value)?));
        }
        Ok((identity, headers))
    }

    async fn request(&mut self, step: &Step, request: &str) -> Result<()> {
        let request = self.fill(request)?;
        let (method, path) = request.split_once(' ').context("a request is VERB /path")?;
        let (identity, headers) = self.headers(step, method)?;
        if let Some(name) = &step.open {
            let stream = tokio::time::timeout(ANSWER_WITHIN, self.server.open(identity, path, &headers))
                .await
                .context("no answer")??;
            self.watches.insert(name.clone(), stream);
            return Ok(());
        }
        let mut body: Bytes = match (&step.body, &step.raw, &step.send) {
            (Some(value), ..) => self.fill_value(value)?.to_string().into(),
            (_, Some(text), _) => self.fill(text)?.into(),
            (.., Some(name)) => self.saved.get(name).with_context(|| format!("nothing is saved as {name}"))?.clone(),
            _ => Bytes::new(),
        };
        if let Some(size) = step.big {
            body = String::from_utf8(body.to_vec())?.replace("$big", &"x".repeat(size)).into();
        }
        let deadline = Instant::now() + Duration::from_secs(step.within.unwrap_or(0));
        // What is done is not done again; a dry run does nothing.
        let done = |answer: &Answer| method == "POST" && answer.code.is_success() && !path.contains("dryRun=All");
        loop {
            let sent = self.server.send(identity, method, path, &headers, body.clone());
            let answer = tokio::time::timeout(ANSWER_WITHIN, sent).await.context("no answer")??;
            match self.check(step, &answer) {
                Ok(()) => return self.keep(step, &answer),
                Err(_) if Instant::now() < deadline && !done(&answer) => tokio::time::sleep(ASK_AGAIN_AFTER).await,
                Err(error) => return Err(error),
            }
        }
    }

    fn check(&self, step: &Step, answer: &Answer) -> Result<()> {
        let text = String::from_utf8_lossy(&answer.body);
        let shown: String = text.chars().take(1500).collect();
        let expected = step.code.unwrap_or(200);
        ensure!(answer.code.as_u16() == expected, "answered {}, expected {expected}: {shown}", answer.code);
        let mut differ = Vec::new();
        if let Some(matching) = &step.matching {
            let Some(actual) = answer.json() else { bail!("the answer is no JSON: {shown}") };
            differ.extend(differences(&self.fill_value(matching)?, &actual));
        }
        for (name, expected) in &step.got {
            let actual = answer.headers.get(name).and_then(|v| v.to_str().ok()).map_or(Value::Null, Value::from);
            differ.extend(
                differences(&self.fill_value(expected)?, &actual).into_iter().map(|d| format!("header {name}{d}")),
            );
        }
        if let Some(expected) = &step.warnings {
            let (expected, actual) = (Value::from(expected.clone()), Value::from(answer.warnings()));
            differ
                .extend(differences(&self.fill_value(&expected)?, &actual).into_iter().map(|d| format!("warnings{d}")));
        }
        if let Some(expected) = &step.text {
            let expected = self.fill(expected)?;
            if !text.contains(&expected) {
                differ.push(format!("the answer does not contain {expected:?}"));
            }
        }
        ensure!(differ.is_empty(), "{}\n  in {shown}", differ.join("\n  "));
        Ok(())
    }

    fn keep(&mut self, step: &Step, answer: &Answer) -> Result<()> {
        for (word, path) in &step.keep {
            let json = answer.json().context("the answer is no JSON")?;
            let value = path.split('.').try_fold(&json, |at, part| match part.parse::<usize>() {
                Ok(index) => at.get(index),
                Err(_) => at.get(part),
            });
            let value = value.with_context(|| format!("the answer has no {path}"))?;
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            self.words.insert(word.clone(), text);
        }
        if let Some(name) = &step.save {
            self.saved.insert(name.clone(), answer.body.clone());
        }
        Ok(())
    }

    async fn events(&mut self, step: &Step, name: &str) -> Result<()> {
        let mut stream = self.watches.remove(name).with_context(|| format!("no watch {name} is open"))?;
        for (i, expected) in step.events.iter().enumerate() {
            let expected = self.fill_value(expected)?;
            let event = loop {
                let event = tokio::time::timeout(EVENT_WITHIN, stream.next())
                    .await
                    .with_context(|| format!("event {}: none came; expected {expected}", i + 1))??;
                let event = event.with_context(|| format!("event {}: the watch ended; expected {expected}", i + 1))?;
                if event["type"] != "BOOKMARK" || expected["type"] == "BOOKMARK" {
                    break event;
                }
            };
            let differ = differences(&expected, &event);
            ensure!(differ.is_empty(), "event {}: {}\n  in {event}", i + 1, differ.join("\n  "));
        }
        if step.ends {
            loop {
                match tokio::time::timeout(EVENT_WITHIN, stream.next()).await.context("the watch goes on")?? {
                    None => return Ok(()),
                    Some(event) if event["type"] == "BOOKMARK" => {}
                    Some(event) => bail!("another event instead of the end: {event}"),
                }
            }
        }
        self.watches.insert(name.into(), stream);
        Ok(())
    }
}
