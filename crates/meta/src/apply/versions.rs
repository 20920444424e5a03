//! The versions of a kind, for owners who wrote in others than the one written now.
//!
//! Fields are owned as a version names them, so whether a write touches them is seen in that version: objects are compared
//! once for each version their owners wrote in. Nothing is converted here: what is lacking is named, and the caller asks
//! again when it has it. A version that is no more owns nothing.

use std::collections::BTreeMap;

use serde_json::Value;

use super::compare::{self, Difference};
use super::entries;
use super::place::Place;
use crate::schema::View;

/// An object that has to be seen in another version first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unconverted {
    /// Without `managedFields`.
    pub object: Value,
    pub api_version: String,
}

/// Schemas by `apiVersion`.
type Schemas<'a> = Box<dyn Fn(&str) -> Option<View<'a>> + Send + Sync + 'a>;

/// The versions of one kind, and the conversions known so far.
pub struct Versions<'a> {
    root: View<'a>,
    /// Absent where entries of all versions are compared by path.
    schemas: Option<Schemas<'a>>,
    known: Vec<(Unconverted, Value)>,
}

/// What a write changed, as each version shows it.
pub type Differences<'a> = BTreeMap<String, (Place<'a>, Difference)>;

impl<'a> Versions<'a> {
    /// A kind of one version, or whose versions name all fields alike.
    pub fn one(root: View<'a>) -> Self {
        Self { root, schemas: None, known: Vec::new() }
    }

    /// A kind whose versions have these schemas; `root` is of the version written.
    pub fn several(root: View<'a>, schemas: impl Fn(&str) -> Option<View<'a>> + Send + Sync + 'a) -> Self {
        Self { schemas: Some(Box::new(schemas)), ..Self::one(root) }
    }

    /// What was lacking.
    pub fn learn(&mut self, what: Unconverted, converted: Value) {
        self.known.push((what, converted));
    }

    /// Entries that are told apart by version at all.
    pub(super) fn are_several(&self) -> bool {
        self.schemas.is_some()
    }

    /// The name under which a version's differences are kept.
    pub(super) fn name<'t>(&self, api_version: &'t str) -> &'t str {
        if self.are_several() { api_version } else { "" }
    }

    pub(super) fn root(&self, api_version: &str) -> Option<View<'a>> {
        self.schemas.as_ref().map_or(Some(self.root), |schemas| schemas(api_version))
    }

    pub(super) fn place(&self, api_version: &str) -> Option<Place<'a>> {
        self.root(api_version).map(Place::root)
    }

    /// Forgets who wrote in versions that are no more.
    pub(super) fn drop_gone(&self, entries: &mut Vec<Value>) {
        if self.are_several() {
            entries.retain(|entry| self.root(entries::text(entry, "apiVersion")).is_some());
        }
    }

    /// An object, which has no entries, as a version shows it.
    pub(super) fn shown<'v>(&'v self, object: &'v Value, api_version: &str) -> Result<&'v Value, Unconverted> {
        if !self.are_several() || entries::text(object, "apiVersion") == api_version {
            return Ok(object);
        }
        let known = self.known.iter().find(|(what, _)| what.api_version == api_version && what.object == *object);
        let lacking = || Unconverted { object: object.clone(), api_version: api_version.into() };
        known.map(|(_, converted)| converted).ok_or_else(lacking)
    }

    /// What changed between two objects, in `api_version` and every version of these entries.
    pub(super) fn differences(
        &self,
        old: Option<&Value>,
        new: &Value,
        api_version: &str,
        entries: &[Value],
    ) -> Result<Differences<'a>, Unconverted> {
        let mut out = Differences::new();
        let theirs = entries.iter().map(|entry| entries::text(entry, "apiVersion"));
        for version in std::iter::once(api_version).chain(theirs) {
            let name = self.name(version);
            if out.contains_key(name) {
                continue;
            }
            let Some(root) = self.root(version) else { continue };
            let old = old.map(|old| self.shown(old, version)).transpose()?;
            let difference = compare::compare(root, old, self.shown(new, version)?);
            out.insert(name.into(), (Place::root(root), difference));
        }
        Ok(out)
    }
}
