//! What is served right now: the built-in rows and those CustomResourceDefinitions add, each with its cache.
//!
//! The catalog is immutable; adding a kind makes a new one. Everything that depends on the set of kinds (discovery,
//! OpenAPI) is derived from a catalog and cached by its generation.

use std::collections::HashMap;
use std::sync::Arc;

use meta::{Gvr, Object, Status, Value};
use resources::{Resource, ResourceVersion};

use crate::cache::Cache;
use crate::stored::decoder;
use crate::webhook::conversion::Conversion;

/// A kind and its objects.
pub struct Served {
    pub resource: Resource,
    /// Absent for kinds that are never stored.
    pub cache: Option<Arc<Cache>>,
    /// The row whose form objects are stored in, where that is another group's (events).
    stored_as: Option<Arc<Served>>,
    /// Who turns one version into another, where that is not the strategy.
    conversion: Option<Arc<Conversion>>,
    /// How long the store takes with it.
    pub stored: crate::instruments::StoreTimes,
    /// What a custom kind's schemas say in expressions, version by version.
    rules: Vec<Option<crate::crd_rules::Rules>>,
}

impl Served {
    pub fn new(resource: Resource) -> Arc<Self> {
        let cache =
            (!resource.prefix.is_empty()).then(|| Arc::new(Cache::new(resource.prefix.clone(), decoder(&resource))));
        Arc::new(Self {
            resource,
            cache,
            stored_as: None,
            conversion: None,
            stored: Default::default(),
            rules: Vec::new(),
        })
    }

    /// A custom kind over its cache: the one it had, if it is not new.
    pub fn custom(resource: Resource, cache: Arc<Cache>, conversion: Option<Arc<Conversion>>) -> Arc<Self> {
        let of = |version: &ResourceVersion| version.published.as_deref().and_then(crate::crd_rules::Rules::of);
        let rules = resource.versions.iter().map(of).collect();
        Arc::new(Self { resource, cache: Some(cache), stored_as: None, conversion, stored: Default::default(), rules })
    }

    /// A kind whose objects are stored in the form of another group's row, in that row's cache (events).
    pub fn sharing(resource: Resource, owner: &Arc<Served>) -> Arc<Self> {
        Arc::new(Self {
            resource,
            cache: owner.cache.clone(),
            stored_as: Some(owner.clone()),
            conversion: None,
            stored: Default::default(),
            rules: Vec::new(),
        })
    }

    /// The row objects are stored as: its schema defaults them and says who owns what.
    pub fn storage(&self) -> &Resource {
        self.stored_as.as_ref().map_or(&self.resource, |owner| &owner.resource)
    }

    pub fn cache(&self) -> Result<&Arc<Cache>, Status> {
        let refuse = || Status::method_not_allowed(&self.resource.group, &self.resource.plural, "get");
        self.cache.as_ref().ok_or_else(refuse)
    }

    /// The expressions of one version's schema.
    pub fn rules(&self, version: &ResourceVersion) -> Option<&crate::crd_rules::Rules> {
        let at = self.resource.versions.iter().position(|v| v.name == version.name)?;
        self.rules.get(at)?.as_ref()
    }

    /// Whether objects must be converted to be shown in `version`.
    pub fn is_storage(&self, version: &ResourceVersion) -> bool {
        version.name == self.resource.storage_version().name
    }

    /// Turns a tree in a served version into the stored form, `apiVersion` and `kind` included.
    pub async fn to_storage(&self, body: &mut Value, version: &str) -> Result<(), Status> {
        let stored = self.storage().storage_gvk();
        if let Some(conversion) = &self.conversion {
            body["apiVersion"] = self.resource.group_version(version).to_string().into();
            return Box::pin(self.through(conversion, body, self.resource.storage_version())).await;
        }
        match &self.stored_as {
            // Between groups the strategy is told whole apiVersions.
            Some(_) => self.resource.strategy.convert(
                body,
                &self.resource.group_version(version).to_string(),
                &stored.api_version(),
            )?,
            None if *version != *stored.version => self.resource.strategy.convert(body, version, &stored.version)?,
            None => {}
        }
        body["apiVersion"] = stored.api_version().into();
        body["kind"] = self.resource.kind.to_string().into();
        Ok(())
    }

    /// Turns a stored tree into a served version.
    pub async fn from_storage(&self, body: &mut Value, version: &str) -> Result<(), Status> {
        let shown = self.resource.group_version(version).to_string();
        let stored = body["apiVersion"].as_str().unwrap_or_default().to_string();
        if let (Some(conversion), Some(version)) = (&self.conversion, self.resource.version(version)) {
            return Box::pin(self.through(conversion, body, version)).await;
        }
        if stored != shown {
            match &self.stored_as {
                Some(_) => self.resource.strategy.convert(body, &stored, &shown)?,
                None => self.resource.strategy.convert(body, stored.rsplit('/').next().unwrap_or_default(), version)?,
            }
        }
        body["apiVersion"] = shown.into();
        body["kind"] = self.resource.kind.to_string().into();
        Ok(())
    }

    /// A stored object as `version` shows it: itself when nothing differs.
    pub async fn present(&self, object: Arc<Object>, version: &ResourceVersion) -> Result<Arc<Object>, Status> {
        if self.is_shown_as_stored(&object, version) {
            return Ok(object);
        }
        let mut body = object.value().map_err(Status::internal)?;
        self.from_storage(&mut body, &version.name).await?;
        shown(&object, &body)
    }

    /// Many stored objects as `version` shows them; a webhook converts them together.
    pub async fn present_all(&self, objects: &mut [Arc<Object>], version: &ResourceVersion) -> Result<(), Status> {
        let Some(conversion) = &self.conversion else {
            for object in objects {
                *object = self.present(object.clone(), version).await?;
            }
            return Ok(());
        };
        let others = objects.iter_mut().filter(|o| !self.is_shown_as_stored(o, version)).collect::<Vec<_>>();
        let bodies: Result<Vec<Value>, _> = others.iter().map(|o| o.value()).collect();
        let mut bodies = bodies.map_err(Status::internal)?;
        conversion.convert(&mut bodies, &self.resource.group_version(&version.name).to_string()).await?;
        for (object, mut body) in others.into_iter().zip(bodies) {
            fit(version, &mut body)?;
            *object = shown(object, &body)?;
        }
        Ok(())
    }

    /// A stored tree in the storage version of now: a webhook's kind may hold trees of an earlier one.
    pub async fn renew(&self, body: &mut Value) -> Result<(), Status> {
        match &self.conversion {
            Some(conversion) => Box::pin(self.through(conversion, body, self.resource.storage_version())).await,
            None => Ok(()),
        }
    }

    /// Whether objects, and so their fields' owners, may be in several versions that name fields differently.
    pub fn has_versions(&self) -> bool {
        self.stored_as.is_none() && self.resource.versions.len() > 1
    }

    /// A version by its `apiVersion`, served or not.
    pub fn version_of(&self, api_version: &str) -> Option<&ResourceVersion> {
        let said = meta::GroupVersion::parse(api_version)?;
        self.resource.version(&said.version).filter(|_| *said.group == *self.resource.group)
    }

    /// A tree in any version of the kind in another.
    pub async fn convert(&self, body: &mut Value, version: &ResourceVersion) -> Result<(), Status> {
        if let Some(conversion) = &self.conversion {
            return Box::pin(self.through(conversion, body, version)).await;
        }
        let from = body["apiVersion"].as_str().and_then(|v| v.rsplit('/').next()).unwrap_or_default().to_string();
        self.to_storage(body, &from).await?;
        self.from_storage(body, &version.name).await
    }

    fn is_shown_as_stored(&self, object: &Object, version: &ResourceVersion) -> bool {
        self.stored_as.is_none()
            && self.is_storage(version)
            && object.api_version.rsplit('/').next() == Some(&*version.name)
    }

    async fn through(
        &self,
        conversion: &Conversion,
        body: &mut Value,
        version: &ResourceVersion,
    ) -> Result<(), Status> {
        let wanted = self.resource.group_version(&version.name).to_string();
        if body["apiVersion"] == wanted {
            return Ok(());
        }
        conversion.convert(std::slice::from_mut(body), &wanted).await?;
        fit(version, body)
    }
}

fn shown(stored: &Object, body: &Value) -> Result<Arc<Object>, Status> {
    let mut shown = Object::from_value(body).map_err(Status::internal)?;
    shown.fields = stored.fields.clone();
    Ok(Arc::new(shown))
}

/// What a webhook made is pruned and defaulted as if a client had sent it.
fn fit(version: &ResourceVersion, body: &mut Value) -> Result<(), Status> {
    meta::schema::prune(version.schema.root(), body, &mut meta::decode::Issues::default()).map_err(Status::internal)?;
    meta::schema::default(version.schema.root(), body);
    Ok(())
}

/// All kinds served at one time.
#[derive(Clone, Default)]
pub struct Catalog {
    kinds: Vec<Arc<Served>>,
    by_resource: HashMap<Gvr, (usize, usize)>,
    /// By plural: few groups share one.
    by_plural: HashMap<Arc<str>, Vec<usize>>,
    /// Grows with each change.
    pub generation: u64,
}

impl Catalog {
    /// Replaces all of `kinds`; a later kind does not displace an earlier one of the same name.
    pub fn new(kinds: Vec<Arc<Served>>, generation: u64) -> Self {
        let mut by_resource = HashMap::new();
        let mut by_plural: HashMap<Arc<str>, Vec<usize>> = HashMap::new();
        for (at, served) in kinds.iter().enumerate() {
            by_plural.entry(served.resource.plural.clone()).or_default().push(at);
            for (v, version) in served.resource.versions.iter().enumerate().filter(|(_, v)| v.served) {
                by_resource.entry(served.resource.gvr(&version.name)).or_insert((at, v));
            }
        }
        Self { kinds, by_resource, by_plural, generation }
    }

    pub fn kinds(&self) -> &[Arc<Served>] {
        &self.kinds
    }

    /// The kind behind a URL's group, version and plural, and the index of that version in its row.
    pub fn get(&self, gvr: &Gvr) -> Option<(&Arc<Served>, usize)> {
        let (kind, version) = self.by_resource.get(gvr)?;
        Some((&self.kinds[*kind], *version))
    }

    /// By group and plural, whatever the version.
    pub fn find(&self, group: &str, plural: &str) -> Option<&Arc<Served>> {
        let mut named = self.by_plural.get(plural)?.iter().map(|at| &self.kinds[*at]);
        named.find(|served| &*served.resource.group == group)
    }

    /// By group and kind.
    pub fn find_kind(&self, group: &str, kind: &str) -> Option<&Arc<Served>> {
        self.kinds.iter().find(|s| &*s.resource.group == group && &*s.resource.kind == kind)
    }
}
