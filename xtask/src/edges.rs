//! The repository's shape, checked: which crate may depend on which, and that nothing is a drawer.
//!
//! The edges are DESIGN's: state knows no Kubernetes, the runtime no Pod, components meet only through the API.

use std::path::{Path, PathBuf};

/// The rooms, and what each may stand on. A crate that is not here fails the test: place it first.
const EDGES: &[(&str, &[&str])] = &[
    ("meta", &[]),
    ("cel", &["meta"]),
    ("resources", &["cel", "meta"]),
    ("store", &[]),
    ("cri", &[]),
    ("plugins", &[]),
    ("apiserver", &["resources", "store", "cel", "meta", "client"]),
    ("client", &["meta"]),
    ("scheduler", &["cel", "client", "meta"]),
    ("controllers", &["client", "meta"]),
    ("kubelet", &["client", "cri", "meta", "plugins"]),
    ("proxy", &["client", "meta"]),
    ("dns", &["client", "meta"]),
    ("runtime", &["cri"]),
    ("kubectl", &["client", "meta"]),
    (
        "nauplius",
        &[
            "meta",
            "resources",
            "store",
            "apiserver",
            "client",
            "scheduler",
            "controllers",
            "kubelet",
            "runtime",
            "proxy",
            "dns",
            "kubectl",
        ],
    ),
];

/// Names that say nothing of what is inside.
const DRAWERS: &[&str] =
    &["util", "utils", "common", "commons", "helper", "helpers", "manager", "managers", "misc", "advanced", "stuff"];

fn root() -> PathBuf {
    // The chores' own directory is directly below the repository.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// The rooms named in one of a manifest's tables, `[dependencies]` or a target's.
fn dependencies(manifest: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            // Tests may use what they test against; only what is shipped has edges.
            inside = line.ends_with("dependencies]") && !line.contains("dev-dependencies");
        } else if inside && let Some(name) = line.split(['.', '=', ' ']).next() {
            out.extend(EDGES.iter().map(|(room, _)| *room).filter(|room| *room == name));
        }
    }
    out
}

/// Rust files and directories below `dir`, build results aside.
fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if name == "target" || name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if path.is_dir() {
            sources(&path, out);
            out.push(path);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn crates_depend_as_designed() {
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(root().join("crates")).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(manifest) = std::fs::read_to_string(entry.path().join("Cargo.toml")) else { continue };
        let Some((_, allowed)) = EDGES.iter().find(|(room, _)| *room == name) else {
            wrong.push(format!("crates/{name} has no place among the rooms"));
            continue;
        };
        wrong.extend(
            dependencies(&manifest).iter().filter(|on| !allowed.contains(on)).map(|on| format!("{name} → {on}")),
        );
    }
    assert!(wrong.is_empty(), "edges that the design does not have:\n  {}", wrong.join("\n  "));
}

#[test]
fn no_file_is_a_drawer() {
    let mut files = Vec::new();
    for part in ["crates", "tests", "xtask", "benches", "fuzz"] {
        sources(&root().join(part), &mut files);
    }
    assert!(files.len() > 100, "the sources were not found");
    let drawer =
        |file: &&PathBuf| file.file_stem().is_some_and(|stem| DRAWERS.iter().any(|d| stem.eq_ignore_ascii_case(d)));
    let found: Vec<_> = files.iter().filter(drawer).collect();
    assert!(found.is_empty(), "name these after what is in them: {found:?}");
}

#[test]
fn no_module_is_a_drawer() {
    let mut files = Vec::new();
    sources(&root().join("crates"), &mut files);
    for file in files.iter().filter(|f| f.is_file()) {
        let text = std::fs::read_to_string(file).unwrap();
        for line in text.lines().map(str::trim) {
            let declared = line.trim_start_matches("pub ").trim_start_matches("pub(crate) ").strip_prefix("mod ");
            let name = declared.map(|rest| rest.trim_end_matches([';', '{', ' ']));
            assert!(!name.is_some_and(|name| DRAWERS.contains(&name)), "{}: {line}", file.display());
        }
    }
}

#[test]
fn a_manifest_is_read() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\nmeta.workspace = true\nstore = { path = \"..\" }\nserde = \"1\"\n[dev-dependencies]\nclient.workspace = true\n";
    assert_eq!(dependencies(manifest), ["meta", "store"]);
}
