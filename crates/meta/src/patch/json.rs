//! JSON patch, RFC 6902, with the habits of the library upstream uses: negative list indices count from the end, and a
//! `test` against null holds where nothing is.
//!
//! A patch is all or nothing. What `copy` may add to the document is bounded, so that a short patch cannot make a
//! document without end; the number of operations is the caller's to bound.

use serde_json::Value;

use super::PatchError;

/// How many bytes of JSON the `copy` operations of one patch may add: upstream's limit, the size of the largest request.
const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;

/// Applies a patch, a list of operations.
pub fn json(mut doc: Value, patch: &Value) -> Result<Value, PatchError> {
    if patch.is_null() {
        return Ok(doc);
    }
    let operations = patch.as_array().ok_or_else(|| PatchError::unfit(patch, "[]handlers.jsonPatchOp"))?;
    let mut copied = 0;
    for operation in operations {
        apply(&mut doc, operation, &mut copied)?;
    }
    Ok(doc)
}

fn apply(doc: &mut Value, operation: &Value, copied: &mut usize) -> Result<(), PatchError> {
    let word = |name: &str| operation.get(name).and_then(Value::as_str);
    if !operation.is_object() {
        return Err(PatchError::unfit(operation, "handlers.jsonPatchOp"));
    }
    let lacks = |what: &str| PatchError::unprocessable(format!("an operation has no {what:?}"));
    let kind = word("op").ok_or_else(|| lacks("op"))?;
    let path = word("path").ok_or_else(|| lacks("path"))?;
    let from = || word("from").ok_or_else(|| lacks("from"));
    // Go's clients leave out an empty value; upstream takes that for null, whatever RFC 6902 says.
    let value = || operation.get("value").unwrap_or(&Value::Null).clone();
    let to = Pointer::parse(kind, path)?;
    match kind {
        "add" => to.add(doc, value()),
        "remove" => to.remove(doc).map(drop),
        // The library takes a field that is not there for an empty one.
        "replace" if to.find(doc).is_err() && to.parent_exists(doc) => to.add(doc, value()),
        "replace" => {
            *to.find_mut(doc)? = value();
            Ok(())
        }
        "move" => {
            let source = Pointer::parse(kind, from()?)?;
            if source.tokens.len() < to.tokens.len() && to.tokens.starts_with(&source.tokens) {
                return Err(PatchError::unprocessable(format!(
                    "move operation cannot move {:?} into itself",
                    source.text
                )));
            }
            if source.tokens == to.tokens {
                return source.find(doc).map(drop);
            }
            let value = source.remove(doc)?;
            to.add(doc, value)
        }
        "copy" => {
            let source = Pointer::parse(kind, from()?)?;
            let value = match source.find(doc) {
                Ok(found) => found.clone(),
                Err(_) if source.parent_exists(doc) => Value::Null,
                Err(error) => return Err(error),
            };
            *copied += json_len(&value);
            if *copied > MAX_COPIED_BYTES {
                return Err(PatchError::unprocessable(format!(
                    "unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED_BYTES}"
                )));
            }
            to.add(doc, value)
        }
        "test" => {
            let wanted = value();
            match to.find(doc) {
                Ok(found) if same(found, &wanted) => Ok(()),
                Err(_) if wanted.is_null() && to.parent_exists(doc) => Ok(()),
                Err(error) => Err(error),
                Ok(_) => Err(PatchError::unprocessable(format!("testing value {path} failed: test failed"))),
            }
        }
        other => Err(PatchError::unprocessable(format!("unexpected kind: {other}"))),
    }
}

/// Equality of RFC 6902: numbers are equal when they are numerically equal.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || (x.as_f64() == y.as_f64() && (x.is_f64() || y.is_f64())),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(k, v)| y.get(k).is_some_and(|w| same(v, w)))
        }
        _ => a == b,
    }
}

/// About how many bytes a tree is as JSON; what escaping adds does not matter to a bound.
fn json_len(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(s) => s.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|v| json_len(v) + 1).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(k, v)| k.len() + 4 + json_len(v)).sum::<usize>(),
    }
}

/// A JSON pointer, RFC 6901.
struct Pointer<'p> {
    kind: &'p str,
    text: &'p str,
    tokens: Vec<String>,
}

impl<'p> Pointer<'p> {
    fn parse(kind: &'p str, text: &'p str) -> Result<Self, PatchError> {
        let mut parts = text.split('/');
        if parts.next() != Some("") {
            return Err(PatchError::unprocessable(format!(
                "{kind} operation does not apply: the path {text:?} does not begin with a slash"
            )));
        }
        let tokens = parts.map(|t| t.replace("~1", "/").replace("~0", "~")).collect();
        Ok(Self { kind, text, tokens })
    }

    fn missing(&self) -> PatchError {
        PatchError::unprocessable(format!(
            "{} operation does not apply: doc is missing path: {:?}: missing value",
            self.kind, self.text
        ))
    }

    fn out_of_bounds(&self) -> PatchError {
        PatchError::unprocessable(format!(
            "{} operation does not apply: invalid index in path {:?}: invalid index referenced",
            self.kind, self.text
        ))
    }

    /// The place of an existing item.
    fn index(&self, token: &str, len: usize) -> Result<usize, PatchError> {
        let at = token.parse::<i64>().map_err(|_| self.out_of_bounds())?;
        let at = if at < 0 { i64::try_from(len).unwrap_or(i64::MAX) + at } else { at };
        usize::try_from(at).ok().filter(|at| *at < len).ok_or_else(|| self.out_of_bounds())
    }

    fn walk<'v>(&self, mut at: &'v Value, tokens: &[String]) -> Result<&'v Value, PatchError> {
        for token in tokens {
            at = match at {
                Value::Object(map) => map.get(token).ok_or_else(|| self.missing())?,
                Value::Array(items) => &items[self.index(token, items.len())?],
                _ => return Err(self.missing()),
            };
        }
        Ok(at)
    }

    fn walk_mut<'v>(&self, mut at: &'v mut Value, tokens: &[String]) -> Result<&'v mut Value, PatchError> {
        for token in tokens {
            at = match at {
                Value::Object(map) => map.get_mut(token).ok_or_else(|| self.missing())?,
                Value::Array(items) => {
                    let index = self.index(token, items.len())?;
                    &mut items[index]
                }
                _ => return Err(self.missing()),
            };
        }
        Ok(at)
    }

    fn find<'v>(&self, doc: &'v Value) -> Result<&'v Value, PatchError> {
        self.walk(doc, &self.tokens)
    }

    fn find_mut<'v>(&self, doc: &'v mut Value) -> Result<&'v mut Value, PatchError> {
        self.walk_mut(doc, &self.tokens)
    }

    /// Whether only the last step leads nowhere, and it is a field.
    fn parent_exists(&self, doc: &Value) -> bool {
        self.tokens.split_last().is_some_and(|(_, parents)| self.walk(doc, parents).is_ok_and(Value::is_object))
    }

    fn add(&self, doc: &mut Value, value: Value) -> Result<(), PatchError> {
        let Some((last, parents)) = self.tokens.split_last() else {
            *doc = value;
            return Ok(());
        };
        match self.walk_mut(doc, parents)? {
            Value::Object(map) => {
                map.insert(last.clone(), value);
                Ok(())
            }
            Value::Array(items) => {
                // An item may be added behind the last one, so there is one place more than there are items.
                let at = if last == "-" { items.len() } else { self.index(last, items.len() + 1)? };
                items.insert(at, value);
                Ok(())
            }
            _ => Err(self.missing()),
        }
    }

    fn remove(&self, doc: &mut Value) -> Result<Value, PatchError> {
        let Some((last, parents)) = self.tokens.split_last() else {
            return Err(PatchError::unprocessable(format!("{} operation cannot remove the whole document", self.kind)));
        };
        match self.walk_mut(doc, parents)? {
            Value::Object(map) => map.remove(last).ok_or_else(|| {
                PatchError::unprocessable(format!(
                    "{} operation does not apply: Unable to remove nonexistent key: {last}: missing value",
                    self.kind
                ))
            }),
            Value::Array(items) => {
                let at = self.index(last, items.len())?;
                Ok(items.remove(at))
            }
            _ => Err(self.missing()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json as j;

    use super::*;

    #[test]
    fn applies_operations() {
        // (document, patch, result)
        let cases = [
            (j!({"foo": "bar"}), j!([{"op": "add", "path": "/baz", "value": "qux"}]), j!({"baz": "qux", "foo": "bar"})),
            (
                j!({"foo": ["bar", "baz"]}),
                j!([{"op": "add", "path": "/foo/1", "value": "qux"}]),
                j!({"foo": ["bar", "qux", "baz"]}),
            ),
            (j!({"foo": ["bar"]}), j!([{"op": "add", "path": "/foo/-", "value": ["x"]}]), j!({"foo": ["bar", ["x"]]})),
            (
                j!({"foo": ["a", "b"]}),
                j!([{"op": "add", "path": "/foo/-1", "value": "c"}]),
                j!({"foo": ["a", "b", "c"]}),
            ),
            (j!({"foo": ["a", "b"]}), j!([{"op": "remove", "path": "/foo/-1"}]), j!({"foo": ["a"]})),
            (j!({"baz": 1, "foo": 2}), j!([{"op": "remove", "path": "/baz"}]), j!({"foo": 2})),
            (j!({"baz": "qux"}), j!([{"op": "replace", "path": "/baz", "value": null}]), j!({"baz": null})),
            (
                j!({"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}}),
                j!([{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}]),
                j!({"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}}),
            ),
            (
                j!({"foo": ["all", "grass", "cows", "eat"]}),
                j!([{"op": "move", "from": "/foo/1", "path": "/foo/3"}]),
                j!({"foo": ["all", "cows", "eat", "grass"]}),
            ),
            (j!({"a": {"b": 1}}), j!([{"op": "copy", "from": "/a", "path": "/c"}]), j!({"a": {"b": 1}, "c": {"b": 1}})),
            (
                j!({"a/b": {"m~n": 8}}),
                j!([{"op": "test", "path": "/a~1b/m~0n", "value": 8.0}]),
                j!({"a/b": {"m~n": 8}}),
            ),
            (j!({"a": 1}), j!([{"op": "test", "path": "/b", "value": null}]), j!({"a": 1})),
            // What is not there is empty: the library's habit.
            (j!({"a": 1}), j!([{"op": "replace", "path": "/b", "value": 2}]), j!({"a": 1, "b": 2})),
            (j!({"a": 1}), j!([{"op": "copy", "from": "/c", "path": "/b"}]), j!({"a": 1, "b": null})),
            (j!({"a": 1}), j!(null), j!({"a": 1})),
            (j!({"a": 1}), j!([{"op": "replace", "path": "", "value": {"b": 2}}]), j!({"b": 2})),
            (
                j!({"a": 1}),
                j!([{"op": "replace", "path": "/a"}, {"op": "add", "path": "/b"}]),
                j!({"a": null, "b": null}),
            ),
            (
                j!({"metadata": {"annotations": {"a/b": "1"}}}),
                j!([{"op": "remove", "path": "/metadata/annotations/a~1b"}]),
                j!({"metadata": {"annotations": {}}}),
            ),
        ];
        for (doc, patch, want) in cases {
            assert_eq!(json(doc, &patch), Ok(want), "patch {patch}");
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let doc = j!({"a": {"b": [1, 2]}, "s": "x"});
        let unprocessable = [
            j!([{"op": "test", "path": "/s", "value": "y"}]),
            j!([{"op": "test", "path": "/x/y", "value": null}]),
            j!([{"op": "remove", "path": "/nope"}]),
            j!([{"op": "replace", "path": "/nope/b", "value": 1}]),
            j!([{"op": "copy", "from": "/a/b/7", "path": "/c"}]),
            j!([{"path": "/a"}]),
            j!([{"op": "add"}]),
            j!([{"op": "add", "path": "/x/y", "value": 1}]),
            j!([{"op": "add", "path": "/a/b/7", "value": 1}]),
            j!([{"op": "add", "path": "/a/b/one", "value": 1}]),
            j!([{"op": "add", "path": "/s/t", "value": 1}]),
            j!([{"op": "add", "path": "a", "value": 1}]),
            j!([{"op": "move", "from": "/a", "path": "/a/b/0"}]),
            j!([{"op": "jump", "path": "/a"}]),
        ];
        for patch in unprocessable {
            match json(doc.clone(), &patch) {
                Err(PatchError::Unprocessable(said)) => {
                    assert!(
                        said.starts_with("the server rejected our request due to an error in our request"),
                        "{said}"
                    );
                }
                other => panic!("{patch}: {other:?}"),
            }
        }
        for patch in [j!({"op": "remove"}), j!([1])] {
            assert!(matches!(json(doc.clone(), &patch), Err(PatchError::Invalid(_))), "{patch}");
        }
    }

    #[test]
    fn bounds_what_copies_add() {
        let doc = j!({"a": "x".repeat(1000)});
        // Each copy of the whole document doubles it.
        let patch = Value::Array((0..40).map(|n| j!({"op": "copy", "from": "", "path": format!("/c{n}")})).collect());
        assert!(matches!(json(doc, &patch), Err(PatchError::Unprocessable(_))));
    }
}
