//! Configuration documents (`*.config.k8s.io`): read strictly, and refused in upstream's words. Knows nothing of what they say.

use meta::FieldError;
use serde::de::DeserializeOwned;

/// Reads a document: its version (`apiVersion`, one of these), kind and fields are known, and none is there twice. The type
/// has the fields besides version and kind.
pub fn read<T: DeserializeOwned>(bytes: &[u8], kind: &str, versions: &[&str]) -> Result<T, String> {
    let (mut value, issues) = meta::decode::yaml(bytes).map_err(|e| e.to_string())?;
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    if text("kind") != kind || !versions.contains(&text("apiVersion")) {
        return Err(format!("no kind {:?} is registered for version {:?}", text("kind"), text("apiVersion")));
    }
    let twice: Vec<String> = issues.texts().collect();
    if !twice.is_empty() {
        return Err(format!("strict decoding error: {}", twice.join(", ")));
    }
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| !matches!(name.as_str(), "apiVersion" | "kind"));
    }
    serde_json::from_value(value).map_err(|e| format!("strict decoding error: {e}"))
}

/// Errors as upstream joins them.
pub fn joined(errors: &[FieldError]) -> String {
    let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
    match &said[..] {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// Checks that a document is taken, or, where anything is expected, refused in these words.
#[cfg(test)]
pub fn expect<T>(body: &str, parsed: Result<T, impl std::fmt::Display>, expect: &[&str]) {
    match parsed {
        Ok(_) => assert!(expect.is_empty(), "{body} is taken"),
        Err(said) => {
            let said = said.to_string();
            assert!(!expect.is_empty(), "{body}: {said}");
            expect.iter().for_each(|part| assert!(said.contains(part), "{body}: {said}: says nothing of {part}"));
        }
    }
}
