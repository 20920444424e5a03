//! Runtime handlers: who makes a pod's containers. The default is the shim itself; runc and crun are alternatives where
//! their programs are installed, under the same shim, which keeps logs, exits and adoption as they are.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::NAME;
use crate::engine::Engine;
use crate::spec::bundle::OciRuntime;

/// Handlers that are programs, by the program's name.
const PROGRAMS: [&str; 2] = ["runc", "crun"];
/// Where programs are looked for.
const PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// A handler that can be used now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handler {
    /// The shim.
    Own,
    /// A program with runc's command line.
    Program {
        /// The handler's name.
        name: &'static str,
        /// The program.
        path: PathBuf,
    },
}

/// The handler of a name.
pub fn find(name: &str) -> Result<Handler> {
    if name.is_empty() || name == NAME {
        return Ok(Handler::Own);
    }
    let Some(name) = PROGRAMS.into_iter().find(|p| *p == name) else {
        bail!("no runtime for \"{name}\" is configured");
    };
    match program(name) {
        Some(path) => Ok(Handler::Program { name, path }),
        None => bail!("no runtime for \"{name}\" is configured: there is no program {name} in {}", PATH.join(":")),
    }
}

/// The names of all handlers that can be used now, and whether each can give pods users of their own.
pub fn available() -> Vec<(&'static str, bool)> {
    let own_users = crate::sandbox::user_namespaces();
    let programs = PROGRAMS.into_iter().filter(|name| program(name).is_some()).map(|name| (name, false));
    [("", own_users), (NAME, own_users)].into_iter().chain(programs).collect()
}

fn program(name: &str) -> Option<PathBuf> {
    PATH.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
}

impl Engine {
    /// How the program of a handler is to make a container; `None`: the shim makes it.
    pub fn oci_runtime(&self, handler: &str, container: &str) -> Result<Option<OciRuntime>> {
        Ok(match find(handler)? {
            Handler::Own => None,
            Handler::Program { name, path } => Some(OciRuntime {
                program: path,
                state: self.config.state.join(name),
                bundle: self.container_dir(container),
            }),
        })
    }

    /// Removes what the program that made a container, if one did, remembers of it. Its cgroups go with the others.
    pub fn oci_forget(&self, sandbox: &str, container: &str) -> Result<()> {
        let handler = self.sandbox(sandbox).map(|s| s.record().runtime_handler).unwrap_or_default();
        match PROGRAMS.iter().find(|name| **name == handler) {
            Some(name) => crate::sandbox::remove_dir(&self.config.state.join(name).join(container)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_or_refused() {
        assert_eq!(find("").unwrap(), Handler::Own);
        assert_eq!(find(NAME).unwrap(), Handler::Own);
        assert_eq!(find("kata").unwrap_err().to_string(), "no runtime for \"kata\" is configured");
        for name in PROGRAMS {
            assert_eq!(find(name).is_ok(), available().iter().any(|(n, _)| *n == name));
        }
    }
}
