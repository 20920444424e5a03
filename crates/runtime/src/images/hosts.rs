//! Where a registry's content is fetched from: the mirrors that an administrator names for it, then the registry itself.
//!
//! Read from `DIR/REGISTRY/hosts.toml` (`DIR/_default/hosts.toml` for registries without one), in containerd's format:
//! `server`, and tables `[host."URL"]` with `capabilities`, `ca`, `override_path` and `header`. What is not understood is
//! an error, never left out: `skip_verify` and `client` are refused. Credentials are for the registry alone; mirrors get
//! none.

use std::fmt;
use std::path::{Path, PathBuf};

use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

/// Directories that are looked into if nothing else is said.
pub const DIRECTORIES: [&str; 2] = ["/etc/containerd/certs.d", "/etc/docker/certs.d"];
/// The file of a registry.
const FILE: &str = "hosts.toml";
/// Whose file goes for registries without one.
const DEFAULT: &str = "_default";
/// Most mirrors of one registry.
const MAX_MIRRORS: usize = 16;

/// A place that speaks the registry protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Host, and port if it says one.
    pub authority: String,
    /// What comes before a repository's name, without a slash at its end.
    pub prefix: String,
    /// Plain HTTP was asked for by name.
    pub plain: bool,
    /// Names may be resolved there.
    pub resolve: bool,
    /// Content may be fetched from there.
    pub pull: bool,
    /// Files of authorities that are trusted besides the system's.
    pub authorities: Vec<PathBuf>,
    /// Sent with each request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The registry it stands for; none for that itself.
    pub mirror_of: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    server: Option<String>,
    #[serde(default)]
    host: Ordered<Row>,
    #[serde(flatten)]
    own: Row,
}

#[derive(Default, Deserialize)]
struct Row {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMore>,
    client: Option<serde_json::Value>,
    skip_verify: Option<bool>,
    override_path: Option<bool>,
    header: Option<Ordered<OneOrMore>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn list(self) -> Vec<String> {
        match self {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(more) => more,
        }
    }
}

/// A table in the order of its file, which is the order of preference.
struct Ordered<T>(Vec<(String, T)>);

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Ordered(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Rows<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Rows<T> {
            type Value = Ordered<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered<T>, A::Error> {
                let mut rows = Vec::new();
                while let Some(row) = map.next_entry()? {
                    rows.push(row);
                }
                Ok(Ordered(rows))
            }
        }
        from.deserialize_map(Rows(std::marker::PhantomData))
    }
}

/// The places of a registry, in order of preference; the last is the registry itself.
pub fn of(registry: &str, directories: &[PathBuf]) -> Result<Vec<Place>, String> {
    for dir in [registry, DEFAULT].iter().flat_map(|name| directories.iter().map(move |d| d.join(name))) {
        let file = dir.join(FILE);
        match std::fs::read_to_string(&file) {
            Ok(text) => return read(registry, &text, &dir).map_err(|e| format!("{}: {e}", file.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(format!("{}: {e}", file.display())),
        }
    }
    Ok(vec![itself(registry, directories)])
}

/// A registry without a file of its own: its authority may lie in its directory all the same.
fn itself(registry: &str, directories: &[PathBuf]) -> Place {
    let authority = match registry {
        "docker.io" => "registry-1.docker.io",
        other => other,
    };
    Place {
        authority: authority.into(),
        prefix: "/v2".into(),
        plain: false,
        resolve: true,
        pull: true,
        authorities: directories.iter().map(|d| d.join(authority).join("ca.crt")).filter(|f| f.exists()).collect(),
        headers: Vec::new(),
        mirror_of: None,
    }
}

fn read(registry: &str, text: &str, dir: &Path) -> Result<Vec<Place>, String> {
    let file: File = basic_toml::from_str(text).map_err(|e| e.to_string())?;
    if file.host.0.len() > MAX_MIRRORS {
        return Err(format!("more than {MAX_MIRRORS} hosts"));
    }
    let mut places = Vec::new();
    for (url, row) in file.host.0 {
        places.push(Place { mirror_of: Some(registry.into()), ..place(&url, row, dir)? });
    }
    let itself = itself(registry, &[]);
    let server = file.server.filter(|s| !s.is_empty()).unwrap_or_else(|| format!("https://{}", itself.authority));
    let mut own = place(&server, file.own, dir)?;
    let ca = dir.join("ca.crt");
    if ca.exists() {
        own.authorities.push(ca);
    }
    // Another server than the registry stands for it, and does not get its credentials.
    own.mirror_of = (own.authority != itself.authority).then(|| registry.to_string());
    places.push(own);
    Ok(places)
}

fn place(url: &str, row: Row, dir: &Path) -> Result<Place, String> {
    if row.skip_verify == Some(true) {
        return Err(format!("host \"{url}\": skip_verify is not supported; name the authority by \"ca\""));
    }
    if row.client.is_some() {
        return Err(format!("host \"{url}\": client certificates are not supported"));
    }
    let (plain, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(rest), _) => (true, rest),
        (_, Some(rest)) => (false, rest),
        _ => (false, url),
    };
    let (authority, path) = rest.split_once('/').map_or((rest, ""), |(a, p)| (a, p.trim_matches('/')));
    if authority.is_empty() || authority.parse::<http::uri::Authority>().is_err() || authority.contains('@') {
        return Err(format!("\"{url}\" is not the address of a host"));
    }
    let mut prefix = if path.is_empty() { String::new() } else { format!("/{path}") };
    if row.override_path != Some(true) && !prefix.ends_with("/v2") {
        prefix.push_str("/v2");
    }
    let (mut resolve, mut pull) = (row.capabilities.is_none(), row.capabilities.is_none());
    for capability in row.capabilities.into_iter().flatten() {
        match capability.as_str() {
            "pull" => pull = true,
            "resolve" => resolve = true,
            "push" => {}
            other => return Err(format!("host \"{url}\": unknown capability {other:?}")),
        }
    }
    let mut headers = Vec::new();
    for (name, values) in row.header.map(|h| h.0).unwrap_or_default() {
        for value in values.list() {
            let bad = |_| format!("host \"{url}\": \"{name}: {value}\" is not a header");
            let name = HeaderName::try_from(name.as_str()).map_err(|e| bad(e.to_string()))?;
            headers.push((name, HeaderValue::from_str(&value).map_err(|e| bad(e.to_string()))?));
        }
    }
    let authorities = row.ca.map(OneOrMore::list).unwrap_or_default();
    Ok(Place {
        authority: authority.into(),
        prefix,
        plain,
        resolve,
        pull,
        authorities: authorities.into_iter().map(|file| dir.join(file)).collect(),
        headers,
        mirror_of: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &[&str]) {
        let shown = |p: &Place| {
            let scheme = if p.plain { "http" } else { "https" };
            let can = [("resolve", p.resolve), ("pull", p.pull)];
            let can: Vec<&str> = can.iter().filter(|(_, can)| *can).map(|(name, _)| *name).collect();
            format!("{scheme}://{}{} {} {:?} {:?}", p.authority, p.prefix, can.join("+"), p.authorities, p.mirror_of)
        };
        let got = match read("docker.io", text, Path::new("/d")) {
            Ok(places) => places.iter().map(shown).collect(),
            Err(error) => vec![error],
        };
        assert_eq!(got, expect, "{text}");
    }

    #[test]
    fn files_are_read() {
        let itself = "https://registry-1.docker.io/v2 resolve+pull [] None";
        check("", &[itself]);
        check(
            "server = \"https://registry-1.docker.io\"\n[host.\"https://b.example:5000\"]\n  capabilities = [\"pull\"]\n\
             [host.\"http://a.example/some/path\"]\n  ca = [\"x.pem\", \"/y.pem\"]\n  [host.\"http://a.example/some/path\".header]\n    x-a = \"1\"\n",
            &[
                "https://b.example:5000/v2 pull [] Some(\"docker.io\")",
                "http://a.example/some/path/v2 resolve+pull [\"/d/x.pem\", \"/y.pem\"] Some(\"docker.io\")",
                itself,
            ],
        );
        check(
            "server = \"other.example\"\noverride_path = true\n[host.\"https://a/v2\"]\n",
            &[
                "https://a/v2 resolve+pull [] Some(\"docker.io\")",
                "https://other.example resolve+pull [] Some(\"docker.io\")",
            ],
        );
        check(
            "[host.\"https://a\"]\nskip_verify = true\n",
            &["host \"https://a\": skip_verify is not supported; name the authority by \"ca\""],
        );
        check("[host.\"https://a\"]\ncapabilities = [\"fly\"]\n", &["host \"https://a\": unknown capability \"fly\""]);
        check("[host.\"https://user@a\"]\n", &["\"https://user@a\" is not the address of a host"]);
        assert!(read("r", "nonsense", Path::new("/d")).is_err());
    }
}
