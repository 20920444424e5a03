//! Delete and delete-collection.
//!
//! Follows upstream's generic registry: an object with finalizers or a grace period is marked with
//! `deletionTimestamp` and stays; otherwise it goes at once. The propagation policy becomes a finalizer for the garbage
//! collector.

use std::sync::Arc;

use meta::{Object, Reply, Request, RequestBody, Status, Value, Verb};
use resources::strategy::Deletion;
use store::{Compare, Op, Txn, TxnOutcome};

use super::read::store_error;
use super::write::Change;
use super::{Target, body, metadata};
use crate::admission::{self, Attributes, Operation};
use crate::clock;
use crate::instruments::Asked;
use crate::server::ApiServer;

/// The garbage collector's finalizers.
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// Objects deleted by one delete-collection at a time.
const COLLECTION_PARALLEL: usize = 16;
/// Tries at an object that others keep changing.
const TRIES: usize = 64;

/// `metav1.DeleteOptions`, from body or query.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub propagation: Option<String>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: Vec<String>,
    /// Part of an eviction.
    pub evicts: bool,
}

impl DeleteOptions {
    pub fn of(request: &Request) -> Result<Self, Status> {
        let mut options = Self { dry_run: request.options.dry_run.clone(), ..Self::default() };
        let query = |name: &str| request.options.other.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
        if let Some(seconds) = query("gracePeriodSeconds") {
            options.grace_period_seconds = Some(
                seconds
                    .parse()
                    .map_err(|e| Status::bad_request(crate::http::route::not_a_number("ParseInt", seconds, &e)))?,
            );
        }
        options.propagation = query("propagationPolicy").map(str::to_string);
        let both = |policy: &str| {
            let path = meta::FieldPath::new("propagationPolicy");
            let why = "orphanDependents and deletionPropagation cannot be both set";
            let error = meta::FieldError::invalid(&path, policy, why);
            Status::invalid("meta.k8s.io", "DeleteOptions", "", &[error])
        };
        if let Some(orphan @ ("true" | "false")) = query("orphanDependents") {
            if let Some(policy) = &options.propagation {
                return Err(both(policy));
            }
            options.propagation = Some(if orphan == "true" { "Orphan" } else { "Background" }.into());
        }
        let body = match &request.body {
            RequestBody::None => return options.checked(),
            RequestBody::Bytes { bytes, .. } if bytes.is_empty() => return options.checked(),
            RequestBody::Bytes { bytes, .. } if bytes.trim_ascii() == b"null" => return options.checked(),
            other => body::decode_options(other, "DeleteOptions")?,
        };
        options.grace_period_seconds = body["gracePeriodSeconds"].as_i64().or(options.grace_period_seconds);
        if let Some(policy) = body["propagationPolicy"].as_str() {
            options.propagation = Some(policy.into());
        }
        if let Some(orphan) = body["orphanDependents"].as_bool() {
            if let Some(policy) = &options.propagation {
                return Err(both(policy));
            }
            options.propagation = Some(if orphan { "Orphan" } else { "Background" }.into());
        }
        options.uid = body["preconditions"]["uid"].as_str().map(str::to_string);
        options.resource_version = body["preconditions"]["resourceVersion"].as_str().map(str::to_string);
        for value in body["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            options.dry_run.push(value.into());
        }
        options.checked()
    }

    fn checked(self) -> Result<Self, Status> {
        let path = meta::FieldPath::new("propagationPolicy");
        let refuse = |errors| Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", errors));
        if let Some(policy) = &self.propagation
            && !matches!(policy.as_str(), "Orphan" | "Background" | "Foreground")
        {
            let names = ["Foreground", "Background", "Orphan", "nil"];
            return refuse(&[meta::FieldError::not_supported_of(&path, policy.as_str(), &names)]);
        }
        if self.dry_run.iter().any(|d| d != "All") {
            let path = meta::FieldPath::new("dryRun");
            return refuse(&[meta::FieldError::not_supported(&path, self.dry_run.clone(), &["All"])]);
        }
        Ok(self)
    }

    /// Whether nothing is to be done.
    pub fn dry(&self) -> bool {
        !self.dry_run.is_empty()
    }
}

/// What a deletion came to.
enum Outcome {
    /// Marked, and there for now.
    Kept(Arc<Object>),
    /// Gone, or to be were this no dry run: as it last was, where that could be read.
    Gone(Option<Arc<Object>>),
}

impl ApiServer {
    pub(super) async fn delete(&self, target: Target<'_>) -> Result<Reply, Status> {
        let options = DeleteOptions::of(target.request)?;
        tell_of_orphans(&target, &options);
        match self.delete_outcome(target, &options).await? {
            Outcome::Kept(object) => {
                Ok(Reply::Object { object: target.served.present(object, target.version).await?, created: false })
            }
            Outcome::Gone(Some(object)) if target.served.resource.delete_returns_object => {
                Ok(Reply::Object { object: target.served.present(object, target.version).await?, created: false })
            }
            Outcome::Gone(object) => {
                let uid = object.map(|o| o.meta.uid.to_string()).unwrap_or_default();
                let mut status = Status::success();
                status.details = Some(Box::new(meta::status::Details {
                    name: target.request.name.clone(),
                    group: target.group().into(),
                    kind: target.plural().into(),
                    uid,
                    ..Default::default()
                }));
                let mut value = status.to_value();
                // As upstream, whose storage does not know what it will be answered with.
                value.as_object_mut().and_then(|status| status.remove("code"));
                Ok(Reply::Value { value, code: 200 })
            }
        }
    }

    /// Deletes one object, or marks it; `Some` is the object that stays for now.
    pub async fn delete_object(
        &self,
        target: Target<'_>,
        options: &DeleteOptions,
    ) -> Result<Option<Arc<Object>>, Status> {
        Ok(match self.delete_outcome(target, options).await? {
            Outcome::Kept(object) => Some(object),
            Outcome::Gone(_) => None,
        })
    }

    async fn delete_outcome(&self, target: Target<'_>, options: &DeleteOptions) -> Result<Outcome, Status> {
        let resource = &target.served.resource;
        let cache = target.served.cache()?;
        let key: store::Key = target.key().into();
        let mut refused = None;
        for _ in 0..TRIES {
            let get = self.store().get(&key, None);
            let (stored, _) = target.served.stored.of(Asked::Get, get).await.map_err(store_error)?;
            let stored = stored.ok_or_else(|| target.not_found())?;
            // The cache's, where it is not behind, has been read already.
            let cached = cache.get(&key).filter(|object| object.resource_version == stored.mod_revision);
            let object = match cached.map_or_else(|| cache.decode(&stored).map(Arc::new), Ok) {
                Ok(object) => object,
                // What cannot be read can still be removed.
                Err(error) => {
                    tracing::warn!(%key, %error, "deleting an object that cannot be read");
                    let txn = Txn {
                        compares: vec![Compare { key: key.clone(), mod_revision: stored.mod_revision }],
                        ops: vec![Op::Delete { key: key.clone() }],
                    };
                    self.store().txn(txn).await.map_err(store_error)?;
                    return Ok(Outcome::Gone(None));
                }
            };
            // Nobody deletes what cannot be shown to him: a webhook that fails to convert keeps its objects.
            if resource.custom {
                target.served.present(object.clone(), target.version).await?;
            }
            let old = object.value().map_err(Status::internal)?;
            self.check_preconditions(&target, options, &old)?;
            let attributes = Attributes { dry_run: options.dry(), ..Attributes::new(&target, Operation::Delete)? };
            // An eviction was admitted as one.
            if !options.evicts {
                admission::validate(self, &attributes, None, Some(&old)).await?;
            }

            let mark = Mark::of(resource, &old, options);
            if options.dry() {
                return match mark {
                    Some(mark) => {
                        let mut marked = old;
                        mark.put(resource, &mut marked)?;
                        Object::from_value(&marked).map(|marked| Outcome::Kept(marked.into())).map_err(Status::internal)
                    }
                    None => Ok(Outcome::Gone(Some(as_deleted(resource, old, options, object)?))),
                };
            }
            let Some(mark) = mark else {
                let mut txn = Txn {
                    compares: vec![Compare { key: key.clone(), mod_revision: stored.mod_revision }],
                    ops: vec![Op::Delete { key: key.clone() }],
                };
                super::write::claim(resource, Some(&old), None, &mut txn);
                match target.served.stored.of(Asked::Delete, self.store().txn(txn)).await.map_err(store_error)? {
                    TxnOutcome::Committed { .. } => {
                        return Ok(Outcome::Gone(Some(as_deleted(resource, old, options, object)?)));
                    }
                    TxnOutcome::Conflict { .. } => continue,
                }
            };
            if mark.is_there(resource, &old)? {
                return Ok(Outcome::Kept(object));
            }
            let revision = stored.mod_revision.to_string();
            let replace = |body: &mut Value| {
                if metadata::text(body, "resourceVersion") != revision {
                    return Err(Status::conflict(
                        target.group(),
                        target.plural(),
                        &target.request.name,
                        metadata::MODIFIED,
                    ));
                }
                mark.put(resource, body)
            };
            match self.change(target, Change::Server(&replace)).await {
                Ok(written) => {
                    let object = written.object;
                    return Ok(if written.removed { Outcome::Gone(Some(object)) } else { Outcome::Kept(object) });
                }
                Err(status) if status.is_conflict() => refused = Some(status),
                Err(status) => return Err(status),
            }
        }
        Err(refused.unwrap_or_else(|| {
            Status::conflict(target.group(), target.plural(), &target.request.name, metadata::MODIFIED)
        }))
    }

    pub(crate) fn check_preconditions(
        &self,
        target: &Target<'_>,
        options: &DeleteOptions,
        old: &Value,
    ) -> Result<(), Status> {
        for (wanted, field, words, guess) in [
            (&options.uid, "uid", "UID", "The object might have been deleted and then recreated"),
            (&options.resource_version, "resourceVersion", "ResourceVersion", "The object might have been modified"),
        ] {
            let found = metadata::text(old, field);
            if let Some(wanted) = wanted.as_deref().filter(|w| *w != found) {
                let why = format!(
                    "the {words} in the precondition ({wanted}) does not match the {words} in record ({found}). {guess}"
                );
                // Upstream names the kind here, not the resource.
                let kind = &target.served.resource.kind;
                return Err(Status::conflict(target.group(), kind, &target.request.name, why));
            }
        }
        Ok(())
    }

    async fn delete_if_there(&self, target: Target<'_>, options: &DeleteOptions) -> Result<(), Status> {
        match self.delete_object(target, options).await {
            Err(status) if !status.is_not_found() => Err(status),
            _ => Ok(()),
        }
    }

    pub(super) async fn delete_collection(&self, target: Target<'_>) -> Result<Reply, Status> {
        use futures::{FutureExt, StreamExt, TryStreamExt};
        let options = DeleteOptions::of(target.request)?;
        tell_of_orphans(&target, &options);
        let list = self.list_stored(target).await?;
        let mut shown = list.items.clone();
        target.served.present_all(&mut shown, target.version).await?;
        let requests: Vec<Request> = list
            .items
            .iter()
            .map(|item| {
                let resource = target.request.resource.clone();
                Request::new(Verb::DeleteCollection, resource, &item.meta.namespace, &item.meta.name)
            })
            .collect();
        let mut deletions = Vec::with_capacity(requests.len());
        for request in &requests {
            deletions.push(self.delete_if_there(Target { request, ..target }, &options).boxed());
        }
        futures::stream::iter(deletions).buffer_unordered(COLLECTION_PARALLEL).try_collect::<Vec<()>>().await?;
        Ok(Reply::List(meta::List { resource_version: list.resource_version, items: shown, ..meta::List::default() }))
    }
}

/// A job's pods stay behind unless the client says otherwise, which few expect.
fn tell_of_orphans(target: &Target<'_>, options: &DeleteOptions) {
    let resource = &target.served.resource;
    if &*resource.plural == "jobs" && options.propagation.is_none() && resource.strategy.default_orphans() {
        target.caller.warn(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning",
        );
    }
}

/// What is shown of an object that went at once: one that could have been given time says that it was given none.
fn as_deleted(
    resource: &resources::Resource,
    mut old: Value,
    options: &DeleteOptions,
    object: Arc<Object>,
) -> Result<Arc<Object>, Status> {
    if !resource.delete_returns_object
        || object.meta.deletion_timestamp.is_some()
        || matches!(resource.strategy.deletion(&old, options.grace_period_seconds), Deletion::Immediate)
    {
        return Ok(object);
    }
    let metadata = metadata::of(&mut old)?;
    metadata.insert("deletionTimestamp".into(), clock::now().into());
    metadata.insert("deletionGracePeriodSeconds".into(), 0.into());
    Object::from_value(&old).map(Arc::new).map_err(Status::internal)
}

/// What a deletion leaves on an object that cannot go at once.
struct Mark {
    finalizers: Vec<Value>,
    /// The seconds it is given from now on; none where it stays with those it has.
    grace: Option<i64>,
}

impl Mark {
    /// None when the object can go at once.
    fn of(resource: &resources::Resource, old: &Value, options: &DeleteOptions) -> Option<Self> {
        let grace = match resource.strategy.deletion(old, options.grace_period_seconds) {
            Deletion::Immediate => 0,
            Deletion::Graceful(seconds) => seconds.max(0),
        };
        let metadata = old["metadata"].as_object()?;
        let mut finalizers = metadata.get("finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
        let default = if resource.strategy.default_orphans() { Some("Orphan") } else { None };
        if let Some(policy) = options.propagation.as_deref().or(default) {
            finalizers.retain(|f| f != ORPHAN && f != FOREGROUND);
            match policy {
                "Orphan" => finalizers.push(ORPHAN.into()),
                "Foreground" => finalizers.push(FOREGROUND.into()),
                _ => {}
            }
        }
        if finalizers.is_empty() && grace == 0 && !resource.strategy.held(old) {
            return None;
        }
        let already = metadata.get("deletionTimestamp").is_some_and(|t| !t.is_null());
        let before = metadata.get("deletionGracePeriodSeconds").and_then(Value::as_i64);
        // A second delete may shorten the wait, never lengthen it.
        let given = !already || before.is_some_and(|before| grace < before && options.grace_period_seconds.is_some());
        Some(Self { finalizers, grace: given.then_some(grace) })
    }

    fn put(&self, resource: &resources::Resource, body: &mut Value) -> Result<(), Status> {
        let metadata = metadata::of(body)?;
        if self.finalizers.is_empty() {
            metadata.remove("finalizers");
        } else {
            metadata.insert("finalizers".into(), self.finalizers.clone().into());
        }
        if let Some(grace) = self.grace {
            metadata.insert("deletionTimestamp".into(), clock::after_seconds(grace).into());
            metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
        }
        resource.strategy.prepare_delete(body);
        Ok(())
    }

    /// Whether an object has it already.
    fn is_there(&self, resource: &resources::Resource, old: &Value) -> Result<bool, Status> {
        if self.grace.is_some() {
            return Ok(false);
        }
        let mut marked = old.clone();
        self.put(resource, &mut marked)?;
        Ok(marked == *old)
    }
}
