//! Reads as much of Go as API type declarations use: structs with tags, named types, string constants, markers.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result};

#[derive(Debug, Default)]
pub struct Package {
    pub structs: BTreeMap<String, Struct>,
    /// Named types that are not structs, with their underlying spelling.
    pub names: BTreeMap<String, Named>,
    /// String constants: name → (type, value).
    pub constants: BTreeMap<String, (String, String)>,
    pub group: Option<String>,
}

#[derive(Debug, Default)]
pub struct Struct {
    pub markers: Vec<String>,
    pub fields: Vec<Field>,
    /// Import aliases of the file: `metav1` → `k8s.io/apimachinery/pkg/apis/meta/v1`.
    pub imports: HashMap<String, String>,
}

#[derive(Debug)]
pub struct Named {
    pub markers: Vec<String>,
    pub underlying: String,
    pub imports: HashMap<String, String>,
}

#[derive(Debug)]
pub struct Field {
    pub name: String,
    pub embedded: bool,
    pub ty: String,
    /// The JSON tag: name and options.
    pub json: Option<String>,
    pub tag: Option<u32>,
    pub markers: Vec<String>,
}

impl Field {
    pub fn json_name(&self) -> &str {
        self.json.as_deref().unwrap_or_default().split(',').next().unwrap_or_default()
    }

    pub fn omits_empty(&self) -> bool {
        self.json.as_deref().is_some_and(|j| j.split(',').skip(1).any(|o| o == "omitempty" || o == "omitzero"))
    }

    /// An embedded struct whose fields appear among its parent's.
    pub fn inlined(&self) -> bool {
        self.embedded && self.json_name().is_empty()
    }

    pub fn marker(&self, name: &str) -> Option<&str> {
        marker(&self.markers, name)
    }
}

/// The value of `+name=value`, or the empty string of `+name`.
pub fn marker<'a>(markers: &'a [String], name: &str) -> Option<&'a str> {
    markers.iter().find_map(|m| match m.strip_prefix(name)? {
        "" => Some(""),
        rest => rest.strip_prefix('='),
    })
}

pub fn parse_dir(dir: &Path) -> Result<Package> {
    let mut package = Package::default();
    let mut files: Vec<_> = std::fs::read_dir(dir)?.filter_map(|e| Some(e.ok()?.path())).collect();
    files.sort();
    for path in files {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if !name.ends_with(".go") || name.ends_with("_test.go") || name.ends_with(".pb.go") || name.starts_with("zz_") {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        // Alternatives for other build tags would declare the same types twice.
        if name == "fieldsv1_string.go" {
            continue;
        }
        parse(&text, &mut package).with_context(|| format!("{}", path.display()))?;
    }
    Ok(package)
}

fn parse(text: &str, package: &mut Package) -> Result<()> {
    let mut imports = HashMap::new();
    let mut markers: Vec<String> = Vec::new();
    let mut lines = text.lines();
    let (mut in_imports, mut in_constants) = (false, false);
    while let Some(raw) = lines.next() {
        let line = raw.trim();
        if let Some(comment) = line.strip_prefix("//") {
            if let Some(marker) = comment.trim().strip_prefix('+') {
                markers.push(marker.to_string());
            }
            continue;
        }
        if line.is_empty() {
            continue;
        }
        if line == ")" {
            (in_imports, in_constants) = (false, false);
        } else if line == "import (" {
            in_imports = true;
        } else if line == "const (" {
            in_constants = true;
        } else if let Some(one) = line.strip_prefix("import ") {
            import(one, &mut imports);
        } else if in_imports {
            import(line, &mut imports);
        } else if in_constants {
            constant(line, package);
        } else if let Some(one) = line.strip_prefix("const ") {
            constant(one, package);
        } else if let Some(declaration) = line.strip_prefix("type ") {
            let (name, rest) = declaration.split_once(' ').context("type without a name")?;
            if rest == "struct {" {
                let fields = fields(&mut lines);
                let markers = std::mem::take(&mut markers);
                package.structs.insert(name.to_string(), Struct { markers, fields, imports: imports.clone() });
            } else if rest == "struct{}" {
                package.structs.insert(name.to_string(), Struct::default());
            } else {
                let underlying = rest.split(" //").next().unwrap_or(rest).trim().to_string();
                let markers = std::mem::take(&mut markers);
                package.names.insert(name.to_string(), Named { markers, underlying, imports: imports.clone() });
            }
        }
        markers.clear();
    }
    Ok(())
}

fn import(line: &str, imports: &mut HashMap<String, String>) {
    let Some((before, rest)) = line.split_once('"') else { return };
    let path = rest.trim_end_matches('"');
    let alias = match before.trim() {
        "" => path.rsplit('/').next().unwrap_or(path),
        alias => alias,
    };
    imports.insert(alias.to_string(), path.to_string());
}

fn constant(line: &str, package: &mut Package) {
    let Some((left, right)) = line.split_once('=') else { return };
    let Some(value) = right.trim().strip_prefix('"').and_then(|v| v.split('"').next()) else { return };
    let mut words = left.split_whitespace();
    let (Some(name), ty) = (words.next(), words.next().unwrap_or_default()) else { return };
    if name == "GroupName" {
        package.group = Some(value.to_string());
    }
    package.constants.insert(name.to_string(), (ty.to_string(), value.to_string()));
}

/// The fields up to the closing brace.
fn fields<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Vec<Field> {
    let mut fields = Vec::new();
    let mut markers: Vec<String> = Vec::new();
    for raw in lines {
        if raw == "}" {
            break;
        }
        let line = raw.trim();
        if let Some(comment) = line.strip_prefix("//") {
            if let Some(marker) = comment.trim().strip_prefix('+') {
                markers.push(marker.to_string());
            }
            continue;
        }
        if line.is_empty() {
            markers.clear();
            continue;
        }
        let (declaration, tags) = match line.split_once('`') {
            Some((declaration, rest)) => (declaration, rest.split('`').next().unwrap_or_default()),
            None => (line.split("//").next().unwrap_or(line), ""),
        };
        let mut words = declaration.split_whitespace();
        let (Some(first), second) = (words.next(), words.next()) else { continue };
        fields.push(Field {
            name: first.trim_start_matches('*').rsplit('.').next().unwrap_or(first).to_string(),
            embedded: second.is_none(),
            ty: second.unwrap_or(first).to_string(),
            json: tag(tags, "json"),
            tag: tag(tags, "protobuf").and_then(|t| t.split(',').nth(1)?.parse().ok()),
            markers: std::mem::take(&mut markers),
        });
    }
    fields
}

fn tag(tags: &str, key: &str) -> Option<String> {
    let at = tags.find(&format!("{key}:\""))? + key.len() + 2;
    Some(tags[at..].split('"').next()?.to_string())
}
