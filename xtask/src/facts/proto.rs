//! Reads the messages of a `generated.proto`: names, field numbers, types. Comments are skipped; the markers in them
//! are the Go types' own, and read there.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

#[derive(Debug, Default)]
pub struct File {
    /// The proto package: `k8s.io.api.core.v1`.
    pub name: String,
    pub messages: BTreeMap<String, Vec<Field>>,
}

#[derive(Debug)]
pub struct Field {
    pub name: String,
    pub tag: u32,
    /// As written, with packages in full: `string`, `map<string, k8s.io.…Quantity>`'s value, …
    pub ty: String,
    pub form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    One,
    List,
    /// Keys are always strings in these files; the type is the value's.
    Map,
}

pub fn parse(text: &str) -> Result<File> {
    let mut file = File::default();
    let mut message: Option<(String, Vec<Field>)> = None;
    for line in text.lines().map(str::trim) {
        if line.starts_with("//") || line.is_empty() {
            continue;
        }
        if let Some(name) = line.strip_prefix("package ") {
            file.name = name.trim_end_matches(';').to_string();
        } else if let Some(name) = line.strip_prefix("message ") {
            message = Some((name.trim_end_matches('{').trim().to_string(), Vec::new()));
        } else if line == "}" {
            if let Some((name, fields)) = message.take() {
                file.messages.insert(name, fields);
            }
        } else if let Some((_, fields)) = &mut message {
            fields.push(field(line, &file.name).with_context(|| format!("field {line:?}"))?);
        }
    }
    Ok(file)
}

fn field(line: &str, package: &str) -> Result<Field> {
    let (left, right) = line.split_once('=').context("no number")?;
    let tag = right.trim().trim_end_matches(';').split_whitespace().next().context("no number")?.parse()?;
    let (ty, name) = left.trim().rsplit_once(' ').context("no name")?;
    let ty = ty.trim();
    let (form, ty) = match ty.strip_prefix("map<") {
        Some(pair) => (Form::Map, pair.trim_end_matches('>').split_once(',').context("no value type")?.1.trim()),
        None => match ty.strip_prefix("repeated ") {
            Some(ty) => (Form::List, ty),
            None => (Form::One, ty.strip_prefix("optional ").unwrap_or(ty)),
        },
    };
    let ty = match ty.strip_prefix('.') {
        Some(full) => full.to_string(),
        None if ty.starts_with(|c: char| c.is_ascii_uppercase()) => format!("{package}.{ty}"),
        None => ty.to_string(),
    };
    Ok(Field { name: name.to_string(), tag, ty, form })
}
