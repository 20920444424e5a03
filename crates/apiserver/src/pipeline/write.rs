//! Create, update, patch and apply: one function with different first halves.
//!
//! [`ApiServer::create`] and [`ApiServer::change`] run the same steps — default, mutating admission, prepare, field
//! management, validate, validating admission, transaction — and differ in where the new body comes from. A dry run
//! stops before the transaction. A change made by the server itself (a binding, a deletion mark) is the same change with
//! a function as its first half.

use std::sync::Arc;

use meta::{FieldError, Object, Reply, Status, Value, Verb};
use resources::Context;
use store::{Compare, Op, Txn, TxnOutcome};

use super::read::store_error;
use super::{Target, body, metadata, owners};
use crate::admission::{self, Attributes, Operation, service_address};
use crate::clock;
use crate::instruments::Asked;
use crate::server::ApiServer;

/// Tries at a generated name before giving up, as upstream.
const NAME_TRIES: usize = 8;
/// Tries at a change whose object is being changed by others all the time.
const CHANGE_TRIES: usize = 64;

/// Where the new body of an existing object comes from.
pub enum Change<'a> {
    /// The client's own: PUT, or any patch.
    Request,
    /// A PUT whose tree was handed over.
    Tree(Value),
    /// What a client's request comes to, which named it otherwise.
    Document(body::Document),
    /// The server's. Says what to do with the current object; runs again when it was changed meanwhile.
    Server(&'a Amendment<'a>),
    /// The same for a client, and judged like its own.
    Judged(&'a Amendment<'a>),
}

/// What is to be done with an object.
pub type Amendment<'a> = dyn Fn(&mut Value) -> Result<(), Status> + Send + Sync + 'a;

impl Change<'_> {
    /// Whether what came of it is prepared and validated.
    fn is_judged(&self) -> bool {
        !matches!(self, Change::Server(_))
    }
}

/// What the store made of a write.
pub(crate) enum Outcome {
    Stored(Arc<Object>),
    /// What each compared key is instead.
    Conflict(Vec<Option<store::KeyValue>>),
}

/// What came of one try at creating.
enum Created {
    Done(Arc<Object>),
    /// Another object holds what this one claims besides its name.
    ClaimTaken(Status),
}

/// Adds to a transaction what the body claims besides its own key, and gives back what the old one did.
pub(super) fn claim(resource: &resources::Resource, old: Option<&Value>, new: Option<&Value>, txn: &mut Txn) {
    let (before, after) = (service_address::claims(resource, old), service_address::claims(resource, new));
    for (key, value) in after.iter().filter(|(key, _)| !before.contains_key(*key)) {
        let key: store::Key = key.as_str().into();
        txn.compares.push(Compare { key: key.clone(), mod_revision: 0 });
        txn.ops.push(Op::Put { key, value: value.clone(), lease: None });
    }
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        txn.ops.push(Op::Delete { key: key.as_str().into() });
    }
}

/// The object a body makes, before it has a revision.
fn draft(target: &Target<'_>, raw: bytes::Bytes, body: &Value) -> Result<Object, Status> {
    let mut object = Object::from_stored_body(raw, body, 0).map_err(Status::internal)?;
    object.fields = target.served.storage().select_fields(body);
    Ok(object)
}

fn claim_taken(
    target: &Target<'_>,
    name: &str,
    compared: &[store::Key],
    current: &[Option<store::KeyValue>],
) -> Status {
    let held = compared.iter().zip(current).skip(1).find(|(_, found)| found.is_some());
    let error = service_address::taken(held.map_or("", |(key, _)| &**key));
    Status::invalid(target.group(), &target.served.resource.kind, name, &[error])
}

/// What a write left behind.
pub struct Written {
    pub object: Arc<Object>,
    pub created: bool,
    /// The write removed the object: it was only waiting for its last finalizer.
    pub removed: bool,
}

impl ApiServer {
    /// Creates what the request says, or the tree that was handed over with it.
    pub(super) async fn create(&self, target: Target<'_>, tree: Option<Value>) -> Result<Reply, Status> {
        body::check_options(&target)?;
        let body = match tree {
            Some(tree) => body::take_object(&target, tree)?,
            None => body::decode_object(self, &target, &target.request.body)?,
        };
        let object = self.create_object(target, body).await?;
        Ok(Reply::Object { object: target.served.present(object, target.version).await?, created: true })
    }

    /// Creates an object from a body in the requested version.
    pub async fn create_object(&self, target: Target<'_>, mut body: Value) -> Result<Arc<Object>, Status> {
        let resource = &target.served.resource;
        if resource.namespaced && target.request.namespace.is_empty() {
            return Err(Status::bad_request("an empty namespace may not be set during creation"));
        }
        metadata::agree_with_url(&target, &mut body)?;
        metadata::one_of_each_owner(&target, &mut body);
        let generated = metadata::text(&body, "name").is_empty() && !metadata::text(&body, "generateName").is_empty();
        let mut refused = Status::internal("no attempt was made");
        for left in (0..NAME_TRIES).rev() {
            // A named object without claims has one try, and needs its body no more.
            let once = left == 0 || !generated && !service_address::is_service(&target.served.resource);
            let mut body = if once { std::mem::take(&mut body) } else { body.clone() };
            if generated {
                let name = metadata::generate_name(metadata::text(&body, "generateName"));
                metadata::of(&mut body)?.insert("name".into(), name.into());
            }
            match self.create_once(target, body).await {
                Ok(Created::Done(object)) => return Ok(object),
                // An address picked a moment ago went to someone else; a named one will be refused again.
                Ok(Created::ClaimTaken(status)) => refused = status,
                Err(status) if generated && status.is_already_exists() => refused = status,
                Err(status) => return Err(status),
            }
            if once {
                break;
            }
        }
        Err(refused)
    }

    async fn create_once(&self, target: Target<'_>, mut body: Value) -> Result<Created, Status> {
        let resource = &target.served.resource;
        let now = clock::now();
        if !metadata::text(&body, "resourceVersion").is_empty() {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        body::to_storage(&target, &mut body).await?;
        let cx = context(&target, &now);
        let tracks = resource.strategy.tracks_generation(resource.has_status());
        body::default(target.served, &mut body);
        metadata::prepare_create(&mut body, &now, tracks)?;

        let drops_status = resource.has_status() && resource.strategy.drops_status_on_create();
        if let Some(map) = body.as_object_mut().filter(|_| drops_status) {
            map.remove("status");
        }
        // What admission and strategies fill in is nobody's: ownership is of what the client sent.
        let mut managed = None;
        if target.request.verb == Verb::Create {
            // As text, where nobody is shown the tree.
            let sent = metadata::of(&mut body)?.contains_key("managedFields");
            let as_text = !sent && !admission::is_shown(self) && !target.dry_run()?;
            managed = as_text.then(|| owners::of_creator(&target, &body, &now)).flatten();
            if managed.is_none() {
                owners::manage(&target, None, &mut body, &now).await?;
            }
        }
        let mut attributes = Attributes::new(&target, Operation::Create)?;
        if admission::mutate(self, &mut attributes, &mut body, None).await? {
            body::default(target.served, &mut body);
        }
        // A struct in Go: it is there even when nothing is in it, and JSON patches add to it.
        if let Some(map) = body.as_object_mut().filter(|_| drops_status && !resource.custom) {
            map.insert("status".into(), serde_json::json!({}));
        }
        resource.strategy.prepare_create(&cx, &mut body);

        let mut errors = metadata::validate_name(&target, &body);
        errors.extend(resources::metadata::validate(&body, resource.namespaced));
        errors.extend(resource.strategy.validate_create(&cx, &body));
        errors.extend(crate::crd_rules::validate_stored(&target, &body, None).await?);
        self.refuse(&target, &body, &errors)?;
        for warning in resource.strategy.warnings(&body) {
            target.caller.warn(warning);
        }
        admission::validate(self, &attributes, Some(&body), None).await?;

        let name = metadata::text(&body, "name").to_string();
        let key = resource.key(&target.request.namespace, &name);
        if target.dry_run()? {
            self.await_newest().await?;
            if target.served.cache()?.get(&key).is_some() {
                return Err(Status::already_exists(target.group(), target.plural(), &name));
            }
            return Object::from_value(&body).map(|o| Created::Done(Arc::new(o))).map_err(Status::internal);
        }
        let lease = self.lease_for(resource.ttl_seconds).await?;
        let raw = meta::object::encode_stored_with(&body, managed.as_deref()).map_err(Status::internal)?;
        let key: store::Key = key.into();
        let mut txn = Txn {
            compares: vec![Compare { key: key.clone(), mod_revision: 0 }],
            ops: vec![Op::Put { key, value: raw.clone(), lease }],
        };
        claim(resource, None, Some(&body), &mut txn);
        let compared: Vec<store::Key> = txn.compares.iter().map(|c| c.key.clone()).collect();
        let draft = draft(&target, raw, &body)?;
        match self.commit(&target, txn, draft).await? {
            Outcome::Stored(object) => Ok(Created::Done(object)),
            Outcome::Conflict(current) if current.first().is_some_and(Option::is_some) => {
                Err(Status::already_exists(target.group(), target.plural(), &name))
            }
            Outcome::Conflict(current) => Ok(Created::ClaimTaken(claim_taken(&target, &name, &compared, &current))),
        }
    }

    /// Asks the store to keep an object, which the cache then takes over as it is.
    pub(crate) async fn commit(&self, target: &Target<'_>, txn: Txn, draft: Object) -> Result<Outcome, Status> {
        // A custom kind's schema may change meanwhile, and with it how the object is read.
        let takes_over = !target.served.resource.custom && matches!(txn.ops.first(), Some(Op::Put { .. }));
        let announced = target.served.cache()?.announce(draft, takes_over);
        let asked = match (txn.compares.first(), txn.ops.first()) {
            (Some(compare), _) if compare.mod_revision == 0 => Asked::Create,
            (_, Some(Op::Delete { .. })) => Asked::Delete,
            _ => Asked::Update,
        };
        match target.served.stored.of(asked, self.store().txn(txn)).await.map_err(store_error)? {
            TxnOutcome::Committed { revision } => Ok(Outcome::Stored(announced.committed(revision))),
            TxnOutcome::Conflict { current, .. } => Ok(Outcome::Conflict(current)),
        }
    }

    fn refuse(&self, target: &Target<'_>, body: &Value, errors: &[FieldError]) -> Result<(), Status> {
        if errors.is_empty() {
            return Ok(());
        }
        Err(Status::invalid(target.group(), &target.served.resource.kind, metadata::text(body, "name"), errors))
    }

    pub(super) async fn update(&self, target: Target<'_>, tree: Option<Value>) -> Result<Reply, Status> {
        let written = self.change(target, tree.map_or(Change::Request, Change::Tree)).await?;
        Ok(Reply::Object {
            object: target.served.present(written.object, target.version).await?,
            created: written.created,
        })
    }

    /// Changes one object, or (where the kind or an apply allows it) creates it.
    pub async fn change(&self, target: Target<'_>, change: Change<'_>) -> Result<Written, Status> {
        let resource = &target.served.resource;
        let key: store::Key = target.key().into();
        let cache = target.served.cache()?;
        // The cache may be a moment behind; the transaction tells, and then the store is asked.
        let mut current = cache.get(&key);
        let mut spare = None;
        let (change, mut document) = match change {
            Change::Request => (Change::Request, Some(body::Document::of(self, &target)?)),
            Change::Tree(tree) => {
                spare = Some(spare_of(&tree, current.as_deref().filter(|_| !resource.custom)));
                (Change::Request, Some(body::Document::of_tree(&target, tree)?))
            }
            Change::Document(document) => (Change::Request, Some(document)),
            other => (other, None),
        };
        let read = |stored: store::KeyValue| {
            cache.decode(&stored).map(Arc::new).map_err(|error| crate::cache::unreadable(&stored.key, &error))
        };
        let mut certain = false;
        for _ in 0..CHANGE_TRIES {
            if document.as_ref().is_some_and(body::Document::is_spent) {
                document = Some(match &spare {
                    Some(tree) => body::Document::of_tree(&target, tree.clone())?,
                    None => body::Document::of(self, &target)?,
                });
            }
            if current.is_none() && !certain {
                let get = self.store().get(&key, None);
                let (stored, _) = target.served.stored.of(Asked::Get, get).await.map_err(store_error)?;
                current = stored.map(read).transpose()?;
                certain = true;
            }
            let Some(old_object) = current.clone() else {
                return self.create_by_change(target, document.as_ref()).await;
            };
            // Who owns what stays text where nobody is shown it.
            let apart = !resource.custom
                && document.as_ref().is_none_or(|document| document.leaves_entries())
                && !admission::is_shown(self)
                && !target.dry_run()?;
            let (mut old, entries) = match apart {
                true => old_object.value_apart().map(|(old, entries)| (old, Some(entries))),
                false => old_object.value().map(|old| (old, None)),
            }
            .map_err(Status::internal)?;
            target.served.renew(&mut old).await?;
            let made = self.make(&target, &change, document.as_mut(), &mut old, entries).await;
            let (body, managed, named_version) = match made {
                Ok(made) => made,
                // What failed may have failed against an old state.
                Err(status) if !certain && (status.is_conflict() || status.is(meta::Reason::Invalid)) => {
                    let (stored, _) = self.store().get(&key, None).await.map_err(store_error)?;
                    certain = true;
                    let unchanged = stored.as_ref().is_some_and(|s| s.mod_revision == old_object.resource_version);
                    if unchanged {
                        return Err(status);
                    }
                    current = stored.map(read).transpose()?;
                    continue;
                }
                Err(status) => return Err(status),
            };
            let finished = is_finished(resource, &body);
            let managed = managed.as_deref().filter(|entries| !entries.is_empty());
            let raw = meta::object::encode_stored_with(&body, managed).map_err(Status::internal)?;
            if target.dry_run()? {
                // Nothing is stored, so its version is the one it has.
                let version = old_object.resource_version;
                let object = Object::from_stored_body(raw, &body, version).map_err(Status::internal)?;
                return Ok(Written { object: Arc::new(object), created: false, removed: finished });
            }
            // The same value is written again where the store holds it in another form, or encrypted with a key of the past.
            let idle = raw == *old_object.raw() && !finished;
            if idle && self.holds(&key, &raw).await? {
                return Ok(Written { object: old_object, created: false, removed: false });
            }
            let op = if finished {
                Op::Delete { key: key.clone() }
            } else {
                Op::Put { key: key.clone(), value: raw.clone(), lease: self.lease_for(resource.ttl_seconds).await? }
            };
            let compares = vec![Compare { key: key.clone(), mod_revision: old_object.resource_version }];
            let mut txn = Txn { compares, ops: vec![op] };
            claim(resource, Some(&old), (!finished).then_some(&body), &mut txn);
            let compared: Vec<store::Key> = txn.compares.iter().map(|c| c.key.clone()).collect();
            let draft = draft(&target, raw, &body)?;
            match self.commit(&target, txn, draft).await? {
                Outcome::Stored(object) => return Ok(Written { object, created: false, removed: finished }),
                Outcome::Conflict(found) => {
                    let own = found.first().cloned().flatten();
                    if own.is_some_and(|own| own.mod_revision == old_object.resource_version) {
                        return Err(claim_taken(&target, &target.request.name, &compared, &found));
                    }
                    if named_version && certain {
                        return Err(self.modified(&target));
                    }
                    let stored = found.into_iter().next().flatten();
                    current = stored.map(read).transpose()?;
                    certain = true;
                }
            }
        }
        Err(self.modified(&target))
    }

    /// Whether the store holds these very bytes, as it would keep them today.
    async fn holds(&self, key: &store::Key, raw: &bytes::Bytes) -> Result<bool, Status> {
        let current = self.store().is_current(key).await.map_err(store_error)?;
        let stored = if current { self.store().get(key, None).await.map_err(store_error)?.0 } else { None };
        Ok(stored.is_some_and(|stored| stored.value == *raw))
    }

    fn modified(&self, target: &Target<'_>) -> Status {
        Status::conflict(target.group(), target.plural(), &target.request.name, metadata::MODIFIED)
    }

    /// An update of what is not there: apply creates, some kinds create on PUT, all else is a 404.
    async fn create_by_change(&self, target: Target<'_>, document: Option<&body::Document>) -> Result<Written, Status> {
        let allowed = match document {
            _ if !target.request.subresource.is_empty() => false,
            Some(body::Document::Apply(_)) => true,
            Some(body::Document::Put(body)) => {
                target.served.resource.strategy.allow_create_on_update() && metadata::text(body, "uid").is_empty()
            }
            _ => false,
        };
        let Some(document) = document.filter(|_| allowed) else { return Err(target.not_found()) };
        crate::authz::require(
            self,
            &target.caller.user,
            &crate::authz::Attributes { verb: "create", ..crate::authz::Attributes::of(target.request) },
        )?;
        let body = document.as_new(&target, &clock::now())?;
        Ok(Written { object: self.create_object(target, body).await?, created: true, removed: false })
    }

    /// The new body, fit to be stored, and whether the client named the version it changes. With the old body's
    /// `entries` given apart, the new one's are too.
    async fn make(
        &self,
        target: &Target<'_>,
        change: &Change<'_>,
        mut document: Option<&mut body::Document>,
        old: &mut Value,
        entries: Option<String>,
    ) -> Result<(Value, Option<String>, bool), Status> {
        let resource = &target.served.resource;
        let now = clock::now();
        let cx = context(target, &now);
        let mut body;
        let mut named_version = false;
        match (change, document.as_deref_mut()) {
            (Change::Server(f) | Change::Judged(f), _) => {
                body = old.clone();
                f(&mut body)?;
            }
            (Change::Request | Change::Tree(_) | Change::Document(_), Some(document)) => {
                body = document.changed(target, old, &now).await?;
                metadata::agree_with_url(target, &mut body)?;
                metadata::one_of_each_owner(target, &mut body);
                // A patch carries the version it was laid over; were that a demand, no patch could be tried again.
                let named = metadata::preconditions(target, &body, old)?;
                named_version = named && target.request.verb == Verb::Update;
                if !named_version
                    && target.request.verb == Verb::Update
                    && !resource.strategy.allow_unconditional_update()
                {
                    let path = meta::FieldPath::new("metadata.resourceVersion");
                    let error = FieldError::invalid(&path, "", "must be specified for an update");
                    return Err(Status::invalid(target.group(), &resource.kind, &target.request.name, &[error]));
                }
                metadata::same_end(target, &body, old)?;
                metadata::prepare_update(&mut body, old)?;
                keep_other_half(target, &mut body, old);
            }
            (Change::Request | Change::Tree(_) | Change::Document(_), None) => {
                return Err(Status::internal("a change without a document"));
            }
        }
        metadata::of(&mut body)?.remove("resourceVersion");
        body::default(target.served, &mut body);
        let mut managed = None;
        if let Some(entries) = entries {
            managed = owners::manage_apart(target, old, &mut body, &entries, &now).await?;
        } else if !matches!(document, Some(body::Document::Apply(_))) {
            owners::manage(target, Some(old), &mut body, &now).await?;
        }
        let old = &*old;
        let mut attributes = Attributes::new(target, Operation::Update)?;
        if admission::mutate(self, &mut attributes, &mut body, Some(old)).await? {
            body::default(target.served, &mut body);
        }
        if change.is_judged() {
            resource.strategy.prepare_update(&cx, &mut body, old);
        }
        if resource.strategy.tracks_generation(resource.has_status()) {
            let annotations = target.request.subresource.is_empty() && resource.strategy.counts_annotations();
            metadata::bump_generation(&mut body, old, annotations);
        }
        if change.is_judged() {
            let mut errors = resources::metadata::validate_update(&body, old);
            errors.extend(resource.strategy.validate_update(&cx, &body, old));
            errors.extend(crate::crd_rules::validate_stored(target, &body, Some(old)).await?);
            self.refuse(target, &body, &errors)?;
        }
        for warning in resource.strategy.warnings(&body) {
            target.caller.warn(warning);
        }
        admission::validate(self, &attributes, Some(&body), Some(old)).await?;
        Ok((body, managed, named_version))
    }
}

/// What further tries put of a tree that goes into the first. One that names the very version at hand is refused by
/// whatever other version there is then: for that, what it is the body of is enough. A body that something else converts
/// must be whole, so `current` is of built-in kinds alone.
fn spare_of(tree: &Value, current: Option<&Object>) -> Value {
    let named = metadata::text(tree, "resourceVersion").parse::<u64>();
    if current.is_none_or(|current| named != Ok(current.resource_version)) {
        return tree.clone();
    }
    let kept = ["name", "namespace", "uid", "resourceVersion"].into_iter();
    let kept = kept.filter_map(|field| Some((field.to_string(), tree["metadata"].get(field)?.clone())));
    let kept = Value::Object(kept.collect());
    serde_json::json!({"kind": tree["kind"], "apiVersion": tree["apiVersion"], "metadata": kept})
}

/// A deleted object that nothing holds any more goes with this very write.
fn is_finished(resource: &resources::Resource, body: &Value) -> bool {
    let metadata = &body["metadata"];
    !metadata["deletionTimestamp"].is_null()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && metadata["finalizers"].as_array().is_none_or(Vec::is_empty)
        && !resource.strategy.held(body)
}

/// A status write keeps everything but status; any other write keeps status.
fn keep_other_half(target: &Target<'_>, body: &mut Value, old: &Value) {
    let resource = &target.served.resource;
    let Some(map) = body.as_object_mut() else { return };
    let restore = |map: &mut serde_json::Map<String, Value>, field: &str| match old.get(field) {
        Some(value) => drop(map.insert(field.into(), value.clone())),
        None => drop(map.remove(field)),
    };
    match &*target.request.subresource {
        "" if resource.has_status() && resource.strategy.drops_status_on_create() => restore(map, "status"),
        "status" => {
            let fields: Vec<String> =
                map.keys().chain(old.as_object().into_iter().flat_map(|o| o.keys())).cloned().collect();
            for field in fields.iter().filter(|f| !matches!(f.as_str(), "status" | "metadata" | "apiVersion" | "kind"))
            {
                restore(map, field);
            }
            // Custom resources keep all metadata but managedFields; built-in kinds let labels and annotations through.
            if resource.custom
                && let Some(before) = old["metadata"].as_object()
            {
                let managed = map["metadata"].get("managedFields").cloned();
                let mut kept = before.clone();
                if let Some(managed) = managed {
                    kept.insert("managedFields".into(), managed);
                }
                map.insert("metadata".into(), Value::Object(kept));
            }
        }
        _ => {}
    }
}

pub(super) fn context<'a>(target: &Target<'a>, now: &'a str) -> Context<'a> {
    let user = &target.caller.user;
    Context {
        now,
        user: &user.name,
        groups: &user.groups,
        uid: &user.uid,
        extra: &user.extra,
        subresource: &target.request.subresource,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_tree_that_can_be_tried_again_is_kept() {
        let at = |version: Value| {
            let metadata = json!({"name": "a", "namespace": "b", "resourceVersion": version, "labels": {"c": "d"}});
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata, "data": {"e": "f"}})
        };
        let mut current = Object::from_value(&at("7".into())).expect("an object");
        current.resource_version = 7;
        let named = at("7".into());
        let identity = json!({"name": "a", "namespace": "b", "resourceVersion": "7"});
        assert_eq!(
            spare_of(&named, Some(&current)),
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": identity})
        );
        assert_eq!(spare_of(&named, None), named);
        for other in [at("6".into()), at("".into()), at(Value::Null)] {
            assert_eq!(spare_of(&other, Some(&current)), other);
        }
    }
}
