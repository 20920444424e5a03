//! CustomResourceDefinitions: stored definitions become served kinds.
//!
//! One task follows the definitions: it accepts names, turns each definition into a [`Resource`] row, adds its cache to the
//! feed and the row to the catalog, and says so in the definition's status. A definition on its way out takes its
//! objects with it. Everything downstream of the row is the machinery of built-in kinds.

use std::sync::Arc;
use std::time::Duration;

use meta::{Gvk, Object, Request, Status, Value, Verb};
use resources::{
    Cell, Column, Resource, ResourceVersion, Selectable, SelectableValue, Strategy, Subresource, SubresourceKind, Verbs,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::bootstrap::loopback;
use crate::catalog::Served;
use crate::clock;
use crate::following::Following;
use crate::pipeline::Target;
use crate::pipeline::write::Change;
use crate::server::ApiServer;
use crate::webhook::conversion::Conversion;

pub(crate) const GROUP: &str = "apiextensions.k8s.io";
pub(crate) const PLURAL: &str = "customresourcedefinitions";
const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Between two looks at objects whose finalizers hold up their definition's end.
const AGAIN: Duration = Duration::from_secs(1);

/// A custom kind's strategy: its schema says it all, but for its status and generation.
struct Custom {
    has_status: bool,
}

impl Strategy for Custom {
    /// Generation counts for every custom kind, with or without a status subresource.
    fn tracks_generation(&self, _has_status: bool) -> bool {
        true
    }

    fn drops_status_on_create(&self) -> bool {
        self.has_status
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn texts(list: &Value) -> Vec<Arc<str>> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(Arc::from).collect()
}

fn dotted(path: &Value) -> Option<Arc<str>> {
    path.as_str().map(|p| Arc::from(p.trim_start_matches('.')))
}

const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];

/// The row a definition describes.
pub fn row(definition: &Value) -> Result<Resource, String> {
    let spec = &definition["spec"];
    let names = if definition["status"]["acceptedNames"]["kind"].as_str().is_some_and(|k| !k.is_empty()) {
        &definition["status"]["acceptedNames"]
    } else {
        &spec["names"]
    };
    let (group, kind, plural) = (text(spec, "group"), text(names, "kind"), text(names, "plural"));
    let mut versions = Vec::new();
    let mut storage = 0;
    let (mut scale, mut status) = (None, false);
    for version in spec["versions"].as_array().into_iter().flatten() {
        if version["storage"] == true {
            storage = versions.len();
            scale = version["subresources"]["scale"].as_object().map(|_| version["subresources"]["scale"].clone());
        }
        status |= version["subresources"]["status"].is_object();
        versions.push(self::version(group, kind, version)?);
    }
    let mut subresources = Vec::new();
    let storage_name = versions.get(storage).map(|v: &ResourceVersion| v.name.clone()).ok_or("no version")?;
    if status {
        subresources.push(Subresource {
            name: "status".into(),
            kind: SubresourceKind::Status,
            body: Gvk::new(group, &storage_name, kind),
            verbs: GET_PATCH_UPDATE,
        });
    }
    if let Some(scale) = scale {
        let kind = SubresourceKind::Scale {
            spec_replicas: dotted(&scale["specReplicasPath"]).unwrap_or_else(|| "spec.replicas".into()),
            status_replicas: dotted(&scale["statusReplicasPath"]).unwrap_or_else(|| "status.replicas".into()),
            selector: dotted(&scale["labelSelectorPath"]),
        };
        subresources.push(Subresource {
            name: "scale".into(),
            kind,
            body: Gvk::new("autoscaling", "v1", "Scale"),
            verbs: GET_PATCH_UPDATE,
        });
    }
    let selectable = versions.get(storage).map(|version| version.selectable.clone()).unwrap_or_default();
    versions_in_order(&mut versions, &mut storage);
    let or = |field: &str, default: String| {
        if text(names, field).is_empty() { default } else { text(names, field).to_string() }
    };
    Ok(Resource {
        group: group.into(),
        kind: kind.into(),
        list_kind: or("listKind", format!("{kind}List")).into(),
        plural: plural.into(),
        singular: or("singular", kind.to_lowercase()).into(),
        short_names: texts(&names["shortNames"]),
        categories: texts(&names["categories"]),
        namespaced: text(spec, "scope") == "Namespaced",
        versions,
        storage,
        prefix: format!("/registry/{group}/{plural}").into(),
        verbs: Verbs::All,
        subresources,
        selectable,
        strategy: Arc::new(Custom { has_status: status }),
        custom: true,
        // As upstream's custom kinds answer: with a `Status`.
        delete_returns_object: false,
        ttl_seconds: 0,
    })
}

/// Discovery prefers `v2` to `v1` to betas, whatever order the definition has.
fn versions_in_order(versions: &mut [ResourceVersion], storage: &mut usize) {
    let stored = versions[*storage].name.clone();
    versions.sort_by_key(|v| std::cmp::Reverse(crate::discovery::version_priority(&v.name)));
    *storage = versions.iter().position(|v| v.name == stored).unwrap_or(0);
}

fn version(group: &str, kind: &str, version: &Value) -> Result<ResourceVersion, String> {
    let name = text(version, "name");
    let published = &version["schema"]["openAPIV3Schema"];
    let schema = if published.is_object() {
        let path = meta::FieldPath::new("spec.versions.schema.openAPIV3Schema");
        meta::schema::structural::build(published, &path)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))?
    } else {
        meta::schema::structural::open()
    };
    let column = |c: &Value| Column {
        name: text(c, "name").into(),
        kind: text(c, "type").into(),
        format: text(c, "format").into(),
        description: text(c, "description").into(),
        priority: i32::try_from(c["priority"].as_i64().unwrap_or(0)).unwrap_or(0),
        cell: Cell::JsonPath(text(c, "jsonPath").into()),
    };
    let first = json!({"name": "Name", "type": "string", "format": "name", "jsonPath": ".metadata.name"});
    let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"});
    let mut columns = vec![column(&first)];
    match version["additionalPrinterColumns"].as_array().filter(|c| !c.is_empty()) {
        Some(more) => columns.extend(more.iter().map(column)),
        None => columns.push(column(&age)),
    }
    let deprecation = (version["deprecated"] == true).then(|| {
        let said = text(version, "deprecationWarning");
        if said.is_empty() { format!("{group}/{name} {kind} is deprecated").into() } else { said.into() }
    });
    let selectable = version["selectableFields"].as_array().into_iter().flatten();
    let selectable = selectable
        .filter_map(|f| Some(Selectable { name: dotted(&f["jsonPath"])?, value: SelectableValue::Path }))
        .collect();
    Ok(ResourceVersion {
        name: name.into(),
        served: version["served"] == true,
        deprecation,
        schema,
        columns: columns.into(),
        published: published.is_object().then(|| Arc::new(published.clone())),
        selectable,
    })
}

fn condition(definition: &mut Value, kind: &str, status: bool, reason: &str, message: &str) {
    let status = if status { "True" } else { "False" };
    if !definition["status"]["conditions"].is_array() {
        definition["status"]["conditions"] = json!([]);
    }
    let Some(list) = definition["status"]["conditions"].as_array_mut() else { return };
    let new = json!({"type": kind, "status": status, "lastTransitionTime": clock::now(), "reason": reason, "message": message});
    match list.iter_mut().find(|c| c["type"] == kind) {
        Some(c) if c["status"] == status => {
            c["reason"] = reason.into();
            c["message"] = message.into();
        }
        Some(c) => *c = new,
        None => list.push(new),
    }
}

/// Serves stored definitions, and follows them until `cancel`.
pub async fn run(server: Arc<ApiServer>, cancel: CancellationToken) {
    let mut definitions = Following::new(&server, GROUP, PLURAL);
    while let Some(Some(changed)) = cancel.run_until_cancelled(definitions.next()).await {
        for definition in &changed {
            take(&server, definition).await;
        }
        forget_others(&server, &definitions.all());
    }
}

/// Stops serving kinds whose definition is gone.
fn forget_others(server: &ApiServer, definitions: &[Arc<Object>]) {
    let defined = |resource: &Resource| {
        definitions.iter().any(|d| *d.meta.name == *format!("{}.{}", resource.plural, resource.group))
    };
    let catalog = server.catalog();
    if catalog.kinds().iter().all(|served| !served.resource.custom || defined(&served.resource)) {
        return;
    }
    for served in catalog.kinds().iter().filter(|s| s.resource.custom && !defined(&s.resource)) {
        server.feed().remove(&served.resource.prefix);
    }
    server
        .change_catalog(|kinds| kinds.iter().filter(|s| !s.resource.custom || defined(&s.resource)).cloned().collect());
}

async fn take(server: &Arc<ApiServer>, object: &Arc<Object>) {
    if let Err(status) = define(server, object).await {
        tracing::warn!(definition = %object.meta.name, %status, "custom resource definition");
    }
}

async fn define(server: &Arc<ApiServer>, object: &Arc<Object>) -> Result<(), Status> {
    let definition = object.value().map_err(Status::internal)?;
    if object.meta.deletion_timestamp.is_some() {
        return clean_up(server, object, &definition).await;
    }
    let (names, conflict) = names(server, &definition);
    let mut accepted = definition.clone();
    accepted["status"]["acceptedNames"] = names.clone();
    let resource = row(&accepted);
    // Who is served already stays so under the names that are its own.
    let established = is_true(&definition, "Established");
    let served = (conflict.is_none() || established) && resource.is_ok();
    if let (Ok(resource), true) = (&resource, served) {
        publish(server, resource.clone(), Conversion::of(server, &definition)).await?;
    }
    // The status tells of what is served already, so that whoever waits for it finds it.
    let update = |current: &mut Value| {
        if !current["metadata"]["deletionTimestamp"].is_null() {
            return Ok(());
        }
        let stored: Vec<Value> = current["spec"]["versions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|v| v["storage"] == true)
            .map(|v| v["name"].clone())
            .collect();
        if !current["status"].is_object() {
            current["status"] = json!({});
        }
        current["status"]["acceptedNames"] = names.clone();
        match &conflict {
            None => condition(current, "NamesAccepted", true, "NoConflicts", "no conflicts found"),
            Some((reason, why)) => condition(current, "NamesAccepted", false, reason, why),
        }
        match &resource {
            Ok(_) if established => {}
            Ok(_) if served => {
                condition(current, "Established", true, "InitialNamesAccepted", "the initial names have been accepted")
            }
            Ok(_) => condition(current, "Established", false, "NotAccepted", "not all names are accepted"),
            Err(why) => condition(current, "NonStructuralSchema", true, "Violations", why),
        }
        if !current["status"]["storedVersions"].is_array() {
            current["status"]["storedVersions"] = json!([]);
        }
        if let Some(list) = current["status"]["storedVersions"].as_array_mut() {
            for version in stored {
                if !list.contains(&version) {
                    list.push(version);
                }
            }
        }
        let finalizers = &mut current["metadata"]["finalizers"];
        if !finalizers.is_array() {
            *finalizers = json!([]);
        }
        if let Some(list) = finalizers.as_array_mut()
            && !list.iter().any(|f| f == CLEANUP)
        {
            list.push(CLEANUP.into());
        }
        Ok(())
    };
    change(server, &object.meta.name, &update).await
}

async fn change(
    server: &Arc<ApiServer>,
    name: &str,
    update: &(dyn Fn(&mut Value) -> Result<(), Status> + Send + Sync),
) -> Result<(), Status> {
    let catalog = server.catalog();
    let served = catalog.find(GROUP, PLURAL).ok_or_else(Status::unknown_path)?;
    let version = served.resource.storage_version();
    let request = Request::new(Verb::Update, served.resource.gvr(&version.name), "", name).subresource("status");
    let caller = loopback();
    match server.change(Target { caller: &caller, served, version, request: &request }, Change::Server(update)).await {
        Err(status) if !status.is_not_found() => Err(status),
        _ => Ok(()),
    }
}

fn is_true(definition: &Value, kind: &str) -> bool {
    let conditions = definition["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == kind && c["status"] == "True")
}

/// The names a definition may have: those it asks for, as far as no other kind of the group has them, else those it had. And
/// which it may not have, and why: of several, the last.
fn names(server: &ApiServer, definition: &Value) -> (Value, Option<(&'static str, String)>) {
    let (group, asked) = (text(&definition["spec"], "group"), &definition["spec"]["names"]);
    let own = format!("{}.{group}", text(asked, "plural"));
    let catalog = server.catalog();
    let others: Vec<&Resource> = catalog
        .kinds()
        .iter()
        .map(|served| &served.resource)
        .filter(|other| &*other.group == group && format!("{}.{group}", other.plural) != own)
        .collect();
    let is_word = |name: &str| {
        others.iter().any(|other| {
            name == &*other.plural || name == &*other.singular || other.short_names.iter().any(|short| &**short == name)
        })
    };
    let is_kind = |name: &str| others.iter().any(|other| name == &*other.kind || name == &*other.list_kind);
    let mut names = definition["status"]["acceptedNames"].clone();
    if !names.is_object() {
        names = json!({});
    }
    let mut conflict = None;
    for (field, reason, is_taken) in [
        ("plural", "PluralConflict", &is_word as &dyn Fn(&str) -> bool),
        ("singular", "SingularConflict", &is_word),
        ("shortNames", "ShortNamesConflict", &is_word),
        ("kind", "KindConflict", &is_kind),
        ("listKind", "ListKindConflict", &is_kind),
    ] {
        let had = texts(&names[field]);
        let new: Vec<Arc<str>> = match field {
            "shortNames" => texts(&asked[field]).into_iter().filter(|name| !had.contains(name)).collect(),
            _ if names[field] == asked[field] => Vec::new(),
            _ => vec![text(asked, field).into()],
        };
        let taken: Vec<String> =
            new.iter().filter(|name| is_taken(name)).map(|name| format!("{:?} is already in use", &**name)).collect();
        match &taken[..] {
            [] if asked[field].is_null() => drop(names.as_object_mut().and_then(|names| names.remove(field))),
            [] => names[field] = asked[field].clone(),
            [one] => conflict = Some((reason, one.clone())),
            many => conflict = Some((reason, format!("[{}]", many.join(", ")))),
        }
    }
    match &asked["categories"] {
        Value::Null => drop(names.as_object_mut().and_then(|names| names.remove("categories"))),
        categories => names["categories"] = categories.clone(),
    }
    (names, conflict)
}

/// Puts a row into the catalog, with the cache it had before or a new one.
async fn publish(
    server: &Arc<ApiServer>,
    resource: Resource,
    conversion: Option<Arc<Conversion>>,
) -> Result<(), Status> {
    let decoder = if conversion.is_some() { crate::stored::decoder_as_stored } else { crate::stored::decoder };
    let same = |s: &&Arc<Served>| s.resource.prefix == resource.prefix;
    let before = server.catalog().kinds().iter().find(same).cloned();
    let served = match before.and_then(|before| before.cache.clone()) {
        Some(cache) => {
            cache.redecode(decoder(&resource));
            Served::custom(resource.clone(), cache, conversion)
        }
        None => {
            let cache = Arc::new(crate::cache::Cache::new(resource.prefix.clone(), decoder(&resource)));
            server.feed().add(cache.clone()).await.map_err(crate::pipeline::read::store_error)?;
            Served::custom(resource.clone(), cache, conversion)
        }
    };
    server.change_catalog(|kinds| {
        let mut kinds: Vec<_> = kinds.iter().filter(|s| s.resource.prefix != resource.prefix).cloned().collect();
        kinds.push(served);
        kinds
    });
    Ok(())
}

/// Looks at a definition again whose objects are slow to go.
fn look_again(server: Arc<ApiServer>, name: String) -> futures::future::BoxFuture<'static, ()> {
    Box::pin(async move {
        tokio::time::sleep(AGAIN).await;
        if let Some(current) = server.lookup(GROUP, PLURAL, "", &name) {
            take(&server, &current).await;
        }
    })
}

/// Deletes the objects of a definition that is going, then lets it go.
async fn clean_up(server: &Arc<ApiServer>, object: &Arc<Object>, definition: &Value) -> Result<(), Status> {
    if !object.meta.finalizers.iter().any(|f| &**f == CLEANUP) {
        return Ok(());
    }
    let (group, plural) = (text(&definition["spec"], "group"), text(&definition["spec"]["names"], "plural"));
    let served = server.catalog().find(group, plural).cloned();
    if let Some(served) = served.filter(|s| s.resource.custom) {
        server.await_newest().await?;
        let caller = loopback();
        let gvr = served.resource.gvr(&served.resource.storage_version().name);
        let items = served.cache()?.list(&format!("{}/", served.resource.prefix)).items;
        for item in &items {
            let request = Request::new(Verb::Delete, gvr.clone(), &item.meta.namespace, &item.meta.name);
            match server.serve(&caller, request).await {
                Err(status) if !status.is_not_found() => return Err(status),
                _ => {}
            }
        }
        server.await_newest().await?;
        if !served.cache()?.list(&format!("{}/", served.resource.prefix)).items.is_empty() {
            // Finalizers of its objects hold it; each deletion of one is a chance to look again.
            tokio::spawn(look_again(server.clone(), object.meta.name.to_string()));
            return change(server, &object.meta.name, &|current| {
                condition(
                    current,
                    "Terminating",
                    true,
                    "InstanceDeletionInProgress",
                    "CustomResource deletion is in progress",
                );
                Ok(())
            })
            .await;
        }
    }
    change(server, &object.meta.name, &|current| {
        if let Some(list) = current["metadata"]["finalizers"].as_array_mut() {
            list.retain(|f| f != CLEANUP);
        }
        Ok(())
    })
    .await
}
