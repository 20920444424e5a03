//! `cargo xtask facts`: writes the table of schema facts from checkouts of upstream's published API packages.
//!
//! Reads `generated.proto` for field numbers and wire types, and the Go types for what protos do not say: JSON names,
//! inlining, pointers, markers, enum values. Only facts get into the table, never a sentence. With `--openapi` the
//! result is also compared with a published OpenAPI v2 document and the differences are printed; with `--check` nothing is written and a stale
//! table is an error.

mod compare;
mod go;
mod proto;
mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Kinds whose lifecycle marker says they were removed by this minor version of Kubernetes 1.x are left out.
const MINOR: u32 = 37;

/// Where the table lies, from the workspace's root.
const TABLE: &str = "crates/meta/src/schema/facts.txt";

const USAGE: &str = "usage: cargo xtask facts --api DIR --apimachinery DIR --apiextensions DIR --aggregator DIR \
                     [--openapi FILE] [--check]";

pub fn run(args: &[String]) -> Result<()> {
    let (mut check, mut openapi) = (false, None);
    let mut roots: [Option<PathBuf>; 4] = Default::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().map(PathBuf::from).with_context(|| format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            "--check" => check = true,
            "--openapi" => openapi = Some(value()?),
            "--api" => roots[0] = Some(value()?),
            "--apimachinery" => roots[1] = Some(value()?),
            "--apiextensions" => roots[2] = Some(value()?),
            "--aggregator" => roots[3] = Some(value()?),
            _ => bail!("unknown argument {arg}\n{USAGE}"),
        }
    }
    let [Some(api), Some(apimachinery), Some(apiextensions), Some(aggregator)] = roots else { bail!("{USAGE}") };

    let mut dirs: Vec<PathBuf> = Vec::new();
    for group in subdirs(&api)? {
        dirs.extend(subdirs(&group)?.into_iter().filter(|d| d.join("generated.proto").exists()));
    }
    for dir in ["pkg/apis/meta/v1", "pkg/api/resource", "pkg/runtime", "pkg/util/intstr"] {
        dirs.push(apimachinery.join(dir));
    }
    dirs.push(apiextensions.join("pkg/apis/apiextensions/v1"));
    dirs.push(aggregator.join("pkg/apis/apiregistration/v1"));

    let mut packages = Vec::new();
    for dir in dirs {
        let text = read(&dir.join("generated.proto"))?;
        let proto = proto::parse(&text).with_context(|| format!("{}", dir.display()))?;
        let go = go::parse_dir(&dir)?;
        packages.push(table::Package { proto, go });
    }
    packages.sort_by(|a, b| a.proto.name.cmp(&b.proto.name));
    let text = table::write(&packages, MINOR)?;

    if let Some(path) = openapi {
        let document = serde_json::from_str(&read(&path)?).with_context(|| format!("{}", path.display()))?;
        for difference in compare::compare(&text, &document) {
            println!("{difference}");
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
    let path = root.join(TABLE);
    if !check {
        std::fs::write(&path, &text).with_context(|| format!("write {}", path.display()))?;
        println!("{TABLE}: {} bytes", text.len());
    } else if read(&path)? != text {
        bail!("{TABLE} is stale: run `cargo xtask facts` without --check");
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn subdirs(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let mut dirs: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir()).collect();
    dirs.sort();
    Ok(dirs)
}
